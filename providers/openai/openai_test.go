package openai_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/internal/upstream"
	"sluice/providers/openai"
)

const key = "sk-top-secret"

func setup(t *testing.T, change func(*openai.Options)) (*openai.Provider, *testkit.Upstream) {
	t.Helper()
	up := testkit.NewUpstream(t)
	opts := openai.Options{Options: upstream.Options{Name: "acme", BaseURL: up.URL(), Keys: []upstream.Key{{Secret: key}}}}
	if change != nil {
		change(&opts)
	}
	p, err := openai.New(opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p, up
}

func chat(body string) providers.Call {
	return providers.Call{Kind: inference.KindChat, Body: []byte(body)}
}

type sink struct {
	chunks []string
	sizes  []int
}

func (s *sink) emit(chunks [][]byte) error {
	s.sizes = append(s.sizes, len(chunks))
	for _, c := range chunks {
		s.chunks = append(s.chunks, string(c))
	}
	return nil
}

func TestRequestPassesThrough(t *testing.T) {
	t.Parallel()
	const odd = "{ \"messages\" : [], \"temperature\":1.50e0,\n\"model\":\"m\",\"x_unknown\":{\"b\":1,\"a\":[2]} }"
	const oddStream = `{"model": "m","stream":true, "stream_options":{"x":1}}`
	cases := map[string]struct {
		call   providers.Call
		stream bool
		want   string
	}{
		"same model":    {providers.Call{Model: "m", Body: []byte(odd)}, false, odd},
		"no model":      {providers.Call{Body: []byte(odd)}, false, odd},
		"other model":   {providers.Call{Model: "n", Body: []byte(odd)}, false, strings.Replace(odd, `"m"`, `"n"`, 1)},
		"stream":        {providers.Call{Model: "m", Body: []byte(oddStream)}, true, strings.Replace(oddStream, `{"x"`, `{"include_usage":true,"x"`, 1)},
		"stream, asked": {providers.Call{Model: "m", IncludeUsage: true, Body: []byte(`{"model":"m","stream":true,"stream_options":{"include_usage":true}}`)}, true, `{"model":"m","stream":true,"stream_options":{"include_usage":true}}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, up := setup(t, func(o *openai.Options) { o.BaseURL += "/deep/?api-version=7" })
			c.call.Kind, c.call.RequestID, c.call.TraceParent = inference.KindChat, "r-1", "00-trace-01"
			var err error
			if c.stream {
				_, err = p.StreamGenerate(t.Context(), c.call, new(sink).emit)
			} else {
				_, err = p.Generate(t.Context(), c.call)
			}
			require.NoError(t, err)
			got := up.Last()
			require.Equal(t, c.want, string(got.Body))
			require.Equal(t, http.MethodPost, got.Method)
			require.Equal(t, "/v1/deep/chat/completions", got.Path)
			require.Equal(t, "api-version=7", got.Query)
			accept := "application/json"
			if c.stream {
				accept = "text/event-stream"
			}
			require.Equal(t, http.Header{
				"Authorization": {"Bearer " + key}, "Content-Type": {"application/json"}, "Accept": {accept},
				"Content-Length": {fmt.Sprint(len(c.want))}, "User-Agent": {"sluice"},
				"X-Request-Id": {"r-1"}, "Traceparent": {"00-trace-01"},
			}, got.Header)
		})
	}
}

func TestBaseURLForms(t *testing.T) {
	t.Parallel()
	for base, path := range map[string]string{
		"":         "/chat/completions",
		"/":        "/chat/completions",
		"/v1":      "/v1/chat/completions",
		"/v1/":     "/v1/chat/completions",
		" ":        "/chat/completions",
		"/a%2Fb/c": "/a/b/c/chat/completions",
		"/v1#x":    "/v1/chat/completions",
	} {
		p, up := setup(t, func(o *openai.Options) { o.BaseURL = strings.TrimSuffix(o.BaseURL, "/v1") + base })
		_, err := p.Generate(t.Context(), chat(`{}`))
		require.NoError(t, err, base)
		require.Equal(t, path, up.Last().Path, base)
	}
}

func TestRequestHeadersCannotBeInjected(t *testing.T) {
	t.Parallel()
	p, up := setup(t, func(o *openai.Options) { o.Keys = []upstream.Key{{Secret: ""}} })
	call := chat(`{"model":"m"}`)
	call.RequestID, call.TraceParent = "a\r\nX-Evil: 1", "b\nc"
	_, err := p.Generate(t.Context(), call)
	require.NoError(t, err)
	for _, name := range []string{"X-Request-Id", "Traceparent", "X-Evil", "Authorization"} {
		require.NotContains(t, up.Last().Header, name)
	}
	_, err = p.Generate(t.Context(), chat(`no JSON`))
	require.NoError(t, err, "without a model to set, the body is the upstream's to judge")
	_, err = p.StreamGenerate(t.Context(), chat(`no JSON`), new(sink).emit)
	require.Equal(t, inference.CodeInvalidJSON, inference.AsError(err).Code)
}

func TestPlainAnswerPassesThrough(t *testing.T) {
	t.Parallel()
	const odd = "{\"choices\" : [ ],\n \"x\": 1.50, \"model\":\"m-2\",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n"
	big := strings.Replace(odd, "1.50", `"`+strings.Repeat("y", 3<<20)+`"`, 1)
	p, up := setup(t, nil)
	for _, body := range []string{odd, big} {
		for _, announced := range []bool{true, false} {
			up.Handle(func(c *testkit.Call) {
				if announced {
					c.SetHeader("Content-Length", fmt.Sprint(len(body)))
				}
				c.JSON(http.StatusCreated, body)
			})
			resp, err := p.Generate(t.Context(), chat(`{"model":"m"}`))
			require.NoError(t, err)
			require.Equal(t, body, string(resp.Body))
			require.Equal(t, "m-2", resp.Model)
			require.Equal(t, inference.Usage{PromptTokens: 3, CompletionTokens: 4, CachedTokens: 1, Known: true}, resp.Usage)
		}
	}
}

func TestStreamPassesThrough(t *testing.T) {
	t.Parallel()
	const plain = `{"model":"m-2", "choices":[{"index":0,"delta":{"content":"a"}}],"x":1.50}`
	const null = `{"choices":[{"index":0,"delta":{"content":"b"}}] ,"usage": null }`
	const both = `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`
	const usage = `{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}`
	p, up := setup(t, nil)
	up.Handle(func(c *testkit.Call) {
		c.Stream()
		c.Raw("data: " + plain + "\n\ndata:" + null + "\n\n: comment\n\nevent: x\ndata: " + both + "\n\ndata: " + usage + "\n\ndata: [DONE]\n\n")
	})
	for _, asked := range []bool{false, true} {
		var got sink
		call := chat(`{"model":"m","stream":true}`)
		call.IncludeUsage = asked
		sum, err := p.StreamGenerate(t.Context(), call, got.emit)
		require.NoError(t, err)
		require.Equal(t, providers.Summary{Model: "m-2", Usage: inference.Usage{PromptTokens: 1, CompletionTokens: 2, Known: true}}, sum)
		require.Len(t, got.sizes, 1, "what arrived together travels together")
		if asked {
			require.Equal(t, []string{plain, null, both, usage}, got.chunks)
		} else {
			require.Equal(t, []string{plain, `{"choices":[{"index":0,"delta":{"content":"b"}}]  }`, both}, got.chunks)
		}
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	const content = `{"model":"m","choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}`
	const finishOne = `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`
	const finishTwo = `{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}`
	estimated := inference.Usage{PromptTokens: 2, CompletionTokens: 2, Known: true, Estimated: true}
	cases := map[string]struct {
		chunks []string
		cut    bool
		code   inference.ErrorCode
		usage  inference.Usage
		count  int
	}{
		"done without usage":     {[]string{content, "[DONE]", "ignored"}, false, "", estimated, 1},
		"end, all finished":      {[]string{content, finishOne, finishTwo}, false, "", estimated, 3},
		"cut, all finished":      {[]string{content, finishOne, finishTwo}, true, "", estimated, 3},
		"end, one unfinished":    {[]string{content, finishOne}, false, inference.CodeUpstreamCut, estimated, 2},
		"nothing at all":         {nil, false, inference.CodeUpstreamCut, inference.Usage{}, 0},
		"error object":           {[]string{content, `{"error":{"message":"overloaded"}}`}, false, inference.CodeUpstreamError, estimated, 1},
		"broken chunk":           {[]string{content, `{"choices":`}, false, inference.CodeUpstreamInvalid, estimated, 1},
		"chunk that is no chunk": {[]string{`7`}, false, inference.CodeUpstreamInvalid, inference.Usage{}, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, up := setup(t, nil)
			up.Handle(func(call *testkit.Call) {
				call.Stream()
				for _, chunk := range c.chunks {
					call.Chunk(chunk)
				}
				if c.cut {
					call.Cut()
				}
			})
			var got sink
			sum, err := p.StreamGenerate(t.Context(), chat(`{"model":"m","messages":[{"role":"user","content":"hiya"}],"stream":true}`), got.emit)
			require.Len(t, got.chunks, c.count)
			require.Equal(t, c.usage, sum.Usage)
			if c.code == "" {
				require.NoError(t, err)
				return
			}
			e := inference.AsError(err)
			require.Equal(t, c.code, e.Code)
			if c.code == inference.CodeUpstreamError {
				require.Equal(t, "acme answered with an error: overloaded", e.Message)
			}
		})
	}
}

func TestStreamErrorEvent(t *testing.T) {
	t.Parallel()
	p, up := setup(t, nil)
	up.Handle(func(c *testkit.Call) {
		c.Stream()
		c.Raw("event: error\ndata: {\"message\":\"bad schema at http://" + strings.TrimPrefix(up.URL(), "http://") + "\",\"type\":\"invalid_request_error\"}\n\n")
	})
	_, err := p.StreamGenerate(t.Context(), chat(`{"stream":true}`), new(sink).emit)
	e := inference.AsError(err)
	require.Equal(t, inference.CodeUpstreamError, e.Code)
	require.False(t, e.Retryable)
	require.Equal(t, "acme answered with an error: bad schema at http://[upstream]/v1", e.Message)
}

func TestPlainAnswerToAStream(t *testing.T) {
	t.Parallel()
	p, up := setup(t, nil)
	for body, code := range map[string]inference.ErrorCode{
		testkit.Completion("m", "x", 1, 1):  inference.CodeUpstreamInvalid,
		`{"error":{"message":"too busy"}}`:  inference.CodeUpstreamError,
		"<html>" + strings.Repeat("x", 100): inference.CodeUpstreamInvalid,
	} {
		up.Handle(func(c *testkit.Call) { c.JSON(http.StatusOK, body) })
		_, err := p.StreamGenerate(t.Context(), chat(`{"stream":true}`), new(sink).emit)
		require.Equal(t, code, inference.AsError(err).Code)
	}
	up.Handle(func(c *testkit.Call) { c.JSON(http.StatusOK, `{"error":{"message":"too busy"}}`) })
	_, err := p.Generate(t.Context(), chat(`{}`))
	require.Equal(t, inference.CodeUpstreamError, inference.AsError(err).Code)
	require.True(t, inference.AsError(err).Retryable)
}

func TestRejectionGoesBackUnchanged(t *testing.T) {
	t.Parallel()
	p, up := setup(t, nil)
	fail := func(body string, header ...string) *inference.Error {
		up.Handle(func(c *testkit.Call) {
			for i := 0; i < len(header); i += 2 {
				c.SetHeader(header[i], header[i+1])
			}
			c.JSON(422, body)
		})
		_, err := p.Generate(t.Context(), chat(`{}`))
		var e *inference.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, inference.CodeUpstreamRejected, e.Code)
		require.Equal(t, 422, e.Status)
		return e
	}
	const odd = "{ \"error\": {\"message\":\"no such field\", \"param\":\"foo\", \"n\":1.50} }\n"
	e := fail(odd)
	require.Equal(t, odd, string(e.Body))
	require.Equal(t, "acme answered with status 422: no such field", e.Message)
	require.Equal(t, "foo", e.Param)

	require.Nil(t, fail("<html>").Body, "only JSON goes back")
	require.Nil(t, fail(`{"error":"`+strings.Repeat("x", 64<<10)+`"}`).Body, "only so much goes back")
	require.Nil(t, fail(`{"error":"your key `+key+` is fine"}`).Body)
	require.Equal(t, "acme answered with status 422: your key [key] is fine", fail(`{"error":"your key `+key+` is fine"}`).Message)
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		name, value string
		low, high   time.Duration
	}{
		"seconds":  {"Retry-After", "7", 7 * time.Second, 7 * time.Second},
		"fraction": {"Retry-After", "0.5", time.Second / 2, time.Second / 2},
		"date":     {"Retry-After", time.Now().Add(time.Minute).UTC().Format(http.TimeFormat), 50 * time.Second, time.Minute},
		"past":     {"Retry-After", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), 0, 0},
		"ms":       {"Retry-After-Ms", "250", 250 * time.Millisecond, 250 * time.Millisecond},
		"negative": {"Retry-After", "-3", 0, 0},
		"endless":  {"Retry-After", "1e300", 24 * time.Hour, 24 * time.Hour},
		"infinite": {"Retry-After", "Inf", 24 * time.Hour, 24 * time.Hour},
		"no one":   {"Retry-After", "NaN", 0, 0},
		"garbage":  {"Retry-After", "soon", 0, 0},
	}
	for name, c := range cases {
		p, up := setup(t, nil) // a key that was told to wait does
		up.Handle(func(call *testkit.Call) {
			call.SetHeader(c.name, c.value)
			call.Fail(http.StatusTooManyRequests, "slow down")
		})
		_, err := p.Generate(t.Context(), chat(`{}`))
		e := inference.AsError(err)
		require.GreaterOrEqual(t, e.RetryAfter, c.low, name)
		require.LessOrEqual(t, e.RetryAfter, c.high, name)
		require.True(t, e.Retryable)
	}
	p, up := setup(t, nil)
	up.Handle(func(c *testkit.Call) { c.JSON(429, `{"error":{"message":"pay","code":"insufficient_quota"}}`) })
	_, err := p.Generate(t.Context(), chat(`{}`))
	require.False(t, inference.AsError(err).Retryable, "an empty account stays empty")
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	p, up := setup(t, func(o *openai.Options) { o.Models = []string{"a", "b*"} })
	caps, err := p.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, providers.Capabilities{
		Traits: inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true, Embeddings: true},
		Models: []string{"a", "b*"},
	}, caps)
	require.Zero(t, up.Count(), "configured models need no question")

	p, up = setup(t, nil)
	up.SetModels("x", "y/z")
	caps, err = p.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"x", "y/z"}, caps.Models)
	require.Equal(t, "/v1/models", up.Last().Path)
	require.Equal(t, "Bearer "+key, up.Last().Header.Get("Authorization"))
}

func TestCapabilitiesFail(t *testing.T) {
	t.Parallel()
	p, up := setup(t, nil)
	for code, script := range map[inference.ErrorCode]func(*testkit.Call){
		inference.CodeUpstreamAuth:     func(c *testkit.Call) { c.Fail(401, "no") },
		inference.CodeUpstreamInvalid:  func(c *testkit.Call) { c.JSON(200, `{"models":[]}`) },
		inference.CodeUpstreamTooLarge: func(c *testkit.Call) { c.JSON(200, strings.Repeat(" ", 5<<20)) },
	} {
		up.Handle(script)
		_, err := p.Capabilities(t.Context())
		require.Equal(t, code, inference.AsError(err).Code)
	}
	up.Handle((*testkit.Call).Hang)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(30*time.Millisecond, cancel)
	_, err := p.Capabilities(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"", "api.openai.com/v1", "ftp://x", "http://", "http://user:" + key + "@x/v1", "http://[" + key} {
		_, err := openai.New(openai.Options{Options: upstream.Options{BaseURL: base}})
		require.Error(t, err, base)
		require.NotContains(t, err.Error(), key)
	}
	_, err := openai.New(openai.Options{Options: upstream.Options{BaseURL: "http://x", Keys: []upstream.Key{{Secret: key + "\n"}}}})
	require.Error(t, err)
	require.NotContains(t, err.Error(), key)
}

func TestErrorsOfTheTransportTellNoAddress(t *testing.T) {
	t.Parallel()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	for name, base := range map[string]string{"no such host": "http://sluice-test.invalid/v1", "not trusted": secure.URL} {
		p, err := openai.New(openai.Options{Options: upstream.Options{BaseURL: base}})
		require.NoError(t, err)
		_, err = p.Generate(t.Context(), chat(`{}`))
		require.NoError(t, p.Close())
		require.Equal(t, inference.CodeUpstreamUnavailable, inference.AsError(err).Code)
		require.NotContains(t, err.Error(), "invalid/", name)
		require.NotContains(t, err.Error(), "sluice-test", name)
		require.NotContains(t, err.Error(), "127.0.0.1", name)
	}
}

// TestIdleTimeoutWaitsForTheFirstByte holds the documented start of the idle clock.
func TestIdleTimeoutWaitsForTheFirstByte(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		p, err := openai.New(openai.Options{Options: upstream.Options{
			BaseURL: "http://upstream", IdleTimeout: time.Second, Timeout: time.Hour,
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: &late{ended: r.Context().Done(), gate: gate}}, nil
			}),
		}})
		require.NoError(t, err)
		time.AfterFunc(time.Minute, func() { close(gate) })
		start := time.Now()
		_, err = p.StreamGenerate(t.Context(), chat(`{"stream":true}`), new(sink).emit)
		require.Equal(t, inference.CodeUpstreamTimeout, inference.AsError(err).Code)
		require.Equal(t, time.Minute+time.Second, time.Since(start))
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// late gives one comment when its gate opens, and then nothing more.
type late struct {
	ended <-chan struct{}
	gate  chan struct{}
	done  bool
}

func (l *late) Read(p []byte) (int, error) {
	gate := l.gate
	if l.done {
		gate = nil
	}
	select {
	case <-gate:
		l.done = true
		return copy(p, ": hello\n\n"), nil
	case <-l.ended:
		return 0, context.Canceled
	}
}

func (l *late) Close() error { return nil }

func TestEmbeddings(t *testing.T) {
	t.Parallel()
	p, up := setup(t, nil)
	const body = `{"model":"e","input":["a","b"],"x_unknown":1}`
	const answer = `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1e-3]}],"model":"e-1","usage":{"prompt_tokens":4,"total_tokens":4}}`
	up.Handle(func(c *testkit.Call) { c.JSON(200, answer) })
	call := providers.Call{Kind: inference.KindEmbeddings, Model: "e", Body: []byte(body)}
	resp, err := p.Generate(t.Context(), call)
	require.NoError(t, err)
	require.Equal(t, answer, string(resp.Body), "as it came")
	require.Equal(t, "e-1", resp.Model)
	require.Equal(t, inference.Usage{PromptTokens: 4, Known: true}, resp.Usage)
	require.Equal(t, "/v1/embeddings", up.Last().Path)
	require.Equal(t, body, string(up.Last().Body))

	_, err = p.StreamGenerate(t.Context(), call, new(sink).emit)
	require.Equal(t, inference.CodeInvalidRequest, inference.AsError(err).Code)
	for _, bad := range []string{`{"object":"list"}`, `[]`, `{`, `{"data":{}}`} {
		up.Handle(func(c *testkit.Call) { c.JSON(200, bad) })
		_, err = p.Generate(t.Context(), call)
		require.Equal(t, inference.CodeUpstreamInvalid, inference.AsError(err).Code, bad)
	}
	up.Handle(func(c *testkit.Call) { c.JSON(200, `{"error":{"message":"no"}}`) })
	_, err = p.Generate(t.Context(), call)
	require.Equal(t, inference.CodeUpstreamError, inference.AsError(err).Code)
}

func TestAzure(t *testing.T) {
	t.Parallel()
	for name, suffix := range map[string]string{"the resource": "", "with its path": "/openai"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, up := setup(t, func(o *openai.Options) {
				o.BaseURL += suffix
				o.AzureVersion = "2024-10-21"
				o.ModelMap = map[string]string{"gpt-4o": "my deployment/1"}
			})
			up.Handle(func(c *testkit.Call) { c.Reply("hi") })
			call := providers.Call{Kind: inference.KindChat, Model: "gpt-4o", Body: []byte(`{"model":"x","messages":[]}`)}
			_, err := p.Generate(t.Context(), call)
			require.NoError(t, err)
			require.Equal(t, "/v1/openai/deployments/my deployment/1/chat/completions", up.Last().Path)
			require.Equal(t, "api-version=2024-10-21", up.Last().Query)
			require.Equal(t, key, up.Last().Header.Get("Api-Key"))
			require.Empty(t, up.Last().Header.Get("Authorization"))
			require.JSONEq(t, `{"model":"my deployment/1","messages":[]}`, string(up.Last().Body))
			caps, err := p.Capabilities(t.Context())
			require.NoError(t, err)
			require.Empty(t, caps.Models, "Azure lists what could be deployed, not what is")
		})
	}
}

func TestOwnPaths(t *testing.T) {
	t.Parallel()
	p, up := setup(t, func(o *openai.Options) {
		o.Paths = openai.Paths{Own: true, Chat: "/generate"}
		o.KeyHeader, o.KeyPrefix = "x-token", "T "
		o.Headers = map[string]string{"x-team": "research"}
	})
	up.Handle(func(c *testkit.Call) { c.Reply("hi") })
	_, err := p.Generate(t.Context(), chat(`{"model":"m"}`))
	require.NoError(t, err)
	require.Equal(t, "/v1/generate", up.Last().Path)
	require.Equal(t, "T "+key, up.Last().Header.Get("X-Token"))
	require.Equal(t, "research", up.Last().Header.Get("X-Team"))
	_, err = p.Generate(t.Context(), providers.Call{Kind: inference.KindEmbeddings, Body: []byte(`{}`)})
	require.Equal(t, inference.CodeInvalidRequest, inference.AsError(err).Code)
	caps, err := p.Capabilities(t.Context())
	require.NoError(t, err)
	require.False(t, caps.Embeddings)
}
