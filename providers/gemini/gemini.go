// Package gemini is the adapter for Google's native Gemini API: generateContent,
// streamGenerateContent and batchEmbedContents.
//
// It translates. A request is parsed by package chat, written anew in the upstream's
// form, and the answer is written anew in OpenAI's. What the upstream has no place for
// is refused or left out by the provider's policy and never dropped in silence, but for
// what cannot change an answer: hints for prompt caches, as the upstream caches by
// itself, the detail of images, names of files and of answer formats, and the thoughts of
// earlier turns, which the upstream does not read.
//
// The source of every field is the public reference of the Gemini API (v1beta) and the
// types of its official Go SDK, googleapis/go-genai.
//
// It knows its upstream and nothing of queues or of other adapters; package upstream
// makes its calls.
package gemini

import (
	"cmp"
	"context"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/providers"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

// DefaultBaseURL is where the public service is.
const DefaultBaseURL = "https://generativelanguage.googleapis.com/v1beta"

// The methods of a model that are called.
const (
	methodGenerate = "generateContent"
	methodStream   = "streamGenerateContent"
	methodEmbed    = "batchEmbedContents"
)

// Options is one upstream's configuration.
type Options struct {
	upstream.Options // an empty BaseURL is the public service's

	// Models are names or globs of the models served. When empty, the upstream is asked.
	Models []string

	// ModelMap gives the upstream's names of models by the names that are served.
	ModelMap map[string]string

	// OnUnsupported is what happens to requests for what the upstream cannot do.
	OnUnsupported chat.Policy
}

// Provider is one upstream that speaks the Gemini API.
type Provider struct {
	client *upstream.Client
	opts   Options
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.KeyReporter = (*Provider)(nil)
	_ providers.Gate        = (*Provider)(nil)
)

// New checks the options and returns the adapter. Nothing is sent yet.
func New(opts Options) (*Provider, error) {
	opts.BaseURL = cmp.Or(strings.TrimSpace(opts.BaseURL), DefaultBaseURL)
	if opts.KeyHeader == "" {
		opts.KeyHeader, opts.KeyPrefix = "X-Goog-Api-Key", ""
	}
	opts.Explain, opts.PassErrors = explain, false
	client, err := upstream.New(opts.Options)
	if err != nil {
		return nil, err
	}
	opts.Models, opts.ModelMap = slices.Clone(opts.Models), maps.Clone(opts.ModelMap)
	return &Provider{client: client, opts: opts}, nil
}

// Generate makes one call and returns its whole answer. Embeddings of more texts than
// the upstream takes at once are asked for in several calls, one after the other.
func (p *Provider) Generate(ctx context.Context, call providers.Call) (*providers.Response, error) {
	switch call.Kind {
	case inference.KindChat:
		return p.complete(ctx, call)
	case inference.KindEmbeddings:
		return p.embed(ctx, call)
	}
	return nil, p.unknownKind()
}

func (p *Provider) unknownKind() error {
	return inference.Errorf(inference.CodeInvalidRequest, "%s does not serve requests of this kind", p.client.Name())
}

func (p *Provider) complete(ctx context.Context, call providers.Call) (*providers.Response, error) {
	q, err := p.translate(call)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(ctx, p.request(call, q.model, methodGenerate, q.body))
	if err != nil {
		return nil, err
	}
	defer resp.Close()
	body, err := resp.ReadAll()
	if err != nil {
		return nil, err
	}
	return q.answer(resp, body)
}

// question is one chat request on its way: as it was asked and as it goes out.
type question struct {
	name  string // the provider's, for messages
	req   *chat.Request
	call  providers.Call
	model string // what the upstream is asked for
	body  []byte
	quiet bool // the client wants no thoughts to see
}

// translate reads a call's body and writes it anew. What is left out by policy is told
// to the call.
func (p *Provider) translate(call providers.Call) (*question, error) {
	req, err := chat.Parse(call.Body)
	if err != nil {
		return nil, err
	}
	q := &question{
		name: p.client.Name(), req: req, call: call,
		model: p.modelName(cmp.Or(call.Model, req.Model)), quiet: req.Thought().Exclude,
	}
	unsupported := chat.NewUnsupported(req, p.client.Name(), p.opts.OnUnsupported)
	if q.body, err = translateRequest(req, q.model, unsupported, len(call.Body)); err != nil {
		return nil, err
	}
	tellDropped(call, unsupported)
	return q, nil
}

func tellDropped(call providers.Call, unsupported *chat.Unsupported) {
	if names := unsupported.Dropped(); len(names) > 0 && call.Dropped != nil {
		call.Dropped(names)
	}
}

// modelName returns the upstream's name of a model, without the prefix of its resource.
func (p *Provider) modelName(model string) string {
	if mapped, ok := p.opts.ModelMap[model]; ok {
		model = mapped
	}
	return strings.TrimPrefix(model, "models/")
}

// resource returns a model's resource name. A tuned model has a collection of its own.
func resource(model string) (collection, name string) {
	if tuned, ok := strings.CutPrefix(model, "tunedModels/"); ok {
		return "tunedModels", tuned
	}
	return "models", model
}

func (p *Provider) request(call providers.Call, model, method string, body []byte) upstream.Request {
	collection, name := resource(model)
	to := p.client.At(collection, url.PathEscape(name)+":"+method)
	stream := method == methodStream
	if stream {
		query := to.Query()
		query.Set("alt", "sse") // or the answer would be one long array
		to.RawQuery = query.Encode()
	}
	return upstream.Request{URL: to, Body: body, Stream: stream, RequestID: call.RequestID, TraceParent: call.TraceParent}
}

// OpenAt is when the first cooling key may be used again; zero while one may be used now.
func (p *Provider) OpenAt(now time.Time) time.Time { return p.client.OpenAt(now) }

// Keys tells how the upstream's keys stand.
func (p *Provider) Keys() []providers.KeyState { return p.client.Keys() }

// Close frees idle connections.
func (p *Provider) Close() error { return p.client.Close() }
