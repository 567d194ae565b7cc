package anthropic

import (
	"maps"
	"slices"
	"strings"

	"sluice/internal/inference"
	"sluice/providers/internal/traits"
)

// general is what holds for models of which no more is known.
var general = inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true}

// What the models' windows hold and what they write at most, in tokens.
const (
	window     = 200_000
	longWindow = 1_000_000
)

// families are Anthropic's own models by generation, as its overview of models says, the
// retired ones as it said while they were served. Structured outputs came with the models
// of version 4.1 and 4.5. Newer models than these may do anything.
var families = []inference.ModelTraits{
	{Models: []string{"*claude-instant*", "*claude-2*"}, Traits: inference.Traits{Chat: true, Streaming: true, OutputTokens: 4096}},
	{Models: []string{"*claude-3-5-*"}, Traits: older(8192)},
	{Models: []string{"*claude-3-7-*"}, Traits: older(64_000)},
	{Models: []string{"*claude-3-*"}, Traits: older(4096)},
	{Models: []string{"*claude-sonnet-4-5*", "*claude-haiku-4-5*", "*claude-opus-4-5*"}, Traits: sized(window, 64_000)},
	{Models: []string{"*claude-opus-4-6*"}, Traits: sized(longWindow, 128_000)},
	{Models: []string{"*claude-sonnet-4-6*"}, Traits: sized(longWindow, 64_000)},
	{Models: []string{"*claude-opus-4-1", "*claude-opus-4-1-*", "*claude-opus-4-1@*"}, Traits: sized(window, 32_000)},
	{Models: []string{"*claude-opus-4", "*claude-opus-4-0", "*claude-opus-4-2025*", "*claude-opus-4@*"}, Traits: older(32_000)},
	{Models: []string{"*claude-sonnet-4", "*claude-sonnet-4-0", "*claude-sonnet-4-2025*", "*claude-sonnet-4@*"}, Traits: older(64_000)},
}

func sized(context, output int) inference.Traits {
	t := general
	t.ContextTokens, t.OutputTokens = context, output
	return t
}

// older models follow no schema.
func older(output int) inference.Traits {
	t := sized(window, output)
	t.StructuredOutput = false
	return t
}

// betaLongWindow begins the name of the beta in which some models of version 4 take a
// prompt as long as the later ones do.
const betaLongWindow = "context-1m-"

// special says what the served models can do. A longer window that the operator asks for
// by a header leaves the size of it unknown, since which models follow is for the
// upstream to say.
func (p *Provider) special(served []string) []inference.ModelTraits {
	known := families
	if strings.Contains(p.opts.Headers["Anthropic-Beta"], betaLongWindow) {
		known = slices.Clone(families)
		for i := range known {
			known[i].ContextTokens = 0
		}
	}
	return traits.Special(known, general, served, slices.Collect(maps.Keys(p.opts.ModelMap)), func(model string) string {
		if mapped, ok := p.opts.ModelMap[model]; ok {
			return mapped
		}
		return model
	})
}
