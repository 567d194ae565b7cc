package ingress

import (
	"encoding/json"
	"fmt"
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
	"sluice/store"
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

func presence(worker string, providers ...queue.ProviderPresence) queue.Presence {
	return queue.Presence{Worker: worker, Providers: providers}
}

func TestDirectoryKnowsConfiguredAndAnnouncedProviders(t *testing.T) {
	t.Parallel()
	added := 0
	d := newDirectory(map[string]ProviderInfo{
		"acme": {Models: []string{"m"}, MaxQueued: 5}, "open": {MaxQueued: 6},
	}, []string{"open"}, func() { added++ })
	require.Equal(t, map[string]int{"acme": 5, "open": 6}, d.queues())
	require.False(t, d.anyQueueReady())
	d.queueReady("acme")
	require.True(t, d.anyQueueReady())
	require.Equal(t, []inference.Candidate{{Provider: "acme", Model: "m"}}, d.table.Load().Route("m"))

	d.heard(presence("w1",
		queue.ProviderPresence{Name: "open", Models: []string{"x", "m"}, MaxQueued: 60, Rate: 2, InFlight: 1},
		queue.ProviderPresence{Name: "acme", Models: []string{"not-configured"}},
	))
	require.Zero(t, added)
	require.Equal(t, map[string]int{"acme": 5, "open": 60}, d.queues(), "the worker's word on the bound comes first")
	require.Empty(t, d.table.Load().Route("not-configured"), "what the configuration names comes before what workers say")
	require.Equal(t, "open", d.table.Load().Route("m")[0].Provider, "in the configured order")

	d.heard(presence("w2", queue.ProviderPresence{Name: "new", Models: []string{"n", "n", "a"}, Rate: 3, InFlight: 2}, queue.ProviderPresence{Name: "open", Models: []string{"x"}, Rate: 1}))
	require.Equal(t, 1, added, "a new provider needs a queue")
	d.heard(presence("w2", queue.ProviderPresence{Name: "newer"}))
	require.Equal(t, 2, added, "also one that takes the place of another")
	d.heard(presence("w2", queue.ProviderPresence{Name: "new", Models: []string{"n", "n", "a"}, Rate: 3, InFlight: 2}, queue.ProviderPresence{Name: "open", Models: []string{"x"}, Rate: 1}))
	require.Equal(t, map[string]providerState{
		"acme": {Workers: 1, Queued: 5}, "open": {Workers: 2, InFlight: 1, Rate: 3, Queued: 60}, "new": {Workers: 1, InFlight: 2, Rate: 3},
	}, d.states())
	for _, p := range d.table.Load().Providers {
		if p.Name == "new" {
			require.Equal(t, []string{"a", "n"}, p.Models)
		}
	}

	d.heard(queue.Presence{Worker: "w2", Leaving: true})
	require.Len(t, d.table.Load().Providers, 2)
	d.expire(time.Now().Add(workerGone / 2))
	require.Equal(t, 1, d.states()["open"].Workers)
	d.expire(time.Now().Add(2 * workerGone))
	require.Zero(t, d.states()["open"].Workers)
	require.False(t, d.table.Load().Providers[0].Live)
}

func TestDirectoryIsBounded(t *testing.T) {
	t.Parallel()
	d := newDirectory(nil, nil, func() {})
	for i := range maxWorkers {
		d.workers[fmt.Sprint(i)] = announced{}
	}
	d.heard(presence("one more", queue.ProviderPresence{Name: "p"}))
	require.Len(t, d.workers, maxWorkers)
	d.heard(presence("7", queue.ProviderPresence{Name: "p"}))
	require.Len(t, d.workers["7"].Providers, 1, "those who are known are heard")
}

func TestRetryAfterEstimate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		queued int
		rate   float64
		want   time.Duration
	}{
		"nothing known":  {1000, 0, retryLeast},
		"fast":           {1000, 5000, retryLeast},
		"ten seconds":    {1000, 50, 10 * time.Second},
		"slow":           {1000, 1, retryMost},
		"hardly a rate":  {1000, 1e-9, retryMost},
		"dying rate":     {1000, 1e-300, retryMost},
		"no bound known": {0, 1, retryLeast},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDirectory(nil, nil, func() {})
			d.heard(presence("w", queue.ProviderPresence{Name: "p", MaxQueued: c.queued, Rate: c.rate}))
			require.Equal(t, c.want, d.retryAfter("p"))
		})
	}
	require.Equal(t, retryLeast, newDirectory(nil, nil, func() {}).retryAfter("nobody"))
}

func TestModelsThatAKeyMaySee(t *testing.T) {
	t.Parallel()
	s := &Ingress{workers: newDirectory(map[string]ProviderInfo{
		"b": {Models: []string{"m2", "shared", "glob-*"}}, "a": {Models: []string{"m1", "shared", "[odd"}},
	}, nil, func() {})}
	ids := func(key store.Key) (list []string) {
		for _, m := range s.modelsOf(key) {
			list = append(list, m.ID+"@"+m.OwnedBy)
		}
		return list
	}
	require.Equal(t, []string{"[odd@a", "m1@a", "m2@b", "shared@a"}, ids(store.Key{}))
	require.Equal(t, []string{"m1@a", "m2@b"}, ids(store.Key{Models: []string{"m?"}}))
	require.Equal(t, []string{"glob-9@b", "m1@a"}, ids(store.Key{Models: []string{"m1", "glob-9", "glob-x*", "unknown"}}))
	require.Empty(t, ids(store.Key{Models: []string{"nothing"}}))
}

func TestRouteErrors(t *testing.T) {
	t.Parallel()
	s := &Ingress{workers: newDirectory(map[string]ProviderInfo{"a": {Models: []string{"m1"}}}, nil, func() {})}
	_, err := s.route(store.Key{Models: []string{"other"}}, "m1")
	require.Equal(t, inference.CodeModelNotAllowed, inference.AsError(err).Code)
	_, err = s.route(store.Key{}, "m2")
	require.Equal(t, inference.CodeModelNotFound, inference.AsError(err).Code)
	require.Equal(t, "model", inference.AsError(err).Param)
	candidates, err := s.route(store.Key{}, "m1")
	require.NoError(t, err)
	require.Len(t, candidates, 1)
}

func TestAKeyForAModelCoversItAtANamedProvider(t *testing.T) {
	t.Parallel()
	s := &Ingress{workers: newDirectory(map[string]ProviderInfo{"a": {Models: []string{"m1", "a/m1x"}}, "b": {Models: []string{"m1", "m2"}}}, nil, func() {})}
	key := store.Key{Models: []string{"m1"}}
	candidates, err := s.route(key, "b/m1")
	require.NoError(t, err)
	require.Equal(t, []inference.Candidate{{Provider: "b", Model: "m1"}}, candidates)
	for _, model := range []string{"b/m2", "m2", "a/m1x", "b/", "nobody/m1"} {
		_, err = s.route(key, model)
		require.Equal(t, inference.CodeModelNotAllowed, inference.AsError(err).Code, model)
	}
}
