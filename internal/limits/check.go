package limits

import (
	"time"
)

// gaugeRetry is the guess at when a request ends that holds up another.
const gaugeRetry = time.Second

// need is what a request asks of one scope.
type need struct {
	limits Limits
	tokens int64
	gauges               // concurrent is 1, queued and calls 0 or 1
	ends   time.Duration // of one that is a call: when it is surely over, since the clock began
	busy   int64         // the same by the counters' clock; zero: it is none
}

func needOf(l Limits, d *Demand) need {
	n := need{limits: l, tokens: bounded(d.Tokens), gauges: gauges{concurrent: 1, money: max(int64(d.Cost), 0)}}
	if d.Queued {
		n.queued = 1
	}
	return n
}

// until notes by the counters' clock when a call is surely over.
func (n *need) until(at time.Duration, now instant) {
	if n.calls > 0 {
		n.busy = now.late + max(n.ends-at, 0).Milliseconds() + 1
	}
}

// bounded keeps a number of tokens within what a limit may be.
func bounded(tokens int64) int64 { return min(max(tokens, 0), maxCount) }

// checker decides whether a need fits into a record.
type checker struct {
	scope string
	rec   *record
	sum   total // of the record, kept up by whoever adds to it
	early int64
}

// refuse returns nil if the need fits, and otherwise the refusal that lasts longest.
func (c *checker) refuse(n *need) *Refusal {
	var worst *Refusal
	note := func(limit string, most, asked int64, after time.Duration) {
		if asked > most {
			after = 0
		} else {
			after = max(after, time.Millisecond)
		}
		r := &Refusal{Scope: c.scope, Limit: limit, Most: most, Asked: asked, RetryAfter: after}
		if worst == nil || r.lasts(worst) {
			worst = r
		}
	}
	l := &n.limits
	over := func(most, has, asked int64) bool { return most > 0 && asked > 0 && add(has, asked) > most }
	if over(l.RequestsPerMinute, c.sum.requests, 1) {
		note("requests_per_minute", l.RequestsPerMinute, 1, c.frees(c.sum.requests+1-l.RequestsPerMinute, false))
	}
	if over(l.TokensPerMinute, c.sum.tokens, n.tokens) {
		note("tokens_per_minute", l.TokensPerMinute, n.tokens, c.frees(add(c.sum.tokens, n.tokens)-l.TokensPerMinute, true))
	}
	if over(l.Concurrent, c.sum.concurrent, n.concurrent) {
		note("concurrent", l.Concurrent, n.concurrent, gaugeRetry)
	}
	if over(l.Queued, c.sum.queued, n.queued) {
		note("queued", l.Queued, n.queued, gaugeRetry)
	}
	for w, most := range l.Budget.budgets() {
		if spent := c.rec.spent[w].amount; over(most, add(spent, c.sum.money), n.money) {
			after := gaugeRetry // what others have reserved and do not take comes back
			if over(most, spent, n.money) {
				after = time.Duration(windowEnd(w, c.early)-c.early) * time.Millisecond
			}
			note(windowNames[w], most, n.money, after)
		}
	}
	return worst
}

// NeverFits returns the refusal of a demand that is larger than one of its limits, whatever
// else there is; nil if none is.
func (d *Demand) NeverFits() *Refusal {
	for i := range d.Scopes {
		s := &d.Scopes[i]
		n := needOf(s.Limits, d)
		if r := (&checker{scope: s.ID, rec: new(record)}).refuse(&n); r != nil {
			return r
		}
	}
	return nil
}

// lasts reports whether r refuses for longer than o.
func (r *Refusal) lasts(o *Refusal) bool {
	return o.RetryAfter != 0 && (r.RetryAfter == 0 || r.RetryAfter > o.RetryAfter)
}

// frees returns when entries with so many tokens, or requests, will have run out.
func (c *checker) frees(many int64, tokens bool) time.Duration {
	for _, e := range c.rec.entries {
		if tokens {
			many -= e.tokens
		} else {
			many -= e.requests
		}
		if many <= 0 {
			return time.Duration(e.until-c.early) * time.Millisecond
		}
	}
	return windowLength
}

// A process takes in advance only while less than half of a limit is used, and at most an
// eighth of what is left.
const (
	roomPart  = 2
	spareEach = 8
)

// spare returns how much of what a process would like to have in hand it may take.
func (c *checker) spare(l *Limits, want amounts) amounts {
	var got amounts
	part := func(most, has, want int64) int64 {
		switch {
		case most == 0:
			return want
		case has >= most/roomPart:
			return 0
		}
		return min(want, (most-has)/spareEach)
	}
	if l.RequestsPerMinute > 0 || l.TokensPerMinute > 0 {
		got.requests = part(l.RequestsPerMinute, c.sum.requests, want.requests)
		got.tokens = part(l.TokensPerMinute, c.sum.tokens, want.tokens)
		if got.requests == 0 || l.TokensPerMinute > 0 && got.tokens == 0 && want.tokens > 0 {
			got.requests, got.tokens = 0, 0
		}
	}
	// What is not bounded is not asked for, and so needs nothing in advance.
	if l.Concurrent > 0 {
		got.concurrent = part(l.Concurrent, c.sum.concurrent, want.concurrent)
	}
	if l.Queued > 0 {
		got.queued = part(l.Queued, c.sum.queued, want.queued)
	}
	if l.Budget != (Budget{}) {
		got.money = want.money
		for w, most := range l.Budget.budgets() {
			got.money = part(most, add(c.rec.spent[w].amount, c.sum.money), got.money)
		}
	}
	return got
}

// amounts are of each thing that is counted.
type amounts struct {
	requests, tokens int64
	gauges
}
