package worker

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// order says what an operator wants of the provider, and waits until the workers obey.
func (r *rig) order(word queue.Control, workers ...*Worker) {
	r.t.Helper()
	require.NoError(r.t, r.conn.SetControl(r.t.Context(), testName, word))
	for _, w := range workers {
		obeys(r.t, w, word.At(time.Now()))
	}
}

func obeys(t *testing.T, w *Worker, want queue.ProviderState) {
	t.Helper()
	require.Eventually(t, func() bool {
		p := w.pools[0]
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.stateLocked() == want
	}, soon, time.Millisecond, "%s", want)
}

func (r *rig) untouched(ids int) {
	r.t.Helper()
	calls := r.script.count()
	require.Never(r.t, func() bool { return r.script.count() > calls }, 300*time.Millisecond, 10*time.Millisecond, "no call in a pause")
	require.Equal(r.t, ids, r.depth().Waiting, "the queue has them")
}

func TestAPausedProvidersWorkerTakesNothing(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	r := setup(t, func(ctx context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		if n == 1 {
			select {
			case <-hold:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return answer(`{}`)
	})
	w, _ := r.start("worker01", slots(1))
	inHand := newJob(false)
	r.publish(inHand)
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	r.order(queue.Control{State: queue.ProviderPaused}, w)
	var ids []string
	for range 5 {
		j := newJob(false)
		j.RequestID = j.ID
		r.publish(j)
		ids = append(ids, j.ID)
	}
	close(hold)
	e := next(t, r.ends)
	require.Equal(t, inHand.ID, e.JobID, "what is in hand is done")
	require.Nil(t, e.Err)
	r.settle(e)
	r.untouched(5)
	require.Equal(t, queue.ProviderPaused, w.pools[0].presence().State)

	r.order(queue.Control{State: queue.ProviderActive}, w)
	for range ids {
		e := next(t, r.ends)
		require.Equal(t, queue.Run{Delivery: 1}, e.Run)
		r.settle(e)
	}
	r.empty()
	require.Equal(t, 6, r.script.count(), "one call each")
	for i, call := range r.script.calls[1:] {
		require.Equal(t, ids[i], call.RequestID, "in their order")
	}
	require.Empty(t, r.passed)
}

func TestAWorkerThatStartsInAPauseTakesNothing(t *testing.T) {
	t.Parallel()
	d := setup(t, atOnce).desk()
	d.hear()
	d.order(queue.Control{State: queue.ProviderPaused})
	d.publish(newJob(false))
	d.store(newStored(inference.LaneBackground), newStored(inference.LaneBatch))
	w, _ := d.start("worker01")
	require.Equal(t, []string{testName}, w.Serves(), "it is there, and says so")
	require.Eventually(t, func() bool { return w.pools[0].lanes[2].taker() != nil }, soon, time.Millisecond)
	d.untouched(1)
	require.Empty(t, d.results)
	d.order(queue.Control{State: queue.ProviderActive}, w)
	d.settle(next(t, d.ends))
	d.takeAll(2)
	d.empty()
}

func TestAPauseIsOverByItself(t *testing.T) {
	t.Parallel()
	r := setup(t, atOnce)
	w, _ := r.start("worker01")
	r.order(queue.Control{State: queue.ProviderPaused, Until: time.Now().Add(time.Second)}, w)
	r.publish(newJob(false))
	paused := time.Now()
	e := next(t, r.ends)
	require.Greater(t, time.Since(paused), 500*time.Millisecond)
	r.settle(e)
	obeys(t, w, queue.ProviderActive)
}

// What waits in a worker for its provider to get well goes back to the queue, which holds
// it, and no other worker may call meanwhile.
func TestWhatWaitsInAWorkerGoesBackInAPause(t *testing.T) {
	t.Parallel()
	r, w, _, probe, waits := probing(t, soon)
	r.order(queue.Control{State: queue.ProviderPaused}, w)
	asked := time.Now()
	told := next(t, r.passed)
	require.Less(t, time.Since(asked), 3*time.Second, "it does not wait until it looks again by itself")
	require.Equal(t, waits.ID, told.JobID)
	require.Equal(t, queue.Place{}, told.Next)
	require.Zero(t, w.pools[0].lanes[0].held.Load())
	require.NoError(t, r.dispatch.Cancel(t.Context(), probe.ID, testName, 0))
	r.settle(next(t, r.ends))
	require.Never(t, func() bool { return r.script.count() > 2 }, 300*time.Millisecond, 10*time.Millisecond)

	r.order(queue.Control{State: queue.ProviderActive}, w)
	require.Equal(t, queue.Run{Delivery: 2}, next(t, r.claims).Run, "it is asked about and runs")
	require.Eventually(t, func() bool { return r.script.count() == 3 }, soon, time.Millisecond)
}

func TestAStoredJobThatWaitsForASlotGoesBackInAPause(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	d := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		<-hold
		return answer(`{}`)
	}).desk()
	d.hear()
	w, _ := d.start("worker01", slots(1))
	d.store(newStored(inference.LaneBatch), newStored(inference.LaneBatch))
	waits(t, w, 2, 1)
	d.order(queue.Control{State: queue.ProviderPaused}, w)
	waits(t, w, 2, 0)
	close(hold)
	d.takeAll(1)
	require.Equal(t, 1, d.script.count())
	d.order(queue.Control{State: queue.ProviderActive}, w)
	d.takeAll(1)
	require.Equal(t, 2, d.script.count())
}

// The last word stays in force while no other can be heard.
func TestAPauseOutlivesTheWayToItsWord(t *testing.T) {
	t.Parallel()
	r, js := listening(t, atOnce)
	w, _ := r.start("worker01")
	r.order(queue.Control{State: queue.ProviderPaused}, w)
	require.NoError(t, js.DeleteStream(t.Context(), "KV_SLUICE_CONTROL"))
	r.publish(newJob(false))
	r.untouched(1)
}

func TestJobsAreNotPassedOnToAProviderThatIsNotInService(t *testing.T) {
	t.Parallel()
	r := setup(t, down)
	w, _ := r.start("worker01", once)
	r.announced(elsewhere("next"))
	hears(t, w, "next")
	taken := r.queueOf("next", 10)
	require.NoError(t, r.conn.SetControl(t.Context(), "next", queue.Control{State: queue.ProviderDraining}))
	c := inference.Candidate{Provider: "next", Model: "m"}
	require.Eventually(t, func() bool { return !w.alive(c) }, soon, time.Millisecond)
	j := newJob(false)
	j.Candidates = at(testName, "next")
	r.publish(j)
	e := next(t, r.ends)
	require.NotNil(t, e.Err)
	r.settle(e)
	require.Empty(t, taken)
}

// breakerShown is the state of the one breaker that the metrics tell of.
func breakerShown(t *testing.T, reg *prometheus.Registry) (state string) {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() != "sluice_breaker_state" || m.GetGauge().GetValue() == 0 {
				continue
			}
			require.Empty(t, state, "one state")
			for _, l := range m.GetLabel() {
				if l.GetName() == "state" {
					state = l.GetValue()
				}
			}
		}
	}
	return state
}

func TestBreakersAreResetInAllWorkers(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	r := setup(t, func(_ context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		switch n {
		case 1:
			return nil, errDown
		case 2:
			<-hold
			return nil, errDown
		}
		return answer(`{}`)
	})
	reg := prometheus.NewRegistry()
	w, _ := r.start("worker01", tripping(4, time.Hour), func(o *Options) { o.Metrics = NewMetrics(reg) })
	r.publish(newJob(false))
	r.settle(next(t, r.ends))
	j := newJob(false)
	r.publish(j)
	require.Eventually(t, func() bool { return w.pools[0].lanes[0].held.Load() == 1 }, soon, time.Millisecond)
	heard, closed, err := r.conn.ResetBreakers(t.Context(), testName, "other", 1)
	require.NoError(t, err)
	require.Equal(t, []int{1, 0}, []int{heard, closed}, "of another model")
	require.EqualValues(t, 1, w.pools[0].lanes[0].held.Load())
	heard, closed, err = r.conn.ResetBreakers(t.Context(), testName, "", 1)
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, []int{heard, closed})
	require.Eventually(t, func() bool { return r.script.count() == 2 }, soon, time.Millisecond, "who waited for it calls")

	// A call from before the reset says nothing of the new breaker.
	_, _, err = r.conn.ResetBreakers(t.Context(), testName, "m", 1)
	require.NoError(t, err)
	close(hold)
	r.settle(next(t, r.ends))
	require.Equal(t, inference.BreakerClosed, breakerShown(t, reg))
	r.publish(newJob(false))
	e := next(t, r.ends)
	require.Nil(t, e.Err, "it is called")
	r.settle(e)
	require.Equal(t, inference.BreakerClosed, w.pools[0].breakers.states(time.Now())[0].Breaker)
}
