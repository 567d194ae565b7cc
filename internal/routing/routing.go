// Package routing decides which providers can serve a request, and which is preferred.
// It is pure: the same table and the same request give the same decision. Chance comes
// in with the request, as a number that was drawn for it.
package routing

import (
	"path"
	"slices"
	"strings"

	"sluice/internal/inference"
)

// Provider is one provider as routing sees it.
type Provider struct {
	Name    string
	Models  []string // names or globs (path.Match)
	Workers int      // that serve it now
	Refused bool     // the provider accepts no key of any of them
	Paused  bool     // an operator has its queue hold what comes
	Drained bool     // an operator wants no more requests to go there
	Limit   int      // calls at once across all workers that it bears; zero when not known

	InFlight int // calls that are being made
	Waiting  int // jobs in its queue
	Held     int // jobs that workers hold back until it can be called

	// Of Traits and Prices the first entry that covers a model counts. A model without
	// traits is taken to be able to do everything. Of a model there is one state.
	Traits []inference.ModelTraits
	States []inference.ModelState
	Prices []Price
}

// Live reports whether a worker serves the provider now.
func (p Provider) Live() bool { return p.Workers > 0 }

// Table is what routing knows. NewTable makes it, and it is not changed afterwards.
type Table struct {
	Policy
	Providers []Provider

	ranked []*Provider // by the configured order, then by name
	byName map[string]*Provider
}

// NewTable returns the table of the policy and the providers, which it keeps. The
// providers' names are unique.
func NewTable(policy Policy, providers []Provider) *Table {
	t := &Table{Policy: policy, Providers: providers, ranked: make([]*Provider, len(providers))}
	for i := range providers {
		t.ranked[i] = &providers[i]
	}
	slices.SortFunc(t.ranked, func(a, b *Provider) int {
		if d := t.rank(a.Name) - t.rank(b.Name); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	if len(policy.Rules) > 0 { // default routing goes through all of them
		t.byName = make(map[string]*Provider, len(providers))
		for _, p := range t.ranked {
			t.byName[p.Name] = p
		}
	}
	return t
}

// Knows reports whether a provider has the name, as far as its configuration, a worker or
// a rule says so.
func (t *Table) Knows(provider string) bool {
	if slices.ContainsFunc(t.Providers, func(p Provider) bool { return p.Name == provider }) || slices.Contains(t.Order, provider) {
		return true
	}
	named := func(target Target) bool { return target.Provider == provider }
	return slices.ContainsFunc(t.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.Targets, named) ||
			slices.ContainsFunc(r.Fallback, func(f Fallback) bool { return slices.ContainsFunc(f.Targets, named) })
	})
}

func (t *Table) rank(provider string) int {
	if i := slices.Index(t.Order, provider); i >= 0 {
		return i
	}
	return len(t.Order)
}

// Resolve returns what the model's name stands for, and whether it is an alias.
func (p Policy) Resolve(model string) (resolved string, alias bool) {
	if resolved, alias = p.Aliases[model]; alias {
		return resolved, true
	}
	return model, false
}

// Matches reports whether a name or glob covers the text.
func Matches(pattern, text string) bool {
	switch {
	case pattern == text || pattern == "*":
		return true
	case !IsGlob(pattern):
		return false
	}
	// path.Match keeps "*" from crossing a slash, and model names have slashes.
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(text, "/", "\x00"))
	return err == nil && ok
}

// MatchesAny reports whether one of the names or globs covers the text.
func MatchesAny(patterns []string, text string) bool {
	for _, p := range patterns {
		if Matches(p, text) {
			return true
		}
	}
	return false
}

// IsGlob reports whether the pattern may cover another text than itself.
func IsGlob(pattern string) bool {
	for i := range len(pattern) {
		switch pattern[i] {
		case '*', '?', '[', '\\':
			return true
		}
	}
	return false
}

// fit is the way in which a provider serves a model, better ones first.
type fit uint8

const (
	byName   fit = iota
	byPrefix     // asked for as provider/model
	byGlob
	notAtAll
)

func fitOf(patterns []string, model string) fit {
	f := notAtAll
	for _, p := range patterns {
		if p == model {
			return byName
		}
		if f == notAtAll && Matches(p, model) {
			f = byGlob
		}
	}
	return f
}

// reach says how the provider serves the model, and by which name it is asked for it.
func reach(p *Provider, model string) (string, fit) {
	f := fitOf(p.Models, model)
	if f == byName {
		return model, f
	}
	if rest, ok := cutProvider(model, p.Name); ok && fitOf(p.Models, rest) != notAtAll {
		return rest, byPrefix
	}
	return model, f
}

// cutProvider takes the provider's name off a model that is written "provider/model".
func cutProvider(model, provider string) (string, bool) {
	if len(model) <= len(provider)+1 || model[len(provider)] != '/' || !strings.HasPrefix(model, provider) {
		return model, false
	}
	return model[len(provider)+1:], true
}
