package main

import (
	"sluice/internal/config"
	"sluice/internal/pricing"
)

// priceTable is what the configured providers cost: what the configuration says, and what
// comes with the program.
func priceTable(cfg *config.Config) *pricing.Table {
	own, types := make(map[string][]pricing.Price, len(cfg.Providers)), make(map[string]string, len(cfg.Providers))
	for name, p := range cfg.Providers {
		types[name] = p.Type
		for _, price := range p.Prices {
			own[name] = append(own[name], pricing.Price{
				Models: price.Models, From: price.From, Input: price.Input, CachedInput: price.CachedInput,
				Output: price.Output, Reasoning: price.Reasoning,
			})
		}
	}
	return pricing.New(own, types)
}
