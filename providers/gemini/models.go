package gemini

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/traits"
	"sluice/providers/internal/upstream"
)

const (
	modelsTimeout  = 10 * time.Second
	maxModelsBytes = 4 << 20
	maxModels      = 10_000
	maxModelPages  = 20
	modelPageSize  = "1000" // the most that the upstream gives
)

var errNoModelList = errors.New("not a model list")

// general is what holds for models of which no more is known.
var general = inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true, Embeddings: true}

// families are the models whose names tell what they are for. How long a text for an
// embedding may be is not told: that counts for each text, and not for the request.
var families = []inference.ModelTraits{{
	Models: []string{"gemini-embedding*", "text-embedding-*", "embedding-*"}, Traits: inference.Traits{Embeddings: true},
}}

// Capabilities returns the configured models with what their names say, or asks the
// upstream when none are, which tells what each can do.
func (p *Provider) Capabilities(ctx context.Context) (providers.Capabilities, error) {
	caps := providers.Capabilities{Traits: general, Models: slices.Clone(p.opts.Models)}
	if len(caps.Models) > 0 {
		caps.Special = traits.Special(families, general, caps.Models, slices.Collect(maps.Keys(p.opts.ModelMap)), p.modelName)
		return caps, nil
	}
	known := map[string]inference.Traits{}
	token := ""
	for range maxModelPages {
		next, err := p.modelPage(ctx, token, &caps, known)
		if err != nil {
			return providers.Capabilities{}, err
		}
		if next == "" || len(caps.Models) >= maxModels {
			break
		}
		token = next
	}
	caps.Special = traits.Group(caps.Models, general, func(model string) inference.Traits { return known[model] })
	return caps, nil
}

// modelPage adds one page of the list, with what is known of its models, and returns the
// token of the next.
func (p *Provider) modelPage(ctx context.Context, token string, caps *providers.Capabilities, known map[string]inference.Traits) (next string, err error) {
	to := p.client.At("models")
	query := to.Query()
	query.Set("pageSize", modelPageSize)
	if token != "" {
		query.Set("pageToken", token)
	}
	to.RawQuery = query.Encode()
	resp, err := p.client.Do(ctx, upstream.Request{Method: http.MethodGet, URL: to, Timeout: modelsTimeout, MaxBytes: maxModelsBytes})
	if err != nil {
		return "", err
	}
	defer resp.Close()
	body, err := resp.ReadAll()
	if err != nil {
		return "", err
	}
	r, err := readReply(body)
	if err != nil {
		return "", resp.Invalid(err)
	}
	if r.failed {
		return "", resp.Complained(resp.Explain(body))
	}
	if !r.root.Get("models").IsArray() {
		return "", resp.Invalid(errNoModelList)
	}
	r.root.Get("models").ForEach(func(_, m gjson.Result) bool {
		addModel(m, caps, known)
		return len(caps.Models) < maxModels
	})
	return text(r.root.Get("nextPageToken")), nil
}

// addModel adds a model that can be served: those that only draw, speak or translate
// have methods of their own.
func addModel(m gjson.Result, caps *providers.Capabilities, known map[string]inference.Traits) {
	name := strings.TrimPrefix(text(m.Get("name")), "models/")
	chats, embeds := false, false
	m.Get("supportedGenerationMethods").ForEach(func(_, method gjson.Result) bool {
		chats = chats || method.Str == methodGenerate
		embeds = embeds || method.Str == "embedContent" || method.Str == methodEmbed
		return true
	})
	if name == "" || len(name) > openaiapi.MaxModelBytes || !chats && !embeds {
		return
	}
	own := inference.Traits{Embeddings: embeds}
	if chats {
		own = general
		own.Embeddings = embeds
		own.ContextTokens, own.OutputTokens = limit(m.Get("inputTokenLimit")), limit(m.Get("outputTokenLimit"))
	}
	caps.Models = append(caps.Models, name)
	known[name] = own
}

func limit(v gjson.Result) int {
	if v.Type != gjson.Number || v.Num < 0 || v.Num > maxTokenCount {
		return 0
	}
	return int(v.Num)
}
