package traits_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers/internal/traits"
)

var (
	general  = inference.Traits{Chat: true, Tools: true}
	embeds   = inference.Traits{Embeddings: true}
	families = []inference.ModelTraits{{Models: []string{"embed-*"}, Traits: embeds}}
)

func upstreamName(model string) string {
	if own, ok := map[string]string{"vectors": "embed-1", "embed-chat": "large"}[model]; ok {
		return own
	}
	return model
}

func TestSpecial(t *testing.T) {
	t.Parallel()
	mapped := []string{"vectors", "embed-chat", "same"}
	named := traits.Special(families, general, []string{"large", "vectors", "embed-2", "embed-chat"}, mapped, upstreamName)
	require.Equal(t, []inference.ModelTraits{{Models: []string{"vectors", "embed-2"}, Traits: embeds}}, named)

	for _, served := range [][]string{nil, {"*"}, {"large", "team/*"}} {
		open := traits.Special(families, general, served, mapped, upstreamName)
		for model, want := range map[string]inference.Traits{
			"embed-9": embeds, "team/embed-9": general, "vectors": embeds, "embed-chat": general, "same": general, "large": general,
		} {
			require.Equal(t, want, traits.Of(open, general, model), model)
		}
	}
}

func TestGroupsAreBounded(t *testing.T) {
	t.Parallel()
	var models []string
	sizes := map[string]int{}
	for i := range 65 {
		models = append(models, fmt.Sprint(i))
		sizes[models[i]] = i + 1
	}
	of := func(model string) inference.Traits {
		return inference.Traits{Chat: sizes[model] != 7, ContextTokens: sizes[model]}
	}
	require.Len(t, traits.Group(models[:64], general, of), 64)
	many := traits.Group(models, general, of)
	require.Len(t, many, 2, "sizes are unknown before chat models are taken for others")
	require.Equal(t, inference.Traits{}, traits.Of(many, general, "6"))
	require.Equal(t, inference.Traits{Chat: true}, traits.Of(many, general, "64"))
	require.Empty(t, traits.Group(models, general, func(string) inference.Traits { return general }))
	require.Len(t, traits.All(models, func(string) inference.Traits { return inference.Traits{} }), 1)
}
