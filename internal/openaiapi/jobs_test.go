package openaiapi

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestTakeWebhook(t *testing.T) {
	t.Parallel()
	cases := []struct{ name, body, rest, hook string }{
		{"no metadata", `{"model":"m"}`, `{"model":"m"}`, ""},
		{"none in it", `{"metadata":{"a":"webhook"}}`, `{"metadata":{"a":"webhook"}}`, ""},
		{"metadata that is no object", `{"metadata":"webhook"}`, `{"metadata":"webhook"}`, ""},
		{"elsewhere", `{"webhook":{"url":"u"},"user":"x"}`, `{"webhook":{"url":"u"},"user":"x"}`, ""},
		{"an object", `{"model":"m","metadata":{"webhook":{"url":"u"},"a":"b"}}`, `{"model":"m","metadata":{"a":"b"}}`, `{"url":"u"}`},
		{"a string", `{"metadata":{"a":"b","webhook":"{\"url\":\"u\"}"},"model":"m"}`, `{"metadata":{"a":"b"},"model":"m"}`, `{"url":"u"}`},
		{"in the middle", `{"metadata":{"a":"b", "webhook" : "x" , "c":"d"}}`, `{"metadata":{"a":"b", "c":"d"}}`, "x"},
		{"written with an escape", `{"metadata":{"\u0077ebhook":"x","a":"b"}}`, `{"metadata":{"a":"b"}}`, "x"},
		{"nothing else", `{"model":"m", "metadata": { "webhook":"x" } , "n":1}`, `{"model":"m", "n":1}`, "x"},
		{"nothing else, last", "{\"model\":\"m\" ,\n \"metadata\":{\"webhook\":\"x\"} }", `{"model":"m"  }`, "x"},
		{"nothing else at all", `{"metadata":{"webhook":null}}`, `{}`, "null"},
		{"space in front", ` {"metadata":{"webhook":1,"a":"b"}}`, ` {"metadata":{"a":"b"}}`, "1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rest, hook, err := TakeWebhook([]byte(c.body))
			require.NoError(t, err)
			require.Equal(t, c.rest, string(rest))
			require.Equal(t, c.hook, string(hook))
			require.True(t, json.Valid(rest))
		})
	}
	_, _, err := TakeWebhook([]byte(`{"metadata":{"webhook":"x","webhook":"y"}}`))
	require.Equal(t, "metadata.webhook", inference.AsError(err).Param)
}

func TestUnstreamed(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"model":"m"}`:                    `{"model":"m"}`,
		`{"stream":true,"model":"m"}`:      `{"model":"m"}`,
		` {"model":"m", "stream" : true }`: ` {"model":"m" }`,
		`{"model":"m","stream_options":{"include_usage":true},"stream":true,"n":1}`:       `{"model":"m","n":1}`,
		`{"\u0073tream":true,"stream_options":null}`:                                      `{}`,
		`{"messages":[{"stream":true,"stream_options":1}],"stream":true,"user":"stream"}`: `{"messages":[{"stream":true,"stream_options":1}],"user":"stream"}`,
	} {
		require.Equal(t, want, string(Unstreamed([]byte(body))))
	}
}

func TestJobOnTheWire(t *testing.T) {
	t.Parallel()
	at, provider := int64(1_700_000_000), "acme"
	whole, err := json.Marshal(Job{
		ID: "job_a", Object: "job", CreatedAt: at, Status: "completed", Model: "m", Endpoint: EndpointOf(inference.KindEmbeddings),
		Metadata: map[string]string{"a": "b"}, StartedAt: &at, FinishedAt: &at, ExpiresAt: &at, Attempts: 2, Provider: &provider,
		Usage: NewJobUsage(inference.Usage{Known: true, PromptTokens: 3, CompletionTokens: 4, CachedTokens: 1, ReasoningTokens: 2}),
		Response: &JobResponse{
			StatusCode: 200, RequestID: "req_1", Body: json.RawMessage(`{"id":"x"}`),
		},
	})
	require.NoError(t, err)
	require.JSONEq(t, `{
		"id":"job_a","object":"job","created_at":1700000000,"status":"completed","model":"m","endpoint":"/v1/embeddings",
		"metadata":{"a":"b"},"started_at":1700000000,"finished_at":1700000000,"expires_at":1700000000,"attempts":2,"provider":"acme",
		"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,
			"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":{"reasoning_tokens":2}},
		"error":null,"response":{"status_code":200,"request_id":"req_1","body":{"id":"x"}}}`, string(whole))

	fresh, err := json.Marshal(Job{ID: "job_b", Object: "job", Status: "queued", Endpoint: EndpointOf(inference.KindChat)})
	require.NoError(t, err)
	require.JSONEq(t, `{
		"id":"job_b","object":"job","created_at":0,"status":"queued","model":"","endpoint":"/v1/chat/completions","metadata":null,
		"started_at":null,"finished_at":null,"expires_at":null,"attempts":0,"provider":null,"usage":null,"error":null}`, string(fresh))
	require.Nil(t, NewJobUsage(inference.Usage{PromptTokens: 1}), "what nobody knows")

	page, err := json.Marshal(JobList{Data: []Job{{ID: "job_b"}, {ID: "job_a"}}, HasMore: true})
	require.NoError(t, err)
	var got struct {
		Object  string `json:"object"`
		FirstID string `json:"first_id"`
		LastID  string `json:"last_id"`
		HasMore bool   `json:"has_more"`
		Data    []struct{ ID string }
	}
	require.NoError(t, json.Unmarshal(page, &got))
	require.Equal(t, []any{"list", "job_b", "job_a", true, 2}, []any{got.Object, got.FirstID, got.LastID, got.HasMore, len(got.Data)})
	empty, err := json.Marshal(JobList{})
	require.NoError(t, err)
	require.JSONEq(t, `{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}`, string(empty))
}
