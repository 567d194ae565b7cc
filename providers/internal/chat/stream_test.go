package chat_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers/internal/chat"
)

// deltas reads chunks, which must be whole and all alike around their choices.
func deltas(t *testing.T, chunks [][]byte) (inner []string, seen openaiapi.Choices) {
	t.Helper()
	const head, tail = `{"id":"id","object":"chat.completion.chunk","created":5,"model":"m","choices":[`, `]}`
	for _, raw := range chunks {
		var chunk openaiapi.Chunk
		require.NoError(t, openaiapi.ParseChunk(raw, &chunk, &seen))
		s, found := strings.CutPrefix(string(raw), head)
		require.True(t, found, s)
		s, found = strings.CutSuffix(s, tail)
		require.True(t, found, s)
		inner = append(inner, strings.ReplaceAll(s, `,"logprobs":null`, ""))
	}
	return inner, seen
}

func newStream(t *testing.T, fields string, usage bool) *chat.Stream {
	t.Helper()
	return chat.NewStream("id", "m", 5, parse(t, with(fields)), usage)
}

func TestStreamOfText(t *testing.T) {
	t.Parallel()
	s := newStream(t, "", true)
	got, seen := deltas(t, [][]byte{
		s.Open(nil, 0),
		s.Reasoning(nil, 0, "hm"),
		s.Text(nil, 0, "a"),
		s.Text(nil, 1, "b"),
		s.Refusal(nil, 1, "no"),
		s.Finish(nil, 0, "stop"),
		s.Finish(nil, 1, "length"),
		s.Finish(nil, 2, "stop"),
	})
	require.Equal(t, []string{
		`{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}`,
		`{"index":0,"delta":{"reasoning_content":"hm"},"finish_reason":null}`,
		`{"index":0,"delta":{"content":"a"},"finish_reason":null}`,
		`{"index":1,"delta":{"role":"assistant","content":"b"},"finish_reason":null}`,
		`{"index":1,"delta":{"refusal":"no"},"finish_reason":null}`,
		`{"index":0,"delta":{},"finish_reason":"stop"}`,
		`{"index":1,"delta":{},"finish_reason":"length"}`,
		`{"index":2,"delta":{"role":"assistant","content":""},"finish_reason":"stop"}`,
	}, got)
	require.True(t, seen.Finished())
	for _, none := range [][]byte{s.Open(nil, 0), s.Text(nil, 3, ""), s.Reasoning(nil, 3, ""), s.Refusal(nil, 3, ""), s.Arguments(nil, 3, 0, "x")} {
		require.Empty(t, none)
	}
	last := s.Usage([]byte("x"), someUsage)
	require.Equal(t, `x{"id":"id","object":"chat.completion.chunk","created":5,"model":"m","choices":[]`+usageJSON+`}`, string(last))
	require.Empty(t, s.Usage(nil, inference.Usage{PromptTokens: 3}), "nothing is known")
	require.Empty(t, newStream(t, "", false).Usage(nil, someUsage), "nobody asked")
}

func TestStreamOfCalls(t *testing.T) {
	t.Parallel()
	s := newStream(t, twoTools, true)
	got, _ := deltas(t, [][]byte{
		s.Call(nil, 0, 4, chat.ToolCall{ID: "a", Name: "f"}),
		s.Call(nil, 0, 7, chat.ToolCall{ID: "b", Name: "g", Arguments: "{", Extra: `{"s":1}`}),
		s.Arguments(nil, 0, 4, "{}"),
		s.Arguments(nil, 0, 7, "}"),
		s.Call(nil, 0, 7, chat.ToolCall{ID: "c", Name: "g"}),
		s.Arguments(nil, 0, 7, "[]"),
		s.Call(nil, 1, 7, chat.ToolCall{ID: "d", Name: "f"}),
		s.Finish(nil, 0, "tool_calls"),
	})
	require.Equal(t, []string{
		`{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]},"finish_reason":null}`,
		`{"index":0,"delta":{"tool_calls":[{"index":1,"id":"b","type":"function","function":{"name":"g","arguments":"{"},"extra_content":{"s":1}}]},"finish_reason":null}`,
		`{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]},"finish_reason":null}`,
		`{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"}"}}]},"finish_reason":null}`,
		`{"index":0,"delta":{"tool_calls":[{"index":2,"id":"c","type":"function","function":{"name":"g","arguments":""}}]},"finish_reason":null}`,
		`{"index":0,"delta":{"tool_calls":[{"index":2,"function":{"arguments":"[]"}}]},"finish_reason":null}`,
		`{"index":1,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"d","type":"function","function":{"name":"f","arguments":""}}]},"finish_reason":null}`,
		`{"index":0,"delta":{},"finish_reason":"tool_calls"}`,
	}, got)
	require.Equal(t, 3, s.Calls(0))
	require.Equal(t, 0, s.Calls(5))
	require.Empty(t, s.Arguments(nil, 0, 9, "x"), "no such call")
	require.Empty(t, s.Arguments(nil, 0, 4, ""))
}

func TestStreamInLegacyShape(t *testing.T) {
	t.Parallel()
	s := newStream(t, `"functions":[{"name":"f"}]`, true)
	got, _ := deltas(t, [][]byte{
		s.Call(nil, 0, 1, chat.ToolCall{ID: "a", Name: "f"}),
		s.Arguments(nil, 0, 1, "{}"),
		s.Finish(nil, 0, chat.FinishToolCalls),
	})
	require.Equal(t, []string{
		`{"index":0,"delta":{"role":"assistant","content":null,"function_call":{"name":"f","arguments":""}},"finish_reason":null}`,
		`{"index":0,"delta":{"function_call":{"arguments":"{}"}},"finish_reason":null}`,
		`{"index":0,"delta":{},"finish_reason":"function_call"}`,
	}, got)
	require.Empty(t, s.Call(nil, 0, 2, chat.ToolCall{ID: "b", Name: "f"}), "no room for a second call")
	require.Empty(t, s.Arguments(nil, 0, 2, "{}"))
}

func TestStreamHead(t *testing.T) {
	t.Parallel()
	s := newStream(t, "", false)
	s.SetModel("late")
	s.SetFingerprint("fp")
	require.Equal(t, `{"id":"id","object":"chat.completion.chunk","created":5,"model":"late","choices":[{"index":-7,"delta":{"role":"assistant","content":"x"},"logprobs":null,"finish_reason":"stop"}],"system_fingerprint":"fp"}`,
		string(s.Append(nil, chat.ChunkChoice{Index: -7, Delta: chat.Delta{Content: "x"}, FinishReason: "stop"})))
	require.Contains(t, string(s.Open(nil, 1<<20)), `"index":1048576,`)
	require.Empty(t, s.Open(nil, 1<<21), "choices beyond all bounds share one state")
}

func TestStreamingAllocatesNothing(t *testing.T) { //nolint:paralleltest // AllocsPerRun counts the whole process
	s := newStream(t, "", false)
	buf := make([]byte, 0, 1024)
	s.Open(buf, 0)
	require.Zero(t, testing.AllocsPerRun(100, func() { s.Text(buf, 0, "token") }))
	s.Call(buf, 0, 1, chat.ToolCall{ID: "a", Name: "f"})
	require.Zero(t, testing.AllocsPerRun(100, func() { s.Arguments(buf, 0, 1, "{}") }))
}
