package routing

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func providersOf(cs []inference.Candidate) (list []string) {
	for _, c := range cs {
		list = append(list, c.Provider)
	}
	return list
}

func TestWhatOperatorsWantOfProviders(t *testing.T) {
	t.Parallel()
	m := []string{"m"}
	open := []inference.ModelState{{Model: "m", Breaker: inference.BreakerOpen}}
	target := func(p string) Target { return Target{Provider: p, Weight: 1} }
	for name, c := range map[string]struct {
		providers []Provider
		rules     []Rule
		want      []string
		drained   string
		lacking   []string
	}{
		"a paused one comes after whoever can be called": {
			providers: []Provider{{Name: "a", Models: m, Workers: 1, Paused: true}, {Name: "b", Models: m, Workers: 1}}, want: []string{"b", "a"},
		},
		"and after one that will be well soon": {
			providers: []Provider{{Name: "a", Models: m, Workers: 1, Paused: true}, {Name: "b", Models: m, Workers: 1, States: open}}, want: []string{"b", "a"},
		},
		"but before one without a worker": {
			providers: []Provider{{Name: "a", Models: m}, {Name: "b", Models: m, Workers: 1, Paused: true}}, want: []string{"b", "a"},
		},
		"alone it holds": {providers: []Provider{{Name: "a", Models: m, Workers: 1, Paused: true}}, want: []string{"a"}},
		"a drained one is no candidate": {
			providers: []Provider{{Name: "a", Models: m, Workers: 1, Drained: true}, {Name: "b", Models: m}}, want: []string{"b"},
		},
		"the only one": {providers: []Provider{{Name: "a", Models: m, Workers: 1, Drained: true}}, drained: "a"},
		"the only one that could": {
			providers: []Provider{
				{Name: "a", Models: m, Workers: 1, Traits: []inference.ModelTraits{{Models: m}}}, {Name: "b", Models: m, Workers: 1, Drained: true},
			}, drained: "b", lacking: []string{"chat"},
		},
		"a rule's fallback stands in": {
			providers: []Provider{{Name: "a", Models: m, Workers: 1, Drained: true}, {Name: "b", Models: m, Workers: 1}},
			rules:     []Rule{{Name: "r", Targets: []Target{target("a")}, Fallback: []Fallback{{Targets: []Target{target("b")}}}}}, want: []string{"b"},
		},
		"also for a target that is paused": {
			providers: []Provider{{Name: "a", Models: m, Workers: 1, Paused: true}, {Name: "b", Models: m, Workers: 1}},
			rules:     []Rule{{Name: "r", Targets: []Target{target("a")}, Fallback: []Fallback{{Targets: []Target{target("b")}}}}}, want: []string{"b", "a"},
		},
		"a rule has nobody else": {
			providers: []Provider{{Name: "a", Models: m, Workers: 1, Drained: true}, {Name: "b", Models: m, Workers: 1}},
			rules:     []Rule{{Name: "r", Targets: []Target{target("a")}}}, drained: "a",
		},
	} {
		table := NewTable(Policy{Rules: c.rules}, c.providers)
		d := table.Explain(Request{Model: "m", Kind: inference.KindChat})
		require.Equal(t, c.want, providersOf(d.Candidates), name)
		by := ""
		if len(d.Drained) > 0 {
			by = d.Drained[0].Provider
		}
		require.Equal(t, c.drained, by, name)
		require.Equal(t, c.lacking, d.Lacking, name)
		for _, x := range d.Excluded {
			require.Equal(t, table.find(x.Provider).Drained, x.Why == "is drained by an operator", name)
		}
	}
	for _, rules := range [][]Rule{nil, {{Name: "r", Targets: []Target{target("a")}}}} {
		table := NewTable(Policy{Rules: rules}, []Provider{{Name: "a", Models: m, Workers: 1, Drained: true}})
		require.Equal(t, []string{"a"}, providersOf(table.Serves("m")), "it goes on serving the model, only not now")
	}
	table := NewTable(Policy{}, []Provider{{Name: "a", Models: m, Workers: 1, Paused: true}})
	require.Contains(t, table.Explain(Request{Model: "m", Kind: inference.KindChat}).Why[0], "paused by an operator")
}

func (t *Table) find(name string) *Provider {
	for i := range t.Providers {
		if t.Providers[i].Name == name {
			return &t.Providers[i]
		}
	}
	return nil
}
