package limits

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// errLedger says that the ledger has not answered yet. What it is asked goes on.
var errLedger = errors.New("the ledger has not answered yet")

// question is one to the ledger. A database that is busy, or far away, can take far longer
// than a request waits: its answer comes to whoever flushes the account then.
type question struct {
	budget Budget
	done   chan struct{} // closed with the answer

	said [windows]spent
	err  error
}

// askLedger asks for the money that was spent when the record says nothing of it, when a
// window begins, when the account is opened or its budget changes, and once in a while
// after that. Only in the first case an answer is needed. In the next ones it is waited
// for, for a moment: the record knows what was spent, unless it was not told for a while,
// such as while its holder had no budget, or by a process that was killed. Without an
// answer requests go by the record, and a later answer corrects it.
func (l *Limiter) askLedger(a *account) error {
	a.mu.Lock()
	scope, asked := Scope{ID: a.scope, Limits: a.limits, Before: a.before}, a.asked
	a.mu.Unlock()
	limits := scope.Limits
	early := l.clock.now().early
	needed, wished := a.asksLedger(&limits, early)
	if a.question == nil {
		if !needed && !wished && (limits.Budget == (Budget{}) || l.since()-asked < ledgerEvery) {
			return nil
		}
		if a.question = l.ask(scope, early); a.question == nil && needed {
			return errLedger
		}
	}
	wait := time.Duration(0)
	switch {
	case needed:
		wait = l.patience
	case wished && l.since() >= time.Duration(l.mute.Load()):
		wait = l.patience / wishedPart
	}
	q := a.question
	if q == nil || !q.answered(wait) {
		if wait > 0 {
			l.mute.Store(int64(l.since() + ledgerEvery))
		}
		if needed {
			return errLedger
		}
		return nil
	}
	a.mu.Lock()
	a.question, a.askedOf = nil, q.budget
	if q.budget == a.limits.Budget { // else it is to be asked for the one that came meanwhile
		a.asked = max(l.since(), 1)
	}
	if q.err == nil {
		a.ledger = q.said
	}
	a.mu.Unlock()
	switch {
	case !needed:
		return nil
	case q.err != nil:
		return q.err
	}
	if needed, _ = a.asksLedger(&limits, early); needed {
		return errLedger // it was asked for other windows
	}
	return nil
}

// wishedPart is the part of its patience for which a request waits for an answer that it
// can do without.
const wishedPart = 2

// asksLedger reports whether neither the record nor the ledger's last answer tells what was
// spent in a window that has a budget, and whether the record alone does, of a window that
// begins now or of any since the ledger has to be asked anew.
func (a *account) asksLedger(limits *Limits, early int64) (needed, wished bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lacking, begun := a.rec.lacks(limits), a.rec.begins(limits, early)
	wished = a.asked == 0 && limits.Budget != (Budget{})
	for w := range windows {
		unsaid := a.ledger[w].start != windowStart(w, early)
		needed, wished = needed || lacking[w] && unsaid, wished || begun[w] && unsaid
	}
	return needed, wished
}

// answered reports whether there is an answer, at once or after some waiting.
func (q *question) answered(most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-q.done:
		return true
	case <-timer.C:
	}
	select {
	case <-q.done: // a timer of nothing may be faster
		return true
	default:
		return false
	}
}

// ask asks the ledger for all windows with a budget, or returns nil if too many questions
// wait for it. goodbye waits for the end of it.
func (l *Limiter) ask(scope Scope, early int64) *question {
	if l.pending.Add(1) > maxPending {
		l.pending.Add(-1)
		return nil
	}
	q := &question{budget: scope.Limits.Budget, done: make(chan struct{})}
	l.questions.Go(func() {
		defer l.pending.Add(-1)
		defer close(q.done)
		ctx, cancel := context.WithTimeout(context.Background(), ledgerFor)
		defer cancel()
		l.questions.Go(func() {
			defer cancel()
			select {
			case <-l.hush:
			case <-ctx.Done():
			}
		})
		if l.ledger != nil {
			select {
			case l.asking <- struct{}{}:
				defer func() { <-l.asking }()
			case <-ctx.Done():
				q.err = fmt.Errorf("ask for what was spent: %w", ctx.Err())
				return
			}
		}
		q.said, q.err = l.spentSince(ctx, scope, early)
	})
	return q
}

// spentSince asks the ledger for all windows with a budget at once.
func (l *Limiter) spentSince(ctx context.Context, scope Scope, early int64) ([windows]spent, error) {
	var said [windows]spent
	var group errgroup.Group
	for w, most := range scope.Limits.Budget.budgets() {
		if most == 0 {
			continue
		}
		said[w].start = windowStart(w, early)
		if l.ledger == nil {
			continue
		}
		group.Go(func() error {
			cost, err := l.ledger(ctx, scope, time.UnixMilli(said[w].start).UTC())
			said[w].amount = max(int64(cost), 0)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return said, fmt.Errorf("ask for what was spent: %w", err)
	}
	return said, nil
}
