package openaiapi

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// gathered makes a completion of chunks.
func gathered(chunks [][]byte, choices int) ([]byte, bool) {
	g := NewGatherer(1 << 20)
	for _, c := range chunks {
		g.Add(c)
	}
	return g.Completion(choices, false, inference.Usage{})
}

const usageText = `"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}`

func completionOf(choices ...string) string {
	return `{"id":"c","object":"chat.completion","created":7,"model":"m","system_fingerprint":"fp","service_tier":"default","choices":[` + strings.Join(choices, ",") + `],` + usageText + `}`
}

func choiceOf(index, message, finish string) string {
	return `{"index":` + index + `,"message":{"role":"assistant",` + message + `},"logprobs":null,"finish_reason":"` + finish + `"}`
}

// Whatever a completion holds comes back whole after it was a stream.
func TestAnswersChangeTheirShapeAndBack(t *testing.T) {
	t.Parallel()
	long := strings.Repeat(`é\n\ud83d\ude00 \"\\ x`, 200)
	for name, answer := range map[string]string{
		"text":      completionOf(choiceOf("0", `"content":"hello","refusal":null`, "stop")),
		"empty":     completionOf(choiceOf("0", `"content":"","refusal":null`, "stop")),
		"long":      completionOf(choiceOf("0", `"content":"`+long+`","refusal":null`, "stop")),
		"refusal":   completionOf(choiceOf("0", `"content":null,"refusal":"no"`, "stop")),
		"reasoning": completionOf(choiceOf("0", `"reasoning_content":"`+long+`","content":"so","refusal":null`, "stop")),
		"choices":   completionOf(choiceOf("0", `"content":"a","refusal":null`, "stop"), choiceOf("1", `"content":"b","refusal":null`, "stop")),
		"tools": completionOf(choiceOf("0", `"content":null,"refusal":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"`+long+`"}},
			{"id":"b","type":"function","function":{"name":"g","arguments":""},"extra_content":{"google":{"thought_signature":"s"}}}]`, "tool_calls")),
		"legacy":      completionOf(choiceOf("0", `"content":null,"refusal":null,"function_call":{"name":"f","arguments":"{}"}`, "function_call")),
		"parts":       completionOf(choiceOf("0", `"content":[{"type":"text","text":"a"}],"refusal":null`, "stop")),
		"annotations": completionOf(choiceOf("0", `"content":"a","refusal":null,"annotations":[{"type":"url_citation"}]`, "stop")),
		"logprobs": completionOf(strings.Replace(choiceOf("0", `"content":"a","refusal":null`, "stop"), `"logprobs":null`,
			`"logprobs":{"content":[{"token":"a","logprob":-1,"bytes":[97],"top_logprobs":[]}],"refusal":null}`, 1)),
		"around": completionOf(strings.Replace(choiceOf("0", `"content":"a","refusal":null`, "stop"), `"index"`, `"content_filter_results":{"hate":{"filtered":false}},"index"`, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.True(t, WholeCompletion([]byte(answer), strings.Count(answer, `"message"`), false))
			chunks, ok := Chunks([]byte(answer), true)
			require.True(t, ok)
			var seen Choices
			for i, c := range chunks {
				var chunk Chunk
				require.NoError(t, ParseChunk(c, &chunk, &seen), string(c))
				require.Equal(t, i == len(chunks)-1, chunk.UsageOnly, string(c))
				require.Less(t, len(c), 2000, "a piece")
				var plain any
				require.NoError(t, json.Unmarshal(c, &plain))
				text, err := json.Marshal(plain)
				require.NoError(t, err)
				require.NotContains(t, string(text), "\ufffd", "half a character")
				require.NotContains(t, string(text), `\ufffd`, "half a character")
			}
			require.True(t, seen.Finished())
			back, ok := gathered(chunks, strings.Count(answer, `"message"`))
			require.True(t, ok)
			require.JSONEq(t, answer, string(back))

			without, ok := Chunks([]byte(answer), false)
			require.True(t, ok)
			require.Len(t, without, len(chunks)-1)
			require.NotContains(t, string(without[0]), "usage")
		})
	}
}

// A stream of a whole answer has its parts in the order in which they come live, and each
// member once.
func TestTheOrderOfAStreamOfAWholeAnswer(t *testing.T) {
	t.Parallel()
	const head = `{"object":"chat.completion.chunk","id":"c","created":7,"model":"m","system_fingerprint":"fp","service_tier":"default","choices":[{"index":0,"delta":`
	for message, want := range map[string][]string{
		`"content":"so","reasoning_content":"hm"`:    {`{"role":"assistant","content":""}`, `{"reasoning_content":"hm"}`, `{"content":"so"}`, `{}`},
		`"content":"so","reasoning":"hm"`:            {`{"role":"assistant","content":""}`, `{"reasoning":"hm"}`, `{"content":"so"}`, `{}`},
		`"content":[{"text":"so"}],"refusal":["no"]`: {`{"role":"assistant","content":[{"text":"so"}],"refusal":["no"]}`, `{}`},
		`"content":null,"refusal":"no"`:              {`{"role":"assistant","content":null}`, `{"refusal":"no"}`, `{}`},
	} {
		chunks, ok := Chunks([]byte(completionOf(choiceOf("0", message, "stop"))), false)
		require.True(t, ok)
		require.Len(t, chunks, len(want))
		for i, delta := range want {
			require.True(t, strings.HasPrefix(string(chunks[i]), head+delta+","), string(chunks[i]))
		}
		body, ok := gathered(chunks, 1)
		if ok {
			require.Equal(t, 1, strings.Count(string(body), `"content":`), string(body))
			require.Equal(t, 1, strings.Count(string(body), `"refusal":`), string(body))
		}
	}
}

func TestAnswersThatCannotChangeTheirShape(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"no choices": completionOf(), "not an object": `[]`, "index": completionOf(choiceOf(`"0"`, `"content":"a"`, "stop")),
		"mixed":    completionOf(choiceOf("0", `"content":"a","content":[1]`, "stop")),
		"tool":     completionOf(choiceOf("0", `"tool_calls":[{"function":{"what":1}}]`, "stop")),
		"logprobs": completionOf(strings.Replace(choiceOf("0", `"content":"a"`, "stop"), `"logprobs":null`, `"logprobs":{"tokens":[1]}`, 1)),
	} {
		_, ok := Chunks([]byte(answer), false)
		require.False(t, ok, name)
	}
	_, ok := Chunks([]byte(strings.Replace(completionOf(choiceOf("0", `"content":"a"`, "stop")), usageText, `"usage":null`, 1)), true)
	require.False(t, ok, "no usage to tell")
}

func TestGathererGivesUp(t *testing.T) {
	t.Parallel()
	const first, last = `{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"a"}}]}`, `{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}`
	_, ok := gathered([][]byte{[]byte(first), []byte(last)}, 1)
	require.True(t, ok)
	for name, chunk := range map[string]string{
		"not JSON": `{`, "an error": `{"error":{"message":"no"}}`, "another id": `{"id":"d","choices":[]}`, "changing member": `{"id":"c","provider":"x","choices":[]}`,
		"audio": `{"choices":[{"index":0,"delta":{"audio":{"data":"x"}}}]}`, "call out of order": `{"choices":[{"index":0,"delta":{"tool_calls":[{"index":3}]}}]}`,
		"choice beyond": `{"choices":[{"index":128,"delta":{}}]}`, "other finish": `{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}`, "choices": `{"choices":{}}`,
	} {
		again := strings.ReplaceAll(strings.ReplaceAll(chunk, `"x"`, `"y"`), `"d"`, `"e"`)
		_, ok := gathered([][]byte{[]byte(first), []byte(chunk), []byte(last), []byte(again)}, 1)
		require.False(t, ok, name)
	}
	_, ok = gathered([][]byte{[]byte(first), []byte(last)}, 2)
	require.False(t, ok, "a choice is missing")
	_, ok = gathered([][]byte{[]byte(first)}, 1)
	require.False(t, ok, "it has no end")
	g := NewGatherer(10)
	g.Add([]byte(first))
	require.True(t, g.Lost(), "it is too large")
	g = NewGatherer(1 << 10)
	g.Add([]byte(first))
	g.Add([]byte(strings.Replace(last, `,"usage":{"prompt_tokens":1}`, "", 1)))
	_, ok = g.Completion(1, false, inference.Usage{Known: true, Estimated: true})
	require.False(t, ok, "nobody said what it cost")
	body, ok := g.Completion(1, false, inference.Usage{Known: true, PromptTokens: 5})
	require.True(t, ok)
	require.Contains(t, string(body), `"prompt_tokens":5`)
}

// Whatever is gathered is JSON, and makes a stream again that says the same.
func FuzzChunks(f *testing.F) {
	f.Add([]byte(completionOf(choiceOf("0", `"content":"h\u00e9\ud83d\ude00","refusal":null`, "stop"))))
	f.Add([]byte(completionOf(choiceOf("0", `"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]`, "tool_calls"))))
	f.Fuzz(func(t *testing.T, answer []byte) {
		if !WholeCompletion(answer, 1, true) {
			return
		}
		chunks, ok := Chunks(answer, true)
		if !ok {
			return
		}
		for _, c := range chunks {
			require.True(t, json.Valid(c), string(c))
		}
		g := NewGatherer(1 << 20)
		for _, c := range chunks {
			g.Add(c)
		}
		if body, ok := g.Completion(1, true, inference.Usage{}); ok {
			require.True(t, Valid(body), string(body))
		}
	})
}

func TestWholeEmbeddings(t *testing.T) {
	t.Parallel()
	const two = `{"data":[{"embedding":[1]},{"embedding":"AAAA"}]}`
	require.True(t, WholeEmbeddings([]byte(two), 2))
	require.False(t, WholeEmbeddings([]byte(two), 3))
	require.False(t, WholeEmbeddings([]byte(`{"data":[{"embedding":[]}]}`), 1))
	require.False(t, WholeEmbeddings([]byte(`{"data":[]}`), 0))
	require.False(t, WholeEmbeddings([]byte(`{"data":`), 1))
}
