package limits

import "time"

// The calendar windows of budgets.
const (
	day = iota
	week
	month
	windows
)

var windowNames = [windows]string{"budget.day", "budget.week", "budget.month"}

// budgets returns what may be spent in each window. Zero: no bound.
func (b Budget) budgets() [windows]int64 {
	return [windows]int64{int64(b.Day), int64(b.Week), int64(b.Month)}
}

// windowStart returns when the window began that has the time in it.
func windowStart(window int, ms int64) int64 {
	at := time.UnixMilli(ms).UTC()
	y, m, d := at.Date()
	switch window {
	case week:
		d -= (int(at.Weekday()) + 6) % 7 // it begins on Monday
	case month:
		d = 1
	}
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC).UnixMilli()
}

// windowEnd returns when the next window begins.
func windowEnd(window int, ms int64) int64 {
	start := time.UnixMilli(windowStart(window, ms)).UTC()
	switch window {
	case week:
		return start.AddDate(0, 0, 7).UnixMilli()
	case month:
		return start.AddDate(0, 1, 0).UnixMilli()
	}
	return start.AddDate(0, 0, 1).UnixMilli()
}
