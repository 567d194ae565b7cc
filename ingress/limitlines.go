package ingress

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/limits"
)

// limitLines are the requests here that wait for a limit to let them in. Each waits in the
// line of the scope that refused it, and lines go by arrival: only the first of a line
// asks again, and only if nobody who came earlier waits for another of its scopes. So
// nobody who comes later takes what an earlier one waits for, and who waits for a limit
// of its own is in nobody's way.
type limitLines struct {
	most  int // waiting at once
	count atomic.Int64

	mu       sync.Mutex
	arrivals uint64
	byScope  map[string]*limitLine
}

type limitLine struct {
	waiters []*limitWaiter // by arrival
	last    limits.Refusal // of the first of them
}

// limitWaiter is one request that waits.
type limitWaiter struct {
	arrival uint64
	scopes  []limits.Scope // of its own goroutine alone
	at      string         // the scope in whose line it stands; empty: in none
	wake    chan struct{}  // it may be its turn
}

// enter makes the request one that waits, in no line yet, or returns nil when too many do.
func (l *limitLines) enter(scopes []limits.Scope) *limitWaiter {
	if l.count.Add(1) > int64(l.most) {
		l.count.Add(-1)
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.arrivals++
	return &limitWaiter{arrival: l.arrivals, scopes: scopes, wake: make(chan struct{}, 1)}
}

// leave ends the waiting.
func (l *limitLines) leave(w *limitWaiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.quit(w)
	l.count.Add(-1)
}

// stand puts the waiter into the line of the scope that refused it. The first there gets
// the time at which it asks again; the others are woken.
func (l *limitLines) stand(w *limitWaiter, r *limits.Refusal) (again <-chan time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.join(w, r.Scope)
	line := l.byScope[r.Scope]
	if line.waiters[0] != w {
		return nil
	}
	line.last = *r
	return time.After(min(max(r.RetryAfter, askLeast), askMost))
}

// turn reports whether the waiter may ask. If an earlier one waits for one of its scopes
// it stands in that line afterwards. Its line goes by the limit that the waiter asks with
// from here on, so that who comes later stands behind those who are left in it.
func (l *limitLines) turn(w *limitWaiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range w.scopes {
		s := &w.scopes[i]
		line := l.byScope[s.ID]
		switch {
		case line == nil:
		case line.waiters[0].arrival < w.arrival:
			l.join(w, s.ID)
			return false
		case line.waiters[0] == w && boundOf(line.last.Limit, &s.Limits) > 0:
			line.last.Most = boundOf(line.last.Limit, &s.Limits)
		}
	}
	return true
}

// refusal returns why a request that comes now does not fit before those that wait for one
// of its scopes; nil if none does. One that would not fit if nobody waited need not be told
// of them. Nor does one wait for them whose limit is another than the one that has refused
// them: it was changed, and the first of them goes by that when it asks again (see turn).
func (l *limitLines) refusal(d *limits.Demand) *limits.Refusal {
	if l.count.Load() == 0 {
		return nil
	}
	if r := d.NeverFits(); r != nil {
		return r
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range d.Scopes {
		s := &d.Scopes[i]
		if line := l.byScope[s.ID]; line != nil && line.last.Most == boundOf(line.last.Limit, &s.Limits) {
			r := line.last
			r.Asked = askedOf(r.Limit, d)
			return &r
		}
	}
	return nil
}

// askedOf is what the demand asks of the limit.
func askedOf(limit string, d *limits.Demand) int64 {
	switch limit {
	case "tokens_per_minute":
		return d.Tokens
	case "budget.day", "budget.week", "budget.month":
		return int64(d.Cost)
	}
	return 1
}

// boundOf is what the limits say of the limit; zero: it bounds nothing.
func boundOf(limit string, l *limits.Limits) int64 {
	switch limit {
	case "requests_per_minute":
		return l.RequestsPerMinute
	case "tokens_per_minute":
		return l.TokensPerMinute
	case "concurrent":
		return l.Concurrent
	case limitQueued:
		return l.Queued
	case "budget.day":
		return int64(l.Budget.Day)
	case "budget.week":
		return int64(l.Budget.Week)
	case "budget.month":
		return int64(l.Budget.Month)
	}
	return 0
}

// wake has the first waiters for the scopes ask again: something was given back.
func (l *limitLines) wake(scopes []limits.Scope) {
	if l.count.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range scopes {
		if line := l.byScope[scopes[i].ID]; line != nil {
			line.waiters[0].poke()
		}
	}
}

// join moves the waiter to the line of the scope. The caller holds mu.
func (l *limitLines) join(w *limitWaiter, scope string) {
	if w.at == scope {
		return
	}
	l.quit(w)
	line := l.byScope[scope]
	if line == nil {
		line = new(limitLine)
		l.byScope[scope] = line
	}
	at, _ := slices.BinarySearchFunc(line.waiters, w.arrival, func(o *limitWaiter, arrival uint64) int {
		if o.arrival < arrival {
			return -1
		}
		return 1
	})
	line.waiters = slices.Insert(line.waiters, at, w)
	w.at = scope
}

// quit takes the waiter out of its line, and has the next one ask. The caller holds mu.
func (l *limitLines) quit(w *limitWaiter) {
	line := l.byScope[w.at]
	if line == nil {
		return
	}
	i := slices.Index(line.waiters, w)
	line.waiters = slices.Delete(line.waiters, i, i+1)
	switch {
	case len(line.waiters) == 0:
		delete(l.byScope, w.at)
	case i == 0:
		line.waiters[0].poke()
	}
	w.at = ""
}

func (w *limitWaiter) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
