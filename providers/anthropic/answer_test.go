package anthropic

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
)

const created = 1_700_000_000

// requestWith is a parsed request with more fields.
func requestWith(t testing.TB, fields string) *chat.Request {
	t.Helper()
	req, err := chat.Parse([]byte(with(fields)))
	require.NoError(t, err)
	return req
}

// answered translates a plain answer.
func answered(t testing.TB, req *chat.Request, native string) *providers.Response {
	t.Helper()
	m, err := parseMessage([]byte(native))
	require.NoError(t, err)
	resp := m.response(req, "req-1", created)
	done, err := openaiapi.ParseCompletion(resp.Body)
	require.NoError(t, err, "%s", resp.Body)
	require.Equal(t, resp.Model, done.Model)
	require.Equal(t, resp.Usage, done.Usage, "what the client reads and what is accounted for")
	return resp
}

const goldenAnswer = `{"id":"chatcmpl-x","object":"chat.completion","created":1700000000,"model":"claude-sonnet-4-5-20250929","choices":[{"index":0,` +
	`"message":{"role":"assistant","content":"I look it up.","reasoning_content":"First <this>.","refusal":null,"tool_calls":[` +
	`{"id":"toolu_1","type":"function","function":{"name":"look_up","arguments":"{\"q\": \"Grüße\"}"}},{"id":"toolu_2","type":"function","function":{"name":"now","arguments":"{}"}}],` +
	`"extra_content":{"anthropic":{"thinking":[{"type":"thinking","thinking":"First \u003cthis\u003e.","signature":"c2ln"},{"type":"redacted_thinking","data":"cmVk","after":2}]}}},` +
	`"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1060,"completion_tokens":80,"total_tokens":1140,` +
	`"prompt_tokens_details":{"cached_tokens":1000},"completion_tokens_details":{"reasoning_tokens":30}}}`

func TestGoldenAnswer(t *testing.T) {
	t.Parallel()
	native, err := os.ReadFile("testdata/answer_native.json")
	require.NoError(t, err)
	resp := answered(t, requestWith(t, `"n":1`), string(native))
	require.Equal(t, strings.Replace(goldenAnswer, "chatcmpl-x", "msg_01", 1), string(resp.Body))
	require.Equal(t, inference.Usage{PromptTokens: 1060, CompletionTokens: 80, CachedTokens: 1000, ReasoningTokens: 30, Known: true}, resp.Usage)
}

// TestRoundTrip sends an answer back as a client does, and finds in the next request
// what the API said.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	native, err := os.ReadFile("testdata/answer_native.json")
	require.NoError(t, err)
	var done struct {
		Choices []struct {
			Message json.RawMessage `json:"message"`
		} `json:"choices"`
	}
	require.NoError(t, json.Unmarshal(answered(t, requestWith(t, `"n":1`), string(native)).Body, &done))
	body := `{"model":"m","messages":[{"role":"user","content":"hi"},` + string(done.Choices[0].Message) +
		`,{"role":"tool","tool_call_id":"toolu_1","content":"a"},{"role":"tool","tool_call_id":"toolu_2","content":"b"}],"reasoning_effort":"low"}`
	got, _, err := turnInto(t, body, "claude-sonnet-4-5", chat.PolicyReject)
	require.NoError(t, err, "the thoughts are there, so it may go on thinking")
	require.Contains(t, got, `{"role":"assistant","content":[{"type":"thinking","thinking":"First <this>.","signature":"c2ln"},`+
		`{"type":"text","text":"I look it up."},{"type":"tool_use","id":"toolu_1","name":"look_up","input":{"q": "Grüße"}},`+
		`{"type":"redacted_thinking","data":"cmVk"},{"type":"tool_use","id":"toolu_2","name":"now","input":{}}]}`)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ ask, native, message, finish string }{
		"nothing said":      {`"n":1`, `{"content":[],"stop_reason":"end_turn"}`, `"content":"","refusal":null`, "stop"},
		"texts":             {`"n":1`, `{"content":[{"type":"text","text":"a"},{"type":"text","text":"b","citations":[{"x":1}]}],"stop_reason":"stop_sequence"}`, `"content":"ab","refusal":null`, "stop"},
		"cut":               {`"n":1`, `{"content":[{"type":"text","text":"a"}],"stop_reason":"max_tokens"}`, `"content":"a","refusal":null`, "length"},
		"window":            {`"n":1`, `{"content":[{"type":"text","text":"a"}],"stop_reason":"model_context_window_exceeded"}`, `"content":"a","refusal":null`, "length"},
		"paused":            {`"n":1`, `{"content":[{"type":"text","text":"a"}],"stop_reason":"pause_turn"}`, `"content":"a","refusal":null`, "stop"},
		"unknown end":       {`"n":1`, `{"content":[{"type":"text","text":"a"}],"stop_reason":"tired"}`, `"content":"a","refusal":null`, "stop"},
		"no end":            {`"n":1`, `{"content":[{"type":"tool_use","id":"i","name":"f","input":null}]}`, `"content":null,"refusal":null,"tool_calls":[{"id":"i","type":"function","function":{"name":"f","arguments":"{}"}}]`, "tool_calls"},
		"refused":           {`"n":1`, `{"content":[],"stop_reason":"refusal","stop_details":{"type":"refusal","category":"cyber","explanation":"I must not."}}`, `"content":null,"refusal":"I must not."`, "content_filter"},
		"refused wordless":  {`"n":1`, `{"content":[{"type":"text","text":"a"}],"stop_reason":"refusal","stop_details":null}`, `"content":"a","refusal":null`, "content_filter"},
		"unknown blocks":    {`"n":1`, `{"content":[{"type":"server_tool_use","id":"s","name":"web","input":{}},{"type":"web_search_tool_result","text":{"odd":1}},{"type":"text","text":"a"}],"stop_reason":"end_turn"}`, `"content":"a","refusal":null`, "stop"},
		"thoughts excluded": {`"reasoning":{"exclude":true}`, `{"content":[{"type":"thinking","thinking":"t","signature":"s"},{"type":"text","text":"a"}],"stop_reason":"end_turn"}`, `"content":"a","refusal":null`, "stop"},
		"thoughts omitted":  {`"reasoning":{"exclude":true}`, `{"content":[{"type":"thinking","thinking":"","signature":"s"},{"type":"text","text":"a"}],"stop_reason":"end_turn"}`, `"content":"a","refusal":null,"extra_content":{"anthropic":{"thinking":[{"type":"thinking","signature":"s"}]}}`, "stop"},
		"unsigned":          {`"n":1`, `{"content":[{"type":"thinking","thinking":"t"},{"type":"text","text":"a"}],"stop_reason":"end_turn"}`, `"content":"a","reasoning_content":"t","refusal":null`, "stop"},
		"legacy":            {`"functions":[{"name":"f"}]`, `{"content":[{"type":"tool_use","id":"i","name":"f","input":{"a":1}}],"stop_reason":"tool_use"}`, `"content":null,"refusal":null,"function_call":{"name":"f","arguments":"{\"a\":1}"}`, "function_call"},
		"broken UTF-8":      {`"n":1`, "{\"content\":[{\"type\":\"text\",\"text\":\"a\xff\"}],\"stop_reason\":\"end_turn\"}", "\"content\":\"a\uFFFD\",\"refusal\":null", "stop"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := string(answered(t, requestWith(t, c.ask), c.native).Body)
			require.Equal(t, `{"id":"chatcmpl-req-1","object":"chat.completion","created":1700000000,"model":"","choices":[{"index":0,"message":{"role":"assistant",`+
				c.message+`},"logprobs":null,"finish_reason":"`+c.finish+`"}]}`, got)
		})
	}
}

func TestNoAnswers(t *testing.T) {
	t.Parallel()
	for name, native := range map[string]string{
		"nothing": ``, "cut": `{"content":[`, "list": `[]`, "no content": `{"type":"message"}`, "null content": `{"type":"message","content":null}`,
		"another thing": `{"type":"model","content":[]}`, "content no list": `{"content":"a"}`, "odd text": `{"content":[{"type":"text","text":5}]}`,
		"odd block": `{"content":["a"]}`, "deep": `{"content":[{"type":"tool_use","input":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}]}`,
	} {
		_, err := parseMessage([]byte(native))
		require.Error(t, err, name)
	}
	m, err := parseMessage([]byte(`{"type":"error","content":5}`))
	require.NoError(t, err)
	require.True(t, m.failed())
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		native string
		want   inference.Usage
	}{
		"none":        {`{}`, inference.Usage{}},
		"plain":       {`{"input_tokens":3,"output_tokens":4,"cache_read_input_tokens":null}`, inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}},
		"all kinds":   {`{"input_tokens":3,"cache_read_input_tokens":10,"cache_creation_input_tokens":100,"output_tokens":4,"output_tokens_details":{"thinking_tokens":2}}`, inference.Usage{PromptTokens: 113, CompletionTokens: 4, CachedTokens: 10, ReasoningTokens: 2, Known: true}},
		"untrue":      {`{"input_tokens":-3,"output_tokens":1.5,"cache_read_input_tokens":1e30}`, inference.Usage{}},
		"half untrue": {`{"input_tokens":"3","output_tokens":4,"output_tokens_details":7}`, inference.Usage{CompletionTokens: 4, Known: true}},
		"thoughts":    {`{"output_tokens":4,"output_tokens_details":{"thinking_tokens":9}}`, inference.Usage{CompletionTokens: 4, ReasoningTokens: 4, Known: true}},
	} {
		var count counts
		count.add(json.RawMessage(c.native))
		require.Equal(t, c.want, count.usage(), name)
	}
}

func TestLargeAnswer(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("ö\\\"\n", 1<<18)
	resp := answered(t, requestWith(t, `"n":1`), fmt.Sprintf(`{"content":[{"type":"text","text":%s}],"stop_reason":"end_turn"}`, openaiapi.AppendString(nil, text)))
	var done struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	require.NoError(t, json.Unmarshal(resp.Body, &done))
	require.True(t, text == done.Choices[0].Message.Content) //nolint:testifylint // a difference of a megabyte is not to be printed
}

func TestExplain(t *testing.T) {
	t.Parallel()
	body := func(kind, message string) []byte {
		return []byte(`{"type":"error","error":{"type":"` + kind + `","message":"` + message + `"},"request_id":"r"}`)
	}
	for _, message := range []string{"prompt is too long: 210000 tokens > 200000 maximum", "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000"} {
		said := explain(body("invalid_request_error", message))
		require.Equal(t, inference.CodeUpstreamRejected, said.Class)
		require.True(t, said.Final)
		require.Equal(t, "context_length_exceeded", said.Code)
		require.Equal(t, "context_length_exceeded: "+message, said.Message)
	}
	said := explain(body("invalid_request_error", "Your credit balance is too low to access the Anthropic API."))
	require.Equal(t, inference.CodeUpstreamAuth, said.Class)
	require.Empty(t, said.Message)
	require.Empty(t, explain(body("rate_limit_error", "x")).Class, "the status tells")
	require.Zero(t, explain([]byte(`<html>`)))
	require.Len(t, explain(body("api_error", strings.Repeat("x", 9000))).Message, maxErrorText)

	for kind, c := range map[string]struct {
		class inference.ErrorCode
		final bool
	}{
		"invalid_request_error": {inference.CodeUpstreamRejected, true}, "not_found_error": {inference.CodeUpstreamRejected, true},
		"request_too_large": {inference.CodeUpstreamRejected, true}, "rate_limit_error": {inference.CodeUpstreamRateLimited, false},
		"authentication_error": {inference.CodeUpstreamAuth, true}, "permission_error": {inference.CodeUpstreamAuth, true},
		"billing_error": {inference.CodeUpstreamAuth, true}, "overloaded_error": {"", false}, "api_error": {"", false}, "timeout_error": {"", false},
	} {
		said := explainInBand(body(kind, "words"))
		require.Equal(t, c.class, said.Class, kind)
		require.Equal(t, c.final, said.Final, kind)
		require.Equal(t, c.class == inference.CodeUpstreamAuth, said.Message == "", kind)
	}
}
