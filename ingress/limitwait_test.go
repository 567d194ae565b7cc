package ingress

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
)

const cappedStream = `{"model":"m","max_tokens":30,"stream":true,"messages":[{"role":"user","content":"hi"}]}`

// oneAtATime lets one request of the key in, and has the next one wait.
func oneAtATime(c *counters) func(*Options) {
	return withLimits(c, limits.Limits{Concurrent: 1, OnLimit: limits.Queue})
}

// waiting waits until so many requests wait for a limit.
func (r *rig) waiting(n int64) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.ingress.limits.lines.count.Load() == n }, soon, time.Millisecond)
}

func TestAPlainRequestWaitsForItsLimit(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c))
	r.work()
	first := r.chat(capped)
	job := r.take()
	second := r.chat(capped)
	r.waiting(1)
	r.counts("sluice_limit_waiting 1")
	time.AfterFunc(50*time.Millisecond, func() { job.succeed(`{"id":"1"}`) })
	r.take().succeed(`{"id":"2"}`)
	resp, body := second.whole()
	require.JSONEq(t, `{"id":"2"}`, body)
	waited, err := strconv.Atoi(resp.Header.Get("X-Sluice-Queue-Ms"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, waited, 40, "the wait counts as one in the queue")
	first.response()
	r.counts("sluice_limit_waits_total 1")
	r.counts("sluice_limit_waiting 0")
	c.quiet("settle 7", "settle 7")
}

func TestAStreamIsKeptOpenWhileItWaitsForItsLimit(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c))
	r.work()
	first := r.chat(capped)
	job := r.take()
	resp := r.chat(cappedStream).response() // the head is out while it waits
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.True(t, strings.HasPrefix(resp.Header.Get("Content-Type"), eventStream))
	id := resp.Header.Get(jobIDHeader)
	require.NotEmpty(t, id)
	comment := make([]byte, len(": waiting\n\n"))
	_, err := io.ReadFull(resp.Body, comment)
	require.NoError(t, err)
	require.Equal(t, ": waiting\n\n", string(comment))
	r.waiting(1)
	job.succeed(`{}`)
	first.response()
	job = r.take()
	require.Equal(t, id, job.job.ID)
	job.events(1, `{"n":1}`)
	job.end(&queue.End{LastSeq: 1, Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}})
	got := frames(t, resp.Body, nil)
	require.Len(t, got, 2)
	require.Equal(t, []string{`{"n":1}`, "[DONE]"}, []string{got[0].data, got[1].data})
	require.Equal(t, "acme", resp.Trailer.Get("X-Sluice-Provider"))
	c.quiet("settle 7", "settle 7")
}

func TestWhoLeavesStopsWaiting(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"plain": capped, "stream": cappedStream} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setup(t, oneAtATime(c))
			r.work()
			first := r.chat(capped)
			job := r.take()
			second := r.chat(body)
			r.waiting(1)
			third := r.chat(capped)
			r.waiting(2)
			second.cancel()
			r.waiting(1)
			job.succeed(`{"id":"1"}`)
			r.take().succeed(`{"id":"3"}`)
			_, answer := third.whole()
			require.JSONEq(t, `{"id":"3"}`, answer)
			first.response()
			c.quiet("settle 7", "settle 7")
			require.Eventually(t, func() bool { return len(r.allRows()) == 2 && r.ingress.flights.count() == 0 }, soon, time.Millisecond, "who never got in has no row")
		})
	}
}

func TestTheDeadlineEndsTheWait(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c))
	r.work()
	first := r.chat(capped)
	job := r.take()
	r.chat(capped, "X-Sluice-Timeout", "100ms").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	resp := r.chat(cappedStream, "X-Sluice-Timeout", "300ms").response()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	got := frames(t, resp.Body, nil)
	require.Len(t, got, 1)
	require.Contains(t, got[0].data, string(inference.CodeDeadlineExceeded))
	r.waiting(0)
	job.succeed(`{}`)
	first.response()
	c.quiet("settle 7")
}

func TestQueuedBoundsThoseThatWait(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, withLimits(c, limits.Limits{Concurrent: 1, Queued: 1, OnLimit: limits.Queue}))
	r.work()
	first := r.chat(capped)
	job := r.take()
	job.holds()
	second := r.chat(capped)
	r.waiting(1)
	r.chat(capped).fails(http.StatusTooManyRequests, inference.CodeRateLimited)
	r.counts(`sluice_limited_total{limit="queued"} 1`)
	job.succeed(`{}`)
	r.take().succeed(`{}`)
	first.response()
	second.response()
	c.quiet("settle 7", "settle 7")
}

func TestAsManyWaitAsThereMayBeInFlight(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c), func(o *Options) { o.MaxInFlight = 1 })
	r.work()
	first := r.chat(capped)
	job := r.take()
	second := r.chat(capped)
	r.waiting(1)
	r.chat(capped).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	second.cancel()
	r.waiting(0)
	job.succeed(`{}`)
	first.response()
	c.quiet("settle 7")
}

func TestAStoppingIngressGoesOnWithThoseThatWait(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c))
	r.work()
	first := r.chat(capped)
	job := r.take()
	second := r.chat(capped)
	r.waiting(1)
	r.ingress.Drain()
	job.succeed(`{}`)
	r.take().succeed(`{"id":"2"}`)
	_, body := second.whole()
	require.JSONEq(t, `{"id":"2"}`, body)
	first.response()
	c.quiet("settle 7", "settle 7")
}

func TestCountersThatGoAwayEndTheWait(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setup(t, oneAtATime(c))
	r.work()
	first := r.chat(capped)
	job := r.take()
	second := r.chat(capped)
	r.waiting(1)
	c.goAway(true)
	second.fails(http.StatusServiceUnavailable, inference.CodeLimitsUnavailable)
	job.succeed(`{}`)
	first.response()
	c.quiet("settle 7")
}

// bubble is a limiting of its own, in which time goes by itself.
func bubble(t *testing.T) *limiting {
	t.Helper()
	return &limiting{
		by: newCounters(t), metrics: newLimitMetrics(prometheus.NewRegistry()), lines: limitLines{most: 100, byScope: make(map[string]*limitLine)},
	}
}

func asks(tokens int64, scopes ...limits.Scope) *limited {
	return &limited{settings: &LimitSettings{}, waits: true, demand: limits.Demand{Scopes: scopes, Tokens: tokens}, job: &inference.Job{}}
}

// enter reserves for the request, and waits if it has to.
func (l *limiting) enter(ctx context.Context, q *limited) (*hold, error) {
	h, err := l.reserve(ctx, q)
	if r, ok := err.(*limits.Refusal); ok { //nolint:errorlint // it comes as it is
		return l.await(ctx, q, r, time.Hour, func() error { return nil })
	}
	return h, err
}

func TestLinesGoByArrival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := bubble(t)
		scope := limits.Scope{ID: "model:m", Limits: limits.Limits{RequestsPerMinute: 2}}
		begun := time.Now()
		var mu sync.Mutex
		var in []string
		var all sync.WaitGroup
		for i := range 6 {
			own := limits.Scope{ID: fmt.Sprint("key:", i%2), Limits: limits.Limits{Concurrent: 100}}
			all.Go(func() {
				h, err := l.enter(t.Context(), asks(1, own, scope))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				in = append(in, fmt.Sprintf("%d after %s", i, time.Since(begun).Truncate(time.Minute)))
				mu.Unlock()
				h.keep()
			})
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		all.Wait()
		require.Equal(t, []string{"0 after 0s", "1 after 0s", "2 after 1m0s", "3 after 1m0s", "4 after 2m0s", "5 after 2m0s"}, in)
		require.Empty(t, l.lines.byScope)
		require.Zero(t, l.lines.count.Load())
	})
}

func TestNobodyPassesThoseThatWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := bubble(t)
		scope := limits.Scope{ID: "tenant:t", Limits: limits.Limits{TokensPerMinute: 100}}
		_, err := l.reserve(t.Context(), asks(60, scope))
		require.NoError(t, err)
		waited := make(chan error)
		go func() {
			_, err := l.enter(t.Context(), asks(50, scope))
			waited <- err
		}()
		synctest.Wait()
		var r *limits.Refusal
		_, err = l.reserve(t.Context(), asks(10, scope))
		require.ErrorAs(t, err, &r, "it would fit, but before an earlier one")
		require.EqualValues(t, 10, r.Asked)
		require.Equal(t, "tokens_per_minute", r.Limit)
		require.Positive(t, r.RetryAfter)
		_, err = l.reserve(t.Context(), asks(101, limits.Scope{ID: "key:k", Limits: limits.Limits{TokensPerMinute: 1000}}, scope))
		require.Equal(t, &limits.Refusal{Scope: "tenant:t", Limit: "tokens_per_minute", Most: 100, Asked: 101}, err, "it never will, and need not wait to hear that")
		require.NoError(t, <-waited)
		_, err = l.reserve(t.Context(), asks(10, scope))
		require.NoError(t, err, "nobody waits any more")
	})
}

func TestWhoWaitsForItsOwnLimitIsInNobodysWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := bubble(t)
		shared := limits.Scope{ID: "model:m", Limits: limits.Limits{RequestsPerMinute: 100}}
		key := func(id string) limits.Scope {
			return limits.Scope{ID: id, Limits: limits.Limits{Concurrent: 1}}
		}
		held, err := l.reserve(t.Context(), asks(1, key("key:a"), shared))
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		waited := make(chan error)
		go func() {
			_, err := l.enter(ctx, asks(1, key("key:a"), shared))
			waited <- err
		}()
		synctest.Wait()
		other, err := l.reserve(t.Context(), asks(1, key("key:b"), shared))
		require.NoError(t, err)
		other.release()
		cancel()
		require.ErrorIs(t, <-waited, context.Canceled)
		held.release()
	})
}

// A waiter that another scope refuses when its turn comes goes to that one's line, before
// those who came later.
func TestAWaiterKeepsItsPlaceInAnotherLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := bubble(t)
		one := func(id string) limits.Scope { return limits.Scope{ID: id, Limits: limits.Limits{Concurrent: 1}} }
		a, err := l.reserve(t.Context(), asks(1, one("a")))
		require.NoError(t, err)
		b, err := l.reserve(t.Context(), asks(1, one("b")))
		require.NoError(t, err)
		in := make(chan string, 2)
		enter := func(name string, scopes ...limits.Scope) {
			h, err := l.enter(t.Context(), asks(1, scopes...))
			if err != nil {
				t.Error(err)
			}
			in <- name
			h.release()
		}
		go enter("early", one("a"), one("b"))
		synctest.Wait()
		go enter("late", one("b"))
		synctest.Wait()
		a.release() // the early one is refused by b now, where the late one waits
		time.Sleep(10 * time.Second)
		require.Empty(t, in)
		b.release()
		require.Equal(t, "early", <-in)
		require.Equal(t, "late", <-in)
	})
}

// Who waits in another line does not pass an earlier one either, who has come to wait for
// a scope of both.
func TestAnEarlierWaiterOfAnyScopeGoesFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := bubble(t)
		one := func(id string) limits.Scope { return limits.Scope{ID: id, Limits: limits.Limits{Concurrent: 1}} }
		shared := limits.Scope{ID: "shared", Limits: limits.Limits{TokensPerMinute: 100}}
		_, err := l.reserve(t.Context(), asks(60, shared))
		require.NoError(t, err)
		a, err := l.reserve(t.Context(), asks(1, one("a")))
		require.NoError(t, err)
		c, err := l.reserve(t.Context(), asks(1, one("c")))
		require.NoError(t, err)
		in := make(chan string, 2)
		enter := func(name string, tokens int64, own limits.Scope) {
			if _, err := l.enter(t.Context(), asks(tokens, own, shared)); err != nil {
				t.Error(err)
			}
			in <- name
		}
		go enter("early", 50, one("a"))
		synctest.Wait()
		go enter("late", 10, one("c"))
		synctest.Wait()
		a.release() // the early one waits for the shared scope now
		time.Sleep(5 * time.Second)
		c.release() // and the late one would fit
		time.Sleep(5 * time.Second)
		require.Empty(t, in)
		require.Equal(t, "early", <-in)
		require.Equal(t, "late", <-in)
	})
}
