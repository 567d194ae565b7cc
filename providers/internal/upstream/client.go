// Package upstream makes the HTTP calls of provider adapters: one client for each
// configured upstream, with its keys, its limits of time and size, and one way to say
// what went wrong.
//
// It never retries, never follows a redirect, and never lets the upstream's address, a
// key or an upstream's complaint about credentials into an error. It knows nothing of
// what stands in a body: the adapters do.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"

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

	// Keys are tried in proportion to their weights; none for an upstream that wants none.
	Keys []Key

	// KeyHeader carries the key behind KeyPrefix: Authorization and "Bearer " unless set.
	KeyHeader, KeyPrefix string

	// Headers are sent with each call, before the client's own.
	Headers map[string]string

	// Proxy is the address of an HTTP proxy; empty means what the environment names.
	Proxy string

	// Timeout bounds a whole call, streamed or not.
	Timeout time.Duration

	// IdleTimeout bounds the silence between two reads of a streamed answer, comments
	// included. It starts with the first byte of the body: until then a model may be
	// loading or thinking, and Timeout alone counts. Time that the receiver of the
	// chunks takes is not held against the upstream.
	IdleTimeout time.Duration

	// MaxResponseBytes bounds a plain answer, and one event of a streamed answer.
	MaxResponseBytes int64

	// Explain reads an error of the upstream's shape. The default reads OpenAI's.
	Explain func(body []byte) Complaint

	// PassErrors lets the upstream's own JSON about a client's fault reach the client as
	// it came. Only for upstreams of OpenAI's shape.
	PassErrors bool

	// Transport replaces the client's own; its owner closes it.
	Transport http.RoundTripper
}

// Client calls one upstream. It is safe for concurrent use.
type Client struct {
	opts      Options
	base      *url.URL
	keys      *ring
	transport http.RoundTripper
	own       *http.Transport // nil when the transport was given
	header    http.Header     // of every call; its values are shared, the transport only reads them
}

// New checks the options and returns the client. Nothing is sent yet.
func New(opts Options) (*Client, error) {
	base, err := parseBase(opts.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("read base URL: it %w", err)
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
	if opts.Explain == nil {
		opts.Explain = explainOpenAI
	}
	if opts.KeyHeader == "" {
		opts.KeyHeader, opts.KeyPrefix = "Authorization", "Bearer "
	}
	c := &Client{opts: opts, base: base, transport: opts.Transport, header: http.Header{"User-Agent": {"sluice"}}}
	for name, value := range opts.Headers {
		if !providers.ValidHeaderName(name) || !providers.ValidHeaderValue(value) {
			return nil, fmt.Errorf("read header %q: it holds characters that cannot stand in a header", name)
		}
		c.header[http.CanonicalHeaderKey(name)] = []string{value}
	}
	if !providers.ValidHeaderName(opts.KeyHeader) {
		return nil, fmt.Errorf("read the key's header %q: it is no name of a header", opts.KeyHeader)
	}
	if c.keys, err = newRing(opts.Keys, opts.KeyPrefix); err != nil {
		return nil, err
	}
	c.opts.KeyHeader = http.CanonicalHeaderKey(opts.KeyHeader)
	if c.transport == nil {
		if c.own, err = NewTransport(base.Scheme == "https", opts.Proxy); err != nil {
			return nil, err
		}
		c.transport = c.own
	}
	return c, nil
}

func parseBase(text string) (*url.URL, error) {
	base, err := providers.ParseBaseURL(text)
	if err != nil {
		return nil, err
	}
	base.Fragment = ""
	if base.Path == "" {
		base.Path = "/" // or what is joined to it would not begin with a slash
	}
	return base, nil
}

// NewTransport returns a transport for many calls to one host, as a client makes it for
// itself; proxy is as in Options. It has no timeout for
// the response's head, because a plain answer sends its head when it is ready: the
// call's context bounds it.
func NewTransport(secure bool, proxy string) (*http.Transport, error) {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	idle := idlePlain
	if secure {
		idle = idleSecure
	}
	through := http.ProxyFromEnvironment
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil || u.Host == "" {
			return nil, errors.New("read proxy: not a URL") // the parser's error quotes it, secrets and all
		}
		through = http.ProxyURL(u)
	}
	return &http.Transport{
		Proxy:                  through,
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
	}, nil
}

// At returns the address of an endpoint below the base URL, with the base's query.
func (c *Client) At(elem ...string) *url.URL { return c.base.JoinPath(elem...) }

// Name is the provider's name.
func (c *Client) Name() string { return c.opts.Name }

// Keys tells how the upstream's keys stand.
func (c *Client) Keys() []providers.KeyState { return c.keys.states(time.Now()) }

// OpenAt is when the first cooling key may be used again; zero while one may be used now.
func (c *Client) OpenAt(now time.Time) time.Time { return c.keys.openAt(now) }

// Close frees idle connections of the client's own transport.
func (c *Client) Close() error {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
	return nil
}

// Request is one call of an endpoint.
type Request struct {
	Method string // POST unless set
	URL    *url.URL
	Body   []byte // JSON
	Stream bool   // the answer is wanted as server-sent events

	RequestID   string
	TraceParent string // W3C traceparent; may be empty

	// Timeout and MaxBytes are tighter than the upstream's own, zero for these.
	Timeout  time.Duration
	MaxBytes int64
}

// The values of headers are shared by all requests.
var (
	jsonType  = []string{"application/json"}
	eventType = []string{"text/event-stream"}
)

// Do makes one call. The error is classed; a response has a status of success. It is
// to be closed.
func (c *Client) Do(parent context.Context, r Request) (*Response, error) {
	key, err := c.keys.pick(time.Now())
	if err != nil {
		return nil, c.keysError(err)
	}
	timeout := c.opts.Timeout
	if r.Timeout > 0 {
		timeout = min(timeout, r.Timeout)
	}
	timed, stop := context.WithTimeoutCause(parent, timeout, errCallTimeout)
	ctx, cancel := context.WithCancelCause(timed)
	resp := &Response{client: c, parent: parent, ctx: ctx, cancel: cancel, stop: stop, limit: c.opts.MaxResponseBytes}
	if r.MaxBytes > 0 {
		resp.limit = min(resp.limit, r.MaxBytes)
	}
	resp.http, err = c.transport.RoundTrip(c.request(r, key).WithContext(ctx)) //nolint:bodyclose // Close of the Response does it
	if err != nil {
		defer resp.Close()
		return nil, c.transportError(parent, ctx, err)
	}
	resp.Status, resp.Header = resp.http.StatusCode, resp.http.Header
	if resp.Status/100 != 2 {
		defer resp.Close()
		return nil, resp.refused(key)
	}
	c.keys.served(key)
	now := time.Now()
	c.keys.rest(key, exhausted(resp.Header, now), now)
	return resp, nil
}

// request is built by hand: http.NewRequest would parse the address anew for each
// call, and http.Client would follow redirects and carry the key to wherever the
// upstream points.
func (c *Client) request(r Request, key *keyEntry) *http.Request {
	header := make(http.Header, len(c.header)+5)
	maps.Copy(header, c.header)
	header["Accept"] = jsonType
	if r.Stream {
		header["Accept"] = eventType
	}
	if key != nil {
		header[c.opts.KeyHeader] = key.header
	}
	if r.RequestID != "" && providers.ValidHeaderValue(r.RequestID) {
		header["X-Request-Id"] = []string{r.RequestID}
	}
	if r.TraceParent != "" && providers.ValidHeaderValue(r.TraceParent) {
		header["Traceparent"] = []string{r.TraceParent}
	}
	req := &http.Request{
		Method: http.MethodPost, URL: r.URL, Host: r.URL.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header,
	}
	if r.Method != "" {
		req.Method = r.Method
	}
	if r.Body != nil {
		header["Content-Type"] = jsonType
		req.ContentLength = int64(len(r.Body))
		req.Body = newPayload(r.Body)
		req.GetBody = func() (io.ReadCloser, error) { return newPayload(r.Body), nil }
	}
	return req
}
