package adminapi_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/routing"
)

// Every member of the request reaches the question.
func TestQuestion(t *testing.T) {
	t.Parallel()
	var r adminapi.ExplainRequest
	require.NoError(t, json.Unmarshal([]byte(`{"model":"m","endpoint":"embeddings","tenant":"t","key":"k","headers":{"x-session":"s"},"metadata":{"a":"b"},
		"user":"u","stream":true,"tools":true,"images":true,"structured_output":true,"prompt_tokens":7,"output_tokens":8}`), &r))
	q := r.Question()
	require.Equal(t, "s", q.Header("X-Session"), "a header has no case")
	require.Empty(t, q.Header("x-other"))
	q.Header = nil
	require.Equal(t, routing.Request{
		Model: "m", Kind: inference.KindEmbeddings, Tenant: "t", KeyID: "k", KeyName: "k", Metadata: map[string]string{"a": "b"}, User: "u",
		Stream: true, Tools: true, Images: true, StructuredOutput: true, PromptTokens: 7, OutputTokens: 8,
	}, q)
	require.Equal(t, inference.KindChat, adminapi.ExplainRequest{}.Question().Kind, "chat is what is asked for most")
}

func TestExplained(t *testing.T) {
	t.Parallel()
	a := adminapi.Explained(routing.Decision{
		Model: "m", Rule: "r", Lacking: []string{"images"}, Why: []string{"first", "second"},
		Candidates: []inference.Candidate{{Provider: "a", Model: "m"}, {Provider: "b", Model: "n", On: inference.ReasonTimeout | inference.ReasonRateLimited}},
		Excluded:   []routing.Exclusion{{Candidate: inference.Candidate{Provider: "c", Model: "m"}, Why: "gone"}},
	})
	text, err := json.Marshal(a)
	require.NoError(t, err)
	require.JSONEq(t, `{"model":"m","rule":"r","candidates":[{"provider":"a","model":"m","why":"first"},{"provider":"b","model":"n","on":["rate_limited","timeout"],"why":"second"}],
		"excluded":[{"provider":"c","model":"m","why":"gone"}],"lacking":["images"]}`, string(text))
	text, err = json.Marshal(adminapi.Explained(routing.Decision{Model: "m"}))
	require.NoError(t, err)
	require.JSONEq(t, `{"model":"m","candidates":[],"excluded":[]}`, string(text), "lists are there when they are empty")
}
