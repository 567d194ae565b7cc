// Package routing decides which providers can serve a model, and which is preferred. It
// is pure: the same table and the same question give the same answer.
package routing

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"sluice/internal/inference"
)

// Provider is one provider as routing sees it.
type Provider struct {
	Name   string
	Models []string // names or globs (path.Match)
	Live   bool     // a worker serves it now
}

// Table is what routing knows. It is not changed after it was built.
type Table struct {
	Providers []Provider
	Order     []string // providers to prefer, first to last; the others follow by name
}

// Matches reports whether a name or glob covers the model.
func Matches(pattern, model string) bool {
	if pattern == model {
		return true
	}
	// path.Match keeps "*" from crossing a slash, and model names have slashes.
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(model, "/", "\x00"))
	return err == nil && ok
}

// MatchesAny reports whether one of the names or globs covers the model.
func MatchesAny(patterns []string, model string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return Matches(p, model) })
}

// The ways in which a provider serves a model, better ones first.
const (
	byName   = iota
	byPrefix // asked for as provider/model
	byGlob
	notAtAll
)

// Route returns who can serve a model, the preferred one first: providers with a live
// worker before those without, an exact name before a glob, then the configured order.
// A model may also be written "provider/model" to name its provider: then no other is a
// candidate, unless one has a model of exactly that name.
func (t Table) Route(model string) []inference.Candidate {
	type choice struct {
		inference.Candidate
		live       bool
		fit, order int
	}
	var choices []choice
	named := false
	for _, p := range t.Providers {
		c := choice{Candidate: inference.Candidate{Provider: p.Name, Model: model}, live: p.Live, fit: fit(p.Models, model), order: t.orderOf(p.Name)}
		rest, ok := strings.CutPrefix(model, p.Name+"/")
		if ok && rest != "" && c.fit != byName && fit(p.Models, rest) != notAtAll {
			c.Model, c.fit, named = rest, byPrefix, true
		}
		if c.fit != notAtAll {
			choices = append(choices, c)
		}
	}
	if named {
		choices = slices.DeleteFunc(choices, func(c choice) bool { return c.fit == byGlob })
	}
	slices.SortStableFunc(choices, func(a, b choice) int {
		return cmp.Or(-compareBool(a.live, b.live), a.fit-b.fit, a.order-b.order, strings.Compare(a.Provider, b.Provider))
	})
	candidates := make([]inference.Candidate, len(choices))
	for i, c := range choices {
		candidates[i] = c.Candidate
	}
	return candidates
}

func fit(patterns []string, model string) int {
	switch {
	case slices.Contains(patterns, model):
		return byName
	case MatchesAny(patterns, model):
		return byGlob
	default:
		return notAtAll
	}
}

func (t Table) orderOf(provider string) int {
	if i := slices.Index(t.Order, provider); i >= 0 {
		return i
	}
	return len(t.Order)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}
