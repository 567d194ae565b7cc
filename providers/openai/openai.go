// Package openai is the adapter for every upstream that speaks OpenAI's HTTP API:
// OpenAI itself, vLLM, Ollama, Azure, Groq and many more.
//
// It passes bytes through. A request goes out as it came but for its model, where
// that differs, and for stream_options.include_usage, which a streamed call always
// sets so that usage is known. Answers come back as they came; of a stream, only what
// include_usage added is taken out again when the client did not ask for it.
//
// It knows its upstream and nothing of queues or of other adapters; package upstream
// makes its calls.
package openai

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/upstream"
)

const (
	modelsTimeout  = 10 * time.Second
	maxModelsBytes = 4 << 20
	maxModels      = 10_000
)

// Options is one upstream's configuration.
type Options struct {
	upstream.Options

	// Models are names or globs of the models served. When empty, the upstream is asked.
	Models []string

	// ModelMap gives the upstream's names of models by the names that are served.
	ModelMap map[string]string

	// Paths are where the upstream has what, below its base URL.
	Paths Paths

	// AzureVersion makes the calls in Azure's form: the model as a deployment in the
	// path, and this version of the API in the query.
	AzureVersion string
}

// Paths are an upstream's endpoints. Empty ones are OpenAI's own, unless Own is set:
// then the upstream has no such endpoint.
type Paths struct {
	Own                      bool
	Chat, Embeddings, Models string
}

// Provider is one OpenAI-compatible upstream.
type Provider struct {
	client    *upstream.Client
	opts      Options
	chat      endpoint
	embedding endpoint
	modelsURL *url.URL // nil when there is none
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.KeyReporter = (*Provider)(nil)
	_ providers.Gate        = (*Provider)(nil)
)

// New checks the options and returns the adapter. Nothing is sent yet.
func New(opts Options) (*Provider, error) {
	opts.PassErrors = true
	if opts.AzureVersion != "" {
		opts.KeyHeader, opts.KeyPrefix = "Api-Key", ""
	}
	client, err := upstream.New(opts.Options)
	if err != nil {
		return nil, err
	}
	if !opts.Paths.Own {
		opts.Paths = Paths{Chat: "chat/completions", Embeddings: "embeddings", Models: "models"}
	}
	opts.Models, opts.ModelMap = slices.Clone(opts.Models), maps.Clone(opts.ModelMap)
	p := &Provider{client: client, opts: opts}
	p.chat = newEndpoint(client, opts.Paths.Chat, opts.AzureVersion)
	p.embedding = newEndpoint(client, opts.Paths.Embeddings, opts.AzureVersion)
	if opts.Paths.Models != "" && opts.AzureVersion == "" {
		p.modelsURL = client.At(opts.Paths.Models)
	}
	return p, nil
}

// endpoint is where one kind of call goes.
type endpoint struct {
	client *upstream.Client
	path   string
	url    *url.URL // nil in Azure's form, where the model stands in the path
	azure  string
}

func newEndpoint(client *upstream.Client, path, azure string) endpoint {
	e := endpoint{client: client, path: path, azure: azure}
	if azure == "" {
		e.url = client.At(path)
	}
	return e
}

// at returns the address for calls of the model. Azure's form is
// {base}/openai/deployments/{model}/{path}?api-version={version}, as its REST reference
// says; the base may end in /openai already.
func (e endpoint) at(model string) *url.URL {
	if e.url != nil {
		return e.url
	}
	to := e.client.At("deployments", url.PathEscape(model), e.path)
	if !strings.Contains(to.Path, "/openai/deployments/") {
		to = e.client.At("openai", "deployments", url.PathEscape(model), e.path)
	}
	query := to.Query()
	query.Set("api-version", e.azure)
	to.RawQuery = query.Encode()
	return to
}

// Generate makes one call and returns its whole answer.
func (p *Provider) Generate(ctx context.Context, call providers.Call) (*providers.Response, error) {
	req, err := p.request(call, false)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(ctx, req)
	if err != nil {
		return nil, err
	}
	defer resp.Close()
	answer, err := resp.ReadAll()
	if err != nil {
		return nil, err
	}
	read := openaiapi.ParseCompletion
	if call.Kind == inference.KindEmbeddings {
		read = openaiapi.ParseEmbeddingList
	}
	completion, err := read(answer)
	if err != nil {
		return nil, resp.Invalid(err)
	}
	if completion.Failed {
		return nil, resp.Complained(resp.Explain(answer))
	}
	if call.RefusalIsError && call.Kind == inference.KindChat {
		if said, refused := onlyRefuses(answer); refused {
			return nil, resp.Refused(said)
		}
	}
	return &providers.Response{Body: answer, Model: completion.Model, Usage: completion.Usage}, nil
}

var errNoModelList = errors.New("not a model list")

// Capabilities returns the configured models, or asks the upstream when none are. What
// they can do is known by their names where these are OpenAI's own.
func (p *Provider) Capabilities(ctx context.Context) (providers.Capabilities, error) {
	caps := providers.Capabilities{Traits: p.general(), Models: slices.Clone(p.opts.Models)}
	if len(caps.Models) > 0 || p.modelsURL == nil {
		caps.Special = p.special(caps.Models)
		return caps, nil
	}
	resp, err := p.client.Do(ctx, upstream.Request{Method: http.MethodGet, URL: p.modelsURL, Timeout: modelsTimeout, MaxBytes: maxModelsBytes})
	if err != nil {
		return providers.Capabilities{}, err
	}
	defer resp.Close()
	list, err := resp.ReadAll()
	if err != nil {
		return providers.Capabilities{}, err
	}
	models, ok := openaiapi.ParseModelIDs(list, maxModels)
	if !ok {
		return providers.Capabilities{}, resp.Invalid(errNoModelList)
	}
	caps.Models = models
	caps.Special = p.special(models)
	return caps, nil
}

// OpenAt is when the first cooling key may be used again; zero while one may be used now.
func (p *Provider) OpenAt(now time.Time) time.Time { return p.client.OpenAt(now) }

// Keys tells how the upstream's keys stand.
func (p *Provider) Keys() []providers.KeyState { return p.client.Keys() }

// Close frees idle connections.
func (p *Provider) Close() error { return p.client.Close() }

// request is what to send: the call's own bytes wherever nothing must change.
func (p *Provider) request(call providers.Call, stream bool) (upstream.Request, error) {
	to := p.chat
	if call.Kind == inference.KindEmbeddings && !stream {
		to = p.embedding
	} else if call.Kind != inference.KindChat {
		to = endpoint{}
	}
	if to.path == "" {
		return upstream.Request{}, inference.Errorf(inference.CodeInvalidRequest, "%s does not serve requests of this kind", p.client.Name())
	}
	model := call.Model
	if mapped, ok := p.opts.ModelMap[model]; ok {
		model = mapped
	}
	body := call.Body
	var err error
	if model != "" {
		body, err = openaiapi.SetModel(body, model)
	}
	if err == nil && stream {
		body, err = openaiapi.WithStreamUsage(body)
	}
	if err != nil {
		return upstream.Request{}, &inference.Error{Code: inference.CodeInvalidJSON, Message: "the request body is not a JSON object", Err: err}
	}
	return upstream.Request{URL: to.at(model), Body: body, Stream: stream, RequestID: call.RequestID, TraceParent: call.TraceParent}, nil
}
