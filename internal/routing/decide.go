package routing

import (
	"cmp"
	"slices"

	"sluice/internal/inference"
)

// Route returns who can serve the request, the preferred one first.
//
// An alias is replaced by its model. Then the first rule whose condition holds decides,
// and it alone: its targets come in the order of its strategy, and after them the
// fallbacks as they are written. Where no rule holds, whoever serves the model is a
// candidate: an exact name comes before a glob, then the configured order counts, then
// the name. There a model may also be written "provider/model" to name its provider;
// then no other is a candidate, unless one has a model of exactly that name.
//
// Whoever lacks what the request needs is left out. A provider's model stands in the
// list once, in the first of its places, and may be tried for the reasons of all of
// them.
//
// Among the targets, and within each fallback, those that can be called come first: a
// closed breaker before a half open one, before an open one, before a provider that an
// operator has paused, before one whose keys are refused, before one without a worker;
// otherwise they keep their order. A healthy fallback does not pass a target
// that is less so, and no fallback passes an earlier one. There is one exception, when
// none of the targets can be called now. Then a reason of some fallbacks holds
// already: "unavailable" when there are targets or some lack a trait, and
// "context_too_long" when the prompt is too long for one. Whoever may be tried for such
// a reason and can be called comes before the targets. If no target is left at all, those
// that cannot be called follow them, and fallbacks for other reasons only come after one
// of these; alone they serve nothing.
//
// A breaker closes only when calls go well. So in one request of sixteen, by chance, a
// half open breaker counts as a closed one.
func (t *Table) Route(q Request) Decision {
	var room [8]pick // most requests have fewer candidates, and need nothing from the heap
	r := route{table: t, q: &q}
	picks, n := r.decide(room[:0])
	return r.decision(picks, n)
}

// Explain decides as Route does, and says why.
func (t *Table) Explain(q Request) Decision {
	r := route{table: t, q: &q}
	picks, n := r.decide(nil)
	d := r.decision(picks, n)
	d.Why, d.Excluded = r.reasons(picks, n)
	return d
}

// MaxCandidates bounds the targets of a rule with its fallbacks', and the candidates of
// a decision: a job has room for no more.
const MaxCandidates = 64

// route is one decision in the making.
type route struct {
	table *Table
	q     *Request
	model string // what the alias stands for, or what was asked for
	alias bool
	rule  *Rule // nil: none applies
}

// pick is a provider's model that may become a candidate.
type pick struct {
	inference.Candidate
	provider *Provider // nil: not known
	weight   int
	place    int // zero: a target; else the number of the fallback
	class    class
	health   health
	fit      fit // where no rule applies
	lack     lack

	key float64 // what the picks are being ordered by, the least first
	lot float64 // and where that does not tell them apart; of a strategy it is chance
}

// class is the part of the list that a pick belongs to.
type class uint8

const (
	ahead  class = iota // a fallback whose reason holds already
	target              // or a fallback in the place of targets, when none is left
	later
	never
)

// decide appends what may be a candidate to picks, in the final order, and returns how
// many of them are one; the others are excluded.
func (r *route) decide(picks []pick) ([]pick, int) {
	r.model, r.alias = r.table.Resolve(r.q.Model)
	for i := range r.table.Rules {
		if rule := &r.table.Rules[i]; rule.When.holds(r.q, r.model) {
			r.rule = rule
			picks = r.byRule(picks)
			classify(picks)
			return picks, settle(picks)
		}
	}
	picks = r.byDefault(picks)
	return picks, settle(picks)
}

// byDefault picks everyone who serves the model.
func (r *route) byDefault(picks []pick) []pick {
	named := false
	for _, p := range r.table.ranked {
		model, f := reach(p, r.model)
		if f == notAtAll {
			continue
		}
		named = named || f == byPrefix
		picks = append(picks, pick{Candidate: inference.Candidate{Provider: p.Name, Model: model}, provider: p, fit: f, class: target})
		r.examine(&picks[len(picks)-1])
	}
	for i := range picks {
		p := &picks[i]
		if named && p.fit == byGlob {
			p.lack |= meantForAnother
		}
		if p.lack != 0 {
			p.class = never
		}
	}
	return picks
}

// byRule picks the rule's targets, in the order of its strategy, and its fallbacks'.
func (r *route) byRule(picks []pick) []pick {
	for i := range r.rule.Targets {
		p := r.aim(&r.rule.Targets[i])
		if find(picks, p.Candidate) == nil {
			picks = append(picks, p)
		}
	}
	r.arrange(picks)
	for i := range r.rule.Fallback {
		fallback := &r.rule.Fallback[i]
		for j := range fallback.Targets {
			p := r.aim(&fallback.Targets[j])
			p.place, p.On = i+1, fallback.On
			if first := find(picks, p.Candidate); first != nil {
				first.On = join(first.On, p.On)
				continue
			}
			picks = append(picks, p)
		}
	}
	return picks
}

// aim returns the pick that a target stands for.
func (r *route) aim(t *Target) pick {
	p := pick{Candidate: inference.Candidate{Provider: t.Provider, Model: t.Model}, provider: r.table.byName[t.Provider], weight: t.Weight}
	switch {
	case t.Model != "": // whoever wrote the rule knows what the provider serves
	case p.provider == nil || len(p.provider.Models) == 0: // nothing is known of its models
		p.Model, _ = cutProvider(r.model, t.Provider)
	default:
		var f fit
		if p.Model, f = reach(p.provider, r.model); f == notAtAll {
			p.lack = notServed
		}
	}
	r.examine(&p)
	return p
}

// examine notes what the pick lacks and how it stands.
func (r *route) examine(p *pick) {
	if p.provider == nil {
		p.lack |= notKnown
		return
	}
	p.lack |= lacks(p.provider, p.Model, r.q)
	if p.provider.Drained {
		p.lack |= drained
	}
	p.health = healthOf(p.provider, p.Model)
	if p.health == halfOpen && r.q.explores(probeHalfOpen) {
		p.health = well
	}
}

// find returns the pick of the candidate's provider and model, or nil if there is none.
func find(picks []pick, c inference.Candidate) *pick {
	for i := range picks {
		if p := &picks[i]; p.Provider == c.Provider && p.Model == c.Model {
			return p
		}
	}
	return nil
}

// join returns the reasons of both sets, of which the empty one stands for the default.
func join(a, b inference.Reasons) inference.Reasons {
	if a == b {
		return a
	}
	return cmp.Or(a, inference.DefaultReasons) | cmp.Or(b, inference.DefaultReasons)
}

// classify says of a rule's picks to which part of the list they belong.
func classify(picks []pick) {
	left, due := targetsLeft(picks)
	anyone := left
	for i := range picks {
		p := &picks[i]
		reached := cmp.Or(p.On, inference.DefaultReasons)&due != 0
		switch {
		case p.lack != 0:
			p.class = never
		case p.place == 0:
			p.class = target
		case reached && p.health.callable():
			p.class = ahead
		case reached && !left:
			p.class = target
		default:
			p.class = later
		}
		anyone = anyone || p.class < later
	}
	for i := range picks {
		if p := &picks[i]; !anyone && p.class == later {
			p.class, p.lack = never, notDue
		}
	}
}

// targetsLeft reports whether the rule has targets that do not lack anything, and for
// which reasons fallbacks are due already: none as long as a target can be called.
func targetsLeft(picks []pick) (left bool, due inference.Reasons) {
	for i := range picks {
		p := &picks[i]
		switch {
		case p.place != 0:
			continue
		case p.lack == 0 && p.health.callable():
			return true, 0
		case p.lack == 0:
			left = true
			due |= inference.ReasonUnavailable
		}
		if p.lack&lackContext != 0 {
			due |= inference.ReasonContextTooLong
		}
		if p.lack&^lackContext != 0 {
			due |= inference.ReasonUnavailable
		}
	}
	return left, due
}

// settle puts the picks in their final order and returns how many are candidates.
func settle(picks []pick) int {
	for i := range picks {
		p := &picks[i]
		p.key, p.lot = float64(int(p.class)<<32+p.place), float64(int(p.health)<<8+int(p.fit))
	}
	sortPicks(picks)
	n := 0
	for n < len(picks) && picks[n].class != never {
		n++
	}
	for i := MaxCandidates; i < n; i++ {
		picks[i].class, picks[i].lack = never, tooMany
	}
	return min(n, MaxCandidates)
}

// sortPicks puts the least key first, and of the same ones the least lot; otherwise it
// keeps the order. Picks are few, large and mostly in order already. That it calls
// nobody lets them live on the stack.
func sortPicks(picks []pick) {
	for i := 1; i < len(picks); i++ {
		j := i
		for j > 0 && picks[i].less(&picks[j-1]) {
			j--
		}
		if j < i {
			p := picks[i]
			copy(picks[j+1:i+1], picks[j:i])
			picks[j] = p
		}
	}
}

func (p *pick) less(than *pick) bool {
	return p.key < than.key || p.key == than.key && p.lot < than.lot
}

func (r *route) decision(picks []pick, n int) Decision {
	d := Decision{Model: r.model, Alias: r.alias, Candidates: make([]inference.Candidate, n)}
	if r.rule != nil {
		d.Rule = r.rule.Name
	}
	for i := range d.Candidates {
		d.Candidates[i] = picks[i].Candidate
	}
	if n == 0 {
		d.Lacking = lacking(picks)
		d.Drained = onlyDrained(picks)
	}
	return d
}

// onlyDrained returns those that lack nothing else than an operator's leave.
func onlyDrained(picks []pick) (list []inference.Candidate) {
	for i := range picks {
		if picks[i].lack&^notDue == drained && len(list) < MaxCandidates {
			list = append(list, picks[i].Candidate)
		}
	}
	return list
}

func lacking(picks []pick) []string {
	var all lack
	for i := range picks {
		all |= picks[i].lack
	}
	return all.missing()
}

// Serves returns who may serve the model, as far as can be said when nothing else is
// known of a request, and whatever an operator drains: the candidates of every rule whose condition could hold, in the
// order of the rules, then those of default routing, unless a rule leaves nothing to
// it. There are no more than MaxCandidates.
func (t *Table) Serves(model string) []inference.Candidate {
	candidates := []inference.Candidate{}
	take := func(picks []pick) {
		for i := range picks {
			c := inference.Candidate{Provider: picks[i].Provider, Model: picks[i].Model}
			if picks[i].lack&^drained == 0 && len(candidates) < MaxCandidates && !slices.Contains(candidates, c) {
				candidates = append(candidates, c)
			}
		}
	}
	r := route{table: t, q: &Request{Model: model}}
	r.model, r.alias = t.Resolve(model)
	var picks []pick
	for i := range t.Rules {
		could, must := t.Rules[i].When.foresee(model, r.model)
		if could {
			r.rule = &t.Rules[i]
			picks = r.byRule(picks[:0])
			take(picks)
		}
		if must {
			return candidates
		}
	}
	picks = r.byDefault(picks[:0])
	settle(picks)
	take(picks)
	return candidates
}
