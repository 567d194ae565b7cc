package worker

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPace(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var p pace
	_, weight := p.slowdown(now)
	require.Zero(t, weight, "nothing is known")
	require.Zero(t, p.firstToken())

	p.answered(2*time.Second, 100, now)
	require.InDelta(t, 2, p.firstToken(), 1e-9, "for want of streams")
	for range paceLeast {
		now = now.Add(100 * time.Millisecond)
		p.streamed(time.Second, now)
	}
	require.InDelta(t, 1, p.firstToken(), 1e-9)
	_, weight = p.slowdown(now)
	require.Zero(t, weight, "too few to say anything")
	p.streamed(time.Second, now)
	times, weight := p.slowdown(now)
	require.InDelta(t, 1, times, 1e-9)
	require.Positive(t, weight)

	for range 30 {
		now = now.Add(100 * time.Millisecond)
		p.streamed(5*time.Second, now)
	}
	times, _ = p.slowdown(now)
	require.Greater(t, times, 3.0)
	require.Less(t, times, 5.1)
	for range 60 {
		now = now.Add(100 * time.Millisecond)
		p.streamed(time.Second, now)
	}
	times, _ = p.slowdown(now)
	require.Less(t, times, 1.5, "it is over")
	_, weight = p.slowdown(now.Add(paceStale))
	require.Positive(t, weight)
	_, weight = p.slowdown(now.Add(paceStale + 1))
	require.Zero(t, weight, "long ago")
}

// A provider that stays as slow as it is now is as usual in the end; one that gets
// faster soon is.
func TestPaceGetsUsedToIt(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var p pace
	add := func(n int, d time.Duration) float64 {
		for range n {
			now = now.Add(10 * time.Millisecond)
			p.streamed(d, now)
		}
		times, _ := p.slowdown(now)
		return times
	}
	add(100, time.Second)
	require.Greater(t, add(100, 4*time.Second), 2.0)
	require.Greater(t, add(1000, 4*time.Second), 2.0, "it takes its time")
	require.Less(t, add(12000, 4*time.Second), 1.1)
	add(100, time.Second)
	require.Greater(t, add(50, 4*time.Second), 2.5, "the faster ones were the usual again")
}

// Long plain answers are no sign of slowness; that they take more for a token is.
func TestPlainAnswersAreMeasuredByTheToken(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var p pace
	for i := range 200 {
		tokens := int64(10 + 50*(i%40))
		now = now.Add(50 * time.Millisecond)
		p.answered(time.Duration(tokens+answerOverhead)*time.Millisecond, tokens, now)
	}
	times, weight := p.slowdown(now)
	require.InDelta(t, 1, times, 0.01)
	require.Positive(t, weight)
	for range 40 {
		now = now.Add(50 * time.Millisecond)
		p.answered(480*time.Millisecond, 100, now)
	}
	times, _ = p.slowdown(now)
	require.Greater(t, times, 3.0)
}

// Nothing that a provider says makes the measure something that cannot be announced.
func TestPaceStaysANumber(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var p pace
	for range 3 * paceLeast {
		p.answered(0, 0, now)
		p.streamed(0, now)
		times, weight := p.slowdown(now)
		require.False(t, math.IsNaN(times) || math.IsInf(times, 0) || math.IsNaN(weight))
	}
	require.Zero(t, p.firstToken())
}
