package ingress

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// counters count as the real limiter does, exactly and in memory. How each reservation
// ended is noted, and that it did so once.
type counters struct {
	t      *testing.T
	window time.Duration // in the place of a minute

	mu     sync.Mutex
	away   bool
	scopes map[string]*counter
	last   limits.Demand // that fitted
	tried  int           // while away
	ends   []string      // "settle 7", "release", "charge tenant:team 7" and the like
	ended  chan string
}

// counter is what is counted of one scope.
type counter struct {
	taken              []*taking
	concurrent, queued int64
}

type taking struct {
	at       time.Time
	requests int64
	tokens   int64
	cost     inference.Cost
}

func newCounters(t *testing.T) *counters {
	t.Helper()
	return &counters{t: t, window: time.Minute, scopes: make(map[string]*counter), ended: make(chan string, 1000)}
}

func (c *counters) goAway(away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = away
}

func (c *counters) of(id string) *counter {
	if c.scopes[id] == nil {
		c.scopes[id] = new(counter)
	}
	return c.scopes[id]
}

func (c *counters) Reserve(ctx context.Context, d limits.Demand) (limits.Reservation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away {
		c.tried++
		return nil, limits.ErrUnavailable
	}
	for _, s := range d.Scopes {
		if r := c.refusal(s, d); r != nil {
			return nil, r
		}
	}
	c.last = d
	r := &reserved{counters: c, demand: d, queued: d.Queued}
	for _, s := range d.Scopes {
		at := c.of(s.ID)
		k := &taking{time.Now(), 1, d.Tokens, d.Cost}
		at.taken = append(at.taken, k)
		r.takings = append(r.takings, k)
		at.concurrent++
		if d.Queued {
			at.queued++
		}
	}
	return r, nil
}

func (c *counters) Adopt(d limits.Demand) limits.Reservation {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &reserved{counters: c, demand: d}
	for _, s := range d.Scopes {
		at := c.of(s.ID)
		k := &taking{at: time.Now(), cost: d.Cost}
		at.taken = append(at.taken, k)
		r.takings = append(r.takings, k)
		at.concurrent++
	}
	return r
}

// concurrent is how many requests the key of the rig has at a time.
func (c *counters) concurrent() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of("key:key").concurrent
}

// refusal is called under mu.
func (c *counters) refusal(s limits.Scope, d limits.Demand) *limits.Refusal {
	at, now := c.of(s.ID), time.Now()
	at.taken = slices.DeleteFunc(at.taken, func(k *taking) bool { return now.Sub(k.at) >= c.window })
	requests, tokens, cost, oldest := int64(0), int64(0), inference.Cost(0), c.window
	for _, k := range at.taken {
		requests, tokens, cost = requests+k.requests, tokens+k.tokens, cost+k.cost
		oldest = min(oldest, c.window-now.Sub(k.at))
	}
	for _, l := range []struct {
		name              string
		most, used, asked int64
		again             time.Duration
	}{
		{"requests_per_minute", s.Limits.RequestsPerMinute, requests, 1, oldest},
		{"tokens_per_minute", s.Limits.TokensPerMinute, tokens, d.Tokens, oldest},
		{"concurrent", s.Limits.Concurrent, at.concurrent, 1, 50 * time.Millisecond},
		{"queued", s.Limits.Queued, at.queued, int64(map[bool]int{true: 1}[d.Queued]), 50 * time.Millisecond},
		{"budget.day", int64(s.Limits.Budget.Day), int64(cost), int64(d.Cost), time.Hour},
	} {
		if l.most == 0 || l.used+l.asked <= l.most {
			continue
		}
		r := &limits.Refusal{Scope: s.ID, Limit: l.name, Most: l.most, Asked: l.asked, RetryAfter: max(l.again, time.Millisecond)}
		if l.asked > l.most {
			r.RetryAfter = 0
		}
		return r
	}
	return nil
}

func (c *counters) Charge(d limits.Demand) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range d.Scopes {
		at := c.of(s.ID)
		at.taken = append(at.taken, &taking{time.Now(), 1, d.Tokens, d.Cost})
	}
	c.note(fmt.Sprintf("charge %s %d", d.Scopes[0].ID, d.Tokens))
}

func (c *counters) Standing(scopes []limits.Scope) limits.Standing {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s limits.Standing
	for _, scope := range scopes {
		tokens := int64(0)
		for _, k := range c.of(scope.ID).taken {
			tokens += k.tokens
		}
		if most := scope.Limits.RequestsPerMinute; most > 0 {
			s.Requests = limits.Left{Limit: most, Remaining: most - int64(len(c.of(scope.ID).taken)), Reset: 1500 * time.Millisecond}
		}
		if most := scope.Limits.TokensPerMinute; most > 0 {
			s.Tokens = limits.Left{Limit: most, Remaining: most - tokens, Reset: 6 * time.Minute}
		}
	}
	return s
}

// Ended notes that a call has ended that had outlived its ingress.
func (c *counters) Ended(ingress string, scopes []limits.Scope) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make([]string, len(scopes))
	for i := range scopes {
		ids[i] = scopes[i].ID
	}
	c.note(fmt.Sprintf("ended %s %v", ingress, ids))
}

// note is called under mu.
func (c *counters) note(end string) {
	c.ends = append(c.ends, end)
	c.ended <- end
}

// quiet checks that nothing is in hand any more, and how every reservation ended.
func (c *counters) quiet(ends ...string) {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, at := range c.scopes {
			if at.concurrent != 0 || at.queued != 0 {
				return false
			}
		}
		return len(c.ends) >= len(ends)
	}, soon, time.Millisecond, "nothing is in hand")
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Equal(c.t, ends, c.ends)
}

func (c *counters) queued(id string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of(id).queued
}

// reserved is a reservation that must be ended once.
type reserved struct {
	*counters
	demand  limits.Demand
	takings []*taking
	queued  bool
	over    bool
}

func (r *reserved) Started() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.begin()
}

func (r *reserved) begin() {
	if r.queued {
		r.queued = false
		for _, s := range r.demand.Scopes {
			r.of(s.ID).queued--
		}
	}
}

func (r *reserved) end(how string, tokens int64, cost inference.Cost) {
	if r.over {
		r.note(how + " once more")
		return
	}
	r.over = true
	r.begin()
	for i, s := range r.demand.Scopes {
		r.of(s.ID).concurrent--
		r.takings[i].tokens, r.takings[i].cost = tokens, cost
	}
	if how != "" {
		r.note(how)
	}
}

func (r *reserved) Settle(tokens int64, cost inference.Cost) {
	r.mu.Lock()
	defer r.mu.Unlock()
	how := fmt.Sprintf("settle %d", tokens)
	if cost > 0 {
		how += " for " + cost.String()
	}
	r.end(how, tokens, cost)
}

// Abandon leaves the request concurrent if it has an end.
func (r *reserved) Abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(fmt.Sprintf("abandon %d", r.demand.Tokens), r.demand.Tokens, r.demand.Cost)
	if !r.demand.Ends.IsZero() {
		for _, s := range r.demand.Scopes {
			r.of(s.ID).concurrent++
		}
	}
}

func (r *reserved) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	how := "release"
	if len(r.demand.Scopes) > 0 && r.demand.Tokens == 0 {
		how = "" // a place among those that wait
	}
	r.end(how, 0, 0)
	for i, s := range r.demand.Scopes {
		at := r.of(s.ID)
		at.taken = slices.DeleteFunc(at.taken, func(k *taking) bool { return k == r.takings[i] })
	}
}

// withLimits has the counters limit the key of the rig.
func withLimits(c *counters, own limits.Limits, change ...func(*LimitSettings)) func(*Options) {
	return func(o *Options) {
		o.Limiter = c
		o.Settings.Limits.DefaultOutput = 100
		o.Settings.StaticKeys[0].Limits = &own
		for _, f := range change {
			f(&o.Settings.Limits)
		}
	}
}
