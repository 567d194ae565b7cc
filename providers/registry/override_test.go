package registry_test

import (
	"path"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers"
	"sluice/providers/internal/traits"
	"sluice/providers/registry"
	"sluice/providers/sim"
)

func capabilities(t *testing.T, s registry.Settings) providers.Capabilities {
	t.Helper()
	p, err := registry.Build("a", s)
	require.NoError(t, err)
	caps, err := p.Capabilities(t.Context())
	require.NoError(t, err)
	require.NoError(t, p.Close())
	return caps
}

func TestOverrides(t *testing.T) {
	t.Parallel()
	no, yes, small, unknown := new(false), new(true), new(4096), new(0)
	overrides := []registry.TraitOverride{
		{Models: []string{"gpt-4o-2024*"}, Tools: no},
		{Models: []string{"gpt-4o*", "*-mini"}, Images: no, ContextTokens: small},
		{Models: []string{"text-embedding-3-large"}, Chat: yes},
		{Models: []string{"gpt-3.5-turbo"}, StructuredOutput: yes, OutputTokens: unknown},
		{Models: []string{"*"}, Streaming: no},
	}
	all := inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true}
	with := func(t inference.Traits, change func(*inference.Traits)) inference.Traits {
		change(&t)
		return t
	}
	want := map[string]inference.Traits{
		"gpt-4o-2024-08-06":      with(all, func(t *inference.Traits) { t.Tools = false }),
		"gpt-4o":                 with(all, func(t *inference.Traits) { t.Images, t.ContextTokens = false, 4096 }),
		"gpt-4.1-mini":           with(all, func(t *inference.Traits) { t.Images, t.ContextTokens = false, 4096 }),
		"o3-mini":                {Chat: true, Streaming: true, Tools: true, StructuredOutput: true, ContextTokens: 4096},
		"text-embedding-3-large": {Chat: true, Embeddings: true},
		"text-embedding-3-small": {Embeddings: true},
		"gpt-3.5-turbo":          {Chat: true, Streaming: true, Tools: true, StructuredOutput: true},
		"gpt-3.5-turbo-0125":     {Chat: true, Tools: true},
		"gpt-5":                  with(all, func(t *inference.Traits) { t.Streaming = false }),
		"whisper-1":              {},
		"mine/own":               with(all, func(t *inference.Traits) { t.Streaming, t.Embeddings = false, true }),
	}
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, name)
	}
	named := capabilities(t, registry.Settings{Type: "openai", BaseURL: "https://api.openai.com/v1", Models: names, Overrides: overrides})
	for name, traitsOf := range want {
		require.Equal(t, traitsOf, traits.Of(named.Special, named.Traits, name), name)
	}
	require.Equal(t, names, named.Models)

	both := capabilities(t, registry.Settings{
		Type: "openai", BaseURL: "https://api.openai.com/v1", Models: append([]string{"*"}, names...), Overrides: overrides,
	})
	for name, traitsOf := range want {
		require.Equal(t, traitsOf, traits.Of(both.Special, both.Traits, name), name)
	}

	globs := capabilities(t, registry.Settings{Type: "openai", BaseURL: "https://api.openai.com/v1", Models: []string{"*"}, Overrides: overrides})
	for name, traitsOf := range want {
		if name == "o3-mini" || name == "gpt-4.1-mini" {
			// *-mini overlaps gpt-* and o3-mini*: what is given is replaced in any case.
			got := traits.Of(globs.Special, globs.Traits, name)
			require.False(t, got.Images, name)
			require.Equal(t, 4096, got.ContextTokens, name)
			continue
		}
		require.Equal(t, traitsOf, traits.Of(globs.Special, globs.Traits, name), name)
	}
}

func TestOverriddenAdaptersTellOfTheirKeys(t *testing.T) {
	t.Parallel()
	for _, kind := range registry.Types() {
		s := registry.Settings{
			Type: kind, BaseURL: "http://x/v1", Models: []string{"m"}, Keys: []registry.Key{{Secret: "a"}},
			Overrides: []registry.TraitOverride{{Models: []string{"m"}, Tools: new(false)}},
		}
		p, err := registry.Build("a", s)
		require.NoError(t, err)
		reporter, reports := p.(providers.KeyReporter)
		gate, gates := p.(providers.Gate)
		require.Equal(t, kind != registry.TypeSim, reports, kind)
		require.Equal(t, kind != registry.TypeSim, gates, kind)
		if reports {
			require.Len(t, reporter.Keys(), 1)
			require.Zero(t, gate.OpenAt(time.Now()))
		}
		caps, err := p.Capabilities(t.Context())
		require.NoError(t, err)
		require.False(t, traits.Of(caps.Special, caps.Traits, "m").Tools)
		require.NoError(t, p.Close())
	}
	p, err := registry.Build("a", registry.Settings{Type: registry.TypeSim})
	require.NoError(t, err)
	require.IsType(t, &sim.Provider{}, p, "without overrides there is no wrapper")
}

func TestOverridesAreChecked(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]registry.TraitOverride{
		"names no models":      {},
		`model pattern "[a"`:   {Models: []string{"ok", "[a"}},
		"must not be negative": {Models: []string{"m"}, OutputTokens: new(-1)},
	} {
		_, err := registry.Build("mine", registry.Settings{Type: registry.TypeSim, Overrides: []registry.TraitOverride{o}})
		require.ErrorContains(t, err, "build provider mine: ")
		require.ErrorContains(t, err, want)
	}
}

// TestPatternsAreGlobs holds what adapters say of families to the form that is understood.
func TestPatternsAreGlobs(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{registry.TypeOpenAI, registry.TypeAnthropic, registry.TypeGemini} {
		caps := capabilities(t, registry.Settings{Type: kind, BaseURL: "https://api.openai.com/v1", Models: []string{"*"}})
		require.NotEmpty(t, caps.Special, kind)
		for _, s := range caps.Special {
			for _, pattern := range s.Models {
				_, err := path.Match(pattern, "x")
				require.NoError(t, err, pattern)
			}
		}
	}
}
