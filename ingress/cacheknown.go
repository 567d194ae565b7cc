package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/cache"
	"sluice/internal/queue"
	"sluice/store"
)

// knownAnswers says which answers the database may have, so that a request whose answer is
// surely not there costs no look-up. What is there it reads once; what comes it hears from
// the ingresses that bring it. As long as it may have missed a word, anything may be there.
// An answer that it does not know of costs one more call of a provider.
type knownAnswers struct {
	rows  store.Cache
	conn  *queue.Conn
	log   *slog.Logger
	anew  chan struct{} // there is a reason to read again
	known atomic.Pointer[cache.Filter]

	mu     sync.Mutex
	coming *cache.Filter // what is read at the moment
}

const (
	knownRetry = 5 * time.Second
	knownSpare = 1 << 16 // answers that there is room for beside twice as many as there are
	knownMost  = cache.MaxFilter / 2
)

// may reports whether the database may have an answer of this key. With a nil knownAnswers it
// may have any.
func (k *knownAnswers) may(key cache.Key) bool {
	if k == nil {
		return true
	}
	known := k.known.Load()
	return known == nil || known.Has(key) || !k.conn.Connected()
}

// run keeps up with what is in the database until ctx ends.
func (k *knownAnswers) run(ctx context.Context) {
	ear, err := k.conn.HearCached(k.add)
	if err != nil {
		k.log.Warn("what other ingresses keep of the cache is not heard: each request is looked up in the database", "error", err)
		return
	}
	defer ear.Close()
	for {
		var again <-chan time.Time
		if err := k.read(ctx); err != nil && ctx.Err() == nil {
			k.log.Debug("keys of cached answers not read; it will be tried again", "error", err)
			again = time.After(knownRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-k.anew:
		case <-again:
		}
	}
}

// read takes in what is in the database. Whoever brings answers there tells of them after
// that, and is heard before the first one is read here: none is missed in between.
func (k *knownAnswers) read(ctx context.Context) error {
	answers, _, err := k.rows.CacheSize(ctx)
	if err != nil {
		return err
	}
	if answers > knownMost {
		k.known.Store(nil)
		return nil
	}
	next := cache.NewFilter(int(2*answers) + knownSpare)
	k.mu.Lock()
	k.coming = next
	k.mu.Unlock()
	if err := k.heard(ctx); err != nil {
		return err
	}
	for after, n := [32]byte{}, store.MaxPage; n == store.MaxPage; {
		keys, err := k.rows.CachedKeys(ctx, after, store.MaxPage)
		if err != nil {
			return err
		}
		if !k.reads(next) {
			return nil
		}
		for _, key := range keys {
			next.Add(key)
			after = key
		}
		n = len(keys)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.coming == next {
		k.known.Store(next)
		k.coming = nil
	}
	return nil
}

// reads reports whether what is read is still of use: no word was missed meanwhile. If one
// was, there is a reason to read anew.
func (k *knownAnswers) reads(next *cache.Filter) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.coming == next
}

// heard waits until the server knows that this ingress listens.
func (k *knownAnswers) heard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, knownRetry)
	defer cancel()
	if err := k.conn.Flush(ctx); err != nil {
		return fmt.Errorf("listen to other ingresses: %w", err)
	}
	return nil
}

// add notes answers that are in the database now.
func (k *knownAnswers) add(keys [][32]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range []*cache.Filter{k.known.Load(), k.coming} {
		if f == nil {
			continue
		}
		for _, key := range keys {
			f.Add(key)
		}
	}
}

// kept notes the answers, which this ingress has brought into the database, and tells the
// others.
func (k *knownAnswers) kept(answers []store.CachedAnswer) {
	if k == nil {
		return
	}
	keys := make([][32]byte, len(answers))
	for i := range answers {
		keys[i] = answers[i].Key
	}
	k.add(keys)
	if err := k.conn.TellCached(keys); err != nil {
		k.log.Debug("other ingresses not told of cached answers", "answers", len(keys), "error", err)
	}
}

// missed says that words of other ingresses may have been missed.
func (k *knownAnswers) missed() {
	k.mu.Lock()
	k.known.Store(nil)
	k.coming = nil
	k.mu.Unlock()
	k.readAnew()
}

func (k *knownAnswers) readAnew() {
	select {
	case k.anew <- struct{}{}:
	default:
	}
}

// review compares what is known with how many answers the database has: it may have more,
// from somebody who did not tell, or far fewer, because others went.
func (k *knownAnswers) review(answers int64) {
	if k == nil {
		return
	}
	known := k.known.Load()
	if known == nil || known.Full() || answers > known.Added()+answers/16+1024 || known.Added() > 2*answers+knownSpare {
		k.readAnew()
	}
}
