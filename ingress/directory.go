package ingress

import (
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
	configured map[string]ProviderInfo
	policy     routing.Policy
	added      func()                    // a provider is new: its queue has to be made
	turns      map[string]*atomic.Uint64 // requests of each rule so far

	picture atomic.Pointer[picture]
	began   time.Time
	due     atomic.Int64 // when the picture is to be drawn anew, in nanoseconds since began; zero: nothing has changed

	mu      sync.Mutex
	workers map[string]announced
	ready   map[string]bool // its queue exists
}

// announced is a worker as it last described itself.
type announced struct {
	queue.Presence
	at    time.Time
	since time.Time // of its first word
}

// picture is what workers and configuration say, at one moment. It is not changed.
type picture struct {
	table     *routing.Table
	providers map[string]providerState
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
		configured: configured, policy: policy, added: added, turns: make(map[string]*atomic.Uint64), began: time.Now(),
		workers: make(map[string]announced), ready: make(map[string]bool),
	}
	for _, r := range policy.Rules {
		d.turns[r.Name] = new(atomic.Uint64)
	}
	d.draw()
	return d
}

// heard takes a worker's announcement.
func (d *directory) heard(p queue.Presence) {
	believe(&p)
	now := time.Now()
	d.mu.Lock()
	before := d.picture.Load()
	was, known := d.workers[p.Worker]
	switch {
	case p.Leaving && known:
		delete(d.workers, p.Worker)
		d.draw()
	case p.Leaving:
	case known:
		d.workers[p.Worker] = announced{p, now, was.since}
		d.compare(was.Presence, p)
	case len(d.workers) < maxWorkers:
		d.workers[p.Worker] = announced{p, now, now}
		d.draw()
	}
	after := d.picture.Load()
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
		shown := breakerIn(d.picture.Load().providers[provider].States, model)
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
		}
	}
	if n != len(d.workers) || d.isDue() {
		d.draw()
	}
}

// now returns the routing table. Whoever asks first after the picture has become due
// draws it; nobody waits for that.
func (d *directory) now() *routing.Table {
	if d.isDue() && d.mu.TryLock() {
		d.draw()
		d.mu.Unlock()
	}
	return d.picture.Load().table
}

func (d *directory) isDue() bool {
	at := d.due.Load()
	return at != 0 && int64(time.Since(d.began)) >= at
}

// draw makes the picture anew. The caller holds mu.
func (d *directory) draw() {
	g := make(gathering, len(d.configured))
	for name, info := range d.configured {
		g.of(name).configured(info)
	}
	for id := range d.workers {
		w := d.workers[id]
		for i := range w.Providers {
			g.of(w.Providers[i].Name).add(&w.Providers[i], w.since)
		}
	}
	next := &picture{providers: g.states()}
	names := make([]routing.Provider, 0, len(next.providers))
	for _, p := range next.providers {
		names = append(names, p.Provider)
	}
	slices.SortFunc(names, func(a, b routing.Provider) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	next.table = routing.NewTable(d.policy, names)
	d.picture.Store(next)
	d.due.Store(0)
}

// states returns every provider as it is now. The caller does not change them.
func (d *directory) states() map[string]providerState {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due.Load() != 0 {
		d.draw()
	}
	return d.picture.Load().providers
}

// turn counts a request of the rule, and returns how many there were before.
func (d *directory) turn(rule string) uint64 {
	if n := d.turns[rule]; n != nil {
		return n.Add(1) - 1
	}
	return 0
}

// nextTurn returns what the rule's next request would get, and leaves it to that one.
func (d *directory) nextTurn(rule string) uint64 {
	if n := d.turns[rule]; n != nil {
		return n.Load()
	}
	return 0
}

// queues returns every provider with the bound of its queue. What a provider's
// workers say of the bound comes before the ingress's own configuration; of workers
// that differ, the largest counts.
func (d *directory) queues() map[string]int {
	q := make(map[string]int)
	for name, s := range d.picture.Load().providers {
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
	s := d.picture.Load().providers[provider]
	if s.Rate <= 0 {
		return retryLeast
	}
	seconds := min(float64(s.Queued)/2/s.Rate, retryMost.Seconds()) // a dying rate makes it larger than a duration can be
	return max(time.Duration(seconds*float64(time.Second)), retryLeast)
}

// alive reports whether a worker serves the candidate's provider.
func (d *directory) alive(c inference.Candidate) bool {
	return d.picture.Load().providers[c.Provider].Live()
}
