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
	"sluice/providers/anthropic"
	"sluice/providers/gemini"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
	"sluice/providers/openai"
	"sluice/providers/sim"
)

// The types of provider that there are.
const (
	TypeOpenAI    = "openai"    // any OpenAI-compatible upstream
	TypeAnthropic = "anthropic" // Anthropic's Messages API
	TypeGemini    = "gemini"    // Google's Gemini API
	TypeCustom    = "custom"    // OpenAI's format at addresses of the upstream's own
	TypeSim       = "sim"       // the simulated provider
)

// Settings is one provider's configuration. Zero values mean the adapter's defaults.
type Settings struct {
	Type    string
	BaseURL string
	Keys    []Key
	Headers map[string]string // sent with each call
	Proxy   string            // empty: what the environment names

	// ModelMap gives the upstream's names of models by the names that are served.
	ModelMap map[string]string

	// DropUnsupported leaves fields out that the upstream cannot honour, where the
	// default is to refuse the request.
	DropUnsupported bool

	// Models are names or globs (path.Match); an adapter with an upstream asks it
	// when there are none.
	Models []string

	// Overrides correct what the adapter says of models; the first that covers a model
	// counts.
	Overrides []TraitOverride

	Timeout          time.Duration // one call, whole
	IdleTimeout      time.Duration // between two reads of a streamed answer
	MaxResponseBytes int64

	AzureVersion string         // for TypeOpenAI alone: calls in Azure's form
	Custom       CustomSettings // for TypeCustom alone
	Sim          SimSettings    // for TypeSim alone
}

// Key is one API key of an upstream.
type Key struct {
	Secret string
	Weight int // share of the calls, against the other keys' weights; 1 unless set
}

// CustomSettings say where an upstream of one's own has what.
type CustomSettings struct {
	ChatPath, EmbeddingsPath, ModelsPath string
	KeyHeader, KeyPrefix                 string
}

// SimSettings is what only the simulated provider has.
type SimSettings struct {
	FirstTokenDelay  time.Duration
	TokensPerSecond  float64
	FailureRate      float64 // from 0 to 1
	CompletionTokens int
	Seed             uint64
}

// upstream are the settings of whatever is called over HTTP.
func (s Settings) upstream(name string) upstream.Options {
	o := upstream.Options{
		Name: name, BaseURL: s.BaseURL, Headers: s.Headers, Proxy: s.Proxy,
		Timeout: s.Timeout, IdleTimeout: s.IdleTimeout, MaxResponseBytes: s.MaxResponseBytes,
	}
	for _, k := range s.Keys {
		o.Keys = append(o.Keys, upstream.Key{Secret: k.Secret, Weight: k.Weight})
	}
	return o
}

func (s Settings) policy() chat.Policy {
	if s.DropUnsupported {
		return chat.PolicyDrop
	}
	return chat.PolicyReject
}

func (s Settings) custom(name string) (providers.Provider, error) {
	c := s.Custom
	o := openai.Options{
		Options: s.upstream(name), Models: s.Models, ModelMap: s.ModelMap,
		Paths: openai.Paths{Own: true, Chat: c.ChatPath, Embeddings: c.EmbeddingsPath, Models: c.ModelsPath},
	}
	o.KeyHeader, o.KeyPrefix = c.KeyHeader, c.KeyPrefix
	return openai.New(o)
}

// Types returns the known types, in the order in which to show them.
func Types() []string {
	return []string{TypeOpenAI, TypeAnthropic, TypeGemini, TypeCustom, TypeSim}
}

// Build returns the adapter for a provider of that name. Nothing is sent yet.
func Build(name string, s Settings) (providers.Provider, error) {
	if err := checkOverrides(s.Overrides); err != nil {
		return nil, fmt.Errorf("build provider %s: %w", name, err)
	}
	p, err := build(name, s)
	if err != nil {
		return nil, fmt.Errorf("build provider %s: %w", name, err)
	}
	return override(p, s.Overrides), nil
}

func build(name string, s Settings) (providers.Provider, error) {
	switch s.Type {
	case TypeOpenAI:
		return openai.New(openai.Options{Options: s.upstream(name), Models: s.Models, ModelMap: s.ModelMap, AzureVersion: s.AzureVersion})
	case TypeAnthropic:
		return anthropic.New(anthropic.Options{Options: s.upstream(name), Models: s.Models, ModelMap: s.ModelMap, OnUnsupported: s.policy()})
	case TypeGemini:
		return gemini.New(gemini.Options{Options: s.upstream(name), Models: s.Models, ModelMap: s.ModelMap, OnUnsupported: s.policy()})
	case TypeCustom:
		return s.custom(name)
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
