package anthropic

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers/internal/chat"
)

// turnInto translates a request under a policy.
func turnInto(t *testing.T, body, model string, policy chat.Policy) (native string, dropped []string, err error) {
	t.Helper()
	req, err := chat.Parse([]byte(body))
	require.NoError(t, err)
	report := chat.NewUnsupported(req, "anthropic", policy)
	out, err := translate(req, report, settings{model: model, maxTokens: DefaultMaxTokens})
	if err == nil {
		require.True(t, json.Valid(out), "%s", out)
	}
	return string(out), report.Dropped(), err
}

// with is a request of one message with more fields.
func with(fields string) string {
	return `{"model":"m","messages":[{"role":"user","content":"hi"}],` + fields + `}`
}

// TestGoldenRequest holds the whole translation against a request that was checked,
// member by member, with the API reference of POST /v1/messages.
func TestGoldenRequest(t *testing.T) {
	t.Parallel()
	in, err := os.ReadFile("testdata/request_openai.json")
	require.NoError(t, err)
	want, err := os.ReadFile("testdata/request_native.json")
	require.NoError(t, err)
	got, dropped, err := turnInto(t, string(in), "claude-sonnet-4-5", chat.PolicyReject)
	require.NoError(t, err)
	require.Empty(t, dropped)
	var compact strings.Builder
	for line := range strings.Lines(string(want)) {
		compact.WriteString(strings.TrimSpace(line))
	}
	require.Equal(t, compact.String(), got)
}

func TestRequests(t *testing.T) {
	t.Parallel()
	const plain = `"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]`
	tool := `"tools":[{"type":"function","function":{"name":"f"}}]`
	for name, c := range map[string]struct{ model, body, want string }{
		"least":                 {"m", with(`"n":1`), `{"model":"m","max_tokens":8192,` + plain + `}`},
		"deprecated limit":      {"m", with(`"max_tokens":5`), `{"model":"m","max_tokens":5,` + plain + `}`},
		"limit that counts":     {"m", with(`"max_tokens":5,"max_completion_tokens":6`), `{"model":"m","max_tokens":6,` + plain + `}`},
		"defaults left out":     {"m", with(`"temperature":1,"top_p":1,"seed":null,"presence_penalty":0`), `{"model":"m","max_tokens":8192,` + plain + `}`},
		"one stop":              {"m", with(`"stop":"END"`), `{"model":"m","max_tokens":8192,` + plain + `,"stop_sequences":["END"]}`},
		"user too long":         {"m", with(`"user":"` + strings.Repeat("u", 257) + `"`), `{"model":"m","max_tokens":8192,` + plain + `}`},
		"safety identifier":     {"m", with(`"user":"u","safety_identifier":"s"`), `{"model":"m","max_tokens":8192,` + plain + `,"metadata":{"user_id":"s"}}`},
		"effort as budget":      {"claude-opus-4-1", with(`"reasoning_effort":"low"`), `{"model":"claude-opus-4-1","max_tokens":10240,` + plain + `,"thinking":{"type":"enabled","budget_tokens":2048}}`},
		"budget":                {"m", with(`"thinking":{"type":"enabled","budget_tokens":5000}`), `{"model":"m","max_tokens":13192,` + plain + `,"thinking":{"type":"enabled","budget_tokens":5000}}`},
		"budget raised":         {"m", with(`"thinking":{"type":"enabled","budget_tokens":5}`), `{"model":"m","max_tokens":9216,` + plain + `,"thinking":{"type":"enabled","budget_tokens":1024}}`},
		"budget cut":            {"m", with(`"max_tokens":4000,"reasoning":{"max_tokens":9000}`), `{"model":"m","max_tokens":4000,` + plain + `,"thinking":{"type":"enabled","budget_tokens":3000}}`},
		"effort adaptive":       {"claude-opus-4-7", with(`"reasoning_effort":"minimal"`), `{"model":"claude-opus-4-7","max_tokens":9216,` + plain + `,"thinking":{"type":"adaptive","display":"summarized"},"output_config":{"effort":"low"}}`},
		"no xhigh yet":          {"claude-sonnet-4-6", with(`"reasoning_effort":"xhigh","max_tokens":9`), `{"model":"claude-sonnet-4-6","max_tokens":9,` + plain + `,"thinking":{"type":"adaptive","display":"summarized"},"output_config":{"effort":"high"}}`},
		"budget of the last":    {"claude-opus-4-6", with(`"thinking":{"type":"enabled","budget_tokens":2000}`), `{"model":"claude-opus-4-6","max_tokens":10192,` + plain + `,"thinking":{"type":"enabled","budget_tokens":2000}}`},
		"thoughts excluded":     {"claude-opus-5", with(`"reasoning":{"effort":"max","exclude":true},"max_tokens":9`), `{"model":"claude-opus-5","max_tokens":9,` + plain + `,"thinking":{"type":"adaptive","display":"omitted"},"output_config":{"effort":"max"}}`},
		"thinking off":          {"claude-opus-5", with(`"reasoning_effort":"none"`), `{"model":"claude-opus-5","max_tokens":8192,` + plain + `,"thinking":{"type":"disabled"}}`},
		"off without a word":    {"claude-3-5-haiku-latest", with(`"reasoning_effort":"none"`), `{"model":"claude-3-5-haiku-latest","max_tokens":8192,` + plain + `}`},
		"thinks unasked":        {"claude-mythos-preview", with(`"n":1`), `{"model":"claude-mythos-preview","max_tokens":24576,` + plain + `}`},
		"top_p beside thinking": {"m", with(`"top_p":0.96,"thinking":{"type":"enabled"}`), `{"model":"m","max_tokens":16384,` + plain + `,"thinking":{"type":"enabled","budget_tokens":8192},"top_p":0.96}`},
		"schema":                {"m", with(`"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"object"}}}`), `{"model":"m","max_tokens":8192,` + plain + `,"output_config":{"format":{"type":"json_schema","schema":{"type":"object"}}}}`},
		"no tool allowed":       {"m", with(tool + `,"tool_choice":"none","parallel_tool_calls":false`), `{"model":"m","max_tokens":8192,` + plain + `,"tools":[{"name":"f","input_schema":{"type":"object","properties":{}}}],"tool_choice":{"type":"none"}}`},
		"one at a time":         {"m", with(tool + `,"parallel_tool_calls":false`), `{"model":"m","max_tokens":8192,` + plain + `,"tools":[{"name":"f","input_schema":{"type":"object","properties":{}}}],"tool_choice":{"type":"auto","disable_parallel_tool_use":true}}`},
		"forced beside effort":  {"claude-opus-4-7", with(tool + `,"tool_choice":"required","reasoning_effort":"low","max_tokens":9`), `{"model":"claude-opus-4-7","max_tokens":9,` + plain + `,"tools":[{"name":"f","input_schema":{"type":"object","properties":{}}}],"tool_choice":{"type":"any"},"thinking":{"type":"adaptive","display":"summarized"},"output_config":{"effort":"low"}}`},
		"some tools":            {"m", with(`"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g","parameters":{"properties":{}}}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"g"}}]}}`), `{"model":"m","max_tokens":8192,` + plain + `,"tools":[{"name":"g","input_schema":{"type":"object","properties":{}}}]}`},
		"legacy":                {"m", with(`"functions":[{"name":"f","parameters":{"type":"object"}}],"function_call":{"name":"f"}`), `{"model":"m","max_tokens":8192,` + plain + `,"tools":[{"name":"f","input_schema":{"type":"object"}}],"tool_choice":{"type":"tool","name":"f","disable_parallel_tool_use":true}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, dropped, err := turnInto(t, c.body, c.model, chat.PolicyReject)
			require.NoError(t, err)
			require.Empty(t, dropped)
			require.Equal(t, c.want, got)
		})
	}
}

func TestConversations(t *testing.T) {
	t.Parallel()
	call := func(id string) string {
		return `{"id":"` + id + `","type":"function","function":{"name":"f","arguments":""}}`
	}
	for name, c := range map[string]struct{ messages, want string }{
		"same side merged": {
			`{"role":"user","content":"a"},{"role":"user","content":"b"},{"role":"assistant","content":"c"},{"role":"assistant","content":"d "}`,
			`[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant","content":[{"type":"text","text":"c"},{"type":"text","text":"d"}]}]`,
		},
		"nothing said left out": {
			`{"role":"user","content":"a"},{"role":"assistant","content":""},{"role":"user","content":[{"type":"text","text":" \n"},{"type":"text","text":"b"}]}`,
			`[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]`,
		},
		"results first": {
			`{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":[` + call("x") + `,` + call("y") + `]},` +
				`{"role":"user","content":"wait"},{"role":"tool","tool_call_id":"y","content":"2"},{"role":"tool","tool_call_id":"x","content":""}`,
			`[{"role":"user","content":[{"type":"text","text":"a"}]},` +
				`{"role":"assistant","content":[{"type":"tool_use","id":"x","name":"f","input":{}},{"type":"tool_use","id":"y","name":"f","input":{}}]},` +
				`{"role":"user","content":[{"type":"tool_result","tool_use_id":"y","content":[{"type":"text","text":"2"}]},{"type":"tool_result","tool_use_id":"x"},{"type":"text","text":"wait"}]}]`,
		},
		"ids of others": {
			`{"role":"user","content":"a"},{"role":"assistant","tool_calls":[` + call("functions.f:0") + `]},{"role":"tool","tool_call_id":"functions.f:0","content":"1"}`,
			`[{"role":"user","content":[{"type":"text","text":"a"}]},` +
				`{"role":"assistant","content":[{"type":"tool_use","id":"call_d6bdd4de328a22edd610f954","name":"f","input":{}}]},` +
				`{"role":"user","content":[{"type":"tool_result","tool_use_id":"call_d6bdd4de328a22edd610f954","content":[{"type":"text","text":"1"}]}]}]`,
		},
		"legacy call": {
			`{"role":"user","content":"a"},{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{\"a\":1}"}},{"role":"function","name":"f","content":"1"}`,
			`[{"role":"user","content":[{"type":"text","text":"a"}]},` +
				`{"role":"assistant","content":[{"type":"tool_use","id":"function_call_1","name":"f","input":{"a":1}}]},` +
				`{"role":"user","content":[{"type":"tool_result","tool_use_id":"function_call_1","content":[{"type":"text","text":"1"}]}]}]`,
		},
		"refusal": {
			`{"role":"user","content":"a"},{"role":"assistant","refusal":"no"},{"role":"user","content":"b"}`,
			`[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":[{"type":"text","text":"no"}]},{"role":"user","content":[{"type":"text","text":"b"}]}]`,
		},
		"thoughts where they stood": {
			`{"role":"user","content":"a"},{"role":"assistant","content":"b","reasoning_content":"lost","tool_calls":[` + call("x") + `,` + call("y") + `],` +
				`"extra_content":{"google":{},"anthropic":{"thinking":[{"type":"thinking","thinking":"t1","signature":"s1"},{"type":"redacted_thinking","data":"d","after":1},` +
				`{"type":"thinking","signature":"s2","after":2},{"type":"thinking","thinking":"late","signature":"s3","after":3}]}}},` +
				`{"role":"tool","tool_call_id":"x","content":"1"},{"role":"tool","tool_call_id":"y","content":"2"}`,
			`[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant","content":[` +
				`{"type":"thinking","thinking":"t1","signature":"s1"},{"type":"text","text":"b"},{"type":"redacted_thinking","data":"d"},` +
				`{"type":"tool_use","id":"x","name":"f","input":{}},{"type":"thinking","thinking":"","signature":"s2"},{"type":"tool_use","id":"y","name":"f","input":{}}]},` +
				`{"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":[{"type":"text","text":"1"}]},{"type":"tool_result","tool_use_id":"y","content":[{"type":"text","text":"2"}]}]}]`,
		},
		"cache hints of messages": {
			`{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"cache_control":{"type":"ephemeral"}},{"role":"assistant","content":"c"},{"role":"user","content":"d"}`,
			`[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b","cache_control":{"type":"ephemeral"}}]},{"role":"assistant","content":[{"type":"text","text":"c"}]},{"role":"user","content":[{"type":"text","text":"d"}]}]`,
		},
		"empty file left out": {
			`{"role":"user","content":[{"type":"text","text":"a"},{"type":"file","file":{"filename":"e.txt","file_data":"data:text/plain;base64,ICA="}}]}`,
			`[{"role":"user","content":[{"type":"text","text":"a"}]}]`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, _, err := turnInto(t, `{"model":"m","messages":[`+c.messages+`]}`, "m", chat.PolicyReject)
			require.NoError(t, err)
			require.Equal(t, `{"model":"m","max_tokens":8192,"messages":`+c.want+`}`, got)
		})
	}
}

// TestUnsupported goes through all that the API cannot do: rejected with the field's
// name, or dropped and named.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	tools := `"tools":[{"type":"function","function":{"name":"f"}}]`
	said := func(message string) string {
		return `{"model":"m","messages":[{"role":"user","content":"hi"},` + message + `]}`
	}
	part := func(p string) string { return said(`{"role":"user","content":[{"type":"text","text":"x"},` + p + `]}`) }
	for name, c := range map[string]struct{ model, body, field, without string }{
		"n":                     {"m", with(`"n":2`), "n", `"n"`},
		"seed":                  {"m", with(`"seed":0`), "seed", "seed"},
		"logprobs":              {"m", with(`"logprobs":true`), "logprobs", "logprobs"},
		"logit bias":            {"m", with(`"logit_bias":{"1":2}`), "logit_bias", "logit_bias"},
		"frequency penalty":     {"m", with(`"frequency_penalty":0.5`), "frequency_penalty", "penalty"},
		"presence penalty":      {"m", with(`"presence_penalty":0.5`), "presence_penalty", "penalty"},
		"verbosity":             {"m", with(`"verbosity":"low"`), "verbosity", "verbosity"},
		"prediction":            {"m", with(`"prediction":{"type":"content","content":"x"}`), "prediction", "prediction"},
		"audio":                 {"m", with(`"audio":{"voice":"a"}`), "audio", "audio"},
		"web search":            {"m", with(`"web_search_options":{}`), "web_search_options", "web_search"},
		"unknown":               {"m", with(`"mood":"good"`), "mood", "mood"},
		"hot":                   {"m", with(`"temperature":1.5`), "temperature", "temperature"},
		"hot and thinking":      {"m", with(`"temperature":0.5,"reasoning_effort":"low"`), "temperature", "temperature"},
		"new and warm":          {"claude-opus-4-7", with(`"temperature":0.5`), "temperature", "temperature"},
		"new and top_p":         {"claude-opus-4-7", with(`"top_p":0.99`), "top_p", "top_p"},
		"both":                  {"claude-opus-4-1", with(`"temperature":0.5,"top_p":0.5`), "top_p", "top_p"},
		"thinking and top_p":    {"m", with(`"top_p":0.5,"reasoning_effort":"low"`), "top_p", "top_p"},
		"thinking and top_k":    {"m", with(`"top_k":5,"reasoning_effort":"low"`), "top_k", "top_k"},
		"json object":           {"m", with(`"response_format":{"type":"json_object"}`), "response_format", "json"},
		"blank stop":            {"m", with(`"stop":["\n","END"]`), "stop", `\n`},
		"budget of the new":     {"claude-opus-4-8", with(`"thinking":{"type":"enabled","budget_tokens":2000}`), "thinking.budget_tokens", "budget"},
		"reasoning of the new":  {"claude-opus-4-8", with(`"reasoning":{"max_tokens":2000}`), "reasoning.max_tokens", "budget"},
		"no room to think":      {"m", with(`"max_tokens":1024,"reasoning_effort":"low"`), "reasoning_effort", "thinking"},
		"forced while thinking": {"m", with(tools + `,"tool_choice":"required","reasoning_effort":"low"`), "tool_choice", "tool_choice"},
		"other tool":            {"m", with(`"tools":[{"type":"custom","custom":{"name":"c"}},{"type":"function","function":{"name":"f"}}]`), "tools[0]", "custom"},
		"choice of another":     {"m", with(tools + `,"tool_choice":{"type":"custom","custom":{"name":"f"}}`), "tool_choice", "tool_choice"},
		"speech":                {"m", part(`{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}`), "messages[1].content[1]", "audio"},
		"uploaded":              {"m", part(`{"type":"file","file":{"file_id":"file-1"}}`), "messages[1].content[1]", "file"},
		"odd image":             {"m", part(`{"type":"image_url","image_url":{"url":"data:image/tiff;base64,AAAA"}}`), "messages[1].content[1]", "tiff"},
		"odd file":              {"m", part(`{"type":"file","file":{"file_data":"data:application/zip;base64,AAAA"}}`), "messages[1].content[1]", "zip"},
		"file in Latin-1":       {"m", part(`{"type":"file","file":{"file_data":"data:text/plain;base64,6Q=="}}`), "messages[1].content[1]", "document"},
		"odd part":              {"m", part(`{"type":"video_url","video_url":{}}`), "messages[1].content[1]", "video"},
		"image of a system":     {"m", said(`{"role":"system","content":[{"type":"image_url","image_url":{"url":"https://x.test/a.png"}}]}`), "messages[1].content[0]", "image"},
		"name":                  {"m", said(`{"role":"user","name":"planner","content":"x"}`), "messages[1].name", "planner"},
		"spoken before":         {"m", said(`{"role":"assistant","audio":{"id":"a"}},{"role":"user","content":"x"}`), "messages[1].audio", "audio"},
		"other call":            {"m", said(`{"role":"assistant","content":"c","tool_calls":[{"id":"z","type":"custom"}]},{"role":"tool","tool_call_id":"z","content":"x"},{"role":"user","content":"x"}`), "messages[1].tool_calls[0]", "tool"},
		"broken arguments":      {"m", said(`{"role":"assistant","tool_calls":[{"id":"z","type":"function","function":{"name":"f","arguments":"{\"broken"}}]},{"role":"tool","tool_call_id":"z","content":"x"}`), "messages[1].tool_calls[0].function.arguments", "broken"},
		"thoughts lost":         {"m", strings.TrimSuffix(said(`{"role":"assistant","tool_calls":[{"id":"z","type":"function","function":{"name":"f","arguments":""}}]},{"role":"tool","tool_call_id":"z","content":"x"}`), "}") + `,"reasoning_effort":"low"}`, "reasoning_effort", "thinking"},
		"assistant first":       {"m", `{"model":"m","messages":[{"role":"assistant","content":"welcome","tool_calls":[{"id":"z","type":"function","function":{"name":"f","arguments":""}}]},{"role":"tool","tool_call_id":"z","content":"x"},{"role":"user","content":"hi"}]}`, "messages[0]", "welcome"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := turnInto(t, c.body, c.model, chat.PolicyReject)
			var e *inference.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, inference.CodeInvalidRequest, e.Code)
			require.Equal(t, c.field, e.Param)
			got, dropped, err := turnInto(t, c.body, c.model, chat.PolicyDrop)
			require.NoError(t, err)
			require.Equal(t, []string{c.field}, dropped)
			require.NotContains(t, got, c.without)
			require.NotContains(t, got, "tool_result\",\"tool_use_id\":\"z\",\"content\":[{\"type\":\"text\",\"text\":\"x\"}]},{\"type\":\"text\"", "a result without its call")
		})
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, param string }{
		"nobody asks":      {`{"model":"m","messages":[{"role":"system","content":"s"}]}`, "messages"},
		"nothing asked":    {`{"model":"m","messages":[{"role":"user","content":" "}]}`, "messages"},
		"thoughts altered": {`{"model":"m","messages":[{"role":"user","content":"x"},{"role":"assistant","content":"c","extra_content":{"anthropic":{"thinking":[{"type":"thinking","thinking":"x"}]}}}]}`, "messages[1].extra_content"},
		"thoughts no list": {`{"model":"m","messages":[{"role":"user","content":"x"},{"role":"assistant","content":"c","extra_content":{"anthropic":{"thinking":5}}}]}`, "messages[1].extra_content"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := turnInto(t, c.body, "m", chat.PolicyDrop)
			e, ok := errors.AsType[*inference.Error](err)
			require.True(t, ok)
			require.Equal(t, inference.CodeInvalidRequest, e.Code)
			require.Equal(t, c.param, e.Param)
		})
	}
}

func TestGenerations(t *testing.T) {
	t.Parallel()
	for model, age := range map[string]int{
		"claude-3-7-sonnet-20250219": 37, "claude-3-opus-latest": 30, "claude-opus-4-20250514": 40, "claude-opus-4-1-20250805": 41,
		"claude-sonnet-4-5": 45, "anthropic.claude-haiku-4-5-20251001-v1:0": 45, "claude-sonnet-4@20250514": 40, "Claude-Opus-4.6": 46,
		"claude-opus-5": 50, "claude-mythos-preview": newest, "claude-opus-4-8-fast": 48,
	} {
		got, claude := generation(model)
		require.True(t, claude, model)
		require.Equal(t, age, got, model)
	}
	_, claude := generation("kimi-k2-4")
	require.False(t, claude)
}
