package ingress

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/store"
)

// breaker has the only worker say how its breaker stands.
func (r *rig) breaker(state string) {
	r.t.Helper()
	require.NoError(r.t, r.conn.Announce(queue.Presence{Worker: "worker01", Providers: []queue.ProviderPresence{
		{Name: "acme", MaxQueued: 4, Slots: 64, Rate: 0.2, States: []inference.ModelState{{Model: "m", Breaker: state}}},
	}}))
	require.Eventually(r.t, func() bool {
		return breakerIn(r.ingress.workers.states()["acme"].States, "m") == state
	}, soon, time.Millisecond)
}

// idles has the worker say until the answer is given that it makes no call for the job.
func (k *taken) idles() {
	k.rig.t.Helper()
	held := []queue.HeldJob{{JobID: k.job.ID, Run: k.run, Idle: true}}
	require.NoError(k.rig.t, k.rig.answer.Hold(held))
	f := k.rig.ingress.flights.find(k.job.ID)
	require.Eventually(k.rig.t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.idle(time.Now())
	}, soon, time.Millisecond)
}

// Whom nobody calls is as good as gone; who may find out is asked.
func TestWhereABreakerIsOpenAnAnswerFromBeforeIsGivenAtOnce(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(sparing))
	r.work()
	r.miss(plainRequest)
	r.grow()
	r.breaker(inference.BreakerOpen)
	for _, request := range []string{plainRequest, streamRequest} {
		resp := r.chat(request).stale()
		require.Equal(t, cacheStale, resp.Header.Get(cacheHeader))
	}
	r.idle()
	r.breaker(inference.BreakerHalfOpen)
	probe := r.chat(plainRequest)
	k := r.take()
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "down", Retryable: true}})
	probe.stale()
	probe = r.chat(plainRequest)
	r.take().succeed(wholeAnswer)
	probe.told(cacheMiss)
	r.breaker(inference.BreakerOpen)
	r.chat(plainRequest).told(cacheHit)
}

// A request that waits in a worker's hands when the breaker opens is given an answer from
// before, and the job goes with its worker's word.
func TestWhoIsNotCalledForGetsAnAnswerFromBefore(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{"plain": plainRequest, "stream": streamRequest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setup(t, withLimits(c, limits.Limits{Concurrent: 5}), caching(sparing), func(o *Options) { o.Timeout = 3 * soon })
			r.work()
			r.miss(plainRequest)
			r.grow()
			waits := r.chat(request)
			k := r.take()
			k.idles()
			r.breaker(inference.BreakerOpen)
			resp := waits.stale()
			require.Equal(t, "0", resp.Header.Get("X-Sluice-Attempts")+resp.Trailer.Get("X-Sluice-Attempts"))
			require.Equal(t, k.job.ID, next(t, r.cancelled))
			k.end(&queue.End{Err: errClientGone()})
			rec := r.row(k.job.ID)
			require.Equal(t, []any{inference.OutcomeFailed, inference.CodeUpstreamUnavailable}, []any{rec.Outcome, rec.ErrorCode})
			require.Equal(t, rec.RequestID, r.rowsOf(cacheStale, 1)[0].RequestID)
			require.Eventually(t, func() bool { return r.ingress.flights.count() == 0 }, soon, time.Millisecond)
		})
	}
}

// A call that began before the breaker opened may bring an answer yet.
func TestACallUnderWayIsWaitedFor(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(sparing))
	r.work()
	r.miss(plainRequest)
	r.grow()
	called := r.chat(plainRequest)
	k := r.take()
	require.NoError(t, r.answer.Hold([]queue.HeldJob{{JobID: k.job.ID, Run: k.run}}))
	r.breaker(inference.BreakerOpen)
	r.chat(plainRequest).stale()
	k.succeed(wholeAnswer)
	called.told(cacheMiss)
	require.Equal(t, http.StatusOK, r.row(k.job.ID).Status)
}

func TestAWaitForALimitEndsWhenNobodyIsCalled(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c), caching(sparing))
	r.work()
	r.miss(plainRequest)
	r.grow()
	r.chat(capped) // has the one place
	r.take()
	waits := r.chat(plainRequest)
	r.waiting(1)
	r.breaker(inference.BreakerOpen)
	waits.stale()
}

// Who takes stale answers gets no worse than who does not ask for them: the answer of any
// candidate is given, whether the request welcomes it or it is given for want of another.
func TestWhoTakesStaleAnswersGetsAnyCandidatesToo(t *testing.T) {
	t.Parallel()
	policy := routing.Policy{Rules: []routing.Rule{
		{
			Name: "second alone", When: routing.When{All: []routing.Match{{Headers: map[string]string{"X-Second": "*"}}}},
			Targets: []routing.Target{{Provider: "acme", Model: "m-2", Weight: 1}},
		},
		{
			Name: "both", Targets: []routing.Target{{Provider: "acme", Model: "m-1", Weight: 1}},
			Fallback: []routing.Fallback{{On: inference.ReasonUnavailable, Targets: []routing.Target{{Provider: "acme", Model: "m-2"}}}},
		},
	}}
	wishes := []string{"", "max-stale=5", "max-stale=60", "max-stale"}
	second := func(t *testing.T) *rig {
		t.Helper()
		r := setup(t, caching(sparing), func(o *Options) { o.Settings.Policy = policy })
		r.work()
		r.miss(plainRequest, "X-Second", "1")
		r.grow()
		return r
	}
	t.Run("at once", func(t *testing.T) {
		t.Parallel()
		r := second(t)
		r.noWorker()
		for _, wish := range wishes {
			r.chat(plainRequest, "Cache-Control", wish).stale()
			r.chat(streamRequest, "Cache-Control", wish).stale()
		}
	})
	t.Run("after a failure", func(t *testing.T) {
		t.Parallel()
		r := second(t)
		fails := func(wish string) *call {
			c := r.chat(plainRequest, "Cache-Control", wish)
			r.take().end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "down", Retryable: true}})
			return c
		}
		for _, wish := range wishes {
			fails(wish).stale()
		}
		fails("max-stale, max-age=60").fails(http.StatusServiceUnavailable, inference.CodeUpstreamUnavailable)
	})
	t.Run("while it waits", func(t *testing.T) {
		t.Parallel()
		r := second(t)
		var waits []*call
		for _, wish := range wishes {
			waits = append(waits, r.chat(plainRequest, "Cache-Control", wish))
			r.take()
		}
		r.noWorker()
		for _, c := range waits {
			c.stale()
		}
	})
}

// Whoever is drained has given answers before, and these are as good as ever.
func TestADrainedProvidersAnswersAreGiven(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(sparing, coalescing))
	r.work()
	r.miss(plainRequest)
	r.order("drain", "")
	r.chat(plainRequest).told(cacheHit)
	r.chat(plainRequest, "Cache-Control", "only-if-cached").told(cacheHit)
	refused := func(status int, code inference.ErrorCode, result string, headers ...string) {
		t.Helper()
		resp := r.chat(plainRequest, headers...).fails(status, code)
		require.Equal(t, result, resp.Header.Get(cacheHeader))
		require.Equal(t, code == inference.CodeProviderDraining, resp.Header.Get("Retry-After") == "60")
	}
	refused(http.StatusServiceUnavailable, inference.CodeProviderDraining, cacheBypass, "Cache-Control", "no-cache")

	r.grow()
	r.chat(plainRequest).stale()
	r.chat(streamRequest).stale()
	refused(http.StatusGatewayTimeout, inference.CodeNotCached, cacheMiss, "Cache-Control", "only-if-cached")
	refused(http.StatusServiceUnavailable, inference.CodeProviderDraining, cacheMiss, "Cache-Control", "max-age=5")
	_, err := r.ingress.cache.forget(t.Context(), store.CacheFilter{})
	require.NoError(t, err)
	refused(http.StatusServiceUnavailable, inference.CodeProviderDraining, cacheMiss)
	r.idle()
	require.Empty(t, r.ingress.cache.leaders)
	require.Zero(t, r.ingress.flights.bodies.held.Load())
}

// To name the provider changes nothing but who is asked.
func TestAModelAtANamedProviderIsTheSameModel(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(func(rule *cache.Rule) { rule.When = routing.When{All: []routing.Match{{Models: []string{"m"}}}} }), func(o *Options) {
		o.Settings.Policy.Aliases = map[string]string{"alias": "acme/m"}
	})
	r.work()
	named, alias := strings.Replace(plainRequest, `"m"`, `"acme/m"`, 1), strings.Replace(plainRequest, `"m"`, `"alias"`, 1)
	for _, purge := range []string{"m", "acme/m", "alias"} {
		r.miss(named)
		for _, same := range []string{plainRequest, named, alias} {
			r.chat(same).told(cacheHit)
		}
		n, err := r.ingress.cache.forget(t.Context(), store.CacheFilter{Model: r.ingress.counted(purge)})
		require.NoError(t, err)
		require.Equal(t, 1, n, purge)
	}
	c := r.chat(strings.Replace(plainRequest, `"m"`, `"m-2"`, 1))
	r.take().succeed(wholeAnswer)
	resp, _ := c.whole()
	require.Empty(t, resp.Header.Get(cacheHeader), "the rule is not for it")
}
