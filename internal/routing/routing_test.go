package routing

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

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
	} {
		require.Equal(t, c.want, Matches(c.pattern, c.model), "%q %q", c.pattern, c.model)
	}
	require.True(t, MatchesAny([]string{"x", "m*"}, "m1"))
	require.False(t, MatchesAny(nil, "m1"))
}

func TestRoute(t *testing.T) {
	t.Parallel()
	table := Table{Order: []string{"zeta", "glob"}, Providers: []Provider{
		{Name: "alpha", Models: []string{"m"}, Live: true},
		{Name: "beta", Models: []string{"m"}, Live: true},
		{Name: "dead", Models: []string{"m", "only-dead"}},
		{Name: "glob", Models: []string{"m*"}, Live: true},
		{Name: "none", Live: true},
		{Name: "zeta", Models: []string{"m", "org/x"}, Live: true},
	}}
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
			require.Equal(t, want, table.Route(model))
		})
	}
}

// A provider that takes anything does not take what was meant for another one.
func TestANamedProviderComesBeforeGlobs(t *testing.T) {
	t.Parallel()
	table := Table{Order: []string{"any"}, Providers: []Provider{
		{Name: "any", Models: []string{"*"}, Live: true},
		{Name: "b", Models: []string{"*"}},
		{Name: "c", Models: []string{"m"}},
		{Name: "exact", Models: []string{"c/m"}},
	}}
	require.Equal(t, []inference.Candidate{{Provider: "b", Model: "m9"}}, table.Route("b/m9"))
	require.Equal(t, []inference.Candidate{{Provider: "exact", Model: "c/m"}, {Provider: "c", Model: "m"}}, table.Route("c/m"))
	require.Equal(t, []inference.Candidate{{Provider: "any", Model: "c/x"}, {Provider: "b", Model: "c/x"}}, table.Route("c/x"))
}

// For any table: only providers that serve the model, each once, live ones first, and
// always the same order however the table is arranged.
func TestRouteOfAnyTable(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c", "d", "e"}
	models := []string{"m", "n", "m*", "*", "a/m", "[", ""}
	for range 2000 {
		var table Table
		for _, name := range names {
			p := Provider{Name: name, Live: r.IntN(2) == 0}
			for range r.IntN(3) {
				p.Models = append(p.Models, models[r.IntN(len(models))])
			}
			table.Providers = append(table.Providers, p)
		}
		table.Order = slices.Clone(names[:r.IntN(len(names))])
		model := []string{"m", "n", "mm", "a/m", "b/n", "x"}[r.IntN(6)]
		got := table.Route(model)

		shuffled := Table{Order: table.Order, Providers: slices.Clone(table.Providers)}
		r.Shuffle(len(shuffled.Providers), func(i, j int) {
			shuffled.Providers[i], shuffled.Providers[j] = shuffled.Providers[j], shuffled.Providers[i]
		})
		require.Equal(t, got, shuffled.Route(model))

		live := true
		seen := make(map[string]bool)
		for _, c := range got {
			p := table.Providers[slices.Index(names, c.Provider)]
			require.False(t, seen[c.Provider])
			seen[c.Provider] = true
			require.True(t, MatchesAny(p.Models, c.Model))
			require.True(t, c.Model == model || p.Name+"/"+c.Model == model)
			require.False(t, p.Live && !live, "a live one behind one that is not")
			live = p.Live
		}
		for _, p := range table.Providers {
			exact := slices.Contains(p.Models, model)
			named := slices.ContainsFunc(got, func(c inference.Candidate) bool { return c.Model != model })
			if exact || MatchesAny(p.Models, model) && !named {
				require.True(t, seen[p.Name], "whoever serves it, unless the client named another")
			}
		}
	}
}
