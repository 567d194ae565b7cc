package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/testkit"
	"sluice/store"
	"sluice/store/sqlite"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

// soon is how long a test waits for what must happen; nothing takes nearly as long.
const soon = 30 * time.Second

// sluice runs one command line with a data directory of its own.
func sluice(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// configFile writes a configuration and returns its path. DIR stands for a directory of
// the test's own.
func configFile(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "sluice.yaml")
	require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600))
	return path
}

const minimal = `
server: {address: "127.0.0.1:0"}
data_dir: DIR/data
observability: {log_level: error}
providers: {sim: {type: sim, models: [sim], sim: {first_token_delay: 0s, tokens_per_second: 10000}}}
`

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	code, out, errs := sluice(t, "version")
	require.Zero(t, code)
	require.Equal(t, "sluice dev\n", out)
	require.Empty(t, errs)
	_, flag, _ := sluice(t, "--version")
	require.Equal(t, out, flag)
	for _, args := range [][]string{nil, {"--help"}, {"help"}, {"help", "keys", "create"}, {"serve", "--help"}, {"keys"}, {"config"}} {
		code, out, errs := sluice(t, args...)
		require.Zero(t, code, args)
		require.Contains(t, out, "Usage:", args)
		require.Empty(t, errs, args)
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	t.Parallel()
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		require.NotEmpty(t, c.Short, c.CommandPath())
		require.Contains(t, c.Example, "sluice", c.CommandPath())
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(newRoot())
}

// A command line that cannot be understood exits with 2 and says so on stderr alone.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"nonsense"},
		{"help", "nonsense"},
		{"help", "keys", "nonsense"},
		{"--nonsense"},
		{"serve", "extra"},
		{"serve", "--nonsense"},
		{"version", "x"},
		{"keys", "nonsense"},
		{"webhooks", "nonsense"},
		{"webhooks", "create"},
		{"webhooks", "test", "a", "b"},
		{"webhooks", "list", "x"},
		{"webhooks", "redeliver"},
		{"webhooks", "redeliver", "a", "b", "c"},
		{"webhooks", "log", "a", "b"},
		{"webhooks", "log", "--limit", "many"},
		{"usage", "x"},
		{"usage", "--group-by", "color"},
		{"usage", "--from", "yesterday"},
		{"usage", "--from", "2026-02-02", "--to", "2026-02-01"},
		{"usage", "--csv", "--json"},
		{"cache", "nonsense"},
		{"cache", "show", "x"},
		{"cache", "purge"},
		{"cache", "purge", "--all", "--model", "m"},
		{"cache", "purge", "m"},
		{"keys", "create"},
		{"keys", "create", ""},
		{"keys", "create", "a", "b"},
		{"keys", "create", "a", "--expires", "soon"},
		{"keys", "create", "a", "--expires", "-1h"},
		{"keys", "create", "a", "--tenant", ""},
		{"keys", "create", "a", "--models", "m,gpt-["},
		{"keys", "create", "a\nb"},
		{"keys", "revoke"},
		{"keys", "list", "x"},
		{"config", "nonsense"},
		{"config", "validate", "x"},
		{"config", "validate", "--role", "nobody"},
		{"config", "validate", "--provider", "sim"},
		{"config", "show", "--role", "ingress", "--provider", "sim"},
		{"route", "nonsense"},
		{"route", "explain"},
		{"route", "explain", "x", "--model", "m"},
		{"route", "explain", "--model", "m", "--endpoint", "audio"},
		{"route", "explain", "--model", "m", "--header", "x-session"},
		{"route", "explain", "--model", "m", "--header", "=v"},
		{"route", "explain", "--model", "m", "--metadata", "purpose"},
		{"route", "explain", "--model", "m", "--prompt-tokens", "-1"},
		{"route", "explain", "--model", "m", "--output-tokens", "many"},
		{"route", "explain", "--model", "m", "--endpoint", "embeddings", "--stream"},
		{"migrate", "x"},
		{"ingress", "x"},
		{"worker", "x"},
		{"worker"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			code, out, errs := sluice(t, args...)
			require.Equal(t, exitUsage, code)
			require.Empty(t, out)
			require.True(t, strings.HasPrefix(errs, "sluice: "), errs)
			require.Contains(t, errs, "--help")
		})
	}
}

func TestConfigCommands(t *testing.T) {
	t.Parallel()
	good := configFile(t, minimal+"auth: {keys: [{name: dev, key: a-very-secret-key}]}\n")
	code, out, errs := sluice(t, "config", "validate", "--config", good)
	require.Zero(t, code, errs)
	require.Contains(t, out, "valid")

	code, out, _ = sluice(t, "config", "show", "-c", good)
	require.Zero(t, code)
	require.Contains(t, out, "first_token_delay: 0s")
	require.NotContains(t, out, "a-very-secret-key")

	code, out, _ = sluice(t, "config", "schema")
	require.Zero(t, code)
	require.True(t, json.Valid([]byte(out)))

	for name, c := range map[string]struct{ text, want string }{
		"unknown key": {minimal + "servre: {}\n", "servre"},
		"wrong type":  {minimal + "queue: {replicas: many}\n", "replicas"},
		"no variable": {minimal + "store: {url: \"${SLUICE_TEST_NOT_SET}\"}\n", "SLUICE_TEST_NOT_SET"},
		"no yaml":     {"server: [", "sluice.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := configFile(t, c.text)
			for _, args := range [][]string{{"config", "validate"}, {"config", "show"}, {"serve"}, {"keys", "list"}} {
				code, out, errs := sluice(t, append(args, "--config", path)...)
				require.Equal(t, exitFailure, code)
				require.Empty(t, out)
				require.Contains(t, errs, c.want)
				require.Contains(t, errs, "sluice.yaml", "the file is named")
			}
		})
	}
	code, _, errs = sluice(t, "config", "validate", "--config", filepath.Join(t.TempDir(), "missing.yaml"))
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "missing.yaml")
}

func TestRolesNeedTheirParts(t *testing.T) {
	t.Parallel()
	noQueue := configFile(t, minimal)
	for _, args := range [][]string{{"ingress"}, {"worker", "--provider", "sim"}} {
		code, _, errs := sluice(t, append(args, "-c", noQueue)...)
		require.Equal(t, exitFailure, code)
		require.Contains(t, errs, "queue.url")
	}
	external := configFile(t, minimal+"queue: {url: \"nats://127.0.0.1:1\"}\n")
	code, _, errs := sluice(t, "worker", "--provider", "nobody", "-c", external)
	require.NotZero(t, code)
	require.Contains(t, errs, "nobody")
}

// Commands on the database need no configuration, as 'serve' needs none. The embedded
// database lies where SLUICE_DATA_DIR says.
func TestKeysAndMigrate(t *testing.T) {
	t.Setenv("SLUICE_DATA_DIR", t.TempDir())

	code, _, errs := sluice(t, "keys", "list")
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "sluice migrate", "it says what to do")
	code, out, errs := sluice(t, "migrate")
	require.Zero(t, code, errs)
	require.Contains(t, out, "up to date")
	code, _, _ = sluice(t, "migrate")
	require.Zero(t, code, "a second time has nothing to do")

	code, secret, errs := sluice(t, "keys", "create", "ci", "--tenant", "research", "--models", "gpt-*,sim", "--expires", "1h")
	require.Zero(t, code, errs)
	require.True(t, apikey.WellFormed(strings.TrimSpace(secret)), "the secret alone is on stdout")
	require.NotContains(t, errs, strings.TrimSpace(secret))
	code, _, errs = sluice(t, "keys", "create", "ci")
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "ci")
	code, _, _ = sluice(t, "keys", "create", "forever")
	require.Zero(t, code)

	_, out, _ = sluice(t, "keys", "list")
	require.Regexp(t, `(?m)^key_\w+ +ci +research +sk-sluice-\S+ +gpt-\*,sim +until \S+ +\S+$`, out)
	require.Regexp(t, `(?m)^key_\w+ +forever +default +sk-sluice-\S+ +all +active +\S+$`, out)
	require.NotContains(t, out, strings.TrimSpace(secret))

	code, out, errs = sluice(t, "keys", "revoke", "ci")
	require.Zero(t, code, errs)
	require.Contains(t, out, "revoked")
	_, out, _ = sluice(t, "keys", "list")
	require.Regexp(t, `(?m)^key_\w+ +ci .* revoked \S+ `, out)
	code, _, errs = sluice(t, "keys", "revoke", "nobody")
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "keys list")
}

func TestKeyStates(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, k := range map[string]store.Key{
		"active":                       {},
		"until 2026-01-02T03:04:06Z":   {ExpiresAt: now.Add(time.Second)},
		"expired 2026-01-02T03:04:05Z": {ExpiresAt: now},
		"revoked 2026-01-02T04:04:05Z": {RevokedAt: now.Add(time.Hour), ExpiresAt: now},
	} {
		require.Equal(t, want, keyState(k, now))
	}
}

func TestOneProcessHasADataDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lock, err := lockDataDir(dir)
	require.NoError(t, err)
	_, err = lockDataDir(dir)
	require.ErrorContains(t, err, "another sluice process")
	require.NoError(t, lock.Close())
	lock, err = lockDataDir(dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
	_, err = lockDataDir("/dev/null/x")
	require.Error(t, err)
}

// terminal is a writer that may be read while it is written.
type terminal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *terminal) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *terminal) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// served is a running 'sluice serve'.
type served struct {
	out, errs terminal
	base, key string
	stop      func() int
}

var (
	basePattern = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	keyPattern  = regexp.MustCompile(`sk-sluice-[0-9A-Za-z]{46}`)
)

func serveHere(t *testing.T, path string, greeting string) *served {
	t.Helper()
	s := &served{}
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- run(ctx, []string{"serve", "--config", path}, &s.out, &s.errs) }()
	s.stop = sync.OnceValue(func() int {
		cancel()
		return <-code
	})
	t.Cleanup(func() { s.stop() })
	require.Eventually(t, func() bool { return strings.Contains(s.out.String(), greeting) }, soon, 5*time.Millisecond, "%s", s.errs.String())
	s.base = basePattern.FindString(s.out.String())
	s.key = keyPattern.FindString(s.out.String())
	return s
}

func call(t *testing.T, base, key, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/v1/chat/completions", strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+key)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(answer)
}

func TestServeAnswersAndComesBackWithItsKeys(t *testing.T) {
	t.Parallel()
	path := configFile(t, minimal)
	s := serveHere(t, path, "curl ")
	require.NotEmpty(t, s.base)
	require.NotEmpty(t, s.key)
	const request = `{"model":"sim","messages":[{"role":"user","content":"hi"}]}`
	status, body := call(t, s.base, s.key, request)
	require.Equal(t, http.StatusOK, status, body)
	require.Contains(t, body, `"chat.completion"`)

	// A second process keeps off the same data.
	code, _, errs := sluice(t, "serve", "--config", path)
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "another sluice process")
	require.Zero(t, s.stop(), s.errs.String())
	require.NotContains(t, s.errs.String(), s.key)

	again := serveHere(t, path, "API keys exist")
	require.Empty(t, again.key, "a key is shown once")
	status, body = call(t, again.base, s.key, request)
	require.Equal(t, http.StatusOK, status, body)
	require.Zero(t, again.stop(), again.errs.String())
}

// What a process had leased that was killed keeps the next one from nothing.
func TestServeVoidsLeasesOfBefore(t *testing.T) {
	t.Parallel()
	path := configFile(t, minimal)
	require.Zero(t, serveHere(t, path, "curl ").stop())
	db, err := sqlite.Open(t.Context(), filepath.Join(filepath.Dir(path), "data", "sluice.db"))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	now := time.Now()
	batch := store.Batch{
		ID: "batch_1", Tenant: "default", KeyID: "gone", Endpoint: "/v1/chat/completions", CreatedAt: now, ExpiresAt: now.Add(time.Hour),
		Owner: "killed", LeasedUntil: now.Add(time.Hour),
	}
	require.NoError(t, db.CreateBatch(t.Context(), batch))
	s := serveHere(t, path, "API keys exist")
	require.Eventually(t, func() bool {
		b, err := db.Batch(t.Context(), "default", "batch_1")
		return err == nil && b.Status == store.BatchFailed
	}, soon, 10*time.Millisecond, "nobody looks at the batch")
	require.Zero(t, s.stop(), s.errs.String())
}

func TestServeSaysThatItsAddressIsTaken(t *testing.T) {
	t.Parallel()
	s := serveHere(t, configFile(t, minimal), "curl ")
	taken := strings.TrimPrefix(s.base, "http://")
	code, _, errs := sluice(t, "serve", "--config", configFile(t, strings.Replace(minimal, "127.0.0.1:0", taken, 1)))
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "server.address "+taken)
	require.NotContains(t, errs, "fx", "nothing of how the process is put together")
	require.Zero(t, s.stop(), s.errs.String())
}

func TestRootCause(t *testing.T) {
	t.Parallel()
	inner := fmt.Errorf("what to do")
	require.Equal(t, inner, rootCause(fmt.Errorf("constructor: %w", startFailed(inner))))
	require.NoError(t, startFailed(nil))
	plain := fmt.Errorf("plain")
	require.Equal(t, plain, rootCause(fmt.Errorf("wrapped: %w", plain)))
}
