package limits

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// kick has the account flushed by a goroutine if none does. The caller holds the
// account's mu.
func (l *Limiter) kick(a *account) {
	if a.busy {
		return
	}
	if !l.begin() {
		fail(a.waiting, ErrUnavailable)
		a.waiting = nil
		return
	}
	a.busy = true
	go func() {
		defer l.work.Done()
		l.slots <- struct{}{}
		defer func() { <-l.slots }()
		for l.flush(a) {
		}
	}()
}

// flush brings what waits and what is owed to the record, in one swap. It returns whether
// there is more to do; when not, the account is not busy any more.
func (l *Limiter) flush(a *account) (more bool) {
	again, err := l.round(a)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		l.log.Debug("limits not told", "error", err)
		fail(a.waiting, ErrUnavailable)
		a.waiting = nil
		l.wake(a, l.since()+retryEvery)
		a.busy = false
		return false
	}
	at := l.since()
	for i, w := range a.waiting {
		if w.left || at > w.from+l.patience {
			w.end(verdict{err: ErrUnavailable})
			a.waiting[i] = nil
		}
	}
	a.waiting = compact(a.waiting)
	ready := false
	for _, w := range a.waiting {
		if w.from > at {
			l.wake(a, w.from)
		}
		ready = ready || w.from <= at
	}
	if again || ready {
		return true
	}
	l.wakeForMore(a, at)
	a.busy = false
	return false
}

// wakeForMore has the account flushed again for what came since the change was made, and
// to give back what is in hand. The caller holds mu.
func (l *Limiter) wakeForMore(a *account, at time.Duration) {
	if end := a.handsEnd(); end > 0 {
		left := time.Duration(max(end-l.clock.now().late, 0)+1) * time.Millisecond
		l.wake(a, at+min(left, tellWithin))
	} else if a.held != a.used || a.spend != 0 || len(a.owed) > 0 {
		l.wake(a, at+tellWithin)
	}
}

// round is one try. An error says that the counters, or the ledger, did not answer.
func (l *Limiter) round(a *account) (again bool, err error) {
	if a.unasked() && int64(l.since()) < l.down.Load() {
		return false, ErrUnavailable // whoever waits, or the clock, will find out when it is back
	}
	if !l.clock.known() {
		if err := l.measure(); err != nil {
			return false, err
		}
	}
	if a.unsure != nil {
		if again, err := l.resolve(a); again || err != nil {
			return again, err
		}
	}
	if a.rec == nil || a.looks(l.since()) {
		if err := l.load(a); err != nil {
			return false, err
		}
	}
	if err := l.askLedger(a); err != nil {
		return false, err
	}
	a.mu.Lock()
	f, err := a.depart(l, l.since(), l.clock.now())
	if err != nil {
		a.mu.Unlock()
		return false, err
	}
	if a.stale(f) {
		a.cancel(f)
		a.mu.Unlock()
		return true, l.load(a)
	}
	l.judge(a, f)
	if !f.out.changed && (!f.leave || !f.out.rec.empty() || f.base == 0) {
		a.regain(f) // the record stays as it was seen: nothing of the change is in it
		a.mu.Unlock()
		return false, nil
	}
	a.mu.Unlock()
	return l.swap(a, f)
}

// unasked reports whether no request waits.
func (a *account) unasked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.waiting) == 0
}

// stale reports whether the change refuses somebody by a record that was seen too long
// ago for that. The caller holds mu.
func (a *account) stale(f *flight) bool {
	for i, w := range f.wants {
		if f.out.refused[i] != nil && w.from > a.seen {
			return true
		}
	}
	return false
}

// cancel undoes a departure. The caller holds mu.
func (a *account) cancel(f *flight) {
	a.regain(f)
	a.waiting = append(f.wants, a.waiting...)
}

// judge ends the wants that the change refuses, or has them wait for what others have in
// hand. Those that it admits are left. The caller holds mu.
func (l *Limiter) judge(a *account, f *flight) {
	admitted := f.wants[:0]
	defer func() { f.wants, f.out.refused = admitted, nil }()
	for i, w := range f.wants {
		refusal := f.out.refused[i]
		if refusal == nil {
			admitted = append(admitted, w)
			continue
		}
		if from, ok := l.lookAgain(f, w, refusal); ok && !w.left {
			w.from, w.looks = from, w.looks+1
			a.waiting = append(a.waiting, w)
			l.wake(a, from)
			continue
		}
		w.end(verdict{refusal: refusal})
	}
}

// lookAgain returns when a want may fit although it does not now: when others have given
// back what they took in advance, or what a request that ended a moment ago had.
func (l *Limiter) lookAgain(f *flight, w *want, refusal *Refusal) (time.Duration, bool) {
	if refusal.RetryAfter == 0 || f.at-w.begun >= lookFor {
		return 0, false
	}
	pause := min(lookFirst<<min(w.looks, 4), lookFor)
	until, hands := f.out.rec.handsOfOthers(l.process, f.now.early, lateHand.Milliseconds())
	switch {
	case hands:
		pause = max(pause, time.Duration(until-f.now.early+1)*time.Millisecond)
	case refusal.RetryAfter != gaugeRetry || !f.out.rec.othersHold(l.process, f.now.early):
		return 0, false
	}
	return min(f.at+pause, w.begun+lookFor), true
}

// othersHold reports whether another process, which is there, has anything in hand.
func (r *record) othersHold(process uint64, early int64) bool {
	for _, h := range r.holders {
		if h.process != process && h.end > early && h.gauges != (gauges{}) {
			return true
		}
	}
	return false
}

// swap sends a change.
func (l *Limiter) swap(a *account, f *flight) (again bool, err error) {
	ctx, cancel := l.patient()
	defer cancel()
	began := l.since()
	var revision uint64
	if f.out.rec.empty() {
		if f.base > 0 {
			err = l.counters.Remove(ctx, a.scope, f.base)
		}
	} else {
		revision, err = l.counters.Swap(ctx, a.scope, f.out.rec.encode(), f.base)
	}
	l.observe(err, l.since()-began)
	if errors.Is(err, ErrConflict) {
		l.reached()
		a.mu.Lock()
		a.rec = nil
		a.cancel(f)
		a.conflicts++
		a.mu.Unlock()
		if a.conflicts > 1 { // whoever was first is let through
			pause(ctx, rand.N(time.Millisecond<<min(a.conflicts, 4)))
		}
		return true, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		l.unreached()
		a.unsure, a.rec = f, nil
		fail(f.wants, ErrUnavailable)
		return false, fmt.Errorf("swap: %w", err)
	}
	l.reached()
	a.conflicts = 0
	a.land(l, f, revision)
	return false, nil
}

// resolve finds out what became of a swap that was not answered. As long as it may yet
// be made, the record is replaced by itself, so that it cannot be any more.
func (l *Limiter) resolve(a *account) (again bool, err error) {
	if err := l.load(a); err != nil {
		return false, err
	}
	f := a.unsure
	share := a.rec.holder(l.process)
	switch {
	case share != nil && share.change == f.id:
		a.mu.Lock()
		defer a.mu.Unlock()
		a.arrived(l, f)
		a.unsure = nil
		return false, nil
	case a.revision == f.base:
		return true, l.fence(a, f)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.since()-f.at > time.Duration(l.terms.holder)*time.Millisecond/2 {
		// It may have been made, and the process's share dropped since. What it gave back
		// is not given back twice.
		for i, e := range f.owed {
			f.owed[i].requests, f.owed[i].tokens = max(e.requests, 0), max(e.tokens, 0)
		}
		f.ended = nil
	}
	a.regain(f)
	a.unsure = nil
	return false, nil
}

func (l *Limiter) fence(a *account, f *flight) error {
	ctx, cancel := l.patient()
	defer cancel()
	r := a.rec.clone()
	share := r.holder(l.process)
	if share == nil {
		r.holders = append(r.holders, holder{process: l.process, end: l.clock.now().late + l.terms.holder})
		share = r.holder(l.process)
	}
	share.change = l.changes.Add(1)
	if !r.makeRoom(l.clock.now().early) {
		return errCrowded
	}
	revision, err := l.counters.Swap(ctx, a.scope, r.encode(), a.revision)
	if errors.Is(err, ErrConflict) {
		return nil
	}
	if err != nil {
		l.unreached()
		return fmt.Errorf("swap: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rec, a.revision = r, revision
	a.regain(f)
	a.unsure = nil
	return nil
}

// load reads the account's record.
func (l *Limiter) load(a *account) error {
	ctx, cancel := l.patient()
	defer cancel()
	at := l.since()
	r, revision, err := l.read(ctx, a.scope)
	switch {
	case errors.Is(err, errRecord):
		return err
	case err != nil:
		l.unreached()
		return err
	}
	l.reached()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rec, a.revision, a.seen = r, revision, at
	return nil
}

// read returns the scope's record and its revision: an empty one if there is none.
func (l *Limiter) read(ctx context.Context, scope string) (*record, uint64, error) {
	data, revision, err := l.counters.Load(ctx, scope)
	switch {
	case errors.Is(err, ErrNoRecord):
		return &record{}, 0, nil
	case err != nil:
		return nil, 0, fmt.Errorf("load: %w", err)
	}
	r, err := decodeRecord(data)
	return r, revision, err
}

// patient returns a context for one question to the counters.
func (l *Limiter) patient() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), l.patience)
}

// pause waits for a moment, or less if the context ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
