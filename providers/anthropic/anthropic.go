// Package anthropic is the adapter for Anthropic's native Messages API
// (POST /v1/messages) and for services that offer the same.
//
// It translates a chat-completions request into that API's form and its answers back,
// streamed or not. What the API cannot do goes by the provider's policy: the request is
// rejected with the field's name, or the field is dropped and named. The sources of all
// mappings are Anthropic's public API reference and the types of its official SDKs.
//
// It knows its upstream and nothing of queues or of other adapters; package upstream
// makes its calls, and package chat reads and writes the OpenAI form.
package anthropic

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

const (
	// DefaultBaseURL is the public service's.
	DefaultBaseURL = "https://api.anthropic.com"

	// DefaultMaxTokens bounds an answer when neither the request nor Options do: the API
	// wants a bound with each call. A model that is known to write less has its own.
	DefaultMaxTokens = 8192

	// apiVersion is the only one there is; it names the form of requests and answers.
	apiVersion    = "2023-06-01"
	versionHeader = "Anthropic-Version"
)

const (
	modelsTimeout  = 10 * time.Second
	maxModelsBytes = 4 << 20
	maxModels      = 10_000
	modelsPage     = 1000 // the most that the API gives at once
	maxModelsPages = 20
)

// Options is one upstream's configuration.
type Options struct {
	// Options are those of the calls. BaseURL is the public service's when empty, and may
	// end in /v1 or not; the key travels in x-api-key unless KeyHeader says otherwise.
	upstream.Options

	// Models are names or globs of the models served. When empty, the upstream is asked.
	Models []string

	// ModelMap gives the upstream's names of models by the names that are served.
	ModelMap map[string]string

	// OnUnsupported is what happens to a request for something that the API cannot do.
	OnUnsupported chat.Policy

	// DefaultMaxTokens bounds the answer to a request that sets no bound, thinking not
	// counted; the constant of that name unless set. It never goes beyond what a model is
	// known to write.
	DefaultMaxTokens int
}

// Provider is one upstream that speaks the Messages API.
type Provider struct {
	client    *upstream.Client
	opts      Options
	messages  *url.URL
	modelsURL *url.URL
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.KeyReporter = (*Provider)(nil)
	_ providers.Gate        = (*Provider)(nil)
)

// New checks the options and returns the adapter. Nothing is sent yet.
func New(opts Options) (*Provider, error) {
	if opts.BaseURL == "" {
		opts.BaseURL = DefaultBaseURL
	}
	if opts.Name == "" {
		opts.Name = "anthropic"
	}
	if opts.KeyHeader == "" {
		opts.KeyHeader, opts.KeyPrefix = "X-Api-Key", ""
	}
	if opts.DefaultMaxTokens <= 0 {
		opts.DefaultMaxTokens = DefaultMaxTokens
	}
	opts.Headers = withVersion(opts.Headers)
	opts.Explain, opts.PassErrors = explain, false
	client, err := upstream.New(opts.Options)
	if err != nil {
		return nil, err
	}
	opts.Models, opts.ModelMap = slices.Clone(opts.Models), maps.Clone(opts.ModelMap)
	p := &Provider{client: client, opts: opts}
	p.messages, p.modelsURL = endpoint(client, "messages"), endpoint(client, "models")
	return p, nil
}

// withVersion adds the API's version to the headers, unless the operator set one.
func withVersion(headers map[string]string) map[string]string {
	all := make(map[string]string, len(headers)+1)
	for name, value := range headers {
		all[textproto.CanonicalMIMEHeaderKey(name)] = value
	}
	if _, set := all[versionHeader]; !set {
		all[versionHeader] = apiVersion
	}
	return all
}

// endpoint is {base}/v1/{path}, also for a base that ends in /v1 already.
func endpoint(client *upstream.Client, path string) *url.URL {
	if strings.HasSuffix(strings.TrimRight(client.At().Path, "/"), "/v1") {
		return client.At(path)
	}
	return client.At("v1", path)
}

// Generate makes one call and returns its whole answer.
func (p *Provider) Generate(ctx context.Context, call providers.Call) (*providers.Response, error) {
	req, out, err := p.prepare(call, false)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(ctx, out)
	if err != nil {
		return nil, err
	}
	defer resp.Close()
	body, err := resp.ReadAll()
	if err != nil {
		return nil, err
	}
	native, err := parseMessage(body)
	if err != nil {
		return nil, resp.Invalid(err)
	}
	if native.failed() {
		return nil, resp.Complained(explainInBand(body))
	}
	if call.RefusalIsError && native.onlyRefuses() {
		return nil, resp.Refused(clip(native.StopDetails.Explanation))
	}
	return native.response(req, call.RequestID, time.Now().Unix()), nil
}

// prepare translates the request and tells what of it is dropped.
func (p *Provider) prepare(call providers.Call, stream bool) (*chat.Request, upstream.Request, error) {
	if call.Kind != inference.KindChat {
		return nil, upstream.Request{}, inference.Errorf(inference.CodeInvalidRequest,
			"%s does not serve requests of this kind", p.client.Name())
	}
	req, err := chat.Parse(call.Body)
	if err != nil {
		return nil, upstream.Request{}, err
	}
	model := call.Model
	if model == "" {
		model = req.Model
	}
	if mapped, ok := p.opts.ModelMap[model]; ok {
		model = mapped
	}
	unsupported := chat.NewUnsupported(req, p.client.Name(), p.opts.OnUnsupported)
	body, err := translate(req, unsupported, settings{
		model: model, stream: stream, maxTokens: int64(p.opts.DefaultMaxTokens),
	})
	if err != nil {
		return nil, upstream.Request{}, err
	}
	if dropped := unsupported.Dropped(); len(dropped) > 0 && call.Dropped != nil {
		call.Dropped(dropped)
	}
	return req, upstream.Request{
		URL: p.messages, Body: body, Stream: stream, RequestID: call.RequestID, TraceParent: call.TraceParent,
	}, nil
}

var errNoModelList = errors.New("not a model list")

// Capabilities returns the configured models, or asks the upstream when none are. What
// they can do is known by their names.
func (p *Provider) Capabilities(ctx context.Context) (providers.Capabilities, error) {
	caps := providers.Capabilities{Traits: general, Models: slices.Clone(p.opts.Models)}
	if len(caps.Models) > 0 {
		caps.Special = p.special(caps.Models)
		return caps, nil
	}
	after := ""
	for range maxModelsPages {
		names, next, err := p.listModels(ctx, after, maxModels-len(caps.Models))
		if err != nil {
			return providers.Capabilities{}, err
		}
		caps.Models = append(caps.Models, names...)
		if next == "" || next == after || len(caps.Models) >= maxModels {
			break
		}
		after = next
	}
	caps.Special = p.special(caps.Models)
	return caps, nil
}

// listModels asks for the page that follows after; next is empty on the last one.
func (p *Provider) listModels(ctx context.Context, after string, limit int) (names []string, next string, err error) {
	page := *p.modelsURL
	query := page.Query()
	query.Set("limit", strconv.Itoa(modelsPage))
	if after != "" {
		query.Set("after_id", after)
	}
	page.RawQuery = query.Encode()
	resp, err := p.client.Do(ctx, upstream.Request{
		Method: http.MethodGet, URL: &page, Timeout: modelsTimeout, MaxBytes: maxModelsBytes,
	})
	if err != nil {
		return nil, "", err
	}
	defer resp.Close()
	body, err := resp.ReadAll()
	if err != nil {
		return nil, "", err
	}
	names, ok := openaiapi.ParseModelIDs(body, limit)
	if !ok {
		return nil, "", resp.Invalid(errNoModelList)
	}
	if gjson.GetBytes(body, "has_more").Bool() {
		next = gjson.GetBytes(body, "last_id").String()
	}
	return names, next, nil
}

// OpenAt is when the first cooling key may be used again; zero while one may be used now.
func (p *Provider) OpenAt(now time.Time) time.Time { return p.client.OpenAt(now) }

// Keys tells how the upstream's keys stand.
func (p *Provider) Keys() []providers.KeyState { return p.client.Keys() }

// Close frees idle connections.
func (p *Provider) Close() error { return p.client.Close() }
