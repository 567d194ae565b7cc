package ingress

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// errorCodes reads the constants of type ErrorCode from their source, so that a new one
// cannot be forgotten in the table.
func errorCodes(t *testing.T) []inference.ErrorCode {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../internal/inference/errors.go", nil, 0)
	require.NoError(t, err)
	var codes []inference.ErrorCode
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "ErrorCode" {
			for _, v := range spec.Values {
				lit, ok := v.(*ast.BasicLit)
				require.True(t, ok)
				code, err := strconv.Unquote(lit.Value)
				require.NoError(t, err)
				codes = append(codes, inference.ErrorCode(code))
			}
		}
		return true
	})
	require.Greater(t, len(codes), 20)
	return codes
}

func TestEveryErrorCodeHasAFace(t *testing.T) {
	t.Parallel()
	codes := errorCodes(t)
	for _, code := range codes {
		f, ok := faces[code]
		require.True(t, ok, "%s has no status", code)
		require.GreaterOrEqual(t, f.status, 400, code)
		require.Less(t, f.status, 600, code)
		require.NotEmpty(t, f.kind, code)
	}
	require.Len(t, faces, len(codes), "a face of no code")
	require.Equal(t, faces[inference.CodeInternal], faceOf("something new"))
}

func TestErrorsAsClientsReadThem(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err        *inference.Error
		status     int
		body       string
		retryAfter string
	}{
		"ours": {
			&inference.Error{Code: inference.CodeInvalidRequest, Message: "No.", Param: "model"}, 400,
			`{"error":{"message":"No.","type":"invalid_request_error","code":"invalid_request","param":"model","details":{"job_id":"j"}}}`, "",
		},
		"the upstream's own": {&inference.Error{Code: inference.CodeUpstreamRejected, Status: 422, Body: []byte(`{"error":{"x":1}}`)}, 422, `{"error":{"x":1}}`, ""},
		"an upstream without a word": {
			&inference.Error{Code: inference.CodeUpstreamRejected, Message: "m", Status: 404}, 404,
			`{"error":{"message":"m","type":"invalid_request_error","code":"upstream_rejected","param":null,"details":{"job_id":"j","upstream_status":404}}}`, "",
		},
		"an odd upstream status": {&inference.Error{Code: inference.CodeUpstreamRejected, Status: 200, Body: []byte(`{}`)}, 400, `{}`, ""},
		"queue full": {
			&inference.Error{Code: inference.CodeQueueFull, Message: "m", RetryAfter: 1500 * time.Millisecond}, 429,
			`{"error":{"message":"m","type":"rate_limit_error","code":"queue_full","param":null,"details":{"job_id":"j"}}}`, "2",
		},
		"unavailable": {
			&inference.Error{Code: inference.CodeQueueUnavailable, Message: "m"}, 503,
			`{"error":{"message":"m","type":"server_error","code":"queue_unavailable","param":null,"details":{"job_id":"j"}}}`, "1",
		},
		"key": {
			&inference.Error{Code: inference.CodeUnauthenticated, Message: "m"}, 401,
			`{"error":{"message":"m","type":"authentication_error","code":"invalid_api_key","param":null,"details":{"job_id":"j"}}}`, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := httptest.NewRecorder()
			writeError(w, c.err, map[string]any{"job_id": "j"})
			require.Equal(t, c.status, w.Code)
			require.JSONEq(t, c.body, w.Body.String())
			require.Equal(t, strconv.Itoa(w.Body.Len()), w.Header().Get("Content-Length"))
			require.Equal(t, c.retryAfter, w.Header().Get("Retry-After"))
			require.Equal(t, c.status == 401, w.Header().Get("Www-Authenticate") != "")
		})
	}
}

func TestErrorJSONWithoutDetails(t *testing.T) {
	t.Parallel()
	require.True(t, json.Valid(errorJSON(&inference.Error{Code: inference.CodeUpstreamError, Status: 500}, nil)))
}

func TestDurationHeader(t *testing.T) {
	t.Parallel()
	const timeout, window = "X-Sluice-Timeout", "X-Sluice-Resume-Window"
	const fallback, most = 30 * time.Second, time.Minute
	for _, c := range []struct {
		name, value string
		want        time.Duration // negative: refused
	}{
		{timeout, "", fallback},
		{timeout, "5s", 5 * time.Second},
		{timeout, "250ms", 250 * time.Millisecond},
		{timeout, "5", 5 * time.Second},
		{timeout, "0.5", 500 * time.Millisecond},
		{timeout, "10m", most},
		{timeout, "1e9", most},
		{timeout, "0", -1},
		{timeout, "0s", -1},
		{timeout, "-5s", -1},
		{timeout, "-5", -1},
		{timeout, "NaN", -1},
		{timeout, "Inf", -1},
		{timeout, "1e300", -1},
		{timeout, "99999999999h", -1},
		{timeout, "soon", -1},
		{window, "0s", 0},
		{window, "0", 0},
		{window, "2m", most},
		{window, "-1s", -1},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.Header.Set(c.name, c.value)
			d, err := durationHeader(r, c.name, fallback, most)
			if c.want < 0 {
				e := inference.AsError(err)
				require.Equal(t, inference.CodeInvalidRequest, e.Code)
				require.Equal(t, c.name, e.Param)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, d)
		})
	}
}

func TestTraceParentIsPassedOnOnlyIfItIsOne(t *testing.T) {
	t.Parallel()
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for value, want := range map[string]string{
		good: good, "": "", good + "0": "", good[1:]: "", strings.ToUpper(good): "", strings.Replace(good, "a", "\n", 1): "",
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header["Traceparent"] = []string{value}
		require.Equal(t, want, traceParent(r), value)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{
		"a": true, "req_1-2.3:4": true, strings.Repeat("x", maxRequestID): true, newRequestID(): true,
		"": false, strings.Repeat("x", maxRequestID+1): false, "a b": false, "a\n": false, "ü": false, `"`: false, "a/b": false,
	} {
		require.Equal(t, want, saneRequestID(id), "%q", id)
	}
	first := newRequestID()
	require.NotEqual(t, first, newRequestID())
}

func FuzzParseEventID(f *testing.F) {
	for _, s := range []string{"0-1-1", "2147483647-2147483647-9223372036854775807", "", "-", "--", "0-1", "0-1-1-1", "-1-1-1", "+1-1-1", "0-1-99999999999999999999", "0-1-1 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := parseEventID(s)
		if !ok {
			return
		}
		if id.run.Epoch < 0 || id.run.Delivery < 0 || id.seq+1 == 0 {
			t.Fatalf("%q became %+v", s, id)
		}
		again, ok := parseEventID(string(appendEventID(nil, id)))
		if !ok || again != id {
			t.Fatalf("round trip of %q: %+v, %+v", s, id, again)
		}
	})
}

func TestParseEventID(t *testing.T) {
	t.Parallel()
	id, ok := parseEventID("3-4-5")
	require.True(t, ok)
	require.Equal(t, eventID{queue.Run{Epoch: 3, Delivery: 4}, 5}, id)
	for _, bad := range []string{"", "3", "3-4", "3-4-5-6", "-3-4-5", "a-b-c", "3-4-", "2147483648-1-1", "1-1-9223372036854775808", strings.Repeat("0", 70) + "-1-1"} {
		_, ok := parseEventID(bad)
		require.False(t, ok, bad)
	}
}
