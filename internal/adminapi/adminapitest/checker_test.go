package adminapitest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
)

// Answers as they are to be.
const (
	queue   = `{"provider":"acme","state":"active","lanes":[]}`
	unknown = `{"error":{"message":"There is none.","type":"not_found_error","code":"not_found","param":null,"details":{}}}`
)

// said is an exchange that is as it is to be, until it is changed.
func said(t *testing.T, method, target, request string, status int, body string, headers ...string) *exchange {
	t.Helper()
	u, err := url.Parse("http://127.0.0.1" + target)
	require.NoError(t, err)
	h := http.Header{"X-Request-Id": {"req_1"}, "Cache-Control": {"no-store"}}
	if body != "" {
		h.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &exchange{method, u, []byte(request), status, h, []byte(body)}
}

func TestWhatIsAsDocumentedIsNoFault(t *testing.T) {
	t.Parallel()
	c := New(t)
	for _, x := range []*exchange{
		said(t, "GET", "/admin/v1/queues/acme", "", 200, queue),
		said(t, "GET", "/admin/v1/queues/acme", "", 404, unknown),
		said(t, "GET", "/admin/v1/nothing", "", 404, unknown),
		said(t, "GET", "/admin/v1/nothing", "", 401, unknown, "WWW-Authenticate", "Bearer"),
		said(t, "PUT", "/admin/v1/queues/acme", "", 405, unknown, "Allow", "GET"),
		said(t, "DELETE", "/admin/v1/tenants/a%2Fb", "", 204, ""),
		said(t, "POST", "/admin/v1/queues/acme/purge", `{"lane":"batch","older_than":"1h30m"}`, 200, `{"ended":0,"kept":0,"removed":0,"more":false}`),
		said(t, "GET", "/admin/v1/usage?group_by=day,model&from=2026-01-31&limit=7", "", 200, "day,model,requests\n", "Content-Type", "text/csv; charset=utf-8"),
		said(t, "GET", "/admin/v1/usage?group_by=&to=2026-01-31T00:00:00Z", "", 200, `{"group_by":[],"from":null,"to":null,"rows":[],"next":null}`),
		said(t, "GET", "/admin/v1/dead-letters/dead_1?body=true", "", 200, `{"id":"dead_1","at":"2026-01-31T00:00:00Z","kind":"usage","provider":"usage","reason":"r","bytes":0}`),
		said(t, "GET", "/admin/v1/config", "", 200, "file: \"\"\nhash: \"\"\nloaded_at: \"2026-01-31T00:00:00Z\"\nlast_reload: null\nneeds_restart: []\nconfig:\n  a: b\n", "Content-Type", "application/yaml"),
		said(t, "POST", "/admin/v1/queues/acme/purge", `{"lane":"any"}`, 400, strings.ReplaceAll(unknown, "not_found_error", "invalid_request_error")),
	} {
		require.Empty(t, c.faults(x), "%s %s: %d", x.method, x.url, x.status)
	}
	unseen := c.Unseen()
	for _, seen := range []string{"showQueue 200 application/json", "deleteTenant 204", "reportUsage 200 text/csv", "showConfig 200 application/yaml"} {
		require.NotContains(t, unseen, seen)
	}
	require.Contains(t, unseen, "showConfig 200 application/json")
	require.Contains(t, unseen, "deleteWebhook 204")
}

func TestWhatIsNotAsDocumentedIsAFault(t *testing.T) {
	t.Parallel()
	purged := `{"ended":0,"kept":0,"removed":0,"more":false}`
	for name, x := range map[string]*exchange{
		"member":             said(t, "GET", "/admin/v1/queues/acme", "", 200, `{"provider":"acme","state":"active","lanes":[],"depth":1}`),
		"missing member":     said(t, "GET", "/admin/v1/queues/acme", "", 200, `{"provider":"acme","lanes":[]}`),
		"null for a list":    said(t, "GET", "/admin/v1/queues/acme", "", 200, `{"provider":"acme","state":"active","lanes":null}`),
		"value":              said(t, "GET", "/admin/v1/queues/acme", "", 200, `{"provider":"acme","state":"asleep","lanes":[]}`),
		"no JSON":            said(t, "GET", "/admin/v1/queues/acme", "", 200, `{`),
		"time":               said(t, "GET", "/admin/v1/dead-letters/dead_1", "", 200, `{"id":"dead_1","at":"today","kind":"usage","provider":"usage","reason":"r","bytes":0}`),
		"status":             said(t, "GET", "/admin/v1/queues/acme", "", 201, queue),
		"error status":       said(t, "GET", "/admin/v1/queues/acme", "", 409, unknown),
		"error":              said(t, "GET", "/admin/v1/queues/acme", "", 404, `{"error":"there is none"}`),
		"error code":         said(t, "GET", "/admin/v1/queues/acme", "", 404, strings.Replace(unknown, `"not_found"`, `"lost"`, 1)),
		"media type":         said(t, "GET", "/admin/v1/queues/acme", "", 200, queue, "Content-Type", "text/plain"),
		"no media type":      said(t, "GET", "/admin/v1/queues/acme", "", 200, queue, "Content-Type", ""),
		"body":               said(t, "DELETE", "/admin/v1/tenants/a", "", 204, `{}`),
		"path":               said(t, "GET", "/admin/v1/queues/acme/lanes", "", 200, queue),
		"slash in a name":    said(t, "DELETE", "/admin/v1/tenants/a/b", "", 204, ""),
		"method":             said(t, "PUT", "/admin/v1/queues/acme", "", 200, queue),
		"allow":              said(t, "PUT", "/admin/v1/queues/acme", "", 405, unknown, "Allow", "GET, POST"),
		"no such error":      said(t, "GET", "/admin/v1/nothing", "", 404, "nothing", "Content-Type", "text/plain"),
		"no request id":      said(t, "GET", "/admin/v1/queues/acme", "", 200, queue, "X-Request-Id", ""),
		"kept":               said(t, "GET", "/admin/v1/queues/acme", "", 200, queue, "Cache-Control", ""),
		"no challenge":       said(t, "GET", "/admin/v1/queues/acme", "", 401, unknown),
		"no retry":           said(t, "GET", "/admin/v1/queues/acme", "", 503, unknown),
		"query":              said(t, "GET", "/admin/v1/queues/acme?lane=batch", "", 200, queue),
		"malformed query":    said(t, "GET", "/admin/v1/queues/acme?%zz", "", 200, queue),
		"number":             said(t, "GET", "/admin/v1/usage?limit=many", "", 200, "requests\n", "Content-Type", "text/csv"),
		"bound":              said(t, "GET", "/admin/v1/usage?limit=1001", "", 200, "requests\n", "Content-Type", "text/csv"),
		"group":              said(t, "GET", "/admin/v1/usage?group_by=day,color", "", 200, "requests\n", "Content-Type", "text/csv"),
		"twice":              said(t, "GET", "/admin/v1/usage?limit=1&limit=2", "", 200, "requests\n", "Content-Type", "text/csv"),
		"empty file":         said(t, "GET", "/admin/v1/usage", "", 200, "", "Content-Type", "text/csv"),
		"no YAML":            said(t, "GET", "/admin/v1/config", "", 200, "a: [", "Content-Type", "application/yaml"),
		"request's member":   said(t, "POST", "/admin/v1/queues/acme/purge", `{"lane":"batch","all":true}`, 200, purged),
		"request's value":    said(t, "POST", "/admin/v1/queues/acme/purge", `{"lane":"batch","older_than":"an hour"}`, 200, purged),
		"request's JSON":     said(t, "POST", "/admin/v1/queues/acme/purge", `{`, 200, purged),
		"no request's body":  said(t, "POST", "/admin/v1/queues/acme/purge", "", 200, purged),
		"a body not for it":  said(t, "POST", "/admin/v1/webhooks/x/enable", "{}", 404, unknown),
		"a body it has none": said(t, "DELETE", "/admin/v1/tenants/x", "{}", 204, ""),
	} {
		faults := New(t).faults(x)
		if name == "a body not for it" { // what was refused may be as wrong as it likes
			require.Empty(t, faults)
			continue
		}
		require.NotEmpty(t, faults, name)
	}
}

// reports is a test that takes note of what it is told.
type reports struct {
	testing.TB
	told []string
}

func (*reports) Helper() {}

func (r *reports) Errorf(format string, args ...any) {
	r.told = append(r.told, fmt.Sprintf(format, args...))
}

func TestBothWaysOfCheckingSeeTheExchangeAndHandItOn(t *testing.T) {
	t.Parallel()
	var answer, got string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		got = string(text)
		w.Header().Set("X-Request-Id", "req_1")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answer)
		_ = http.NewResponseController(w).Flush()
	})
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	for _, c := range []struct {
		request, answer string
		faults          int
	}{
		{`{"lane":"batch"}`, `{"ended":0,"kept":0,"removed":0,"more":false}`, 0},
		{`{"lanes":"batch"}`, `{"ended":0,"kept":0,"removed":0,"more":false}`, 1},
		{`{"lane":"batch"}`, `{"ended":0,"kept":0,"removed":0,"more":false,"less":true}`, 1},
	} {
		answer = c.answer
		told := &reports{TB: t}
		checker := New(told)
		w := httptest.NewRecorder()
		checker.Handler(h).ServeHTTP(w, httptest.NewRequest(http.MethodPost, adminapi.QueuesPath+"/acme/purge", strings.NewReader(c.request)))
		require.Equal(t, []string{c.request, c.answer}, []string{got, w.Body.String()})
		require.True(t, w.Flushed)
		require.Len(t, told.told, c.faults, "%v", told.told)

		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+adminapi.QueuesPath+"/acme/purge", bytes.NewReader([]byte(c.request)))
		require.NoError(t, err)
		resp, err := checker.RoundTripper(srv.Client().Transport).RoundTrip(req)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, []string{c.request, c.answer}, []string{got, string(text)})
		require.Len(t, told.told, 2*c.faults, "%v", told.told)
	}

	// A part's errors are not looked at.
	told := &reports{TB: t}
	part := Part(told)
	part.check(said(t, "GET", "/admin/v1/queues/acme", "", 409, "no"))
	require.Empty(t, told.told)
	part.check(said(t, "GET", "/admin/v1/queues/acme", "", 200, "no"))
	require.Len(t, told.told, 1)
}

func TestADocumentThatCannotBeUnderstood(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{`,
		`{"paths":[]}`,
		`{"paths":{"/a":{"get":7}}}`,
		`{"paths":{"/a":{"parameters":7}}}`,
		`{"paths":{"/a":{"get":{"responses":{"ok":{}}}}}}`,
		`{"paths":{"/a":{"get":{"responses":{"200":{"$ref":"#/components/responses/None"}}}}}}`,
		`{"paths":{"/a":{"get":{"parameters":[{"$ref":"#/components/parameters/None"}]}}}}`,
		`{"paths":{"/a":{"get":{"parameters":[{"name":"q","in":"query","schema":{"type":"text"}}]}}}}`,
		`{"paths":{"/a":{"get":{"responses":{"200":{"headers":{"X":{"$ref":"#/components/headers/None"}}}}}}}}`,
		`{"paths":{"/a":{"get":{"responses":{"200":{"content":{"application/json":{"schema":{"$ref":"#/components/schemas/None"}}}}}}}}}`,
		`{"paths":{"/a":{"post":{"requestBody":{"content":{"application/json":{"schema":{"$ref":"#/components/schemas/None"}}}}}}}}`,
	} {
		_, err := parse([]byte(text))
		require.Error(t, err, text)
	}
}
