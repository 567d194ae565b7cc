package limits

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
)

// Count is what the counters say of a scope, of all processes together. What a process has
// not told yet is missing from it, which is at most a tenth of a second's; and it has what
// processes took in advance, until they give it back.
type Count struct {
	Requests, Tokens Taken // in the last minute
	Concurrent       int64 // those included that go on without the process that accepted them
	Queued           int64
	Processes        int // that are there and have a share

	// Spent is the money of the calendar windows, each of which ends at its time in Ends.
	// Of a window without a budget nothing is known.
	Spent Budget
	Ends  Ends

	Reserved inference.Cost // money that is neither spent nor given back
	Orphaned inference.Cost // of it: by processes that are gone
	Until    time.Time      // when all of that will have been given back; zero: there is none
}

// Taken is what counts of a window of a minute.
type Taken struct {
	Used  int64
	Reset time.Duration // until none of it counts any more
}

// Ends are when the calendar windows end.
type Ends struct{ Day, Week, Month time.Time }

// countPatience bounds the wait for the counts of a scope. Nobody's request waits for it.
const countPatience = 5 * time.Second

// Count reads what is counted for the scopes, from whoever keeps the counters: what this
// process knows by itself plays no part. Errors: ErrUnavailable, ctx's.
func (l *Limiter) Count(ctx context.Context, scopes []Scope) ([]Count, error) {
	ctx, cancel := context.WithTimeout(ctx, countPatience)
	defer cancel()
	if !l.clock.known() {
		if err := l.clock.measure(ctx, l.counters); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	counts := make([]Count, len(scopes))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxAsking)
	for i := range scopes {
		group.Go(func() (err error) {
			counts[i], err = l.count(ctx, &scopes[i])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return counts, nil
}

func (l *Limiter) count(ctx context.Context, s *Scope) (Count, error) {
	r, _, err := l.read(ctx, s.ID)
	if err != nil {
		return Count{}, err
	}
	early := l.clock.now().early
	if err := l.complete(ctx, r, s, early); err != nil {
		return Count{}, err
	}
	r.expire(early)
	return r.shown(&s.Limits, early), nil
}

// complete has the record say what was spent in the windows of now. Of those that begin
// the record knows enough if the ledger does not answer.
func (l *Limiter) complete(ctx context.Context, r *record, s *Scope, early int64) error {
	lacking, begun := r.lacks(&s.Limits), r.begins(&s.Limits, early)
	none := [windows]bool{}
	if lacking == none && begun == none {
		return nil
	}
	said, err := l.spentSince(ctx, *s, early)
	if err != nil && lacking != none {
		return err
	}
	for w := range windows {
		switch {
		case !lacking[w] && !begun[w]:
		case err != nil:
			r.spent[w] = spent{}
		default:
			r.spent[w] = said[w]
		}
	}
	return nil
}

// shown returns what a record says that has nothing in it which does not count any more.
func (r *record) shown(l *Limits, early int64) Count {
	sum := r.total()
	c := Count{
		Requests: Taken{Used: sum.requests}, Tokens: Taken{Used: sum.tokens},
		Concurrent: sum.concurrent, Queued: sum.queued, Reserved: inference.Cost(sum.money),
	}
	for _, e := range r.entries {
		left := time.Duration(e.until-early) * time.Millisecond
		if e.requests > 0 {
			c.Requests.Reset = left
		}
		if e.tokens > 0 {
			c.Tokens.Reset = left
		}
	}
	for _, h := range r.holders {
		if h.end > early {
			c.Processes++
			continue
		}
		c.Orphaned += inference.Cost(h.money)
		if h.money == 0 {
			continue
		}
		if free := time.UnixMilli(h.end).Add(moneyGrace).UTC(); free.After(c.Until) {
			c.Until = free
		}
	}
	var spent [windows]inference.Cost
	for w, most := range l.Budget.budgets() {
		if most > 0 {
			spent[w] = inference.Cost(r.spent[w].amount)
		}
	}
	end := func(window int) time.Time { return time.UnixMilli(windowEnd(window, early)).UTC() }
	c.Spent, c.Ends = Budget{spent[day], spent[week], spent[month]}, Ends{end(day), end(week), end(month)}
	return c
}
