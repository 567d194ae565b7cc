package limits

import (
	"context"
	"fmt"
	"time"
)

// lock returns the scope's account with its mu held, a new one if there is none.
func (l *Limiter) lock(scope string) (*account, error) {
	for {
		l.mu.RLock()
		a := l.accounts[scope]
		l.mu.RUnlock()
		if a == nil {
			var err error
			if a, err = l.open(scope); err != nil {
				return nil, err
			}
		}
		a.mu.Lock()
		if !a.gone {
			return a, nil
		}
		a.mu.Unlock()
	}
}

func (l *Limiter) open(scope string) (*account, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.accounts[scope]; a != nil {
		return a, nil
	}
	if len(l.accounts) >= maxScopes && !l.evict() {
		return nil, fmt.Errorf("%w: too many scopes are in use", ErrUnavailable)
	}
	a := &account{scope: scope}
	l.accounts[scope] = a
	return a, nil
}

// evictTries is how many accounts are looked at to find one that may be forgotten.
const evictTries = 64

// evict forgets an account that has nothing in hand. Its record goes by itself once it is
// old. The caller holds mu, so that whoever has the account locked is not waited for.
func (l *Limiter) evict() bool {
	tries := 0
	for scope, a := range l.accounts {
		if tries++; tries > evictTries {
			return false
		}
		if !a.mu.TryLock() {
			continue
		}
		quiet := a.quiet()
		a.gone = quiet
		a.mu.Unlock()
		if quiet {
			delete(l.accounts, scope)
			return true
		}
	}
	return false
}

// Scopes returns how many scopes the limiter remembers.
func (l *Limiter) Scopes() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.accounts)
}

func (l *Limiter) all() []*account {
	l.mu.RLock()
	defer l.mu.RUnlock()
	list := make([]*account, 0, len(l.accounts))
	for _, a := range l.accounts {
		list = append(list, a)
	}
	return list
}

// keepSwept does what comes with time alone, for every account.
func (l *Limiter) keepSwept(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		for _, a := range l.all() {
			l.sweep(a)
		}
	}
}

// sweep renews what the process holds, says that it holds nothing, asks the ledger, or
// forgets the scope.
func (l *Limiter) sweep(a *account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := l.since()
	idle := at - a.touched
	quiet := a.quiet()
	holder := time.Duration(l.terms.holder) * time.Millisecond
	window := time.Duration(l.terms.window) * time.Millisecond
	switch {
	case a.busy:
	case quiet && idle >= window+forgetAfter:
		// Whatever the record says that counts is others'; the last of them removes it.
		a.gone = true
		l.mu.Lock()
		delete(l.accounts, a.scope)
		l.mu.Unlock()
	case quiet && idle >= leaveAfter && a.rec != nil && a.rec.holder(l.process) != nil:
		l.kick(a)
	case quiet && idle >= window+clearAfter && a.seen < a.touched+window+clearAfter:
		a.rec = nil // it is removed if it says nothing any more
		l.kick(a)
	case !quiet && at-a.swapped >= holder/renewals && a.wakeAt == 0:
		l.kick(a)
	case a.limits.Budget != (Budget{}) && l.ledger != nil && at-a.asked >= ledgerEvery && idle < ledgerEvery:
		l.kick(a)
	}
}
