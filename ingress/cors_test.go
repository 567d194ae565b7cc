package ingress

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/queue"
)

const page = "https://chat.example.com"

func pages(o CORSOptions) func(*Settings) {
	if o.Origins == nil {
		o.Origins = []string{page, "https://*.apps.example.com", "http://localhost:*"}
	}
	return func(s *Settings) { s.CORS = NewCORS(o) }
}

// browse sends what a browser would from a page of the origin.
func browse(h http.Handler, method, path, origin string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Origin", origin)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

const (
	allowOrigin = "Access-Control-Allow-Origin"
	askMethod   = "Access-Control-Request-Method"
	askHeaders  = "Access-Control-Request-Headers"
)

// stainless is what OpenAI's client for browsers asks for, as browsers write it: sorted,
// in lower case.
const stainless = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version," +
	"x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"

func TestPreflights(t *testing.T) {
	t.Parallel()
	in, _ := door(t, pages(CORSOptions{Headers: []string{"X-Team"}, MaxAge: time.Hour}))
	h := in.Handler()
	for _, c := range []struct {
		origin, method, headers string
		allowed                 bool
	}{
		{page, "POST", stainless, true},
		{page, "POST", "authorization,content-type,idempotency-key,last-event-id,prefer,x-request-id,x-sluice-resume-window,x-sluice-timeout", true},
		{page, "GET", "authorization,cache-control,x-team", true},
		{page, "DELETE", "authorization", true},
		{page, "POST", "authorization,traceparent,tracestate", true},
		{"https://a.apps.example.com", "POST", "authorization", true},
		{"https://a.b.apps.example.com", "POST", "authorization", false},
		{"http://localhost:5173", "POST", "authorization", true},
		{page, "PUT", "authorization", false},
		{page, "POST", "x-unknown", false},
		{"https://evil.example", "POST", "authorization", false},
		{"http://chat.example.com", "POST", "authorization", false},
		{"https://chat.example.com:8443", "POST", "authorization", false},
		{"https://apps.example.com.evil.example", "POST", "authorization", false},
		{"https://evilapps.example.com", "POST", "authorization", false},
		{"null", "POST", "authorization", false},
	} {
		w := browse(h, http.MethodOptions, chatPath, c.origin, askMethod, c.method, askHeaders, c.headers)
		require.Equal(t, http.StatusNoContent, w.Code, "no key is asked for")
		require.Equal(t, c.allowed, w.Header().Get(allowOrigin) == c.origin, "%+v: %v", c, w.Header())
		require.Contains(t, w.Header().Get("Vary"), "Origin")
		if c.allowed {
			require.Equal(t, "3600", w.Header().Get("Access-Control-Max-Age"))
			require.Equal(t, c.headers, w.Header().Get("Access-Control-Allow-Headers"))
		} else {
			require.Empty(t, w.Header().Get(allowOrigin))
		}
		require.Empty(t, w.Header().Get("Access-Control-Allow-Credentials"))
	}
}

// A setting stands for the pages that it says, and for no other one whose text begins and
// ends like it.
func TestOrigins(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		setting   string
		let, kept []string
	}{
		{"http://localhost:*", []string{"http://localhost:3000", "HTTP://LOCALHOST:1", "http://localhost:65535"}, []string{
			"http://localhost:3000.evil.com", "http://localhost:evil.com", "http://localhost:", "http://localhost", "http://localhost:65536",
			"http://localhost:30x0", "http://localhost:*", "http://localhost:3000/", "http://localhost:3000:4000", "http://localhost:+30",
			"https://localhost:3000", "http://x.localhost:3000", "http://localhost.:3000", "http://localhost:3000 ", "http://u@localhost:3000",
		}},
		{"https://*.apps.example.com", []string{"https://a.apps.example.com", "https://A-1.Apps.Example.com", "https://xn--4ca.apps.example.com", "https://a.apps.example.com:443"}, []string{
			"https://evil.com/.apps.example.com", "https://x@a.apps.example.com", "https://a.b.apps.example.com", "https://apps.example.com",
			"https://.apps.example.com", "https://evil.com?.apps.example.com", "https://evil.com#.apps.example.com", "https://evil.com:1.apps.example.com",
			"https://a.apps.example.com:8443", "http://a.apps.example.com", "https://a.apps.example.com.", "https://a.apps.example.com.evil.com",
			"https://a\\.apps.example.com", "https://ä.apps.example.com", "https://\u212a.apps.example.com", "https://*.apps.example.com", "https://[::1].apps.example.com", "https://a%2e.apps.example.com",
			"https://a.apps.example.com, https://evil.com", "https:/a.apps.example.com", "//a.apps.example.com", "a.apps.example.com", "",
		}},
		{"https://pr-*.a.example:8443", []string{"https://pr-12.a.example:8443"}, []string{
			"https://pr-12.a.example", "https://pr-1.2.a.example:8443", "https://xpr-1.a.example:8443", "https://pr.a.example:8443",
		}},
		{"https://*-x-*.a.example", nil, []string{"https://a-x-b.a.example", "https://*-x-*.a.example"}},
		{"https://ab*ba.example.com", []string{"https://abba.example.com", "https://ab1ba.example.com"}, []string{"https://aba.example.com", "https://ab.ba.example.com"}},
		{"https://chat.example.com:443", []string{"https://chat.example.com"}, []string{"http://chat.example.com:443"}},
		{"http://chat.example.com:443", []string{"http://chat.example.com:443"}, []string{"http://chat.example.com", "https://chat.example.com"}},
		{"http://[::1]:*", []string{"http://[::1]:3000"}, []string{"http://[::1]", "http://[::2]:3000", "http://[::1]x:3000", "http://::1:3000", "http://[::1", "http://[]:3000", "http://[::1].evil.com:3000"}},
		{"http://127.0.0.1:8080", []string{"http://127.0.0.1:8080"}, []string{"http://127.0.0.1", "http://127.0.0.1:80801"}},
		{"tauri://localhost", []string{"tauri://localhost"}, []string{"tauri://localhost:1", "http://localhost", "file://", "null", "://localhost"}},
	} {
		o := CORSOptions{Origins: []string{"https://of-somebody-else.example", c.setting}}
		for _, origin := range slices.Concat(c.let, c.kept) {
			r := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
			r.Header.Set("Origin", origin)
			require.Equal(t, slices.Contains(c.let, origin), NewCORS(o).rules.OriginAllowed(r), "%s: %s", c.setting, origin)
		}
	}
}

// Whatever the text: who is let in is from a host that the setting's owner has, with nothing
// around it.
func FuzzOrigins(f *testing.F) {
	for _, origin := range []string{page, "http://localhost:3000", "http://localhost:3000.evil.com", "https://a.apps.example.com", "https://evil.com/.apps.example.com", "https://[::1]:1", "null", ""} {
		f.Add(origin)
	}
	lets := originRules([]string{page, "https://*.apps.example.com", "https://pr-*.b.example:8443", "http://localhost:*"})
	good := regexp.MustCompile(`^(?i:https://chat\.example\.com(:0*443)?|https://[a-z0-9_-]+\.apps\.example\.com(:0*443)?|https://pr-[a-z0-9_-]*\.b\.example:8443|http://localhost:[0-9]+)$`)
	f.Fuzz(func(t *testing.T, origin string) {
		if !lets(origin) {
			return
		}
		require.Regexp(t, good, origin)
		u, err := url.Parse(origin)
		require.NoError(t, err)
		require.Nil(t, u.User)
		require.Empty(t, u.Path+u.RawQuery+u.Fragment)
	})
}

// A page must be able to read a refusal, or it could only say that something went wrong.
func TestPagesReadRefusals(t *testing.T) {
	t.Parallel()
	in, _ := door(t, pages(CORSOptions{Credentials: true, Exposed: []string{"x-mine"}}))
	h := in.Handler()
	for path, status := range map[string]int{"/v1/models": 401, "/v1/nothing": 404} {
		w := browse(h, http.MethodGet, path, page)
		require.Equal(t, status, w.Code)
		require.Equal(t, page, w.Header().Get(allowOrigin))
		require.Equal(t, "true", w.Header().Get("Access-Control-Allow-Credentials"))
		require.Equal(t, []string{"Origin"}, w.Header().Values("Vary"))
		exposed := strings.Split(w.Header().Get("Access-Control-Expose-Headers"), ", ")
		require.Subset(t, exposed, []string{"X-Request-Id", "X-Sluice-Job-Id", "Retry-After", "X-Ratelimit-Remaining-Tokens", "Age", "Location", "X-Mine"})
	}
	w := browse(h, http.MethodGet, "/v1/models", "https://evil.example")
	require.Equal(t, http.StatusUnauthorized, w.Code)
	require.Empty(t, w.Header().Get(allowOrigin))
	require.Equal(t, "Origin", w.Header().Get("Vary"), "another page's answer must not come out of a cache")
}

func TestAnyPage(t *testing.T) {
	t.Parallel()
	in, _ := door(t, pages(CORSOptions{Origins: []string{"*"}}))
	w := browse(in.Handler(), http.MethodGet, "/v1/models", "https://anybody.example")
	require.Equal(t, "*", w.Header().Get(allowOrigin))
	require.Empty(t, w.Header().Get("Access-Control-Allow-Credentials"))
	w = browse(in.Handler(), http.MethodGet, "/livez", "https://anybody.example")
	require.Equal(t, http.StatusOK, w.Code)
	require.Empty(t, w.Header().Get(allowOrigin), "what operators read is no page's business")
	w = browse(in.Handler(), http.MethodOptions, chatPath, "https://anybody.example", askMethod, "POST")
	require.Equal(t, "0", w.Header().Get("Access-Control-Max-Age"))
}

// Without origins nothing is as it would be with them: not one header more.
func TestNoPages(t *testing.T) {
	t.Parallel()
	in, _ := door(t, func(s *Settings) { s.CORS = NewCORS(CORSOptions{MaxAge: time.Hour, Headers: []string{"X-Team"}}) })
	for _, w := range []*httptest.ResponseRecorder{
		browse(in.Handler(), http.MethodGet, "/v1/models", page),
		browse(in.Handler(), http.MethodOptions, chatPath, page, askMethod, "POST"),
	} {
		for name := range w.Header() {
			require.False(t, strings.HasPrefix(name, "Access-Control-") || name == "Vary", name)
		}
	}
	w := browse(in.Handler(), http.MethodOptions, chatPath, page, askMethod, "POST")
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
}

// The rules are those in force when the request comes.
func TestPagesChange(t *testing.T) {
	t.Parallel()
	in, _ := door(t)
	h := in.Handler()
	require.Empty(t, browse(h, http.MethodGet, "/v1/models", page).Header().Get(allowOrigin))
	next := *in.current()
	next.CORS = NewCORS(CORSOptions{Origins: []string{page}})
	in.settings.Store(&next)
	require.Equal(t, page, browse(h, http.MethodGet, "/v1/models", page).Header().Get(allowOrigin))
}

// Streams reach pages as they come, and a full queue says so.
func TestPagesStream(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.Settings.CORS = NewCORS(CORSOptions{Origins: []string{page}}) })
	r.work()
	c := r.chat(streamRequest, "Origin", page)
	k := r.take()
	k.events(1, `{"choices":[{"delta":{"content":"first"}}]}`)
	resp := c.response()
	require.Equal(t, page, resp.Header.Get(allowOrigin))
	require.Equal(t, []string{"Origin"}, resp.Header.Values("Vary"))
	got := frames(t, resp.Body, func(f frame) bool { return strings.Contains(f.data, "first") })
	require.NotEmpty(t, got, "before the stream has ended")
	k.end(&queue.End{Model: "m", LastSeq: 1})
	_, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
}

// What README says that a request may carry, a page may send.
func TestPagesMaySendWhatIsDocumented(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(readme), "| request header | meaning |\n| --- | --- |\n")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n\n")
	var names []string
	for row := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, m := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(first, -1) {
			names = append(names, m[1])
		}
	}
	require.Contains(t, names, "traceparent")
	require.GreaterOrEqual(t, len(names), 8)
	slices.Sort(names)
	in, _ := door(t, pages(CORSOptions{}))
	w := browse(in.Handler(), http.MethodOptions, chatPath, page, askMethod, "POST", askHeaders, strings.Join(names, ","))
	require.Equal(t, page, w.Header().Get(allowOrigin), names)
}

// Every header that the sources name is one that pages may send or read, for browsers hide
// all others; and every one of our own that pages may send or read stands in the sources.
func TestOurHeadersAreKnownToBrowsers(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`"([A-Z][A-Za-z]*(?:-[A-Z][A-Za-z]*)+)"|\.Set\("([A-Z][a-z]+)"`)
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	known := make(map[string]bool)
	for _, h := range slices.Concat(corsHeaders, corsExposed) {
		known[http.CanonicalHeaderKey(h)] = true
	}
	// What is for browsers themselves and for proxies, and what is refused in a request.
	noPages := []string{"Connection", "Content-Encoding", "X-Accel-Buffering", "X-Content-Type-Options"}
	found := make(map[string]bool)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "cors.go" {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			header := http.CanonicalHeaderKey(m[1] + m[2])
			found[header] = true
			require.True(t, known[header] || slices.Contains(noPages, header), "%s has %s, which corsHeaders or corsExposed must have too", file, header)
		}
	}
	require.Greater(t, len(found), 20)
	for header := range known {
		require.True(t, found[header] || !strings.HasPrefix(header, "X-Sluice-"), "nothing reads or sends %s", header)
	}
}
