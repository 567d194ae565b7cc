package main

import (
	"sluice/internal/config"
	"sluice/providers/registry"
)

// adapterSettings are what the registry builds a provider's adapter from.
func adapterSettings(p config.Provider) registry.Settings {
	s := registry.Settings{
		Type: p.Type, BaseURL: p.BaseURL.Reveal(), Proxy: p.Proxy.Reveal(), Models: p.Models, ModelMap: p.ModelMap,
		DropUnsupported: p.OnUnsupported == config.OnUnsupportedDrop,
		Timeout:         p.Timeout, IdleTimeout: p.IdleTimeout, MaxResponseBytes: int64(p.MaxResponseBytes),
		Headers: make(map[string]string, len(p.Headers)), Overrides: traitOverrides(p),
	}
	for name, value := range p.Headers {
		s.Headers[name] = value.Reveal()
	}
	if p.APIKey != "" {
		s.Keys = append(s.Keys, registry.Key{Secret: p.APIKey.Reveal()})
	}
	for _, k := range p.APIKeys {
		s.Keys = append(s.Keys, registry.Key{Secret: k.Key.Reveal(), Weight: k.Weight})
	}
	if p.Azure != nil {
		s.AzureVersion = p.Azure.APIVersion
	}
	if c := p.Custom; c != nil {
		s.Custom = registry.CustomSettings{
			ChatPath: c.ChatPath, EmbeddingsPath: c.EmbeddingsPath, ModelsPath: c.ModelsPath, KeyHeader: c.KeyHeader, KeyPrefix: c.KeyPrefix,
		}
	}
	if p.Sim != nil {
		s.Sim = registry.SimSettings{
			FirstTokenDelay: p.Sim.FirstTokenDelay, TokensPerSecond: p.Sim.TokensPerSecond,
			FailureRate: p.Sim.FailureRate, CompletionTokens: p.Sim.CompletionTokens,
		}
	}
	return s
}
