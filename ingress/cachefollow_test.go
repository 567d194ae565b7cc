package ingress

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// followers waits until so many requests wait for a leader.
func (r *rig) followers(n int64) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.ingress.cache.waiting.Load() == n }, soon, time.Millisecond)
}

func TestIdenticalRequestsMakeOneCall(t *testing.T) {
	t.Parallel()
	for name, leading := range map[string]string{"plain": plainRequest, "stream": streamRequest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, caching(coalescing))
			r.work()
			first := r.chat(leading)
			k := r.take()
			var rest []*call
			for range 3 {
				rest = append(rest, r.chat(plainRequest), r.chat(streamRequest))
			}
			r.followers(6)
			if k.job.Stream {
				k.streamed(helloChunks...)
			} else {
				k.succeed(wholeAnswer)
			}
			first.told(cacheMiss)
			for _, c := range rest {
				resp, body := c.whole()
				require.Equal(t, http.StatusOK, resp.StatusCode)
				require.Contains(t, body, "Hello")
				said := resp.Header.Get(cacheHeader) + resp.Trailer.Get(cacheHeader) // a stream that was kept open says it at its end
				require.Equal(t, cacheHit, said)
			}
			r.idle()
			r.rowsOf(cacheHit, 6)
		})
	}
}

// What was forgotten is not given to whoever asks later, also where the call that brings it
// is under way still.
func TestWhoComesAfterAPurgeFollowsNobodyFromBefore(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(coalescing))
	r.work()
	first := r.chat(plainRequest)
	before := r.take()
	early := r.chat(plainRequest)
	r.followers(1)
	_, err := r.ingress.cache.forget(t.Context(), store.CacheFilter{Model: "m"})
	require.NoError(t, err)
	second := r.chat(plainRequest)
	after := r.take()
	late := r.chat(plainRequest)
	r.followers(2)
	before.succeed(wholeAnswer)
	first.told(cacheMiss)
	early.told(cacheHit)
	r.followers(1)
	newer := strings.Replace(wholeAnswer, "Hello", "Good day", 1)
	after.succeed(newer)
	second.told(cacheMiss)
	_, body := late.told(cacheHit)
	require.Equal(t, newer, body)
	_, body = r.chat(plainRequest).told(cacheHit)
	require.Equal(t, newer, body)
	require.Empty(t, r.ingress.cache.leaders)
}

func TestALeadersClientMayGo(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(coalescing))
	r.work()
	first := r.chat(plainRequest)
	k := r.take()
	plain, stream := r.chat(plainRequest), r.chat(streamRequest)
	r.followers(2)
	first.cancel()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	k.end(&queue.End{Err: errClientGone()})
	k = r.take()
	r.followers(1)
	if k.job.Stream {
		k.streamed(helloChunks...)
	} else {
		k.succeed(wholeAnswer)
	}
	for _, c := range []*call{plain, stream} {
		resp, body := c.whole()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Contains(t, body, "Hel")
	}
	r.idle()
}

func TestALeadersFaultIsTheFollowersToo(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(coalescing))
	r.work()
	first := r.chat(plainRequest)
	k := r.take()
	second := r.chat(plainRequest)
	r.followers(1)
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamError, Message: "no", Retryable: true}})
	first.fails(http.StatusBadGateway, inference.CodeUpstreamError)
	second.fails(http.StatusBadGateway, inference.CodeUpstreamError)
	r.idle()
	r.row(k.job.ID)
	require.Len(t, r.allRows(), 1, "one call was made")
}

func TestAnAnswerThatCannotBeSharedHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(coalescing))
	r.work()
	first := r.chat(plainRequest)
	k := r.take()
	second, third := r.chat(plainRequest), r.chat(plainRequest)
	r.followers(2)
	k.succeed(`{"choices":[]}`)
	first.told(cacheMiss)
	a, b := r.take(), r.take() // both at once
	a.succeed(wholeAnswer)
	b.succeed(wholeAnswer)
	second.told(cacheMiss)
	third.told(cacheMiss)
}

func TestAFollowerHasItsOwnEnd(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(coalescing))
	r.work()
	first := r.chat(plainRequest)
	k := r.take()
	r.chat(plainRequest, "X-Sluice-Timeout", "50ms").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	gone := r.chat(plainRequest)
	r.followers(1)
	gone.cancel()
	r.followers(0)
	apart := r.chat(plainRequest, "Cache-Control", "no-store")
	r.take().succeed(wholeAnswer)
	apart.told(cacheBypass)
	k.succeed(wholeAnswer)
	first.told(cacheMiss)
	require.Empty(t, r.ingress.cache.leaders)
}

// What a request of its own is given at its deadline is given to one that waits for another's
// answer, too: also to a stream whose head is out.
func TestAFollowersDeadlineBringsAnAnswerFromBefore(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(sparing, coalescing))
	r.work()
	r.miss(plainRequest)
	r.grow()
	first := r.chat(plainRequest)
	k := r.take()
	require.Equal(t, "0", r.chat(plainRequest, "X-Sluice-Timeout", "100ms").stale().Header.Get("X-Sluice-Attempts"), "it made no call")
	open := r.chat(streamRequest, "X-Sluice-Timeout", "500ms")
	resp := open.response()
	require.Empty(t, resp.Header.Get(cacheHeader), "its head went out before that")
	open.resp <- resp
	open.stale()
	r.chat(plainRequest, "X-Sluice-Timeout", "50ms", "Cache-Control", "max-age=60").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	k.succeed(wholeAnswer)
	first.told(cacheMiss)
	r.idle()
	r.rowsOf(cacheStale, 2)
	require.Empty(t, r.ingress.cache.leaders)
}

// A stream that waits for another request is kept open, and says in trailers what its head
// could not, whatever comes of it.
func TestAStreamThatFollowsIsKeptOpen(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *rig, first *call, k *taken){
		"it is answered": func(_ *rig, _ *call, k *taken) { k.succeed(wholeAnswer) },
		"it leads": func(r *rig, first *call, k *taken) {
			first.cancel()
			require.Equal(r.t, k.job.ID, next(r.t, r.cancelled))
			k.end(&queue.End{Err: errClientGone()})
			r.take().streamed(helloChunks...)
		},
		"it fails": func(_ *rig, _ *call, k *taken) {
			k.end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamError, Message: "no", Retryable: true}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, caching(coalescing))
			r.work()
			first := r.chat(plainRequest)
			k := r.take()
			follower := r.chat(streamRequest)
			resp := follower.response() // its head is out
			require.Empty(t, resp.Header.Get(cacheHeader))
			end(r, first, k)
			got := frames(t, resp.Body, nil)
			last := got[len(got)-1].data
			switch name {
			case "it is answered":
				require.Equal(t, []string{cacheHit, openaiapi.Done}, []string{resp.Trailer.Get(cacheHeader), last})
				require.NotEmpty(t, resp.Trailer.Get(ageHeader))
			case "it leads":
				require.Equal(t, []string{cacheMiss, openaiapi.Done, "1"}, []string{resp.Trailer.Get(cacheHeader), last, resp.Trailer.Get("X-Sluice-Attempts")})
			default:
				require.Contains(t, last, inference.CodeUpstreamError)
				require.Len(t, got, 1)
			}
		})
	}
}

// Who waits for another's answer hears how it stands with its limits, whatever comes of it.
func TestAFollowerHearsHowItStands(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(coalescing), withLimits(newCounters(t), limits.Limits{RequestsPerMinute: 5}))
	r.work()
	told := func(resp *http.Response) {
		t.Helper()
		require.Equal(t, "5", resp.Header.Get("x-ratelimit-limit-requests"))
	}
	first := r.chat(plainRequest)
	k := r.take()
	told(r.chat(plainRequest, "X-Sluice-Timeout", "50ms").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded))
	plain, stream := r.chat(plainRequest), r.chat(streamRequest)
	told(stream.response()) // its head is out
	r.followers(2)
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamError, Message: "no", Retryable: true}})
	told(plain.fails(http.StatusBadGateway, inference.CodeUpstreamError))
	first.response()
}

// A leader that has to wait for limits of its own leads nobody meanwhile, and gets the answer
// of whom it led.
func TestAFollowerDoesNotWaitForItsLeadersLimit(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{"plain": plainRequest, "stream": streamRequest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setup(t, caching(coalescing), withLimits(c, limits.Limits{RequestsPerMinute: 1, OnLimit: limits.Queue}), withFreeKey)
			r.work()
			first := r.chat(strings.Replace(plainRequest, "hi", "something else", 1))
			r.take().succeed(wholeAnswer)
			first.response()
			require.Equal(t, "settle 7", <-c.ended)
			limited := r.chat(request) // it would wait for up to a minute
			r.waiting(1)
			free := r.chat(plainRequest, "Authorization", "Bearer a-free-key")
			r.take().succeed(wholeAnswer)
			free.told(cacheMiss)
			resp, body := limited.whole()
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Contains(t, body, "Hello")
			require.Equal(t, cacheHit, resp.Header.Get(cacheHeader)+resp.Trailer.Get(cacheHeader))
			r.idle()
			c.quiet("settle 7") // the first one's alone
			require.Empty(t, r.ingress.cache.yielded)
			require.Empty(t, r.ingress.cache.leaders)
		})
	}
}

// Requests that wait for the same limit make one call as well: whoever it lets in leads, and
// those whose turn comes meanwhile give back what they got, and follow.
func TestRequestsThatWaitForALimitMakeOneCall(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	c.window = 50 * time.Millisecond
	r := setup(t, caching(coalescing), withLimits(c, limits.Limits{RequestsPerMinute: 1, OnLimit: limits.Queue}))
	r.work()
	other := r.chat(strings.Replace(plainRequest, "hi", "something else", 1))
	r.take().succeed(wholeAnswer)
	other.response()
	all := []*call{r.chat(plainRequest), r.chat(streamRequest), r.chat(plainRequest)}
	k := r.take()
	r.followers(2)
	if k.job.Stream {
		k.streamed(helloChunks...)
	} else {
		k.succeed(wholeAnswer)
	}
	for _, c := range all {
		resp, body := c.whole()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Contains(t, body, "Hel")
	}
	r.idle()
	require.Empty(t, r.ingress.cache.yielded)
	require.Empty(t, r.ingress.cache.leaders)
}

// A yielded lead is nobody's burden: when its request gives up waiting, nothing is left of it.
func TestAYieldedLeadMayEnd(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(coalescing), withLimits(newCounters(t), limits.Limits{RequestsPerMinute: 1, OnLimit: limits.Queue}))
	r.work()
	first := r.chat(strings.Replace(plainRequest, "hi", "something else", 1))
	r.take().succeed(wholeAnswer)
	first.response()
	r.chat(plainRequest, "X-Sluice-Timeout", "50ms").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	require.Empty(t, r.ingress.cache.yielded)
	require.Empty(t, r.ingress.cache.leaders)
}

// withFreeKey adds a key of the same tenant that nothing limits.
func withFreeKey(o *Options) {
	o.Settings.StaticKeys = append(o.Settings.StaticKeys, store.Key{ID: "free", Tenant: "team", Hash: apikey.Hash("a-free-key")})
}
