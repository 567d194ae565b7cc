package providers

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/providers"
	"sluice/providers/registry"
)

// service is one public provider. Its models can be named in the environment, for they
// come and go.
type service struct {
	kind, key, baseURL            string
	chatVariable, chatModel       string
	embedVariable, embeddingModel string
}

func services() []service {
	return []service{
		{registry.TypeOpenAI, "OPENAI_API_KEY", "https://api.openai.com/v1", "SLUICE_TEST_OPENAI_MODEL", "gpt-4o-mini", "SLUICE_TEST_OPENAI_EMBEDDING_MODEL", "text-embedding-3-small"},
		{registry.TypeGemini, "GEMINI_API_KEY", "", "SLUICE_TEST_GEMINI_MODEL", "gemini-2.5-flash-lite", "SLUICE_TEST_GEMINI_EMBEDDING_MODEL", "gemini-embedding-001"},
		{registry.TypeAnthropic, "ANTHROPIC_API_KEY", "", "SLUICE_TEST_ANTHROPIC_MODEL", "claude-haiku-4-5", "", ""},
	}
}

func named(variable, fallback string) string {
	if v := os.Getenv(variable); v != "" {
		return v
	}
	return fallback
}

const question = `{"messages":[{"role":"system","content":"Answer with one word."},{"role":"user","content":"What is the capital of France?"}],"max_completion_tokens":200}`

func TestRealServices(t *testing.T) {
	t.Parallel()
	for _, s := range services() {
		t.Run(s.kind, func(t *testing.T) {
			t.Parallel()
			key := os.Getenv(s.key)
			if key == "" {
				t.Logf("%s is not set: the real %s is not called", s.key, s.kind)
				return
			}
			p, err := registry.Build(s.kind, registry.Settings{Type: s.kind, BaseURL: s.baseURL, Keys: []registry.Key{{Secret: key}}})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, p.Close()) })
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			chat(ctx, t, p, named(s.chatVariable, s.chatModel))
			if s.embeddingModel != "" {
				embed(ctx, t, p, named(s.embedVariable, s.embeddingModel))
			}
		})
	}
}

func chat(ctx context.Context, t *testing.T, p providers.Provider, model string) {
	t.Helper()
	call := providers.Call{Kind: inference.KindChat, Model: model, Body: []byte(question), IncludeUsage: true}
	resp, err := p.Generate(ctx, call)
	require.NoError(t, err)
	require.Contains(t, gjson.GetBytes(resp.Body, "choices.0.message.content").Str, "Paris")
	require.Positive(t, resp.Usage.CompletionTokens)

	text := ""
	sum, err := p.StreamGenerate(ctx, call, func(chunks [][]byte) error {
		for _, c := range chunks {
			text += gjson.GetBytes(c, "choices.0.delta.content").Str
		}
		return nil
	})
	require.NoError(t, err)
	require.Contains(t, text, "Paris")
	require.True(t, sum.Usage.Known)
	require.False(t, sum.Usage.Estimated)

	caps, err := p.Capabilities(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, caps.Models)
}

func embed(ctx context.Context, t *testing.T, p providers.Provider, model string) {
	t.Helper()
	body := []byte(`{"input":["a","b"],"dimensions":256}`)
	resp, err := p.Generate(ctx, providers.Call{Kind: inference.KindEmbeddings, Model: model, Body: body})
	require.NoError(t, err)
	require.Len(t, gjson.GetBytes(resp.Body, "data.1.embedding").Array(), 256)
}
