package ingress

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

// sparing keeps answers for a minute, and for an hour more where nobody can serve.
func sparing(r *cache.Rule) { r.TTL, r.StaleIfError = time.Minute, time.Hour }

// agedBy is how old an answer is that the tests want stale.
const agedBy = 90 * time.Second

// grow makes what is in memory as old as agedBy.
func (r *rig) grow() {
	r.t.Helper()
	memory := r.ingress.cache.memory
	n := 0
	for key, p := range memory.All() {
		older := *p.answer(key)
		older.CreatedAt, older.FreshUntil = older.CreatedAt.Add(-agedBy), older.FreshUntil.Add(-agedBy)
		memory.Set(key, pack(&older))
		n++
	}
	require.Positive(r.t, n)
}

// stale checks that the call got the answer from before, marked as such in the head or in
// trailers, and returns the response.
func (c *call) stale() *http.Response {
	c.t.Helper()
	resp := c.response()
	require.Equal(c.t, http.StatusOK, resp.StatusCode)
	marks, early := resp.Header, resp.Header.Get(cacheHeader) == ""
	var text strings.Builder
	if strings.HasPrefix(resp.Header.Get("Content-Type"), eventStream) {
		got := frames(c.t, resp.Body, nil)
		require.NotEmpty(c.t, got)
		require.Equal(c.t, openaiapi.Done, got[len(got)-1].data)
		for _, f := range got {
			text.WriteString(f.data)
		}
	} else {
		_, err := io.Copy(&text, resp.Body)
		require.NoError(c.t, err)
	}
	require.Equal(c.t, 1, strings.Count(text.String(), "Hello, world"), text.String())
	if early {
		marks = resp.Trailer
	}
	require.Equal(c.t, cacheStale, marks.Get(cacheHeader))
	age, err := strconv.Atoi(marks.Get(ageHeader))
	require.NoError(c.t, err)
	require.InDelta(c.t, agedBy.Seconds(), age, 30)
	require.GreaterOrEqual(c.t, age, int(agedBy.Seconds()))
	require.Equal(c.t, "acme", marks.Get("X-Sluice-Provider"))
	return resp
}

// noWorker has the only worker leave.
func (r *rig) noWorker() {
	r.t.Helper()
	require.NoError(r.t, r.conn.Announce(queue.Presence{Worker: "worker01", Leaving: true}))
	require.Eventually(r.t, func() bool { return r.ingress.workers.states()["acme"].Workers == 0 }, soon, time.Millisecond)
}

func TestAnAnswerNeedsNoCounters(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{RequestsPerMinute: 2}), caching(sparing))
	r.work()
	r.miss(plainRequest)
	c.goAway(true)
	r.chat(plainRequest).told(cacheHit)
	require.Zero(t, c.tried, "nobody asked for counters")

	r.grow()
	for _, request := range []string{plainRequest, streamRequest} {
		resp := r.chat(request).stale()
		require.Equal(t, "0", resp.Header.Get("X-Sluice-Attempts"))
	}
	require.Equal(t, 2, c.tried)
	for _, rec := range r.rowsOf(cacheStale, 3) { // the hit is one of them
		require.Equal(t, rec, r.row(rec.JobID))
	}
	require.EqualValues(t, 2, r.ingress.cache.metrics.stale.Load())
	r.chat(plainRequest, "Cache-Control", "no-cache").fails(http.StatusServiceUnavailable, inference.CodeLimitsUnavailable)
	r.chat(capped).fails(http.StatusServiceUnavailable, inference.CodeLimitsUnavailable)

	c.goAway(false)
	second := r.chat(plainRequest, "Cache-Control", "no-store")
	r.take().succeed(wholeAnswer)
	second.told(cacheBypass)
	r.chat(plainRequest).fails(http.StatusTooManyRequests, inference.CodeRateLimited)
	r.idle()
}

// The deadline of a request that waited for its limit is the limit's word, too.
func TestARefusalByLimitsIsNoReasonForAStandIn(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c), caching(sparing))
	r.work()
	r.miss(plainRequest)
	r.grow()
	r.chat(capped)
	r.take()
	r.chat(plainRequest, "X-Sluice-Timeout", "100ms").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	r.rowsOf(cacheStale, 0)
}

// A request that waits while its last worker goes is given an answer from before, and
// nothing of its job counts any more.
func TestWhoIsForsakenGetsAnAnswerFromBefore(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{"plain": plainRequest, "stream": streamRequest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setup(t, withLimits(c, limits.Limits{Concurrent: 5}), caching(sparing))
			r.work()
			r.miss(plainRequest)
			r.grow()
			waits := r.chat(request)
			k := r.take() // which its worker takes out of the queue, and then says nothing
			r.noWorker()
			waits.stale()
			require.Equal(t, k.job.ID, next(t, r.cancelled))
			rec := r.row(k.job.ID)
			require.Equal(t, []any{inference.OutcomeFailed, inference.CodeWorkerLost, 1}, []any{rec.Outcome, rec.ErrorCode, rec.Attempts}, "it may have been called")
			given := r.rowsOf(cacheStale, 1)[0]
			require.Equal(t, []any{inference.CacheUse(cacheStale), rec.RequestID}, []any{given.Cache, given.RequestID})
			require.NotEqual(t, given.JobID, rec.JobID)
			require.Eventually(t, func() bool { return r.ingress.flights.count() == 0 }, soon, time.Millisecond)
			judged := r.ingress.flights.Claimed(queue.Claim{JobID: k.job.ID, Run: k.run, Worker: "worker01"})
			require.Equal(t, queue.VerdictDrop, judged.Verdict)
			k.succeed(wholeAnswer) // too late, and settled all the same
			r.row(k.job.ID)
			require.Len(t, r.allRows(), 3)
			c.quiet("settle 7", "settle 1")
		})
	}
}

// Those who wait for a request that is forsaken are so themselves.
func TestFollowersAreForsakenWithTheirLeader(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(sparing, coalescing))
	r.work()
	r.miss(plainRequest)
	r.grow()
	first := r.chat(plainRequest)
	k := r.take()
	plain, stream := r.chat(plainRequest), r.chat(streamRequest)
	r.followers(2)
	r.noWorker()
	for _, c := range []*call{first, plain, stream} {
		c.stale()
	}
	r.rowsOf(cacheStale, 3)
	require.Equal(t, inference.CodeWorkerLost, r.row(k.job.ID).ErrorCode)
	r.idle()
}

func TestWhoIsForsakenWithoutAnAnswerWaitsOn(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(sparing))
	r.work()
	waits := r.chat(plainRequest)
	k := r.take()
	r.noWorker()
	f := r.ingress.flights.find(k.job.ID)
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !f.toldAt.IsZero() && len(f.forsaken) == 0
	}, soon, time.Millisecond, "its handler has been told")
	require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker01", Providers: []queue.ProviderPresence{{Name: "acme", MaxQueued: 4}}}))
	k.succeed(wholeAnswer)
	waits.told(cacheMiss)
	require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome)
}

func TestTheQueueGoesWhileARequestWaits(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(sparing), func(o *Options) { o.Timeout = 3 * soon }) // the deadline is far
	r.work()
	r.miss(plainRequest)
	r.grow()
	plain, stream := r.chat(plainRequest), r.chat(streamRequest)
	r.take()
	r.take()
	r.embedded.Close()
	plain.stale()
	stream.stale()
}

// Who waits for a limit is as good as in the queue.
func TestAWaitForALimitEndsWhenNobodyIsLeft(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{"plain": plainRequest, "stream": streamRequest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setup(t, oneAtATime(c), caching(sparing))
			r.work()
			r.miss(plainRequest)
			r.grow()
			r.chat(capped) // has the one place
			r.take()
			waits := r.chat(request)
			r.waiting(1)
			r.noWorker()
			resp := waits.stale()
			r.rowsOf(cacheStale, 1)
			if strings.HasPrefix(resp.Header.Get("Content-Type"), eventStream) {
				require.Equal(t, "0", resp.Header.Get("X-Sluice-Attempts")+resp.Trailer.Get("X-Sluice-Attempts"))
			}
			r.waiting(0)
		})
	}
}

// As long as nothing of a stream is out but its head, an answer from before may follow, and
// trailers say what it is.
func TestAStandInForAStreamThatIsOpen(t *testing.T) {
	t.Parallel()
	down := &inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "down", Retryable: true}
	t.Run("its job fails", func(t *testing.T) {
		t.Parallel()
		r := setup(t, caching(sparing))
		r.work()
		r.miss(plainRequest)
		r.grow()
		open := r.chat(streamRequest)
		k := r.take()
		resp := open.response()
		require.Empty(t, resp.Header.Get(cacheHeader), "nothing is known yet")
		k.end(&queue.End{Err: down})
		open.resp <- resp
		open.stale()
		require.Equal(t, "1", resp.Trailer.Get("X-Sluice-Attempts"))
		require.Equal(t, inference.OutcomeFailed, r.row(k.job.ID).Outcome)
		r.rowsOf(cacheStale, 1)
	})
	t.Run("it has begun", func(t *testing.T) {
		t.Parallel()
		r := setup(t, caching(sparing))
		r.work()
		r.miss(plainRequest)
		r.grow()
		open := r.chat(streamRequest)
		k := r.take()
		resp := open.response()
		k.events(1, helloChunks[0])
		k.end(&queue.End{LastSeq: 1, Err: down})
		got := frames(t, resp.Body, nil)
		require.Len(t, got, 2)
		require.Contains(t, got[1].data, inference.CodeUpstreamUnavailable)
		require.Equal(t, cacheMiss, resp.Trailer.Get(cacheHeader))
		require.Empty(t, resp.Trailer.Get(ageHeader))
	})
	t.Run("it succeeds", func(t *testing.T) {
		t.Parallel()
		r := setup(t, caching(sparing))
		r.work()
		open := r.chat(streamRequest)
		k := r.take()
		resp := open.response()
		k.streamed(helloChunks...)
		got := frames(t, resp.Body, nil)
		require.Equal(t, openaiapi.Done, got[len(got)-1].data)
		require.Equal(t, []string{cacheMiss, "", "1"}, []string{resp.Trailer.Get(cacheHeader), resp.Trailer.Get(ageHeader), resp.Trailer.Get("X-Sluice-Attempts")})
	})
	t.Run("whom it followed fails", func(t *testing.T) {
		t.Parallel()
		r := setup(t, caching(sparing, coalescing))
		r.work()
		r.miss(plainRequest)
		r.grow()
		first := r.chat(plainRequest)
		k := r.take()
		open := r.chat(streamRequest)
		resp := open.response()
		k.end(&queue.End{Err: down})
		first.stale()
		open.resp <- resp
		open.stale()
		require.Equal(t, "0", resp.Trailer.Get("X-Sluice-Attempts"), "it made no call")
	})
	t.Run("its limits cannot be asked any more", func(t *testing.T) {
		t.Parallel()
		c := newCounters(t)
		r := setup(t, oneAtATime(c), caching(sparing))
		r.work()
		r.miss(plainRequest)
		r.grow()
		r.chat(capped)
		r.take()
		open := r.chat(streamRequest)
		resp := open.response()
		c.goAway(true)
		open.resp <- resp
		open.stale()
	})
}

func TestIsForsaken(t *testing.T) {
	t.Parallel()
	const a, b = "a", "b"
	serving := func(text string) queue.Presence {
		p, breaker, _ := strings.Cut(text, " ")
		pp := queue.ProviderPresence{Name: p}
		if breaker != "" {
			pp.States = []inference.ModelState{{Model: "m", Breaker: breaker}}
		}
		return queue.Presence{Worker: p, Providers: []queue.ProviderPresence{pp}}
	}
	held := func(f *flight) *flight { f.held, f.heardAt = true, t0; return f }
	for name, c := range map[string]struct {
		alive  []string
		change func(f *flight)
		cut    bool // the queue is out of reach
		want   bool
	}{
		"nobody is left":              {nil, func(*flight) {}, false, true},
		"nobody is in sight":          {nil, func(*flight) {}, true, true},
		"its own worker is there":     {[]string{a}, func(*flight) {}, false, false},
		"another may take it":         {[]string{b}, func(*flight) {}, false, false},
		"the other may not":           {[]string{b}, func(f *flight) { f.candidates[1].On = inference.ReasonContentRefused }, false, true},
		"the other was tried":         {[]string{b}, func(f *flight) { f.candidates = f.candidates[:1] }, false, true},
		"it has just come":            {nil, func(f *flight) { f.place.firstSent = t0.Add(-time.Second) }, false, false},
		"it has just been passed on":  {nil, func(f *flight) { f.heardAt = t0.Add(-time.Second) }, false, false},
		"a worker has it":             {nil, func(f *flight) { f.held, f.heardAt = true, t0.Add(-2500*time.Millisecond) }, false, false},
		"its worker is gone":          {nil, func(f *flight) { f.held, f.heardAt = true, t0.Add(-time.Minute) }, false, true},
		"its worker is out of sight":  {nil, func(f *flight) { f.held, f.heardAt = true, t0.Add(-time.Minute) }, true, false},
		"its answer has begun":        {nil, func(f *flight) { f.begun = true }, false, false},
		"it has ended":                {nil, func(f *flight) { f.ended = true }, false, false},
		"nobody waits any more":       {nil, func(f *flight) { f.closing = t0 }, false, false},
		"its client is away":          {nil, func(f *flight) { f.clientGone = true }, false, false},
		"the server has not said yes": {nil, func(f *flight) { f.place.seq = 0 }, false, true},
		"nobody is called":            {[]string{a + " open", b + " open"}, func(*flight) {}, false, true},
		"only the other is called":    {[]string{a + " open", b}, func(*flight) {}, false, false},
		"but it may not take it":      {[]string{a + " open", b}, func(f *flight) { f.candidates = f.candidates[:1] }, false, true},
		"a call may find out":         {[]string{a + " half_open", b + " open"}, func(*flight) {}, false, false},
		"its call is under way":       {[]string{a + " open", b + " open"}, func(f *flight) { held(f) }, false, false},
		"its call is not made":        {[]string{a + " open", b + " open"}, func(f *flight) { held(f).idleSince = t0 }, false, true},
		"that is not known any more":  {[]string{a + " open", b + " open"}, func(f *flight) { held(f).idleSince = t0 }, true, false},
		"others' calls find out":      {[]string{a + " half_open", b + " open"}, func(f *flight) { held(f).idleSince = t0.Add(-time.Second) }, false, false},
		"others' calls hang":          {[]string{a + " half_open", b + " open"}, func(f *flight) { held(f).idleSince = t0.Add(-time.Minute) }, false, true},
		"it may go elsewhere":         {[]string{a + " half_open", b}, func(f *flight) { held(f).idleSince = t0.Add(-time.Minute) }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDirectory(map[string]ProviderInfo{a: {Models: []string{"m"}}, b: {Models: []string{"m"}}}, routing.Policy{}, func() {})
			for _, p := range c.alive {
				d.heard(serving(p))
			}
			f := newTestFlight()
			f.candidates = slices.Clone([]inference.Candidate{{Provider: a, Model: "m"}, {Provider: b, Model: "m"}})
			f.place = place{seq: 1, known: true, sent: t0.Add(-time.Millisecond), firstSent: t0.Add(-time.Minute)}
			c.change(f)
			require.Equal(t, c.want, f.isForsaken(t0, t0.Add(-time.Hour), !c.cut, d))
		})
	}
}
