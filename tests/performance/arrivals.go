package main

import (
	"context"
	"math/rand/v2"
	"runtime"
	"time"
)

// arrivals says when requests are due, as offsets from the start: independent of
// one another (Poisson) or evenly spaced. The same seed gives the same offsets, so
// that every system meets the same load.
type arrivals struct {
	mean   time.Duration
	even   bool
	random *rand.Rand
	at     time.Duration
}

func newArrivals(perSecond float64, even bool, seed uint64) *arrivals {
	return &arrivals{
		mean:   time.Duration(float64(time.Second) / perSecond),
		even:   even,
		random: rand.New(rand.NewPCG(seed, 0)),
	}
}

func (a *arrivals) next() time.Duration {
	due := a.at
	if a.even {
		a.at += a.mean
	} else {
		a.at += time.Duration(a.random.ExpFloat64() * float64(a.mean))
	}
	return due
}

// dispatch calls send for every arrival before length, each at its time: send gets
// the time that was intended, and latency is counted from there. When the machine or
// send is late, the arrivals that are due follow at once; none is left out.
func dispatch(ctx context.Context, start time.Time, length time.Duration, a *arrivals, send func(intended time.Time)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sharpenTimers()
	for ctx.Err() == nil {
		offset := a.next()
		if offset >= length {
			return
		}
		intended := start.Add(offset)
		sleepUntil(intended)
		send(intended)
	}
}
