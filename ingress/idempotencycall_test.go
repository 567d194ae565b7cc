package ingress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

func TestEqualRequestsAtOnceAreOneCall(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, r *keyRig) {
		t.Helper()
		second := r.second()
		var calls []*call
		for range 10 {
			calls = append(calls, r.chat(plainRequest, idem, "k"), r.chatAt(second, plainRequest, idem, "k"))
		}
		k := r.take()
		for range calls {
			next(t, r.db.began) // every one has asked whose turn it is
		}
		k.succeed(`{"n":1}`)
		replayed := 0
		for _, c := range calls {
			resp, body := c.whole()
			require.Equal(t, `{"n":1}`, body)
			require.Equal(t, k.job.ID, resp.Header.Get("X-Sluice-Job-Id"))
			if resp.Header.Get("Idempotency-Replayed") != "" {
				replayed++
			}
		}
		require.Equal(t, len(calls)-1, replayed)
		r.quiet()
		r.free()
	})
}

func TestACallGoesOnWithoutItsClient(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, r *keyRig) {
		t.Helper()
		_, hangUp := r.dropped(plainRequest, idem, "k")
		k := r.take()
		hangUp()
		again := r.chat(plainRequest, idem, "k")
		next(t, r.db.began)
		next(t, r.db.began) // the second one's
		k.succeed(`{"n":1}`)
		resp, body := again.whole()
		require.Equal(t, `{"n":1}`, body)
		require.Equal(t, "true", resp.Header.Get("Idempotency-Replayed"))
		r.same(r.chat(plainRequest, idem, "k"), resp, body)
		require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome)
		r.quiet()
		r.free()
	})
}

// stream is a streamed answer in the script's hands, and what is kept of it.
type stream struct {
	*taken
	rec *queue.Recorder
	n   uint64
}

func (r *keyRig) takeStream() *stream {
	r.t.Helper()
	k := r.take()
	return &stream{taken: k, rec: r.conn.NewRecorder(k.job, k.run, 1)}
}

func (s *stream) chunk(text string) {
	s.rig.t.Helper()
	s.n++
	s.events(s.n, text)
	s.rec.Add([][]byte{[]byte(text)})
}

func (s *stream) close(err *inference.Error) {
	s.rig.t.Helper()
	end := &queue.End{JobID: s.job.ID, Run: s.run, LastSeq: s.n, Err: err, Usage: inference.Usage{CompletionTokens: 2, Known: true}}
	require.NoError(s.rig.t, s.rec.Finish(s.rig.t.Context(), end))
	s.end(end)
}

func TestAStreamGoesOnWithoutItsClient(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, r *keyRig) {
		t.Helper()
		second := r.second()
		c, hangUp := r.dropped(streamRequest, idem, "k")
		k := r.takeStream()
		head := c.response() // while the job still waits, so that it cannot tell everything
		k.chunk(`{"n":1}`)
		frames(t, head.Body, func(frame) bool { return true })
		hangUp()

		here, there := r.chat(streamRequest, idem, "k").response(), r.chatAt(second, streamRequest, idem, "k").response()
		for _, resp := range []*http.Response{here, there} {
			require.Equal(t, "true", resp.Header.Get("Idempotency-Replayed"))
			require.Equal(t, k.job.ID, resp.Header.Get("X-Sluice-Job-Id"))
			got := frames(t, resp.Body, func(frame) bool { return true })
			require.Equal(t, []frame{{"0-1-1", `{"n":1}`}}, got, "the stream is attached to while it goes on")
		}
		k.chunk(`{"n":2}`)
		k.close(nil)
		rest := []frame{{"0-1-2", `{"n":2}`}, {"0-1-3", "[DONE]"}}
		require.Equal(t, rest, frames(t, here.Body, nil))
		require.Equal(t, rest, frames(t, there.Body, nil))
		r.free()

		whole := r.chatAt(second, streamRequest, idem, "k").response()
		require.Equal(t, append([]frame{{"0-1-1", `{"n":1}`}}, rest...), frames(t, whole.Body, nil))
		require.Equal(t, "text/event-stream; charset=utf-8", whole.Header.Get("Content-Type"))
		require.Equal(t, "1", whole.Header.Get("X-Sluice-Attempts"), "what the first one was told at the end")
		require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome)
		r.quiet()
	})
}

func TestWhatIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	for name, c := range map[string]struct {
		err  *inference.Error
		kept bool
	}{
		"unavailable":       {&inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "x"}, false},
		"rate limited":      {&inference.Error{Code: inference.CodeUpstreamRateLimited, Message: "x", RetryAfter: time.Second}, false},
		"timeout":           {&inference.Error{Code: inference.CodeUpstreamTimeout, Message: "x"}, false},
		"refused upstream":  {&inference.Error{Code: inference.CodeUpstreamRejected, Status: 400, Message: "x", Body: []byte(`{"error":{"code":"no"}}`)}, true},
		"conflict upstream": {&inference.Error{Code: inference.CodeUpstreamRejected, Status: 409, Message: "x"}, false},
		"request timeout":   {&inference.Error{Code: inference.CodeUpstreamRejected, Status: 408, Message: "x"}, false},
	} {
		first := r.chat(plainRequest, idem, name[:3])
		k := r.take()
		k.end(&queue.End{Err: c.err})
		resp, body := first.whole()
		require.GreaterOrEqual(t, resp.StatusCode, 400, name)
		again := r.chat(plainRequest, idem, name[:3])
		if c.kept {
			r.same(again, resp, body)
			continue
		}
		r.take().succeed(`{}`)
		resp, _ = again.whole()
		require.Equal(t, http.StatusOK, resp.StatusCode, name)
		require.Empty(t, resp.Header.Get("Idempotency-Replayed"), name)
	}

	broken := r.chat(streamRequest, idem, "stream")
	k := r.takeStream()
	k.chunk(`{"n":1}`)
	k.close(&inference.Error{Code: inference.CodeUpstreamCut, Message: "Cut."})
	_, body := broken.whole()
	require.NotContains(t, body, "[DONE]")
	again := r.chat(streamRequest, idem, "stream")
	k = r.takeStream()
	k.close(nil)
	again.whole()

	r.chat(`{"messages":[]}`, idem, "corrected").fails(http.StatusBadRequest, inference.CodeInvalidRequest)
	corrected := r.chat(plainRequest, idem, "corrected")
	r.take().succeed(`{}`)
	resp, _ := corrected.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode, "a request that was refused has not used up its key")
	r.free()
}

func TestThoseWhoWaitGetWhatTheyWaitedFor(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	calls := []*call{r.chat(plainRequest, idem, "k"), r.chat(plainRequest, idem, "k")}
	k := r.take()
	next(t, r.db.began)
	next(t, r.db.began)
	r.awaited("k")
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "x"}})
	for _, c := range calls {
		c.fails(http.StatusServiceUnavailable, inference.CodeUpstreamUnavailable)
	}
	r.quiet()

	slow := r.chat(plainRequest, idem, "slow")
	k = r.take()
	r.chat(plainRequest, idem, "slow", "X-Sluice-Timeout", "50ms").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	k.succeed(`{"n":1}`)
	_, body := slow.whole()
	require.Equal(t, `{"n":1}`, body)
	r.free()
}

// awaited waits until a key's call is known here and every caller has asked once more.
func (r *keyRig) awaited(name string) {
	r.t.Helper()
	i := r.ingress.idempotency
	require.Eventually(r.t, func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.running[heldKey{"team", name}] != nil
	}, soon, time.Millisecond)
	for len(r.db.began) > 0 {
		<-r.db.began
	}
	select {
	case <-r.db.began: // one who had asked before the call was known here
	case <-time.After(2 * idemPollFirst):
	}
}

func TestAnAnswerTooLargeIsNotKept(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	large := strings.Repeat("x", store.MaxAnswerBytes+1)
	for range 2 {
		c := r.chat(plainRequest, idem, "k")
		r.take().succeed(large)
		resp, body := c.whole()
		require.Len(t, body, len(large))
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Empty(t, resp.Header.Get("Idempotency-Replayed"))
		r.free()
	}

	recorded := &tape{to: httptest.NewRecorder(), memory: share{of: &budget{most: 64 << 20}}}
	_, _ = io.WriteString(recorded, large)
	require.Zero(t, recorded.memory.bytes, "and not held in memory either")

	r.ingress.idempotency.tapes.most = 10
	full := r.chat(plainRequest, idem, "full")
	r.take().succeed(`{"answer":"longer than ten"}`)
	_, body := full.whole()
	require.Equal(t, `{"answer":"longer than ten"}`, body, "there is no memory to record it")
	r.free()
}

func TestWithoutItsDatabaseNothingIsDoneTwice(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, r *keyRig) {
		t.Helper()
		r.db.fail(errors.New("gone"))
		resp := r.chat(plainRequest, idem, "k").fails(http.StatusServiceUnavailable, inference.CodeNoIdempotency)
		require.Equal(t, "1", resp.Header.Get("Retry-After"))
		r.quiet()
		plain := r.chat(plainRequest)
		r.take().succeed(`{}`)
		plain.whole()

		r.db.fail(nil)
		first := r.chat(plainRequest, idem, "k")
		k := r.take()
		r.db.fail(errors.New("gone"))
		k.succeed(`{"n":1}`)
		resp, body := first.whole()
		require.Equal(t, `{"n":1}`, body, "an answer that is there is given")
		r.db.fail(nil)
		next(t, r.db.finished)
		r.same(r.chat(plainRequest, idem, "k"), resp, body)
		r.quiet()
		r.free()
	})
}

func TestWithoutADatabaseKeysAreRefused(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.chat(plainRequest, idem, "k").fails(http.StatusServiceUnavailable, inference.CodeNoIdempotency)
}

func TestTheKeyOfALostIngressIsTakenOver(t *testing.T) {
	t.Parallel()
	eachDatabase(t, func(t *testing.T, r *keyRig) {
		t.Helper()
		q := r.request(http.MethodPost, r.server.URL+"/v1/chat/completions", plainRequest)
		_, err := r.db.Store.BeginIdempotent(t.Context(), store.IdempotentRequest{
			Tenant: "team", KeyID: "key", Key: "k", Hash: sameness(q, []byte(plainRequest)), Owner: "lost",
		}, time.Now(), 700*time.Millisecond, time.Hour)
		require.NoError(t, err)
		c := r.chat(plainRequest, idem, "k")
		next(t, r.db.began)
		r.quiet() // it waits for the lost one
		k := r.take()
		k.succeed(`{"n":1}`)
		resp, body := c.whole()
		require.Equal(t, `{"n":1}`, body)
		require.Empty(t, resp.Header.Get("Idempotency-Replayed"))
		r.same(r.chat(plainRequest, idem, "k"), resp, body)
	})
}

func TestStopEndsCallsWithoutAClient(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	_, hangUp := r.dropped(plainRequest, idem, "k")
	k := r.take()
	hangUp()
	r.ingress.idempotency.stop()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	k.end(&queue.End{Err: errClientGone()})
	require.Equal(t, inference.OutcomeCancelled, r.row(k.job.ID).Outcome)
	r.free()
	r.chat(plainRequest, idem, "k").fails(http.StatusServiceUnavailable, inference.CodeNoIdempotency)
	other := r.chatAt(r.second(), plainRequest, idem, "k")
	r.take().succeed(`{}`)
	other.whole()
}

func TestAnyAnswerIsGivenOnce(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	calls := 0
	srv := r.serve(func(w http.ResponseWriter, q *http.Request) {
		calls++
		body, _ := io.ReadAll(q.Body)
		if http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)) != nil {
			body = []byte("the connection is not reached")
		}
		h := w.Header()
		h.Set("Location", "/v1/jobs/"+string(body))
		h.Set("Preference-Applied", "respond-async")
		h.Set("Content-Type", "application/json")
		h.Set("X-Other", "this connection's own")
		w.WriteHeader(http.StatusAccepted)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "{")
		_, _ = io.WriteString(w, "}")
	})
	for n := range 2 {
		resp, body := r.send(r.request(http.MethodPost, srv.URL+"/v1/x", "7", idem, "k", "Prefer", "respond-async")).whole()
		require.Equal(t, http.StatusAccepted, resp.StatusCode)
		require.Equal(t, "/v1/jobs/7", resp.Header.Get("Location"))
		require.Equal(t, "respond-async", resp.Header.Get("Preference-Applied"))
		require.Equal(t, n == 0, resp.Header.Get("X-Other") != "")
		require.Equal(t, "{}", body)
	}
	require.Equal(t, 1, calls)

	fails := r.serve(func(w http.ResponseWriter, _ *http.Request) {
		if calls++; calls == 2 {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, "half of it")
			panic("lost")
		}
	})
	r.send(r.request(http.MethodPost, fails.URL, "", idem, "panic")).fails(http.StatusInternalServerError, inference.CodeInternal)
	resp, body := r.send(r.request(http.MethodPost, fails.URL, "", idem, "panic")).whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Empty(t, body)
	require.Equal(t, 3, calls)
	r.free()
}

func TestAnAnswerIsStoredBeforeItIsSeen(t *testing.T) {
	t.Parallel()
	r := setupKeys(t, databases["sqlite"](t))
	c := r.chat(plainRequest, idem, "k")
	r.take().succeed(`{}`)
	c.response()
	require.NotEmpty(t, r.db.finished)
}

// keyClock runs a test with a real database in a bubble that has a clock of its own.
func keyClock(t *testing.T, test func(*testing.T, *tappedKeys, *idempotency)) {
	t.Helper()
	db := tap(databases["sqlite"](t))
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	synctest.Test(t, func(t *testing.T) {
		test(t, db, newIdempotency(IdempotencyOptions{Keys: db, Keep: time.Hour}, 10, 1<<20, NewMetrics(prometheus.NewRegistry()), discard()))
	})
}

func TestALeaseIsProlonged(t *testing.T) {
	t.Parallel()
	keyClock(t, func(t *testing.T, db *tappedKeys, i *idempotency) {
		t.Helper()
		request := store.IdempotentRequest{Tenant: "team", Key: "k", Owner: "first"}
		second := request
		second.Owner = "second"
		begin := func(q store.IdempotentRequest) store.IdempotentOutcome {
			state, err := i.begin(t.Context(), q)
			require.NoError(t, err)
			return state.Outcome
		}
		require.Equal(t, store.IdempotentNew, begin(request))
		ctx, cancel := context.WithCancel(t.Context())
		c := &keyedCall{request: request, cancel: cancel, done: make(chan struct{}), stored: make(chan struct{})}
		require.True(t, i.enter(c))
		time.Sleep(10 * time.Minute)
		require.Equal(t, store.IdempotentInFlight, begin(second))

		db.fail(errors.New("gone"))
		time.Sleep(9 * time.Second)
		db.fail(nil)
		time.Sleep(2 * time.Second)
		require.Equal(t, store.IdempotentInFlight, begin(second), "a database that was away for less than the lease changes nothing")

		i.leave(c)
		i.stop()
		require.NoError(t, ctx.Err(), "it was over before the stop")
		time.Sleep(idemLease)
		require.Equal(t, store.IdempotentNew, begin(second), "nobody prolongs it any more")
		cancel()
	})
}

func TestKeysAreForgotten(t *testing.T) {
	t.Parallel()
	keyClock(t, func(t *testing.T, db *tappedKeys, i *idempotency) {
		t.Helper()
		for n := range 3 {
			q := store.IdempotentRequest{Tenant: "team", Key: strings.Repeat("k", n+1), Owner: "o"}
			_, err := i.begin(t.Context(), q)
			require.NoError(t, err)
			require.NoError(t, db.FinishIdempotent(t.Context(), q.Tenant, q.Key, q.Owner, store.IdempotentAnswer{Status: 200}))
			time.Sleep(time.Minute)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { i.purge(ctx) })
		held := func() (n int) {
			for n := range 3 {
				_, err := i.opt.Keys.BeginIdempotent(t.Context(), store.IdempotentRequest{
					Tenant: "team", Key: strings.Repeat("k", n+1), Owner: "x", Hash: [32]byte{1},
				}, time.Time{}, time.Nanosecond, time.Nanosecond)
				if err == nil {
					return n
				}
				require.ErrorIs(t, err, store.ErrConflict)
			}
			return 3
		}
		time.Sleep(50 * time.Minute)
		require.Equal(t, 3, held())
		time.Sleep(2 * time.Hour)
		require.Zero(t, held())
		cancel()
		loop.Wait()
	})
}
