package gemini_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/gemini"
)

func TestCapabilities(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	r.up.Handle(func(c *testkit.Call) {
		switch c.Query {
		case "pageSize=1000":
			c.JSON(http.StatusOK, `{"models":[
				{"name":"models/gemini-a","inputTokenLimit":1048576,"outputTokenLimit":8192,"supportedGenerationMethods":["generateContent","countTokens"]},
				{"name":"models/embed","inputTokenLimit":9999999,"outputTokenLimit":1,"supportedGenerationMethods":["embedContent"]},
				{"name":"models/gemini-c","inputTokenLimit":1048576,"outputTokenLimit":8192,"supportedGenerationMethods":["generateContent"]},
				{"name":"models/draw","supportedGenerationMethods":["predict"]},{"name":"","supportedGenerationMethods":["generateContent"]},7],"nextPageToken":"a b"}`)
		case "pageSize=1000&pageToken=a+b":
			c.JSON(http.StatusOK, `{"models":[{"name":"models/gemini-b","inputTokenLimit":"x","outputTokenLimit":65536,"supportedGenerationMethods":["generateContent"]}]}`)
		}
	})
	caps, err := r.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, providers.Capabilities{
		Traits: inference.Traits{Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true, Embeddings: true},
		Special: []inference.ModelTraits{
			{Models: []string{"gemini-a", "gemini-c"}, Traits: inference.Traits{
				Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true, ContextTokens: 1048576, OutputTokens: 8192,
			}},
			{Models: []string{"embed"}, Traits: inference.Traits{Embeddings: true}},
			{Models: []string{"gemini-b"}, Traits: inference.Traits{
				Chat: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true, OutputTokens: 65536,
			}},
		},
		Models: []string{"gemini-a", "embed", "gemini-c", "gemini-b"},
	}, caps)
	require.Equal(t, "/v1beta/models", r.up.Last().Path)
	require.Equal(t, http.MethodGet, r.up.Last().Method)
	require.Equal(t, "key-one", r.up.Last().Header.Get("X-Goog-Api-Key"))
}

func TestCapabilitiesFaults(t *testing.T) {
	t.Parallel()
	r := setup(t, nil)
	for body, code := range map[string]inference.ErrorCode{
		`{}`: inference.CodeUpstreamInvalid, `{`: inference.CodeUpstreamInvalid, `{"models":{}}`: inference.CodeUpstreamInvalid,
		`{"error":{"status":"INTERNAL"}}`: inference.CodeUpstreamError,
	} {
		r.answers(body)
		_, err := r.Capabilities(t.Context())
		requireCode(t, err, code)
	}
	before := r.up.Count()
	r.answers(`{"models":[],"nextPageToken":"for ever"}`)
	_, err := r.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, before+20, r.up.Count(), "a list without end is left at some point")

	told := setup(t, func(o *gemini.Options) { o.Models = []string{"gemini-*"} })
	caps, err := told.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"gemini-*"}, caps.Models)
	embeds := inference.Traits{Embeddings: true}
	require.Equal(t, []inference.ModelTraits{{Models: []string{"gemini-embedding*", "text-embedding-*", "embedding-*"}, Traits: embeds}}, caps.Special)
	named := setup(t, func(o *gemini.Options) {
		o.Models = []string{"gemini-2.5-flash", "text-embedding-004", "vectors", "embedding-chat"}
		o.ModelMap = map[string]string{"vectors": "models/gemini-embedding-001", "embedding-chat": "gemini-2.5-flash"}
	})
	caps, err = named.Capabilities(t.Context())
	require.NoError(t, err)
	require.Equal(t, []inference.ModelTraits{{Models: []string{"text-embedding-004", "vectors"}, Traits: embeds}}, caps.Special)
	require.Zero(t, told.up.Count())
}

func TestNew(t *testing.T) {
	t.Parallel()
	p, err := gemini.New(gemini.Options{})
	require.NoError(t, err, "the public service needs no address")
	require.NoError(t, p.Close())
	opts := gemini.Options{}
	opts.BaseURL = "ftp://example.com"
	_, err = gemini.New(opts)
	require.Error(t, err)
}
