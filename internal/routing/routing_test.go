package routing

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func candidates(table *Table, q Request) []inference.Candidate { return table.Route(q).Candidates }

func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, model string
		want           bool
	}{
		{"gpt-4o", "gpt-4o", true},
		{"gpt-4o", "gpt-4o-mini", false},
		{"gpt-4o*", "gpt-4o-mini", true},
		{"*", "org/model", true},
		{"org/*", "org/sub/model", true},
		{"org/*", "other/model", false},
		{"m?", "m1", true},
		{"m?", "m/", true},
		{"m[0-9]", "m7", true},
		{"m[0-9", "m7", false},
		{"m[0-9", "m[0-9", true},
		{"", "", true},
		{"", "m", false},
		{"*", "", true},
		{"g*x", "gx", true},
		{`m\*`, "m*", true},
		{`m\*`, "mm", false},
	} {
		require.Equal(t, c.want, Matches(c.pattern, c.model), "%q %q", c.pattern, c.model)
	}
	require.True(t, MatchesAny([]string{"x", "m*"}, "m1"))
	require.False(t, MatchesAny(nil, "m1"))
}

func TestRoute(t *testing.T) {
	t.Parallel()
	table := NewTable(Policy{Order: []string{"zeta", "glob"}}, []Provider{
		{Name: "alpha", Models: []string{"m"}, Workers: 1},
		{Name: "beta", Models: []string{"m"}, Workers: 1},
		{Name: "dead", Models: []string{"m", "only-dead"}},
		{Name: "glob", Models: []string{"m*"}, Workers: 1},
		{Name: "none", Workers: 1},
		{Name: "zeta", Models: []string{"m", "org/x"}, Workers: 1},
	})
	for model, want := range map[string][]inference.Candidate{
		"m":          {{Provider: "zeta", Model: "m"}, {Provider: "alpha", Model: "m"}, {Provider: "beta", Model: "m"}, {Provider: "glob", Model: "m"}, {Provider: "dead", Model: "m"}},
		"m2":         {{Provider: "glob", Model: "m2"}},
		"only-dead":  {{Provider: "dead", Model: "only-dead"}},
		"beta/m":     {{Provider: "beta", Model: "m"}},
		"glob/m9":    {{Provider: "glob", Model: "m9"}},
		"org/x":      {{Provider: "zeta", Model: "org/x"}},
		"zeta/org/x": {{Provider: "zeta", Model: "org/x"}},
		"beta/other": {},
		"beta/":      {},
		"unknown":    {},
		"":           {},
	} {
		t.Run(model, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, want, candidates(table, Request{Model: model}))
		})
	}
}

// A provider that takes anything does not take what was meant for another one.
func TestANamedProviderComesBeforeGlobs(t *testing.T) {
	t.Parallel()
	table := NewTable(Policy{Order: []string{"any"}}, []Provider{
		{Name: "any", Models: []string{"*"}, Workers: 1},
		{Name: "b", Models: []string{"*"}},
		{Name: "c", Models: []string{"m"}},
		{Name: "exact", Models: []string{"c/m"}},
	})
	require.Equal(t, []inference.Candidate{{Provider: "b", Model: "m9"}}, candidates(table, Request{Model: "b/m9"}))
	require.Equal(t, []inference.Candidate{{Provider: "exact", Model: "c/m"}, {Provider: "c", Model: "m"}}, candidates(table, Request{Model: "c/m"}))
	require.Equal(t, []inference.Candidate{{Provider: "any", Model: "c/x"}, {Provider: "b", Model: "c/x"}}, candidates(table, Request{Model: "c/x"}))
}

// For any table: only providers that serve the model, each once, live ones first, and
// always the same order however the table is arranged.
func TestRouteOfAnyTable(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c", "d", "e"}
	models := []string{"m", "n", "m*", "*", "a/m", "[", ""}
	for range 2000 {
		var providers []Provider
		for _, name := range names {
			p := Provider{Name: name, Workers: r.IntN(2)}
			for range r.IntN(3) {
				p.Models = append(p.Models, models[r.IntN(len(models))])
			}
			providers = append(providers, p)
		}
		policy := Policy{Order: slices.Clone(names[:r.IntN(len(names))])}
		model := []string{"m", "n", "mm", "a/m", "b/n", "x"}[r.IntN(6)]
		got := candidates(NewTable(policy, providers), Request{Model: model})

		shuffled := slices.Clone(providers)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		require.Equal(t, got, candidates(NewTable(policy, shuffled), Request{Model: model}))

		live := true
		seen := make(map[string]bool)
		for _, c := range got {
			p := providers[slices.Index(names, c.Provider)]
			require.False(t, seen[c.Provider])
			seen[c.Provider] = true
			require.True(t, MatchesAny(p.Models, c.Model))
			require.True(t, c.Model == model || p.Name+"/"+c.Model == model)
			require.False(t, p.Live() && !live, "a live one behind one that is not")
			live = p.Live()
		}
		for _, p := range providers {
			exact := slices.Contains(p.Models, model)
			named := slices.ContainsFunc(got, func(c inference.Candidate) bool { return c.Model != model })
			if exact || MatchesAny(p.Models, model) && !named {
				require.True(t, seen[p.Name], "whoever serves it, unless the client named another")
			}
		}
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	table := NewTable(Policy{Aliases: map[string]string{"fast": "mini", "there": "b/mini", "mini": "large"}}, []Provider{
		{Name: "a", Models: []string{"mini"}, Workers: 1}, {Name: "b", Models: []string{"*"}, Workers: 1},
	})
	require.Equal(t, Decision{Model: "mini", Alias: true, Candidates: []inference.Candidate{{Provider: "a", Model: "mini"}, {Provider: "b", Model: "mini"}}},
		table.Route(Request{Model: "fast"}), "one level alone")
	require.Equal(t, []inference.Candidate{{Provider: "b", Model: "mini"}}, candidates(table, Request{Model: "there"}))
	require.Equal(t, Decision{Model: "x", Candidates: []inference.Candidate{{Provider: "b", Model: "x"}}}, table.Route(Request{Model: "x"}))
}

func TestAJobHasRoomForSoManyCandidates(t *testing.T) {
	t.Parallel()
	var providers []Provider
	for i := range MaxCandidates + 2 {
		providers = append(providers, Provider{Name: fmt.Sprintf("p%03d", i), Models: []string{"m"}, Workers: 1})
	}
	d := NewTable(Policy{}, providers).Explain(Request{Model: "m"})
	require.Len(t, d.Candidates, MaxCandidates)
	require.Equal(t, "p063", d.Candidates[MaxCandidates-1].Provider)
	require.Equal(t, []Exclusion{
		{inference.Candidate{Provider: "p064", Model: "m"}, "comes after as many candidates as a job can have"},
		{inference.Candidate{Provider: "p065", Model: "m"}, "comes after as many candidates as a job can have"},
	}, d.Excluded)
}
