package main

import (
	"maps"
	"slices"

	"sluice/internal/config"
	"sluice/internal/inference"
	"sluice/internal/routing"
	"sluice/providers/registry"
	"sluice/worker"
)

// routingPolicy is what the configuration says of routing.
func routingPolicy(cfg *config.Config) routing.Policy { return cfg.Routing.Policy() }

func routingPrices(p config.Provider) []routing.Price {
	var prices []routing.Price
	for _, price := range p.Prices {
		prices = append(prices, routing.Price{Models: price.Models, Input: price.Input, Output: price.Output})
	}
	return prices
}

// traitOverrides is where the adapter's word on what models can do does not count.
func traitOverrides(p config.Provider) []registry.TraitOverride {
	var overrides []registry.TraitOverride
	for _, c := range p.Capabilities {
		overrides = append(overrides, registry.TraitOverride{
			Models: c.Models, Chat: c.Chat, Embeddings: c.Embeddings, Streaming: c.Streaming,
			Tools: c.Tools, Images: c.Images, StructuredOutput: c.StructuredOutput,
			ContextTokens: c.ContextTokens, OutputTokens: c.OutputTokens,
		})
	}
	return overrides
}

func breakerSettings(b config.Breaker) worker.BreakerSettings {
	return worker.BreakerSettings{
		Failures: b.Failures, FailureRate: b.FailureRate, MinCalls: b.MinCalls, Window: b.Window, OpenFor: b.OpenFor, Probes: b.Probes,
	}
}

// configuredTable is the routing table of a configuration alone: every provider is well,
// idle, and able to do whatever its capabilities do not deny. One that names no models
// is taken to serve all.
func configuredTable(cfg *config.Config) *routing.Table {
	var providers []routing.Provider
	for _, name := range slices.Sorted(maps.Keys(cfg.Providers)) {
		p := cfg.Providers[name]
		models := p.Models
		if len(models) == 0 {
			models = []string{"*"}
		}
		providers = append(providers, routing.Provider{
			Name: name, Models: models, Workers: 1, Limit: p.Concurrency, Traits: configuredTraits(p), Prices: routingPrices(p),
		})
	}
	return routing.NewTable(routingPolicy(cfg), providers)
}

// configuredTraits denies what the capabilities deny. Models that they do not cover can
// do everything.
func configuredTraits(p config.Provider) []inference.ModelTraits {
	var traits []inference.ModelTraits
	for _, c := range p.Capabilities {
		traits = append(traits, inference.ModelTraits{Models: c.Models, Traits: inference.Traits{
			Chat: allowed(c.Chat), Embeddings: allowed(c.Embeddings), Streaming: allowed(c.Streaming),
			Tools: allowed(c.Tools), Images: allowed(c.Images), StructuredOutput: allowed(c.StructuredOutput),
			ContextTokens: given(c.ContextTokens), OutputTokens: given(c.OutputTokens),
		}})
	}
	return traits
}

func allowed(trait *bool) bool { return trait == nil || *trait }

func given(tokens *int) int {
	if tokens == nil {
		return 0
	}
	return *tokens
}
