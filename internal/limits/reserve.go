package limits

import (
	"context"
	"fmt"
	"sync"
	"time"

	"sluice/internal/inference"
)

// reservation is what a request has of each of its scopes.
type reservation struct {
	l *Limiter

	mu      sync.Mutex
	ended   bool
	adopted bool // nobody was asked, and nothing is counted by the minute
	queued  bool
	tokens  int64
	money   int64
	calls   int64 // 1 if it goes on without this process
	holds   []hold
	few     [4]hold // room for the holds of most
}

// hold is a reservation's share in a scope.
type hold struct {
	a     *account
	entry int64 // what it is counted with
}

// Reserve takes what the demand asks for from all of its scopes, or nothing.
func (l *Limiter) Reserve(ctx context.Context, d Demand) (Reservation, error) {
	r := &reservation{l: l, queued: d.Queued, tokens: bounded(d.Tokens), money: max(int64(d.Cost), 0)}
	r.holds = r.few[:0]
	var asked []*asking
	now, at := l.clock.now(), l.since()
	if !d.Ends.IsZero() && !l.alone {
		r.calls = 1
	}
	for i := range d.Scopes {
		s := &d.Scopes[i]
		if !s.counts() {
			continue
		}
		n := needOf(s.Limits, &d)
		if r.calls > 0 {
			n.calls, n.ends = 1, at+time.Until(d.Ends)
			n.until(at, now)
		}
		a, until, err := l.takeOrQueue(s, &n, now, at, &asked)
		if err != nil {
			r.holds = l.giveUp(asked, r.holds)
			r.Release()
			return nil, err
		}
		if a != nil {
			r.holds = append(r.holds, hold{a, until})
		}
	}
	if len(asked) == 0 {
		return r, nil
	}
	holds, err := l.await(ctx, asked)
	r.holds = append(r.holds, holds...)
	if err != nil {
		r.Release()
		return nil, err
	}
	return r, nil
}

// counts reports whether a scope has any limit of its own.
func (s *Scope) counts() bool {
	l := &s.Limits
	return l.RequestsPerMinute > 0 || l.TokensPerMinute > 0 || l.Concurrent > 0 || l.Queued > 0 || l.Budget != (Budget{})
}

// asking is a want with the account that is asked.
type asking struct {
	a *account
	w *want
}

// takeOrQueue takes the need from what is in hand, and returns where it did, or has it
// wait for the record's decision.
func (l *Limiter) takeOrQueue(s *Scope, n *need, now instant, at time.Duration, asked *[]*asking) (*account, int64, error) {
	a, err := l.lock(s.ID)
	if err != nil {
		return nil, 0, err
	}
	defer a.mu.Unlock()
	a.touch(s, at)
	if l.clock.known() {
		if until, ok := a.take(n, now, l.terms.window); ok {
			a.rate.note(n, at)
			if a.low(now, &l.terms) {
				l.refill(a)
			}
			l.tell(a)
			return a, until, nil
		}
	}
	if len(a.waiting) >= maxWaiting || !l.reachable() {
		return nil, 0, ErrUnavailable
	}
	w := &want{need: *n, begun: at, from: at, done: make(chan verdict, 1)}
	a.waiting = append(a.waiting, w)
	*asked = append(*asked, &asking{a, w})
	l.kick(a)
	return nil, 0, nil
}

// refill takes more in advance, in the background. The caller holds the account's mu.
func (l *Limiter) refill(a *account) {
	if a.rate.expected().requests > 0 && l.down.Load() == 0 {
		l.kick(a)
	}
}

// tell has the record told of what has changed before long. The caller holds the
// account's mu.
func (l *Limiter) tell(a *account) {
	within := tellWithin
	if a.tight {
		within = tellTight
	}
	l.wake(a, l.since()+within)
}

// await waits for the decisions. Whatever was admitted is returned, even beside an error:
// that of the refusal that lasts longest, if any refuses.
func (l *Limiter) await(ctx context.Context, asked []*asking) (holds []hold, err error) {
	timer := time.NewTimer(lookFor + 2*l.patience)
	defer timer.Stop()
	var refusal *Refusal
	for i, q := range asked {
		select {
		case v := <-q.w.done:
			switch {
			case v.err != nil:
				err = v.err
			case v.refusal == nil:
				holds = append(holds, hold{q.a, v.entry})
			case refusal == nil || v.refusal.lasts(refusal):
				refusal = v.refusal
			}
		case <-ctx.Done():
			return l.giveUp(asked[i:], holds), fmt.Errorf("reserve: %w", ctx.Err())
		case <-timer.C:
			return l.giveUp(asked[i:], holds), ErrUnavailable
		}
	}
	if refusal != nil {
		return holds, refusal
	}
	return holds, err
}

// giveUp leaves the wants that are not decided, and adds those to the holds that were
// admitted meanwhile.
func (l *Limiter) giveUp(asked []*asking, holds []hold) []hold {
	for _, q := range asked {
		q.a.mu.Lock()
		q.w.left = true
		select {
		case v := <-q.w.done:
			if v.err == nil && v.refusal == nil {
				holds = append(holds, hold{q.a, v.entry})
			}
		default:
		}
		q.a.mu.Unlock()
	}
	return holds
}

// Started says that the request is not queued any more.
func (r *reservation) Started() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || !r.queued {
		return
	}
	r.queued = false
	for _, h := range r.holds {
		h.a.mu.Lock()
		h.a.used.queued--
		r.l.freed(h.a)
		h.a.mu.Unlock()
	}
}

// Settle ends the reservation with what was taken.
func (r *reservation) Settle(tokens int64, cost inference.Cost) {
	tokens, money := bounded(tokens), max(int64(cost), 0)
	r.end(gauges{}, func(a *account, h hold) {
		if left := r.tokens - tokens; left > 0 {
			a.owed = owe(a.owed, entry{until: h.entry, tokens: -left})
		} else if left < 0 {
			a.owed = owe(a.owed, entry{until: r.l.clock.now().late + r.l.terms.window, tokens: -left})
		}
		a.used.money = add(a.used.money, money)
		a.spend = add(a.spend, money)
	})
}

// Abandon ends the reservation of a request that this process does not see through.
func (r *reservation) Abandon() {
	r.end(gauges{concurrent: r.calls, calls: r.calls}, func(a *account, _ hold) {
		a.used.money = add(a.used.money, r.money)
		a.spend = add(a.spend, r.money)
	})
}

// Release ends the reservation and gives back all of it.
func (r *reservation) Release() {
	r.end(gauges{}, func(a *account, h hold) {
		if !r.adopted {
			a.owed = owe(a.owed, entry{h.entry, -1, -r.tokens})
		}
	})
}

// end ends the reservation, but for what stays in hand.
func (r *reservation) end(stays gauges, settle func(a *account, h hold)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	has := gauges{concurrent: 1, money: r.money, calls: r.calls}
	if r.queued {
		has.queued = 1
	}
	has = has.minus(stays)
	at := r.l.since()
	for _, h := range r.holds {
		h.a.mu.Lock()
		h.a.drop(has)
		if r.adopted { // there may be more than fit: its place is nobody's before the record is asked
			h.a.held = h.a.held.minus(has).atLeastZero()
		}
		settle(h.a, h)
		h.a.touched = at
		r.l.freed(h.a)
		h.a.mu.Unlock()
	}
}

// freed has those decided again that wait for a moment at which something was given back,
// and the record told of it. The caller holds the account's mu.
func (l *Limiter) freed(a *account) {
	at := l.since()
	for _, w := range a.waiting {
		w.from = min(w.from, at)
	}
	if len(a.waiting) > 0 {
		l.kick(a)
	}
	l.tell(a)
}

// Adopt takes what a request has in hand that another process had reserved, which is gone.
func (l *Limiter) Adopt(d Demand) Reservation {
	r := &reservation{l: l, adopted: true, money: max(int64(d.Cost), 0)}
	r.holds = r.few[:0]
	at := l.since()
	for i := range d.Scopes {
		s := &d.Scopes[i]
		if !s.counts() {
			continue
		}
		a, err := l.lock(s.ID)
		if err != nil {
			continue // as in Charge
		}
		a.touch(s, at)
		a.used = a.used.plus(gauges{concurrent: 1, money: r.money})
		l.tell(a)
		a.mu.Unlock()
		r.holds = append(r.holds, hold{a: a})
	}
	return r
}

// Charge adds what a request has taken that was not reserved here.
func (l *Limiter) Charge(d Demand) {
	at := l.since()
	for i := range d.Scopes {
		s := &d.Scopes[i]
		if !s.counts() {
			continue
		}
		a, err := l.lock(s.ID)
		if err != nil {
			continue // so many scopes are in use that one that is not known cannot be remembered
		}
		money := max(int64(d.Cost), 0)
		a.touch(s, at)
		a.owed = owe(a.owed, entry{l.clock.now().late + l.terms.window, 1, bounded(d.Tokens)})
		a.used.money, a.spend = add(a.used.money, money), add(a.spend, money)
		l.tell(a)
		a.mu.Unlock()
	}
}

// Standing returns how the scopes stand, as far as this process knows.
func (l *Limiter) Standing(scopes []Scope) Standing {
	var s Standing
	now := l.clock.now()
	for i := range scopes {
		lim := &scopes[i].Limits
		if lim.RequestsPerMinute == 0 && lim.TokensPerMinute == 0 {
			continue
		}
		requests, tokens, reset := l.taken(scopes[i].ID, now)
		s.Requests.least(lim.RequestsPerMinute, requests, reset)
		s.Tokens.least(lim.TokensPerMinute, tokens, reset)
	}
	return s
}

// least takes over a limit that leaves less.
func (left *Left) least(limit, taken int64, reset time.Duration) {
	if limit == 0 {
		return
	}
	if remaining := max(limit-max(taken, 0), 0); left.Limit == 0 || remaining < left.Remaining {
		*left = Left{limit, remaining, reset}
	}
}

// taken returns what counts of a scope's windows of a minute, and for how long.
func (l *Limiter) taken(scope string, now instant) (requests, tokens int64, reset time.Duration) {
	l.mu.RLock()
	a := l.accounts[scope]
	l.mu.RUnlock()
	if a == nil {
		return 0, 0, 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	until := now.early
	sum := func(list []entry) {
		for _, e := range list {
			if e.until > now.early {
				requests, tokens = add(requests, e.requests), add(tokens, e.tokens)
				until = max(until, e.until)
			}
		}
	}
	if a.rec != nil {
		sum(a.rec.entries)
	}
	sum(a.owed)
	for _, h := range a.hands {
		requests, tokens = requests-h.requests, tokens-h.tokens
	}
	return requests, tokens, time.Duration(until-now.early) * time.Millisecond
}
