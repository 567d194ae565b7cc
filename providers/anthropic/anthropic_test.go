package anthropic_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/anthropic"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

const key = "sk-ant-secret"

func setup(t *testing.T, change func(*anthropic.Options)) (*testkit.Upstream, *anthropic.Provider) {
	t.Helper()
	up := testkit.NewUpstream(t)
	up.Handle(func(c *testkit.Call) { new(dialect).Answer(c, "Hello") })
	opts := anthropic.Options{Options: upstream.Options{Name: "claude", BaseURL: up.URL(), Keys: []upstream.Key{{Secret: key}}}}
	if change != nil {
		change(&opts)
	}
	p, err := anthropic.New(opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return up, p
}

func ask(fields string) providers.Call {
	return providers.Call{
		Kind: inference.KindChat, Model: "claude-opus-4-1", RequestID: "req-1",
		Body: []byte(`{"model":"asked","messages":[{"role":"user","content":"hi"}]` + fields + `}`),
	}
}

// gather collects a stream's batches.
func gather(t *testing.T, p *anthropic.Provider, call providers.Call) (batches [][]string, sum providers.Summary, err error) {
	t.Helper()
	sum, err = p.StreamGenerate(t.Context(), call, func(chunks [][]byte) error {
		batch := make([]string, 0, len(chunks))
		for _, c := range chunks {
			batch = append(batch, string(c))
		}
		batches = append(batches, batch)
		return nil
	})
	return batches, sum, err
}

func TestWhatIsSent(t *testing.T) {
	t.Parallel()
	up, p := setup(t, func(o *anthropic.Options) {
		o.BaseURL = strings.TrimSuffix(o.BaseURL, "/v1") + "?beta=true"
		o.ModelMap = map[string]string{"claude-opus-4-1": "claude-opus-4-1-20250805"}
		o.Headers = map[string]string{"anthropic-beta": "x"}
		o.DefaultMaxTokens = 99
	})
	_, err := p.Generate(t.Context(), ask(""))
	require.NoError(t, err)
	sent := up.Last()
	require.Equal(t, http.MethodPost, sent.Method)
	require.Equal(t, "/v1/messages", sent.Path)
	require.Equal(t, "beta=true", sent.Query)
	require.Equal(t, key, sent.Header.Get("X-Api-Key"))
	require.Empty(t, sent.Header.Get("Authorization"))
	require.Equal(t, "2023-06-01", sent.Header.Get("Anthropic-Version"))
	require.Equal(t, "x", sent.Header.Get("Anthropic-Beta"))
	require.Equal(t, "application/json", sent.Header.Get("Content-Type"))
	const messages = `"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}`
	require.Equal(t, `{"model":"claude-opus-4-1-20250805","max_tokens":99,`+messages, string(sent.Body))

	_, _, err = gather(t, p, ask(`,"stream":true`))
	require.NoError(t, err)
	require.Equal(t, "text/event-stream", up.Last().Header.Get("Accept"))
	require.Equal(t, `{"model":"claude-opus-4-1-20250805","max_tokens":99,"stream":true,`+messages, string(up.Last().Body))
}

func TestOperatorsHeaders(t *testing.T) {
	t.Parallel()
	up, p := setup(t, func(o *anthropic.Options) {
		o.Headers = map[string]string{"anthropic-version": "2024-01-01"}
		o.KeyHeader, o.KeyPrefix = "Authorization", "Bearer "
	})
	_, err := p.Generate(t.Context(), ask(""))
	require.NoError(t, err)
	require.Equal(t, []string{"2024-01-01"}, up.Last().Header.Values("Anthropic-Version"))
	require.Equal(t, "Bearer "+key, up.Last().Header.Get("Authorization"))
	require.Empty(t, up.Last().Header.Get("X-Api-Key"))
	require.Len(t, p.Keys(), 1)
	_, err = anthropic.New(anthropic.Options{})
	require.NoError(t, err, "the public service needs no address")
}

func TestDropped(t *testing.T) {
	t.Parallel()
	up, p := setup(t, func(o *anthropic.Options) { o.OnUnsupported = chat.PolicyDrop })
	call := ask(`,"seed":1,"logprobs":true`)
	var dropped []string
	call.Dropped = func(fields []string) {
		require.Zero(t, up.Count(), "it is told before the call")
		dropped = fields
	}
	_, err := p.Generate(t.Context(), call)
	require.NoError(t, err)
	require.Equal(t, []string{"logprobs", "seed"}, dropped)
	call.Dropped = nil
	_, err = p.Generate(t.Context(), call)
	require.NoError(t, err)
	quiet := ask("")
	quiet.Dropped = func([]string) { require.Fail(t, "nothing was dropped") }
	_, err = p.Generate(t.Context(), quiet)
	require.NoError(t, err)

	up, p = setup(t, nil)
	_, err = p.Generate(t.Context(), call)
	e := requireCode(t, err, inference.CodeInvalidRequest)
	require.Equal(t, "seed", e.Param)
	require.Zero(t, up.Count())
}

func requireCode(t *testing.T, err error, code inference.ErrorCode) *inference.Error {
	t.Helper()
	var e *inference.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, "%v", err)
	return e
}

func TestModels(t *testing.T) {
	t.Parallel()
	up, p := setup(t, nil)
	up.Handle(func(c *testkit.Call) {
		if c.Path != "/v1/models" || c.Method != http.MethodGet || !strings.Contains(c.Query, "limit=1000") {
			c.JSON(http.StatusNotFound, failure("not_found_error", c.Path))
			return
		}
		if !strings.Contains(c.Query, "after_id=b") {
			c.JSON(http.StatusOK, `{"data":[{"type":"model","id":"a"},{"type":"model","id":"b"}],"has_more":true,"first_id":"a","last_id":"b"}`)
			return
		}
		c.JSON(http.StatusOK, `{"data":[{"type":"model","id":"c"}],"has_more":false,"first_id":"c","last_id":"c"}`)
	})
	caps, err := p.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, caps.Models)
	require.True(t, caps.Streaming && caps.Tools && caps.Images && caps.StructuredOutput)
	require.False(t, caps.Embeddings)

	up.Handle(func(c *testkit.Call) {
		c.JSON(http.StatusOK, fmt.Sprintf(`{"data":[{"id":"m%d"}],"has_more":true,"last_id":"m%d"}`, c.N, c.N))
	})
	caps, err = p.Capabilities(t.Context())
	require.NoError(t, err)
	require.Len(t, caps.Models, 20, "pages without end have one")

	up.Handle(func(c *testkit.Call) { c.JSON(http.StatusOK, `{}`) })
	_, err = p.Capabilities(t.Context())
	requireCode(t, err, inference.CodeUpstreamInvalid)
	up.Handle(func(c *testkit.Call) { c.JSON(http.StatusUnauthorized, failure("authentication_error", "no")) })
	_, err = p.Capabilities(t.Context())
	requireCode(t, err, inference.CodeUpstreamAuth)

	before := up.Count()
	_, configured := setup(t, func(o *anthropic.Options) { o.Models = []string{"claude-*"} })
	caps, err = configured.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"claude-*"}, caps.Models)
	require.Equal(t, before, up.Count())
}

const (
	begun = `{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[],"usage":{"input_tokens":25,"output_tokens":1}}}`
	token = `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}`
	ended = `{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}`
	over  = `{"type":"message_stop"}`
)

// TestBatches sees chunks travel together that came together, and none wait.
func TestBatches(t *testing.T) {
	t.Parallel()
	up, p := setup(t, nil)
	gate := make(chan struct{})
	up.Handle(func(c *testkit.Call) {
		c.Stream()
		c.Raw(event(begun) + event(token) + event(token))
		c.Wait(gate)
		c.Raw(event(token) + event(ended) + event(over) + "event: after\ndata: the end\n\n")
	})
	var sizes []int
	sum, err := p.StreamGenerate(t.Context(), ask(`,"stream":true`), func(chunks [][]byte) error {
		if sizes = append(sizes, len(chunks)); len(sizes) == 1 {
			close(gate)
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []int{2, 2}, sizes)
	require.Equal(t, inference.Usage{PromptTokens: 25, CompletionTokens: 7, Known: true}, sum.Usage)
}

func TestStreamErrors(t *testing.T) {
	t.Parallel()
	up, p := setup(t, nil)
	for name, c := range map[string]struct {
		last      string
		code      inference.ErrorCode
		retryable bool
	}{
		"overloaded":            {event(failure("overloaded_error", "Overloaded")), inference.CodeUpstreamError, true},
		"rate limited":          {event(failure("rate_limit_error", "Slow down")), inference.CodeUpstreamRateLimited, true},
		"too long":              {event(failure("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum")), inference.CodeUpstreamRejected, false},
		"error without a shape": {"event: error\ndata: oops\n\n", inference.CodeUpstreamError, true},
		"cut before the end":    {event(ended), inference.CodeUpstreamCut, true},
		"cut in an event":       {"event: message_stop\ndata: {\"type\":\"mess", inference.CodeUpstreamCut, true},
		"broken JSON":           {"data: {\"type\":\"ping\"\n\n", inference.CodeUpstreamInvalid, false},
		"OpenAI's end":          {"data: [DONE]\n\n", inference.CodeUpstreamInvalid, false},
	} {
		up.Handle(func(call *testkit.Call) {
			call.Stream()
			call.Raw(event(begun) + event(token) + event(token) + c.last)
		})
		batches, sum, err := gather(t, p, ask(`,"stream":true`))
		require.Equal(t, c.retryable, requireCode(t, err, c.code).Retryable, name)
		require.NotContains(t, strings.Join(batches[len(batches)-1], ""), `"finish_reason":"`, "an answer that breaks off has no end")
		require.Len(t, strings.Split(strings.Join(batches[0], "")+strings.Join(batches[len(batches)-1], ""), `"content":"a"`), 5, "what came before is handed on")
		require.Equal(t, "claude-x", sum.Model)
		require.EqualValues(t, 25, sum.Usage.PromptTokens)
		if strings.Contains(c.last, "output_tokens") {
			require.Equal(t, inference.Usage{PromptTokens: 25, CompletionTokens: 7, Known: true}, sum.Usage)
		} else {
			require.Equal(t, inference.Usage{PromptTokens: 25, CompletionTokens: 2, Known: true, Estimated: true}, sum.Usage)
		}
	}
}

// TestBrokenCharacters has bytes of a character cut apart, by the network and by the
// upstream itself.
func TestBrokenCharacters(t *testing.T) {
	t.Parallel()
	up, p := setup(t, nil)
	whole := event(strings.ReplaceAll(token, `"a"`, `"€"`))
	cut := strings.Index(whole, "€") + 1
	gate := make(chan struct{}, 1)
	up.Handle(func(c *testkit.Call) {
		c.Stream()
		c.Raw(event(begun) + event(token) + whole[:cut])
		c.Wait(gate)
		c.Raw(whole[cut:] + event(strings.ReplaceAll(token, `"a"`, "\"x\xe2\x82\"")) + event(strings.ReplaceAll(token, `"a"`, "\"\xacy\"")) + event(ended) + event(over))
	})
	var all strings.Builder
	_, err := p.StreamGenerate(t.Context(), ask(`,"stream":true`), func(chunks [][]byte) error {
		for _, c := range chunks {
			all.Write(c)
		}
		select {
		case gate <- struct{}{}:
		default:
		}
		return nil
	})
	require.NoError(t, err)
	for _, want := range []string{`"content":"a"`, `"content":"€"`, `"content":"x` + "\uFFFD", "\uFFFD" + `y"`, `"finish_reason":"stop"`} {
		require.Contains(t, all.String(), want)
	}
}

func TestLargeStream(t *testing.T) {
	t.Parallel()
	up, p := setup(t, nil)
	large := strings.Repeat("l", 5<<20)
	up.Handle(func(c *testkit.Call) { new(dialect).Answer(c, "a", large, "z") })
	batches, _, err := gather(t, p, ask(`,"stream":true`))
	require.NoError(t, err)
	size := 0
	for _, b := range batches {
		size += len(strings.Join(b, ""))
	}
	require.Greater(t, size, len(large))
	resp, err := p.Generate(t.Context(), ask(""))
	require.NoError(t, err)
	require.Greater(t, len(resp.Body), len(large))
}

func TestErrors(t *testing.T) {
	t.Parallel()
	up, p := setup(t, nil)
	for name, c := range map[string]struct {
		status    int
		body      string
		code      inference.ErrorCode
		retryable bool
		says      string
	}{
		"too long":         {400, failure("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"), inference.CodeUpstreamRejected, false, "context_length_exceeded: prompt is too long"},
		"bad request":      {400, failure("invalid_request_error", "messages: roles must alternate"), inference.CodeUpstreamRejected, false, "roles must alternate"},
		"overloaded":       {529, failure("overloaded_error", "Overloaded"), inference.CodeUpstreamError, true, "Overloaded"},
		"rate limited":     {429, failure("rate_limit_error", "Slow down"), inference.CodeUpstreamRateLimited, true, "Slow down"},
		"too large":        {413, failure("request_too_large", "Request exceeds the maximum size"), inference.CodeUpstreamRejected, false, "maximum size"},
		"status 200":       {200, failure("overloaded_error", "Overloaded"), inference.CodeUpstreamError, true, "Overloaded"},
		"200, bad request": {200, failure("invalid_request_error", "odd"), inference.CodeUpstreamRejected, false, "odd"},
		"200, a secret":    {200, failure("authentication_error", "invalid x-api-key "+key), inference.CodeUpstreamAuth, false, ""},
		"no stream":        {200, `{"hello":1}`, inference.CodeUpstreamInvalid, false, ""},
		"a page":           {502, `<html>Bad gateway</html>`, inference.CodeUpstreamError, true, "502"},
	} {
		up.Handle(func(call *testkit.Call) { call.JSON(c.status, c.body) })
		_, plainErr := p.Generate(t.Context(), ask(""))
		_, _, streamErr := gather(t, p, ask(`,"stream":true`))
		for _, err := range []error{plainErr, streamErr} {
			e := requireCode(t, err, c.code)
			require.Equal(t, c.retryable, e.Retryable, name)
			require.Contains(t, e.Message, c.says)
			require.Nil(t, e.Body, "an error of another API's shape does not go to the client")
			require.NotContains(t, e.Message, key)
		}
	}
}

// TestEmptyAccount sets the key aside although the status blames the client.
func TestEmptyAccount(t *testing.T) {
	t.Parallel()
	up, p := setup(t, nil)
	up.Handle(func(c *testkit.Call) {
		c.JSON(http.StatusBadRequest, failure("invalid_request_error", "Your credit balance is too low to access the Anthropic API."))
	})
	_, err := p.Generate(t.Context(), ask(""))
	e := requireCode(t, err, inference.CodeUpstreamAuth)
	require.NotContains(t, e.Message, "credit")
	require.Equal(t, providers.KeyRefused, p.Keys()[0].State)
}
