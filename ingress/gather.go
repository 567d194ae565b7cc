package ingress

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

// Bounds of what is believed of one provider of one worker.
const (
	maxOffered = 4096 // models
	maxTraits  = 4096
	maxStates  = 256
	maxNumber  = 1_000_000_000 // beyond any count or number of seconds that can be true
)

// maxStanding bounds the models of a provider of which the states are known, whatever
// its workers call them.
const maxStanding = 4 * maxStates

// believe cleans what a worker says: it cuts what is too much, and takes out what cannot
// be true. Each provider's states are in order of their models then, one for each.
func believe(p *queue.Presence) {
	slices.SortStableFunc(p.Providers, func(a, b queue.ProviderPresence) int { return strings.Compare(a.Name, b.Name) })
	p.Providers = slices.CompactFunc(p.Providers, func(a, b queue.ProviderPresence) bool { return a.Name == b.Name })
	tooLong := func(model string) bool { return len(model) > openaiapi.MaxModelBytes }
	for i := range p.Providers {
		q := &p.Providers[i]
		q.Models = slices.DeleteFunc(first(q.Models, maxOffered), tooLong)
		q.Traits = first(q.Traits, maxTraits)
		q.States = slices.DeleteFunc(first(q.States, maxStates), func(s inference.ModelState) bool { return tooLong(s.Model) })
		slices.SortStableFunc(q.States, func(a, b inference.ModelState) int { return strings.Compare(a.Model, b.Model) })
		q.States = slices.CompactFunc(q.States, func(a, b inference.ModelState) bool { return a.Model == b.Model })
		for j := range q.States {
			q.States[j].FirstToken = sane(q.States[j].FirstToken)
		}
		for j := range q.Traits {
			t := &q.Traits[j].Traits
			t.ContextTokens, t.OutputTokens = sane(t.ContextTokens), sane(t.OutputTokens)
		}
		for _, n := range []*int{&q.MaxQueued, &q.Concurrency, &q.Slots, &q.InFlight, &q.Limit, &q.Held, &q.Waiting} {
			*n = sane(*n)
		}
		q.Rate = sane(q.Rate)
	}
}

func first[T any](list []T, most int) []T { return list[:min(len(list), most)] }

// sane returns the number, or zero for one that cannot be true.
func sane[T int | float64](n T) T {
	if n >= 0 && !math.IsInf(float64(n), 1) { // a NaN is neither
		return min(n, maxNumber)
	}
	return 0
}

// sameOffer reports whether the two say the same of what can be asked for.
func sameOffer(a, b queue.ProviderPresence) bool {
	return a.Name == b.Name && a.MaxQueued == b.MaxQueued && slices.Equal(a.Models, b.Models) &&
		slices.EqualFunc(a.Traits, b.Traits, func(a, b inference.ModelTraits) bool {
			return a.Traits == b.Traits && slices.Equal(a.Models, b.Models)
		})
}

// sameNumbers reports whether the two say the same of how well it goes.
func sameNumbers(a, b queue.ProviderPresence) bool {
	return a.Concurrency == b.Concurrency && a.Slots == b.Slots && a.InFlight == b.InFlight && a.Rate == b.Rate && a.Limit == b.Limit &&
		a.Held == b.Held && a.Waiting == b.Waiting && slices.Equal(a.States, b.States)
}

// breakerIn returns the model's breaker in states that are in order. A breaker of which
// nothing is said is closed.
func breakerIn(states []inference.ModelState, model string) string {
	i, ok := slices.BinarySearchFunc(states, model, func(s inference.ModelState, model string) int { return strings.Compare(s.Model, model) })
	if !ok {
		return inference.BreakerClosed
	}
	return states[i].Breaker
}

// standing is how the workers of a provider stand with one of its models.
type standing struct {
	told, open, halfOpen int
	seconds              float64 // to the first token, of those who know
	known                int
}

func (s *standing) add(breaker string, firstToken float64) {
	s.told++
	switch breaker {
	case inference.BreakerOpen:
		s.open++
	case inference.BreakerHalfOpen:
		s.halfOpen++
	}
	if firstToken > 0 {
		s.seconds += firstToken
		s.known++
	}
}

// breaker is open when it is at every one of so many workers: as long as one of them
// still calls the provider, jobs that others cannot serve find their way to it.
func (s *standing) breaker(workers int) string {
	switch {
	case s.open+s.halfOpen < workers || workers == 0:
		return inference.BreakerClosed
	case s.halfOpen > 0:
		return inference.BreakerHalfOpen
	}
	return inference.BreakerOpen
}

func (s *standing) firstToken() float64 {
	if s.known == 0 {
		return 0
	}
	return s.seconds / float64(s.known)
}

// providerState is a provider as all its workers describe it.
type providerState struct {
	routing.Provider
	Rate   float64 // jobs that end in a second
	Queued int     // bound of its queue
	Slots  int     // calls at once that its workers have room for
	Order  queue.Control
}

// gathering brings together what the workers say of each provider.
type gathering map[string]*gathered

type gathered struct {
	providerState
	fixed       bool     // the configuration names the models
	lastModels  []string // of the worker before, which mostly are the next one's too
	limit, most int      // of calls at once: what the provider bears, and what the configuration allows
	ownQueued   int
	refused     int // workers whose keys are
	newest      time.Time
	standings   map[string]*standing
}

func (g gathering) of(name string) *gathered {
	p, ok := g[name]
	if !ok {
		p = &gathered{providerState: providerState{Provider: routing.Provider{Name: name}}}
		g[name] = p
	}
	return p
}

// configured takes in the configuration. A provider whose models it names serves these;
// any other serves what its workers say.
func (g *gathered) configured(info ProviderInfo) {
	g.Models, g.fixed = slices.Clone(info.Models), len(info.Models) > 0
	g.Prices, g.ownQueued = info.Prices, info.MaxQueued
}

// add takes in what one worker says. What it can do with models counts if it is the
// newest: then it has the latest configuration.
func (g *gathered) add(p *queue.ProviderPresence, since time.Time) {
	if !g.fixed && (g.Workers == 0 || !slices.Equal(p.Models, g.lastModels)) {
		g.Models, g.lastModels = append(g.Models, p.Models...), p.Models
	}
	g.Workers++
	if p.Refused {
		g.refused++
	}
	g.limit, g.most = max(g.limit, p.Limit), max(g.most, p.Concurrency)
	g.InFlight += p.InFlight
	g.Slots += p.Slots
	g.Held += p.Held
	g.Waiting = max(g.Waiting, p.Waiting)
	g.Rate += p.Rate
	g.Queued = max(g.Queued, p.MaxQueued)
	if g.Workers == 1 || since.After(g.newest) {
		g.newest, g.Traits = since, p.Traits
	}
	for i := range p.States {
		s := &p.States[i]
		stand, ok := g.standings[s.Model]
		if !ok {
			if len(g.standings) == maxStanding {
				continue
			}
			if g.standings == nil {
				g.standings = make(map[string]*standing)
			}
			stand = new(standing)
			g.standings[s.Model] = stand
		}
		stand.add(s.Breaker, s.FirstToken)
	}
}

// states returns every provider, with the sums drawn.
func (g gathering) states() map[string]providerState {
	all := make(map[string]providerState, len(g))
	for name, p := range g {
		slices.Sort(p.Models)
		p.Models = slices.Compact(p.Models)
		p.Limit = cmp.Or(p.limit, p.most)
		p.Refused = p.Workers > 0 && p.refused == p.Workers
		p.Queued = cmp.Or(p.Queued, p.ownQueued)
		for model, s := range p.standings {
			p.States = append(p.States, inference.ModelState{Model: model, Breaker: s.breaker(p.Workers), FirstToken: s.firstToken()})
		}
		slices.SortFunc(p.States, func(a, b inference.ModelState) int { return strings.Compare(a.Model, b.Model) })
		all[name] = p.providerState
	}
	return all
}
