package e2e_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// Tokens of the surface's operators, and the upstream's key: none may be shown anywhere.
const (
	surfaceToken    = "on-call-token-0123456789"
	surfaceViewer   = "dashboards-token-0123456789"
	surfaceUpstream = "sk-upstream-of-the-surface-0123456789"
)

// surfaceConfig has a provider whose calls cost a thousandth of the currency for each token
// of a prompt and two for each of an answer, and one whose price nobody knows.
const surfaceConfig = `server: {address: "127.0.0.1:0"}
admin:
  address: 127.0.0.1:0
  operators: [{name: on-call, token: ` + surfaceToken + `}, {name: dashboards, token: ` + surfaceViewer + `, role: viewer}]
webhooks: {allow_private_networks: true, timeout: 5s}
cache:
  rules: [{name: kept, when: {all: [{models: ["kept*"]}]}}, {name: by-key, when: {all: [{models: [private]}]}, scope: key}]
providers:
  up:
    type: openai
    base_url: UPSTREAM
    api_key: ` + surfaceUpstream + `
    models: [plain, broken, "kept*", private]
    breaker: {failures: 2, open_for: 1h}
    prices: [{models: ["*"], input: 1000, output: 2000}]
  other: {type: openai, base_url: UPSTREAM, models: [unpriced], api_key: ` + surfaceUpstream + `}
observability: {log_level: info}
`

// What a call costs: the scripted upstream counts 7 tokens of the prompt and gives 3.
const surfaceCost = 0.013

// surface is a server with everything that an operator sees to.
type surface struct {
	administration
	upstream *testkit.Upstream
	broken   *atomic.Bool // whether the model of this name fails
	config   string       // its file
	database []string     // variables that name it
	said     string       // by servers that have ended
}

func newSurface(t *testing.T, database []string) *surface {
	t.Helper()
	s := &surface{upstream: testkit.NewUpstream(t), broken: new(atomic.Bool), database: database}
	s.upstream.Handle(func(c *testkit.Call) {
		if c.Model() == "broken" && s.broken.Load() {
			c.Fail(http.StatusInternalServerError, "not now")
			return
		}
		c.Reply("one", " two", " three")
	})
	s.administration = administration{t: t, dir: t.TempDir(), secrets: []string{surfaceToken, surfaceViewer, surfaceUpstream}}
	s.config = filepath.Join(s.dir, "sluice.yaml")
	s.configure("")
	s.serve()
	return s
}

// configure writes the server's file.
func (s *surface) configure(more string) {
	s.t.Helper()
	text := strings.ReplaceAll(surfaceConfig, "UPSTREAM", s.upstream.URL()) + more
	require.NoError(s.t, os.WriteFile(s.config, []byte(text), 0o600))
}

// serve starts the server, and has the commands ask it.
func (s *surface) serve() {
	s.t.Helper()
	s.p = start(s.t, command{dir: s.dir, env: s.database, args: []string{"serve", "--config", s.config}})
	s.env = []string{"SLUICE_ADMIN_ADDRESS=" + operatorsAddress(s.p), "SLUICE_ADMIN_TOKEN=" + surfaceToken}
	s.p.eventually("become ready", func() bool {
		resp, err := http.Get("http://" + s.p.address() + "/readyz")
		return err == nil && drop(resp) == http.StatusOK
	})
}

func (s *surface) stop() {
	s.t.Helper()
	s.p.signal(syscall.SIGTERM)
	require.Zero(s.t, s.p.wait())
	s.said += s.p.stdout.String() + s.p.stderr.String()
}

// refused runs a command that fails, and returns what it says.
func (s *surface) refused(code int, line string) string {
	s.t.Helper()
	got, stdout, stderr := s.try(line)
	require.Equal(s.t, code, got, "%s: %s%s", line, stdout, stderr)
	require.Regexp(s.t, `^sluice: .`, stderr, line)
	return stderr
}

// decoded runs a command that prints JSON.
func (s *surface) decoded(line string, into any) {
	s.t.Helper()
	require.NoError(s.t, json.Unmarshal([]byte(s.do(line)), into), line)
}

// eventually waits until a command prints what is wanted.
func (s *surface) eventually(line, want string) {
	s.t.Helper()
	last := ""
	require.Eventually(s.t, func() bool {
		last = s.do(line)
		return strings.Contains(last, want)
	}, patience, 5*pollEvery, "%s never said %q", line, want)
}

// answer is what a client got.
type answer struct {
	status int
	cache  string // x-sluice-cache
	head   http.Header
	body   string
}

// chat makes a call.
func (s *surface) chat(key, model, prompt string, header ...string) (a answer) {
	s.t.Helper()
	head := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		head.Set(header[i], header[i+1])
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	resp, err := newClient(s.t, s.p.address(), key).post(ctx, chatBody(model, false, prompt), head)
	if !assertNoError(s.t, err) {
		return a
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	assertNoError(s.t, err)
	return answer{resp.StatusCode, resp.Header.Get("X-Sluice-Cache"), resp.Header, string(body)}
}

// assertNoError is require.NoError for goroutines that are not the test's.
func assertNoError(t *testing.T, err error) bool {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// held makes calls that are not answered yet, and returns how to wait for their answers.
func (s *surface) held(n int, key, model string) (wait func() []answer) {
	s.t.Helper()
	answers := make(chan answer, n)
	for range n {
		go func() { answers <- s.chat(key, model, "held") }()
	}
	return func() (all []answer) {
		for range n {
			all = append(all, <-answers)
		}
		return all
	}
}

// TestTheAdminSurface goes through everything that an operator can do, by the command line
// of a running server, on either database.
func TestTheAdminSurface(t *testing.T) {
	t.Parallel()
	for name, database := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSurface(t, database(t))
			s.limitKeys()
			key := s.secret("keys create app --tenant research")
			s.account(key)
			s.forget(key)
			s.hold(key)
			s.breakers(key)
			s.hooks()
			s.files()
			s.letters(key)
			s.requireWhole()
		})
	}
}

// receiver is a tenant's server that answers as it is told.
func (s *surface) receiver() (url string, status *atomic.Int32, received *atomic.Int32) {
	s.t.Helper()
	status, received = new(atomic.Int32), new(atomic.Int32)
	status.Store(http.StatusOK)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		received.Add(1)
		w.WriteHeader(int(status.Load()))
	}))
	s.t.Cleanup(server.Close)
	return server.URL, status, received
}
