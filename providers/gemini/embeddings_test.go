package gemini_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/testkit"
	"sluice/providers"
)

func embedCall(fields string) providers.Call {
	return providers.Call{Kind: inference.KindEmbeddings, Model: "gemini-embedding-001", RequestID: "req-1", Body: []byte(` {"model":"served",` + fields + `}`)}
}

func TestEmbeddings(t *testing.T) {
	t.Parallel()
	const vectors = `{"embeddings":[{"values":[0.5, -1, 1e-3]},{"values":[2]}]}`
	const one = `{"embeddings":[{"values":[0.5,-1]}],"usageMetadata":{"promptTokenCount":9}}`
	for name, c := range map[string]struct {
		fields, native, sent, data string
		usage                      inference.Usage
	}{
		"strings": {
			`"input":["Hello \"you\"","x"],"encoding_format":"float","user":"u"`, vectors,
			`{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"Hello \"you\""}]}},{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"x"}]}}]}`,
			`[{"object":"embedding","index":0,"embedding":[0.5,-1,1e-3]},{"object":"embedding","index":1,"embedding":[2]}]`,
			inference.Usage{PromptTokens: 4, Known: true, Estimated: true},
		},
		"string, dimensions": {
			`"input":"x","dimensions":2`, one,
			`{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"x"}]},"outputDimensionality":2}]}`,
			`[{"object":"embedding","index":0,"embedding":[0.5,-1]}]`,
			inference.Usage{PromptTokens: 9, Known: true},
		},
		"base64": {
			`"input":["x"],"encoding_format":"base64"`, one,
			`{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"x"}]}}]}`,
			`[{"object":"embedding","index":0,"embedding":"AAAAPwAAgL8="}]`, // 0.5 is 3f000000, -1 is bf800000
			inference.Usage{PromptTokens: 9, Known: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, nil)
			r.answers(c.native)
			resp, err := r.Generate(t.Context(), embedCall(c.fields))
			require.NoError(t, err)
			require.Equal(t, c.sent, string(r.up.Last().Body))
			require.Equal(t, "/v1beta/models/gemini-embedding-001:batchEmbedContents", r.up.Last().Path)
			require.Equal(t, fmt.Sprintf(`{"object":"list","data":%s,"model":"gemini-embedding-001","usage":{"prompt_tokens":%d,"total_tokens":%[2]d}}`, c.data, c.usage.PromptTokens), string(resp.Body))
			require.Equal(t, c.usage, resp.Usage)
			require.Equal(t, "gemini-embedding-001", resp.Model)
			_, err = openaiapi.ParseEmbeddingList(resp.Body)
			require.NoError(t, err)
		})
	}
}

// TestManyEmbeddings asks for more than the upstream takes at once.
func TestManyEmbeddings(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	var sizes []int
	r.up.Handle(func(c *testkit.Call) {
		var body struct {
			Requests []struct {
				Content struct{ Parts []struct{ Text string } }
			}
		}
		_ = json.Unmarshal(c.Body, &body)
		var vectors []string
		for _, q := range body.Requests {
			vectors = append(vectors, `{"values":[`+q.Content.Parts[0].Text+`]}`)
		}
		sizes = append(sizes, len(vectors))
		c.JSON(http.StatusOK, `{"embeddings":[`+strings.Join(vectors, ",")+`],"usageMetadata":{"promptTokenCount":10}}`)
	})
	var texts []string
	for i := range 205 {
		texts = append(texts, fmt.Sprintf(`"%d"`, i))
	}
	resp, err := r.Generate(t.Context(), embedCall(`"input":[`+strings.Join(texts, ",")+`]`))
	require.NoError(t, err)
	require.Equal(t, []int{100, 100, 5}, sizes)
	require.Equal(t, inference.Usage{PromptTokens: 30, Known: true}, resp.Usage)
	var got struct {
		Data []struct {
			Index     int
			Embedding []int
		}
	}
	require.NoError(t, json.Unmarshal(resp.Body, &got))
	require.Len(t, got.Data, 205)
	for i, d := range got.Data {
		require.Equal(t, i, d.Index)
		require.Equal(t, []int{i}, d.Embedding)
	}
}

func TestEmbeddingFaults(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	for fields, param := range map[string]string{
		`"input":[1,2]`:                  "input",
		`"input":[[1,2],[3]]`:            "input",
		`"input":"x","dimensions":99999`: "dimensions",
		`"input":"x","task_type":"y"`:    "task_type",
		`"input":""`:                     "input",
	} {
		_, err := r.Generate(t.Context(), embedCall(fields))
		require.Equal(t, param, requireCode(t, err, inference.CodeInvalidRequest).Param)
	}
	_, err := r.StreamGenerate(t.Context(), embedCall(`"input":"x"`), nil)
	requireCode(t, err, inference.CodeInvalidRequest)
	require.Zero(t, r.up.Count())

	for _, body := range []string{
		``, `[]`, `{}`, `{"embeddings":[]}`, `{"embeddings":[{"values":[1]},{"values":[1]}]}`, `{"embeddings":[{}]}`,
		`{"embeddings":[{"values":[]}]}`, `{"embeddings":[{"values":["1"]}]}`, `{"embeddings":[{"values":[1,null]}]}`,
	} {
		r.answers(body)
		_, err := r.Generate(t.Context(), embedCall(`"input":"x"`))
		requireCode(t, err, inference.CodeUpstreamInvalid)
	}
	r.answers(`{"error":{"status":"UNAVAILABLE"}}`)
	_, err = r.Generate(t.Context(), embedCall(`"input":"x"`))
	requireCode(t, err, inference.CodeUpstreamError)

	lenient := setup(t, drop)
	lenient.answers(`{"embeddings":[{"values":[1]}]}`)
	var dropped []string
	call := embedCall(`"input":"x","task_type":"y","title":null`)
	call.Dropped = func(names []string) { dropped = names }
	_, err = lenient.Generate(t.Context(), call)
	require.NoError(t, err)
	require.Equal(t, []string{"task_type"}, dropped)
}
