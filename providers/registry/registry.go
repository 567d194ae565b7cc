// Package registry builds provider adapters from their settings, by type.
//
// It is the one place that knows all adapters; they know nothing of it or of each
// other. It reads no configuration file and keeps nothing that it built.
package registry

import (
	"fmt"
	"strings"
	"time"

	"sluice/providers"
	"sluice/providers/openai"
	"sluice/providers/sim"
)

// The types of provider that there are.
const (
	TypeOpenAI = "openai" // any OpenAI-compatible upstream
	TypeSim    = "sim"    // the simulated provider
)

// Settings is one provider's configuration. Zero values mean the adapter's defaults.
type Settings struct {
	Type    string
	BaseURL string
	APIKey  string

	// Models are names or globs (path.Match); an adapter with an upstream asks it
	// when there are none.
	Models []string

	Timeout          time.Duration // one call, whole
	IdleTimeout      time.Duration // between two reads of a streamed answer
	MaxResponseBytes int64

	Sim SimSettings // for TypeSim alone
}

// SimSettings is what only the simulated provider has.
type SimSettings struct {
	FirstTokenDelay  time.Duration
	TokensPerSecond  float64
	FailureRate      float64 // from 0 to 1
	CompletionTokens int
	Seed             uint64
}

// Types returns the known types, in the order in which to show them.
func Types() []string { return []string{TypeOpenAI, TypeSim} }

// Build returns the adapter for a provider of that name. Nothing is sent yet.
func Build(name string, s Settings) (providers.Provider, error) {
	p, err := build(name, s)
	if err != nil {
		return nil, fmt.Errorf("build provider %s: %w", name, err)
	}
	return p, nil
}

func build(name string, s Settings) (providers.Provider, error) {
	switch s.Type {
	case TypeOpenAI:
		return openai.New(openai.Options{
			Name: name, BaseURL: s.BaseURL, APIKey: s.APIKey, Models: s.Models,
			Timeout: s.Timeout, IdleTimeout: s.IdleTimeout, MaxResponseBytes: s.MaxResponseBytes,
		})
	case TypeSim:
		return sim.New(sim.Options{
			Name: name, Models: s.Models,
			FirstTokenDelay:  s.Sim.FirstTokenDelay,
			TokensPerSecond:  s.Sim.TokensPerSecond,
			FailureRate:      s.Sim.FailureRate,
			CompletionTokens: s.Sim.CompletionTokens,
			Seed:             s.Sim.Seed,
		})
	default:
		return nil, fmt.Errorf("unknown type %q; known types are %s", s.Type, strings.Join(Types(), ", "))
	}
}
