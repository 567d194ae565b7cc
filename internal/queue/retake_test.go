package queue

import (
	"context"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func (p *Puller) standing() (free, requested, waiting int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free, p.requested, len(p.waiters)
}

// retaking asks for a slot and returns when the puller knows of it.
func retaking(t *testing.T, ctx context.Context, p *Puller, nth int) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.Retake(ctx, nil, &Delivery{Seq: uint64(nth)}) }()
	eventually(t, func() bool { _, _, n := p.standing(); return n == nth }, "it waits")
	return done
}

func TestRetakeComesBeforeTheQueueAndInOrder(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, k := pull(t, c, 2)
	for range 3 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
	}
	receive(t, k.ch)
	receive(t, k.ch)
	cancelled, cancel := context.WithCancel(t.Context())
	first := retaking(t, t.Context(), p, 1)
	gone := retaking(t, cancelled, p, 2)
	third := retaking(t, t.Context(), p, 3)
	cancel()
	require.ErrorIs(t, receive(t, gone), context.Canceled)
	p.Free()
	require.NoError(t, receive(t, first))
	require.Empty(t, third, "one after the other")
	p.Free()
	require.NoError(t, receive(t, third))
	free, requested, waiting := p.standing()
	require.Zero(t, free)
	require.Zero(t, requested, "the queue's job waits")
	require.Zero(t, waiting)
	require.Empty(t, k.ch)
	p.Free()
	receive(t, k.ch)
}

func TestRetakeOfAFreeSlot(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, k := pull(t, c, 1)
	require.NoError(t, p.Retake(t.Context(), nil, &Delivery{}))
	free, _, _ := p.standing()
	require.Zero(t, free)

	// What was asked for before for the same slot goes back.
	require.NoError(t, publish(t, d, e, testJob("{}")).err)
	eventually(t, func() bool { _, requested, _ := p.standing(); return requested == 0 }, "it came")
	require.Empty(t, k.ch)
	p.Free()
	require.GreaterOrEqual(t, receive(t, k.ch).Delivery, 2)

	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, p.Retake(over, nil, &Delivery{}), context.Canceled)
	_, _, waiting := p.standing()
	require.Zero(t, waiting)
}

// However turns and cancellations meet: no slot is lost and none is made.
func TestSlotsAreNeitherLostNorMade(t *testing.T) {
	t.Parallel()
	const slots = 3
	p := &Puller{free: slots, slots: slots, most: slots, share: slots, stopped: true}
	var mu sync.Mutex
	taken := 0
	count := func(by int) {
		mu.Lock()
		defer mu.Unlock()
		taken += by
		if taken < 0 || taken > slots {
			t.Errorf("%d slots are taken", taken)
		}
	}
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			for n := range 500 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%2 == 0 {
					go cancel()
				}
				if p.Retake(ctx, nil, &Delivery{}) == nil {
					count(1)
					if n%7 == 0 {
						runtime.Gosched()
					}
					count(-1)
					p.Free()
				}
				cancel()
			}
		})
	}
	all.Wait()
	free, _, waiting := p.standing()
	require.Equal(t, slots, free)
	require.Zero(t, waiting)
}

func TestBound(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	came := make(chan *Delivery, 10)
	p, err := c.NewPuller(testProvider, inference.LaneInteractive, 2, func(d *Delivery) { came <- d }, nil) // nobody runs it: no tick helps
	require.NoError(t, err)
	defer p.Stop()
	for range 2 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
		receive(t, came).Ack()
	}
	p.Bound(1)
	p.Free()
	_, requested, _ := p.standing()
	require.Zero(t, requested, "one is in hand")
	for range 4 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
	}
	p.Free()
	receive(t, came).Ack()
	_, requested, _ = p.standing()
	require.Zero(t, requested)
	require.Empty(t, came, "never two")

	p.Bound(0)
	p.Free()
	_, requested, _ = p.standing()
	require.Zero(t, requested)
	p.Bound(2)
	receive(t, came)
	receive(t, came)
	p.Bound(100)
	free, requested, _ := p.standing()
	require.Zero(t, free)
	require.Zero(t, requested, "no more than there are slots")
}

// A turn that comes at the moment of a cancellation is not lost: whoever has it gives it
// back.
func TestATurnThatMeetsACancellationIsTaken(t *testing.T) {
	t.Parallel()
	for range 50 {
		p := &Puller{slots: 1, most: 1, stopped: true}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Retake(ctx, nil, &Delivery{}) }()
		for waiting := 0; waiting == 0; {
			_, _, waiting = p.standing()
		}
		p.mu.Lock()
		cancel()
		runtime.Gosched()
		close(p.waiters[0].turn)
		p.waiters = nil
		p.mu.Unlock()
		require.NoError(t, receive(t, done))
	}
}
