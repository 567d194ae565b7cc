package limits

import (
	"math"
	"slices"
	"time"
)

// Bounds of a record.
const (
	maxEntries = 64  // a minute's, one a second
	maxHolders = 128 // processes that have something in hand at once
)

// moneyGrace is for how long the money stays reserved that a process had in hand when it
// was last heard of. What it would have told is in the ledger by then, and ledgerEvery
// is how often those who live look there.
const (
	moneyGrace  = 10 * time.Minute
	ledgerEvery = 3 * time.Minute
)

// record is what is counted for one scope. Times are milliseconds since 1970 of the
// counters' clock. A record that others see is never changed: change makes a new one.
type record struct {
	entries []entry // by time
	holders []holder
	spent   [windows]spent
}

// entry is what was taken in a window of a minute, as far as it was taken in one second.
type entry struct {
	until            int64 // when none of it counts any more
	requests, tokens int64
}

// second is what an entry is known by: two of one second are merged.
func (e entry) second() int64 { return e.until / 1000 }

// gauges are what a process has now.
type gauges struct {
	concurrent, queued int64
	money              int64 // reserved
	calls              int64 // of those that are concurrent: they go on when the process is gone
}

func (g gauges) plus(o gauges) gauges {
	return gauges{add(g.concurrent, o.concurrent), add(g.queued, o.queued), add(g.money, o.money), add(g.calls, o.calls)}
}

func (g gauges) minus(o gauges) gauges {
	return g.plus(gauges{-o.concurrent, -o.queued, -o.money, -o.calls})
}

func (g gauges) atLeastZero() gauges {
	return gauges{max(g.concurrent, 0), max(g.queued, 0), max(g.money, 0), max(g.calls, 0)}
}

func (g gauges) least(o gauges) gauges {
	return gauges{min(g.concurrent, o.concurrent), min(g.queued, o.queued), min(g.money, o.money), min(g.calls, o.calls)}
}

// holder is a process's share.
type holder struct {
	process uint64
	change  uint64 // the process's last change of the record
	end     int64  // when it is taken to be gone
	hand    int64  // until when it may hold more than it uses; zero: it does not
	busy    int64  // when its calls are surely over; zero: it has none
	gauges
}

// spent is the money of a calendar window.
type spent struct {
	start  int64 // the window's; zero: nothing is known of it
	amount int64
}

// add adds without wrapping around.
func add(a, b int64) int64 {
	switch {
	case b > 0 && a > math.MaxInt64-b:
		return math.MaxInt64
	case b < 0 && a < math.MinInt64-b:
		return math.MinInt64
	}
	return a + b
}

func (r *record) clone() *record {
	return &record{slices.Clone(r.entries), slices.Clone(r.holders), r.spent}
}

// expire drops what does not count any more.
//
// Of a process that is gone the calls stay which go on without it, and the money until the
// ledger surely has what of it was spent.
func (r *record) expire(early int64) {
	r.entries = slices.DeleteFunc(r.entries, func(e entry) bool {
		return e.until <= early || e.requests == 0 && e.tokens == 0
	})
	for i := range r.holders {
		if h := &r.holders[i]; h.end <= early {
			h.remain(early)
		}
	}
	r.holders = slices.DeleteFunc(r.holders, func(h holder) bool { return h.end <= early && h.gauges == gauges{} })
}

// remain drops what a process that is gone does not have any more.
func (h *holder) remain(early int64) {
	h.hand, h.queued = 0, 0
	if h.busy <= early {
		h.calls = 0
	}
	if h.calls == 0 {
		h.busy = 0
	}
	h.concurrent = h.calls
	if h.end+int64(moneyGrace/time.Millisecond) <= early {
		h.money = 0
	}
}

// empty reports whether the record says nothing. That nothing was spent the ledger can
// say, too.
func (r *record) empty() bool {
	return len(r.entries) == 0 && len(r.holders) == 0 &&
		!slices.ContainsFunc(r.spent[:], func(s spent) bool { return s.amount > 0 })
}

// count adds what is taken to the entries, or takes off what is given back of an entry
// that still counts.
func (r *record) count(e entry) {
	i, found := slices.BinarySearchFunc(r.entries, e.second(), func(has entry, second int64) int {
		return int(has.second() - second)
	})
	taken := entry{e.until, max(e.requests, 0), max(e.tokens, 0)}
	switch {
	case !found && taken.requests == 0 && taken.tokens == 0:
		return
	case !found:
		r.entries = slices.Insert(r.entries, i, taken)
	default:
		has := &r.entries[i]
		if taken.requests > 0 || taken.tokens > 0 {
			has.until = max(has.until, e.until)
		}
		has.requests, has.tokens = max(add(has.requests, e.requests), 0), max(add(has.tokens, e.tokens), 0)
	}
	if len(r.entries) > maxEntries {
		first, next := r.entries[0], &r.entries[1]
		next.requests, next.tokens = add(next.requests, first.requests), add(next.tokens, first.tokens)
		r.entries = slices.Delete(r.entries, 0, 1)
	}
}

// owe adds e, whose amounts may be negative, to what is to be told to a record.
func owe(list []entry, e entry) []entry {
	for i := range list {
		if has := &list[i]; has.second() == e.second() {
			has.until = max(has.until, e.until)
			has.requests, has.tokens = add(has.requests, e.requests), add(has.tokens, e.tokens)
			return list
		}
	}
	if len(list) == maxEntries {
		oldest := 0
		for i := range list {
			if list[i].until < list[oldest].until {
				oldest = i
			}
		}
		list[oldest] = e // what it says hardly counts any more
		return list
	}
	return append(list, e)
}

// nobody is who has the money and the calls, once there are too many of them, that processes
// had in hand which are gone. No process has this number.
const nobody = 0

// makeRoom reports whether the record has room for its holders, after it has put together
// what processes have that are gone, as few as need be and the earliest first. Their money
// stays reserved until that of the last of them would be free, and their calls stay until the
// last of these is surely over: nobody knows any more whose they are.
func (r *record) makeRoom(early int64) bool {
	for len(r.holders) > maxHolders {
		first := -1
		for i, h := range r.holders {
			if h.process != nobody && h.end <= early && (first < 0 || h.end < r.holders[first].end) {
				first = i
			}
		}
		if first < 0 {
			return false
		}
		gone := r.holders[first]
		r.holders = slices.Delete(r.holders, first, first+1)
		if all := r.holder(nobody); all != nil {
			all.gauges, all.end, all.busy = all.plus(gone.gauges), max(all.end, gone.end), max(all.busy, gone.busy)
		} else {
			r.holders = append(r.holders, holder{process: nobody, end: gone.end, busy: gone.busy, gauges: gone.gauges})
		}
	}
	return true
}

// holder returns the process's share, nil if it has none.
func (r *record) holder(process uint64) *holder {
	for i := range r.holders {
		if r.holders[i].process == process {
			return &r.holders[i]
		}
	}
	return nil
}

// total is the sum of all that counts.
type total struct {
	requests, tokens int64
	gauges
}

func (r *record) total() total {
	var t total
	for _, e := range r.entries {
		t.requests, t.tokens = add(t.requests, e.requests), add(t.tokens, e.tokens)
	}
	for _, h := range r.holders {
		t.gauges = t.plus(h.gauges)
	}
	return t
}

// handsOfOthers returns until when another process may hold more than it uses. A moment
// later, late, it must have given that back.
func (r *record) handsOfOthers(process uint64, early, late int64) (until int64, ok bool) {
	for _, h := range r.holders {
		if h.process != process && h.hand+late > early {
			until, ok = max(until, h.hand), true
		}
	}
	return until, ok
}
