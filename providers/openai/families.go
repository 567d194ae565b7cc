package openai

import (
	"maps"
	"slices"
	"strings"

	"sluice/internal/inference"
	"sluice/providers/internal/traits"
)

// general is what holds for models of which no more is known: tools, images and schemas
// are for each model to accept or refuse.
func (p *Provider) general() inference.Traits {
	chats := p.chat.path != ""
	return inference.Traits{
		Chat: chats, Streaming: chats, Tools: chats, Images: chats, StructuredOutput: chats, Embeddings: p.embedding.path != "",
	}
}

// families are OpenAI's own models as far as their names tell for certain what they
// cannot do. Azure writes gpt-35 for gpt-3.5.
var families = []inference.ModelTraits{
	{Models: []string{"text-embedding-*"}, Traits: inference.Traits{Embeddings: true}},
	{Models: []string{
		"whisper*", "tts-*", "*-tts", "*-tts-*", "*-transcribe", "*-transcribe-*", "dall-e-*", "gpt-image-*", "sora-*",
		"omni-moderation-*", "text-moderation-*", "*-realtime", "*-realtime-*", "gpt-realtime*",
		"babbage-002", "davinci-002", "gpt-3.5-turbo-instruct*", "gpt-35-turbo-instruct*",
	}},
	{Models: []string{"gpt-3.5*", "gpt-35*"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true}},
	{Models: []string{"gpt-4", "gpt-4-0*", "gpt-4-32k*", "gpt-4-1106-preview", "gpt-4-turbo-preview"}, Traits: inference.Traits{
		Chat: true, Streaming: true, Tools: true,
	}},
	{Models: []string{"gpt-4-turbo*"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true}},
	{Models: []string{"o1-mini*", "o1-preview*"}, Traits: inference.Traits{Chat: true, Streaming: true}},
	{Models: []string{"o3-mini*"}, Traits: inference.Traits{Chat: true, Streaming: true, Tools: true, StructuredOutput: true}},
	{Models: []string{"gpt-*", "chatgpt-*", "o1*", "o3*", "o4*"}, Traits: inference.Traits{
		Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true,
	}},
}

// special says what the served models can do. At a compatible upstream a name may stand
// for anything, and so may the name of a deployment at Azure, where the served name is
// the one that tells.
func (p *Provider) special(served []string) []inference.ModelTraits {
	host := p.client.At().Hostname()
	azure := p.opts.AzureVersion != "" || strings.HasSuffix(host, ".openai.azure.com")
	if !azure && host != "api.openai.com" && !strings.HasSuffix(host, ".api.openai.com") {
		return nil
	}
	if p.chat.path == "" || p.embedding.path == "" {
		return nil // the operator's own paths say what there is
	}
	var mapped []string
	if !azure {
		mapped = slices.Collect(maps.Keys(p.opts.ModelMap))
	}
	return traits.Special(families, p.general(), served, mapped, func(model string) string {
		if own, ok := p.opts.ModelMap[model]; ok && !azure {
			return own
		}
		return model
	})
}
