package limits

import (
	"errors"
	"time"
)

// windowLength is what the limits by minute are counted in.
const windowLength = time.Minute

// errCrowded says that more processes than a record has room for hold something of it.
var errCrowded = errors.New("too many processes hold a share of the scope")

// change is what one process asks of a record in one swap.
type change struct {
	process uint64
	id      uint64 // unlike every other change that the process asks for
	now     instant

	limits Limits // as the process knows them
	owed   []entry
	spend  int64   // money that was reserved and is spent now
	ended  []ended // of processes that are gone
	hold   gauges  // what the process uses, without that money
	busy   int64   // when its calls are surely over; zero: it has none
	hand   int64   // until when it has in hand what it took earlier
	wants  []*want
	spare  amounts // what it would like to have in hand beside
	ledger [windows]spent
	leave  bool // it uses nothing and goes
	parts  bool // it goes, and its calls go on without it

	terms terms
}

// terms are for how long things are good, in milliseconds.
type terms struct {
	window int64 // the length of the window of the limits by minute
	hand   int64 // what is in hand may be used for so long
	reach  int64 // what a change took may be used for so long; not less than hand
	holder int64 // a process that has not been heard of for so long is gone
}

// outcome is what a change makes of a record.
type outcome struct {
	rec     *record
	changed bool
	refused []*Refusal // by want; nil: it fits
	taken   gauges     // of all wants that fit
	spare   amounts    // what is in hand beside
	held    gauges     // the process's share
	until   int64      // when the entry that was added to stops to count
}

// apply returns what becomes of the record, which stays as it is.
func (c *change) apply(scope string, old *record) (*outcome, error) {
	r := old.clone()
	r.over(c.ended, c.now.early)
	r.expire(c.now.early)
	for _, e := range c.owed {
		r.count(e)
	}
	c.roll(r)
	share := r.holder(c.process)
	if share == nil && !c.leave {
		r.holders = append(r.holders, holder{process: c.process})
		share = r.holder(c.process)
	}
	if share != nil {
		share.gauges, share.busy = c.hold.atLeastZero(), c.busy
	}
	o := &outcome{rec: r, refused: make([]*Refusal, len(c.wants)), until: c.now.late + c.terms.reach + c.terms.window}
	check := checker{scope: scope, rec: r, sum: r.total(), early: c.now.early}
	took := c.take(&check, o)
	o.changed = took || len(c.owed) > 0 || len(c.ended) > 0 || c.spend != 0 || r.spent != old.spent
	if c.leave {
		o.leave(c.process)
		o.changed = o.changed || len(r.entries) != len(old.entries) || len(r.holders) != len(old.holders)
		return o, nil
	}
	o.spare = check.spare(&c.limits, c.spare)
	if o.spare != (amounts{}) {
		r.count(entry{o.until, o.spare.requests, o.spare.tokens})
		share.gauges = share.plus(o.spare.gauges)
		share.hand = c.now.late + c.terms.hand
	} else {
		share.hand = c.hand
	}
	share.change, share.end = c.id, c.now.late+c.terms.holder
	if c.parts {
		share.end = c.now.early
	}
	o.held = share.gauges
	before := old.holder(c.process)
	o.changed = o.changed || o.spare != (amounts{}) || before == nil || c.differs(before, share)
	if before == nil && !o.changed {
		o.leave(c.process)
	}
	if !r.makeRoom(c.now.early) {
		return nil, errCrowded
	}
	return o, nil
}

// renewals is how often in the time after which it is taken to be gone a process says
// that it is there.
const renewals = 3

// differs reports whether the record is to be told of the process's share.
func (c *change) differs(before, share *holder) bool {
	return before.gauges != share.gauges || before.hand != share.hand || before.busy != share.busy ||
		share.end-before.end >= c.terms.holder/renewals || c.parts && before.end > share.end
}

func (o *outcome) leave(process uint64) {
	for i, h := range o.rec.holders {
		if h.process == process {
			o.rec.holders = append(o.rec.holders[:i], o.rec.holders[i+1:]...)
			return
		}
	}
}

// take decides the wants in their order and adds those that fit.
func (c *change) take(check *checker, o *outcome) bool {
	share := o.rec.holder(c.process)
	fits := 0
	for i, w := range c.wants {
		if o.refused[i] = check.refuse(&w.need); o.refused[i] != nil {
			continue
		}
		fits++
		o.rec.count(entry{o.until, 1, w.tokens})
		o.taken = o.taken.plus(w.gauges)
		share.gauges, share.busy = share.plus(w.gauges), max(share.busy, w.busy)
		check.sum.requests, check.sum.tokens = add(check.sum.requests, 1), add(check.sum.tokens, w.tokens)
		check.sum.gauges = check.sum.plus(w.gauges)
	}
	return fits > 0
}

// roll brings the money to the windows of now. A window that comes after one of the
// record's begins with nothing: whatever was spent in it so far would have been told to
// this record, which would have come to the window with that. The first one of all begins
// with what the ledger says.
func (c *change) roll(r *record) {
	for w, most := range c.limits.Budget.budgets() {
		start := windowStart(w, c.now.early)
		has := &r.spent[w]
		known := has.start != 0 || c.ledger[w].start == start
		switch {
		case has.start >= start:
		case most == 0:
			*has = spent{}
			continue
		default:
			*has = spent{start: start}
		}
		if c.ledger[w].start == has.start {
			has.amount = max(has.amount, c.ledger[w].amount)
		}
		has.amount = add(has.amount, c.spend)
		if has.amount == 0 && !known {
			*has = spent{}
		}
	}
}

// lacks returns the windows of which the record says nothing at all: the ledger must.
func (r *record) lacks(l *Limits) (lacking [windows]bool) {
	for w, most := range l.Budget.budgets() {
		lacking[w] = most > 0 && r.spent[w].start == 0
	}
	return lacking
}

// begins returns the windows that have begun since the record was last changed.
func (r *record) begins(l *Limits, early int64) (begun [windows]bool) {
	for w, most := range l.Budget.budgets() {
		begun[w] = most > 0 && r.spent[w].start != 0 && r.spent[w].start < windowStart(w, early)
	}
	return begun
}
