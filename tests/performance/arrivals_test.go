package main

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestArrivalsKeepTheirRate(t *testing.T) {
	t.Parallel()
	const n = 20_000
	for name, even := range map[string]bool{"even": true, "independent": false} {
		a, again := newArrivals(1000, even, 7), newArrivals(1000, even, 7)
		var last, short time.Duration
		for i := range n {
			due := a.next()
			require.Equal(t, due, again.next(), "%s: the same seed gives the same load", name)
			require.GreaterOrEqual(t, due, last)
			if i > 0 && due-last < time.Millisecond/2 {
				short++
			}
			last = due
		}
		require.InEpsilon(t, n*time.Millisecond, last, 0.03, name)
		if even {
			require.Zero(t, short)
		} else {
			require.InEpsilon(t, 0.393, float64(short)/n, 0.05, "share of gaps below half the mean, 1-e^-0.5")
		}
	}
}

func TestDispatchLeavesNoArrivalOutWhenLate(t *testing.T) {
	t.Parallel()
	start := time.Now()
	var intended []time.Duration
	dispatch(t.Context(), start, 50*time.Millisecond, newArrivals(1000, true, 0), func(at time.Time) {
		if len(intended) == 0 {
			time.Sleep(60 * time.Millisecond) // later than all that are due
		}
		require.False(t, time.Now().Before(at), "never early")
		intended = append(intended, at.Sub(start))
	})
	require.Len(t, intended, 50)
	for i, at := range intended {
		require.Equal(t, time.Duration(i)*time.Millisecond, at, "lateness moves no arrival")
	}
}

func TestDispatchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	sent := 0
	dispatch(ctx, time.Now(), time.Hour, newArrivals(1000, true, 0), func(time.Time) {
		if sent++; sent == 3 {
			cancel()
		}
	})
	require.Equal(t, 3, sent)
}
