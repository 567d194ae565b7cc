package limits

import (
	"time"
)

// flight is a change on its way to the counters.
type flight struct {
	change
	out  *outcome
	base uint64 // the revision it is made of
	at   time.Duration
	had  gauges // what was held before
}

// depart makes the next change out of what waits and what is owed. Nothing that the
// change may give away can be taken from the account until it has landed. The caller
// holds mu and has a record.
func (a *account) depart(l *Limiter, at time.Duration, now instant) (*flight, error) {
	f := &flight{base: a.revision, at: at, had: a.held}
	for i, w := range a.waiting {
		if w.left {
			a.waiting[i] = nil
		} else if w.from <= at && len(f.wants) < maxGather {
			w.until(at, now)
			f.wants = append(f.wants, w)
			a.waiting[i] = nil
		}
	}
	a.waiting = compact(a.waiting)
	leaving := l.leaving.Load()
	a.fold(now, len(f.wants) > 0 || leaving)
	f.change = change{
		process: l.process, id: l.changes.Add(1), now: now, limits: a.limits, owed: a.due(now), spend: a.spend,
		ended: a.endedElsewhere(at, now.early), hold: a.used.minus(gauges{money: a.spend}), busy: a.over, hand: a.handsEnd(), wants: f.wants, ledger: a.ledger, terms: l.terms,
	}
	a.owed = nil
	a.rate.turn(at)
	if !leaving {
		f.spare = a.rate.expected()
	}
	if !a.low(now, &l.terms) && len(f.wants) == 0 {
		f.spare.requests, f.spare.tokens = 0, 0 // there is enough in hand
	}
	f.leave = a.used == gauges{} && a.held == gauges{} && len(f.wants) == 0 && f.spare == (amounts{}) &&
		len(f.owed) == 0 && len(f.ended) == 0 && f.spend == 0 && f.hand == 0
	f.parts = leaving && f.busy > 0 && f.hold == gauges{concurrent: f.hold.calls, calls: f.hold.calls} && len(f.wants) == 0
	out, err := f.apply(a.scope, a.rec)
	if err != nil {
		a.cancel(f)
		return nil, err
	}
	f.out = out
	a.spend -= f.spend
	a.held = a.held.least(out.held.minus(out.taken).plus(gauges{money: f.spend}))
	return f, nil
}

// compact drops the wants that are nil.
func compact(list []*want) []*want {
	kept := list[:0]
	for _, w := range list {
		if w != nil {
			kept = append(kept, w)
		}
	}
	clear(list[len(kept):])
	return kept
}

// due returns what is owed, without what does not count any more. The caller holds mu.
func (a *account) due(now instant) []entry {
	kept := a.owed[:0]
	for _, e := range a.owed {
		if e.until > now.early && (e.requests != 0 || e.tokens != 0) {
			kept = append(kept, e)
		}
	}
	return kept
}

// land takes over what a change has made. The caller holds mu.
func (a *account) land(l *Limiter, f *flight, revision uint64) {
	a.rec, a.revision, a.seen, a.swapped = f.out.rec, revision, f.at, f.at
	sum := a.rec.total()
	a.tight = a.limits.Concurrent > 0 && 2*sum.concurrent >= a.limits.Concurrent || a.limits.Queued > 0 && 2*sum.queued >= a.limits.Queued
	a.arrived(l, f)
}

// arrived is land without the record, which may have changed since. The caller holds mu.
func (a *account) arrived(l *Limiter, f *flight) {
	now := l.clock.now()
	a.used.money -= f.spend
	a.held, a.parted = f.out.held, f.parts
	a.ends = f.now.late + l.terms.holder - l.terms.reach
	if s := f.out.spare; s.requests > 0 || s.tokens > 0 {
		a.hands = append(a.hands, hand{f.now.late + l.terms.hand, f.out.until, s.requests, s.tokens})
	}
	for _, w := range f.wants {
		if w.left || now.late > f.now.late+l.terms.reach {
			a.owed = owe(a.owed, entry{f.out.until, -1, -w.tokens})
			w.end(verdict{err: ErrUnavailable})
			continue
		}
		a.use(&w.need)
		a.rate.note(&w.need, f.at)
		w.end(verdict{entry: f.out.until})
	}
}

// regain takes back what a change would have told that was never made. The caller holds
// mu.
func (a *account) regain(f *flight) {
	for _, e := range f.owed {
		a.owed = owe(a.owed, e)
	}
	for _, e := range f.ended {
		a.ended = oweEnd(a.ended, e)
	}
	if f.out != nil {
		a.spend += f.spend
		a.held = f.had
	}
}

// end tells the want's end to whoever waits. The caller holds the account's mu.
func (w *want) end(v verdict) {
	if w.left {
		return
	}
	w.left = true
	w.done <- v
}

// fail ends wants with an error. The caller holds mu.
func fail(list []*want, err error) {
	for _, w := range list {
		w.end(verdict{err: err})
	}
}
