package chat_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers/internal/chat"
)

var someUsage = inference.Usage{PromptTokens: 12, CompletionTokens: 9_007_199_254, CachedTokens: 3, ReasoningTokens: 4, Known: true}

const usageJSON = `,"usage":{"prompt_tokens":12,"completion_tokens":9007199254,"total_tokens":9007199266,` +
	`"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":4}}`

func TestAppendCompletion(t *testing.T) {
	t.Parallel()
	call := chat.ToolCall{ID: "c1", Name: "f", Arguments: `{"a":"b"}`}
	second := chat.ToolCall{ID: "c2", Name: "g", Extra: `{"s":1}`}
	cases := map[string]struct {
		choice chat.Choice
		legacy bool
		want   string
	}{
		"text": {
			chat.Choice{Message: chat.Answer{Content: "a\"\\\n\u2028\xff<"}, FinishReason: "stop"},
			false,
			`{"index":0,"message":{"role":"assistant","content":"a\"\\\n` + "\u2028\uFFFD" + `<","refusal":null},"logprobs":null,"finish_reason":"stop"}`,
		},
		"nothing": {
			chat.Choice{Index: 2, FinishReason: "length"},
			false,
			`{"index":2,"message":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":"length"}`,
		},
		"thoughts": {
			chat.Choice{Message: chat.Answer{Content: "x", ReasoningContent: "hm", Extra: `{"k":[1]}`}},
			false,
			`{"index":0,"message":{"role":"assistant","content":"x","reasoning_content":"hm","refusal":null,"extra_content":{"k":[1]}},"logprobs":null,"finish_reason":null}`,
		},
		"refusal": {
			chat.Choice{Message: chat.Answer{Refusal: "no"}, FinishReason: "content_filter"},
			false,
			`{"index":0,"message":{"role":"assistant","content":null,"refusal":"no"},"logprobs":null,"finish_reason":"content_filter"}`,
		},
		"calls": {
			chat.Choice{Message: chat.Answer{ToolCalls: []chat.ToolCall{call, second}}, FinishReason: "tool_calls"},
			false,
			`{"index":0,"message":{"role":"assistant","content":null,"refusal":null,"tool_calls":[` +
				`{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":\"b\"}"}},` +
				`{"id":"c2","type":"function","function":{"name":"g","arguments":""},"extra_content":{"s":1}}]},"logprobs":null,"finish_reason":"tool_calls"}`,
		},
		"text and legacy call": {
			chat.Choice{Message: chat.Answer{Content: "x", ToolCalls: []chat.ToolCall{call, second}}, FinishReason: "tool_calls"},
			true,
			`{"index":0,"message":{"role":"assistant","content":"x","refusal":null,"function_call":{"name":"f","arguments":"{\"a\":\"b\"}"}},"logprobs":null,"finish_reason":"function_call"}`,
		},
		"legacy text": {
			chat.Choice{FinishReason: "stop"},
			true,
			`{"index":0,"message":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":"stop"}`,
		},
		"logprobs": {
			chat.Choice{Logprobs: []chat.TokenLogprob{
				{Token: "é", Logprob: -0.1, Top: []chat.TokenLogprob{{Token: "é", Logprob: -0.1}, {Token: "", Logprob: math.Inf(-1)}}},
				{Token: "\xc3", Logprob: -1e-30},
			}},
			false,
			`{"index":0,"message":{"role":"assistant","content":"","refusal":null},"logprobs":{"content":[` +
				`{"token":"é","logprob":-0.1,"bytes":[195,169],"top_logprobs":[{"token":"é","logprob":-0.1,"bytes":[195,169]},{"token":"","logprob":-9999,"bytes":[]}]},` +
				`{"token":"` + "\uFFFD" + `","logprob":-1e-30,"bytes":[195],"top_logprobs":[]}],"refusal":null},"finish_reason":null}`,
		},
		"no logprobs": {
			chat.Choice{Logprobs: []chat.TokenLogprob{}},
			false,
			`{"index":0,"message":{"role":"assistant","content":"","refusal":null},"logprobs":{"content":[],"refusal":null},"finish_reason":null}`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := chat.AppendCompletion([]byte("before"), chat.Completion{
				ID: "id", Created: 1700000000, Model: "m\"", Choices: []chat.Choice{c.choice, c.choice},
				Usage: someUsage, SystemFingerprint: "fp", Legacy: c.legacy,
			})
			require.Equal(t, `before{"id":"id","object":"chat.completion","created":1700000000,"model":"m\"","choices":[`+
				c.want+","+c.want+"]"+usageJSON+`,"system_fingerprint":"fp"}`, string(got))
			read, err := openaiapi.ParseCompletion(got[len("before"):])
			require.NoError(t, err)
			require.Equal(t, openaiapi.Completion{Model: `m"`, Usage: someUsage}, read)
		})
	}
}

func TestAppendNothing(t *testing.T) {
	t.Parallel()
	require.Equal(t, `{"id":"","object":"chat.completion","created":0,"model":"","choices":[]}`,
		string(chat.AppendCompletion(nil, chat.Completion{})))
	require.Equal(t, `{"id":"","object":"chat.completion.chunk","created":0,"model":"","choices":[]}`,
		string(chat.AppendChunk(nil, chat.Chunk{Usage: inference.Usage{PromptTokens: 1}})))
}

func TestAppendChunk(t *testing.T) {
	t.Parallel()
	begin := chat.ToolDelta{ID: "c1", Name: "f"}
	more := chat.ToolDelta{Index: 1, Arguments: `"}`, Extra: `{}`}
	cases := map[string]struct {
		delta  chat.Delta
		legacy bool
		want   string
	}{
		"nothing":          {chat.Delta{}, false, `{}`},
		"role":             {chat.Delta{Role: "assistant"}, false, `{"role":"assistant","content":""}`},
		"role and text":    {chat.Delta{Role: "assistant", Content: "x"}, false, `{"role":"assistant","content":"x"}`},
		"text":             {chat.Delta{Content: "x\xf0\x9f"}, false, `{"content":"x` + "\uFFFD\uFFFD" + `"}`},
		"thoughts":         {chat.Delta{ReasoningContent: "x"}, false, `{"reasoning_content":"x"}`},
		"role, thoughts":   {chat.Delta{Role: "assistant", ReasoningContent: "x"}, false, `{"role":"assistant","content":"","reasoning_content":"x"}`},
		"refusal":          {chat.Delta{Role: "assistant", Refusal: "x"}, false, `{"role":"assistant","content":null,"refusal":"x"}`},
		"extra":            {chat.Delta{Extra: `{"k":1}`}, false, `{"extra_content":{"k":1}}`},
		"call":             {chat.Delta{Role: "assistant", ToolCalls: []chat.ToolDelta{begin}}, false, `{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]}`},
		"arguments":        {chat.Delta{ToolCalls: []chat.ToolDelta{more, begin}}, false, `{"tool_calls":[{"index":1,"function":{"arguments":"\"}"},"extra_content":{}},{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]}`},
		"legacy":           {chat.Delta{ToolCalls: []chat.ToolDelta{more, begin}}, true, `{"function_call":{"name":"f","arguments":""}}`},
		"legacy arguments": {chat.Delta{ToolCalls: []chat.ToolDelta{{Arguments: "x"}}}, true, `{"function_call":{"arguments":"x"}}`},
		"legacy second":    {chat.Delta{ToolCalls: []chat.ToolDelta{more}}, true, `{}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := chat.AppendChunk(nil, chat.Chunk{ID: "id", Created: -1, Model: "m", Legacy: c.legacy, Choices: []chat.ChunkChoice{
				{Delta: c.delta}, {Index: 1, Delta: c.delta, FinishReason: "tool_calls", Logprobs: []chat.TokenLogprob{{Token: "a", Logprob: -2}}},
			}, Usage: someUsage, SystemFingerprint: "fp"})
			finish := "tool_calls"
			if c.legacy {
				finish = "function_call"
			}
			require.Equal(t, `{"id":"id","object":"chat.completion.chunk","created":-1,"model":"m","choices":[`+
				`{"index":0,"delta":`+c.want+`,"logprobs":null,"finish_reason":null},`+
				`{"index":1,"delta":`+c.want+`,"logprobs":{"content":[{"token":"a","logprob":-2,"bytes":[97],"top_logprobs":[]}],"refusal":null},"finish_reason":"`+finish+`"}]`+
				usageJSON+`,"system_fingerprint":"fp"}`, string(got))
			var chunk openaiapi.Chunk
			require.NoError(t, openaiapi.ParseChunk(got, &chunk, new(openaiapi.Choices)))
			require.Equal(t, someUsage, chunk.Usage)
		})
	}
}

func FuzzAppend(f *testing.F) {
	f.Add("id", "model", "text", "thought", "name", "{}", 0, 1.5, int64(3), true)
	f.Add("\xff\"\\", "\u2028\x00", "\xed\xa0\x80", "</script>", "\x7f", "", -1, math.Inf(1), int64(-1<<63), false)
	f.Fuzz(func(t *testing.T, id, model, text, thought, name, arguments string, index int, number float64, tokens int64, legacy bool) {
		calls := []chat.ToolCall{{ID: id, Name: name, Arguments: arguments}, {ID: name, Name: id}}
		logprobs := []chat.TokenLogprob{{Token: text, Logprob: number, Top: []chat.TokenLogprob{{Token: name, Logprob: -number}}}}
		usage := inference.Usage{PromptTokens: tokens, CompletionTokens: tokens, CachedTokens: tokens, ReasoningTokens: tokens, Known: true}
		whole := chat.AppendCompletion(nil, chat.Completion{
			ID: id, Created: tokens, Model: model, SystemFingerprint: name, Usage: usage, Legacy: legacy,
			Choices: []chat.Choice{
				{Index: index, Message: chat.Answer{Content: text, ReasoningContent: thought, Refusal: name, ToolCalls: calls}, Logprobs: logprobs, FinishReason: name},
			},
		})
		read, err := openaiapi.ParseCompletion(whole)
		require.NoError(t, err)
		require.True(t, utf8.Valid(whole))
		if tokens >= 0 && tokens <= 1_000_000_000_000 {
			require.Equal(t, usage, read.Usage)
		}
		var back struct {
			ID      string
			Choices []struct {
				Message struct {
					Content   *string
					Reasoning string `json:"reasoning_content"`
				}
			}
		}
		require.NoError(t, json.Unmarshal(whole, &back))
		require.Equal(t, valid(id), back.ID)
		require.Equal(t, valid(thought), back.Choices[0].Message.Reasoning)
		if text != "" {
			require.Equal(t, valid(text), *back.Choices[0].Message.Content)
		}

		part := chat.AppendChunk(nil, chat.Chunk{ID: id, Created: tokens, Model: model, SystemFingerprint: name, Usage: usage, Legacy: legacy, Choices: []chat.ChunkChoice{
			{Index: index, Delta: chat.Delta{Role: name, Content: text, ReasoningContent: thought, Refusal: id, ToolCalls: []chat.ToolDelta{{Index: index, ID: id, Name: name, Arguments: arguments}}}, Logprobs: logprobs, FinishReason: arguments},
		}})
		var chunk openaiapi.Chunk
		require.NoError(t, openaiapi.ParseChunk(part, &chunk, new(openaiapi.Choices)))
		require.True(t, json.Valid(part) && utf8.Valid(part))
	})
}

// valid replaces each byte that is not UTF-8, as encoding/json does too.
func valid(s string) string {
	var b strings.Builder
	for _, r := range s {
		b.WriteRune(r)
	}
	return b.String()
}
