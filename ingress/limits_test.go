package ingress

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
)

// capped may take 31 tokens: its prompt is estimated to have one.
const capped = `{"model":"m","max_tokens":30,"messages":[{"role":"user","content":"hi"}]}`

func TestARequestWithLimitsSaysHowItsCallerStands(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{RequestsPerMinute: 2, TokensPerMinute: 1000}))
	r.work()
	first := r.chat(capped)
	r.take().succeed(`{"id":"1"}`)
	resp, _ := first.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	h := resp.Header
	require.Equal(t, []string{"2", "1", "1.5s"}, []string{h.Get("x-ratelimit-limit-requests"), h.Get("x-ratelimit-remaining-requests"), h.Get("x-ratelimit-reset-requests")})
	require.Equal(t, []string{"1000", "969", "6m0s"}, []string{h.Get("x-ratelimit-limit-tokens"), h.Get("x-ratelimit-remaining-tokens"), h.Get("x-ratelimit-reset-tokens")})

	second := r.chat(capped)
	r.take().succeed(`{"id":"2"}`)
	resp, _ = second.whole()
	require.Equal(t, "962", resp.Header.Get("x-ratelimit-remaining-tokens"), "the first one took seven")

	resp = r.chat(capped).fails(http.StatusTooManyRequests, inference.CodeRateLimited)
	require.Equal(t, "0", resp.Header.Get("x-ratelimit-remaining-requests"))
	require.NotEmpty(t, resp.Header.Get("Retry-After"))
	require.NotEmpty(t, resp.Header.Get("Retry-After-Ms"))
	require.Equal(t, "acme", resp.Header.Get("X-Sluice-Provider"))
	r.counts(`sluice_limited_total{limit="requests_per_minute"} 1`)
	c.quiet("settle 7", "settle 7")

	other := r.chat(plainRequest, "Authorization", "Bearer a-key-of-others")
	resp = other.response()
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
	require.Empty(t, resp.Header.Get("x-ratelimit-limit-requests"), "a key without limits")
}

func TestWhatCanNeverFitIsToldSo(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{TokensPerMinute: 20, OnLimit: limits.Queue}))
	resp := r.chat(capped).fails(http.StatusTooManyRequests, inference.CodeRateLimited)
	require.Empty(t, resp.Header.Get("Retry-After"))
	require.Equal(t, "false", resp.Header.Get("X-Should-Retry"))
	c.quiet()
}

// However an accepted request ends, what it has in hand ends with it, once.
func TestReservationsEndOnce(t *testing.T) {
	t.Parallel()
	unknown := func(e *queue.End) { e.Usage = inference.Usage{} }
	end := func(change ...func(*queue.End)) func(*rig, *call) {
		return func(r *rig, _ *call) {
			e := &queue.End{Body: []byte(`{}`), Model: "m", Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}}
			for _, f := range change {
				f(e)
			}
			r.take().end(e)
		}
	}
	fails := func(code inference.ErrorCode) func(*queue.End) {
		return func(e *queue.End) { e.Body, e.Err = nil, inference.Errorf(code, "no") }
	}
	for name, c := range map[string]struct {
		headers []string
		course  func(*rig, *call)
		want    string
	}{
		"succeeded":                       {nil, end(), "settle 7"},
		"succeeded, and nobody knows how": {nil, end(unknown), "settle 31"},
		"refused by the provider":         {nil, end(unknown, fails(inference.CodeUpstreamError)), "release"},
		"cut off by the provider":         {nil, end(unknown, fails(inference.CodeUpstreamCut)), "settle 1"},
		"cut off, and the usage is known": {nil, end(fails(inference.CodeUpstreamCut)), "settle 7"},
		"cancelled in the queue":          {nil, func(r *rig, k *call) { r.published(); k.cancel() }, "release"},
		"expired in the queue":            {[]string{"X-Sluice-Timeout", "100ms"}, func(*rig, *call) {}, "release"},
		"cancelled at a worker, which tells": {nil, func(r *rig, k *call) {
			job := r.take()
			k.cancel()
			r.gone()
			job.end(&queue.End{Err: errClientGone(), Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 1, Known: true}})
		}, "settle 4"},
		"cancelled at a silent worker":                 {nil, func(r *rig, k *call) { job := r.take(); job.holds(); k.cancel() }, "settle 1"},
		"cancelled at a worker that never says a word": {nil, func(r *rig, k *call) { r.published(); r.take(); k.cancel() }, "settle 1"},
		"cancelled at a worker that is heard of late": {nil, func(r *rig, k *call) {
			job := r.take()
			k.cancel()
			r.gone()
			job.holds()
		}, "settle 1"},
		"expired at a worker that never says a word": {[]string{"X-Sluice-Timeout", "300ms"}, func(r *rig, _ *call) { r.take() }, "settle 1"},
		"given back by its worker, which made no call, and cancelled": {nil, func(r *rig, k *call) {
			job := r.take()
			job.holds()
			job.givesBack(0)
			k.cancel()
		}, "release"},
		"given back by its worker, which failed, and cancelled": {nil, func(r *rig, k *call) {
			job := r.take()
			job.givesBack(1, inference.CodeUpstreamError)
			k.cancel()
		}, "release"},
		"given back by its worker, which was cut off, and cancelled": {nil, func(r *rig, k *call) {
			job := r.take()
			job.givesBack(1, inference.CodeUpstreamCut)
			k.cancel()
		}, "settle 1"},
		"cancelled, and then given back by its worker, which made no call": {nil, func(r *rig, k *call) {
			job := r.take()
			job.holds()
			k.cancel()
			r.gone()
			job.givesBack(0)
		}, "release"},
		"given up at a worker that never says a word": {nil, func(r *rig, _ *call) {
			f := r.published()
			r.take()
			require.NotNil(r.t, r.ingress.flights.giveUp(f, answerLost("gone")))
		}, "settle 1"},
		"given up in the queue": {nil, func(r *rig, _ *call) {
			require.NotNil(r.t, r.ingress.flights.giveUp(r.published(), answerLost("gone")))
		}, "release"},
		"ended here at a worker that never says a word": {nil, func(r *rig, _ *call) {
			f := r.published()
			r.take()
			r.ingress.flights.end(f, errQueueGone(nil))
		}, "settle 1"},
		"purged at a worker that never says a word": {nil, func(r *rig, _ *call) {
			f := r.published()
			r.take()
			f.mu.Lock()
			place := queue.StoredPlace{JobID: f.job.ID, Seq: f.place.seq}
			f.mu.Unlock()
			require.Len(r.t, r.ingress.flights.purge("acme", []queue.StoredPlace{place}).Ended, 1)
		}, "settle 1"},
		"failed with its second worker, after the first one never said a word": {nil, func(r *rig, _ *call) {
			job := r.take()
			job.d.Nak(0) // as the server does when a worker is lost
			second := r.take()
			_, err := r.answer.Claim(r.t.Context(), queue.Claim{JobID: second.job.ID, Run: second.run, Worker: "worker02"})
			require.NoError(r.t, err)
			second.end(&queue.End{Err: inference.Errorf(inference.CodeUpstreamError, "no")})
		}, "settle 1"},
		"lost in the queue": {nil, func(r *rig, _ *call) {
			f := r.published()
			r.ingress.flights.end(f, answerLost("gone"))
		}, "release"},
		"refused by the full queue": {nil, func(r *rig, _ *call) {
			f := r.published()
			r.ingress.flights.refuse(f, r.ingress.flights.publishError(queue.ErrFull, "acme"))
		}, "release"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setup(t, withLimits(counters, limits.Limits{TokensPerMinute: 1000}))
			if !strings.Contains(name, "in the queue") && !strings.Contains(name, "full") {
				r.work()
			}
			k := r.chat(capped, c.headers...)
			c.course(r, k)
			counters.quiet(c.want)
			require.Eventually(t, func() bool { return r.ingress.flights.count() == 0 }, soon, time.Millisecond)
			counters.quiet(c.want)
		})
	}
}

// published waits for the one flight to have its message.
func (r *rig) published() (f *flight) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		for _, f = range r.ingress.flights.all() {
			f.mu.Lock()
			there := f.place.seq != 0
			f.mu.Unlock()
			if there {
				return true
			}
		}
		return false
	}, soon, time.Millisecond)
	return f
}

// gone waits until the one flight's client is known to be gone.
func (r *rig) gone() { r.t.Helper(); next(r.t, r.cancelled) }

// holds says that the script works on the job.
func (k *taken) holds() {
	f := k.rig.ingress.flights.find(k.job.ID)
	f.holds(k.run, time.Now())
}

// givesBack has the script put the job back, after so many calls, and waits until that is
// known.
func (k *taken) givesBack(calls int, failed ...inference.ErrorCode) {
	t := k.rig.t
	t.Helper()
	f := k.rig.ingress.flights.find(k.job.ID)
	p := &queue.Passed{JobID: k.job.ID, Run: k.run, Worker: "worker01", Attempts: calls}
	for _, code := range failed {
		p.Tries = append(p.Tries, inference.Try{Provider: "acme", Code: code})
	}
	require.NoError(t, k.rig.answer.Passed(p))
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !f.held && f.firstRun.known && f.attempts == calls
	}, soon, time.Millisecond)
	k.d.Nak(time.Hour)
}

// What reached a provider is not given back, and what did not is.
func TestWhatReachedAProvider(t *testing.T) {
	t.Parallel()
	tries := func(codes ...inference.ErrorCode) (list []inference.Try) {
		for _, c := range codes {
			list = append(list, inference.Try{Provider: "a", Code: c})
		}
		return list
	}
	refused, cut := inference.CodeUpstreamError, inference.CodeUpstreamCut
	many := make([]inference.ErrorCode, inference.MaxTries)
	for i := range many {
		many[i] = inference.CodeUpstreamRateLimited
	}
	for name, c := range map[string]struct {
		record inference.Record
		want   bool
	}{
		"never called":                                {inference.Record{ErrorCode: inference.CodeCancelled}, false},
		"cancelled at a provider":                     {inference.Record{Attempts: 1, ErrorCode: inference.CodeCancelled}, true},
		"purged at a provider":                        {inference.Record{Attempts: 1, ErrorCode: inference.CodePurged}, true},
		"refused":                                     {inference.Record{Attempts: 1, ErrorCode: refused}, false},
		"refused, as its tries say":                   {inference.Record{Attempts: 1, ErrorCode: refused, Tries: tries(refused)}, false},
		"refused, then cancelled in a queue":          {inference.Record{Attempts: 1, ErrorCode: inference.CodeCancelled, Tries: tries(refused)}, false},
		"refused, then expired in a queue":            {inference.Record{Attempts: 2, ErrorCode: inference.CodeDeadlineExceeded, Tries: tries(refused, refused)}, false},
		"refused, then cancelled at a second one":     {inference.Record{Attempts: 2, ErrorCode: inference.CodeCancelled, Tries: tries(refused)}, true},
		"cut, then cancelled in a queue":              {inference.Record{Attempts: 1, ErrorCode: inference.CodeCancelled, Tries: tries(cut)}, true},
		"timed out, then refused":                     {inference.Record{Attempts: 2, ErrorCode: refused, Tries: tries(inference.CodeUpstreamTimeout, refused)}, true},
		"lost with its worker, then refused":          {inference.Record{Attempts: 2, ErrorCode: refused, Tries: tries(refused)}, true},
		"begun, then refused":                         {inference.Record{Attempts: 1, ErrorCode: refused, FirstToken: time.Second}, true},
		"refused too often to remember":               {inference.Record{Attempts: 40, ErrorCode: many[0], Tries: tries(many...)}, false},
		"refused too often to remember, then timeout": {inference.Record{Attempts: 40, ErrorCode: inference.CodeUpstreamTimeout, Tries: tries(many...)}, true},
	} {
		require.Equal(t, c.want, reached(&c.record), name)
	}
}

func TestWhatNeverOpensGivesBack(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{Concurrent: 5, TokensPerMinute: 1000}), func(o *Options) { o.MaxInFlight = 0 })
	r.chat(capped).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	c.quiet("release")
}

func TestAStoppingIngressKeepsWhatItDoesNotSeeThrough(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	fs := &flights{byID: make(map[string]*flight)}
	l := &limiting{by: c}
	for _, id := range []string{"a", "b"} {
		q := &limited{settings: &LimitSettings{}, demand: limits.Demand{Scopes: []limits.Scope{{ID: "s"}}, Tokens: 9}, job: &inference.Job{}}
		h, err := l.reserve(t.Context(), q)
		require.NoError(t, err)
		fs.byID[id] = &flight{hold: h}
	}
	fs.byID["a"].hold.release()
	fs.keepHolds()
	fs.keepHolds()
	c.quiet("release", "abandon 9")

	q := &limited{settings: &LimitSettings{}, demand: limits.Demand{Scopes: []limits.Scope{{ID: "t"}}, Tokens: 7, Ends: time.Now().Add(time.Hour)}, job: &inference.Job{}}
	h, err := l.reserve(t.Context(), q)
	require.NoError(t, err)
	fs.byID["c"] = &flight{hold: h}
	fs.byID["passed"] = &flight{hold: l.unreserved(q)}
	fs.byID["unlimited"] = &flight{}
	fs.keepHolds()
	fs.keepHolds()
	require.ElementsMatch(t, []string{"release", "abandon 9", "abandon 7", "charge t 7"}, c.ends)
	require.EqualValues(t, 1, c.of("t").concurrent, "it goes on")
}

func TestQueuedRequestsAreNotQueuedAtAWorker(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{Queued: 1, TokensPerMinute: 1000}))
	r.work()
	first := r.chat(capped)
	job := r.take()
	require.EqualValues(t, 1, c.queued("key:key"), "nobody has said that a worker has it")
	r.chat(capped).fails(http.StatusTooManyRequests, inference.CodeRateLimited)
	job.holds()
	require.Zero(t, c.queued("key:key"))
	second := r.chat(capped)
	r.take().succeed(`{}`)
	job.succeed(`{}`)
	first.response()
	second.response()
	c.quiet("settle 7", "settle 7")
}

func TestCountersOutOfReach(t *testing.T) {
	t.Parallel()
	t.Run("fail_closed", func(t *testing.T) {
		t.Parallel()
		c := newCounters(t)
		r := setup(t, withLimits(c, limits.Limits{RequestsPerMinute: 5}))
		c.goAway(true)
		resp := r.chat(capped).fails(http.StatusServiceUnavailable, inference.CodeLimitsUnavailable)
		require.Equal(t, "2", resp.Header.Get("Retry-After"))
		r.counts(`sluice_limiter_unavailable_total{policy="fail_closed"} 1`)
		c.goAway(false)
		r.work()
		again := r.chat(capped)
		r.take().succeed(`{}`)
		require.Equal(t, http.StatusOK, again.response().StatusCode)
	})
	t.Run("fail_open", func(t *testing.T) {
		t.Parallel()
		c := newCounters(t)
		r := setup(t, withLimits(c, limits.Limits{RequestsPerMinute: 5}, func(l *LimitSettings) { l.FailOpen = true }))
		r.work()
		c.goAway(true)
		k := r.chat(capped)
		r.take().succeed(`{}`)
		require.Equal(t, http.StatusOK, k.response().StatusCode)
		r.counts(`sluice_limiter_unavailable_total{policy="fail_open"} 1`)
		c.quiet("charge key:key 7")
	})
}

func TestMoneyIsReservedAndSettled(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	price := func(_, model, _ string, prompt, output int64, _ time.Time) (inference.Cost, bool) {
		require.Contains(t, []string{"m", "m-served"}, model)
		return inference.Cost(prompt+output) * 1_000_000_000, true
	}
	r := setup(t, withLimits(c, limits.Limits{Budget: limits.Budget{Day: 40_000_000_000}}, func(l *LimitSettings) { l.Price = price }))
	r.work()
	k := r.chat(capped)
	job := r.take()
	resp := r.chat(capped).fails(http.StatusTooManyRequests, inference.CodeQuota)
	require.Equal(t, "3600", resp.Header.Get("Retry-After"))
	job.succeed(`{}`)
	k.response()
	c.quiet("settle 7 for 7")
}

func TestAReplayedAnswerTakesNothing(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{RequestsPerMinute: 1}), func(o *Options) {
		o.Idempotency = IdempotencyOptions{Keys: openJobs(t), Keep: time.Hour}
	})
	r.work()
	k := r.chat(capped, "Idempotency-Key", "once")
	r.take().succeed(`{"id":"1"}`)
	_, answer := k.whole()
	resp, again := r.chat(capped, "Idempotency-Key", "once").whole()
	require.Equal(t, answer, again)
	require.Equal(t, "true", resp.Header.Get("Idempotency-Replayed"))
	require.Empty(t, resp.Header.Get("x-ratelimit-remaining-requests"), "they would be those of then")
	c.quiet("settle 7")
}

// counts checks that the metrics have this line.
func (r *rig) counts(line string) {
	r.t.Helper()
	_, metrics := r.get("/metrics").whole()
	require.Contains(r.t, metrics, line+"\n")
}
