package worker

import "math"

// limit is how many calls at once a provider bears, over all its workers: it falls by a
// share when the provider shows that it has too many, and climbs by a step while all of
// it is used (additive increase, multiplicative decrease; RFC 5681 has the idea for
// networks).
type limit struct {
	least, most int
	maxSlowdown float64 // zero: being slow does not count
	now         float64
}

// congestion is what the workers saw of the provider in the last period.
type congestion struct {
	limited  int64   // calls answered with 429
	slowdown float64 // times slower than usual; zero when not known
	inUse    int     // calls at once
	waiting  int     // jobs that wait for a call to end
}

// Steps of a limit, a second each.
const (
	onLimited  = 0.7  // of what was in use, after a 429
	onSlowdown = 0.9  // of what was in use, when answers are slow
	climbs     = 0.05 // of the most, at least one call
	fullFrom   = 0.8  // of the limit in use: then more may be tried
)

// adjust takes a period into account.
func (l *limit) adjust(c congestion) {
	used := math.Min(l.now, math.Max(float64(c.inUse), 1))
	switch {
	case c.limited > 0:
		l.now = used * onLimited
	case l.maxSlowdown > 0 && c.slowdown > l.maxSlowdown && float64(c.inUse) >= l.now/2:
		l.now = used * onSlowdown
	case c.waiting > 0 || float64(c.inUse) >= fullFrom*l.now:
		l.now += math.Max(1, climbs*float64(l.most))
	}
	l.now = math.Min(math.Max(l.now, float64(l.least)), float64(l.most))
}
