package anthropic

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
)

// streamed translates events and checks that each chunk is one.
func streamed(t testing.TB, req *chat.Request, usage bool, events ...string) (chunks []string, a *translation, err error) {
	t.Helper()
	a = newTranslation(req, providers.Call{RequestID: "req-1", IncludeUsage: usage, Body: []byte(with(`"n":1`))}, created)
	var buf []byte
	var seen openaiapi.Choices
	for _, data := range events {
		a.chunks = a.chunks[:0]
		buf, err = a.event(buf, []byte(data))
		for _, c := range a.chunks {
			var chunk openaiapi.Chunk
			require.NoError(t, openaiapi.ParseChunk(buf[c.from:c.to], &chunk, &seen), "%s", buf[c.from:c.to])
			require.True(t, json.Valid(buf[c.from:c.to]))
			chunks = append(chunks, string(buf[c.from:c.to]))
		}
		if err != nil || a.done {
			break
		}
	}
	if err == nil && a.done {
		require.True(t, seen.Finished())
	}
	return chunks, a, err
}

// bare takes out what all chunks of an answer repeat.
func bare(chunks []string) []string {
	list := make([]string, 0, len(chunks))
	for _, c := range chunks {
		_, rest, _ := strings.Cut(c, `"choices":[`)
		rest = strings.TrimPrefix(rest, `{"index":0,"delta":`)
		rest = strings.Replace(rest, `,"logprobs":null,"finish_reason":null}]}`, "", 1)
		list = append(list, rest)
	}
	return list
}

const start = `{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[],"stop_reason":null,"usage":{"input_tokens":5,"cache_read_input_tokens":20,"output_tokens":1}}}`

// TestGoldenStream holds a whole stream, as the API reference's page on streaming shows
// it, against its chunks.
func TestGoldenStream(t *testing.T) {
	t.Parallel()
	native, err := os.ReadFile("testdata/stream_native.txt")
	require.NoError(t, err)
	var events []string
	for line := range strings.Lines(string(native)) {
		if data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: "); ok {
			events = append(events, data)
		}
	}
	chunks, a, err := streamed(t, requestWith(t, `"n":1`), true, events...)
	require.NoError(t, err)
	require.True(t, a.done)
	for _, c := range chunks {
		require.True(t, strings.HasPrefix(c, `{"id":"msg_01","object":"chat.completion.chunk","created":1700000000,"model":"claude-sonnet-4-5","choices":[`), c)
	}
	require.Equal(t, []string{
		`{"role":"assistant","content":"","reasoning_content":"First"}`,
		`{"reasoning_content":" this."}`,
		`{"content":"Hello"}`,
		`{"content":" there"}`,
		`{"tool_calls":[{"index":0,"id":"toolu_1","type":"function","function":{"name":"look_up","arguments":""}}]}`,
		`{"tool_calls":[{"index":0,"function":{"arguments":"{\"q\": \"x"}}]}`,
		`{"tool_calls":[{"index":0,"function":{"arguments":"\"}"}}]}`,
		`{"tool_calls":[{"index":1,"id":"toolu_2","type":"function","function":{"name":"now","arguments":""}}]}`,
		`{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]}`,
		`{"extra_content":{"anthropic":{"thinking":[{"type":"thinking","thinking":"First this.","signature":"c2lnMQ=="},{"type":"redacted_thinking","data":"cmVk"}]}}},"logprobs":null,"finish_reason":"tool_calls"}]}`,
		`],"usage":{"prompt_tokens":127,"completion_tokens":89,"total_tokens":216,"prompt_tokens_details":{"cached_tokens":100},"completion_tokens_details":{"reasoning_tokens":12}}}`,
	}, bare(chunks))
	require.Equal(t, providers.Summary{
		Model: "claude-sonnet-4-5",
		Usage: inference.Usage{PromptTokens: 127, CompletionTokens: 89, CachedTokens: 100, ReasoningTokens: 12, Known: true},
	}, a.summary())
}

func TestStreams(t *testing.T) {
	t.Parallel()
	const text = `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`
	const said = `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}`
	const stop = `{"type":"message_stop"}`
	end := func(reason string) string {
		return `{"type":"message_delta","delta":{"stop_reason":"` + reason + `"},"usage":{"output_tokens":1}}`
	}
	fin := func(reason string) string { return `{},"logprobs":null,"finish_reason":"` + reason + `"}]}` }
	for name, c := range map[string]struct {
		ask    string
		events []string
		want   []string
	}{
		"nothing said":    {`"n":1`, []string{start, end("end_turn"), stop}, []string{`{"role":"assistant","content":""},"logprobs":null,"finish_reason":"stop"}]}`}},
		"length":          {`"n":1`, []string{start, text, said, end("max_tokens"), stop}, []string{`{"role":"assistant","content":"a"}`, fin("length")}},
		"unknown ignored": {`"n":1`, []string{`{"type":"ping"}`, start, `{"type":"news","index":"odd"}`, text, `{"type":"content_block_start","index":1,"content_block":{"type":"web_search_tool_result","text":[]}}`, said, `{"type":"content_block_delta","index":0,"delta":{"type":"citations_delta","citation":{}}}`, `{"type":"content_block_delta","index":0,"delta":{"type":"odd_delta","text":7}}`, end("end_turn"), stop}, []string{`{"role":"assistant","content":"a"}`, fin("stop")}},
		"refused":         {`"n":1`, []string{start, text, said, `{"type":"message_delta","delta":{"stop_reason":"refusal","stop_details":{"explanation":"No."}}}`, stop}, []string{`{"role":"assistant","content":"a"}`, `{"refusal":"No."}`, fin("content_filter")}},
		"no beginning":    {`"n":1`, []string{said, stop}, []string{`{"role":"assistant","content":"a"}`, fin("stop")}},
		"two beginnings":  {`"n":1`, []string{start, start, said, end("end_turn"), stop}, []string{`{"role":"assistant","content":"a"}`, fin("stop")}},
		"text at once":    {`"n":1`, []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"a"}}`, end("end_turn"), stop}, []string{`{"role":"assistant","content":"a"}`, fin("stop")}},
		"input at once":   {`"n":1`, []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"i","name":"f","input":{"a":1}}}`, `{"type":"content_block_stop","index":0}`, stop}, []string{`{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"i","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]}`, fin("tool_calls")}},
		"ended twice":     {`"n":1`, []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"i","name":"f","input":{}}}`, `{"type":"content_block_stop","index":0}`, `{"type":"content_block_stop","index":0}`, end("tool_use"), stop}, []string{`{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"i","type":"function","function":{"name":"f","arguments":""}}]}`, `{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}`, fin("tool_calls")}},
		"input of nobody": {`"n":1`, []string{start, `{"type":"content_block_delta","index":7,"delta":{"type":"input_json_delta","partial_json":"{"}}`, `{"type":"content_block_stop","index":7}`, said, end("end_turn"), stop}, []string{`{"role":"assistant","content":"a"}`, fin("stop")}},
		"excluded":        {`"reasoning":{"exclude":true}`, []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}`, `{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"t"}}`, `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"s"}}`, `{"type":"content_block_stop","index":0}`, said, end("end_turn"), stop}, []string{`{"role":"assistant","content":"a"}`, fin("stop")}},
		"legacy":          {`"functions":[{"name":"f"}]`, []string{start, `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"i","name":"f","input":{}}}`, `{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{}"}}`, end("tool_use"), stop}, []string{`{"role":"assistant","content":null,"function_call":{"name":"f","arguments":""}}`, `{"function_call":{"arguments":"{}"}}`, fin("function_call")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chunks, a, err := streamed(t, requestWith(t, c.ask), false, c.events...)
			require.NoError(t, err)
			require.True(t, a.done)
			require.Equal(t, c.want, bare(chunks))
		})
	}
}

func TestBadEvents(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		data string
		want error
	}{
		"cut":         {`{"type":"ping"`, errNotJSON},
		"list":        {`[]`, errNotEvent},
		"no type":     {`{"hello":1}`, errNotEvent},
		"odd type":    {`{"type":5}`, errNotEvent},
		"odd text":    {`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":5}}`, errNotEvent},
		"odd index":   {`{"type":"content_block_stop","index":"a"}`, errNotEvent},
		"odd block":   {`{"type":"content_block_start","index":0,"content_block":5}`, errNotEvent},
		"odd start":   {`{"type":"message_start","message":5}`, errNotEvent},
		"error":       {`{"type":"error","error":{"type":"overloaded_error"}}`, errUpstream},
		"empty":       {`{"type":"message_stop"}`, errNoMessage},
		"OpenAI's":    {`{"choices":[]}`, errNotEvent},
		"nested deep": {strings.Repeat("[", 500) + strings.Repeat("]", 500), errNotJSON},
	} {
		chunks, _, err := streamed(t, requestWith(t, `"n":1`), true, c.data)
		require.ErrorIs(t, err, c.want, name)
		require.Empty(t, chunks)
	}
	many := []string{start}
	for range maxBlocks + 1 {
		many = append(many, `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)
	}
	_, _, err := streamed(t, requestWith(t, `"n":1`), true, many...)
	require.ErrorIs(t, err, errTooMany)
}

func TestStreamedUsage(t *testing.T) {
	t.Parallel()
	const said = `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}`
	for name, c := range map[string]struct {
		events []string
		want   inference.Usage
	}{
		"nothing yet":    {nil, inference.Usage{}},
		"only begun":     {[]string{start}, inference.Usage{PromptTokens: 25, CachedTokens: 20, Known: true, Estimated: true}},
		"cut":            {[]string{start, said, said}, inference.Usage{PromptTokens: 25, CompletionTokens: 2, CachedTokens: 20, Known: true, Estimated: true}},
		"no beginning":   {[]string{said}, inference.Usage{PromptTokens: 2, CompletionTokens: 1, Known: true, Estimated: true}},
		"reported":       {[]string{start, said, `{"type":"message_delta","delta":{},"usage":{"output_tokens":9}}`}, inference.Usage{PromptTokens: 25, CompletionTokens: 9, CachedTokens: 20, Known: true}},
		"reported twice": {[]string{start, `{"type":"message_delta","delta":{},"usage":{"output_tokens":9}}`, `{"type":"message_delta","delta":{},"usage":{"output_tokens":12,"input_tokens":0}}`}, inference.Usage{PromptTokens: 25, CompletionTokens: 12, CachedTokens: 20, Known: true}},
	} {
		_, a, err := streamed(t, requestWith(t, `"n":1`), true, c.events...)
		require.NoError(t, err)
		require.Equal(t, c.want, a.summary().Usage, name)
	}
}

// TestManyThoughts has more thoughts than are kept: none are given back, not even those
// that were, and the answer itself is whole.
func TestManyThoughts(t *testing.T) {
	t.Parallel()
	piece := `{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"` + strings.Repeat("t", 1<<20) + `"}}`
	events := []string{
		start, `{"type":"content_block_start","index":0,"content_block":{"type":"redacted_thinking","data":"d"}}`, `{"type":"content_block_stop","index":0}`,
		`{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}`,
	}
	for range 10 {
		events = append(events, piece)
	}
	events = append(events, `{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"s"}}`,
		`{"type":"content_block_stop","index":0}`, `{"type":"message_stop"}`)
	chunks, a, err := streamed(t, requestWith(t, `"n":1`), false, events...)
	require.NoError(t, err)
	require.Len(t, chunks, 11)
	require.Empty(t, a.kept.extra())
	require.Less(t, a.kept.bytes, maxThoughtBytes+(2<<20))
}
