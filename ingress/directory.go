package ingress

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/queue"
	"sluice/internal/routing"
)

// ProviderInfo is what an ingress is told of a provider by its configuration.
type ProviderInfo struct {
	Models    []string
	MaxQueued int
}

// directory knows the providers: those of the configuration, and those that workers
// announce.
type directory struct {
	configured map[string]ProviderInfo
	order      []string
	added      func() // a provider is new: its queue has to be made

	table atomic.Pointer[routing.Table]

	mu      sync.Mutex
	workers map[string]announced
	ready   map[string]bool // its queue exists
}

type announced struct {
	queue.Presence
	at time.Time
}

// Bounds of what is believed of workers.
const (
	workerGone = 5 * time.Second // after the last announcement
	maxWorkers = 10_000
)

func newDirectory(configured map[string]ProviderInfo, order []string, added func()) *directory {
	d := &directory{configured: configured, order: order, added: added, workers: make(map[string]announced), ready: make(map[string]bool)}
	d.rebuild()
	return d
}

// heard takes a worker's announcement.
func (d *directory) heard(p queue.Presence) {
	d.mu.Lock()
	before := d.table.Load()
	if p.Leaving {
		delete(d.workers, p.Worker)
	} else if _, known := d.workers[p.Worker]; known || len(d.workers) < maxWorkers {
		d.workers[p.Worker] = announced{p, time.Now()}
	}
	d.rebuild()
	d.mu.Unlock()
	same := func(a, b routing.Provider) bool { return a.Name == b.Name }
	if !slices.EqualFunc(d.table.Load().Providers, before.Providers, same) {
		d.added()
	}
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
	if n != len(d.workers) {
		d.rebuild()
	}
}

// rebuild makes the routing table anew. The caller holds mu. A provider whose models
// the configuration names serves these; any other serves what its workers say.
func (d *directory) rebuild() {
	byName := make(map[string]*routing.Provider)
	for name, info := range d.configured {
		byName[name] = &routing.Provider{Name: name, Models: slices.Clone(info.Models)}
	}
	for _, w := range d.workers {
		for _, p := range w.Providers {
			known, ok := byName[p.Name]
			if !ok {
				known = &routing.Provider{Name: p.Name}
				byName[p.Name] = known
			}
			known.Live = true
			if len(d.configured[p.Name].Models) == 0 {
				known.Models = append(known.Models, p.Models...)
			}
		}
	}
	t := &routing.Table{Order: d.order}
	for _, p := range byName {
		slices.Sort(p.Models)
		p.Models = slices.Compact(p.Models)
		t.Providers = append(t.Providers, *p)
	}
	slices.SortFunc(t.Providers, func(a, b routing.Provider) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	d.table.Store(t)
}

// queues returns every provider with the bound of its queue. What a provider's
// workers say of the bound comes before the ingress's own configuration; of workers
// that differ, the largest counts.
func (d *directory) queues() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := make(map[string]int)
	for _, w := range d.workers {
		for _, p := range w.Providers {
			if p.MaxQueued > 0 {
				q[p.Name] = max(q[p.Name], p.MaxQueued)
			}
		}
	}
	for name, info := range d.configured {
		if q[name] == 0 {
			q[name] = info.MaxQueued
		}
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

// providerState is a provider as health and metrics show it.
type providerState struct {
	Workers  int
	InFlight int
	Rate     float64 // jobs that end in a second
	Queued   int     // bound of its queue
}

func (d *directory) states() map[string]providerState {
	queues := d.queues()
	d.mu.Lock()
	defer d.mu.Unlock()
	states := make(map[string]providerState)
	for name, n := range queues {
		states[name] = providerState{Queued: n}
	}
	for _, w := range d.workers {
		for _, p := range w.Providers {
			s := states[p.Name]
			s.Workers++
			s.InFlight += p.InFlight
			s.Rate += p.Rate
			states[p.Name] = s
		}
	}
	return states
}

// Bounds of what a client is told to wait when a queue is full.
const (
	retryLeast = time.Second
	retryMost  = time.Minute
)

// retryAfter estimates when the provider's full queue will have room for good: when
// half of it is worked off at the rate of late.
func (d *directory) retryAfter(provider string) time.Duration {
	s := d.states()[provider]
	if s.Rate <= 0 {
		return retryLeast
	}
	seconds := min(float64(s.Queued)/2/s.Rate, retryMost.Seconds()) // a dying rate makes it larger than a duration can be
	return max(time.Duration(seconds*float64(time.Second)), retryLeast)
}
