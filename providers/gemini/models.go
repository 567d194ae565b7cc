package gemini

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"sluice/internal/openaiapi"
	"sluice/providers"
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

// Capabilities returns the configured models, or asks the upstream when none are. Then
// the limits are the widest that one of its models for chat has.
func (p *Provider) Capabilities(ctx context.Context) (providers.Capabilities, error) {
	caps := providers.Capabilities{
		Streaming: true, Tools: true, Images: true, StructuredOutput: true, Embeddings: true,
		Models: slices.Clone(p.opts.Models),
	}
	if len(caps.Models) > 0 {
		return caps, nil
	}
	token := ""
	for range maxModelPages {
		next, err := p.modelPage(ctx, token, &caps)
		if err != nil {
			return providers.Capabilities{}, err
		}
		if next == "" || len(caps.Models) >= maxModels {
			break
		}
		token = next
	}
	return caps, nil
}

// modelPage adds one page of the list and returns the token of the next.
func (p *Provider) modelPage(ctx context.Context, token string, caps *providers.Capabilities) (next string, err error) {
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
		addModel(m, caps)
		return len(caps.Models) < maxModels
	})
	return text(r.root.Get("nextPageToken")), nil
}

// addModel adds a model that can be served: those that only draw, speak or translate
// have methods of their own.
func addModel(m gjson.Result, caps *providers.Capabilities) {
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
	caps.Models = append(caps.Models, name)
	if chats {
		caps.ContextTokens = max(caps.ContextTokens, limit(m.Get("inputTokenLimit")))
		caps.OutputTokens = max(caps.OutputTokens, limit(m.Get("outputTokenLimit")))
	}
}

func limit(v gjson.Result) int {
	if v.Type != gjson.Number || v.Num < 0 || v.Num > maxTokenCount {
		return 0
	}
	return int(v.Num)
}
