package ingress

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

// ProviderInfo is what an ingress is told of a provider by its configuration.
type ProviderInfo struct {
	Models    []string
	MaxQueued int
	Prices    []routing.Price
}

// directory knows the providers: those of the configuration, and those that workers
// announce.
type directory struct {
	added  func() // a provider is new: its queue has to be made
	layout atomic.Pointer[layout]
	began  time.Time
	due    atomic.Int64 // when its picture is to be drawn anew, in nanoseconds since began; zero: nothing has changed

	mu      sync.Mutex
	workers map[string]announced
	parted  parted
	ready   map[string]bool // its queue exists
	orders  queue.Controls  // what operators want
}

// announced is a worker as it last described itself.
type announced struct {
	queue.Presence
	at    time.Time
	since time.Time // of its first word
	named []string  // the providers that it has ever spoken of; it may take jobs of any of them
}

// picture is what workers and configuration say, at one moment. It is not changed.
type picture struct {
	table     *routing.Table
	providers map[string]providerState
	drawn     time.Time
}

// Bounds of what is believed of workers.
const (
	workerGone = 5 * time.Second // after the last announcement
	maxWorkers = 10_000
)

// redrawEvery is the least time between two pictures that differ in mere numbers. A
// thousand workers speak a thousand times a second, and each picture asks them all.
const redrawEvery = 50 * time.Millisecond

func newDirectory(configured map[string]ProviderInfo, policy routing.Policy, added func()) *directory {
	d := &directory{
		added: added, began: time.Now(), workers: make(map[string]announced), ready: make(map[string]bool),
	}
	d.configure(configured, policy)
	return d
}

// heard takes a worker's announcement.
func (d *directory) heard(p queue.Presence) {
	believe(&p)
	now := time.Now()
	d.mu.Lock()
	before := d.latest()
	was, known := d.workers[p.Worker]
	switch {
	case p.Leaving && known:
		delete(d.workers, p.Worker)
		d.parted.left(named(was.named, p.Providers), now)
		d.draw()
	case p.Leaving:
	case known:
		d.workers[p.Worker] = announced{p, now, was.since, named(was.named, p.Providers)}
		d.compare(was.Presence, p)
	case len(d.workers) < maxWorkers:
		d.workers[p.Worker] = announced{p, now, now, named(nil, p.Providers)}
		d.draw()
	}
	after := d.latest()
	d.mu.Unlock()
	same := func(a, b routing.Provider) bool { return a.Name == b.Name }
	if !slices.EqualFunc(after.table.Providers, before.table.Providers, same) {
		d.added()
	}
}

// compare draws the picture anew at once if a worker's new word changes who can serve
// what, and within redrawEvery if it changes anything that routing looks at. The caller
// holds mu.
func (d *directory) compare(was, is queue.Presence) {
	if !slices.EqualFunc(was.Providers, is.Providers, sameOffer) || d.breakerTurned(was, is) {
		d.draw()
		return
	}
	if d.due.Load() == 0 && !slices.EqualFunc(was.Providers, is.Providers, sameNumbers) {
		d.due.Store(int64(time.Since(d.began) + redrawEvery))
	}
	if d.isDue() {
		d.draw()
	}
}

// breakerTurned reports whether the worker's word on one of its breakers is the one that
// turns what all workers of the provider say together. The caller holds mu.
func (d *directory) breakerTurned(was, is queue.Presence) bool {
	turned := func(provider, model string) bool {
		shown := breakerIn(d.latest().providers[provider].States, model)
		return d.breakerOf(provider, model) != shown
	}
	for i, p := range is.Providers {
		old := was.Providers[i].States
		for _, s := range p.States {
			if s.Breaker != breakerIn(old, s.Model) && turned(p.Name, s.Model) {
				return true
			}
		}
		for _, s := range old { // of which the worker does not speak any more
			if s.Breaker != breakerIn(p.States, s.Model) && turned(p.Name, s.Model) {
				return true
			}
		}
	}
	return false
}

// breakerOf asks every worker of the provider for its breaker of one model. The caller
// holds mu.
func (d *directory) breakerOf(provider, model string) string {
	var s standing
	for _, w := range d.workers {
		for i := range w.Providers {
			if p := &w.Providers[i]; p.Name == provider {
				s.add(breakerIn(p.States, model), 0)
			}
		}
	}
	return s.breaker(s.told)
}

// expire forgets workers that have fallen silent.
func (d *directory) expire(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.workers)
	for id, w := range d.workers {
		if now.Sub(w.at) > workerGone {
			delete(d.workers, id)
			d.parted.lost(now)
		}
	}
	if n != len(d.workers) || d.isDue() || d.outdated(now) {
		d.draw()
	}
}

func (d *directory) isDue() bool {
	at := d.due.Load()
	return at != 0 && int64(time.Since(d.began)) >= at
}

// states returns every provider as it is now. The caller does not change them.
func (d *directory) states() map[string]providerState {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due.Load() != 0 {
		d.draw()
	}
	return d.latest().providers
}

// statesWith returns what states does, and beside it the providers that hold jobs but are
// not known any more: they were taken out of the configuration, and their workers are gone.
func (d *directory) statesWith(holding map[string]bool) map[string]providerState {
	all := maps.Clone(d.states())
	for name := range holding {
		if _, known := all[name]; !known {
			all[name] = providerState{Provider: routing.Provider{Name: name}}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.obeyed(all, time.Now())
	return all
}

// queues returns every provider with the bound of its queue. What a provider's
// workers say of the bound comes before the ingress's own configuration; of workers
// that differ, the largest counts.
func (d *directory) queues() map[string]int {
	q := make(map[string]int)
	for name, s := range d.latest().providers {
		q[name] = s.Queued
	}
	return q
}

// queueReady notes that the provider's queue exists.
func (d *directory) queueReady(provider string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ready[provider] = true
}

func (d *directory) anyQueueReady() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ready) > 0
}

// Bounds of what a client is told to wait when a queue is full.
const (
	retryLeast = time.Second
	retryMost  = time.Minute
)

// retryAfter estimates when the provider's full queue will have room for good: when
// half of it is worked off at the rate of late.
func (d *directory) retryAfter(provider string) time.Duration {
	s := d.latest().providers[provider]
	if s.state() != queue.ProviderActive {
		return s.activeIn(time.Now())
	}
	if s.Rate <= 0 {
		return retryLeast
	}
	seconds := min(float64(s.Queued)/2/s.Rate, retryMost.Seconds()) // a dying rate makes it larger than a duration can be
	return max(time.Duration(seconds*float64(time.Second)), retryLeast)
}

// alive reports whether a worker serves the candidate's provider, and takes jobs that could
// not be served elsewhere.
func (d *directory) alive(c inference.Candidate) bool {
	p := d.latest().providers[c.Provider]
	return p.Live() && !p.Paused && !p.Drained
}

// able reports whether the candidate can be called as far as is known: it is alive, and not
// every one of its workers has the breaker of the model open. A half open one lets calls
// through that find out.
func (d *directory) able(c inference.Candidate) bool { return d.alive(c) && !d.shut(c) }

// shut reports whether every worker of the candidate has the breaker of the model open.
func (d *directory) shut(c inference.Candidate) bool { return d.breaker(c) == inference.BreakerOpen }

// ailing reports whether none of them has it closed.
func (d *directory) ailing(c inference.Candidate) bool {
	return d.breaker(c) != inference.BreakerClosed
}

func (d *directory) breaker(c inference.Candidate) string {
	return breakerIn(d.latest().providers[c.Provider].States, c.Model)
}

// holds reports whether an operator has the provider's queue hold what is in it.
func (d *directory) holds(c inference.Candidate) bool {
	return d.latest().providers[c.Provider].Paused
}

// keeps reports whether a job may stay in the provider's queue: a worker serves it, or an
// operator has the queue hold what is in it.
func (d *directory) keeps(c inference.Candidate) bool {
	p := d.latest().providers[c.Provider]
	return p.Live() || p.Paused
}
