package upstream

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body string
		want inference.Refusal
	}{
		"OpenAI, too long":   {`{"error":{"message":"No.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`, inference.RefusalContext},
		"llama.cpp":          {`{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error","n_ctx":4096}}`, inference.RefusalContext},
		"vLLM":               {`{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.","type":"BadRequestError","param":null,"code":400}`, inference.RefusalContext},
		"Ollama":             {`{"error":"the input length exceeds the context length"}`, inference.RefusalContext},
		"others":             {`{"error":{"message":"Prompt is too long"}}`, inference.RefusalContext},
		"OpenAI, policy":     {`{"error":{"message":"Your request was rejected.","code":"content_policy_violation"}}`, inference.RefusalContent},
		"OpenAI, flagged":    {`{"error":{"message":"Invalid prompt: your prompt was flagged as potentially violating our usage policy.","code":"invalid_prompt"}}`, inference.RefusalContent},
		"a prompt that errs": {`{"error":{"message":"Invalid prompt: no such template.","code":"invalid_prompt"}}`, ""},
		"Azure":              {`{"error":{"message":"The response was filtered.","type":null,"param":"prompt","code":"content_filter","status":400}}`, inference.RefusalContent},
		"Azure, inner":       {`{"error":{"message":"The response was filtered.","code":"400","innererror":{"code":"ResponsibleAIPolicyViolation"}}}`, inference.RefusalContent},
		"another fault":      {`{"error":{"message":"temperature is too high","type":"invalid_request_error","code":"invalid_value"}}`, ""},
		"no JSON":            {`maximum context length`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := testkit.NewUpstream(t)
			c2, err := New(Options{Name: "acme", BaseURL: up.URL(), PassErrors: true})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, c2.Close()) })
			for _, status := range []int{400, 500} {
				up.Handle(func(call *testkit.Call) { call.JSON(status, c.body) })
				_, err := call(t, c2, up)
				e := inference.AsError(err)
				require.Equal(t, status, e.Status)
				if status == 500 {
					require.Equal(t, inference.CodeUpstreamError, e.Code, "the status says whose fault it is")
					require.Empty(t, e.Refusal)
					continue
				}
				require.Equal(t, inference.CodeUpstreamRejected, e.Code)
				require.Equal(t, c.want, e.Refusal)
				if name != "no JSON" {
					require.Equal(t, c.body, string(e.Body), "the client sees it as it came")
				}
			}
			up.Handle(func(call *testkit.Call) { call.JSON(200, "{}") })
			resp, err := c2.Do(t.Context(), Request{URL: c2.At("x")})
			require.NoError(t, err)
			t.Cleanup(resp.Close)
			e := inference.AsError(resp.Complained(resp.Explain([]byte(c.body))))
			require.Equal(t, c.want, e.Refusal)
			require.Equal(t, c.want != "", e.Code == inference.CodeUpstreamRejected, "in the middle of a stream the words alone tell")
			require.False(t, c.want != "" && e.Retryable)
		})
	}
}
