package main

import (
	"maps"
	"slices"
	"time"

	"sluice/internal/config"
	"sluice/internal/inference"
	"sluice/internal/pricing"
	"sluice/internal/routing"
	"sluice/providers/registry"
	"sluice/worker"
)

// routingPolicy is what the configuration says of routing.
func routingPolicy(cfg *config.Config) routing.Policy { return cfg.Routing.Policy() }

// routingPrices are the prices of a provider that hold now, as routing compares them: it
// estimates, so that what a long or a cached prompt costs does not matter. A price that
// begins later counts when the settings are made the next time.
func routingPrices(table *pricing.Table, provider string) []routing.Price {
	var prices []routing.Price
	for _, p := range table.List(provider, time.Now()) {
		prices = append(prices, routing.Price{Models: p.Models, Input: money(p.Input), Output: money(p.Output)})
	}
	return prices
}

// money is an amount as routing compares it, in the currency itself.
func money(c inference.Cost) float64 { return float64(c) / 1e9 }

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
	prices := priceTable(cfg)
	for _, name := range slices.Sorted(maps.Keys(cfg.Providers)) {
		p := cfg.Providers[name]
		models := p.Models
		if len(models) == 0 {
			models = []string{"*"}
		}
		providers = append(providers, routing.Provider{
			Name: name, Models: models, Workers: 1, Limit: p.Concurrency, Traits: configuredTraits(p), Prices: routingPrices(prices, name),
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
