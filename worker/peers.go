package worker

import (
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// peers are the other workers, as they announce themselves.
type peers struct {
	self  string
	since time.Time // when they began to be heard

	mu  sync.Mutex
	all map[string]peer
}

type peer struct {
	queue.Presence
	at time.Time
}

const (
	peerGone = 3 * time.Second // after its last word
	maxPeers = 10_000
)

func newPeers(self string) *peers {
	return &peers{self: self, all: make(map[string]peer)}
}

// begin notes that announcements are heard from now on.
func (ps *peers) begin(now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.since = now
}

// complete reports whether every other worker has been heard of by now.
func (ps *peers) complete(now time.Time) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return !ps.since.IsZero() && now.Sub(ps.since) >= peersHeard
}

// heard takes a worker's announcement.
func (ps *peers) heard(p queue.Presence) {
	if p.Worker == ps.self {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.Leaving {
		delete(ps.all, p.Worker)
		return
	}
	if _, known := ps.all[p.Worker]; known || len(ps.all) < maxPeers {
		ps.all[p.Worker] = peer{p, time.Now()}
	}
}

// of returns what the others say of the provider, by worker, and forgets those that have
// fallen silent.
func (ps *peers) of(provider string, now time.Time) map[string]queue.ProviderPresence {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	found := make(map[string]queue.ProviderPresence)
	for id, p := range ps.all {
		if now.Sub(p.at) > peerGone {
			delete(ps.all, id)
			continue
		}
		for _, pp := range p.Providers {
			if pp.Name == provider {
				found[id] = pp
			}
		}
	}
	return found
}

// well counts the other workers of the provider that do not say that they cannot call
// the model.
func (ps *peers) well(provider, model string, now time.Time) int {
	n := 0
	for _, pp := range ps.of(provider, now) {
		if !pp.Refused && !trips(pp.States, model) {
			n++
		}
	}
	return n
}

// trips reports whether the model's breaker is not closed.
func trips(states []inference.ModelState, model string) bool {
	for _, s := range states {
		if s.Model == model {
			return s.Breaker != inference.BreakerClosed
		}
	}
	return false
}

// peersHeard is the time in which every worker is heard of.
const peersHeard = 2 * time.Second

// alive reports whether a worker, perhaps this one, serves the candidate's provider and
// can call it as far as is known.
func (w *Worker) alive(c inference.Candidate) bool {
	now := time.Now()
	if w.orders.of(c.Provider, now) != queue.ProviderActive {
		return false // it would wait there, or come to a queue that is to become empty
	}
	for _, p := range w.served() {
		if p.member.Name == c.Provider && p.started() && !p.refused.Load() && !trips(p.breakers.states(now), c.Model) {
			return true
		}
	}
	return w.peers.well(c.Provider, c.Model, now) > 0 || !w.peers.complete(now)
}
