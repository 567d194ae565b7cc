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

	falls  int     // periods in a row in which it fell because answers are slow
	before float64 // how slow they were when it began to
	ignore int     // periods in which being slow does not count, because to fall did not help
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
	onLimited  = 0.7  // of what it was, after a 429
	onSlowdown = 0.9  // of what was in use, when answers are slow
	climbs     = 0.05 // of the most, at least one call
	fullFrom   = 0.8  // of the limit in use: then more may be tried
)

// adjust takes a period into account.
func (l *limit) adjust(c congestion) {
	switch {
	case c.limited > 0:
		l.now *= onLimited // not what is in use: a 429 may be for calls a minute, and few of them be made at once
	case l.slow(c):
		l.now = math.Min(l.now, math.Max(float64(c.inUse), 1)) * onSlowdown
	case c.waiting > 0 || float64(c.inUse) >= fullFrom*l.now:
		l.now += math.Max(1, climbs*float64(l.most))
	}
	l.now = math.Min(math.Max(l.now, float64(l.least)), float64(l.most))
}

// slow reports whether the limit is to fall because answers are slow. If they are no
// faster after it fell a few times, it was not for too many calls that they are slow.
func (l *limit) slow(c congestion) bool {
	if l.ignore > 0 {
		l.ignore--
		return false
	}
	if l.maxSlowdown <= 0 || c.slowdown <= l.maxSlowdown || float64(c.inUse) < l.now/2 {
		l.falls = 0
		return false
	}
	if l.falls == 0 {
		l.before = c.slowdown
	}
	if l.falls == slowFalls && c.slowdown > slowHelped*l.before {
		l.falls, l.ignore = 0, slowIgnored
		return false
	}
	l.falls = l.falls%slowFalls + 1
	return true
}

// Bounds of the falls for being slow.
const (
	slowFalls   = 5   // before it is asked whether they helped
	slowHelped  = 0.8 // of how slow it was
	slowIgnored = 60
)
