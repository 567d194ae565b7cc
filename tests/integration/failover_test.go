package integration

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/internal/testkit"
	"sluice/worker"
)

const second = "zweiter" // the provider behind the first

// leavable sends a request whose client leaves when the function is called.
func (s *stack) leavable(body string) (leave func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.try(ctx, 0, http.MethodPost, chatPath, body) // it is cut off
	}()
	return sync.OnceFunc(func() {
		cancel()
		<-done
	})
}

// emptyQueues waits until the providers' queues hold nothing.
func (s *stack) emptyQueues(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.eventually(func() bool {
			d, err := s.doors[0].conn.Depth(s.t.Context(), name)
			return err == nil && d == queue.Depth{}
		}, "the queue of %s is empty", name)
	}
}

// startPair runs a stack with two providers of the same models. The first one's upstream
// is s.up, the other's is returned.
func startPair(t *testing.T, change func(*options), member func(*worker.Member)) (*stack, *testkit.Upstream) {
	t.Helper()
	s := start(t, func(o *options) {
		o.others, o.workers = []string{second}, 0
		if change != nil {
			change(o)
		}
	})
	other := testkit.NewUpstream(t)
	other.Handle(func(c *testkit.Call) { c.Reply("second") })
	s.addWorkerOf(provider, s.up, s.opt.natsURL, member)
	s.addWorkerOf(second, other, s.opt.natsURL, member)
	s.awaitWorkers(1)
	s.eventually(func() bool { return s.ready(0).Providers[second].Workers == 1 }, "the second provider has a worker")
	return s, other
}

// failures are the ways of a provider's bad day that another provider makes good.
var failures = map[string]struct {
	script func(*testkit.Call)
	code   inference.ErrorCode
}{
	"5xx":       {func(c *testkit.Call) { c.Fail(http.StatusServiceUnavailable, "down") }, inference.CodeUpstreamError},
	"429":       {func(c *testkit.Call) { c.Fail(http.StatusTooManyRequests, "slow") }, inference.CodeUpstreamRateLimited},
	"401":       {func(c *testkit.Call) { c.Fail(http.StatusUnauthorized, "who") }, inference.CodeUpstreamAuth},
	"malformed": {func(c *testkit.Call) { c.JSON(http.StatusOK, "<html>") }, inference.CodeUpstreamInvalid},
}

func TestAnotherProviderServesWhatTheFirstCannot(t *testing.T) {
	t.Parallel()
	for name, c := range failures {
		for _, stream := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " streamed"}[stream], func(t *testing.T) {
				t.Parallel()
				s, other := startPair(t, nil, nil)
				s.up.Handle(c.script)
				body := `{"model":"m","messages":[{"role":"user","content":"` + canary + `"}]}`
				if stream {
					body = strings.Replace(body, "{", `{"stream":true,`, 1)
				}
				a := s.chat(body)
				require.Equal(t, http.StatusOK, a.status, a.body)
				require.Contains(t, a.body, "second")
				require.Equal(t, second, a.header.Get("X-Sluice-Provider"))
				require.Equal(t, "2", a.header.Get("X-Sluice-Attempts"))
				require.Equal(t, provider+"/m "+string(c.code), a.header.Get("X-Sluice-Failed-Attempts"))
				require.JSONEq(t, string(s.up.Last().Body), string(other.Last().Body))

				row := s.row(a.header.Get("X-Request-Id"))
				require.Equal(t, second, row.Provider)
				require.Equal(t, 2, row.Attempts)
				require.Len(t, row.Tries, 1)
				require.Equal(t, inference.Try{Provider: provider, Model: "m", Code: c.code, Status: row.Tries[0].Status, Took: row.Tries[0].Took}, row.Tries[0])
				require.Equal(t, inference.OutcomeSucceeded, row.Outcome)
				s.rows(1)
				s.emptyQueues(provider, second)
			})
		}
	}
}

func TestTheClientsOwnFaultStaysOne(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, nil, nil)
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusUnprocessableEntity, "no such field") })
	a := s.chat(plainBody)
	require.Equal(t, http.StatusUnprocessableEntity, a.status)
	require.Contains(t, a.body, "no such field")
	require.Zero(t, other.Count())
}

func TestWhenAllFailTheLastErrorIsTold(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, nil, nil)
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "one") })
	other.Handle(func(c *testkit.Call) { c.Fail(http.StatusBadGateway, "two") })
	a := s.chat(plainBody)
	require.Equal(t, http.StatusBadGateway, a.status)
	require.Contains(t, a.body, "two")
	require.Equal(t, "2", a.header.Get("X-Sluice-Attempts"))
	row := s.row(a.header.Get("X-Request-Id"))
	require.Len(t, row.Tries, 2)
	require.Equal(t, inference.OutcomeFailed, row.Outcome)
	s.emptyQueues(provider, second)
}

// A large body travels beside its message, and goes along to the next provider.
func TestALargeBodyGoesAlong(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, nil, nil)
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "one") })
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 2<<20) + `"}]}`
	a := s.chat(body)
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Len(t, other.Last().Body, len(body))
}

// The client leaves while its job is with the second provider.
func TestCancelReachesTheProviderThatHasTheJob(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, nil, nil)
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "one") })
	other.Handle(func(c *testkit.Call) { <-c.Disconnected() })
	cancel := s.leavable(plainBody)
	other.AwaitCount(1)
	cancel()
	other.AwaitDisconnects(1)
	row := s.rows(1)[0]
	require.Equal(t, inference.OutcomeCancelled, row.Outcome)
	require.Equal(t, second, row.Provider)
	require.Equal(t, 2, row.Attempts)
	s.emptyQueues(provider, second)
}

// series are the worker's metrics, each by its name and labels.
func (h *hand) series() map[string]float64 {
	families, err := h.reg.Gather()
	if err != nil {
		return nil
	}
	found := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			found[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return found
}

// breaks opens after two failures and stays open for a while.
func breaks(m *worker.Member) {
	m.Breaker = worker.BreakerSettings{Failures: 2, OpenFor: 400 * time.Millisecond, Probes: 1}
}

// While the breaker is open the provider is not called; what has another candidate goes
// there, and the ingress prefers it.
func TestAnOpenBreakerSparesTheProvider(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, nil, func(m *worker.Member) {
		m.Breaker = worker.BreakerSettings{Failures: 2, OpenFor: time.Hour, Probes: 1}
	})
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "down") })
	for range 10 {
		a := s.chat(plainBody)
		require.Equal(t, http.StatusOK, a.status, a.body)
	}
	require.Equal(t, 2, s.up.Count(), "no call after the second failure")
	require.Equal(t, 10, other.Count())

	shown := s.hands[0].series()
	require.InDelta(t, 1, shown[`sluice_breaker_state model=m provider=acme state=open`], 0)
	require.InDelta(t, 0, shown[`sluice_breaker_state model=m provider=acme state=closed`], 0)
	require.InDelta(t, 2, shown[`sluice_failovers_total provider=acme reason=unavailable`], 8, "until the ingress knew")
	s.eventually(func() bool {
		return strings.Contains(s.do(0, http.MethodGet, "/readyz", "").body, `"breakers":{"m":"open"}`)
	}, "readyz shows it")
}

// Without another candidate jobs wait for the provider, and are served when it is well
// again, each once.
func TestJobsWaitForTheirOnlyProvider(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.workers = 0 })
	s.addWorkerOf(provider, s.up, "", func(m *worker.Member) { breaks(m); m.Slots, m.Concurrency = 2, 2 })
	s.awaitWorkers(1)
	var down atomic.Bool
	down.Store(true)
	var served atomic.Int64
	s.up.Handle(func(c *testkit.Call) {
		if down.Load() {
			c.Fail(http.StatusInternalServerError, "down")
			return
		}
		served.Add(1)
		c.Reply("well")
	})
	for range 2 { // the breaker opens
		a := s.chat(plainBody)
		require.Equal(t, http.StatusBadGateway, a.status)
	}
	answers := make(chan int, 20)
	for range 20 {
		go func() {
			a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
			if err != nil {
				a.status = -1
			}
			answers <- a.status
		}()
	}
	s.eventually(func() bool {
		d, err := s.doors[0].conn.Depth(t.Context(), provider)
		return err == nil && d.Running+d.Waiting == 20
	}, "all jobs wait")
	down.Store(false)
	for range 20 {
		require.Equal(t, http.StatusOK, <-answers)
	}
	require.EqualValues(t, 20, served.Load())
}

// A provider that asks for a wait is given it; the client hears nothing of it.
func TestATooBusyProviderIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.up.Handle(func(c *testkit.Call) {
		if c.N <= 4 {
			c.SetHeader("Retry-After", "0.1")
			c.Fail(http.StatusTooManyRequests, "slow down")
			return
		}
		c.Reply("at last")
	})
	a := s.chat(plainBody)
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, "5", a.header.Get("X-Sluice-Attempts"))
}

// One of the provider's two workers has lost its upstream: the other one does its work.
func TestAPeerDoesTheWorkOfAWorkerWhoseUpstreamIsGone(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.workers, o.maxRetries = 0, 2 })
	well := testkit.NewUpstream(t)
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "down") })
	member := func(m *worker.Member) {
		m.Breaker = worker.BreakerSettings{Failures: 3, OpenFor: 300 * time.Millisecond, Probes: 1}
		m.Slots, m.RetryBudget = 4, 1
	}
	s.addWorkerOf(provider, s.up, "", member)
	s.addWorkerOf(provider, well, "", member)
	s.awaitWorkers(2)
	s.acquainted()
	for range 30 {
		a := s.chat(plainBody)
		require.Equal(t, http.StatusOK, a.status, a.body)
	}
	require.Equal(t, 30, well.Count())
	require.NotZero(t, s.up.Count())
	require.Less(t, s.up.Count(), 12, "only probes after the breaker opened")
}

// acquainted waits until each worker has surely heard of the others: what a worker
// announced after all of them had begun to listen, every one has heard.
func (s *stack) acquainted() {
	s.t.Helper()
	words := make(chan string, 1000)
	w, err := s.doors[0].conn.Watch(func(p queue.Presence) { words <- p.Worker })
	require.NoError(s.t, err)
	defer w.Close()
	heard := make(map[string]int)
	s.eventually(func() bool {
		for len(words) > 0 {
			heard[<-words]++
		}
		n := 0
		for _, times := range heard {
			if times >= 2 {
				n++
			}
		}
		return n == len(s.hands)
	}, "workers have announced themselves")
}

// A full queue is no reason to refuse a request that another provider can serve.
func TestAFullQueueSendsRequestsToTheNext(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, func(o *options) { o.maxQueued, o.slots, o.concurrency = 1, 1, 1 }, nil)
	s.up.Handle(func(c *testkit.Call) { <-c.Disconnected() })
	cancel := s.leavable(plainBody)
	defer cancel()
	s.up.AwaitCount(1)
	a := s.chat(plainBody)
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, second, a.header.Get("X-Sluice-Provider"))
	require.Equal(t, 1, other.Count())
}

// A provider that asks for a long pause with a 5xx is not waited for where another
// candidate lives.
func TestALongRetryAfterIsNotWaitedForWhereAnotherCanServe(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, func(o *options) { o.maxRetries = 2 }, nil)
	s.up.Handle(func(c *testkit.Call) {
		c.SetHeader("Retry-After", "20")
		c.Fail(http.StatusServiceUnavailable, "later")
	})
	a := s.chat(plainBody, "X-Sluice-Timeout", "15s")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, 1, s.up.Count())
	require.Equal(t, 1, other.Count())
}

// All candidates fail; the job that waits for the first goes to the other once that one
// is well, and not only when its own provider is called again.
func TestAWaitingJobGoesToTheCandidateThatIsWellFirst(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	down.Store(true)
	s, other := startPair(t, nil, func(m *worker.Member) {
		m.Breaker = worker.BreakerSettings{Failures: 1, OpenFor: time.Hour, Probes: 1}
		if m.Name == second {
			m.Breaker.OpenFor = 3 * time.Second
		}
	})
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "down") })
	other.Handle(func(c *testkit.Call) {
		if down.Load() {
			c.Fail(http.StatusInternalServerError, "down")
			return
		}
		c.Reply("well")
	})
	require.Equal(t, http.StatusBadGateway, s.chat(plainBody).status, "both breakers open")
	s.acquainted()
	answers := make(chan answer, 1)
	go func() {
		a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
		if err != nil {
			a.status = -1
		}
		answers <- a
	}()
	down.Store(false)
	a := <-answers
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, second, a.header.Get("X-Sluice-Provider"))
	require.Equal(t, 1, s.up.Count())
}

// The provider's only worker goes while jobs wait for it and one is in its hands: they go
// to the other provider.
func TestJobsOfAProviderWithoutWorkersGoToTheNext(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, func(o *options) { o.drain = 100 * time.Millisecond }, func(m *worker.Member) { m.Slots, m.Concurrency = 1, 1 })
	s.up.Handle(func(c *testkit.Call) { <-c.Disconnected() })
	const n = 5
	answers := make(chan int, n)
	for range n {
		go func() {
			a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
			if err != nil {
				a.status = -1
			}
			answers <- a.status
		}()
	}
	s.up.AwaitCount(1)
	s.eventually(func() bool {
		d, err := s.doors[0].conn.Depth(t.Context(), provider)
		return err == nil && d.Running+d.Waiting == n
	}, "the others wait")
	s.hands[0].stop()
	for range n {
		require.Equal(t, http.StatusOK, <-answers)
	}
	require.Equal(t, n, other.Count())
	s.rows(n)
	s.emptyQueues(provider, second)
}

// A worker whose keys are all refused is no candidate: what waits for another one is not
// given to it.
func TestAProviderWhoseKeysAreRefusedIsNoWayOut(t *testing.T) {
	t.Parallel()
	s, other := startPair(t, nil, nil)
	other.Handle(func(c *testkit.Call) { c.Fail(http.StatusUnauthorized, "who") })
	require.Equal(t, http.StatusBadGateway, s.chat(strings.Replace(plainBody, `"m"`, `"`+second+`/m"`, 1)).status)
	calls := other.Count()
	s.acquainted()
	s.up.Handle(func(c *testkit.Call) {
		if c.N == 1 {
			c.SetHeader("Retry-After", "1")
			c.Fail(http.StatusTooManyRequests, "slow")
			return
		}
		c.Reply("at last")
	})
	a := s.chat(plainBody)
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, calls, other.Count())
	require.Equal(t, "keys refused", s.ready(0).Providers[second].Status)
}

// What one provider's policy does not allow, and what is too long for its model, goes to
// the candidates that a rule names for that, and to no other.
func TestFallbacksByReason(t *testing.T) {
	t.Parallel()
	refusal := `{"id":"i","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"content_filter"}],"usage":{"prompt_tokens":1,"completion_tokens":0,"total_tokens":1}}`
	tooLong := `{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded","param":"messages"}}`
	for name, c := range map[string]struct {
		on     inference.Reasons
		script func(*testkit.Call)
		moved  bool
		status int
	}{
		"refused":                {inference.ReasonContentRefused, func(c *testkit.Call) { c.JSON(http.StatusOK, refusal) }, true, http.StatusOK},
		"refused, not meant":     {inference.ReasonContextTooLong, func(c *testkit.Call) { c.JSON(http.StatusOK, refusal) }, false, http.StatusOK},
		"too long":               {inference.ReasonContextTooLong, func(c *testkit.Call) { c.JSON(http.StatusBadRequest, tooLong) }, true, http.StatusOK},
		"too long, not meant":    {inference.ReasonContentRefused, func(c *testkit.Call) { c.JSON(http.StatusBadRequest, tooLong) }, false, http.StatusBadRequest},
		"unavailable, not meant": {inference.ReasonContextTooLong, func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "down") }, false, http.StatusBadGateway},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, other := startPair(t, func(o *options) {
				o.policy = routing.Policy{Rules: []routing.Rule{{
					Name: "r", Targets: []routing.Target{{Provider: provider, Weight: 1}},
					Fallback: []routing.Fallback{{On: c.on, Targets: []routing.Target{{Provider: second}}}},
				}}}
			}, nil)
			s.up.Handle(c.script)
			a := s.chat(plainBody)
			require.Equal(t, c.status, a.status, a.body)
			require.Equal(t, c.moved, other.Count() == 1)
			require.Equal(t, c.moved, a.header.Get("X-Sluice-Provider") == second)
		})
	}
}
