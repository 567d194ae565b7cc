package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	passing := func(after time.Duration) *inference.Error {
		return &inference.Error{Code: inference.CodeUpstreamRateLimited, Retryable: true, RetryAfter: after}
	}
	for name, c := range map[string]struct {
		state    retryState
		again    bool
		from, to time.Duration
	}{
		"first":                {retryState{err: passing(0), tries: 1, maxRetries: 2, left: time.Minute}, true, 0, retryBase},
		"second":               {retryState{err: passing(0), tries: 2, maxRetries: 2, left: time.Minute}, true, 0, 2 * retryBase},
		"far later":            {retryState{err: passing(0), tries: 60, maxRetries: 100, left: time.Minute}, true, 0, retryMost},
		"spent":                {retryState{err: passing(0), tries: 3, maxRetries: 2, left: time.Minute}, false, 0, 0},
		"none allowed":         {retryState{err: passing(0), tries: 1, left: time.Minute}, false, 0, 0},
		"would not pass":       {retryState{err: &inference.Error{Code: inference.CodeUpstreamRejected}, tries: 1, maxRetries: 2, left: time.Minute}, false, 0, 0},
		"after a chunk":        {retryState{err: passing(0), tries: 1, maxRetries: 2, left: time.Minute, started: true}, false, 0, 0},
		"as asked for":         {retryState{err: passing(3 * time.Second), tries: 1, maxRetries: 2, left: time.Minute}, true, 3 * time.Second, 3*time.Second + 1},
		"asked for too much":   {retryState{err: passing(retryPatience + 1), tries: 1, maxRetries: 2, left: time.Hour}, false, 0, 0},
		"beyond the deadline":  {retryState{err: passing(3 * time.Second), tries: 1, maxRetries: 2, left: 3 * time.Second}, false, 0, 0},
		"deadline has passed":  {retryState{err: passing(0), tries: 1, maxRetries: 2, left: -1}, false, 0, 0},
		"just in the deadline": {retryState{err: passing(3 * time.Second), tries: 1, maxRetries: 2, left: 3*time.Second + 1}, true, 3 * time.Second, 3*time.Second + 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seen := make(map[time.Duration]bool)
			for range 200 {
				wait, again := retryAfter(c.state)
				require.Equal(t, c.again, again)
				if again {
					require.GreaterOrEqual(t, wait, c.from)
					require.Less(t, wait, c.to)
					seen[wait] = true
				}
			}
			if c.again && c.to-c.from > 1 {
				require.Greater(t, len(seen), 100, "waits are spread")
			}
		})
	}
}

func testHeld(id string) (*held, context.Context) {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &held{jobID: id, run: queue.Run{Delivery: 1}, cancel: cancel, settled: make(chan struct{}), since: time.Now()}, ctx
}

func TestHoldings(t *testing.T) {
	t.Parallel()
	h := newHoldings()
	a, actx := testHeld("a")
	b, bctx := testHeld("b")
	require.True(t, h.add(a))
	require.True(t, h.add(b))
	again, _ := testHeld("a")
	require.False(t, h.add(again), "a job is held once")
	require.Equal(t, 2, h.count())

	require.Empty(t, h.list(true), "nobody is told of a job that is only asked about")
	h.doubt()
	require.False(t, a.doubted, "nor is it asked about twice")
	h.mayRun(a)
	h.mayRun(b)
	require.Len(t, h.list(false), 2)
	require.Empty(t, h.list(false), "what was told is not told again")
	require.Len(t, h.list(true), 2, "unless all is asked for")
	for _, waits := range []bool{true, false} {
		h.idle(a, waits)
		h.idle(a, waits)
		require.Equal(t, []queue.HeldJob{{JobID: "a", Run: a.run, Idle: waits}}, h.list(false))
		require.Empty(t, h.list(false))
	}

	h.Cancelled([]string{"a", "unknown"})
	require.ErrorIs(t, context.Cause(actx), errCancelled)
	require.NoError(t, bctx.Err())

	h.Settled([]string{"b", "unknown"})
	h.Settled([]string{"b"})
	select {
	case <-b.settled:
	default:
		require.Fail(t, "b is settled")
	}
	h.remove(again)
	require.Equal(t, 2, h.count(), "another delivery of the job is not this one")
	h.remove(a)
	h.remove(b)
	require.Zero(t, h.count())
}

// A cancellation may come before the job that it means; it is remembered for half a
// minute, or up to twice as long, and then forgotten.
func TestCancelBeforeTheJobComes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHoldings()
		h.Cancelled([]string{"a", "b"})
		early, ctx := testHeld("a")
		require.True(t, h.add(early))
		require.ErrorIs(t, context.Cause(ctx), errCancelled)

		h.forget() // too early
		time.Sleep(cancelledKept)
		h.forget()
		b, ctx := testHeld("b")
		require.True(t, h.add(b))
		require.Error(t, ctx.Err(), "still remembered")
		h.remove(b)

		time.Sleep(cancelledKept)
		h.forget()
		b, ctx = testHeld("b")
		require.True(t, h.add(b))
		require.NoError(t, ctx.Err(), "forgotten")
		b.cancel(nil)
	})
}

func TestCancellationsRememberedAreBounded(t *testing.T) {
	t.Parallel()
	h := newHoldings()
	ids := make([]string, cancelledMost+10)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	h.Cancelled(ids)
	require.Len(t, h.cancelled[0], cancelledMost)
}

func TestTally(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newTally()
		require.Equal(t, 1, c.add("a"))
		require.Equal(t, 2, c.add("a"))
		require.Equal(t, 1, c.add("b"), "each job for itself")
		c.clear("a")
		require.Equal(t, 1, c.add("a"), "not in a row any more")
		time.Sleep(tallyKept)
		require.Equal(t, 2, c.add("a"))
		time.Sleep(tallyKept)
		require.Equal(t, 3, c.add("a"), "kept while it goes on")
		require.Equal(t, 1, c.add("b"), "forgotten")
		time.Sleep(2 * tallyKept)
		require.Equal(t, 1, c.add("a"), "forgotten, though nothing came in between")

		for i := range 3 * tallyMost {
			c.add(fmt.Sprint(i))
		}
		require.LessOrEqual(t, len(c.counts[0])+len(c.counts[1]), 2*tallyMost)
		require.Equal(t, 2, c.add(fmt.Sprint(3*tallyMost-1)))
	})
}

func TestWhenAJobIsOrphaned(t *testing.T) {
	t.Parallel()
	require.False(t, orphaned(maxAbsences-1, maxOrphanDeliveries-1))
	require.True(t, orphaned(maxAbsences, 2))
	require.False(t, orphaned(1, maxOrphanDeliveries), "all deliveries before may have been judged")
	require.True(t, orphaned(2, maxOrphanDeliveries), "many workers count for themselves")
}

func TestRate(t *testing.T) {
	t.Parallel()
	var r rate
	now := time.Unix(1000, 0)
	require.Zero(t, r.of(100, now), "one look tells nothing")
	require.Zero(t, r.of(110, now.Add(100*time.Millisecond)), "too soon")
	require.InDelta(t, 10, r.of(110, now.Add(time.Second)), 0.001)
	require.InDelta(t, 10, r.of(200, now.Add(1400*time.Millisecond)), 0.001, "too soon again")
	require.InDelta(t, 10+rateWeight*(30-10), r.of(140, now.Add(2*time.Second)), 0.001)
	last := r.of(140, now.Add(3*time.Second))
	require.Less(t, last, 16.0, "it falls when nothing ends")
}

func TestWhyARunEnded(t *testing.T) {
	t.Parallel()
	x := &execution{}
	failed := &inference.Error{Code: inference.CodeUpstreamError}
	running := func() context.Context { return t.Context() }
	ended := func(cause error) func() context.Context {
		return func() context.Context {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(cause)
			return ctx
		}
	}
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	t.Cleanup(cancel)
	for name, c := range map[string]struct {
		ctx  func() context.Context
		err  error
		want inference.ErrorCode
	}{
		"by itself":         {running, failed, inference.CodeUpstreamError},
		"in a way unknown":  {running, errors.New("secret"), inference.CodeInternal},
		"at the deadline":   {func() context.Context { return late }, failed, inference.CodeDeadlineExceeded},
		"by the client":     {ended(errCancelled), failed, inference.CodeCancelled},
		"by a stop":         {ended(errStopping), failed, inference.CodeWorkerLost},
		"for an odd reason": {ended(errors.New("odd")), failed, inference.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := x.domainError(c.ctx(), c.err)
			require.Equal(t, c.want, e.Code)
			require.NotContains(t, e.Message, "secret")
		})
	}
}
