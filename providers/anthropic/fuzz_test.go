package anthropic

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"sluice/providers/internal/chat"
)

// FuzzRequest translates whatever the OpenAI form allows: the result is JSON.
func FuzzRequest(f *testing.F) {
	golden, err := os.ReadFile("testdata/request_openai.json")
	require.NoError(f, err)
	f.Add(golden, "claude-sonnet-4-5", true)
	f.Add([]byte(with(`"reasoning_effort":"high","tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"`)), "claude-opus-4-7", false)
	f.Add([]byte(with(`"functions":[{"name":"f"}],"stop":["\n"]`)), "m", true)
	f.Fuzz(func(t *testing.T, body []byte, model string, drop bool) {
		req, err := chat.Parse(body)
		if err != nil {
			return
		}
		policy := chat.PolicyReject
		if drop {
			policy = chat.PolicyDrop
		}
		out, err := translate(req, chat.NewUnsupported(req, "anthropic", policy), settings{model: model, maxTokens: DefaultMaxTokens})
		if err != nil {
			return
		}
		require.True(t, json.Valid(out), "%s", out)
		require.True(t, utf8.Valid(out))
	})
}

// FuzzAnswer translates whatever an upstream may answer: the result is an answer.
func FuzzAnswer(f *testing.F) {
	golden, err := os.ReadFile("testdata/answer_native.json")
	require.NoError(f, err)
	f.Add(golden)
	f.Add([]byte(`{"content":[{"type":"tool_use","input":[1]}],"stop_reason":"refusal","stop_details":{"explanation":"x"},"usage":{"input_tokens":1e9}}`))
	f.Add([]byte(`{"type":"error","error":{"type":"overloaded_error","message":"x"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		explainInBand(body)
		m, err := parseMessage(body)
		if err != nil || m.failed() {
			return
		}
		resp := answered(t, requestWith(t, `"n":1`), string(body))
		require.True(t, utf8.Valid(resp.Body))
	})
}

// FuzzEvents translates whatever events an upstream may send, one in each line: each
// chunk is one, and there is no end without a finish reason.
func FuzzEvents(f *testing.F) {
	golden, err := os.ReadFile("testdata/stream_native.txt")
	require.NoError(f, err)
	f.Add(bytes.ReplaceAll(golden, []byte("data: "), nil))
	f.Add([]byte(start + "\n" + `{"type":"content_block_start","index":-3,"content_block":{"type":"tool_use","input":{"a":1}}}` + "\n" + `{"type":"content_block_stop","index":-3}`))
	f.Fuzz(func(t *testing.T, lines []byte) {
		var events []string
		for line := range bytes.Lines(lines) {
			if line = bytes.TrimSpace(line); len(line) > 0 && !bytes.HasPrefix(line, []byte("event:")) {
				events = append(events, string(line))
			}
		}
		chunks, a, _ := streamed(t, requestWith(t, `"n":1`), true, events...)
		for _, c := range chunks {
			require.True(t, utf8.ValidString(c))
		}
		sum := a.summary()
		require.True(t, sum.Usage.Known || a.out == nil)
	})
}
