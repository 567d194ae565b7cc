package gemini_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers/providertest"
)

func TestStream(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.events(
		`{"candidates":[{"content":{"parts":[{"text":"Hm","thought":true}]},"index":0}],"usageMetadata":{"promptTokenCount":9,"cachedContentTokenCount":3,"thoughtsTokenCount":2},"modelVersion":"gemini-3-flash-001","responseId":"resp-1"}`,
		`{"candidates":[{"content":{"parts":[{"text":"m","thought":true},{"text":"It "},{"text":"is"}]},"index":0,"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":2},"modelVersion":"gemini-3-flash-001"}`,
		`{"candidates":[{"content":{"parts":[{"text":"Tom"}]},"index":1,"logprobsResult":{"chosenCandidates":[{"token":"Tom","logProbability":-1}]}}]}`,
		`{"candidates":[{"content":{"parts":[{"functionCall":{"id":"x","name":"f","args":{"a": 1}},"thoughtSignature":"sigC"},{"functionCall":{"id":"y","name":"g"}}]},"index":0}]}`,
		`{"candidates":[{"content":{"parts":[{"text":"","thoughtSignature":"sigT"}]},"index":0,"finishReason":"STOP"},{"index":1,"finishReason":"MAX_TOKENS","logprobsResult":{"chosenCandidates":[{"token":"!","logProbability":-2}]}}]}`,
		`{"usageMetadata":{"promptTokenCount":9,"cachedContentTokenCount":3,"candidatesTokenCount":12,"thoughtsTokenCount":4},"modelVersion":"gemini-3-flash-002"}`,
	)
	s := r.stream(t, chatCall(`"n":2,"logprobs":true`))
	require.NoError(t, s.err)
	require.Equal(t, []string{
		`[{"index":0,"delta":{"role":"assistant","content":"","reasoning_content":"Hm"},"logprobs":null,"finish_reason":null}]`,
		`[{"index":0,"delta":{"reasoning_content":"m"},"logprobs":null,"finish_reason":null}]`,
		`[{"index":0,"delta":{"content":"It is"},"logprobs":null,"finish_reason":null}]`,
		`[{"index":1,"delta":{"role":"assistant","content":"Tom"},"logprobs":{"content":[{"token":"Tom","logprob":-1,"bytes":[84,111,109],"top_logprobs":[]}],"refusal":null},"finish_reason":null}]`,
		`[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"x","type":"function","function":{"name":"f","arguments":"{\"a\":1}"},"extra_content":{"google":{"thought_signature":"sigC"}}}]},"logprobs":null,"finish_reason":null}]`,
		`[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"y","type":"function","function":{"name":"g","arguments":"{}"}}]},"logprobs":null,"finish_reason":null}]`,
		`[{"index":0,"delta":{"extra_content":{"google":{"thought_signature":"sigT"}}},"logprobs":null,"finish_reason":null}]`,
		`[{"index":1,"delta":{},"logprobs":{"content":[{"token":"!","logprob":-2,"bytes":[33],"top_logprobs":[]}],"refusal":null},"finish_reason":null}]`,
		`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}]`,
		`[{"index":1,"delta":{},"logprobs":null,"finish_reason":"length"}]`,
	}, s.choices())
	for _, c := range s.chunks {
		require.Contains(t, c, `{"id":"resp-1","object":"chat.completion.chunk","created":`)
	}
	require.Equal(t, "gemini-3-flash-002", s.sum.Model)
	require.Equal(t, inference.Usage{PromptTokens: 9, CompletionTokens: 16, CachedTokens: 3, ReasoningTokens: 4, Known: true}, s.sum.Usage)

	call := chatCall("")
	call.IncludeUsage = true
	s = r.stream(t, call)
	require.NoError(t, s.err)
	require.Contains(t, s.chunks[len(s.chunks)-1], `"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":16,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":4}}`)
}

// TestStreamForms has one answer on the wire in several ways.
func TestStreamForms(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	first, second := event(model, "Grüße", "", 1), event(model, " 🐈", "STOP", 2)
	for name, wire := range map[string]string{
		"CRLF":           "data: " + first + "\r\n\r\ndata: " + second + "\r\n\r\n",
		"comments":       ": hello\n\ndata: " + first + "\n\n: ping\n\ndata: " + second + "\n\n",
		"unknown events": "event: future\ndata: {\"later\":[1]}\n\ndata: " + first + "\n\ndata: {}\n\ndata:\n\nretry: 5\n\ndata: " + second + "\n\ndata: [DONE]\n\n",
		"laid out":       "data: " + strings.ReplaceAll(first, `,"role"`, ",\ndata:   \"role\"") + "\n\ndata: " + second + "\n\n",
		"reason early":   "data: " + event(model, "Grüße", "STOP", 1) + "\n\ndata: " + event(model, " 🐈", "", 2) + "\n\n",
		"reason always":  "data: " + event(model, "Grüße", "STOP", 1) + "\n\ndata: " + second + "\n\n",
	} {
		for _, step := range []int{len(wire), 1, 7} { // a step of 1 cuts every character
			if step == 1 && name != "CRLF" {
				continue
			}
			r.up.Handle(func(c *testkit.Call) {
				c.Stream()
				for at := 0; at < len(wire); at += step {
					c.Raw(wire[at:min(at+step, len(wire))])
				}
			})
			s := r.stream(t, chatCall(""))
			require.NoError(t, s.err, name)
			require.Equal(t, []string{
				`[{"index":0,"delta":{"role":"assistant","content":"Grüße"},"logprobs":null,"finish_reason":null}]`,
				`[{"index":0,"delta":{"content":" 🐈"},"logprobs":null,"finish_reason":null}]`,
				`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]`,
			}, s.choices(), name)
			require.Equal(t, inference.Usage{PromptTokens: providertest.PromptTokens, CompletionTokens: 2, Known: true}, s.sum.Usage)
		}
	}
}

// TestBatches sees that what arrives together is handed on together, and nothing waits.
func TestBatches(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	gate := make(chan struct{})
	three := ""
	for range 3 {
		three += "data: " + event(model, "x", "", 1) + "\n\n"
	}
	r.up.Handle(func(c *testkit.Call) {
		c.Stream()
		c.Raw(three)
		c.Wait(gate)
		c.Chunk(event(model, "y", "STOP", 4))
	})
	var batches []int
	_, err := r.StreamGenerate(t.Context(), chatCall(""), func(chunks [][]byte) error {
		if len(batches) == 0 {
			close(gate)
		}
		batches = append(batches, len(chunks))
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 3, batches[0])
}

func TestCutStream(t *testing.T) {
	t.Parallel()
	const counted = `{"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":50,"cachedContentTokenCount":20,"candidatesTokenCount":8}}`
	const uncounted = `{"candidates":[{"content":{"parts":[{"text":"a"}]}}]}`
	const signature = `{"candidates":[{"content":{"parts":[{"text":"","thoughtSignature":"s"}]}}]}`
	const ends = `{"candidates":[{"content":{"parts":[{"text":"b"}]},"finishReason":"STOP"}]}`
	const half = `{"candidates":[{"index":0,"finishReason":"STOP"},{"index":1,"content":{"parts":[{"text":"b"}]}}]}`
	r := setup(t, nil)
	for name, c := range map[string]struct {
		events []string
		cut    bool
		code   inference.ErrorCode
		usage  inference.Usage
	}{
		"in the middle":    {[]string{uncounted, uncounted, signature}, true, inference.CodeUpstreamCut, inference.Usage{PromptTokens: 2, CompletionTokens: 2, Known: true, Estimated: true}},
		"without its end":  {[]string{uncounted, uncounted}, false, inference.CodeUpstreamCut, inference.Usage{PromptTokens: 2, CompletionTokens: 2, Known: true, Estimated: true}},
		"after a count":    {[]string{counted, uncounted}, true, inference.CodeUpstreamCut, inference.Usage{PromptTokens: 50, CachedTokens: 20, CompletionTokens: 8, Known: true, Estimated: true}},
		"one unfinished":   {[]string{half}, false, inference.CodeUpstreamCut, inference.Usage{PromptTokens: 2, CompletionTokens: 1, Known: true, Estimated: true}},
		"after its reason": {[]string{uncounted, ends}, true, inference.CodeUpstreamCut, inference.Usage{PromptTokens: 2, CompletionTokens: 2, Known: true, Estimated: true}},
		"never counted":    {[]string{uncounted, ends}, false, "", inference.Usage{PromptTokens: 2, CompletionTokens: 2, Known: true, Estimated: true}},
		"broken JSON":      {[]string{counted, `{"candidates":[`}, false, inference.CodeUpstreamInvalid, inference.Usage{PromptTokens: 50, CachedTokens: 20, CompletionTokens: 8, Known: true, Estimated: true}},
		"nothing":          {nil, false, inference.CodeUpstreamCut, inference.Usage{}},
	} {
		r.up.Handle(func(call *testkit.Call) {
			call.Stream()
			for _, e := range c.events {
				call.Chunk(e)
			}
			if c.cut {
				call.Cut()
			}
		})
		s := r.stream(t, chatCall(""))
		if c.code == "" {
			require.NoError(t, s.err, name)
		} else {
			requireCode(t, s.err, c.code)
			require.NotContains(t, strings.Join(s.chunks, ""), `"finish_reason":"`, name)
		}
		require.Equal(t, c.usage, s.sum.Usage, name)
		require.NotContains(t, strings.Join(s.chunks, ""), `"usage"`)
	}
}

func TestStreamErrors(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	const begun = `{"candidates":[{"content":{"parts":[{"text":"a"}]}}]}`
	const overloaded = `{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}`
	for _, wire := range []string{
		"data: " + overloaded + "\n\n",
		"data: [" + overloaded + "]\n\n",
		"event: error\ndata: " + overloaded + "\n\n",
	} {
		r.up.Handle(func(c *testkit.Call) {
			c.Chunk(begun)
			c.Raw(wire)
			c.Chunk(begun)
		})
		s := r.stream(t, chatCall(""))
		e := requireCode(t, s.err, inference.CodeUpstreamError)
		require.True(t, e.Retryable)
		require.Contains(t, e.Message, "overloaded")
		require.Len(t, s.chunks, 1, "what came before is handed on, and nothing after it")
		require.True(t, s.sum.Usage.Estimated)
	}
	r.up.Handle(func(c *testkit.Call) {
		c.Stream()
		c.Raw("event: error\ndata: {\"odd\":1}\n\n")
		c.Chunk(event(model, "x", "STOP", 1))
	})
	requireCode(t, r.stream(t, chatCall("")).err, inference.CodeUpstreamError)
	for _, body := range []string{overloaded, "[" + overloaded + "]"} {
		r.up.Handle(func(c *testkit.Call) { c.JSON(http.StatusOK, body) })
		_, err := r.Generate(t.Context(), chatCall(""))
		requireCode(t, err, inference.CodeUpstreamError)
		requireCode(t, r.stream(t, chatCall("")).err, inference.CodeUpstreamError)
	}
}

func TestEmitErrorAtTheEnd(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.events(`{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}`)
	full := errors.New("receiver is full")
	_, err := r.StreamGenerate(t.Context(), chatCall(""), func(chunks [][]byte) error {
		if strings.Contains(string(chunks[len(chunks)-1]), `"finish_reason":"stop"`) {
			return full
		}
		return nil
	})
	require.ErrorIs(t, err, full)
}
