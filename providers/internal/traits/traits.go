// Package traits puts together what adapters know of models by their names: families of
// names on the one hand, the models that are served on the other.
package traits

import (
	"slices"
	"strings"

	"sluice/internal/inference"
	"sluice/internal/routing"
)

// maxEntries bounds how many kinds of models are told apart.
const maxEntries = 64

// Of returns the traits of a model: those of the first entry that covers it, or else the
// general ones.
func Of(special []inference.ModelTraits, general inference.Traits, model string) inference.Traits {
	for i := range special {
		if routing.MatchesAny(special[i].Models, model) {
			return special[i].Traits
		}
	}
	return general
}

// Special says how the models that are served differ from the general traits. The
// families are of the upstream's names, which upstreamName gives for a served one; mapped
// are the served names for which that is another. Where a served name is a glob, all
// families are told, since any of their models may be asked for.
func Special(families []inference.ModelTraits, general inference.Traits, served, mapped []string, upstreamName func(string) string) []inference.ModelTraits {
	if !slices.ContainsFunc(served, IsGlob) && len(served) > 0 {
		return Group(served, general, func(model string) inference.Traits { return Of(families, general, upstreamName(model)) })
	}
	// What a mapped name seems to be must not count, so each is told, the general ones too.
	special := group(slices.Sorted(slices.Values(mapped)), func(model string) (inference.Traits, bool) {
		own := Of(families, general, upstreamName(model))
		return own, own != Of(families, general, model)
	})
	return append(special, families...)
}

// Group says how models differ from the general traits, with one entry for all that are
// alike.
func Group(models []string, general inference.Traits, of func(model string) inference.Traits) []inference.ModelTraits {
	return group(models, func(model string) (inference.Traits, bool) {
		own := of(model)
		return own, own != general
	})
}

// All says what each of the models can do, with one entry for all that are alike.
func All(models []string, of func(model string) inference.Traits) []inference.ModelTraits {
	return group(models, func(model string) (inference.Traits, bool) { return of(model), true })
}

// group makes the entries for the models that of wants told. When there are too many, the
// numbers of tokens become unknown, which leaves few kinds.
func group(models []string, of func(model string) (own inference.Traits, told bool)) []inference.ModelTraits {
	special := entries(models, of)
	if len(special) <= maxEntries {
		return special
	}
	return entries(models, func(model string) (inference.Traits, bool) {
		own, told := of(model)
		own.ContextTokens, own.OutputTokens = 0, 0
		return own, told
	})
}

func entries(models []string, of func(model string) (own inference.Traits, told bool)) []inference.ModelTraits {
	var special []inference.ModelTraits
	places := map[inference.Traits]int{}
	for _, model := range models {
		own, told := of(model)
		if !told {
			continue
		}
		place, known := places[own]
		if !known {
			place = len(special)
			places[own] = place
			special = append(special, inference.ModelTraits{Traits: own})
		}
		special[place].Models = append(special[place].Models, model)
	}
	return special
}

// IsGlob reports that a name stands for more than itself.
func IsGlob(name string) bool { return strings.ContainsAny(name, `*?[\`) }
