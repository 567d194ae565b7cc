package upstream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"sluice/providers"
)

// Key is one API key of an upstream.
type Key struct {
	Secret string
	Weight int // share of the calls, against the other keys' weights; 1 unless set
}

// refusedFor is how long a refused key is set aside before it is tried again: its
// account may have been filled up meanwhile.
const refusedFor = 5 * time.Minute

// coolLeast is how long a key cools down that was not told for how long.
const coolLeast = time.Second

type keyEntry struct {
	secret  string
	header  []string // shared by all requests
	weight  int
	until   time.Time
	refused bool
}

// ring chooses among an upstream's keys.
type ring struct {
	mu      sync.Mutex
	entries []*keyEntry
}

var (
	errAllCooling = errors.New("all keys are cooling down")
	errAllRefused = errors.New("all keys were refused")
)

func newRing(keys []Key, prefix string) (*ring, error) {
	r := &ring{}
	for _, k := range keys {
		if k.Secret == "" {
			continue
		}
		if !providers.ValidHeaderValue(prefix + k.Secret) {
			return nil, errors.New("read API key: it holds characters that cannot stand in a header")
		}
		r.entries = append(r.entries, &keyEntry{secret: k.Secret, header: []string{prefix + k.Secret}, weight: max(k.Weight, 1)})
	}
	return r, nil
}

// pick chooses one of the keys that may be used now, by weight; nil when the upstream
// wants none. A refused key that has no other beside it is used all the same.
func (r *ring) pick(now time.Time) (*keyEntry, error) {
	if len(r.entries) == 0 {
		return nil, nil //nolint:nilnil // no key is a choice, too
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	total, refused := 0, 0
	for _, k := range r.entries {
		switch {
		case !now.Before(k.until):
			total += k.weight
		case k.refused:
			refused++
		}
	}
	if total == 0 {
		if refused < len(r.entries) {
			return nil, errAllCooling
		}
		if refused == 1 {
			return r.entries[0], nil
		}
		return r.probe(now)
	}
	n := rand.IntN(total)
	for _, k := range r.entries {
		if now.Before(k.until) {
			continue
		}
		if n -= k.weight; n < 0 {
			return k, nil
		}
	}
	return nil, errAllCooling // not reached: the weights add up to total
}

// refusedRetry is how often one of several keys is tried when all of them are refused:
// the account may have been put in order.
const refusedRetry = 10 * time.Second

// probe chooses the key that was refused first, if none was lately. The caller holds mu.
func (r *ring) probe(now time.Time) (*keyEntry, error) {
	first, last := r.entries[0], r.entries[0]
	for _, k := range r.entries {
		if k.until.Before(first.until) {
			first = k
		}
		if k.until.After(last.until) {
			last = k
		}
	}
	if last.until.Sub(now) > refusedFor-refusedRetry {
		return nil, errAllRefused
	}
	first.until = now.Add(refusedFor)
	return first, nil
}

// served notes that the upstream accepts the key.
func (r *ring) served(k *keyEntry) {
	if k == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.refused {
		k.refused, k.until = false, time.Time{}
	}
}

// cool sets a key aside for as long as the upstream says. A key without another beside
// it only when the upstream did say. others reports whether another key may be used
// now.
func (r *ring) cool(k *keyEntry, wait time.Duration, now time.Time) (others bool) {
	if k == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if wait == 0 && len(r.entries) > 1 {
		wait = coolLeast
	}
	k.rest(now.Add(wait))
	return r.available(now)
}

// rest sets a key aside that was served and may not be again for that long.
func (r *ring) rest(k *keyEntry, wait time.Duration, now time.Time) {
	if k == nil || wait <= 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k.rest(now.Add(wait))
}

// rest sets the key aside until then. Answers that overtake each other never shorten it.
// The caller holds the ring's mu.
func (k *keyEntry) rest(until time.Time) {
	if !k.refused && until.After(k.until) {
		k.until = until
	}
}

// refuse sets aside a key that the upstream does not accept.
func (r *ring) refuse(k *keyEntry, now time.Time) (others bool) {
	if k == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k.refused, k.until = true, now.Add(refusedFor)
	return r.available(now)
}

// available reports whether a key may be used now. The caller holds mu.
func (r *ring) available(now time.Time) bool {
	for _, k := range r.entries {
		if !now.Before(k.until) {
			return true
		}
	}
	return false
}

// openAt is when the first cooling key may be used again, zero while a key may be used
// now and where there is none to wait for.
func (r *ring) openAt(now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first time.Time
	for _, k := range r.entries {
		switch {
		case !now.Before(k.until):
			return time.Time{}
		case !k.refused && (first.IsZero() || k.until.Before(first)):
			first = k.until
		}
	}
	return first
}

// next is how long the first cooling key has to wait yet.
func (r *ring) next(now time.Time) time.Duration {
	if at := r.openAt(now); !at.IsZero() {
		return at.Sub(now)
	}
	return 0
}

func (r *ring) states(now time.Time) []providers.KeyState {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]providers.KeyState, 0, len(r.entries))
	for i, k := range r.entries {
		s := providers.KeyState{Display: display(i, k.secret), State: providers.KeyOK}
		if now.Before(k.until) {
			s.State, s.Until = providers.KeyCooling, k.until
			if k.refused {
				s.State = providers.KeyRefused
			}
		}
		list = append(list, s)
	}
	return list
}

// shownLeast is the length from which on a key's end may be shown.
const shownLeast = 20

// display names a key by its place and, if it is long, its end.
func display(i int, secret string) string {
	if len(secret) < shownLeast {
		return fmt.Sprintf("#%d", i+1)
	}
	return fmt.Sprintf("#%d …%s", i+1, secret[len(secret)-4:])
}
