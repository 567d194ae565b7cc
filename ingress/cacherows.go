package ingress

import (
	"context"
	"slices"
	"sync"
	"time"

	"sluice/internal/cache"
	"sluice/store"
)

// putLine is the answers on their way to the database, bounded in number and bytes. Nobody
// is woken for an answer: whoever writes them comes by.
type putLine struct {
	mu      sync.Mutex
	waiting []waitingPut
	bytes   int64 // of them, and of those that are being written
}

type waitingPut struct {
	key    cache.Key
	answer packed
}

// join reports whether there is room for the answer, which is kept as it is packed.
func (l *putLine) join(v *store.CachedAnswer, p packed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) >= cachePuts || l.bytes+v.Size() > cachePutBytes {
		return false
	}
	l.waiting = append(l.waiting, waitingPut{v.Key, p})
	l.bytes += v.Size()
	return true
}

// next takes out as many as are written at once.
func (l *putLine) next() (batch []store.CachedAnswer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	bytes := int64(0)
	for _, w := range l.waiting {
		if len(batch) == store.MaxCachePut || bytes >= cachePutAtOnce {
			break
		}
		v := w.answer.answer(w.key)
		batch = append(batch, *v)
		bytes += v.Size()
	}
	l.waiting = slices.Delete(l.waiting, 0, len(batch))
	return batch
}

// done gives the room of answers back that were taken out.
func (l *putLine) done(bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes -= bytes
}

// write brings answers into the database until ctx ends, many at a time: a transaction
// costs as much as dozens of them. It takes a part of the time alone, however many come: the
// database, and the processor, are for those who wait for something. What the database does
// not take is lost: it costs one more call of a provider.
func (a *answerCache) write(ctx context.Context) {
	for wait := cachePutWait; ; {
		pause(ctx, wait)
		if ctx.Err() != nil {
			a.writeRest(ctx)
			return
		}
		began := time.Now()
		a.putNext(context.WithoutCancel(ctx)) // the store bounds it
		wait = min(max((cachePutPart-1)*time.Since(began), cachePutWait), cachePutPause)
	}
}

// writeRest writes what is left when the ingress stops, within the time that one call takes.
func (a *answerCache) writeRest(ctx context.Context) {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for last.Err() == nil && a.putNext(last) {
	}
}

// putNext writes what is next, and reports whether there was anything.
func (a *answerCache) putNext(ctx context.Context) bool {
	batch := a.puts.next()
	if len(batch) == 0 {
		return false
	}
	bytes := store.SizeOfCached(batch)
	defer a.puts.done(bytes)
	if err := a.rows.PutCached(ctx, batch); err != nil {
		a.metrics.failures.WithLabelValues("write").Add(float64(len(batch)))
		a.log.Warn("answers not kept in the database", "answers", len(batch), "error", err)
		return true
	}
	a.known.kept(batch)
	if a.sincePut.Add(bytes) > a.policy().DatabaseBytes/16 {
		select {
		case a.overdue <- struct{}{}:
		default:
		}
	}
	return true
}

// sweepRows keeps the database within its bound until ctx ends. Every ingress does so, a
// few rows at a time; of those who would trim at once one alone does.
func (a *answerCache) sweepRows(ctx context.Context) {
	tick := time.NewTicker(cacheSweep)
	defer tick.Stop()
	for {
		a.sweepOnce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.overdue:
		}
	}
}

func (a *answerCache) sweepOnce(ctx context.Context) {
	a.sincePut.Store(0)
	a.dropForgotten()
	now := time.Now()
	err := repeat(func() (bool, error) {
		n, err := a.rows.ExpireCached(ctx, now, store.MaxPage)
		return n == store.MaxPage, err
	})
	if err == nil {
		most := max(a.policy().DatabaseBytes, 0)
		err = repeat(func() (bool, error) {
			n, err := a.rows.TrimCached(ctx, most, store.MaxPage)
			return n > 0, err
		})
	}
	if err == nil {
		err = repeat(func() (bool, error) {
			return a.rows.PruneCachePurges(ctx, now.Add(-cachePurgesKept), store.MaxPage)
		})
	}
	if err == nil {
		var size cacheSize
		if size.answers, size.bytes, err = a.rows.CacheSize(ctx); err == nil {
			a.metrics.rows.Store(&size)
			a.known.review(size.answers)
		}
	}
	if err != nil && ctx.Err() == nil {
		a.log.Warn("cached answers not swept; it will be tried again", "error", err)
	}
}

// repeat goes on while there is more to do, for as long as one sweep may take.
func repeat(do func() (more bool, err error)) error {
	for range cacheSweepMost {
		if more, err := do(); err != nil || !more {
			return err
		}
	}
	return nil
}
