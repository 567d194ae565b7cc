package limits

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// clockEvery is how often the counters are asked for the time.
const clockEvery = 15 * time.Second

// clockDrift is the part by which two clocks may run apart: 500 millionths, the most that
// a clock is slewed by.
const clockDrift = 2000

// clock follows the counters' clock. It knows that clock between two bounds: as wide as
// the call took that asked for it, which is a round trip, and a millisecond more for every
// second since. What must have passed is held against the early bound, and what must not
// have passed yet against the late one, so that the error costs a moment of what a limit
// admits and never admits anything beyond it. Steps of the counters' own clock are beyond
// what this can see.
type clock struct {
	began   time.Time // its monotonic part is what is used: a step of this clock changes nothing
	reading atomic.Pointer[reading]
}

// reading says between which times the counters' clock stood.
type reading struct {
	at        time.Duration // since the clock began
	low, high time.Duration // since 1970
}

// instant is now in milliseconds of the counters' clock: not before early, not after late.
type instant struct{ early, late int64 }

func newClock() *clock { return &clock{began: time.Now()} }

// known reports whether the counters have ever told the time.
func (c *clock) known() bool { return c.reading.Load() != nil }

// now falls back on the own clock as long as the counters have not told the time.
func (c *clock) now() instant {
	r := c.reading.Load()
	if r == nil {
		ms := time.Now().UnixMilli()
		return instant{ms, ms + 1}
	}
	low, high := r.after(time.Since(c.began))
	return instant{low.Milliseconds(), high.Milliseconds() + 1}
}

// after returns the bounds at a later time.
func (r *reading) after(at time.Duration) (low, high time.Duration) {
	passed := at - r.at
	return r.low + passed - passed/clockDrift, r.high + passed + passed/clockDrift
}

// measure asks for the time.
func (c *clock) measure(ctx context.Context, counters Counters) error {
	before := time.Since(c.began)
	at, err := counters.Time(ctx)
	if err != nil {
		return fmt.Errorf("ask for the counters' time: %w", err)
	}
	after := time.Since(c.began)
	r := &reading{at: after, low: time.Duration(at.UnixNano())}
	r.high = r.low + after - before
	if old := c.reading.Load(); old != nil {
		// Both are true unless the counters' clock was set.
		if low, high := old.after(after); low <= r.high && high >= r.low {
			r.low, r.high = max(low, r.low), min(high, r.high)
		}
	}
	c.reading.Store(r)
	return nil
}
