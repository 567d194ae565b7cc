package worker

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func spend(b *retryBudget, now time.Time) (n int) {
	for b.take(now) {
		n++
	}
	return n
}

func TestRetryBudget(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	b := newRetryBudget(0.25)
	require.Equal(t, retriesFree, spend(b, now), "some are free")
	require.False(t, b.take(now))

	for range 8 {
		b.called()
	}
	require.Equal(t, 2, spend(b, now), "a share of the calls")

	now = now.Add(3 * time.Second)
	require.Equal(t, 3*retriesPerSecond, spend(b, now), "some come back by themselves")
	now = now.Add(time.Hour)
	require.Equal(t, retriesFree, spend(b, now), "but no more than the free ones")

	for range 100_000 {
		b.called()
	}
	require.Equal(t, retriesMost, spend(b, now), "what is saved up is bounded")

	for range 100_000 {
		b.called()
	}
	now = now.Add(time.Hour)
	require.Equal(t, retriesMost, spend(b, now), "a pause takes nothing away, and adds nothing to that")
}

func TestRetryBudgetWithoutAShare(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	b := newRetryBudget(0)
	for range 1000 {
		b.called()
	}
	require.Equal(t, retriesFree, spend(b, now))
	require.Equal(t, 1, spend(b, now.Add(1500*time.Millisecond)), "half a retry is none")
	require.Equal(t, 1, spend(b, now.Add(2*time.Second)), "and is not lost")
}

func TestRetryBudgetIsShared(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	b := newRetryBudget(1)
	var taken atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				if b.take(now) {
					taken.Add(1)
				}
			}
		})
	}
	all.Wait()
	require.EqualValues(t, retriesFree, taken.Load())
}
