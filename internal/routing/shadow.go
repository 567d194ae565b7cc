package routing

import (
	"slices"
	"strings"
)

// What follows tells whether one condition holds whenever another one does. It looks
// for a proof, and does not find every one: "no" means that it is not known. So a rule
// that requests can reach is never said to be unreachable.

// follows reports whether w holds whenever given does.
func (w *When) follows(given *When) bool {
	return given.everyCase(func(facts, not []Match) bool {
		implied := func(m *Match) bool { return followsAll(m, facts) }
		for i := range w.All {
			if !implied(&w.All[i]) {
				return false
			}
		}
		if len(w.Any) > 0 && !anyOf(w.Any, implied) {
			return false
		}
		for i := range w.Not {
			if !refuted(&w.Not[i], facts, not) {
				return false
			}
		}
		return true
	})
}

// impossible reports whether no request meets the condition.
func (w *When) impossible() bool {
	return w.everyCase(func(facts, not []Match) bool {
		for i := range facts {
			if contradicted(&facts[i], facts) {
				return true
			}
		}
		return anyOf(not, func(m *Match) bool { return followsAll(m, facts) })
	})
}

// everyCase reports whether what is asked is so in each of the cases in which the
// condition holds: one for each match of Any. In a case, all of facts and none of not
// hold.
func (w *When) everyCase(ask func(facts, not []Match) bool) bool {
	facts := slices.Clone(w.All)
	for i := range w.Not {
		if m, ok := opposite(&w.Not[i]); ok {
			facts = append(facts, m)
		}
	}
	if len(w.Any) == 0 {
		return ask(facts, w.Not)
	}
	for _, m := range w.Any {
		if !ask(append(slices.Clip(facts), m), w.Not) {
			return false
		}
	}
	return true
}

// opposite returns what holds when the match does not, where a match can say that: it
// is of a single yes or no, or of a single bound.
func opposite(m *Match) (Match, bool) {
	if len(m.Models)+len(m.Endpoints)+len(m.Tenants)+len(m.Keys)+len(m.Headers)+len(m.Metadata) > 0 {
		return Match{}, false
	}
	var found []Match
	if m.Stream != nil {
		found = append(found, Match{Stream: new(!*m.Stream)})
	}
	if m.Tools != nil {
		found = append(found, Match{Tools: new(!*m.Tools)})
	}
	if m.Images != nil {
		found = append(found, Match{Images: new(!*m.Images)})
	}
	if m.MinPromptTokens > 0 {
		found = append(found, Match{MaxPromptTokens: m.MinPromptTokens - 1}) // of a bound of 1 this says nothing, which is no lie
	}
	if m.MaxPromptTokens > 0 {
		found = append(found, Match{MinPromptTokens: m.MaxPromptTokens + 1})
	}
	if len(found) != 1 {
		return Match{}, false
	}
	return found[0], true
}

func anyOf(matches []Match, ask func(*Match) bool) bool {
	for i := range matches {
		if ask(&matches[i]) {
			return true
		}
	}
	return false
}

// followsAll reports whether the match holds whenever all the facts do: each thing that
// it asks for follows from one of them.
func followsAll(m *Match, facts []Match) bool {
	from := func(asked bool, follows func(f *Match) bool) bool { return !asked || anyOf(facts, follows) }
	for name, pattern := range m.Headers {
		if !from(true, func(f *Match) bool { return coversPair(pattern, f.Headers, name) }) {
			return false
		}
	}
	for name, pattern := range m.Metadata {
		if !from(true, func(f *Match) bool { return coversPair(pattern, f.Metadata, name) }) {
			return false
		}
	}
	return from(len(m.Models) > 0, func(f *Match) bool { return coversEach(m.Models, f.Models) }) &&
		from(len(m.Endpoints) > 0, func(f *Match) bool { return subset(f.Endpoints, m.Endpoints) }) &&
		from(len(m.Tenants) > 0, func(f *Match) bool { return coversEach(m.Tenants, f.Tenants) }) &&
		from(len(m.Keys) > 0, func(f *Match) bool { return coversEach(m.Keys, f.Keys) }) &&
		from(m.Stream != nil, func(f *Match) bool { return f.Stream != nil && *f.Stream == *m.Stream }) &&
		from(m.Tools != nil, func(f *Match) bool { return f.Tools != nil && *f.Tools == *m.Tools }) &&
		from(m.Images != nil, func(f *Match) bool { return f.Images != nil && *f.Images == *m.Images }) &&
		from(m.MinPromptTokens > 0, func(f *Match) bool { return f.MinPromptTokens >= m.MinPromptTokens }) &&
		from(m.MaxPromptTokens > 0, func(f *Match) bool { return f.MaxPromptTokens > 0 && f.MaxPromptTokens <= m.MaxPromptTokens })
}

// refuted reports whether the match cannot hold where all the facts do and none of not.
func refuted(m *Match, facts, not []Match) bool {
	with := append(slices.Clip(facts), *m)
	return contradicted(m, facts) || anyOf(not, func(n *Match) bool { return followsAll(n, with) })
}

// contradicted reports whether the match cannot hold beside one of the facts. Models
// and keys contradict nothing: a request has two of each, its model by two names and
// its key by name and id.
func contradicted(m *Match, facts []Match) bool {
	differ := func(a, b *bool) bool { return a != nil && b != nil && *a != *b }
	above := func(a, b *Match) bool { return b.MaxPromptTokens > 0 && a.MinPromptTokens > b.MaxPromptTokens }
	return anyOf(facts, func(f *Match) bool {
		return differ(m.Stream, f.Stream) || differ(m.Tools, f.Tools) || differ(m.Images, f.Images) ||
			above(m, f) || above(f, m) ||
			apart(m.Endpoints, f.Endpoints) || apart(m.Tenants, f.Tenants) ||
			pairsApart(m.Headers, f.Headers) || pairsApart(m.Metadata, f.Metadata)
	})
}

func subset(some, of []string) bool {
	return len(some) > 0 && !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(of, s) })
}

// apart reports whether no text is covered by both lists. An empty list covers all.
func apart(a, b []string) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	for _, x := range a {
		for _, y := range b {
			if mayMeet(x, y) {
				return false
			}
		}
	}
	return true
}

func pairsApart(a, b map[string]string) bool {
	for name, x := range a {
		if y, ok := b[name]; ok && !mayMeet(x, y) {
			return true
		}
	}
	return false
}

// mayMeet reports whether a text may be covered by both patterns.
func mayMeet(a, b string) bool {
	switch {
	case !IsGlob(a):
		return Matches(b, a)
	case !IsGlob(b):
		return Matches(a, b)
	default:
		return true
	}
}

func coversPair(pattern string, pairs map[string]string, name string) bool {
	p, ok := pairs[name]
	return ok && coversPattern(pattern, p)
}

// coversEach reports whether each of some patterns, of which there is one at least, is
// covered by one of patterns.
func coversEach(patterns, some []string) bool {
	return len(some) > 0 && !slices.ContainsFunc(some, func(s string) bool {
		return !slices.ContainsFunc(patterns, func(p string) bool { return coversPattern(p, s) })
	})
}

// coversPattern reports whether a covers every text that b does.
func coversPattern(a, b string) bool {
	switch {
	case a == b || a == "*" || !IsGlob(b):
		return Matches(a, b)
	case strings.ContainsAny(a, `?[\`) || strings.ContainsAny(b, `[\`):
		return false
	default:
		// Only "*" of a can take up a wildcard of b, whatever that stands for; and what
		// is not a wildcard of b stands in every text that b covers.
		return Matches(a, b)
	}
}
