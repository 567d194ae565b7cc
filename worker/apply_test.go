package worker

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// adapter is a script that notices how it is let go of.
type adapter struct {
	script

	open   atomic.Int64
	closed atomic.Bool
	late   atomic.Bool // it was called, or still being called, when it was closed
}

func newAdapter(fn func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error)) *adapter {
	a := new(adapter)
	a.fn = func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
		a.open.Add(1)
		defer a.open.Add(-1)
		if a.closed.Load() {
			a.late.Store(true)
		}
		return fn(ctx, n, call, emit)
	}
	return a
}

func (a *adapter) Close() error {
	a.late.Store(a.late.Load() || a.open.Load() > 0 || a.closed.Load())
	a.closed.Store(true)
	return nil
}

// answering answers every call with its own text.
func answering(text string) *adapter {
	return newAdapter(func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(fmt.Sprintf("%q", text))
	})
}

// serves is a member of that adapter, whose settings have that fingerprint.
func serves(a providers.Provider, settings string) Member {
	return Member{
		Name: testName, Provider: a, Slots: 4, Concurrency: 16, MaxQueued: 100, MaxRetries: 2, MaxBody: 1 << 20,
		Settings: settings, Upstream: "u", Breaker: BreakerSettings{Failures: 1, OpenFor: time.Hour},
	}
}

func with(members ...Member) func(*Options) { return func(o *Options) { o.Members = members } }

func (w *Worker) retiring() int {
	w.poolsMu.RLock()
	defer w.poolsMu.RUnlock()
	return len(w.retired)
}

// Jobs come all the time while the settings change again and again. Each is answered,
// and no adapter is let go of before its last call.
func TestJobsDoNotNoticeThatSettingsChange(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	var adapters []*adapter
	member := func(n int) Member {
		a := newAdapter(func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
			<-time.After(5 * time.Millisecond)
			return answer(`{}`)
		})
		adapters = append(adapters, a)
		m := serves(a, fmt.Sprint(n))
		m.Slots = 1 + n%4
		return m
	}
	w, _ := r.start("worker01", with(member(0)))
	const jobs = 400
	var sending sync.WaitGroup
	room := make(chan struct{}, 50) // the queue has more
	sending.Go(func() {
		for range jobs {
			room <- struct{}{}
			if r.dispatch.Publish(newJob(false), "") == nil {
				<-r.published
			}
		}
	})
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		for n := 1; n < 40; n++ {
			<-time.After(20 * time.Millisecond)
			if err := w.Apply([]Member{member(n)}); err != nil {
				panic(err)
			}
		}
	}()
	answered := make(map[string]bool, jobs)
	for len(answered) < jobs {
		e := next(t, r.ends)
		require.Nil(t, e.Err)
		require.Equal(t, 1, e.Attempts, "no call is made twice")
		if !answered[e.JobID] {
			<-room
		}
		answered[e.JobID] = true
		r.settle(e)
	}
	sending.Wait()
	next(t, changed)
	r.empty()
	require.Eventually(t, func() bool { return w.retiring() == 0 }, soon, time.Millisecond, "pools come to their end")
	last := len(adapters) - 1
	for i, a := range adapters {
		require.Equal(t, i != last, a.closed.Load(), "all but the one in use are let go of")
		require.False(t, a.late.Load(), "after their last call")
	}
	require.NoError(t, w.Close())
	require.True(t, adapters[last].closed.Load())
}

// A stream goes on under the settings that it began with, and has its slot until it ends.
func TestACallInHandEndsUnderItsOwnSettings(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	go1 := make(chan struct{})
	old := newAdapter(func(_ context.Context, _ int, _ providers.Call, emit providers.Emit) (*providers.Response, error) {
		if err := emit([][]byte{[]byte(`{"a":1}`)}); err != nil {
			return nil, err
		}
		<-go1
		return nil, emit([][]byte{[]byte(`{"a":2}`)})
	})
	first := serves(old, "1")
	first.Slots = 1
	w, _ := r.start("worker01", with(first))
	stream := newJob(true)
	r.publish(stream)
	next(t, r.events)

	fresh := answering("new")
	second := serves(fresh, "2")
	second.Slots = 1
	require.NoError(t, w.Apply([]Member{second}))
	require.Equal(t, []string{testName}, w.Serves(), "it is served all the time")
	waits := newJob(false)
	r.publish(waits)
	require.Never(t, func() bool { return fresh.count() > 0 }, 700*time.Millisecond, 10*time.Millisecond, "the one slot is the stream's")
	require.Equal(t, queue.Depth{Waiting: 1, Running: 1}, r.depth(), "another worker could take it")
	require.False(t, old.closed.Load())

	close(go1)
	for range 2 {
		e := next(t, r.ends)
		require.Nil(t, e.Err)
		if e.JobID == stream.ID {
			require.EqualValues(t, 2, e.LastSeq)
		} else {
			require.Equal(t, `"new"`, string(e.Body))
		}
		r.settle(e)
	}
	r.empty()
	require.Eventually(t, old.closed.Load, soon, time.Millisecond)
	require.False(t, old.late.Load())
}

func TestWhatHasNotChangedIsLeftAlone(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	kept, unused := answering("kept"), answering("unused")
	w, _ := r.start("worker01", with(serves(kept, "1")))
	pool := w.pools[0]
	require.NoError(t, w.Apply([]Member{serves(unused, "1")}))
	require.Same(t, pool, w.served()[0])
	require.True(t, unused.closed.Load(), "an adapter that nobody needs is let go of")
	require.False(t, kept.closed.Load())
	r.publish(newJob(false))
	e := next(t, r.ends)
	require.Equal(t, `"kept"`, string(e.Body))
	r.settle(e)
	r.empty()
}

// Jobs of a provider that is no member any more are worked off, and nobody is told that
// it is served.
func TestAProviderThatIsRemovedIsWorkedOff(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	release := make(chan struct{})
	old := newAdapter(func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		<-release
		return answer(`{}`)
	})
	m := serves(old, "1")
	m.Slots = 1
	reg := prometheus.NewRegistry()
	w, _ := r.start("worker01", with(m), func(o *Options) { o.Metrics = NewMetrics(reg) })
	for range 3 {
		r.publish(newJob(false))
	}
	require.Eventually(t, func() bool { return old.count() == 1 }, soon, time.Millisecond)
	other := serves(answering("other"), "1")
	other.Name = "other"
	require.NoError(t, w.Apply([]Member{other}))
	require.Eventually(t, func() bool { return len(w.Serves()) == 1 && w.Serves()[0] == "other" }, soon, time.Millisecond)
	require.Never(t, func() bool { return len(r.ends) > 0 || !named(w.all(), testName).lanes[0].pool.started() }, 4*leaveLook, leaveLook, "it takes jobs as long as there are some")
	close(release)
	for range 3 {
		e := next(t, r.ends)
		require.Nil(t, e.Err)
		r.settle(e)
	}
	r.empty()
	require.Eventually(t, old.closed.Load, soon, time.Millisecond)
	require.False(t, old.late.Load())
	require.Eventually(t, func() bool { return w.retiring() == 0 }, soon, time.Millisecond)
	require.Eventually(t, func() bool {
		families, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "sluice_worker_in_flight" {
				return len(f.GetMetric()) == 1
			}
		}
		return false
	}, soon, time.Millisecond, "nothing is shown of it any more")
	heard, _, err := r.conn.ResetBreakers(t.Context(), testName, "", 1)
	require.NoError(t, err)
	require.Zero(t, heard, "whose breakers they were is not there to answer")
	require.NoError(t, w.Apply([]Member{other, serves(answering("back"), "2")}))
	require.Eventually(t, func() bool { // the server may hear of its ear a little later
		heard, _, err := r.conn.ResetBreakers(t.Context(), testName, "", 1)
		require.NoError(t, err)
		return heard == 1
	}, soon, time.Millisecond)
}

// One that comes back before it is gone is served by its new pool alone.
func TestAProviderThatComesBack(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	old, again := answering("old"), answering("again")
	w, _ := r.start("worker01", with(serves(old, "1")))
	other := serves(answering("other"), "1")
	other.Name = "other"
	require.NoError(t, w.Apply([]Member{other}))
	keep := serves(answering("unused"), "1")
	keep.Name = "other"
	require.NoError(t, w.Apply([]Member{keep, serves(again, "1")}))
	require.Eventually(t, func() bool { return w.retiring() == 0 && old.closed.Load() }, soon, time.Millisecond)
	j := newJob(false)
	r.publish(j)
	e := next(t, r.ends)
	require.Equal(t, `"again"`, string(e.Body))
	r.settle(e)
	r.empty()
	require.NoError(t, r.dispatch.Cancel(t.Context(), "nobody", testName, 0))
	require.Eventually(t, func() bool {
		w.hold.mu.Lock()
		defer w.hold.mu.Unlock()
		return w.hold.wasCancelled("nobody")
	}, soon, time.Millisecond, "cancellations of its jobs are heard")
}

// What is known of an upstream stays with it: its breakers, and how many calls it bears.
func TestWhatWasLearnedOfAnUpstream(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Member)
		kept   bool
		limit  int64
	}{
		"the same upstream":    {func(*Member) {}, true, 3},
		"another upstream":     {func(m *Member) { m.Upstream = "v" }, false, 0},
		"other breakers":       {func(m *Member) { m.Breaker.Failures = 2 }, false, 3},
		"fewer calls at once":  {func(m *Member) { m.Concurrency = 2 }, true, 2},
		"upstream not told of": {func(m *Member) { m.Upstream = "" }, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &Worker{opt: Options{Metrics: NewMetrics(prometheus.NewRegistry())}, log: discard()}
			old := newPool(w, serves(answering(""), "1"), w.opt.Metrics.provider(testName))
			old.limit.Store(3)
			done, _, err := old.admit("m")
			require.NoError(t, err)
			done(errPassing)
			next := serves(answering(""), "2")
			c.change(&next)
			p := newPool(w, next, w.opt.Metrics.provider(testName))
			p.inherit(old)
			_, blocked, _ := p.admit("m")
			require.Equal(t, c.kept, blocked != nil)
			require.Equal(t, c.limit, p.limit.Load())
			require.Same(t, old.inFlight, p.inFlight)
		})
	}
}

// A job that waits because its upstream fails is called at once at the next one.
func TestAJobThatWaitsGoesOnUnderNewSettings(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	down := newAdapter(func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return nil, &inference.Error{Code: inference.CodeUpstreamError, Message: "failed"}
	})
	w, _ := r.start("worker01", with(serves(down, "1")))
	r.publish(newJob(false))
	e := next(t, r.ends)
	require.NotNil(t, e.Err)
	r.settle(e)
	held := newJob(false)
	r.publish(held)
	require.Eventually(t, func() bool { return w.pools[0].lanes[0].held.Load() == 1 }, soon, time.Millisecond)
	well := serves(answering("well"), "2")
	well.Upstream = "v"
	require.NoError(t, w.Apply([]Member{well}))
	for e = next(t, r.ends); e.JobID != held.ID; e = next(t, r.ends) {
	}
	require.Nil(t, e.Err)
	require.Equal(t, `"well"`, string(e.Body))
	r.settle(e)
	r.empty()
}

// What cannot be taken over whole leaves nothing of itself: a worker that listened for a
// provider it does not serve would be waited for.
func TestAChangeThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	w, _ := r.start("worker01", with(serves(answering("kept"), "1")))
	again, other, bad := serves(answering("again"), "2"), serves(answering("other"), "1"), serves(answering("bad"), "1")
	other.Name, bad.Name = "other", "no subject"
	require.ErrorContains(t, w.Apply([]Member{again, other, bad}), "serve provider no subject: ")
	answers := func(provider string) int {
		heard, _, err := r.conn.ResetBreakers(t.Context(), provider, "", 1)
		require.NoError(t, err)
		return heard
	}
	require.Zero(t, answers("other"))
	require.Eventually(t, func() bool { return answers(testName) == 1 }, soon, time.Millisecond, "what is served goes on")
	cancelled := func(job string) bool {
		w.hold.mu.Lock()
		defer w.hold.mu.Unlock()
		return w.hold.wasCancelled(job)
	}
	require.NoError(t, r.dispatch.Cancel(t.Context(), "of-other", "other", 0))
	require.NoError(t, r.dispatch.Cancel(t.Context(), "of-mine", testName, 0))
	require.Eventually(t, func() bool { return cancelled("of-mine") }, soon, time.Millisecond)
	require.False(t, cancelled("of-other"))
	require.NoError(t, w.Apply([]Member{again, other}))
	require.Eventually(t, func() bool { return answers("other") == 1 }, soon, time.Millisecond)
}

func TestAWorkerThatHasStoppedTakesNoMembers(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	w, stop := r.start("worker01", with(serves(answering("old"), "1")))
	stop()
	a := answering("new")
	require.ErrorIs(t, w.Apply([]Member{serves(a, "2")}), ErrStopped)
	require.False(t, a.closed.Load(), "they are the caller's")
}
