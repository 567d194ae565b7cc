package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/store"
)

// caching turns the cache on for every request, and changes the rule.
func caching(change ...func(*cache.Rule)) func(*Options) {
	return func(o *Options) {
		rule := cache.Rule{Name: "all", Enabled: true, TTL: time.Hour}
		for _, c := range change {
			c(&rule)
		}
		o.Settings.Cache = cache.Policy{MemoryBytes: 1 << 20, DatabaseBytes: 1 << 20, MaxAnswer: 64 << 10, TTL: time.Hour, ByRequest: true, Rules: []cache.Rule{rule}}
	}
}

func coalescing(r *cache.Rule) { r.Coalesce = true }

// wholeAnswer is a completion with everything that a live one has.
const wholeAnswer = `{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m-served","choices":[{"index":0,` +
	`"message":{"role":"assistant","content":"Hello, world","refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
	`"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`

// told checks what an answer says of the cache, and returns its body.
func (c *call) told(result string) (*http.Response, string) {
	c.t.Helper()
	resp, body := c.whole()
	require.Equal(c.t, http.StatusOK, resp.StatusCode, body)
	require.Equal(c.t, result, resp.Header.Get(cacheHeader))
	if result == cacheHit || result == cacheStale {
		age, err := strconv.Atoi(resp.Header.Get(ageHeader))
		require.NoError(c.t, err)
		require.GreaterOrEqual(c.t, age, 0)
	} else {
		require.Empty(c.t, resp.Header.Get(ageHeader))
	}
	return resp, body
}

// miss makes a request that a provider answers.
func (r *rig) miss(body string, headers ...string) {
	r.t.Helper()
	c := r.chat(body, headers...)
	r.take().succeed(wholeAnswer)
	_, got := c.told(cacheMiss)
	require.Equal(r.t, wholeAnswer, got)
}

// rowsOf waits for rows of answers from the cache.
func (r *rig) rowsOf(result string, n int) []inference.Record {
	r.t.Helper()
	var found []inference.Record
	require.Eventually(r.t, func() bool {
		found = nil
		for _, rec := range r.allRows() {
			if rec.ModelServed == "m-served" && rec.Attempts == 0 && rec.Outcome == inference.OutcomeSucceeded {
				found = append(found, rec)
			}
		}
		return len(found) >= n
	}, soon, 5*time.Millisecond, "rows of %s", result)
	require.Len(r.t, found, n)
	return found
}

func (r *rig) idle() {
	r.t.Helper()
	select {
	case k := <-r.jobs:
		require.Fail(r.t, "a provider was asked", "job %s", k.job.ID)
	default:
	}
}

func TestAnAnswerIsGivenAgain(t *testing.T) {
	t.Parallel()
	r := setup(t, caching())
	r.work()
	r.miss(plainRequest)
	for _, same := range []string{plainRequest, ` {"user":"u","messages":[{"content":"h\u0069","role":"user"}], "model":"m", "metadata":{"a":"b"}}`} {
		resp, body := r.chat(same).told(cacheHit)
		require.Equal(t, wholeAnswer, body)
		require.Equal(t, "acme", resp.Header.Get("X-Sluice-Provider"))
		require.Equal(t, "0", resp.Header.Get("X-Sluice-Attempts"))
		require.Empty(t, resp.Header.Get(jobIDHeader), "there is no job")
	}
	r.idle()
	rows := r.rowsOf(cacheHit, 2)
	require.NotEqual(t, rows[0].JobID, rows[1].JobID)
	require.Equal(t, inference.Usage{Known: true}, rows[0].Usage, "no tokens are spent")
	require.Equal(t, []any{"acme", "m", "team", "key", 200}, []any{rows[0].Provider, rows[0].ModelAsked, rows[0].Tenant, rows[0].KeyID, rows[0].Status})

	r.miss(`{"model":"m","temperature":0.1,"messages":[{"role":"user","content":"hi"}]}`)
	r.miss(`{"model":"m-1","messages":[{"role":"user","content":"hi"}]}`)
	resp, _ := r.get("/metrics").whole()
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, int64(2), r.ingress.cache.metrics.hits.Load())
	require.Equal(t, int64(3), r.ingress.cache.metrics.misses.Load())
}

func TestACachedAnswerIsOfTheTenantOrTheKeyAlone(t *testing.T) {
	t.Parallel()
	keys := func(o *Options) {
		second := o.Settings.StaticKeys[0]
		second.ID, second.Hash = "second", apikey.Hash("second-key-of-team")
		o.Settings.StaticKeys = append(o.Settings.StaticKeys, second)
	}
	for name, perKey := range map[string]bool{"tenant": false, "key": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, keys, caching(func(c *cache.Rule) { c.PerKey = perKey }))
			r.work()
			body := strings.Replace(plainRequest, `"m"`, `"m-1"`, 1)
			r.miss(body)
			r.miss(body, "Authorization", "Bearer a-key-of-others")
			if perKey {
				r.miss(body, "Authorization", "Bearer second-key-of-team")
			} else {
				r.chat(body, "Authorization", "Bearer second-key-of-team").told(cacheHit)
			}
			r.chat(body).told(cacheHit)
			r.miss(plainRequest)
			r.chat(plainRequest, "Authorization", "Bearer a-key-of-others").fails(http.StatusForbidden, inference.CodeModelNotAllowed)
		})
	}
}

func TestWhatARequestSaysOfTheCache(t *testing.T) {
	t.Parallel()
	r := setup(t, caching())
	r.work()
	provided := func(result, directive string) {
		t.Helper()
		c := r.chat(plainRequest, "Cache-Control", directive)
		r.take().succeed(wholeAnswer)
		c.told(result)
	}
	resp := r.chat(plainRequest, "Cache-Control", "only-if-cached").fails(http.StatusGatewayTimeout, inference.CodeNotCached)
	require.Equal(t, cacheMiss, resp.Header.Get(cacheHeader))
	provided(cacheBypass, "no-store")
	r.chat(plainRequest, "Cache-Control", "only-if-cached").fails(http.StatusGatewayTimeout, inference.CodeNotCached)
	provided(cacheBypass, "no-cache")
	r.chat(plainRequest, "Cache-Control", "only-if-cached").told(cacheHit)
	r.chat(plainRequest, "Cache-Control", "max-age=nonsense, no-store=x").told(cacheHit)
	r.chat(plainRequest, "Cache-Control", "max-age=100").told(cacheHit)
	provided(cacheBypass, "no-store")
	provided(cacheMiss, "max-age=0")
	r.chat(plainRequest, "Cache-Control", "no-cache, only-if-cached").fails(http.StatusGatewayTimeout, inference.CodeNotCached)
	r.idle()
}

func TestTheCacheIsOffUnlessAskedFor(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(), func(o *Options) { o.Settings.Cache.Rules = nil })
	r.work()
	for range 2 {
		c := r.chat(plainRequest)
		r.take().succeed(wholeAnswer)
		c.told("")
	}
	r.miss(plainRequest, "Cache-Control", "max-age=60")
	c := r.chat(plainRequest)
	r.take().succeed(wholeAnswer)
	c.told("")
	r.chat(plainRequest, "Cache-Control", "max-age=60").told(cacheHit)
	r.chat(plainRequest, "Cache-Control", "only-if-cached").told(cacheHit)
}

func TestOnlyWholeAnswersAreKept(t *testing.T) {
	t.Parallel()
	r := setup(t, caching())
	r.work()
	for name, answer := range map[string]string{
		"cut": strings.Replace(wholeAnswer, `"stop"`, `"length"`, 1), "filtered": strings.Replace(wholeAnswer, `"stop"`, `"content_filter"`, 1),
		"unfinished": strings.Replace(wholeAnswer, `"stop"`, `null`, 1), "no choice": `{"choices":[]}`, "not JSON": `{"choices":`,
		"too large": strings.Replace(wholeAnswer, "world", strings.Repeat("x", 64<<10), 1),
	} {
		for range 2 {
			c := r.chat(plainRequest)
			r.take().succeed(answer)
			_, body := c.told(cacheMiss)
			require.Equal(t, answer, body, name)
		}
	}
	two := strings.Replace(plainRequest, "{", `{"n":2,`, 1)
	for range 2 {
		c := r.chat(two)
		r.take().succeed(wholeAnswer)
		c.told(cacheMiss)
	}
	bounded := strings.Replace(plainRequest, "{", `{"max_tokens":4,`, 1)
	c := r.chat(bounded)
	r.take().succeed(strings.Replace(wholeAnswer, `"stop"`, `"length"`, 1))
	c.told(cacheMiss)
	r.chat(bounded).told(cacheHit)
	c = r.chat(plainRequest)
	r.take().end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamError, Message: "no", Retryable: true}})
	require.Equal(t, cacheMiss, c.fails(http.StatusBadGateway, inference.CodeUpstreamError).Header.Get(cacheHeader))
	r.miss(plainRequest)
}

// streamed answers a stream with chunks.
func (k *taken) streamed(chunks ...string) {
	k.rig.t.Helper()
	k.events(1, chunks...)
	k.end(&queue.End{LastSeq: uint64(len(chunks)), Model: "m-served", Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}})
}

const chunkHead = `{"id":"c","object":"chat.completion.chunk","created":7,"model":"m-served","choices":[{"index":0,"delta":`

var helloChunks = []string{
	chunkHead + `{"role":"assistant","content":""},"finish_reason":null}]}`, chunkHead + `{"content":"Hel"},"finish_reason":null}]}`,
	chunkHead + `{"content":"lo"},"finish_reason":null}]}`, chunkHead + `{},"finish_reason":"stop"}]}`,
}

func TestAStreamAndAWholeAnswerStandForEachOther(t *testing.T) {
	t.Parallel()
	r := setup(t, caching())
	r.work()
	c := r.chat(streamRequest)
	r.take().streamed(helloChunks...)
	c.told(cacheMiss)
	_, body := r.chat(plainRequest).told(cacheHit)
	require.JSONEq(t, `{"id":"c","object":"chat.completion","created":7,"model":"m-served","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},
		"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":0},
		"completion_tokens_details":{"reasoning_tokens":0}}}`, body)

	for _, usage := range []bool{false, true} {
		asked := strings.Replace(streamRequest, "{", `{"stream_options":{"include_usage":`+strconv.FormatBool(usage)+`},`, 1)
		resp := r.chat(asked).response()
		require.Equal(t, cacheHit, resp.Header.Get(cacheHeader))
		require.Contains(t, resp.Header.Get("Content-Type"), eventStream)
		got := frames(t, resp.Body, nil)
		var text, finish string
		usages := 0
		for i, f := range got[:len(got)-1] {
			require.Equal(t, "0-1-"+strconv.Itoa(i+1), f.id)
			var chunk struct {
				ID      string
				Usage   *struct{ Total_tokens int } //nolint:revive // as the wire has it
				Choices []struct {
					Delta         struct{ Role, Content string }
					Finish_reason string //nolint:revive // as the wire has it
				}
			}
			require.NoError(t, json.Unmarshal([]byte(f.data), &chunk), f.data)
			require.Equal(t, "c", chunk.ID)
			if chunk.Usage != nil {
				usages++
				require.Empty(t, chunk.Choices)
				continue
			}
			require.Equal(t, i == 0, chunk.Choices[0].Delta.Role == "assistant")
			text += chunk.Choices[0].Delta.Content
			finish += chunk.Choices[0].Finish_reason
		}
		require.Equal(t, []string{"Hello", "stop", "[DONE]"}, []string{text, finish, got[len(got)-1].data})
		require.Equal(t, usage, usages == 1)
	}
	rows := r.rowsOf(cacheHit, 3)
	require.Positive(t, rows[2].FirstToken)
}

func TestAStreamThatIsCutIsNotKept(t *testing.T) {
	t.Parallel()
	r := setup(t, caching())
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, helloChunks...)
	k.end(&queue.End{LastSeq: 4, Err: &inference.Error{Code: inference.CodeUpstreamCut, Message: "cut"}})
	c.whole()
	c = r.chat(streamRequest)
	r.take().streamed(helloChunks[:3]...)
	c.told(cacheMiss)
	r.miss(plainRequest)
}

func TestAStandInWhenNobodyCanServe(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(func(c *cache.Rule) { c.TTL, c.StaleIfError = time.Nanosecond, time.Hour }))
	r.work()
	r.miss(plainRequest)
	down := &inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "down", Retryable: true}
	for name, request := range map[string]string{"plain": plainRequest, "stream": streamRequest} {
		c := r.chat(request)
		k := r.take()
		k.end(&queue.End{Err: down})
		resp, body := c.told(cacheStale)
		require.Equal(t, inference.OutcomeFailed, r.row(k.job.ID).Outcome, "the job has its own row")
		require.Contains(t, body, "Hello, world", name)
		require.Equal(t, "1", resp.Header.Get("X-Sluice-Attempts"), name)
	}
	rows := r.rowsOf(cacheStale, 2)
	for _, rec := range rows {
		require.Equal(t, rec, r.row(rec.JobID), "which no job has")
	}

	own := &inference.Error{Code: inference.CodeUpstreamRejected, Message: "no", Status: 400, Body: []byte(`{"error":{"message":"no","code":"upstream_rejected"}}`)}
	c := r.chat(plainRequest)
	r.take().end(&queue.End{Err: own})
	c.fails(http.StatusBadRequest, inference.CodeUpstreamRejected)
	c = r.chat(plainRequest, "Cache-Control", "no-cache")
	r.take().end(&queue.End{Err: down})
	c.fails(http.StatusServiceUnavailable, inference.CodeUpstreamUnavailable)
	c = r.chat(streamRequest)
	k := r.take()
	k.events(1, helloChunks[0])
	k.end(&queue.End{LastSeq: 1, Err: down})
	_, body := c.whole()
	require.NotContains(t, body, "Hello", "a stream that has begun")
	r.chat(plainRequest, "Cache-Control", "max-stale").told(cacheStale)
	r.idle()

	require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker01", Leaving: true}))
	require.Eventually(t, func() bool { return r.ingress.workers.states()["acme"].Workers == 0 }, soon, time.Millisecond)
	r.chat(plainRequest).told(cacheStale)
	r.idle()
}

func TestAnAnswerOfAnotherModelIsNotGiven(t *testing.T) {
	t.Parallel()
	policy := routing.Policy{Rules: []routing.Rule{{
		Name: "beta", When: routing.When{All: []routing.Match{{Headers: map[string]string{"X-Beta": "*"}}}},
		Targets: []routing.Target{{Provider: "acme", Model: "m-2", Weight: 1}},
	}}}
	r := setup(t, caching(), func(o *Options) { o.Settings.Policy = policy })
	r.work()
	r.miss(plainRequest)
	r.miss(plainRequest, "X-Beta", "1")
	r.chat(plainRequest).told(cacheHit)
	r.chat(plainRequest, "X-Beta", "2").told(cacheHit)
}

func TestAnswersAreSharedAndForgottenByAllIngresses(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	shared := func(o *Options) { o.Cache.Rows = db }
	r := setup(t, caching(), shared)
	r.work()
	other, srv := r.startIngress(caching(), shared)
	elsewhere := func() *call {
		return r.send(r.request(http.MethodPost, srv.URL+"/v1/chat/completions", plainRequest))
	}
	heard := func(by *Ingress) bool {
		known := by.cache.known.known.Load()
		return known != nil && known.Added() == 1
	}
	r.miss(plainRequest)
	require.Eventually(t, func() bool { return heard(other) }, soon, time.Millisecond)
	_, body := elsewhere().told(cacheHit)
	require.Equal(t, wholeAnswer, body)
	require.Equal(t, 1, other.cache.memory.EstimatedSize(), "it is in memory now")

	slow := r.chat(plainRequest, "Cache-Control", "no-cache") // its request comes before
	k := r.take()
	h := checked(t, r.ingress.AdminHandler(adminToken))
	require.JSONEq(t, `{"deleted":1}`, tell(t, h, http.MethodDelete, "/admin/v1/cache?model=m", "", nil).Body.String())
	k.succeed(wholeAnswer)
	slow.told(cacheBypass)
	require.Eventually(t, func() bool { return other.cache.memory.EstimatedSize() == 0 }, soon, time.Millisecond)
	c := elsewhere()
	r.take().succeed(wholeAnswer)
	c.told(cacheMiss)
	require.Eventually(t, func() bool { n, _, err := db.CacheSize(t.Context()); return err == nil && n == 1 && heard(r.ingress) }, soon, time.Millisecond)
	r.chat(plainRequest).told(cacheHit)
	var shown struct{ Database, Memory struct{ Entries int } }
	tell(t, h, http.MethodGet, "/admin/v1/cache", "", &shown)
	require.Equal(t, 1, shown.Memory.Entries)
}

func TestWhatIsPurgedIsSaid(t *testing.T) {
	t.Parallel()
	r := setup(t, caching())
	h := checked(t, r.ingress.AdminHandler(adminToken))
	for query, code := range map[string]int{
		"": 400, "?all=false": 400, "?all=true&model=m": 400, "?model=": 400, "?model=&tenant=t": 400, "?key=%00": 400, "?all=": 400, "?all=1&model=m": 400, "?modle=m": 400, "?model=a&model=b": 400, "?%zz": 400,
		"?all=true": 200, "?tenant=t&key=key": 200, "?tenant=t&key=k": 404,
	} {
		require.Equal(t, code, tell(t, h, http.MethodDelete, "/admin/v1/cache"+query, "", nil).Code, query)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodDelete, "/admin/v1/cache?all=true", http.NoBody))
	require.Equal(t, http.StatusUnauthorized, w.Code)
}

// deadRows is a database that does not answer.
type deadRows struct{ store.Cache }

var errDead = errors.New("down")

func (deadRows) Cached(context.Context, [32]byte, time.Time) (store.CachedAnswer, error) {
	return store.CachedAnswer{}, errDead
}

func (deadRows) CacheSize(context.Context) (answers, bytes int64, err error) { return 0, 0, errDead }

func (deadRows) CacheGeneration(context.Context) (int64, error) { return 0, errDead }

func (deadRows) CachePurges(context.Context, int64) ([]store.CachePurge, error) { return nil, errDead }
func (deadRows) PutCached(context.Context, []store.CachedAnswer) error          { return errDead }
func (deadRows) ExpireCached(context.Context, time.Time, int) (int, error)      { return 0, errDead }

func TestWithoutItsDatabaseTheCacheGoesOn(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(), func(o *Options) { o.Cache.Rows = deadRows{} })
	r.work()
	r.miss(plainRequest)
	r.chat(plainRequest).told(cacheHit)
}

func TestAnIdempotentRequestIsNotLookedUpAgain(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	r := setup(t, caching(), func(o *Options) { o.Idempotency = IdempotencyOptions{Keys: db, Keep: time.Hour} })
	r.work()
	r.miss(plainRequest)
	first, body := r.chat(plainRequest, idempotencyHeader, "k").told(cacheHit)
	require.Empty(t, first.Header.Get(replayedHeader))
	resp, again := r.chat(plainRequest, idempotencyHeader, "k").whole()
	require.Equal(t, []string{"true", body}, []string{resp.Header.Get(replayedHeader), again})
	require.Equal(t, cacheHit, resp.Header.Get(cacheHeader))
	require.Equal(t, first.Header.Get(ageHeader), resp.Header.Get(ageHeader))
	require.NotEmpty(t, resp.Header.Get(ageHeader))
	r.rowsOf(cacheHit, 1)
	require.Equal(t, int64(1), r.ingress.cache.metrics.hits.Load())
}

func TestAHitSaysHowItsCallerStands(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(), withLimits(newCounters(t), limits.Limits{RequestsPerMinute: 2}))
	r.work()
	left := func(resp *http.Response) []string {
		return []string{resp.Header.Get("x-ratelimit-limit-requests"), resp.Header.Get("x-ratelimit-remaining-requests")}
	}
	require.Equal(t, []string{"2", "2"}, left(r.chat(plainRequest, "Cache-Control", "only-if-cached").fails(http.StatusGatewayTimeout, inference.CodeNotCached)))
	r.miss(plainRequest)
	for range 3 {
		resp, _ := r.chat(plainRequest).told(cacheHit)
		require.Equal(t, []string{"2", "1"}, left(resp), "a hit takes nothing")
	}
}

// A request that no provider is to be asked for is none for a cache that is off either, and
// becomes no job.
func TestOnlyIfCachedAsksNobodyWithoutACache(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]func(*cache.Policy){
		"not by request": func(p *cache.Policy) { p.Rules, p.ByRequest = nil, false },
		"no room":        func(p *cache.Policy) { *p = cache.Policy{ByRequest: true} },
	} {
		r := setup(t, caching(), func(o *Options) { off(&o.Settings.Cache) }, withJobs(openJobs(t)), withLimits(newCounters(t), limits.Limits{RequestsPerMinute: 2}))
		r.work()
		for _, more := range [][]string{nil, {"Prefer", "respond-async"}} {
			resp := r.chat(plainRequest, append(more, "Cache-Control", "only-if-cached")...).fails(http.StatusGatewayTimeout, inference.CodeNotCached)
			require.Equal(t, []string{"", "2"}, []string{resp.Header.Get(cacheHeader), resp.Header.Get("x-ratelimit-remaining-requests")}, name)
		}
		r.idle()
	}
}

func TestOnlyIfCachedIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(), withJobs(openJobs(t)))
	r.work()
	only := []string{"Cache-Control", "only-if-cached", "Prefer", "respond-async"}
	r.chat(plainRequest, only...).fails(http.StatusGatewayTimeout, inference.CodeNotCached)
	r.miss(plainRequest)
	_, body := r.chat(plainRequest, only...).told(cacheHit)
	require.Equal(t, wholeAnswer, body)
	r.idle()
}
