package routing

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// For any table and any request, whatever the rules.
func TestRouteOfAnyPolicy(t *testing.T) {
	t.Parallel()
	r := newRandom(11)
	ruledOnes, several, empty, ahead := 0, 0, 0, 0
	for range 8_000 {
		policy, providers, q := r.policy(), r.providers(), r.request()
		table := NewTable(policy, providers)
		d := table.Route(q)
		require.Equal(t, d, NewTable(policy, slices.Clone(providers)).Route(q), "the same request, the same decision")

		explained := table.Explain(q)
		require.Len(t, explained.Why, len(d.Candidates))
		for _, x := range explained.Excluded {
			require.NotEmpty(t, x.Why)
		}
		why := explained
		why.Why, why.Excluded = nil, nil
		require.Equal(t, d, why, "Explain decides what Route does")

		seen := map[inference.Candidate]bool{}
		for _, c := range d.Candidates {
			key := inference.Candidate{Provider: c.Provider, Model: c.Model}
			require.False(t, seen[key], "twice: %+v", c)
			seen[key] = true
			p := &providers[slices.Index(names, c.Provider)]
			require.Zero(t, lacks(p, c.Model, &q), "%+v cannot serve", c)
			require.NotContains(t, explained.Excluded, c)
		}
		if len(d.Candidates) == 0 {
			empty++
		} else {
			require.Empty(t, d.Lacking)
		}
		if len(d.Candidates) > 1 {
			several++
		}
		if d.Rule != "" {
			ruledOnes++
			ahead += checkBorders(t, table, &q, d)
			continue
		}
		for i := 1; i < len(d.Candidates); i++ {
			require.GreaterOrEqual(t, seenHealth(table, &q, d.Candidates[i]), seenHealth(table, &q, d.Candidates[i-1]))
		}
	}
	for _, n := range []int{ruledOnes, several, empty, ahead} {
		require.Greater(t, n, 200, "the cases occur")
	}
}

func seenHealth(table *Table, q *Request, c inference.Candidate) health {
	p := pick{Candidate: c, provider: &table.Providers[slices.Index(names, c.Provider)]}
	(&route{table: table, q: q}).examine(&p)
	return p.health
}

// checkBorders checks a rule's decision against the documented order: by health within
// the targets and within each fallback, and the borders between these not crossed but
// by fallbacks that are due. It returns how many of those came first.
func checkBorders(t *testing.T, table *Table, q *Request, d Decision) int {
	t.Helper()
	rule := &table.Rules[slices.IndexFunc(table.Rules, func(r Rule) bool { return r.Name == d.Rule })]
	for i := range table.Rules { // two may have the same name
		if table.Rules[i].When.holds(q, d.Model) {
			rule = &table.Rules[i]
			break
		}
	}
	r := route{table: table, q: q, model: d.Model, rule: rule}
	places := map[inference.Candidate]int{}
	place := func(n int, targets []Target) {
		for i := range targets {
			p := r.aim(&targets[i])
			c := inference.Candidate{Provider: p.Provider, Model: p.Model}
			if _, ok := places[c]; !ok {
				places[c] = n
			}
		}
	}
	place(0, rule.Targets)
	for i, f := range rule.Fallback {
		place(i+1, f.Targets)
	}
	at := func(c inference.Candidate) int {
		return places[inference.Candidate{Provider: c.Provider, Model: c.Model}]
	}
	callable, left := false, false
	for _, c := range d.Candidates {
		if at(c) == 0 {
			left = true
			callable = callable || seenHealth(table, q, c).callable()
		}
	}
	first := 0
	for i, a := range d.Candidates {
		for _, b := range d.Candidates[i+1:] {
			switch healthA, healthB := seenHealth(table, q, a), seenHealth(table, q, b); {
			case at(a) == at(b) && !callable && a.On != b.On: // one of them may be due by what it is in a later fallback
			case at(a) == at(b):
				require.LessOrEqual(t, healthA, healthB, "%+v", d)
			case at(a) > at(b):
				require.False(t, callable, "a target can be called: %+v", d)
				if at(b) == 0 {
					require.True(t, healthA.callable(), "%+v", d)
					first++
				}
				if left && !a.May(inference.ReasonContextTooLong) {
					require.True(t, a.May(inference.ReasonUnavailable), "%+v", d)
				}
			}
		}
	}
	return first
}

func FuzzMatches(f *testing.F) {
	f.Add("gpt-*", "gpt-4o", "gpt-?o")
	f.Add("[", "a/b", `\`)
	f.Fuzz(func(t *testing.T, a, text, b string) {
		Matches(a, text)
		require.True(t, Matches(a, a), "a pattern covers its own text")
		require.True(t, Matches("*", text))
		if coversPattern(a, b) && Matches(b, text) {
			require.True(t, Matches(a, text), "%q covers %q", a, b)
		}
		if !mayMeet(a, b) {
			require.False(t, Matches(a, text) && Matches(b, text))
		}
	})
}

func FuzzRoute(f *testing.F) {
	f.Add("gpt-*", "openai/gpt-4o", "openai", "gpt-4o", "weighted", uint64(1))
	f.Add("*", "a", "a", "", "round_robin", uint64(1<<63))
	f.Fuzz(func(t *testing.T, glob, model, provider, alias, strategy string, random uint64) {
		policy := Policy{Aliases: map[string]string{alias: model}, Rules: []Rule{{
			Name: "r", When: When{Any: []Match{{Models: []string{glob}}, {Tenants: []string{model}}}}, Strategy: Strategy(strategy), StickyHeader: alias,
			Targets:  []Target{{Provider: provider, Weight: int(random)}, {Provider: "b", Model: model, Weight: 1}, {Provider: "b"}},
			Fallback: []Fallback{{On: inference.Reasons(random), Targets: []Target{{Provider: "b"}, {Provider: model, Model: glob}}}},
		}}}
		table := NewTable(policy, []Provider{{Name: provider, Models: []string{glob, alias}, Workers: 1}, {Name: "b", Models: []string{model}}})
		policy.Faults(func(name string) bool { return name == provider })
		q := Request{Model: alias, Tenant: glob, User: glob, Random: random, Turn: func(string) uint64 { return random }, PromptTokens: int(random), OutputTokens: int(random >> 1)}
		d := table.Explain(q)
		require.Equal(t, model, d.Model)
		require.Len(t, d.Why, len(d.Candidates))
		for i, c := range d.Candidates {
			require.False(t, slices.ContainsFunc(d.Candidates[:i], func(o inference.Candidate) bool { return o.Provider == c.Provider && o.Model == c.Model }))
		}
		table.Serves(alias)
	})
}
