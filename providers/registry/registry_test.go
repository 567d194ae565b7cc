package registry_test

import (
	"testing"

	"github.com/stretchr/testify/require"

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

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	_, err := registry.Build("mine", registry.Settings{Type: "abacus"})
	require.EqualError(t, err, `build provider mine: unknown type "abacus"; known types are openai, sim`)
	for _, kind := range registry.Types() {
		p, err := registry.Build("mine", registry.Settings{Type: kind, BaseURL: "nowhere", Sim: registry.SimSettings{FailureRate: 2}})
		require.ErrorContains(t, err, "build provider mine: ")
		require.Nil(t, p, "an error comes with no provider at all")
	}
}
