package routing

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// What a request pays for being routed.
func BenchmarkRoute(b *testing.B) {
	providers := []Provider{
		{Name: "anthropic", Models: []string{"claude-*"}, Workers: 1},
		{Name: "azure", Models: []string{"gpt-4o", "gpt-4o-mini"}, Workers: 1},
		{Name: "openai", Models: []string{"gpt-*", "text-embedding-*"}, Workers: 1},
	}
	able := make([]Provider, len(providers))
	for i, p := range providers {
		p.Traits = []inference.ModelTraits{
			{Models: []string{"text-*"}, Traits: inference.Traits{Embeddings: true}},
			{Models: []string{"*"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true, ContextTokens: 128_000}},
		}
		p.States = []inference.ModelState{{Model: "gpt-4o", Breaker: inference.BreakerClosed, FirstToken: 0.3}}
		able[i] = p
	}
	rules := []Rule{
		{Name: "other", When: When{All: []Match{{Models: []string{"claude-*"}}}}, Targets: []Target{{Provider: "anthropic", Weight: 1}}},
		{Name: "gpt", When: When{All: []Match{{Models: []string{"gpt-*"}}}}, Targets: []Target{{Provider: "openai", Weight: 3}, {Provider: "azure", Weight: 1}}},
	}
	for _, c := range []struct {
		name  string
		table *Table
	}{
		{"default", NewTable(Policy{Order: []string{"openai"}}, providers)},
		{"traits", NewTable(Policy{Order: []string{"openai"}}, able)},
		{"rules", NewTable(Policy{Rules: rules}, able)},
	} {
		b.Run(c.name, func(b *testing.B) {
			q := Request{Model: "gpt-4o", Kind: inference.KindChat, Stream: true, PromptTokens: 1000}
			require.Len(b, c.table.Route(q).Candidates, 2)
			b.ReportAllocs()
			for b.Loop() {
				q.Random++
				c.table.Route(q)
			}
		})
	}
}
