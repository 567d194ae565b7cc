package registry_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/providers"
	"sluice/providers/anthropic"
	"sluice/providers/gemini"
	"sluice/providers/openai"
	"sluice/providers/registry"
	"sluice/providers/sim"
)

func TestBuild(t *testing.T) {
	t.Parallel()
	p, err := registry.Build("a", registry.Settings{Type: "openai", BaseURL: "http://x/v1", Models: []string{"m"}})
	require.NoError(t, err)
	require.IsType(t, &openai.Provider{}, p)
	caps, err := p.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"m"}, caps.Models)

	p, err = registry.Build("b", registry.Settings{Type: "sim", Models: []string{"s*"}})
	require.NoError(t, err)
	require.IsType(t, &sim.Provider{}, p)
	caps, err = p.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"s*"}, caps.Models)
}

func TestBuildEveryType(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]providers.Provider{
		registry.TypeAnthropic: &anthropic.Provider{}, registry.TypeGemini: &gemini.Provider{}, registry.TypeCustom: &openai.Provider{},
	} {
		p, err := registry.Build("a", registry.Settings{
			Type: kind, BaseURL: "http://x/v1", Models: []string{"m"}, DropUnsupported: true,
			Keys:    []registry.Key{{Secret: "a-long-key-of-an-upstream", Weight: 2}, {Secret: "b"}},
			Headers: map[string]string{"x-team": "research"}, Proxy: "http://proxy:3128",
			Custom: registry.CustomSettings{ChatPath: "/talk", KeyHeader: "x-token"},
		})
		require.NoError(t, err, kind)
		require.IsType(t, want, p)
		reporter, ok := p.(providers.KeyReporter)
		require.True(t, ok, kind)
		require.Len(t, reporter.Keys(), 2)
		require.NoError(t, p.Close())
		_, err = registry.Build("a", registry.Settings{Type: kind, BaseURL: "http://x", Headers: map[string]string{"a b": "c"}})
		require.ErrorContains(t, err, `header "a b"`)
		_, err = registry.Build("a", registry.Settings{Type: kind, BaseURL: "http://x", Proxy: "%"})
		require.ErrorContains(t, err, "proxy")
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	_, err := registry.Build("mine", registry.Settings{Type: "abacus"})
	require.EqualError(t, err, `build provider mine: unknown type "abacus"; known types are openai, anthropic, gemini, custom, sim`)
	for _, kind := range registry.Types() {
		p, err := registry.Build("mine", registry.Settings{Type: kind, BaseURL: "nowhere", Sim: registry.SimSettings{FailureRate: 2}})
		require.ErrorContains(t, err, "build provider mine: ")
		require.Nil(t, p, "an error comes with no provider at all")
	}
}
