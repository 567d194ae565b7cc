package limits

import (
	"sync"
	"time"
)

// account is what this process knows of one scope, what it has in hand of it, and what it
// has yet to tell.
type account struct {
	scope string

	mu     sync.Mutex
	limits Limits        // as last asked with
	before []ModelLimits // the same, of the scope
	gone   bool          // forgotten: whoever still points at it looks the scope up again

	used  gauges // by reservations here, and money that was spent and not told
	held  gauges // of the record; what is not used may be
	ends  int64  // when the record stops to say so
	hands []hand
	rate  rate
	over  int64 // when the calls in hand are surely over; zero: there are none

	owed  []entry
	spend int64   // of used.money: what was spent
	ended []ended // of which the record is yet to be told

	waiting []*want
	wakeAt  time.Duration // when it is to be flushed, since the clock began; zero: never
	busy    bool          // a goroutine flushes it
	touched time.Duration // when a request last came or ended
	tight   bool          // little is left of a gauge
	parted  bool          // the record knows that the process is gone
	asked   time.Duration // when the ledger last answered, or did not; zero: it has to be asked
	askedOf Budget        // what it was asked for then

	// What follows is changed under mu: by the goroutine that flushes, or while none does.
	// That goroutine alone therefore reads it without; nobody else changes it meanwhile. The
	// question is its own, and nobody else's to look at.
	rec       *record // as it was last seen; nil: not known
	revision  uint64
	seen      time.Duration // when it was asked for
	swapped   time.Duration // when it was last changed
	unsure    *flight       // a swap that nobody knows the end of
	ledger    [windows]spent
	question  *question // on its way to the ledger
	conflicts int       // in a row
}

// hand is what was taken in advance and may be used without asking.
type hand struct {
	until            int64 // when it may not be used any more
	entry            int64 // what the record counts it with
	requests, tokens int64
}

// want is a request that waits for the record's decision.
type want struct {
	need

	begun time.Duration
	from  time.Duration // when it is decided; the record must have been seen after this to refuse it
	looks int
	left  bool // nobody waits any more
	done  chan verdict
}

// verdict is the end of a want: an entry to charge, a refusal or an error.
type verdict struct {
	entry   int64
	refusal *Refusal
	err     error
}

// budgetEvery is how often the ledger is asked, at most, because a budget is another one than
// it was asked for.
const budgetEvery = 30 * time.Second

// touch notes what a request asks with. A budget that changes may have been away, and what
// was spent meanwhile is not in the record. Callers of one scope may differ in what their
// tokens say, for as long as these last: the ledger is not asked at each of them, nor does
// every other request wait for it.
func (a *account) touch(s *Scope, at time.Duration) {
	if s.Limits.Budget != a.askedOf && at-a.asked >= budgetEvery {
		a.asked = 0
	}
	a.limits, a.before, a.touched = s.Limits, s.Before, at
}

// take takes the need out of what is in hand, if that suffices. The caller holds mu.
func (a *account) take(n *need, now instant, window int64) (entryUntil int64, ok bool) {
	if !a.room(n, now) {
		return 0, false
	}
	if n.limits.RequestsPerMinute == 0 && n.limits.TokensPerMinute == 0 {
		until := now.late + window
		a.owed = owe(a.owed, entry{until, 1, n.tokens})
		a.use(n)
		return until, true
	}
	for i := range a.hands {
		h := &a.hands[i]
		if now.late > h.until || n.limits.RequestsPerMinute > 0 && h.requests < 1 || n.limits.TokensPerMinute > 0 && h.tokens < n.tokens {
			continue
		}
		// What is not bounded may be more than what is in hand: it is told afterwards.
		requests, tokens := min(1, h.requests), min(n.tokens, h.tokens)
		h.requests, h.tokens = h.requests-requests, h.tokens-tokens
		if requests < 1 || tokens < n.tokens {
			a.owed = owe(a.owed, entry{h.entry, 1 - requests, n.tokens - tokens})
		}
		a.use(n)
		return h.entry, true
	}
	return 0, false
}

// use notes that a request has the need in hand. The caller holds mu.
func (a *account) use(n *need) {
	a.used, a.over = a.used.plus(n.gauges), max(a.over, n.busy)
}

// drop notes that a request has so much in hand no more. The caller holds mu.
func (a *account) drop(g gauges) {
	if a.used = a.used.minus(g); a.used.calls == 0 {
		a.over = 0
	}
}

// room reports whether the gauges have room in what is held.
func (a *account) room(n *need, now instant) bool {
	l := &n.limits
	budget := l.Budget != (Budget{})
	if l.Concurrent == 0 && l.Queued == 0 && !budget {
		return true
	}
	if now.late >= a.ends {
		return false
	}
	free := a.held.minus(a.used)
	return (l.Concurrent == 0 || free.concurrent >= n.concurrent) &&
		(l.Queued == 0 || n.queued == 0 || free.queued >= n.queued) &&
		(!budget || free.money >= n.money)
}

// low reports whether it is time to take more in advance. The caller holds mu.
func (a *account) low(now instant, terms *terms) bool {
	l := &a.limits
	if l.RequestsPerMinute == 0 && l.TokensPerMinute == 0 {
		return false
	}
	var left amounts
	fresh := false
	for _, h := range a.hands {
		if now.late <= h.until {
			left.requests, left.tokens = left.requests+h.requests, left.tokens+h.tokens
			fresh = fresh || h.until-now.late >= terms.hand/2
		}
	}
	want := a.rate.expected()
	return !fresh || l.RequestsPerMinute > 0 && 2*left.requests < want.requests || l.TokensPerMinute > 0 && 2*left.tokens < want.tokens
}

// fold takes hands that have ended, or all, back into what is owed. The caller holds mu.
func (a *account) fold(now instant, all bool) {
	kept := a.hands[:0]
	for _, h := range a.hands {
		if !all && now.late <= h.until {
			kept = append(kept, h)
		} else if h.requests > 0 || h.tokens > 0 {
			a.owed = owe(a.owed, entry{h.entry, -h.requests, -h.tokens})
		}
	}
	a.hands = kept
}

// handsEnd returns until when something is in hand, zero for nothing.
func (a *account) handsEnd() int64 {
	end := int64(0)
	for _, h := range a.hands {
		end = max(end, h.until)
	}
	return end
}

// quiet reports whether the account has nothing in hand and nothing to tell. The caller
// holds mu.
func (a *account) quiet() bool {
	return a.used == gauges{} && a.held == gauges{} && a.spend == 0 && len(a.owed) == 0 && len(a.ended) == 0 && len(a.hands) == 0 &&
		len(a.waiting) == 0 && a.unsure == nil && !a.busy
}

// rate tells what the next moment will ask for from what the last two have.
type rate struct {
	since     time.Duration
	this, old amounts
}

const rateSlot = handFor

func (r *rate) note(n *need, at time.Duration) {
	r.turn(at)
	r.this.requests++
	r.this.tokens = add(r.this.tokens, n.tokens)
	r.this.gauges = r.this.plus(n.gauges)
}

func (r *rate) turn(at time.Duration) {
	if passed := at - r.since; passed >= 2*rateSlot {
		r.old, r.this, r.since = amounts{}, amounts{}, at
	} else if passed >= rateSlot {
		r.old, r.this, r.since = r.this, amounts{}, at
	}
}

// expected returns what to have in hand: nothing for single requests.
func (r *rate) expected() amounts {
	most := r.old
	if r.this.requests > most.requests {
		most = r.this
	}
	if most.requests < 2 {
		return amounts{}
	}
	more := func(n int64) int64 { return add(n, n/4) }
	return amounts{more(most.requests), more(most.tokens), gauges{concurrent: more(most.concurrent), queued: more(most.queued), money: more(most.money)}}
}
