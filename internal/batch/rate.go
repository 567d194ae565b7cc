package batch

import (
	"math"
	"time"
)

// rateSpan is the time over which a rate moves to what is true now.
const rateSpan = time.Minute

// Rate is how many lines of a batch are done a second, lately.
type Rate struct {
	perSecond float64
	done      int
	at        time.Time
	begun     time.Time // of the counting; zero when it went on from a known rate
}

// NewRate returns a rate that goes on from one that is known; zero is none.
func NewRate(perSecond float64, done int, now time.Time) Rate {
	r := Rate{perSecond: perSecond, done: done, at: now}
	if perSecond <= 0 {
		r.begun = now
	}
	return r
}

// Add takes in how many lines are done by now.
func (r *Rate) Add(done int, now time.Time) {
	took := now.Sub(r.at)
	if took <= 0 || done < r.done {
		return
	}
	lately := float64(done-r.done) / took.Seconds()
	// At first the mean of all that was seen is better than a slow approach from nothing.
	span := rateSpan
	if !r.begun.IsZero() {
		span = min(now.Sub(r.begun), rateSpan)
	}
	weight := 1 - math.Exp(-took.Seconds()/span.Seconds())
	if !r.begun.IsZero() && span < rateSpan {
		weight = took.Seconds() / span.Seconds()
	}
	r.perSecond += (lately - r.perSecond) * weight
	r.done, r.at = done, now
}

// PerSecond returns the rate.
func (r *Rate) PerSecond() float64 { return r.perSecond }

// slowest is the rate below which no end is foretold.
const slowest = 1e-6

// ETA says when so many lines will be done at that rate. ok is false when nobody can say.
func ETA(left int, perSecond float64, now time.Time) (at time.Time, ok bool) {
	if left <= 0 {
		return now, true
	}
	if math.IsNaN(perSecond) || perSecond < slowest {
		return time.Time{}, false
	}
	seconds := min(float64(left)/perSecond, math.MaxInt64/2/float64(time.Second))
	return now.Add(time.Duration(seconds * float64(time.Second))), true
}
