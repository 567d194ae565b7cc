package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// speakNative lets one scripted upstream answer in every format that there is an adapter
// for.
func speakNative(c *testkit.Call) {
	switch {
	case strings.HasSuffix(c.Path, "/messages") && strings.Contains(string(c.Body), `"stream":true`):
		c.Stream()
		for _, e := range []string{
			`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x-1","content":[],"usage":{"input_tokens":3,"output_tokens":1}}}`,
			`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
			`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"from "}}`,
			`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"anthropic"}}`,
			`{"type":"content_block_stop","index":0}`,
			`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}`,
			`{"type":"message_stop"}`,
		} {
			c.Chunk(e)
		}
	case strings.HasSuffix(c.Path, "/messages"):
		c.JSON(200, `{"id":"msg_1","type":"message","role":"assistant","model":"claude-x-1","content":[{"type":"text","text":"from anthropic"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":2}}`)
	case strings.HasSuffix(c.Path, ":streamGenerateContent"):
		c.Stream()
		c.Chunk(`{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"from "}]}}],"modelVersion":"gemini-x-1"}`)
		c.Chunk(`{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"gemini"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"totalTokenCount":5},"modelVersion":"gemini-x-1"}`)
	case strings.HasSuffix(c.Path, ":generateContent"):
		c.JSON(200, `{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"from gemini"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"totalTokenCount":5},"modelVersion":"gemini-x-1"}`)
	case strings.HasSuffix(c.Path, "mbedContents"), strings.HasSuffix(c.Path, ":embedContent"):
		c.JSON(200, `{"embedding":{"values":[0.5,0.25]},"embeddings":[{"values":[0.5,0.25]}]}`)
	case strings.HasSuffix(c.Path, "/embed"):
		c.JSON(200, `{"object":"list","model":"own-1","data":[{"object":"embedding","index":0,"embedding":[0.5,0.25]}],"usage":{"prompt_tokens":4,"total_tokens":4}}`)
	default:
		c.Reply("from ", "inhouse")
	}
}

// One client and one request format reach every kind of upstream.
func TestEveryAdapterThroughTheWholePath(t *testing.T) {
	t.Parallel()
	up := testkit.NewUpstream(t)
	up.Handle(speakNative)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sluice.yaml"), []byte(`
auth: {keys: [{name: dev, key: "0123456789abcdef"}]}
providers:
  anthropic: {type: anthropic, base_url: "`+up.URL()+`", api_keys: [{key: key-a}, {key: key-b}], models: ["claude-*"], on_unsupported: drop}
  gemini: {type: gemini, base_url: "`+up.URL()+`", api_key: key-g, models: ["gemini-*", "embed-g"]}
  inhouse:
    type: custom
    base_url: "`+up.URL()+`"
    api_key: key-i
    models: [own]
    model_map: {own: own-1}
    custom: {chat_path: /talk, embeddings_path: /embed, key_header: x-token, key_prefix: ""}
`), 0o600))
	p := start(t, command{dir: dir, env: []string{anyPort}, args: []string{"serve", "--config", "sluice.yaml"}})
	c := newClient(t, p.address(), "0123456789abcdef")

	for model, want := range map[string]string{"claude-x": "from anthropic", "gemini-x": "from gemini", "own": "from inhouse"} {
		answer, err := c.api.Chat.Completions.New(t.Context(), params(model, "hello"))
		require.NoError(t, err, model)
		require.Equal(t, want, answer.Choices[0].Message.Content)
		require.Positive(t, answer.Usage.PromptTokens, model)
		stream := c.api.Chat.Completions.NewStreaming(t.Context(), params(model, "hello"))
		var text strings.Builder
		finished := ""
		for stream.Next() {
			for _, choice := range stream.Current().Choices {
				text.WriteString(choice.Delta.Content)
				finished += choice.FinishReason
			}
		}
		require.NoError(t, stream.Err(), model)
		require.Equal(t, want, text.String())
		require.Equal(t, "stop", finished, model)
	}
	for _, model := range []string{"embed-g", "own"} {
		list, err := c.api.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
			Model: model, Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("hello")},
		})
		require.NoError(t, err, model)
		require.Equal(t, []float64{0.5, 0.25}, list.Data[0].Embedding)
	}

	for _, r := range up.Requests() {
		switch {
		case strings.HasSuffix(r.Path, "/talk"), strings.HasSuffix(r.Path, "/embed"):
			require.Equal(t, "key-i", r.Header.Get("X-Token"))
		case strings.HasSuffix(r.Path, "/messages"):
			require.Contains(t, []string{"key-a", "key-b"}, r.Header.Get("X-Api-Key"))
		default:
			require.Equal(t, "key-g", r.Header.Get("X-Goog-Api-Key"), r.Path)
		}
	}

	seeded := `{"model":"%s","seed":7,"logit_bias":{"1":2},"messages":[{"role":"user","content":"x"}]}`
	resp, err := c.post(t.Context(), strings.Replace(seeded, "%s", "claude-x", 1), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, drop(resp))
	require.Equal(t, "logit_bias, seed", resp.Header.Get("X-Sluice-Dropped-Params"))
	resp, err = c.post(t.Context(), strings.Replace(seeded, "%s", "gemini-x", 1), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, drop(resp), "logit_bias is refused unless the configuration says otherwise")
}
