package openaiapi_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

func TestParseEmbeddings(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]struct{ n, tokens int }{
		`"a"`: {1, 1}, `"abcdefghi"`: {1, 3}, `["abcd","efgh"]`: {2, 2}, `[1,2,3]`: {1, 3}, `[[1,2],[3]]`: {2, 3},
		`["` + strings.Repeat(`a","`, openaiapi.MaxInputs-1) + `a"]`: {openaiapi.MaxInputs, openaiapi.MaxInputs / 4},
	} {
		r, err := openaiapi.ParseEmbeddings([]byte(`{"model":"m","dimensions":3,"encoding_format":"base64","x":1,"input":` + input + `}`))
		require.NoError(t, err, input)
		require.Equal(t, openaiapi.EmbeddingsRequest{Features: of("m", want.tokens), Inputs: want.n}, r)
	}
	r, err := openaiapi.ParseEmbeddings([]byte(`{"model":"m","input":"a","user":"u","metadata":{"k":"v"}}`))
	require.NoError(t, err)
	require.Equal(t, "u", r.User)
	require.Equal(t, map[string]string{"k": "v"}, r.Metadata)
	for body, param := range map[string]string{
		`{"input":"a"}`:                                     "model",
		`{"model":"m"}`:                                     "input",
		`{"model":"m","input":null}`:                        "input",
		`{"model":"m","input":""}`:                          "input",
		`{"model":"m","input":[]}`:                          "input",
		`{"model":"m","input":{}}`:                          "input",
		`{"model":"m","input":["a",1]}`:                     "input[1]",
		`{"model":"m","input":["a",""]}`:                    "input[1]",
		`{"model":"m","input":[1,-1]}`:                      "input[1]",
		`{"model":"m","input":[1,1.5]}`:                     "input[1]",
		`{"model":"m","input":[[1],[]]}`:                    "input[1]",
		`{"model":"m","input":[[1],["a"]]}`:                 "input[1]",
		`{"model":"m","input":[null]}`:                      "input[0]",
		`{"model":"m","input":"a","input":"b"}`:             "input",
		`{"model":"m","input":"a","dimensions":0}`:          "dimensions",
		`{"model":"m","input":"a","dimensions":"3"}`:        "dimensions",
		`{"model":"m","input":"a","encoding_format":"hex"}`: "encoding_format",
		`[]`: "",
		`{"model":"m","input":[` + strings.Repeat(`"a",`, openaiapi.MaxInputs) + `"a"]}`: "input",
	} {
		_, err := openaiapi.ParseEmbeddings([]byte(body))
		require.Error(t, err, body)
		e := inference.AsError(err)
		require.Equal(t, inference.CodeInvalidRequest, e.Code, body)
		require.Equal(t, param, e.Param, body)
	}
	_, err = openaiapi.ParseEmbeddings([]byte(`{`))
	require.Equal(t, inference.CodeInvalidJSON, inference.AsError(err).Code)
}

func TestParseEmbeddingList(t *testing.T) {
	t.Parallel()
	c, err := openaiapi.ParseEmbeddingList([]byte(`{"data":[],"model":"m","usage":{"prompt_tokens":5,"total_tokens":5}}`))
	require.NoError(t, err)
	require.Equal(t, openaiapi.Completion{Model: "m", Usage: inference.Usage{PromptTokens: 5, Known: true}}, c)
	c, err = openaiapi.ParseEmbeddingList([]byte(`{"error":{}}`))
	require.NoError(t, err)
	require.True(t, c.Failed)
	for _, bad := range []string{`{}`, `[]`, `"a"`, `{"data":{}}`} {
		_, err = openaiapi.ParseEmbeddingList([]byte(bad))
		require.ErrorIs(t, err, openaiapi.ErrNotEmbeddings, bad)
	}
	_, err = openaiapi.ParseEmbeddingList([]byte(`{`))
	require.ErrorIs(t, err, openaiapi.ErrNotJSON)
}

func FuzzParseEmbeddings(f *testing.F) {
	for _, s := range []string{`{"model":"m","input":["a",[1]]}`, `{"model":"m","input":[[1,2],[3]],"dimensions":1}`, `{"model":"m","input":[1e0]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := openaiapi.ParseEmbeddings(body)
		if err == nil && (r.Model == "" || r.Inputs < 1 || r.PromptTokens < 1 || r.Inputs > openaiapi.MaxInputs) {
			t.Fatalf("%+v", r)
		}
		_, _ = openaiapi.ParseEmbeddingList(body)
	})
}
