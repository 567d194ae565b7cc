package ingress

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/cache"
	"sluice/internal/queue"
	"sluice/internal/testkit"
	"sluice/store"
)

// watchedRows is a database whose look-ups are counted.
type watchedRows struct {
	store.Cache
	looks atomic.Int64
	read  func() // what happens while its keys are read
}

func (w *watchedRows) Cached(ctx context.Context, key [32]byte, now time.Time) (store.CachedAnswer, error) {
	w.looks.Add(1)
	return w.Cache.Cached(ctx, key, now)
}

func (w *watchedRows) CachedKeys(ctx context.Context, after [32]byte, limit int) ([][32]byte, error) {
	keys, err := w.Cache.CachedKeys(ctx, after, limit)
	if w.read != nil {
		w.read()
	}
	return keys, err
}

// knowing returns the cache of one more ingress on the queue, which watches the database.
func (r *rig) knowing(rows *watchedRows) *answerCache {
	in, _ := r.startIngress(func(o *Options) {
		o.Cache.Rows = rows
		o.Settings.Cache = cache.Policy{MemoryBytes: 1 << 20, DatabaseBytes: 1 << 20}
	})
	return in.cache
}

func (a *answerCache) requireKnown(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return a.known.known.Load() != nil }, soon, time.Millisecond)
}

// asks reports whether the cache asks the database for the key, and whether it finds it.
func (a *answerCache) asks(t *testing.T, w *watchedRows, n byte) (asked, found bool) {
	t.Helper()
	before := w.looks.Load()
	a.memory.InvalidateAll()
	found = a.find(t.Context(), [32]byte{n}, always) != nil
	return w.looks.Load() > before, found
}

func TestOnlyWhatTheDatabaseMayHaveIsLookedUp(t *testing.T) {
	t.Parallel()
	db := openJobs(t)
	require.NoError(t, db.PutCached(t.Context(), []store.CachedAnswer{*keptAnswer(1, 10)}))
	r := setup(t)
	w := &watchedRows{Cache: db}
	a, b := r.knowing(w), r.knowing(&watchedRows{Cache: db})
	a.requireKnown(t)
	requireAsks := func(n byte, want bool, why string) {
		t.Helper()
		asked, found := a.asks(t, w, n)
		require.Equal(t, []bool{want, want}, []bool{asked, found}, why)
	}
	requireAsks(1, true, "it was there at the start")
	requireAsks(2, false, "it is not there")

	b.keep(keptAnswer(2, 10))
	require.Eventually(t, func() bool { return a.known.may([32]byte{2}) }, soon, time.Millisecond)
	requireAsks(2, true, "another ingress brought it")
	a.keep(keptAnswer(3, 10))
	require.Eventually(t, func() bool { return a.known.may([32]byte{3}) }, soon, time.Millisecond)
	requireAsks(3, true, "this one did")

	a.known.missed()
	a.requireKnown(t)
	requireAsks(2, true, "it is read again")
	requireAsks(4, false, "and so is what is not there")
}

// While it is not sure what the database has, each request is looked up.
func TestWhatIsNotKnownIsLookedUp(t *testing.T) {
	t.Parallel()
	r := setup(t)
	w := &watchedRows{Cache: openJobs(t)}
	k := &knownAnswers{rows: w, conn: r.connect(), log: discard(), anew: make(chan struct{}, 1)}
	absent, brought := cache.Key{9}, keptAnswer(5, 10)
	require.True(t, k.may(absent))
	w.read = func() {
		require.True(t, k.may(absent), "who knows yet")
		k.kept([]store.CachedAnswer{*brought})
	}
	require.NoError(t, k.read(t.Context()))
	require.Equal(t, []bool{false, true}, []bool{k.may(absent), k.may(brought.Key)})

	k.missed()
	require.True(t, k.may(absent))
	require.Len(t, k.anew, 1)
	w.read = k.missed
	require.NoError(t, k.read(t.Context()))
	require.True(t, k.may(absent), "what was read may lack a word")
	w.read = nil
	require.NoError(t, k.read(t.Context()))
	require.Equal(t, []bool{false, false}, []bool{k.may(absent), k.may(brought.Key)})

	r.embedded.Close()
	require.Eventually(t, func() bool { return k.may(absent) }, soon, time.Millisecond, "nobody is heard")
	require.Error(t, k.read(t.Context()))
}

// pagedRows is a database with so many answers that their keys fill pages.
type pagedRows struct {
	store.Cache
	pages int
	read  func(page int) // what happens while a page is read
	reads int
}

func (m *pagedRows) CacheSize(context.Context) (answers, bytes int64, err error) {
	return int64(m.pages * store.MaxPage), 0, nil
}

func (m *pagedRows) CachedKeys(_ context.Context, after [32]byte, limit int) ([][32]byte, error) {
	m.reads++
	m.read(m.reads)
	if m.reads > m.pages {
		return nil, nil
	}
	keys := make([][32]byte, limit)
	for i := range keys {
		keys[i] = sha256.Sum256(binary.BigEndian.AppendUint64(after[:], uint64(i)))
	}
	return keys, nil
}

// What would be thrown away is not read to its end.
func TestKeysAreNotReadOnAfterAWordWasMissed(t *testing.T) {
	t.Parallel()
	r := setup(t)
	m := &pagedRows{pages: 5}
	k := &knownAnswers{rows: m, conn: r.connect(), log: discard(), anew: make(chan struct{}, 1)}
	m.read = func(page int) {
		if page == 2 {
			k.missed()
		}
	}
	require.NoError(t, k.read(t.Context()))
	require.Equal(t, 2, m.reads)
	require.Len(t, k.anew, 1, "it is read again")
	require.Nil(t, k.known.Load())

	m.reads, m.read = 0, func(int) {}
	require.NoError(t, k.read(t.Context()))
	require.Equal(t, 6, m.reads)
	require.NotNil(t, k.known.Load())
}

// An ingress that finds out that it does not know what is there reads it again.
func TestWhatIsKnownIsReviewed(t *testing.T) {
	t.Parallel()
	filter := func(capacity, keys int) *cache.Filter {
		f := cache.NewFilter(capacity)
		for n := range keys {
			f.Add(sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n))))
		}
		return f
	}
	for name, c := range map[string]struct {
		known   *cache.Filter
		answers int64
		again   bool
	}{
		"as many":         {filter(1000, 500), 500, false},
		"some on the way": {filter(1000, 500), 1500, false},
		"some went":       {filter(1<<17, knownSpare+800), 500, false},
		"more":            {filter(1000, 500), 2000, true},
		"far fewer":       {filter(1<<18, knownSpare+1200), 500, true},
		"full":            {filter(10, 20), 20, true},
		"nothing known":   {nil, 0, true},
	} {
		k := &knownAnswers{anew: make(chan struct{}, 1)}
		k.known.Store(c.known)
		k.review(c.answers)
		k.review(c.answers)
		require.Equal(t, c.again, len(k.anew) == 1, name)
	}
}

// What was told while there was no connection is missed.
func TestAfterAnOutageWhatIsThereIsReadAgain(t *testing.T) {
	t.Parallel()
	server := testkit.StartNATS(t)
	conn, err := queue.Connect(queue.Options{Name: t.Name(), URL: server.URL(), Limits: testLimits(), Logger: discard()})
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	db := openJobs(t)
	a := newAnswerCache(CacheOptions{Rows: db}, conn, func() *cache.Policy { return &cache.Policy{DatabaseBytes: 1 << 20} }, NewMetrics(prometheus.NewRegistry()), discard())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.run(ctx) }()
	defer func() { cancel(); <-done }()
	a.requireKnown(t)
	require.False(t, a.known.may([32]byte{1}))
	require.NoError(t, server.Kill())
	require.Eventually(t, func() bool { return a.known.may([32]byte{1}) }, soon, time.Millisecond)
	require.NoError(t, db.PutCached(t.Context(), []store.CachedAnswer{*keptAnswer(1, 10)}))
	require.NoError(t, server.Start())
	require.Eventually(t, func() bool { return a.known.may([32]byte{1}) && !a.known.may([32]byte{2}) }, soon, time.Millisecond)
}

// manyRows is a database that says it has more answers than an ingress can know.
type manyRows struct{ store.Cache }

func (manyRows) CacheSize(context.Context) (answers, bytes int64, err error) {
	return knownMost + 1, 1 << 40, nil
}

func TestTooManyAnswersAreNotKnown(t *testing.T) {
	t.Parallel()
	r := setup(t)
	k := &knownAnswers{rows: manyRows{openJobs(t)}, conn: r.conn, log: discard()}
	k.known.Store(cache.NewFilter(1))
	require.False(t, k.may(cache.Key{}))
	require.NoError(t, k.read(t.Context()))
	require.True(t, k.may(cache.Key{}))
}
