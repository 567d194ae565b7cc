// Package openai is the adapter for every upstream that speaks OpenAI's HTTP API:
// OpenAI itself, vLLM, Ollama, Azure, Groq and many more.
//
// It passes bytes through. A request goes out as it came but for its model, where
// that differs, and for stream_options.include_usage, which a streamed call always
// sets so that usage is known. Answers come back as they came; of a stream, only what
// include_usage added is taken out again when the client did not ask for it.
//
// It never retries, never follows a redirect, and never lets the upstream's address,
// the API key or an upstream's complaint about credentials into an error. It knows
// its upstream and nothing of queues or of other adapters.
package openai

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
)

// What holds where Options says nothing.
const (
	DefaultTimeout          = 5 * time.Minute
	DefaultIdleTimeout      = time.Minute
	DefaultMaxResponseBytes = 32 << 20
)

const (
	dialTimeout       = 5 * time.Second
	handshakeTimeout  = 10 * time.Second
	idleConnsPerHost  = 512 // more than one worker's concurrency: a call never waits for a handshake
	socketBufferBytes = 4 << 10
	maxHeadBytes      = 64 << 10
	modelsTimeout     = 10 * time.Second
	maxModelsBytes    = 4 << 20
	maxModels         = 10_000
)

// An idle connection is given up before the upstream does so. A request that crosses
// its farewell on the way is lost, and nobody can tell whether it was taken up, so the
// transport must not send it again. Servers of models close after 5 seconds as a rule
// (uvicorn and Node do), front ends of public services after 60 or more.
const (
	idlePlain  = 4 * time.Second
	idleSecure = 50 * time.Second
)

// A connection of HTTP/2 carries all calls. One that has died without a word would hold
// each of them for its whole timeout, so it is asked after when it falls silent.
const (
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

// Options is one upstream's configuration.
type Options struct {
	Name    string // the provider's name, for messages
	BaseURL string // such as https://api.openai.com/v1; a query is sent with each call
	APIKey  string // empty for an upstream that wants none

	// Models are names or globs of the models served. When empty, the upstream is asked.
	Models []string

	// Timeout bounds a whole call, streamed or not.
	Timeout time.Duration

	// IdleTimeout bounds the silence between two reads of a streamed answer, comments
	// included. It starts with the first byte of the body: until then a model may be
	// loading or thinking, and Timeout alone counts. Time that the receiver of the
	// chunks takes is not held against the upstream.
	IdleTimeout time.Duration

	// MaxResponseBytes bounds a plain answer, and one event of a streamed answer.
	MaxResponseBytes int64

	// Transport replaces the adapter's own; its owner closes it.
	Transport http.RoundTripper
}

// Provider is one OpenAI-compatible upstream.
type Provider struct {
	opts      Options
	transport http.RoundTripper
	own       *http.Transport // nil when the transport was given
	chatURL   *url.URL
	modelsURL *url.URL

	// Header values are shared by all requests: the transport only reads them.
	jsonType, eventType, agent, auth []string
}

var _ providers.Provider = (*Provider)(nil)

// New checks the options and returns the adapter. Nothing is sent yet.
func New(opts Options) (*Provider, error) {
	base, err := parseBase(opts.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("read base URL: %w", err)
	}
	if opts.Name == "" {
		opts.Name = "the provider"
	}
	if opts.Timeout <= 0 {
		opts.Timeout = DefaultTimeout
	}
	if opts.IdleTimeout <= 0 {
		opts.IdleTimeout = DefaultIdleTimeout
	}
	if opts.MaxResponseBytes <= 0 {
		opts.MaxResponseBytes = DefaultMaxResponseBytes
	}
	opts.Models = slices.Clone(opts.Models)
	p := &Provider{
		opts:      opts,
		transport: opts.Transport,
		chatURL:   base.JoinPath("chat", "completions"),
		modelsURL: base.JoinPath("models"),
		jsonType:  []string{"application/json"},
		eventType: []string{"text/event-stream"},
		agent:     []string{"sluice"},
	}
	if opts.APIKey != "" {
		if !headerSafe(opts.APIKey) {
			return nil, errors.New("read API key: it holds characters that cannot stand in a header")
		}
		p.auth = []string{"Bearer " + opts.APIKey}
	}
	if p.transport == nil {
		p.own = newTransport(base.Scheme == "https")
		p.transport = p.own
	}
	return p, nil
}

func parseBase(text string) (*url.URL, error) {
	base, err := url.Parse(strings.TrimSpace(text))
	switch {
	case err != nil:
		return nil, errors.New("not a URL") // the parser's error quotes it, secrets and all
	case base.Scheme != "http" && base.Scheme != "https":
		return nil, errors.New("it must begin with http:// or https://")
	case base.Host == "":
		return nil, errors.New("it names no host")
	case base.User != nil:
		return nil, errors.New("it must not hold credentials; set the API key instead")
	}
	base.Fragment = ""
	if base.Path == "" {
		base.Path = "/" // or what is joined to it would not begin with a slash
	}
	return base, nil
}

// newTransport returns a transport for many calls to one host. It has no timeout for
// the response's head, because a plain answer sends its head when it is ready: the
// call's context bounds it.
func newTransport(secure bool) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	idle := idlePlain
	if secure {
		idle = idleSecure
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxIdleConnsPerHost:    idleConnsPerHost,
		IdleConnTimeout:        idle,
		MaxResponseHeaderBytes: maxHeadBytes,
		ForceAttemptHTTP2:      secure,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		DisableCompression:     true, // answers pass through; to unpack them would be work for nothing
		ReadBufferSize:         socketBufferBytes,
		WriteBufferSize:        socketBufferBytes,
	}
}

// Generate makes one call and returns its whole answer.
func (p *Provider) Generate(parent context.Context, call providers.Call) (*providers.Response, error) {
	body, err := p.requestBody(call, false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(parent, p.opts.Timeout, errCallTimeout)
	defer cancel()
	resp, err := p.send(ctx, p.chatRequest(call, body, p.jsonType))
	if err != nil {
		return nil, p.transportError(parent, ctx, err)
	}
	defer closeBody(resp)
	if resp.StatusCode/100 != 2 {
		return nil, p.statusError(parent, ctx, resp)
	}
	answer, err := readBounded(resp, p.opts.MaxResponseBytes)
	if err != nil {
		return nil, p.bodyError(parent, ctx, err)
	}
	completion, err := openaiapi.ParseCompletion(answer)
	if err != nil {
		return nil, p.invalidAnswer(resp.StatusCode, err)
	}
	if completion.Failed {
		return nil, p.errorObject(answer, resp.StatusCode)
	}
	return &providers.Response{Body: answer, Model: completion.Model, Usage: completion.Usage}, nil
}

// Capabilities returns the configured models, or asks the upstream when none are.
// Tools and images are for each model to accept or refuse.
func (p *Provider) Capabilities(parent context.Context) (providers.Capabilities, error) {
	caps := providers.Capabilities{Streaming: true, Tools: true, Images: true, Models: slices.Clone(p.opts.Models)}
	if len(caps.Models) > 0 {
		return caps, nil
	}
	ctx, cancel := context.WithTimeoutCause(parent, min(modelsTimeout, p.opts.Timeout), errCallTimeout)
	defer cancel()
	resp, err := p.send(ctx, p.newRequest(http.MethodGet, p.modelsURL, p.jsonType))
	if err != nil {
		return providers.Capabilities{}, p.transportError(parent, ctx, err)
	}
	defer closeBody(resp)
	if resp.StatusCode/100 != 2 {
		return providers.Capabilities{}, p.statusError(parent, ctx, resp)
	}
	list, err := readBounded(resp, maxModelsBytes)
	if err != nil {
		return providers.Capabilities{}, p.bodyError(parent, ctx, err)
	}
	models, ok := openaiapi.ParseModelIDs(list, maxModels)
	if !ok {
		return providers.Capabilities{}, p.invalidAnswer(resp.StatusCode, errNoModelList)
	}
	caps.Models = models
	return caps, nil
}

// Close frees idle connections of the adapter's own transport.
func (p *Provider) Close() error {
	if p.own != nil {
		p.own.CloseIdleConnections()
	}
	return nil
}

// requestBody returns the bytes to send: the call's own wherever nothing must change.
func (p *Provider) requestBody(call providers.Call, stream bool) ([]byte, error) {
	if call.Kind != inference.KindChat {
		return nil, inference.Errorf(inference.CodeInvalidRequest, "%s does not serve requests of this kind", p.opts.Name)
	}
	body := call.Body
	var err error
	if call.Model != "" {
		body, err = openaiapi.SetModel(body, call.Model)
	}
	if err == nil && stream {
		body, err = openaiapi.WithStreamUsage(body)
	}
	if err != nil {
		return nil, &inference.Error{Code: inference.CodeInvalidJSON, Message: "the request body is not a JSON object", Err: err}
	}
	return body, nil
}
