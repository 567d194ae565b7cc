package ingress

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"sluice/internal/routing"
)

// layout is what one configuration says of providers and of where requests go, with the
// picture of the workers that was last drawn by it. A request is routed by the layout of
// the settings that it began with, also when the directory has another one by then.
type layout struct {
	configured map[string]ProviderInfo
	policy     routing.Policy
	turns      map[string]*atomic.Uint64 // requests of each rule so far
	removed    map[string]bool           // were configured, and are still announced; of the directory's mu

	picture atomic.Pointer[picture]
}

// redrawOld is how old a picture of a layout may become that is not the directory's any
// more: less than a worker needs to leave a provider that it is to serve no longer.
const redrawOld = time.Second

// newLayout returns the layout that comes after another one, or the first. Of a rule that
// remains the counter goes on. The caller holds mu.
func newLayout(configured map[string]ProviderInfo, policy routing.Policy, before *layout) *layout {
	l := &layout{configured: configured, policy: policy, turns: make(map[string]*atomic.Uint64, len(policy.Rules)), removed: make(map[string]bool)}
	if before == nil {
		before = new(layout)
	}
	for _, r := range policy.Rules {
		if l.turns[r.Name] = before.turns[r.Name]; l.turns[r.Name] == nil {
			l.turns[r.Name] = new(atomic.Uint64)
		}
	}
	maps.Copy(l.removed, before.removed)
	for name := range before.configured {
		l.removed[name] = true
	}
	maps.DeleteFunc(l.removed, func(name string, _ bool) bool {
		_, again := configured[name]
		return again
	})
	return l
}

// turn counts a request of the rule, and returns how many there were before.
func (l *layout) turn(rule string) uint64 {
	if n := l.turns[rule]; n != nil {
		return n.Add(1) - 1
	}
	return 0
}

// nextTurn returns what the rule's next request would get, and leaves it to that one.
func (l *layout) nextTurn(rule string) uint64 {
	if n := l.turns[rule]; n != nil {
		return n.Load()
	}
	return 0
}

// configure has the directory go by another configuration, and returns its layout.
func (d *directory) configure(configured map[string]ProviderInfo, policy routing.Policy) *layout {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := newLayout(configured, policy, d.layout.Load())
	d.drawBy(next, next)
	d.layout.Store(next) // with its picture, for which nobody waits
	d.due.Store(0)
	return next
}

// tableOf returns the routing table of a layout. Whoever asks first after its picture has
// become due draws it; nobody waits for that, but with a layout that only requests have
// that began before the last change.
func (d *directory) tableOf(l *layout) *routing.Table {
	switch {
	case l == d.layout.Load():
		if d.isDue() && d.mu.TryLock() {
			d.draw()
			d.mu.Unlock()
		}
	case time.Since(l.picture.Load().drawn) > redrawOld:
		d.mu.Lock()
		if time.Since(l.picture.Load().drawn) > redrawOld {
			d.drawBy(l, d.layout.Load())
		}
		d.mu.Unlock()
	}
	return l.picture.Load().table
}

// now returns the routing table of the configuration in force.
func (d *directory) now() *routing.Table { return d.tableOf(d.layout.Load()) }

// latest returns the picture by the configuration in force.
func (d *directory) latest() *picture { return d.layout.Load().picture.Load() }

// draw makes the picture of the layout in force anew. The caller holds mu.
func (d *directory) draw() {
	now := d.layout.Load()
	d.drawBy(now, now)
	d.due.Store(0)
}

// drawBy makes a layout's picture anew. A provider that is not configured any more is in
// it as long as a worker announces it: nobody else would take its jobs. The caller holds mu.
func (d *directory) drawBy(l, inForce *layout) {
	g := make(gathering, len(l.configured))
	for name, info := range l.configured {
		g.of(name).configured(info)
	}
	for id := range d.workers {
		w := d.workers[id]
		for i := range w.Providers {
			g.of(w.Providers[i].Name).add(&w.Providers[i], w.since)
		}
	}
	next := &picture{providers: g.states(), drawn: time.Now()}
	if l != inForce {
		maps.DeleteFunc(next.providers, func(name string, p providerState) bool {
			_, configured := inForce.configured[name]
			return !configured && p.Workers == 0
		})
	}
	d.obeyed(next.providers, next.drawn)
	names := make([]routing.Provider, 0, len(next.providers))
	for name, p := range next.providers {
		if !l.removed[name] {
			names = append(names, p.Provider)
		}
	}
	maps.DeleteFunc(l.removed, func(name string, _ bool) bool {
		_, announced := next.providers[name]
		return !announced // a worker that serves it another time is a new one
	})
	slices.SortFunc(names, func(a, b routing.Provider) int { return strings.Compare(a.Name, b.Name) })
	next.table = routing.NewTable(l.policy, names)
	l.picture.Store(next)
}
