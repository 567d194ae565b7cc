package routing

import (
	"maps"
	"path"
	"slices"
	"strconv"

	"sluice/internal/inference"
)

// Bounds of a policy. MaxCandidates bounds a rule's targets.
const (
	MaxRules   = 256
	MaxMatches = 64 // of one rule
)

// Fault is something in a policy that cannot be meant.
type Fault struct {
	Rule    int      // its index; -1 for what is no part of a rule
	Path    []string // where inside the rule, or inside the policy, by the configuration's names, indexes in decimals
	Problem string   // a part of a sentence whose subject is what stands there
}

// Faults returns what cannot be meant in the policy. Whether a provider of that name
// may exist, known says. The order of providers is not looked at.
func (p Policy) Faults(known func(provider string) bool) []Fault {
	f := faults{known: known, rule: -1}
	f.aliases(p.Aliases)
	if len(p.Rules) > MaxRules {
		f.add("must not hold more than "+strconv.Itoa(MaxRules)+" rules", "rules")
		return f.found
	}
	names := make(map[string]bool)
	for i := range p.Rules {
		rule := &p.Rules[i]
		f.rule = i
		switch {
		case rule.Name == "":
			f.add("must not be empty; the name is what a decision tells of the rule", "name")
		case names[rule.Name]:
			f.add("is the name of an earlier rule; names are unique", "name")
		}
		names[rule.Name] = true
		before := len(f.found)
		f.when(&rule.When)
		f.targets(rule)
		f.strategy(rule)
		f.fallbacks(rule)
		if len(f.found) == before {
			f.reached(p.Rules[:i], rule)
		}
	}
	return f.found
}

type faults struct {
	known func(string) bool
	rule  int
	found []Fault
}

func (f *faults) add(problem string, path ...string) {
	f.found = append(f.found, Fault{Rule: f.rule, Path: path, Problem: problem})
}

func (f *faults) aliases(aliases map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(aliases)) {
		model := aliases[name]
		_, chained := aliases[model]
		switch {
		case name == "":
			f.add("must not be empty; write the name that clients may use", "aliases", name)
		case model == "":
			f.add("must not be empty; write the model that the alias stands for", "aliases", name)
		case model == name:
			f.add("must not be the alias itself; write the model that it stands for", "aliases", name)
		case chained:
			f.add("must not be another alias; write the model itself", "aliases", name)
		}
	}
}

func (f *faults) when(w *When) {
	if len(w.All)+len(w.Any)+len(w.Not) > MaxMatches {
		f.add("must not hold more than "+strconv.Itoa(MaxMatches)+" matches; write a second rule", "when")
		return
	}
	for _, part := range []struct {
		name    string
		matches []Match
	}{{"all", w.All}, {"any", w.Any}, {"not", w.Not}} {
		for i := range part.matches {
			f.match(&part.matches[i], "when", part.name, strconv.Itoa(i))
		}
	}
}

func (f *faults) match(m *Match, at ...string) {
	if _, always := m.foresee("", ""); always && len(m.Models) == 0 {
		f.add("must not be empty; name what a request has to have, or leave the match out", at...)
	}
	inside := func(segments ...string) []string { return append(slices.Clone(at), segments...) }
	for _, list := range []struct {
		name  string
		globs []string
	}{{"models", m.Models}, {"tenants", m.Tenants}, {"keys", m.Keys}} {
		for i, pattern := range list.globs {
			f.glob(pattern, inside(list.name, strconv.Itoa(i)))
		}
	}
	for _, pairs := range []struct {
		name  string
		globs map[string]string
	}{{"headers", m.Headers}, {"metadata", m.Metadata}} {
		for _, name := range slices.Sorted(maps.Keys(pairs.globs)) {
			if name == "" {
				f.add("must not be empty; write a name before the colon", inside(pairs.name, name)...)
			}
			f.glob(pairs.globs[name], inside(pairs.name, name))
		}
	}
	for i, endpoint := range m.Endpoints {
		if kind := inference.Kind(endpoint); kind != inference.KindChat && kind != inference.KindEmbeddings {
			f.add("must be chat or embeddings", inside("endpoints", strconv.Itoa(i))...)
		}
	}
	f.tokens(m, inside)
}

func (f *faults) tokens(m *Match, inside func(...string) []string) {
	if m.MinPromptTokens < 0 {
		f.add("must not be negative; write 0 for no bound", inside("min_prompt_tokens")...)
	}
	if m.MaxPromptTokens < 0 {
		f.add("must not be negative; write 0 for no bound", inside("max_prompt_tokens")...)
	}
	if m.MaxPromptTokens > 0 && m.MinPromptTokens > m.MaxPromptTokens {
		f.add("must not be more than max_prompt_tokens: no prompt is that long and that short", inside("min_prompt_tokens")...)
	}
}

func (f *faults) glob(pattern string, at []string) {
	if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
		f.add(`must be a name or a glob, such as "gpt-4o*"; [ and \ have a meaning in globs`, at...)
	}
}

func (f *faults) targets(rule *Rule) {
	if len(rule.Targets) == 0 {
		f.add("must not be empty; name at least one provider", "targets")
		return
	}
	all := len(rule.Targets)
	for i := range rule.Fallback {
		all += len(rule.Fallback[i].Targets)
	}
	if all > MaxCandidates {
		f.add("must not be more than "+strconv.Itoa(MaxCandidates)+" together with those of the fallbacks: a job has room for no more", "targets")
	}
	weighed := false
	for i := range rule.Targets {
		at := []string{"targets", strconv.Itoa(i)}
		weight := rule.Targets[i].Weight
		switch {
		case weight < 0:
			f.add("must not be negative; write 0 for a target that is used only when the others cannot be", append(slices.Clone(at), "weight")...)
		case weight > MaxWeight:
			f.add("must not be more than "+strconv.Itoa(MaxWeight)+"; weights count against each other, so write smaller ones", append(slices.Clone(at), "weight")...)
		}
		weighed = weighed || weight != 0
		f.target(rule.Targets[:i], rule.Targets[i], at)
	}
	if !weighed {
		f.add("must not all have the weight 0; write 1 for equal shares", "targets")
	}
}

// target checks a target that comes after others of the same list.
func (f *faults) target(others []Target, t Target, at []string) {
	switch {
	case t.Provider == "":
		f.add("must not be empty; name a provider of this configuration", append(slices.Clone(at), "provider")...)
	case !f.known(t.Provider):
		f.add("names no provider of this configuration", append(slices.Clone(at), "provider")...)
	case slices.ContainsFunc(others, func(o Target) bool { return o.Provider == t.Provider && o.Model == t.Model }):
		f.add("must not be the same as an earlier target; write one with the sum of the weights", at...)
	}
}

func (f *faults) strategy(rule *Rule) {
	switch rule.Strategy {
	case "", StrategyWeighted, StrategyOrdered, StrategyRoundRobin, StrategyLeastBusy, StrategyLowestLatency, StrategyLowestCost, StrategySticky:
	default:
		f.add("must be weighted, ordered, round_robin, least_busy, lowest_latency, lowest_cost or sticky", "strategy")
	}
	if rule.StickyHeader != "" && rule.Strategy != StrategySticky {
		f.add("must not be given unless the strategy is sticky; leave it out, or write strategy: sticky", "sticky_header")
	}
}

func (f *faults) fallbacks(rule *Rule) {
	for i := range rule.Fallback {
		at := []string{"fallback", strconv.Itoa(i), "targets"}
		targets := rule.Fallback[i].Targets
		if len(targets) == 0 {
			f.add("must not be empty; name at least one provider, or leave the fallback out", at...)
		}
		for j := range min(len(targets), MaxCandidates) {
			f.target(targets[:j], targets[j], append(slices.Clone(at), strconv.Itoa(j)))
		}
	}
}

// reached finds out whether requests come to the rule at all.
func (f *faults) reached(earlier []Rule, rule *Rule) {
	if rule.When.impossible() {
		f.add("must not rule itself out; no request meets all of it", "when")
		return
	}
	for i := range earlier {
		if earlier[i].When.follows(&rule.When) {
			f.add("must not stand behind rule " + strconv.Quote(earlier[i].Name) + ", which takes every request that this one would; write it before that one")
			return
		}
	}
}
