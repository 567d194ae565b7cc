package token

import (
	"container/list"
	"sync"
	"time"

	"sluice/store"
)

// Bounds of what is remembered.
const (
	rememberMost = 4096
	rememberFor  = time.Minute
)

// remembered are callers whose tokens were verified lately, by the hash of the token, so
// that one who calls often costs no signature each time. What is remembered stands only as
// long as the keys and the configuration that it was verified by.
type remembered struct {
	mu     sync.Mutex
	byHash map[[32]byte]*list.Element
	used   *list.List // the latest first
}

// verdict is a token that was verified.
type verdict struct {
	hash   [32]byte
	caller store.Key
	keys   *keySet
	issuer *issuer
	until  time.Time
}

func newRemembered() *remembered {
	return &remembered{byHash: make(map[[32]byte]*list.Element), used: list.New()}
}

// get returns the caller whom a token of this hash was verified for, if an issuer of the
// set would still say so.
func (r *remembered) get(hash [32]byte, now time.Time, set *issuers) (store.Key, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.byHash[hash]
	if !ok {
		return store.Key{}, false
	}
	v, ok := e.Value.(*verdict)
	if !ok || !now.Before(v.until) || set.byName[v.issuer.Issuer.Issuer] != v.issuer || v.issuer.source.keys.Load() != v.keys {
		r.used.Remove(e)
		delete(r.byHash, hash)
		return store.Key{}, false
	}
	r.used.MoveToFront(e)
	return v.caller, true
}

func (r *remembered) put(v *verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.byHash[v.hash]; ok {
		e.Value = v
		return
	}
	r.byHash[v.hash] = r.used.PushFront(v)
	for r.used.Len() > rememberMost {
		last := r.used.Back()
		if v, ok := r.used.Remove(last).(*verdict); ok {
			delete(r.byHash, v.hash)
		}
	}
}
