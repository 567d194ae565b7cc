package e2e_test

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
	"sluice/store/sqlite"
)

// anyPort lets serve listen where it does not meet others; everything else is as an
// empty directory gives it.
const anyPort = "SLUICE_SERVER_ADDRESS=127.0.0.1:0"

var (
	keyLine  = regexp.MustCompile(`(?m)^Your first API key, shown this once:\n\n  (\S+)$`)
	curlLine = regexp.MustCompile(`(?s)Try it:\n\n  (curl .*?\}')\n`)
	curlPart = regexp.MustCompile(`(?s)^curl (\S+) .*-H 'Authorization: Bearer (\S+)' .*-d '(.*)'$`)
)

// serving starts serve in dir and waits for its greeting.
func serving(t *testing.T, dir string, env ...string) *process {
	t.Helper()
	p := start(t, command{dir: dir, env: append([]string{anyPort}, env...), args: []string{"serve"}})
	p.eventually("greet", func() bool { return strings.Contains(p.stdout.String(), "API key") })
	return p
}

func firstKey(t *testing.T, p *process) string {
	t.Helper()
	m := keyLine.FindStringSubmatch(p.stdout.String())
	require.NotNil(t, m, "no key in: %s", p.stdout.String())
	return m[1]
}

// curlRequest is the id of the request that runCurl makes.
const curlRequest = "curl"

// runCurl runs the printed line as a person who pastes it does. Where there is no curl
// its parts are sent by hand.
func runCurl(t *testing.T, line string) []byte {
	t.Helper()
	if _, err := exec.LookPath("curl"); err == nil {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line, "curl ", "curl -sS --fail-with-body -H 'X-Request-Id: "+curlRequest+"' ", 1)).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return out
	}
	m := curlPart.FindStringSubmatch(line)
	require.NotNil(t, m, line)
	base, _, _ := strings.Cut(strings.TrimPrefix(m[1], "http://"), "/")
	resp, err := newClient(t, base, m[2]).post(t.Context(), m[3], http.Header{"X-Request-Id": {curlRequest}})
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	var body json.RawMessage
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&body))
	return body
}

// requireRows waits until the embedded database has exactly one row for each of the
// requests. serve runs meanwhile: its rows may wait in the queue's files.
func requireRows(t *testing.T, dir string, requests ...string) {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, "data", "sluice.db"))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	requireOneRowEach(t, db, requests)
}

// say makes one short call of the simulated provider.
func say(t *testing.T, p *process, key, request string) {
	t.Helper()
	body := `{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":"Hello!"}]}`
	resp, err := newClient(t, p.address(), key).post(t.Context(), body, http.Header{"X-Request-Id": {request}})
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, drop(resp))
}

func TestServeInAnEmptyDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := serving(t, dir)
	key := firstKey(t, p)
	line := curlLine.FindStringSubmatch(p.stdout.String())
	require.NotNil(t, line, p.stdout.String())

	var answer struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	require.NoError(t, json.Unmarshal(runCurl(t, line[1]), &answer))
	require.Len(t, answer.Choices, 1)
	require.NotEmpty(t, answer.Choices[0].Message.Content)

	// Ctrl-C in the middle of a stream lets it come to its end.
	s := newClient(t, p.address(), key).openStream(t, "sim", "Hello!", http.Header{"X-Request-Id": {"streamed"}})
	_, ok := s.next()
	require.True(t, ok)
	p.signal(syscall.SIGINT)
	rest := s.rest()
	require.NotEmpty(t, rest)
	require.True(t, rest[len(rest)-1].done(), "%v", rest)
	require.Zero(t, p.wait(), "exit code after SIGINT")
	require.True(t, strings.HasSuffix(strings.TrimSpace(p.stderr.String()), `"msg":"stopped"}`), p.stderr.String())

	// A second start keeps what the first one made, and shows no secret.
	p = serving(t, dir)
	require.NotContains(t, p.stdout.String(), "sk-")
	require.NotContains(t, p.stdout.String(), "Your first API key")
	require.Contains(t, p.stdout.String(), "API keys exist")
	say(t, p, key, "second-start")
	requireRows(t, dir, curlRequest, "streamed", "second-start")
	p.signal(syscall.SIGTERM)
	require.Zero(t, p.wait(), "exit code after SIGTERM")
}

func TestServeHasItsDataDirectoryForItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := serving(t, dir)
	code, stdout, stderr := execute(t, command{dir: dir, env: []string{anyPort}, args: []string{"serve"}})
	require.Equal(t, 1, code)
	require.NotContains(t, stdout, "sk-", "a refused process makes no key")
	require.Contains(t, stderr, "is used by another sluice process")
	require.Len(t, strings.Split(strings.TrimSpace(stderr), "\n"), 1, "one clear line: %s", stderr)

	// The first one is none the worse for it, and after kill -9 the directory is free.
	key := firstKey(t, first)
	say(t, first, key, "before")
	requireRows(t, dir, "before")
	first.kill()
	second := serving(t, dir)
	require.NotContains(t, second.stdout.String(), "sk-")
	say(t, second, key, "after")
	requireRows(t, dir, "before", "after")
	second.signal(syscall.SIGTERM)
	require.Zero(t, second.wait())
}

func TestServeOnAnAddressInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dir := t.TempDir()
	code, stdout, stderr := execute(t, command{dir: dir, env: []string{"SLUICE_SERVER_ADDRESS=" + l.Addr().String()}, args: []string{"serve"}})
	require.Equal(t, 1, code)
	require.NotContains(t, stdout, "sk-")
	require.Contains(t, stderr, "server.address "+l.Addr().String())
	require.Contains(t, stderr, "address already in use")
	require.NotContains(t, stderr, "fx")
}

func TestServeOnEveryInterfacePrintsAnAddressThatWorks(t *testing.T) {
	t.Parallel()
	for _, everywhere := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		p := serving(t, t.TempDir(), "SLUICE_SERVER_ADDRESS="+everywhere)
		line := curlLine.FindStringSubmatch(p.stdout.String())
		require.NotNil(t, line, p.stdout.String())
		require.Contains(t, line[1], "http://127.0.0.1:")
		require.Contains(t, string(runCurl(t, line[1])), "chat.completion")
	}
}

func TestServeFindsOpenAIInTheEnvironment(t *testing.T) {
	t.Parallel()
	upstream := testkit.NewUpstream(t)
	upstream.SetModels(clusterModel)
	dir := t.TempDir()
	p := serving(t, dir, "OPENAI_API_KEY=sk-from-the-environment", "OPENAI_BASE_URL="+upstream.URL())
	require.Contains(t, p.stdout.String(), "OPENAI_API_KEY in the environment")
	require.NotContains(t, p.stdout.String(), "sk-from-the-environment")
	c := newClient(t, p.address(), firstKey(t, p))
	p.eventually("learn the upstream's models", func() bool {
		m, err := c.api.Models.Get(t.Context(), clusterModel)
		return err == nil && m.ID == clusterModel
	})
	text, err := c.ask(t.Context(), "hello")
	require.NoError(t, err)
	require.Equal(t, "Hello there.", text)
	require.Equal(t, "Bearer sk-from-the-environment", upstream.Last().Header.Get("Authorization"))
	_, err = os.Stat(filepath.Join(dir, "data"))
	require.NoError(t, err, "the data directory stands beside where serve was started")
}
