package ingress

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"sluice/internal/cache"
	"sluice/internal/queue"
	"sluice/store"
)

// CacheOptions are what answers are kept in beside the memory. Without Rows they are kept
// in memory alone, and each ingress forgets for itself.
type CacheOptions struct {
	Rows store.Cache
}

// Bounds of the cache, beside those of its policy.
const (
	cacheReads      = 32                     // look-ups in the database at once
	cacheReadFor    = 500 * time.Millisecond // then the answer counts as not there
	cacheDownFor    = time.Second            // without look-ups, after one that failed
	cachePuts       = 4096                   // answers on their way to the database
	cachePutWait    = 100 * time.Millisecond // for others that share a write to the database
	cachePutPart    = 20                     // of the time, the one that writing to the database takes
	cachePutPause   = time.Second            // between two writes at most
	cachePutBytes   = 64 << 20               // of them
	cachePutAtOnce  = 8 << 20                // bytes of one write to the database
	cacheGiving     = 256 << 20              // bytes of answers that are being given
	cachePoll       = time.Second            // for what other ingresses were told to forget
	cacheSweep      = 30 * time.Second
	cacheSweepMost  = 50             // calls of one kind in one sweep
	cachePurgesKept = 48 * time.Hour // longer than any request takes
)

// answerCache is the two levels of the cache: what this ingress has in memory before what
// all of them share in the database. It may lose any answer. What it was told to forget it
// does not give again: each answer names the last purge that was known when its request
// came, and a later one that covers it counts, whenever and from wherever the answer
// arrives.
type answerCache struct {
	rows    store.Cache // nil: there is no database
	policy  func() *cache.Policy
	log     *slog.Logger
	metrics *cacheMetrics

	memory *otter.Cache[cache.Key, packed]
	purges purgeLog
	giving budget

	known     *knownAnswers // nil: the database is asked for each
	reads     chan struct{}
	downUntil atomic.Int64 // in nanoseconds; until then the database is not asked

	puts     putLine
	overdue  chan struct{} // so much was put that the bound has to be looked at
	sincePut atomic.Int64  // bytes that were put since the last sweep

	mu      sync.Mutex
	leaders map[leaderID]*leader
	yielded map[leaderID]*yielding
	waiting atomic.Int64 // requests that wait for a leader
}

func newAnswerCache(o CacheOptions, conn *queue.Conn, policy func() *cache.Policy, m *Metrics, log *slog.Logger) *answerCache {
	a := &answerCache{
		rows: o.Rows, policy: policy, log: log, giving: budget{most: cacheGiving}, reads: make(chan struct{}, cacheReads),
		overdue: make(chan struct{}, 1), leaders: make(map[leaderID]*leader), yielded: make(map[leaderID]*yielding),
	}
	if o.Rows != nil && conn != nil {
		a.known = &knownAnswers{rows: o.Rows, conn: conn, log: log, anew: make(chan struct{}, 1)}
		conn.OnReconnect(a.known.missed)
	}
	a.memory = otter.Must(&otter.Options[cache.Key, packed]{
		MaximumWeight: memoryBound(policy()),
		Weigher:       func(_ cache.Key, p packed) uint32 { return p.weight() },
		Executor:      func(fn func()) { fn() }, // no goroutine that nobody waits for
	})
	a.metrics = newCacheMetrics(m, a)
	return a
}

// memoryBound is what the memory's bound is set to: none would mean that there is no bound.
func memoryBound(p *cache.Policy) uint64 { return uint64(max(p.MemoryBytes, 1)) }

// run keeps the cache in order until ctx ends.
func (a *answerCache) run(ctx context.Context) {
	var loops sync.WaitGroup
	defer loops.Wait()
	if a.rows != nil {
		if last, err := a.rows.CacheGeneration(ctx); err == nil {
			a.purges.begin(last) // nothing is in memory that an earlier one could cover
		}
		loops.Go(func() { a.write(ctx) })
		if a.known != nil {
			loops.Go(func() { a.known.run(ctx) })
		}
		loops.Go(func() { a.sweepRows(ctx) })
	}
	tick := time.NewTicker(cachePoll)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		a.fitMemory()
		if err := a.poll(ctx); err != nil && ctx.Err() == nil {
			if !failing {
				a.log.Warn("what other ingresses forget of the cache is not seen", "error", err)
			}
			failing = true
			continue
		}
		failing = false
	}
}

// fitMemory brings the memory to its bound if that has changed.
func (a *answerCache) fitMemory() {
	p := a.policy()
	if p.MemoryBytes <= 0 {
		a.memory.InvalidateAll()
	}
	if most := memoryBound(p); a.memory.GetMaximum() != most {
		a.memory.SetMaximum(most)
	}
}

// find returns the answer of this key that is wanted, or nil. The database is asked where
// the memory has none, and where it has one that will not do: another ingress may have
// a newer one.
func (a *answerCache) find(ctx context.Context, key cache.Key, wanted func(*store.CachedAnswer) bool) *store.CachedAnswer {
	if found := a.remembered(key); found != nil && wanted(found) {
		return found
	}
	p := a.policy()
	if a.rows == nil || p.DatabaseBytes <= 0 || time.Now().UnixNano() < a.downUntil.Load() || !a.known.may(key) {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, cacheReadFor)
	defer cancel()
	select {
	case a.reads <- struct{}{}:
		defer func() { <-a.reads }()
	case <-bounded.Done():
		return nil
	}
	generation := a.purges.generation()
	found, err := a.rows.Cached(bounded, key, time.Now())
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil && ctx.Err() != nil:
		return nil // the request's end, by its client or its deadline, is no failure of the database
	case err != nil:
		a.readFailed(err)
		return nil
	}
	found.Generation = max(found.Generation, generation) // the database knows of no purge until then that covers it
	a.remember(&found)
	if a.purges.forget(&found) || !wanted(&found) {
		return nil
	}
	return &found
}

// readFailed leaves the database alone for a while.
func (a *answerCache) readFailed(err error) {
	a.metrics.failures.WithLabelValues("read").Inc()
	now := time.Now()
	if until := a.downUntil.Load(); a.downUntil.CompareAndSwap(until, now.Add(cacheDownFor).UnixNano()) {
		a.log.Warn("cached answer not looked up; the provider is asked", "error", err)
	}
}

// remembered returns the answer in memory.
func (a *answerCache) remembered(key cache.Key) *store.CachedAnswer {
	kept, ok := a.memory.GetIfPresent(key)
	if !ok {
		return nil
	}
	found := kept.answer(key)
	if a.purges.forget(found) {
		return nil
	}
	return found
}

// remember keeps an answer in memory, unless there is a later one. It returns the answer as
// it is packed, or nil if there is no room for it.
func (a *answerCache) remember(v *store.CachedAnswer) packed {
	if v.Size() > a.policy().MemoryBytes || a.purges.forget(v) {
		return nil
	}
	p := pack(v)
	a.memory.Compute(v.Key, func(old packed, found bool) (packed, otter.ComputeOp) {
		if found && old.time(packedCreated).After(v.CreatedAt) && !a.forgotten(v.Key, old) {
			return old, otter.CancelOp
		}
		return p, otter.WriteOp
	})
	if a.purges.forget(v) { // a purge that came meanwhile may have passed it by
		a.memory.Invalidate(v.Key)
	}
	return p
}

// keep takes in an answer: into memory at once, into the database in its turn.
func (a *answerCache) keep(v *store.CachedAnswer) {
	p := a.remember(v)
	if a.rows == nil || v.Size() > a.policy().DatabaseBytes || a.purges.forget(v) {
		return
	}
	if p == nil {
		p = pack(v)
	}
	if !a.puts.join(v, p) {
		a.metrics.dropped.Inc()
	}
}
