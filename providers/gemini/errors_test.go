package gemini_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/gemini"
	"sluice/providers/internal/upstream"
)

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status    int
		body      string
		code      inference.ErrorCode
		retryable bool
		after     time.Duration
		message   string // in it
		hidden    string // not in it
	}{
		"rate limit": {
			429, `{"error":{"code":429,"message":"You exceeded your current quota.","status":"RESOURCE_EXHAUSTED","details":[
				{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{}]},
				{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"7.5s"}]}}`,
			inference.CodeUpstreamRateLimited, true, 7500 * time.Millisecond, "current quota", "",
		},
		"rate limit in a list": {
			429, `[{"error":{"code":429,"message":"Slow down.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"99999999s"}]}}]`,
			inference.CodeUpstreamRateLimited, true, 24 * time.Hour, "Slow down", "",
		},
		"odd delay": {
			429, `{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"@type":"google.rpc.RetryInfo","retryDelay":"-5s"},{"@type":"google.rpc.RetryInfo","retryDelay":"soon"},7]}}`,
			inference.CodeUpstreamRateLimited, true, 0, "", "",
		},
		"key not valid": {
			400, `{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com"}]}}`,
			inference.CodeUpstreamAuth, false, 0, "refused the operator's key", "not valid",
		},
		"billing":           {400, `{"error":{"code":400,"message":"Please enable billing on your project.","status":"FAILED_PRECONDITION"}}`, inference.CodeUpstreamAuth, false, 0, "operator's key", "billing"},
		"location":          {400, `{"error":{"code":400,"message":"User location is not supported for the API use.","status":"FAILED_PRECONDITION"}}`, inference.CodeUpstreamAuth, false, 0, "operator's key", "location"},
		"precondition":      {400, `{"error":{"code":400,"message":"The file is not ready.","status":"FAILED_PRECONDITION"}}`, inference.CodeUpstreamRejected, false, 0, "not ready", ""},
		"permission":        {403, `{"error":{"code":403,"message":"Your project was denied.","status":"PERMISSION_DENIED"}}`, inference.CodeUpstreamAuth, false, 0, "operator's key", "project"},
		"a client's file":   {403, `{"error":{"code":403,"message":"You do not have permission to access the File abc or it may not exist.","status":"PERMISSION_DENIED"}}`, inference.CodeUpstreamRejected, false, 0, "access the File", ""},
		"too long":          {400, `{"error":{"code":400,"message":"The input token count (2551556) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}`, inference.CodeUpstreamRejected, false, 0, "context_length_exceeded: The input token count", ""},
		"invalid":           {400, `{"error":{"code":400,"message":"Unknown name \"x\"","status":"INVALID_ARGUMENT"}}`, inference.CodeUpstreamRejected, false, 0, `Unknown name "x"`, "context_length"},
		"no such model":     {404, `{"error":{"code":404,"message":"models/x is not found","status":"NOT_FOUND"}}`, inference.CodeUpstreamRejected, false, 0, "not found", ""},
		"overloaded":        {503, `{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}`, inference.CodeUpstreamError, true, 0, "overloaded", ""},
		"internal":          {500, `{"error":{"code":500,"message":"oops","status":"INTERNAL"}}`, inference.CodeUpstreamError, true, 0, "oops", ""},
		"deadline":          {504, `{"error":{"code":504,"message":"late","status":"DEADLINE_EXCEEDED"}}`, inference.CodeUpstreamError, true, 0, "late", ""},
		"another's page":    {502, `<html>bad gateway</html>`, inference.CodeUpstreamError, true, 0, "status 502", "html"},
		"another's shape":   {400, `{"error":"no"}`, inference.CodeUpstreamRejected, false, 0, "status 400", ""},
		"another's list":    {400, `[7]`, inference.CodeUpstreamRejected, false, 0, "status 400", ""},
		"in a good answer":  {200, `{"error":{"code":429,"message":"Slow down.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"3s"}]}}`, inference.CodeUpstreamRateLimited, true, 3 * time.Second, "Slow down", ""},
		"key, good answer":  {200, `{"error":{"code":401,"message":"the key key-one is bad","status":"UNAUTHENTICATED"}}`, inference.CodeUpstreamAuth, true, 0, "", "bad"},
		"long, good answer": {200, `{"error":{"code":400,"message":"input token count exceeds the maximum number of tokens allowed","status":"INVALID_ARGUMENT"}}`, inference.CodeUpstreamRejected, false, 0, "context_length_exceeded", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, nil)
			r.up.Handle(func(call *testkit.Call) { call.JSON(c.status, c.body) })
			_, plain := r.Generate(t.Context(), chatCall(""))
			for i, err := range []error{plain, setupLike(t, c.status, c.body).stream(t, chatCall("")).err} {
				e := requireCode(t, err, c.code)
				require.Equal(t, c.retryable, e.Retryable, "call %d", i)
				require.Equal(t, c.after, e.RetryAfter)
				require.Equal(t, c.status, e.Status)
				require.Contains(t, e.Message, c.message)
				require.Nil(t, e.Body, "another shape than OpenAI's does not reach the client")
				if c.hidden != "" {
					require.NotContains(t, e.Message, c.hidden)
				}
			}
		})
	}
}

func setupLike(t *testing.T, status int, body string) *rig {
	t.Helper()
	r := setup(t, nil)
	r.up.Handle(func(call *testkit.Call) { call.JSON(status, body) })
	return r
}

// TestKeys sees that RetryInfo cools one of several keys down and not the provider.
func TestKeys(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *gemini.Options) { o.Keys = []upstream.Key{{Secret: "key-one"}, {Secret: "key-two"}} })
	r.up.Handle(func(c *testkit.Call) {
		c.JSON(http.StatusTooManyRequests, `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"60s"}]}}`)
	})
	_, err := r.Generate(t.Context(), chatCall(""))
	require.Zero(t, requireCode(t, err, inference.CodeUpstreamRateLimited).RetryAfter, "another key may be used at once")
	cooling := 0
	for _, k := range r.Keys() {
		if k.State == providers.KeyCooling {
			require.WithinDuration(t, time.Now().Add(time.Minute), k.Until, 10*time.Second)
			cooling++
		}
	}
	require.Equal(t, 1, cooling)
}
