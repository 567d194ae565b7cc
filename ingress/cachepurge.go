package ingress

import (
	"context"
	"sync"
	"time"

	"sluice/internal/cache"
	"sluice/store"
)

// purgesKnown bounds the purges that an ingress checks answers against. An answer from
// before them counts as forgotten: it is in the database still if it is not.
const purgesKnown = 1000

// purgeLog is what an ingress knows of what is to be forgotten. It goes by the purges' own
// order, so that clocks do not matter.
type purgeLog struct {
	polling sync.Mutex

	mu     sync.RWMutex
	last   int64 // every purge up to this one is known
	floor  int64 // answers of an earlier generation are forgotten
	recent []store.CachePurge
}

// begin starts behind a purge: there is no answer yet that it could cover.
func (l *purgeLog) begin(last int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = max(l.last, last)
}

// generation is what an answer names whose request comes now.
func (l *purgeLog) generation() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last
}

func (l *purgeLog) add(purges []store.CachePurge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range purges {
		l.last = max(l.last, p.Generation)
	}
	l.recent = append(l.recent, purges...)
	if over := len(l.recent) - purgesKnown; over > 0 {
		l.floor = l.recent[over-1].Generation
		l.recent = append([]store.CachePurge(nil), l.recent[over:]...)
	}
}

// forget reports whether the answer must not be given any more.
func (l *purgeLog) forget(a *store.CachedAnswer) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case a.Generation >= l.last:
		return false
	case a.Generation < l.floor:
		return true
	}
	for i := range l.recent {
		if l.recent[i].Forgets(a) {
			return true
		}
	}
	return false
}

// poll asks what was forgotten lately, and forgets it in memory. Every ingress does so, as
// it does with keys: one that cannot reach the database goes on with what it knows.
func (a *answerCache) poll(ctx context.Context) error {
	if a.rows == nil {
		return nil
	}
	a.purges.polling.Lock()
	defer a.purges.polling.Unlock()
	for {
		purges, err := a.rows.CachePurges(ctx, a.purges.generation())
		if err != nil {
			return err
		}
		if len(purges) == 0 {
			return nil
		}
		a.purges.add(purges)
		a.dropForgotten()
		if len(purges) < store.MaxPage {
			return nil
		}
	}
}

// dropForgotten lets go of what is in memory and is not given any more.
func (a *answerCache) dropForgotten() {
	now := time.Now()
	for key, v := range a.memory.All() {
		if !now.Before(v.time(packedStale)) || a.forgotten(key, v) {
			a.memory.Invalidate(key)
		}
	}
}

// forgotten reports whether an answer in memory must not be given any more.
func (a *answerCache) forgotten(key cache.Key, p packed) bool {
	return p.number(packedGeneration) < a.purges.generation() && a.purges.forget(p.answer(key))
}

// forget forgets the answers that the filter selects, here at once and elsewhere within
// seconds, and returns how many the database had.
func (a *answerCache) forget(ctx context.Context, filter store.CacheFilter) (removed int, err error) {
	if a.rows == nil {
		return a.forgetMemory(filter), nil
	}
	purge, err := a.rows.ForgetCached(ctx, filter, time.Now())
	if err != nil {
		return 0, err
	}
	inMemory := a.count(filter)
	if err := a.poll(ctx); err != nil {
		a.purges.note(purge)
		a.dropForgotten()
	}
	var after [32]byte
	for n := store.MaxPage; n == store.MaxPage; removed += n {
		if n, after, err = a.rows.DropForgotten(ctx, purge, after, store.MaxPage); err != nil {
			return removed, err // they are forgotten all the same; the sweep removes them
		}
	}
	if a.policy().DatabaseBytes <= 0 {
		return inMemory, nil
	}
	return removed, nil
}

// note takes in a purge although those before it may not be known.
func (l *purgeLog) note(p store.CachePurge) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.floor = max(l.floor, p.Generation) // more than it covers, so that nothing is missed
	l.last = max(l.last, p.Generation)
}

func (a *answerCache) count(filter store.CacheFilter) (n int) {
	for key, p := range a.memory.All() {
		if v := p.answer(key); filter.Covers(v) && !a.purges.forget(v) {
			n++
		}
	}
	return n
}

// forgetMemory forgets where there is no database, also what is still on its way.
func (a *answerCache) forgetMemory(filter store.CacheFilter) int {
	a.purges.polling.Lock()
	defer a.purges.polling.Unlock()
	n := a.count(filter)
	a.purges.add([]store.CachePurge{{Generation: a.purges.generation() + 1, Filter: filter, At: time.Now()}})
	a.dropForgotten()
	return n
}
