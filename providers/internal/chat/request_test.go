package chat_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/internal/inference"
	"sluice/providers/internal/chat"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// with makes a request of one short message and the fields.
func with(fields string) string {
	if fields != "" {
		fields = "," + fields
	}
	return `{"model":"m","messages":[{"role":"user","content":"hi"}]` + fields + `}`
}

// say makes a request of these messages.
func say(messages string) string { return `{"model":"m","messages":[` + messages + `]}` }

// user makes a request of one message with these parts.
func user(parts string) string { return say(`{"role":"user","content":[` + parts + `]}`) }

func parse(t *testing.T, body string) *chat.Request {
	t.Helper()
	r, err := chat.Parse([]byte(body))
	require.NoError(t, err)
	return r
}

const twoTools = `"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}]`

func TestParseReadsFields(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		fields    string
		got       func(*chat.Request) any
		want      any
		otherwise any // when the field is missing or null
	}{
		"n":                     {`"n":3`, func(r *chat.Request) any { return r.N }, int64(3), int64(1)},
		"seed":                  {`"seed":-9223372036854775808`, func(r *chat.Request) any { return r.Seed }, new(int64(-1 << 63)), (*int64)(nil)},
		"temperature":           {`"temperature":0.1`, func(r *chat.Request) any { return r.Temperature }, new(0.1), (*float64)(nil)},
		"top_p":                 {`"top_p":1e-3`, func(r *chat.Request) any { return r.TopP }, new(0.001), (*float64)(nil)},
		"top_k":                 {`"top_k":40`, func(r *chat.Request) any { return r.TopK }, new(int64(40)), (*int64)(nil)},
		"top_k without limit":   {`"top_k":-1`, func(r *chat.Request) any { return r.TopK }, (*int64)(nil), (*int64)(nil)},
		"frequency_penalty":     {`"frequency_penalty":-2`, func(r *chat.Request) any { return r.FrequencyPenalty }, new(-2.0), (*float64)(nil)},
		"presence_penalty":      {`"presence_penalty":0.5`, func(r *chat.Request) any { return r.PresencePenalty }, new(0.5), (*float64)(nil)},
		"logit_bias":            {`"logit_bias":{ "50256" : -100 }`, func(r *chat.Request) any { return r.LogitBias }, chat.Raw(`{ "50256" : -100 }`), chat.Raw("")},
		"logprobs":              {`"logprobs":true`, func(r *chat.Request) any { return r.Logprobs }, true, false},
		"top_logprobs":          {`"logprobs":true,"top_logprobs":5`, func(r *chat.Request) any { return r.TopLogprobs }, new(int64(5)), (*int64)(nil)},
		"stop":                  {`"stop":"\n"`, func(r *chat.Request) any { return r.Stop }, []string{"\n"}, []string(nil)},
		"stops":                 {`"stop":["a","","b"]`, func(r *chat.Request) any { return r.Stop }, []string{"a", "b"}, []string(nil)},
		"stop at nothing":       {`"stop":""`, func(r *chat.Request) any { return r.Stop }, []string(nil), []string(nil)},
		"max_tokens":            {`"max_tokens":7`, func(r *chat.Request) any { return r.OutputLimit() }, new(int64(7)), (*int64)(nil)},
		"max_completion_tokens": {`"max_tokens":7,"max_completion_tokens":8`, func(r *chat.Request) any { return r.OutputLimit() }, new(int64(8)), (*int64)(nil)},
		"max_tokens as given":   {`"max_tokens":7,"max_completion_tokens":8`, func(r *chat.Request) any { return r.MaxTokens }, new(int64(7)), (*int64)(nil)},
		"reasoning_effort":      {`"reasoning_effort":"xhigh"`, func(r *chat.Request) any { return r.ReasoningEffort }, "xhigh", ""},
		"thinking":              {`"thinking":{"type":"enabled","budget_tokens":1024}`, func(r *chat.Request) any { return r.Thinking }, &chat.Thinking{Type: "enabled", Budget: new(int64(1024))}, (*chat.Thinking)(nil)},
		"reasoning":             {`"reasoning":{"effort":"low","max_tokens":5,"enabled":true,"exclude":true}`, func(r *chat.Request) any { return r.Reasoning }, &chat.Reasoning{Effort: "low", MaxTokens: new(int64(5)), Enabled: new(true), Exclude: true}, (*chat.Reasoning)(nil)},
		"modalities":            {`"modalities":["text","audio"]`, func(r *chat.Request) any { return r.Modalities }, []string{"text", "audio"}, []string(nil)},
		"audio":                 {`"audio":{"voice":"x"}`, func(r *chat.Request) any { return r.Audio }, chat.Raw(`{"voice":"x"}`), chat.Raw("")},
		"prediction":            {`"prediction":{"type":"content"}`, func(r *chat.Request) any { return r.Prediction }, chat.Raw(`{"type":"content"}`), chat.Raw("")},
		"web_search_options":    {`"web_search_options":{}`, func(r *chat.Request) any { return r.WebSearchOptions }, chat.Raw(`{}`), chat.Raw("")},
		"verbosity":             {`"verbosity":"low"`, func(r *chat.Request) any { return r.Verbosity }, "low", ""},
		"user":                  {`"user":"\u00e9\ud83d\ude00"`, func(r *chat.Request) any { return r.User }, "é😀", ""},
		"safety_identifier":     {`"safety_identifier":"s"`, func(r *chat.Request) any { return r.SafetyIdentifier }, "s", ""},
		"prompt_cache_key":      {`"prompt_cache_key":"k"`, func(r *chat.Request) any { return r.PromptCacheKey }, "k", ""},
		"service_tier":          {`"service_tier":"flex"`, func(r *chat.Request) any { return r.ServiceTier }, "flex", ""},
		"store":                 {`"store":true`, func(r *chat.Request) any { return r.Store }, new(true), (*bool)(nil)},
		"metadata":              {`"metadata":{"a":"b"}`, func(r *chat.Request) any { return r.Metadata }, chat.Raw(`{"a":"b"}`), chat.Raw("")},
		"parallel_tool_calls":   {`"parallel_tool_calls":false`, func(r *chat.Request) any { return r.ParallelToolCalls }, new(false), (*bool)(nil)},
		"stream":                {`"stream":true,"stream_options":{"include_usage":true}`, func(r *chat.Request) any { return []bool{r.Stream, r.IncludeUsage} }, []bool{true, true}, []bool{false, false}},
		"text":                  {`"response_format":{"type":"text"}`, func(r *chat.Request) any { return r.ResponseFormat }, chat.ResponseFormat{Type: "text"}, chat.ResponseFormat{}},
		"json_object":           {`"response_format":{"type":"json_object"}`, func(r *chat.Request) any { return r.ResponseFormat }, chat.ResponseFormat{Type: "json_object"}, chat.ResponseFormat{}},
		"json_schema": {
			`"response_format":{"type":"json_schema","json_schema":{"name":"n","description":"d","schema":{"type": "object"},"strict":true}}`,
			func(r *chat.Request) any { return r.ResponseFormat },
			chat.ResponseFormat{Type: "json_schema", Name: "n", Description: "d", Schema: `{"type": "object"}`, Strict: true},
			chat.ResponseFormat{},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, c.got(parse(t, with(c.fields))))
			require.Equal(t, c.otherwise, c.got(parse(t, with(""))))
			field, _, _ := strings.Cut(c.fields, ":")
			require.Equal(t, c.otherwise, c.got(parse(t, with(field+":null"))))
		})
	}
}

func TestParseNamesTheFault(t *testing.T) {
	t.Parallel()
	cases := map[string]struct{ body, param string }{
		"no message":               {`{"model":"m"}`, "messages"},
		"n":                        {with(`"n":0`), "n"},
		"seed":                     {with(`"seed":1.5`), "seed"},
		"seed too large":           {with(`"seed":9223372036854775808`), "seed"},
		"temperature":              {with(`"temperature":"1"`), "temperature"},
		"temperature out of range": {with(`"temperature":1e999`), "temperature"},
		"top_p":                    {with(`"top_p":[]`), "top_p"},
		"top_k":                    {with(`"top_k":"40"`), "top_k"},
		"frequency_penalty":        {with(`"frequency_penalty":true`), "frequency_penalty"},
		"presence_penalty":         {with(`"presence_penalty":{}`), "presence_penalty"},
		"logit_bias":               {with(`"logit_bias":[]`), "logit_bias"},
		"logprobs":                 {with(`"logprobs":1`), "logprobs"},
		"top_logprobs":             {with(`"logprobs":true,"top_logprobs":-1`), "top_logprobs"},
		"top_logprobs alone":       {with(`"top_logprobs":2`), "top_logprobs"},
		"stop":                     {with(`"stop":1`), "stop"},
		"stops":                    {with(`"stop":["a",1]`), "stop[1]"},
		"too many stops":           {with(`"stop":[` + strings.Repeat(`"a",`, chat.MaxStops) + `"a"]`), "stop"},
		"max_tokens":               {with(`"max_tokens":-1`), "max_tokens"},
		"max_completion_tokens":    {with(`"max_completion_tokens":1.0`), "max_completion_tokens"},
		"reasoning_effort":         {with(`"reasoning_effort":"huge"`), "reasoning_effort"},
		"reasoning_effort type":    {with(`"reasoning_effort":3`), "reasoning_effort"},
		"thinking":                 {with(`"thinking":true`), "thinking"},
		"thinking without type":    {with(`"thinking":{}`), "thinking.type"},
		"thinking.type":            {with(`"thinking":{"type":"on"}`), "thinking.type"},
		"thinking.budget_tokens":   {with(`"thinking":{"type":"enabled","budget_tokens":-5}`), "thinking.budget_tokens"},
		"reasoning.effort":         {with(`"reasoning":{"effort":"x"}`), "reasoning.effort"},
		"reasoning.max_tokens":     {with(`"reasoning":{"max_tokens":"x"}`), "reasoning.max_tokens"},
		"reasoning.exclude":        {with(`"reasoning":{"exclude":"x"}`), "reasoning.exclude"},
		"modalities":               {with(`"modalities":"text"`), "modalities"},
		"modality":                 {with(`"modalities":[null]`), "modalities[0]"},
		"audio":                    {with(`"audio":"x"`), "audio"},
		"prediction":               {with(`"prediction":[]`), "prediction"},
		"web_search_options":       {with(`"web_search_options":true`), "web_search_options"},
		"verbosity":                {with(`"verbosity":1`), "verbosity"},
		"user":                     {with(`"user":{}`), "user"},
		"safety_identifier":        {with(`"safety_identifier":1`), "safety_identifier"},
		"prompt_cache_key":         {with(`"prompt_cache_key":1`), "prompt_cache_key"},
		"service_tier":             {with(`"service_tier":1`), "service_tier"},
		"store":                    {with(`"store":"yes"`), "store"},
		"metadata":                 {with(`"metadata":"x"`), "metadata"},
		"stream":                   {with(`"stream":1`), "stream"},
		"twice":                    {with(`"seed":1,"se\u0065d":2`), "seed"},
		"twice, one of them null":  {with(`"seed":null,"seed":2`), "seed"},
		"response_format":          {with(`"response_format":"json"`), "response_format"},
		"format without type":      {with(`"response_format":{}`), "response_format.type"},
		"format's type":            {with(`"response_format":{"type":"xml"}`), "response_format.type"},
		"no json_schema":           {with(`"response_format":{"type":"json_schema"}`), "response_format.json_schema"},
		"no schema":                {with(`"response_format":{"type":"json_schema","json_schema":{"name":"n"}}`), "response_format.json_schema.schema"},
		"schema":                   {with(`"response_format":{"type":"json_schema","json_schema":{"schema":[]}}`), "response_format.json_schema.schema"},
		"strict":                   {with(`"response_format":{"type":"json_schema","json_schema":{"schema":{},"strict":1}}`), "response_format.json_schema.strict"},
		"too many fields":          {with(strings.Repeat(`"x":1,`, chat.MaxFields) + `"y":1`), ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, c.body, c.param)
		})
	}
}

func refused(t *testing.T, body, param string) {
	t.Helper()
	r, err := chat.Parse([]byte(body))
	require.Nil(t, r)
	var e *inference.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, inference.CodeInvalidRequest, e.Code)
	require.Equal(t, param, e.Param, e.Message)
	require.Contains(t, e.Message, param)
	require.Equal(t, strings.TrimSpace(e.Message), e.Message)
}

func TestParseRefusesWhatIsNoJSON(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "{", with(`"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200)), with("\"x\":\"\xff\"")} {
		_, err := chat.Parse([]byte(body))
		require.Error(t, err)
	}
	_, err := chat.Parse([]byte(`{"model":"m","messages":[{"role":"secret`))
	require.Equal(t, inference.CodeInvalidJSON, inference.AsError(err).Code)
}

func TestFields(t *testing.T) {
	t.Parallel()
	r := parse(t, `{ "x\u0079" : 1, "model":"m","seed":null,"x":{"seed":1},"messages":[{"role":"user","content":"hi"}],"x":[],"":0}`)
	require.Equal(t, []string{"xy", "model", "x", "messages", ""}, r.Fields)
}

func TestThought(t *testing.T) {
	t.Parallel()
	yes, no := new(true), new(false)
	cases := map[string]struct {
		fields string
		want   chat.Thought
	}{
		"nothing":             {``, chat.Thought{}},
		"effort":              {`"reasoning_effort":"low"`, chat.Thought{Enabled: yes, Effort: "low", Field: "reasoning_effort"}},
		"no effort":           {`"reasoning_effort":"none"`, chat.Thought{Enabled: no, Field: "reasoning_effort"}},
		"thinking":            {`"thinking":{"type":"enabled","budget_tokens":9},"reasoning_effort":"low"`, chat.Thought{Enabled: yes, Budget: new(int64(9)), Field: "thinking"}},
		"adaptive":            {`"thinking":{"type":"adaptive"}`, chat.Thought{Enabled: yes, Field: "thinking"}},
		"thinking off":        {`"thinking":{"type":"disabled","budget_tokens":9},"reasoning":{"effort":"high"}`, chat.Thought{Enabled: no, Field: "thinking"}},
		"budget of zero":      {`"thinking":{"type":"enabled","budget_tokens":0}`, chat.Thought{Enabled: no, Field: "thinking"}},
		"reasoning":           {`"reasoning":{"effort":"high","max_tokens":5},"reasoning_effort":"low"`, chat.Thought{Enabled: yes, Effort: "high", Budget: new(int64(5)), Field: "reasoning"}},
		"reasoning on":        {`"reasoning":{"enabled":true}`, chat.Thought{Enabled: yes, Field: "reasoning"}},
		"reasoning off":       {`"reasoning":{"enabled":false,"effort":"high"}`, chat.Thought{Enabled: no, Field: "reasoning"}},
		"hidden":              {`"reasoning":{"exclude":true},"reasoning_effort":"max"`, chat.Thought{Enabled: yes, Effort: "max", Exclude: true, Field: "reasoning_effort"}},
		"hidden, by thinking": {`"reasoning":{"exclude":true},"thinking":{"type":"enabled"}`, chat.Thought{Enabled: yes, Exclude: true, Field: "thinking"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, parse(t, with(c.fields)).Thought())
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(with(twoTools + `,"stop":["a"],"tool_choice":{"type":"function","function":{"name":"f"}}`))
	f.Add(user(`{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"data:image/png;base64,aaaa"}}`))
	f.Add(say(legacyTurns))
	f.Add(say(toolTurns))
	f.Add(` {"model" : "m","x":[1,{"y":null}],"messages":[{"role":"user","content":"\ud800"}] } `)
	f.Fuzz(func(t *testing.T, body string) {
		r, err := chat.Parse([]byte(body))
		if err != nil {
			var e *inference.Error
			require.ErrorAs(t, err, &e)
			require.Less(t, len(e.Message), 1000)
			return
		}
		require.NotEmpty(t, r.Messages)
		require.Contains(t, r.Fields, "messages")
		require.Positive(t, r.N)
		sameAsDecoded(t, body, r)
		require.NotContains(t, r.Stop, "")
		size := len(r.Model) + len(r.Fields)
		for i, m := range r.Messages {
			require.Equal(t, fmt.Sprintf("messages[%d]", i), m.Path())
			require.Contains(t, []chat.Role{"system", "developer", "user", "assistant", "tool"}, m.Role)
			require.Equal(t, m.Role == chat.RoleTool, m.ToolCallID != "")
			for _, p := range m.Content {
				require.NotEmpty(t, p.Type)
				require.True(t, strings.HasPrefix(p.Path(), m.Path()+".content"))
				size += len(p.Text) + len(p.URL) + len(p.Media.Base64)
			}
			for _, call := range m.ToolCalls {
				require.Equal(t, chat.RoleAssistant, m.Role)
				require.NotEmpty(t, call.ID)
				size += len(call.Arguments)
			}
		}
		require.LessOrEqual(t, size, 3*len(body), "half a surrogate pair grows from nothing, all else only shrinks")
		for _, tool := range r.Tools {
			require.Equal(t, tool.Type == "function", tool.Name != "")
		}
		u := chat.NewUnsupported(r, "p", chat.PolicyDrop)
		require.NoError(t, u.Check())
		for _, name := range u.Dropped() {
			require.NotContains(t, name, "\n")
		}
	})
}

// sameAsDecoded compares what was walked with what encoding/json decodes.
func sameAsDecoded(t *testing.T, body string, r *chat.Request) {
	t.Helper()
	var decoded map[string]any
	reader := json.NewDecoder(strings.NewReader(body))
	reader.UseNumber() // a number may be beyond any float
	require.NoError(t, reader.Decode(&decoded))
	for name, v := range decoded {
		if v != nil {
			require.Contains(t, r.Fields, name)
		}
	}
	for _, name := range r.Fields {
		require.Contains(t, decoded, name)
	}
	messages, _ := decoded["messages"].([]any)
	require.Len(t, messages, len(r.Messages))
	for i, each := range messages {
		message, _ := each.(map[string]any)
		if parts, ok := message["content"].([]any); ok {
			require.Len(t, r.Messages[i].Content, len(parts))
			for j, part := range parts {
				require.Equal(t, part.(map[string]any)["type"], r.Messages[i].Content[j].Type)
			}
		} else if text, ok := message["content"].(string); ok && text != "" {
			require.Equal(t, text, r.Messages[i].Content[0].Text)
		}
	}
}
