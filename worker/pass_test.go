package worker

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

var errDown = &inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "down", Retryable: true}

func down(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
	return nil, errDown
}

// announced says again and again that a worker is there, until stop.
func (r *rig) announced(p queue.Presence) (stop func()) {
	r.t.Helper()
	end := make(chan struct{})
	var saying sync.WaitGroup
	saying.Go(func() {
		for {
			_ = r.conn.Announce(p)
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	stop = sync.OnceFunc(func() { close(end); saying.Wait() })
	r.t.Cleanup(stop)
	return stop
}

// hears waits until the worker knows of another one of the provider.
func hears(t *testing.T, w *Worker, provider string) {
	t.Helper()
	require.Eventually(t, func() bool { return w.peers.well(provider, "m", time.Now()) > 0 }, soon, time.Millisecond)
}

func (r *rig) queueOf(provider string, most int) <-chan *queue.Delivery {
	r.t.Helper()
	_, err := r.conn.EnsureQueue(r.t.Context(), provider, most)
	require.NoError(r.t, err)
	require.NoError(r.t, r.conn.EnsureConsumer(r.t.Context(), provider, 10))
	came := make(chan *queue.Delivery, 10)
	p, err := r.conn.NewPuller(provider, inference.LaneInteractive, 10, func(d *queue.Delivery) { came <- d }, nil)
	require.NoError(r.t, err)
	r.t.Cleanup(p.Stop)
	return came
}

func at(providers ...string) (cs []inference.Candidate) {
	for _, p := range providers {
		cs = append(cs, inference.Candidate{Provider: p, Model: "m-" + p})
	}
	return cs
}

func elsewhere(names ...string) queue.Presence {
	p := queue.Presence{Worker: "elsewhere"}
	for _, n := range names {
		p.Providers = append(p.Providers, queue.ProviderPresence{Name: n})
	}
	return p
}

// once keeps a call from being made again here.
func once(o *Options) { o.Members[0].MaxRetries = 0 }

func TestAFailedJobGoesToTheNextCandidate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		queues map[string]int // queues and how many jobs they take
		to     string         // where it goes
		rest   []string       // all candidates that it then has
	}{
		"the next one":                {map[string]int{"b": 5, "c": 5, "d": 5}, "b", []string{"b", "c", "d"}},
		"the next one is full":        {map[string]int{"b": 1, "c": 5, "d": 5}, "c", []string{"c", "d"}},
		"the next one has no queue":   {map[string]int{"c": 5, "d": 5}, "c", []string{"c", "d"}},
		"only the last one has room":  {map[string]int{"b": 1, "d": 5}, "d", []string{"d"}},
		"no other one has a queue":    {nil, "", nil},
		"all the other ones are full": {map[string]int{"b": 1, "c": 1, "d": 1}, "", nil},
	} {
		for _, large := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := setup(t, down)
				came := make(map[string]<-chan *queue.Delivery)
				for q, most := range c.queues {
					came[q] = r.queueOf(q, most)
					if most == 1 {
						j := newJob(false)
						j.Candidates = at(q)
						r.publish(j)
						next(t, came[q])
					}
				}
				r.announced(elsewhere("b", "c", "d"))
				w, _ := r.start("worker01", once)
				hears(t, w, "d")
				j := newJob(false)
				j.Candidates, j.Attempts = at(testName, "b", "c", "d"), 1
				j.Tries = []inference.Try{{Provider: "before", Code: inference.CodeUpstreamTimeout}}
				ref := ""
				if large {
					j.Body = []byte(`{"x":"` + strings.Repeat("y", 1<<19) + `"}`)
					var err error
					ref, err = r.dispatch.StoreBody(t.Context(), j)
					require.NoError(t, err)
				}
				require.NoError(t, r.dispatch.Publish(j, ref))
				next(t, r.published)
				if c.to == "" {
					e := next(t, r.ends)
					require.Equal(t, inference.CodeUpstreamUnavailable, e.Err.Code)
					require.Len(t, e.Tries, 2)
					r.settle(e)
					r.empty()
					require.Empty(t, r.passed)
					return
				}
				told := next(t, r.passed)
				require.Equal(t, j.ID, told.JobID)
				require.Equal(t, queue.Run{Delivery: 1}, told.Run)
				require.Equal(t, 2, told.Attempts)
				require.Len(t, told.Tries, 2)
				require.Equal(t, at(c.rest...), told.Next.Candidates)
				d := next(t, came[c.to])
				require.Equal(t, d.Seq, told.Next.Seq)
				got, gotRef, err := d.Job()
				require.NoError(t, err)
				require.Equal(t, 1, got.Epoch)
				require.Equal(t, 2, got.Attempts)
				require.Equal(t, told.Tries, got.Tries)
				require.Equal(t, inference.Try{Provider: testName, Model: "m-" + testName, Code: inference.CodeUpstreamUnavailable, Took: got.Tries[1].Took}, got.Tries[1])
				require.Equal(t, at(c.rest...), got.Candidates)
				require.Equal(t, ref, gotRef)
				if !large {
					require.Equal(t, j.Body, got.Body)
				}
				require.Equal(t, []any{j.ID, j.Tenant, j.Model, j.Deadline}, []any{got.ID, got.Tenant, got.Model, got.Deadline})
				r.empty()
				require.Empty(t, r.ends)
				require.Equal(t, 1, r.script.count())
				require.Zero(t, w.hold.count())
			})
		}
	}
}

// The reasons of the candidates decide, and a chunk that was sent ends all choice.
func TestAFailedJobThatNobodyElseMayHave(t *testing.T) {
	t.Parallel()
	for name, fn := range map[string]func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error){
		"another reason": func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
			return nil, &inference.Error{Code: inference.CodeUpstreamRejected, Refusal: inference.RefusalContent}
		},
		"the client's fault": func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
			return nil, &inference.Error{Code: inference.CodeUpstreamRejected}
		},
		"it had begun": func(_ context.Context, _ int, _ providers.Call, emit providers.Emit) (*providers.Response, error) {
			if err := emit([][]byte{[]byte("x")}); err != nil {
				return nil, err
			}
			return nil, errDown
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, fn)
			r.queueOf("b", 5)
			r.announced(elsewhere("b", testName))
			w, _ := r.start("worker01")
			hears(t, w, "b")
			j := newJob(true)
			j.Candidates = at(testName, "b")
			j.Candidates[1].On = inference.ReasonUnavailable | inference.ReasonContextTooLong
			r.publish(j)
			e := next(t, r.ends)
			require.NotNil(t, e.Err)
			r.settle(e)
			r.empty()
			require.Empty(t, r.passed)
			require.Equal(t, 1, r.script.count())
		})
	}
}

// Where the server's word does not come, the message may be there or not: the job stays
// here too, and is asked about when it comes again.
func TestAJobWhosePublishFailsComesAgain(t *testing.T) {
	t.Parallel()
	r, js := listening(t, down)
	unheard(t, js, "job.b.interactive")
	r.announced(elsewhere("b"))
	w, _ := r.start("worker01", once)
	hears(t, w, "b")
	j := newJob(false)
	j.Candidates = at(testName, "b")
	r.publish(j)
	c := next(t, r.claims)
	require.Equal(t, queue.Run{Delivery: 2}, c.Run)
	require.Equal(t, j.Candidates, c.Place.Candidates)
	require.Empty(t, next(t, r.passed).Next.Candidates, "the ingress hears that it is given up here")
	require.Empty(t, r.ends)
	require.Equal(t, queue.Depth{Running: 1}, r.depth())
}

// A worker whose upstream fails leaves the job to another one of the provider, which
// goes on counting.
func TestAFailedJobGoesToAPeer(t *testing.T) {
	t.Parallel()
	r := setup(t, down)
	stop := r.announced(elsewhere(testName))
	many := func(o *Options) { o.Members[0].MaxRetries = 50; o.Members[0].RetryBudget = 1 }
	a, _ := r.start("a", many)
	hears(t, a, testName)
	j := newJob(false)
	r.publish(j)
	told := next(t, r.passed)
	require.Equal(t, queue.Place{}, told.Next)
	require.Equal(t, "a", told.Worker)
	require.Equal(t, 1, told.Attempts)
	well := &script{fn: func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	}}
	r.start("b", many, func(o *Options) { o.Members[0].Provider = well })
	stop()
	e := next(t, r.ends)
	require.Nil(t, e.Err)
	require.Equal(t, "b", e.Worker)
	require.Equal(t, r.script.count()+1, e.Attempts)
	require.Len(t, e.Tries, r.script.count())
	r.settle(e)
	r.empty()
	require.Equal(t, 1, well.count())
}

// tripping opens the breaker at the first failure.
func tripping(slots int, openFor time.Duration) func(*Options) {
	return func(o *Options) {
		m := &o.Members[0]
		m.Slots, m.MaxRetries = slots, 0
		m.Breaker = BreakerSettings{Failures: 1, OpenFor: openFor, Probes: 1}
	}
}

func TestAHeldJobGivesItsSlotAway(t *testing.T) {
	t.Parallel()
	other := make(chan struct{})
	var m meter
	r := setup(t, func(_ context.Context, n int, call providers.Call, _ providers.Emit) (*providers.Response, error) {
		if call.Model == "other" {
			close(other)
		}
		if n == 1 {
			return nil, errDown
		}
		m.enter()
		defer m.leave()
		<-time.After(50 * time.Millisecond)
		return answer(`{}`)
	})
	w, _ := r.start("worker01", tripping(1, 3*time.Second))
	r.publish(newJob(false))
	e := next(t, r.ends)
	require.NotNil(t, e.Err)
	r.settle(e)
	opened := time.Now()
	first, second := newJob(false), newJob(false)
	r.publish(first)
	require.Eventually(t, func() bool { return w.pools[0].lanes[0].held.Load() == 1 }, soon, time.Millisecond)
	r.publish(second)
	r.publish(newJob(false))
	require.Eventually(t, func() bool { return w.pools[0].lanes[0].held.Load() == 3 }, soon, time.Millisecond)
	j := newJob(false)
	j.Candidates[0].Model = "other"
	r.publish(j)
	next(t, other)
	e = next(t, r.ends)
	require.Equal(t, j.ID, e.JobID, "another model's job is served meanwhile")
	r.settle(e)
	ends := r.settleAll(3)
	require.EqualValues(t, 1, m.most.Load(), "each has the slot again")
	require.True(t, r.saidIdle(first.ID), "its ingress may do without")
	require.Less(t, time.Since(opened), 3*time.Second+holdAtMost-time.Second, "the turn wakes them")
	for _, e := range ends {
		require.Nil(t, e.Err)
		require.Equal(t, 1, e.Attempts)
		require.Equal(t, queue.Run{Delivery: 1}, e.Run, "it never left the worker")
	}
	r.empty()
	require.Zero(t, w.pools[0].lanes[0].held.Load())
	require.Zero(t, w.pools[0].lanes[0].heldSize.Load())
}

// saidIdle reports whether ingresses have been told that no call is made for the job.
func (r *rig) saidIdle(jobID string) (said bool) {
	for {
		select {
		case h := <-r.held:
			said = said || slices.ContainsFunc(h.Jobs, func(j queue.HeldJob) bool { return j.JobID == jobID && j.Idle })
		default:
			return said
		}
	}
}

// probing is a worker whose one probe hangs, with a job that waits for it.
func probing(t *testing.T, deadline time.Duration) (r *rig, w *Worker, stop func(), probe, waits *inference.Job) {
	t.Helper()
	r = setup(t, func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
		if n == 1 {
			return nil, errDown
		}
		return hang(ctx, n, call, emit)
	})
	w, stop = r.start("worker01", tripping(2, 50*time.Millisecond), func(o *Options) { o.DrainTimeout = 5 * time.Second })
	r.publish(newJob(false))
	r.settle(next(t, r.ends))
	probe, waits = newJob(false), newJob(false)
	r.publish(probe)
	require.Eventually(t, func() bool { return r.script.count() == 2 }, soon, time.Millisecond)
	waits.Deadline = time.UnixMilli(time.Now().Add(deadline).UnixMilli())
	r.publish(waits)
	require.Eventually(t, func() bool { return w.pools[0].lanes[0].held.Load() == 1 }, soon, time.Millisecond)
	return r, w, stop, probe, waits
}

func TestAHeldJobEndsAtItsDeadline(t *testing.T) {
	t.Parallel()
	r, w, _, _, waits := probing(t, time.Second)
	e := next(t, r.ends)
	require.Equal(t, waits.ID, e.JobID)
	require.Equal(t, inference.CodeDeadlineExceeded, e.Err.Code)
	require.Zero(t, e.Attempts)
	require.Zero(t, w.pools[0].lanes[0].held.Load())
	r.settle(e)
}

func TestAHeldJobEndsWhenItIsCancelled(t *testing.T) {
	t.Parallel()
	r, _, _, _, waits := probing(t, soon)
	require.NoError(t, r.dispatch.Cancel(t.Context(), waits.ID, testName, 0))
	e := next(t, r.ends)
	require.Equal(t, waits.ID, e.JobID)
	require.Equal(t, inference.CodeCancelled, e.Err.Code)
	r.settle(e)
}

func TestAHeldJobGoesBackWhenItsWorkerStops(t *testing.T) {
	t.Parallel()
	r, _, stop, probe, waits := probing(t, soon)
	stopped := make(chan struct{})
	asked := time.Now()
	go func() { defer close(stopped); stop() }()
	told := next(t, r.passed)
	require.Less(t, time.Since(asked), 3*time.Second, "it does not wait until it looks again by itself")
	require.Equal(t, waits.ID, told.JobID)
	require.Equal(t, queue.Place{}, told.Next)
	require.NoError(t, r.dispatch.Cancel(t.Context(), probe.ID, testName, 0))
	r.settle(next(t, r.ends))
	next(t, stopped)
	require.Eventually(t, func() bool { d := r.depth(); return d.Waiting+d.Running == 1 }, soon, 5*time.Millisecond, "and only that one")
}

// What a provider only asks to wait for is no failure.
func TestAJobWaitsWhenItsProviderAsksForIt(t *testing.T) {
	t.Parallel()
	var again atomic.Int64
	r := setup(t, func(_ context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		if n == 1 {
			again.Store(time.Now().Add(300 * time.Millisecond).UnixNano())
			return nil, &inference.Error{Code: inference.CodeUpstreamRateLimited, Status: 429, RetryAfter: 300 * time.Millisecond, Retryable: true}
		}
		if time.Now().UnixNano() < again.Load() {
			return nil, errDown
		}
		return answer(`{}`)
	})
	w, _ := r.start("worker01", once, func(o *Options) { o.Members[0].Patience = time.Second })
	j := newJob(false)
	j.Candidates = append(j.Candidates, at("b")...)
	r.publish(j)
	e := next(t, r.ends)
	require.Nil(t, e.Err)
	require.Equal(t, 2, e.Attempts)
	require.Len(t, e.Tries, 1)
	require.Equal(t, 429, e.Tries[0].Status)
	require.EqualValues(t, 1, w.pools[0].limited.Load())
	r.settle(e)
	r.empty()
}

// A worker whose upstream fails takes no more jobs than it may call, while others of the
// provider do well, and all of them again when there are no others.
func TestAWorkerThatFailsLeavesTheQueueToOthers(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	w, _ := r.start("worker01", tripping(2, time.Hour))
	p := w.pools[0]
	hung, queued := []*inference.Job{newJob(false), newJob(false)}, newJob(false)
	for _, j := range hung {
		r.publish(j)
	}
	require.Eventually(t, func() bool { return r.script.count() == 2 }, soon, time.Millisecond)
	stop := r.announced(elsewhere(testName))
	hears(t, w, testName)
	done, _, err := p.admit("m")
	require.NoError(t, err)
	done(errDown)
	p.throttle(time.Now())
	r.publish(queued)
	require.NoError(t, r.dispatch.Cancel(t.Context(), hung[0].ID, testName, 0))
	e := next(t, r.ends)
	require.Equal(t, hung[0].ID, e.JobID)
	r.settle(e)
	require.Eventually(t, func() bool { return r.depth() == queue.Depth{Waiting: 1, Running: 1} }, soon, time.Millisecond)
	require.Never(t, func() bool { return r.depth().Waiting != 1 }, 1200*time.Millisecond, 10*time.Millisecond)
	require.Empty(t, r.passed)
	stop()
	require.Eventually(t, func() bool { return p.lanes[0].held.Load() == 1 }, soon, time.Millisecond, "there is nobody else now")
	require.NoError(t, r.dispatch.Cancel(t.Context(), queued.ID, testName, 0))
	e = next(t, r.ends)
	require.Equal(t, queued.ID, e.JobID)
	require.Equal(t, inference.CodeCancelled, e.Err.Code)
	require.Zero(t, e.Attempts, "no call is made")
	r.settle(e)
}

func TestRetriesHaveABudget(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		share       float64
		least, most int
	}{
		"the free ones":        {0, 20 + retriesFree, 20 + retriesFree + 10},
		"a share of the calls": {1, 40 + retriesFree, 40 + retriesFree + 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
				return nil, errPassing
			})
			r.start("worker01", func(o *Options) { o.Members[0].RetryBudget = c.share })
			for range 20 {
				r.publish(newJob(false))
				r.settleAll(1)
			}
			r.empty()
			require.GreaterOrEqual(t, r.script.count(), c.least)
			require.LessOrEqual(t, r.script.count(), c.most)
		})
	}
}
