package ingress

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/routing"
	"sluice/store"
)

// newLevels returns a cache with the policy, over the database if there is one.
func newLevels(t testing.TB, rows store.Cache, p *cache.Policy) *answerCache {
	t.Helper()
	return newAnswerCache(CacheOptions{Rows: rows}, nil, func() *cache.Policy { return p }, NewMetrics(prometheus.NewRegistry()), discard())
}

func keptAnswer(n byte, size int) *store.CachedAnswer {
	now := store.CleanTime(time.Now())
	return &store.CachedAnswer{
		Key: [32]byte{n}, Kind: "chat", Tenant: "t", KeyID: "k", Model: "m", Provider: "p", Body: []byte(strings.Repeat("x", size)),
		CreatedAt: now, FreshUntil: now.Add(time.Hour), StaleUntil: now.Add(time.Hour),
	}
}

func always(*store.CachedAnswer) bool { return true }

func TestMemoryIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	p := &cache.Policy{MemoryBytes: 64 << 10}
	a := newLevels(t, nil, p)
	for n := range byte(200) {
		a.keep(keptAnswer(n, 1<<10))
	}
	a.memory.CleanUp()
	require.LessOrEqual(t, a.memory.WeightedSize(), uint64(64<<10))
	require.Positive(t, a.memory.EstimatedSize())
	a.keep(keptAnswer(201, 65<<10))
	require.Nil(t, a.remembered([32]byte{201}), "larger than all there is")
	p.MemoryBytes = 0
	a.fitMemory()
	require.Zero(t, a.memory.EstimatedSize())
	a.keep(keptAnswer(202, 10))
	require.Nil(t, a.remembered([32]byte{202}))
}

func TestTheDatabaseIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	a := newLevels(t, db, &cache.Policy{MemoryBytes: 1 << 20, DatabaseBytes: 32 << 10})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.run(ctx) }()
	defer func() { cancel(); <-done }()
	for n := range byte(100) {
		a.keep(keptAnswer(n, 1<<10))
	}
	require.Eventually(t, func() bool {
		n, bytes, err := db.CacheSize(t.Context())
		return err == nil && n > 0 && bytes <= 32<<10 && a.puts.held() == 0 && a.metrics.rows.Load().bytes == bytes
	}, soon, 5*time.Millisecond)
	require.Nil(t, a.find(t.Context(), [32]byte{222}, always))
	a.memory.InvalidateAll()
	require.NotNil(t, a.find(t.Context(), [32]byte{99}, always), "the newest stays")
}

func TestAnswersOnTheirWayAreBounded(t *testing.T) {
	t.Parallel()
	a := newLevels(t, openJobs(t), &cache.Policy{DatabaseBytes: 1 << 40})
	for range cachePuts + 7 {
		a.keep(keptAnswer(1, 10))
	}
	require.Len(t, a.puts.waiting, cachePuts)
	one := keptAnswer(1, 10)
	require.Equal(t, cachePuts*one.Size(), a.puts.held(), "what is dropped holds nothing")

	large := &store.CachedAnswer{Body: make([]byte, cachePutBytes/2)}
	var l putLine
	join := func(v *store.CachedAnswer) bool { return l.join(v, pack(v)) }
	require.Equal(t, []bool{true, false}, []bool{join(large), join(large)})
	require.Len(t, l.next(), 1)
	require.Empty(t, l.next())
	require.False(t, join(large), "it is being written")
	l.done(large.Size())
	require.True(t, join(large))
	for range cachePutAtOnce/(1<<20) + 1 {
		join(keptAnswer(1, 1<<20))
	}
	require.Len(t, l.next(), 1, "it is as large as one write may be")
	require.Len(t, l.next(), cachePutAtOnce/(1<<20))
	require.Len(t, l.next(), 1)
}

// held is how many bytes are on their way.
func (l *putLine) held() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// slowRows is a database that takes a while for each write.
type slowRows struct {
	store.Cache
	takes time.Duration
	busy  atomic.Int64 // nanoseconds
}

func (s *slowRows) PutCached(context.Context, []store.CachedAnswer) error {
	time.Sleep(s.takes)
	s.busy.Add(int64(s.takes))
	return nil
}

// However many answers come, writing them takes a twentieth of the time; and of a database that
// is very slow it takes what it can.
func TestWritingAnswersTakesAPartOfTheTime(t *testing.T) {
	t.Parallel()
	for takes, most := range map[time.Duration]time.Duration{time.Millisecond: 100 * time.Millisecond, 50 * time.Millisecond: 500 * time.Millisecond, 4 * time.Second: 9 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			rows := &slowRows{takes: takes}
			a := newLevels(t, rows, &cache.Policy{DatabaseBytes: 1 << 40})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			done := make(chan struct{})
			go func() { defer close(done); a.write(ctx) }()
			for ctx.Err() == nil {
				a.keep(keptAnswer(1, 10))
				time.Sleep(time.Millisecond)
			}
			busy := time.Duration(rows.busy.Load())
			require.LessOrEqual(t, busy, most+takes)
			require.GreaterOrEqual(t, busy, most*8/10)
			<-done
			if takes < time.Second {
				require.Zero(t, a.puts.held(), "the rest is written at the end")
			}
		})
	}
}

// hungRows is a database that does not answer, and says so in words of its own.
type hungRows struct {
	store.Cache
	asked atomic.Int64
}

func (h *hungRows) Cached(ctx context.Context, _ [32]byte, _ time.Time) (store.CachedAnswer, error) {
	h.asked.Add(1)
	<-ctx.Done()
	return store.CachedAnswer{}, fmt.Errorf("canceling statement: %w", ctx.Err())
}

// That a request ends while the database is asked for it says nothing of the database: the
// others go on asking.
func TestARequestsEndIsNoFailureOfTheDatabase(t *testing.T) {
	t.Parallel()
	ends := map[string]func(context.Context) (context.Context, context.CancelFunc){
		"its deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Millisecond)
		},
		"just before": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, cacheReadFor-time.Nanosecond)
		},
		"its client": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Millisecond, cancel)
			return ctx, cancel
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rows := new(hungRows)
				reg := prometheus.NewRegistry()
				policy := func() *cache.Policy { return &cache.Policy{DatabaseBytes: 1 << 20} }
				a := newAnswerCache(CacheOptions{Rows: rows}, nil, policy, NewMetrics(reg), discard())
				for n := range int64(2) {
					ctx, cancel := end(t.Context())
					require.Nil(t, a.find(ctx, cache.Key{1}, always))
					cancel()
					require.Equal(t, n+1, rows.asked.Load())
				}
				require.Zero(t, readFailures(t, reg))

				require.Nil(t, a.find(t.Context(), cache.Key{1}, always))
				require.EqualValues(t, 1, readFailures(t, reg), "it took longer than it may")
				require.Nil(t, a.find(t.Context(), cache.Key{1}, always))
				require.EqualValues(t, 3, rows.asked.Load(), "it is left alone for a while")
				time.Sleep(cacheDownFor)
				require.Nil(t, a.find(t.Context(), cache.Key{1}, always))
				require.EqualValues(t, 4, rows.asked.Load())
			})
		})
	}
}

// readFailures is how many look-ups count as failed.
func readFailures(t *testing.T, from prometheus.Gatherer) (n float64) {
	t.Helper()
	families, err := from.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() != "sluice_cache_failures_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			n += m.GetCounter().GetValue()
		}
	}
	return n
}

func TestPurgesAreKnownUpToABound(t *testing.T) {
	t.Parallel()
	var l purgeLog
	l.begin(5)
	old, other := keptAnswer(1, 1), keptAnswer(2, 1)
	old.Generation, other.Model = 5, "n"
	require.False(t, l.forget(old))
	l.add([]store.CachePurge{{Generation: 6, Filter: store.CacheFilter{Model: "n"}}})
	require.False(t, l.forget(old))
	require.True(t, l.forget(other))
	require.Equal(t, int64(6), l.generation())
	for n := range int64(purgesKnown) {
		l.add([]store.CachePurge{{Generation: 7 + n, Filter: store.CacheFilter{Model: "x"}}})
	}
	require.Len(t, l.recent, purgesKnown)
	require.True(t, l.forget(old), "it is from before what is known")
	other.Generation = l.generation()
	require.False(t, l.forget(other))
}

// A purge that comes between the look into the database and the memory is not lost.
func TestAnAnswerThatWasReadBeforeThePurgeDoesNotStay(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	p := &cache.Policy{MemoryBytes: 1 << 20, DatabaseBytes: 1 << 20}
	a := newLevels(t, db, p)
	require.NoError(t, db.PutCached(t.Context(), []store.CachedAnswer{*keptAnswer(1, 10)}))
	slow := newLevels(t, purgedMeanwhile{db, a}, p)
	a.purges = purgeLog{}
	require.NotNil(t, a.find(t.Context(), [32]byte{1}, always))
	slowFound := slow.find(t.Context(), [32]byte{1}, always)
	require.NotNil(t, slowFound, "it was there when it was asked for")
	require.NoError(t, slow.poll(t.Context()))
	require.Nil(t, slow.remembered([32]byte{1}))
	require.Nil(t, slow.find(t.Context(), [32]byte{1}, always))
}

// purgedMeanwhile is a database of which everything is forgotten right after each look.
type purgedMeanwhile struct {
	store.Cache
	by *answerCache
}

func (p purgedMeanwhile) Cached(ctx context.Context, key [32]byte, now time.Time) (store.CachedAnswer, error) {
	found, err := p.Cache.Cached(ctx, key, now)
	if _, err := p.by.forget(ctx, store.CacheFilter{}); err != nil {
		return found, err
	}
	return found, err
}

func TestAFullLedgerHoldsAnswersBack(t *testing.T) {
	t.Parallel()
	l := &ledger{waiting: make([]entry, ledgerMost-1), wake: make(chan struct{}, 1)}
	require.False(t, l.crowded())
	l.add(entry{})
	require.True(t, l.crowded())
}

// hitRig is an ingress that has the answer to a request and nothing else: no row leaves its
// ledger.
func hitRig(t testing.TB) (s *Ingress, call func(stream bool) *admission, r *http.Request) {
	t.Helper()
	settings := &Settings{Cache: cache.Policy{MemoryBytes: 1 << 20, MaxAnswer: 1 << 20, Rules: []cache.Rule{{Enabled: true, TTL: time.Hour}}}}
	s = ingressOf(map[string]ProviderInfo{"acme": {Models: []string{"m"}}}, routing.Policy{})
	settings.layout = s.current().layout
	s.cache, s.log = newLevels(t, nil, &settings.Cache), discard()
	s.ledger = &ledger{wake: make(chan struct{}, 1)}
	job := &inference.Job{
		ID: "j", Kind: inference.KindChat, Tenant: "t", KeyID: "k", Model: "m", Candidates: []inference.Candidate{{Provider: "acme", Model: "m"}},
		Body: []byte(`{"model":"m","temperature":0.7,"messages":[{"role":"system","content":"You are helpful."},{"role":"user","content":"What is the capital of France, and since when?"}]}`),
	}
	q := routing.Request{Model: "m", Kind: inference.KindChat, Tenant: "t", KeyID: "k"}
	r = httptest.NewRequest(http.MethodPost, chatPath, http.NoBody)
	first := s.cacheCall(settings, r, q, job, false)
	kept := keptAnswer(0, 0)
	kept.Key, kept.Body = first.key(), []byte(wholeAnswer)
	s.cache.keep(kept)
	return s, func(stream bool) *admission {
		asked := *job
		asked.Stream = stream
		return &admission{job: &asked, memory: &share{of: new(budget)}, cache: s.cacheCall(settings, r, q, &asked, false)}
	}, r
}

func TestTheRowOfAHit(t *testing.T) {
	t.Parallel()
	s, call, r := hitRig(t)
	require.True(t, s.fromCache(httptest.NewRecorder(), r, call(true)))
	require.Len(t, s.ledger.waiting, 1)
	rec := s.ledger.waiting[0].record
	require.Equal(t, inference.CacheHit, rec.Cache)
	require.Equal(t, []any{"j", 0, inference.OutcomeSucceeded, inference.Usage{Known: true}, true}, []any{rec.JobID, rec.Attempts, rec.Outcome, rec.Usage, rec.Stream})
	require.Empty(t, s.ledger.waiting[0].worker, "nobody waits for it")
}

func TestNothingIsGivenThatCouldNotBeCounted(t *testing.T) {
	t.Parallel()
	s, call, r := hitRig(t)
	s.metrics = NewMetrics(prometheus.NewRegistry())
	s.ledger.waiting = make([]entry, ledgerMost)
	w := httptest.NewRecorder()
	require.True(t, s.fromCache(w, r, call(false)))
	require.Equal(t, http.StatusTooManyRequests, w.Code)
	require.Len(t, s.ledger.waiting, ledgerMost)
}

// BenchmarkCacheHit is all that a hit costs beyond its admission: the key, the look and
// the answer.
func BenchmarkCacheHit(b *testing.B) {
	s, call, r := hitRig(b)
	for name, stream := range map[string]bool{"plain": false, "stream": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !s.fromCache(httptest.NewRecorder(), r, call(stream)) {
					b.Fatal("no hit")
				}
				s.ledger.waiting = s.ledger.waiting[:0]
			}
		})
	}
}

// An answer that is kept needs no queue, and one whose time is over stands in for one that
// no provider can be asked for.
func TestAnswersAreGivenWithoutTheQueue(t *testing.T) {
	t.Parallel()
	r := setup(t, caching(func(c *cache.Rule) { c.StaleIfError = time.Hour }))
	r.work()
	r.miss(plainRequest)
	r.embedded.Close()
	require.Eventually(t, func() bool { return r.ingress.conn.DisconnectedFor() > queueGone }, 2*queueGone, 10*time.Millisecond)
	r.chat(plainRequest).told(cacheHit)
	next := *r.ingress.current()
	next.Cache.Rules = []cache.Rule{{Name: "all", Enabled: true, TTL: time.Nanosecond, StaleIfError: time.Hour}}
	r.ingress.Apply(next)
	r.chat(plainRequest).told(cacheStale)
	resp := r.chat(`{"model":"m","messages":[{"role":"user","content":"another"}]}`).fails(http.StatusServiceUnavailable, inference.CodeQueueUnavailable)
	require.Equal(t, cacheMiss, resp.Header.Get(cacheHeader))
}
