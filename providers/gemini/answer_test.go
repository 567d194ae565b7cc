package gemini_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/testkit"
)

// fullAnswer has all that an answer may have, in the layout of the service.
const fullAnswer = `{
	"candidates": [
		{
			"content": {
				"parts": [
					{"text": "Let me think. ", "thought": true},
					{"text": "Still.", "thought": true},
					{"text": "It is "},
					{"text": "a \"cat\" & <b>.", "thoughtSignature": "sigT"},
					{"functionCall": {"name": "look", "args": {"at": [1, 2], "q": "a b"}}, "thoughtSignature": "sigC"},
					{"functionCall": {"id": "own-id", "name": "count"}}
				],
				"role": "model"
			},
			"finishReason": "STOP",
			"safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}],
			"avgLogprobs": -0.5,
			"logprobsResult": {
				"topCandidates": [{"candidates": [{"token": "It", "logProbability": -0.25}, {"token": "A", "logProbability": -2}]}],
				"chosenCandidates": [{"token": "It", "tokenId": 12, "logProbability": -0.25}, {"token": " is", "logProbability": -1e-7}]
			}
		},
		{"content": {"parts": [{"text": "Tom"}]}, "finishReason": "MAX_TOKENS", "index": 1}
	],
	"usageMetadata": {
		"promptTokenCount": 100, "cachedContentTokenCount": 40, "toolUsePromptTokenCount": 5,
		"candidatesTokenCount": 20, "thoughtsTokenCount": 30, "totalTokenCount": 155
	},
	"modelVersion": "models/gemini-3-flash-001",
	"responseId": "resp-1"
}`

func TestAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.answers(fullAnswer)
	resp := r.generate(t, chatCall(`"n":2,"logprobs":true`))
	require.Equal(t, "gemini-3-flash-001", resp.Model)
	require.Equal(t, inference.Usage{
		PromptTokens: 105, CompletionTokens: 50, CachedTokens: 40, ReasoningTokens: 30, Known: true,
	}, resp.Usage)

	var got map[string]any
	require.NoError(t, json.Unmarshal(resp.Body, &got))
	require.Positive(t, got["created"])
	delete(got, "created")
	rest, err := json.Marshal(got)
	require.NoError(t, err)
	require.JSONEq(t, strings.ReplaceAll(`{"id":"resp-1","object":"chat.completion","model":"gemini-3-flash-001","choices":[
		{"index":0,"message":{"role":"assistant","content":"It is a \"cat\" & <b>.","reasoning_content":"Let me think. Still.","refusal":null,
			"tool_calls":[
				{"id":"FIRST","type":"function","function":{"name":"look","arguments":"{\"at\":[1,2],\"q\":\"a b\"}"},"extra_content":{"google":{"thought_signature":"sigC"}}},
				{"id":"own-id","type":"function","function":{"name":"count","arguments":"{}"}}],
			"extra_content":{"google":{"thought_signature":"sigT"}}},
		"logprobs":{"content":[
			{"token":"It","logprob":-0.25,"bytes":[73,116],"top_logprobs":[{"token":"It","logprob":-0.25,"bytes":[73,116]},{"token":"A","logprob":-2,"bytes":[65]}]},
			{"token":" is","logprob":-1e-7,"bytes":[32,105,115],"top_logprobs":[]}],"refusal":null},
		"finish_reason":"tool_calls"},
		{"index":1,"message":{"role":"assistant","content":"Tom","refusal":null},"logprobs":null,"finish_reason":"length"}],
		"usage":{"prompt_tokens":105,"completion_tokens":50,"total_tokens":155,"prompt_tokens_details":{"cached_tokens":40},"completion_tokens_details":{"reasoning_tokens":30}}}`,
		"FIRST", madeUpID(t, resp.Body)), string(rest))
}

func madeUpID(t *testing.T, body []byte) string {
	t.Helper()
	_, rest, found := strings.Cut(string(body), `"id":"call_`)
	require.True(t, found)
	id, _, _ := strings.Cut(rest, `"`)
	return "call_" + id
}

func TestCallIDs(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	const two = `{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f"}},{"functionCall":{"name":"f"}}]},"finishReason":"STOP"},
		{"index":1,"content":{"parts":[{"functionCall":{"name":"f"}}]},"finishReason":"STOP"}],"responseId":"ID"}`
	idsOf := func(id string) []string {
		r.answers(strings.ReplaceAll(two, "ID", id))
		var c struct {
			Choices []struct {
				Message struct {
					Calls []struct {
						ID string `json:"id"`
					} `json:"tool_calls"`
				} `json:"message"`
			} `json:"choices"`
		}
		require.NoError(t, json.Unmarshal(r.generate(t, chatCall("")).Body, &c))
		return []string{c.Choices[0].Message.Calls[0].ID, c.Choices[0].Message.Calls[1].ID, c.Choices[1].Message.Calls[0].ID}
	}
	one, again, other := idsOf("r1"), idsOf("r1"), idsOf("r2")
	require.Equal(t, one, again, "the same answer gives the same ids")
	seen := map[string]bool{}
	for _, id := range append(one, other...) {
		require.Regexp(t, `^call_[0-9a-f]{24}$`, id)
		require.False(t, seen[id], "ids are told apart")
		seen[id] = true
	}
	streamed := r.stream(t, chatCall(""))
	for _, id := range other {
		require.Contains(t, strings.Join(streamed.chunks, ""), id, "streamed or not, it is the same id")
	}
}

func TestFinish(t *testing.T) {
	t.Parallel()
	const says, calls, nothing = `[{"text":"Well"}]`, `[{"functionCall":{"name":"f","args":{}}}]`, `[]`
	const failed = "failed"
	for _, c := range []struct{ reason, parts, want, refusal string }{
		{"STOP", says, "stop", ""},
		{"STOP", calls, "tool_calls", ""},
		{"STOP", nothing, "stop", ""},
		{"", says, "stop", ""},
		{"MAX_TOKENS", nothing, "length", ""},
		{"MAX_TOKENS", calls, "length", ""},
		{"SAFETY", nothing, "content_filter", "gemini held the answer back: SAFETY"},
		{"SAFETY", says, "content_filter", ""},
		{"RECITATION", says, "content_filter", ""},
		{"LANGUAGE", says, "content_filter", ""},
		{"BLOCKLIST", says, "content_filter", ""},
		{"PROHIBITED_CONTENT", says, "content_filter", ""},
		{"SPII", says, "content_filter", ""},
		{"IMAGE_SAFETY", nothing, "content_filter", "gemini held the answer back: IMAGE_SAFETY"},
		{"OTHER", says, "stop", ""},
		{"OTHER", calls, "tool_calls", ""},
		{"OTHER", nothing, failed, ""},
		{"MALFORMED_FUNCTION_CALL", says, "stop", ""},
		{"MALFORMED_FUNCTION_CALL", nothing, failed, ""},
		{"UNEXPECTED_TOOL_CALL", nothing, failed, ""},
		{"SOMETHING_NEW", says, "stop", ""},
		{"SOMETHING_NEW", nothing, failed, ""},
	} {
		t.Run(c.reason+c.parts, func(t *testing.T) {
			t.Parallel()
			r := setup(t, nil)
			finish := ""
			if c.reason != "" {
				finish = `,"finishReason":"` + c.reason + `"`
			}
			r.answers(`{"candidates":[{"content":{"parts":` + c.parts + `}` + finish + `}]}`)
			plain, err := r.Generate(t.Context(), chatCall(""))
			s := r.stream(t, chatCall(""))
			if c.want == failed {
				for _, err := range []error{err, s.err} {
					require.True(t, requireCode(t, err, inference.CodeUpstreamError).Retryable, "asking again may help")
				}
				return
			}
			require.NoError(t, err)
			require.Contains(t, string(plain.Body), `"finish_reason":"`+c.want+`"`)
			if c.reason == "" {
				requireCode(t, s.err, inference.CodeUpstreamCut)
				return
			}
			require.NoError(t, s.err)
			require.Contains(t, s.chunks[len(s.chunks)-1], `"finish_reason":"`+c.want+`"`)
			for _, text := range []string{string(plain.Body), strings.Join(s.chunks, "")} {
				if c.refusal == "" {
					require.NotContains(t, strings.ReplaceAll(text, `"refusal":null`, ""), "refusal")
				} else {
					require.Contains(t, text, `"refusal":"`+c.refusal+`"`)
				}
			}
		})
	}
}

func TestMissingSignature(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.answers(`{"candidates":[{"finishReason":"MISSING_THOUGHT_SIGNATURE","finishMessage":"no signature"}]}`)
	_, err := r.Generate(t.Context(), chatCall(""))
	for _, err := range []error{err, r.stream(t, chatCall("")).err} {
		e := requireCode(t, err, inference.CodeUpstreamRejected)
		require.False(t, e.Retryable)
		require.Contains(t, e.Message, "no signature")
	}
}

func TestBlockedPrompt(t *testing.T) {
	t.Parallel()
	for body, refusal := range map[string]string{
		`{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":4},"responseId":"r"}`:                                "gemini blocked the prompt: SAFETY",
		`{"promptFeedback":{"blockReason":"OTHER","blockReasonMessage":"Not that."},"usageMetadata":{"promptTokenCount":4},"candidates":[]}`: "Not that.",
	} {
		r := setup(t, nil)
		r.answers(body)
		resp := r.generate(t, chatCall(""))
		require.Contains(t, string(resp.Body), `"choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":"`+refusal+`"},"logprobs":null,"finish_reason":"content_filter"}]`)
		require.Equal(t, inference.Usage{PromptTokens: 4, Known: true}, resp.Usage)

		s := r.stream(t, chatCall(""))
		require.NoError(t, s.err)
		require.Equal(t, []string{
			`[{"index":0,"delta":{"role":"assistant","content":null,"refusal":"` + refusal + `"},"logprobs":null,"finish_reason":null}]`,
			`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"content_filter"}]`,
		}, s.choices())
		require.Equal(t, inference.Usage{PromptTokens: 4, Known: true}, s.sum.Usage)
	}
}

func TestDrawnAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.answers(`{"candidates":[{"content":{"parts":[{"text":"See: "},{"inlineData":{"mimeType":"image/png","data":"AAAA"}},{"inlineData":{"mimeType":"audio/wav","data":"BBBB"}}]},"finishReason":"STOP"}]}`)
	const want = "See: ![image/png](data:image/png;base64,AAAA)[audio/wav](data:audio/wav;base64,BBBB)"
	require.Contains(t, string(r.generate(t, chatCall("")).Body), want)
	require.Contains(t, strings.Join(r.stream(t, chatCall("")).chunks, ""), want)
}

func TestLegacyAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.answers(`{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a":1}}},{"functionCall":{"name":"g"}}]},"finishReason":"STOP"}]}`)
	call := chatCall(`"functions":[{"name":"f"},{"name":"g"}]`)
	require.Contains(t, string(r.generate(t, call).Body), `"function_call":{"name":"f","arguments":"{\"a\":1}"}},"logprobs":null,"finish_reason":"function_call"`)
	require.Equal(t, []string{
		`[{"index":0,"delta":{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{\"a\":1}"}},"logprobs":null,"finish_reason":null}]`,
		`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"function_call"}]`,
	}, r.stream(t, call).choices())
}

func TestHiddenThoughts(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.answers(fullAnswer)
	call := chatCall(`"reasoning":{"effort":"low","exclude":true}`)
	require.NotContains(t, string(r.generate(t, call).Body), "Still")
	require.NotContains(t, strings.Join(r.stream(t, call).chunks, ""), "Still")
}

// TestMalformed has answers that are none, plain and as an event of a stream.
func TestMalformed(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("[", 101) + strings.Repeat("]", 101)
	for name, c := range map[string]struct {
		body   string
		stream inference.ErrorCode
	}{
		"no JSON":           {"hello", inference.CodeUpstreamInvalid},
		"cut JSON":          {`{"candidates":[{"content"`, inference.CodeUpstreamInvalid},
		"list":              {`[]`, inference.CodeUpstreamInvalid},
		"list of answers":   {`[{"candidates":[]}]`, inference.CodeUpstreamInvalid},
		"number":            {`7`, inference.CodeUpstreamInvalid},
		"too deep":          {`{"candidates":` + deep + `}`, inference.CodeUpstreamInvalid},
		"index below":       {`{"candidates":[{"index":-1}]}`, inference.CodeUpstreamInvalid},
		"index above":       {`{"candidates":[{"index":128}]}`, inference.CodeUpstreamInvalid},
		"too many":          {`{"candidates":[` + strings.Repeat(`{},`, 128) + `{}]}`, inference.CodeUpstreamInvalid},
		"call of nothing":   {`{"candidates":[{"content":{"parts":[{"functionCall":{"args":{}}}]}}]}`, inference.CodeUpstreamInvalid},
		"odd arguments":     {`{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":"x"}}]}}]}`, inference.CodeUpstreamInvalid},
		"no candidates":     {`{"candidates":[]}`, inference.CodeUpstreamCut},
		"something else":    {`{"hello":1}`, inference.CodeUpstreamCut},
		"usage alone":       {`{"usageMetadata":{"promptTokenCount":1}}`, inference.CodeUpstreamCut},
		"not quite blocked": {`{"promptFeedback":{"blockReason":"BLOCK_REASON_UNSPECIFIED"}}`, inference.CodeUpstreamCut},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, nil)
			r.answers(c.body)
			_, err := r.Generate(t.Context(), chatCall(""))
			requireCode(t, err, inference.CodeUpstreamInvalid)
			require.Equal(t, c.stream == inference.CodeUpstreamCut, requireCode(t, r.stream(t, chatCall("")).err, c.stream).Retryable)
		})
	}
}

// TestOddAnswer has what is strange but to be understood.
func TestOddAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	for body, want := range map[string]string{
		`{"candidates":[{"content":{"parts":[{"text":"a\ud800b"},{"text":5},{"executableCode":{"code":"x"}},7,null]},"finishReason":"STOP","future":[1]}],"usageMetadata":{"promptTokenCount":-4}}`: `"content":"a` + "\uFFFD" + `b"`,
		"{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\xffb\"}]},\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":1.5}}":                                               `"content":"a` + "\uFFFD" + `b"`,
		`{"candidates":[{"finishReason":"STOP","content":{}}],"usageMetadata":[]}`:                                                                                                                  `"content":""`,
	} {
		r.answers(body)
		resp := r.generate(t, chatCall(""))
		require.Contains(t, string(resp.Body), want)
		require.False(t, resp.Usage.Known, "numbers that cannot be true are not reported")
		require.NotContains(t, string(resp.Body), `"usage"`)
		require.Equal(t, model, resp.Model, "the model that was asked for, as none is named")
		require.Contains(t, string(resp.Body), `"id":"chatcmpl-req-1"`)
	}
}

func TestLargeAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	large := strings.Repeat("0123456789", 200_000)
	r.up.Handle(func(c *testkit.Call) {
		if isStream(c) {
			c.Chunk(event(model, large, "STOP", 1))
			return
		}
		c.JSON(http.StatusOK, event(model, large, "STOP", 1))
	})
	require.Contains(t, string(r.generate(t, chatCall("")).Body), large)
	s := r.stream(t, chatCall(""))
	require.NoError(t, s.err)
	require.Contains(t, s.chunks[0], large)
	require.True(t, openaiapi.Valid([]byte(s.chunks[0])))

	parts := strings.Repeat(`{"text":"a"},{"text":"b","thought":true},`, 10_000) + `{"text":"."}`
	r.answers(`{"candidates":[{"content":{"parts":[` + parts + `]},"finishReason":"STOP"}]}`)
	s = r.stream(t, chatCall(""))
	require.NoError(t, s.err)
	require.Greater(t, len(s.batches), 2, "an event that grows in translation is handed on in pieces")
	require.Len(t, s.chunks, 20_002)

	r.answers(`{"candidates":[{"content":{"parts":[` + strings.Repeat(`{"functionCall":{"name":"f"}},`, 10_000) + `{"functionCall":{"name":"f"}}]},"finishReason":"STOP"}]}`)
	_, err := r.Generate(t.Context(), chatCall(""))
	requireCode(t, err, inference.CodeUpstreamInvalid)
	requireCode(t, r.stream(t, chatCall("")).err, inference.CodeUpstreamInvalid)
}
