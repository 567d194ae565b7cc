package openaiapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

func TestUsageOf(t *testing.T) {
	t.Parallel()
	known := func(p, c, cached, reasoning int64) inference.Usage {
		return inference.Usage{PromptTokens: p, CompletionTokens: c, CachedTokens: cached, ReasoningTokens: reasoning, Known: true}
	}
	cases := map[string]struct {
		usage string
		want  inference.Usage
	}{
		"full":          {`{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":8}}`, known(10, 20, 4, 8)},
		"null details":  {`{"prompt_tokens":10,"completion_tokens":20,"prompt_tokens_details":null,"completion_tokens_details":{"reasoning_tokens":null}}`, known(10, 20, 0, 0)},
		"prompt alone":  {`{"prompt_tokens":10}`, known(10, 0, 0, 0)},
		"as float":      {`{"prompt_tokens":10.0,"completion_tokens":1e2}`, known(10, 100, 0, 0)},
		"cached beyond": {`{"prompt_tokens":10,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":99}}`, known(10, 1, 10, 0)},
		"null":          {`null`, inference.Usage{}},
		"empty":         {`{}`, inference.Usage{}},
		"text":          {`"many"`, inference.Usage{}},
		"negative":      {`{"prompt_tokens":-1,"completion_tokens":5}`, inference.Usage{}},
		"huge":          {`{"prompt_tokens":5,"completion_tokens":99999999999999999999999}`, inference.Usage{}},
		"overflowing":   {`{"prompt_tokens":1e999,"completion_tokens":5}`, inference.Usage{}},
		"fraction":      {`{"prompt_tokens":1.5,"completion_tokens":5}`, inference.Usage{}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			usage, model := openaiapi.UsageOf([]byte(` {"usage":` + c.usage + `,"model":"m-1"}`))
			require.Equal(t, c.want, usage)
			require.Equal(t, "m-1", model)
		})
	}
}

func TestParseCompletion(t *testing.T) {
	t.Parallel()
	c, err := openaiapi.ParseCompletion([]byte(`{"model":"m","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}`))
	require.NoError(t, err)
	require.Equal(t, openaiapi.Completion{Model: "m", Usage: inference.Usage{PromptTokens: 1, CompletionTokens: 2, Known: true}}, c)

	c, err = openaiapi.ParseCompletion([]byte(`{"error":{"message":"no"}}`))
	require.NoError(t, err)
	require.True(t, c.Failed)

	_, err = openaiapi.ParseCompletion([]byte(`{"choices":[`))
	require.ErrorIs(t, err, openaiapi.ErrNotJSON)
	for _, body := range []string{`[]`, `{}`, `{"choices":null}`, `{"error":null}`} {
		_, err = openaiapi.ParseCompletion([]byte(body))
		require.ErrorIs(t, err, openaiapi.ErrNotAnswer, body)
	}
}

func TestParseChunk(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		data     string
		want     openaiapi.Chunk
		finished bool
	}{
		"role":          {`{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`, openaiapi.Chunk{}, false},
		"content":       {`{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}`, openaiapi.Chunk{Content: 1}, false},
		"two choices":   {`{"choices":[{"index":0,"delta":{"content":"x"}},{"index":1,"delta":{"reasoning_content":"y"}}]}`, openaiapi.Chunk{Content: 2}, false},
		"tool call":     {`{"choices":[{"index":0,"delta":{"content":null,"tool_calls":[{"index":0}]}}]}`, openaiapi.Chunk{Content: 1}, false},
		"finish":        {`{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`, openaiapi.Chunk{}, true},
		"half finished": {`{"choices":[{"index":0,"delta":{},"finish_reason":"stop"},{"index":1,"delta":{}}]}`, openaiapi.Chunk{}, false},
		"usage":         {`{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}`, openaiapi.Chunk{UsageOnly: true, Usage: inference.Usage{PromptTokens: 1, CompletionTokens: 2, Known: true}}, false},
		"filter":        {`{"choices":[],"prompt_filter_results":[]}`, openaiapi.Chunk{}, false},
		"error":         {`{"error":{"message":"no"}}`, openaiapi.Chunk{Failed: true}, false},
		"no error":      {`{"error":null,"choices":[]}`, openaiapi.Chunk{}, false},
		"wild index":    {`{"choices":[{"index":1e9,"delta":{},"finish_reason":"stop"}]}`, openaiapi.Chunk{}, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var chunk openaiapi.Chunk
			var seen openaiapi.Choices
			require.NoError(t, openaiapi.ParseChunk([]byte(c.data), &chunk, &seen))
			require.Equal(t, c.want, chunk)
			require.Equal(t, c.finished, seen.Finished())
		})
	}
	var chunk openaiapi.Chunk
	var seen openaiapi.Choices
	require.ErrorIs(t, openaiapi.ParseChunk([]byte(`{"choices":`), &chunk, &seen), openaiapi.ErrNotJSON)
	require.ErrorIs(t, openaiapi.ParseChunk(nil, &chunk, &seen), openaiapi.ErrNotJSON)
	require.ErrorIs(t, openaiapi.ParseChunk([]byte(`"x"`), &chunk, &seen), openaiapi.ErrNotAnswer)
}

func TestDropNullUsage(t *testing.T) {
	t.Parallel()
	cases := map[string]struct{ data, want string }{
		"last":     {`{"a":1,"usage":null}`, `{"a":1}`},
		"spaced":   {`{"a":1 , "usage" : null }`, `{"a":1  }`},
		"middle":   {`{"a":1,"usage":null,"b":"x"}`, `{"a":1,"b":"x"}`},
		"first":    {`{"usage":null, "b":2}`, `{"b":2}`},
		"alone":    {`{ "usage":null }`, `{ }`},
		"none":     {`{"b":{"usage":null}}`, `{"b":{"usage":null}}`},
		"not null": {`{"usage":{}}`, `{"usage":{}}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var chunk openaiapi.Chunk
			var seen openaiapi.Choices
			data := []byte(c.data)
			require.NoError(t, openaiapi.ParseChunk(data, &chunk, &seen))
			require.Equal(t, c.want, string(chunk.DropNullUsage(data)))
		})
	}
}

func TestChunkModelName(t *testing.T) {
	t.Parallel()
	var chunk openaiapi.Chunk
	var seen openaiapi.Choices
	require.NoError(t, openaiapi.ParseChunk([]byte(`{"model":"m-2"}`), &chunk, &seen))
	require.Equal(t, "m-2", chunk.ModelName(""))
	require.Equal(t, "m-2", chunk.ModelName("m-1"))
	require.NoError(t, openaiapi.ParseChunk([]byte(`{"model":""}`), &chunk, &seen))
	require.Equal(t, "m-1", chunk.ModelName("m-1"))
}

func TestEstimatePromptTokens(t *testing.T) {
	t.Parallel()
	require.EqualValues(t, 3, openaiapi.EstimatePromptTokens([]byte(`{"messages":[{"role":"u","content":"12345678"}]}`)))
	require.EqualValues(t, 2, openaiapi.EstimatePromptTokens([]byte(`{"messages":[{"content":[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"`+strings.Repeat("x", 1000)+`"}}]}]}`)))
	require.Zero(t, openaiapi.EstimatePromptTokens([]byte(`{}`)))
}

func TestAppendError(t *testing.T) {
	t.Parallel()
	full := openaiapi.AppendError([]byte("x"), openaiapi.ErrorBody{Message: `a "b"`, Type: "t", Code: "c", Param: "p", Details: map[string]any{"z": 1, "a": "<"}})
	require.Equal(t, `x{"error":{"message":"a \"b\"","type":"t","code":"c","param":"p","details":{"a":"<","z":1}}}`, string(full))
	bare := openaiapi.AppendError(nil, openaiapi.ErrorBody{Message: "m", Type: "t", Code: "c", Details: map[string]any{"f": func() {}}})
	require.Equal(t, `{"error":{"message":"m","type":"t","code":"c","param":null,"details":{}}}`, string(bare))
}

func TestParseError(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		body                      string
		message, typ, code, param string
	}{
		"openai":       {`{"error":{"message":"m","type":"t","code":"c","param":"p"}}`, "m", "t", "c", "p"},
		"number code":  {`{"error":{"code":429,"message":"m","status":"X"}}`, "m", "", "429", ""},
		"nulls":        {`{"error":{"message":"m","type":null,"code":null,"param":null}}`, "m", "", "", ""},
		"text":         {`{"error":"m"}`, "m", "", "", ""},
		"top level":    {`{"object":"error","message":"m","type":"t","code":400}`, "m", "t", "400", ""},
		"list":         {`[{"error":{"message":"m"}}]`, "m", "", "", ""},
		"detail":       {`{"detail":"m"}`, "m", "", "", ""},
		"detail list":  {`{"detail":[{"loc":["body","messages",0,"role"],"msg":"m"}]}`, "m", "", "", "messages[0].role"},
		"not JSON":     {`<html>`, "", "", "", ""},
		"no message":   {`{"error":{"message":"","type":"t","code":"c","param":"p"}}`, "", "t", "c", "p"},
		"says nothing": {`{"error":{}}`, "", "", "", ""},
		"empty":        {``, "", "", "", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			message, typ, code, param, ok := openaiapi.ParseError([]byte(c.body))
			require.Equal(t, []string{c.message, c.typ, c.code, c.param}, []string{message, typ, code, param})
			require.Equal(t, c.message != "", ok)
		})
	}
	message, _, _, _, _ := openaiapi.ParseError([]byte(`{"error":"` + strings.Repeat("é", 5000) + `"}`))
	require.Equal(t, strings.Repeat("é", 1024), message, "cut at a rune's border")
}

func TestModels(t *testing.T) {
	t.Parallel()
	got, err := json.Marshal(openaiapi.ModelList{Data: []openaiapi.Model{{ID: "m", Created: 7, OwnedBy: "o"}}})
	require.NoError(t, err)
	require.Equal(t, `{"object":"list","data":[{"id":"m","object":"model","created":7,"owned_by":"o"}]}`, string(got))
	empty, err := json.Marshal(openaiapi.ModelList{})
	require.NoError(t, err)
	require.Equal(t, `{"object":"list","data":[]}`, string(empty))

	ids, ok := openaiapi.ParseModelIDs(got, 10)
	require.True(t, ok)
	require.Equal(t, []string{"m"}, ids)
	ids, ok = openaiapi.ParseModelIDs([]byte(`{"data":[{"id":"a"},{"id":3},{},{"id":""},{"id":"b"},{"id":"c"}]}`), 2)
	require.True(t, ok)
	require.Equal(t, []string{"a", "b"}, ids)
	_, ok = openaiapi.ParseModelIDs([]byte(`{"data":null}`), 2)
	require.False(t, ok)
}

func BenchmarkParseChunk(b *testing.B) {
	data := []byte(`{"id":"chatcmpl-123456789012345678901234","object":"chat.completion.chunk","created":1700000000,"model":"gpt-4o-mini-2024-07-18","system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":null}`)
	var chunk openaiapi.Chunk
	var seen openaiapi.Choices
	model := ""
	b.ReportAllocs()
	for b.Loop() {
		if err := openaiapi.ParseChunk(data, &chunk, &seen); err != nil {
			b.Fatal(err)
		}
		model = chunk.ModelName(model)
	}
}
