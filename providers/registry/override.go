package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"sluice/internal/inference"
	"sluice/internal/routing"
	"sluice/providers"
	"sluice/providers/anthropic"
	"sluice/providers/gemini"
	"sluice/providers/internal/traits"
	"sluice/providers/openai"
)

// TraitOverride is what the operator knows better of some models. Members that are nil
// leave what the adapter says.
type TraitOverride struct {
	Models []string // names or globs (path.Match), whose * also stands for slashes

	Chat, Embeddings, Streaming, Tools, Images, StructuredOutput *bool
	ContextTokens, OutputTokens                                  *int // zero: not known
}

// on returns the traits with the given members replaced.
func (o *TraitOverride) on(t inference.Traits) inference.Traits {
	t.Chat, t.Embeddings = *cmp.Or(o.Chat, &t.Chat), *cmp.Or(o.Embeddings, &t.Embeddings)
	t.Streaming, t.Tools = *cmp.Or(o.Streaming, &t.Streaming), *cmp.Or(o.Tools, &t.Tools)
	t.Images, t.StructuredOutput = *cmp.Or(o.Images, &t.Images), *cmp.Or(o.StructuredOutput, &t.StructuredOutput)
	t.ContextTokens, t.OutputTokens = *cmp.Or(o.ContextTokens, &t.ContextTokens), *cmp.Or(o.OutputTokens, &t.OutputTokens)
	return t
}

func checkOverrides(overrides []TraitOverride) error {
	for i := range overrides {
		o := &overrides[i]
		if len(o.Models) == 0 {
			return errors.New("read trait override: it names no models")
		}
		for _, model := range o.Models {
			if _, err := path.Match(model, ""); err != nil {
				return fmt.Errorf("read model pattern %q: %w", model, err)
			}
		}
		for _, n := range []*int{o.ContextTokens, o.OutputTokens} {
			if n != nil && *n < 0 {
				return errors.New("read trait override: numbers of tokens must not be negative")
			}
		}
	}
	return nil
}

// overridden is an adapter with the operator's corrections of what it can do.
type overridden struct {
	providers.Provider

	overrides []TraitOverride
}

// keyed is what adapters have that call an upstream with keys.
type keyed interface {
	providers.Provider
	providers.KeyReporter
	providers.Gate
}

// The adapters with keys have both of a worker's means to ask about them: a wrapper
// forwards both or none.
var (
	_ keyed = (*openai.Provider)(nil)
	_ keyed = (*anthropic.Provider)(nil)
	_ keyed = (*gemini.Provider)(nil)
	_ keyed = (*overriddenKeyed)(nil)
)

// overriddenKeyed is overridden for an adapter with keys.
type overriddenKeyed struct {
	overridden
	providers.KeyReporter
	providers.Gate
}

func override(p providers.Provider, overrides []TraitOverride) providers.Provider {
	if len(overrides) == 0 {
		return p
	}
	o := overridden{Provider: p, overrides: slices.Clone(overrides)}
	if k, ok := p.(keyed); ok {
		return &overriddenKeyed{overridden: o, KeyReporter: k, Gate: k}
	}
	return &o
}

// Capabilities are the adapter's with the corrections worked in.
func (p *overridden) Capabilities(ctx context.Context) (providers.Capabilities, error) {
	caps, err := p.Provider.Capabilities(ctx)
	if err != nil {
		return providers.Capabilities{}, err
	}
	return merge(caps, p.overrides), nil
}

// merge works overrides into capabilities. It is exact for each model that is served by
// its name. For globs, each override is put before what it replaces, once for every
// entry of the adapter's that lies within it or that it lies within; of two that merely
// overlap, the override replaces the general traits.
func merge(caps providers.Capabilities, overrides []TraitOverride) providers.Capabilities {
	var special []inference.ModelTraits
	for i := range overrides {
		special = append(special, overrideEntries(&overrides[i], caps)...)
	}
	special = append(special, caps.Special...)
	exact := func(model string) inference.Traits {
		own := traits.Of(caps.Special, caps.Traits, model)
		for i := range overrides {
			if routing.MatchesAny(overrides[i].Models, model) {
				return overrides[i].on(own)
			}
		}
		return own
	}
	var off []string // models that the entries would get wrong
	for _, model := range caps.Models {
		if !traits.IsGlob(model) && traits.Of(special, caps.Traits, model) != exact(model) {
			off = append(off, model)
		}
	}
	caps.Special = slices.Concat(traits.All(off, exact), special)
	return caps
}

// overrideEntries are the entries of one override, narrower ones first.
func overrideEntries(o *TraitOverride, caps providers.Capabilities) []inference.ModelTraits {
	var entries []inference.ModelTraits
	open := slices.Clone(o.Models) // patterns that lie within no entry yet
	for _, s := range caps.Special {
		e := inference.ModelTraits{Traits: o.on(s.Traits)}
		for _, pattern := range s.Models {
			if slices.ContainsFunc(o.Models, func(own string) bool { return includes(own, pattern) }) {
				e.Models = append(e.Models, pattern)
			}
		}
		open = slices.DeleteFunc(open, func(own string) bool {
			within := slices.ContainsFunc(s.Models, func(pattern string) bool { return includes(pattern, own) })
			if within && !slices.Contains(e.Models, own) {
				e.Models = append(e.Models, own)
			}
			return within
		})
		if len(e.Models) > 0 {
			entries = append(entries, e)
		}
	}
	if len(open) > 0 {
		entries = append(entries, inference.ModelTraits{Models: open, Traits: o.on(caps.Traits)})
	}
	return entries
}

// includes reports that each model that the narrow pattern covers is covered by the wide
// one. It may miss that where they hold more than stars.
func includes(wide, narrow string) bool {
	switch {
	case wide == narrow || wide == "*":
		return true
	case !traits.IsGlob(narrow):
		return routing.Matches(wide, narrow)
	case hasMoreThanStars(wide) || hasMoreThanStars(narrow):
		return false
	}
	// The narrow pattern's stars are matched by the wide one's alone, and then so is
	// whatever they stand for.
	return routing.Matches(wide, narrow)
}

func hasMoreThanStars(pattern string) bool {
	return slices.ContainsFunc([]byte(pattern), func(b byte) bool { return b == '?' || b == '[' || b == '\\' })
}
