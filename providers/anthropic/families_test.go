package anthropic

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/traits"
	"sluice/providers/internal/upstream"
)

func TestFamilies(t *testing.T) {
	t.Parallel()
	for model, want := range map[string]struct {
		context, output int
		images, schemas bool
	}{
		"claude-2.1":                               {0, 4096, false, false},
		"claude-instant-1.2":                       {0, 4096, false, false},
		"claude-3-opus-latest":                     {200_000, 4096, true, false},
		"claude-3-haiku-20240307":                  {200_000, 4096, true, false},
		"claude-3-5-sonnet-20241022":               {200_000, 8192, true, false},
		"claude-3-7-sonnet-20250219":               {200_000, 64_000, true, false},
		"claude-opus-4-20250514":                   {200_000, 32_000, true, false},
		"claude-opus-4-0":                          {200_000, 32_000, true, false},
		"claude-sonnet-4@20250514":                 {200_000, 64_000, true, false},
		"claude-opus-4-1":                          {200_000, 32_000, true, true},
		"claude-opus-4-1-20250805":                 {200_000, 32_000, true, true},
		"anthropic.claude-haiku-4-5-20251001-v1:0": {200_000, 64_000, true, true},
		"claude-opus-4-5":                          {200_000, 64_000, true, true},
		"claude-opus-4-6":                          {1_000_000, 128_000, true, true},
		"claude-sonnet-4-6":                        {1_000_000, 64_000, true, true},
		"claude-opus-4-10":                         {0, 0, true, true},
		"claude-opus-9":                            {0, 0, true, true},
		"kimi-k2":                                  {0, 0, true, true},
	} {
		got := traits.Of(families, general, model)
		require.Equal(t, want.context, got.ContextTokens, model)
		require.Equal(t, want.output, got.OutputTokens, model)
		require.Equal(t, want.images, got.Images, model)
		require.Equal(t, want.schemas, got.StructuredOutput, model)
		require.True(t, got.Chat && got.Streaming && !got.Embeddings, model)
	}
}

func TestWhatServedModelsCanDo(t *testing.T) {
	t.Parallel()
	special := func(headers map[string]string) []inference.ModelTraits {
		p, err := New(Options{
			Options: upstream.Options{Headers: headers}, Models: []string{"claude-sonnet-4-5", "fast", "mine"},
			ModelMap: map[string]string{"fast": "claude-haiku-4-5"},
		})
		require.NoError(t, err)
		caps, err := p.Capabilities(t.Context())
		require.NoError(t, err)
		require.Equal(t, general, caps.Traits)
		return caps.Special
	}
	require.Equal(t, []inference.ModelTraits{{Models: []string{"claude-sonnet-4-5", "fast"}, Traits: sized(200_000, 64_000)}}, special(nil))
	require.Equal(t, []inference.ModelTraits{{Models: []string{"claude-sonnet-4-5", "fast"}, Traits: sized(0, 64_000)}},
		special(map[string]string{"anthropic-beta": "context-1m-2025-08-07"}), "the operator asked for another window")
	require.Equal(t, 200_000, families[4].ContextTokens, "the table stays")
}

// TestNoMoreThanAModelWrites holds the bound that is chosen here below the model's own.
func TestNoMoreThanAModelWrites(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		model, fields string
		most          int // the default
		tokens        int
		budget        int
	}{
		"fits":                 {"claude-opus-4-1", `"n":1`, DefaultMaxTokens, 8192, 0},
		"writes less":          {"claude-3-opus-latest", `"n":1`, DefaultMaxTokens, 4096, 0},
		"unknown":              {"kimi-k2", `"n":1`, 100_000, 100_000, 0},
		"asked for by name":    {"claude-3-opus-latest", `"max_tokens":9000`, DefaultMaxTokens, 9000, 0},
		"set by the operator":  {"claude-opus-4-1", `"n":1`, 50_000, 32_000, 0},
		"with a budget":        {"claude-opus-4-1", `"thinking":{"type":"enabled","budget_tokens":30000}`, DefaultMaxTokens, 32_000, 30_000},
		"with too much of one": {"claude-opus-4-1", `"thinking":{"type":"enabled","budget_tokens":40000}`, DefaultMaxTokens, 32_000, 24_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, err := chat.Parse([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],` + c.fields + `}`))
			require.NoError(t, err)
			body, err := translate(req, chat.NewUnsupported(req, "claude", chat.PolicyReject), settings{model: c.model, maxTokens: int64(c.most)})
			require.NoError(t, err)
			require.Contains(t, string(body), fmt.Sprintf(`"max_tokens":%d,`, c.tokens))
			if c.budget > 0 {
				require.Contains(t, string(body), fmt.Sprintf(`"budget_tokens":%d}`, c.budget))
			}
		})
	}
}

func TestExplainRefusals(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]inference.Refusal{
		"prompt is too long: 210000 tokens > 200000 maximum":                            inference.RefusalContext,
		"input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000":    inference.RefusalContext,
		"The request exceeds the model's context window.":                               inference.RefusalContext,
		"Output blocked by content filtering policy":                                    inference.RefusalContent,
		"max_tokens: 9000 > 4096, which is the maximum allowed number of output tokens": "",
	} {
		said := explain([]byte(`{"type":"error","error":{"type":"invalid_request_error","message":"` + message + `"}}`))
		require.Equal(t, want, said.Refusal, message)
		require.Empty(t, explain([]byte(`{"type":"error","error":{"type":"api_error","message":"`+message+`"}}`)).Refusal)
	}
}
