package gemini_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/gemini"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

// canned answers every call with the same bytes and keeps what was sent.
type canned struct {
	kind, body string
	sent       []byte
}

func (c *canned) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		c.sent, _ = io.ReadAll(r.Body) // it is in memory
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {c.kind}},
		Body: io.NopCloser(strings.NewReader(c.body)), ContentLength: -1,
	}, nil
}

func newCanned(t *testing.T, c *canned, policy chat.Policy) *gemini.Provider {
	t.Helper()
	p, err := gemini.New(gemini.Options{Options: upstream.Options{Transport: c}, OnUnsupported: policy})
	require.NoError(t, err)
	return p
}

func addAnswers(f *testing.F) {
	f.Helper()
	f.Add(fullAnswer)
	f.Add(event("m", "Hello", "STOP", 3))
	f.Add(`{"promptFeedback":{"blockReason":"SAFETY"}}`)
	f.Add(`{"candidates":[{"index":1,"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AA=="}}]},"finishReason":"SAFETY"}]}`)
	f.Add(`[{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED","details":[{"@type":"google.rpc.RetryInfo","retryDelay":"1s"}]}}]`)
	f.Add(`{"embeddings":[{"values":[1,2.5e3,-0]}]}`)
	f.Add("{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\xff\\ud800\"}]}}]}")
}

// FuzzAnswer sees that whatever the upstream answers becomes a valid answer or a classed
// error.
func FuzzAnswer(f *testing.F) {
	addAnswers(f)
	legacy := chatCall(`"functions":[{"name":"f"}]`)
	f.Fuzz(func(t *testing.T, body string) {
		p := newCanned(t, &canned{kind: "application/json", body: body}, "")
		for _, call := range []providers.Call{chatCall(""), legacy} {
			resp, err := p.Generate(t.Context(), call)
			if err != nil {
				require.ErrorAs(t, err, new(*inference.Error))
				continue
			}
			c, err := openaiapi.ParseCompletion(resp.Body)
			require.NoError(t, err, "%s", resp.Body)
			require.False(t, c.Failed)
			require.Equal(t, c.Usage, resp.Usage)
		}
		for _, format := range []string{"float", "base64"} {
			resp, err := p.Generate(t.Context(), embedCall(`"input":"x","encoding_format":"`+format+`"`))
			if err != nil {
				require.ErrorAs(t, err, new(*inference.Error))
				continue
			}
			_, err = openaiapi.ParseEmbeddingList(resp.Body)
			require.NoError(t, err, "%s", resp.Body)
		}
	})
}

// FuzzStream sees the same of events.
func FuzzStream(f *testing.F) {
	addAnswers(f)
	f.Add("x\n\ndata: " + event("m", "Hello", "", 1) + "\n\nevent: error\ndata: {}")
	f.Fuzz(func(t *testing.T, body string) {
		for _, wire := range []string{body, "data: " + body + "\n\ndata: " + event("m", "end", "STOP", 3) + "\n\n"} {
			p := newCanned(t, &canned{kind: "text/event-stream", body: wire}, "")
			call := chatCall("")
			call.IncludeUsage = true
			var seen openaiapi.Choices
			sum, err := p.StreamGenerate(t.Context(), call, func(chunks [][]byte) error {
				require.NotEmpty(t, chunks)
				for _, data := range chunks {
					var c openaiapi.Chunk
					require.NoError(t, openaiapi.ParseChunk(bytes.Clone(data), &c, &seen), "%s", data)
					require.False(t, c.Failed)
				}
				return nil
			})
			if err != nil {
				require.ErrorAs(t, err, new(*inference.Error))
				continue
			}
			require.True(t, seen.Finished())
			require.True(t, sum.Usage.Known)
		}
	})
}

// FuzzRequest sees that whatever is accepted goes out as one JSON object.
func FuzzRequest(f *testing.F) {
	f.Add(`{"model":"m",` + everything + `}`)
	f.Add(`{"model":"m","messages":[{"role":"system","content":"x"}],"thinking":{"type":"disabled"},"seed":1e400}`)
	f.Add(`{"model":"m","input":["a","b"],"dimensions":4}`)
	f.Fuzz(func(t *testing.T, body string) {
		for _, policy := range []chat.Policy{chat.PolicyReject, chat.PolicyDrop} {
			for _, kind := range []inference.Kind{inference.KindChat, inference.KindEmbeddings} {
				c := &canned{kind: "application/json", body: `{"candidates":[{"finishReason":"STOP"}],"embeddings":[{"values":[1]}]}`}
				_, err := newCanned(t, c, policy).Generate(t.Context(), providers.Call{Kind: kind, Model: "m", Body: []byte(body)})
				if err != nil {
					require.ErrorAs(t, err, new(*inference.Error))
				}
				if c.sent != nil {
					require.True(t, openaiapi.Valid(c.sent), "%s", c.sent)
				}
			}
		}
	})
}
