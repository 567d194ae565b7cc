package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/ingress"
	"sluice/internal/adminapi"
	"sluice/internal/adminapi/adminapitest"
	"sluice/internal/config"
	"sluice/internal/observability"
)

// reloadable starts serve with an admin listener, and returns its file and what begins it.
func reloadable(t *testing.T) (s *served, path, base string) {
	t.Helper()
	base = minimal + "admin: {address: '" + freeAddress(t) + "', token: operators-only-0123}\n"
	path = configFile(t, base)
	written, err := os.ReadFile(path)
	require.NoError(t, err)
	return serveHere(t, path, "curl "), path, string(written)
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", []byte(text), 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

func metricsOf(t *testing.T, s *served) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.base+"/metrics", http.NoBody)
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(text)
}

func TestOperatorsReload(t *testing.T) {
	t.Parallel()
	s, path, base := reloadable(t)
	other := configFile(t, base) // where an operator reads where to ask
	rewrite(t, path, strings.NewReplacer("models: [sim]", "models: [sim, new]", "log_level: error", "log_level: info, log_format: text").Replace(base))
	code, out, errs := sluice(t, "config", "reload", "--config", other)
	require.Zero(t, code, errs)
	require.Contains(t, out, "The configuration is reloaded (")
	require.Contains(t, out, "observability.log_format has changed and needs a restart.\n")
	status, body := call(t, s.base, s.key, `{"model":"new","messages":[{"role":"user","content":"hi"}]}`)
	require.Equal(t, http.StatusOK, status, body)

	code, out, errs = sluice(t, "config", "show", "--live", "--config", other)
	require.Zero(t, code, errs)
	require.Contains(t, out, "needs_restart: [\"observability.log_format\"]\n")
	require.Contains(t, out, "  observability:\n    log_level: info\n    log_format: json\n")
	require.Contains(t, out, "token: xxxxx")
	require.NotContains(t, out, "operators-only-0123")
	metrics := metricsOf(t, s)
	require.Contains(t, metrics, "sluice_config_restart_needed 1\n")
	require.Contains(t, metrics, "sluice_config_last_reload_successful 1\n")

	rewrite(t, path, base+"routing: {order: [nobody]}\n")
	code, _, errs = sluice(t, "config", "reload", "--config", other)
	require.Equal(t, exitFailure, code)
	require.Regexp(t, `sluice\.yaml:\d+:\d+: routing\.order`, errs, "file, line and key")
	require.Contains(t, metricsOf(t, s), "sluice_config_last_reload_successful 0\n")
	status, body = call(t, s.base, s.key, `{"model":"new","messages":[{"role":"user","content":"hi"}]}`)
	require.Equal(t, http.StatusOK, status, body, "what was in force still is")
	code, out, errs = sluice(t, "config", "show", "--live", "--config", other)
	require.Zero(t, code, errs)
	require.Contains(t, out, `"setting":"routing.order`)

	rewrite(t, path, base)
	require.Eventually(t, func() bool {
		metrics := metricsOf(t, s)
		return strings.Contains(metrics, "sluice_config_last_reload_successful 1\n") && strings.Contains(metrics, "sluice_config_restart_needed 0\n")
	}, soon, 10*time.Millisecond, "it notices by itself")
	require.Zero(t, s.stop(), s.errs.String())
	require.Contains(t, s.errs.String(), `"setting":"observability.log_format"`)
	require.NotContains(t, s.errs.String(), "operators-only-0123")
}

// A file that takes force by itself is in the audit, and one that is no good is not.
func TestTheAuditKnowsWhatTookForceByItself(t *testing.T) {
	t.Parallel()
	s, path, base := reloadable(t)
	told := func(actor string) string {
		code, out, errs := sluice(t, "audit", "list", "--actor", actor, "--json", "--config", path)
		require.Zero(t, code, errs)
		return out
	}
	host, err := os.Hostname()
	require.NoError(t, err)
	rewrite(t, path, base+"routing: {order: [nobody]}\n")
	require.Eventually(t, func() bool {
		return strings.Contains(metricsOf(t, s), "sluice_config_last_reload_successful 0\n")
	}, soon, 10*time.Millisecond)
	rewrite(t, path, strings.Replace(base, "log_level: error", "log_level: warn", 1))
	var out string
	require.Eventually(t, func() bool {
		out = told("file:" + host)
		return out != ""
	}, soon, 50*time.Millisecond)
	require.Equal(t, 1, strings.Count(out, "\n"), out)
	require.Contains(t, out, `"action":"config.reload"`)
	require.Contains(t, out, `"settings":{"observability.log_level":"error"}`)
	require.Contains(t, out, `"settings":{"observability.log_level":"warn"}`)
	require.Zero(t, s.stop(), s.errs.String())
}

// What a running process answers about its configuration is what the document of its API
// says.
func TestTheConfigurationIsAnsweredAsDocumented(t *testing.T) {
	t.Parallel()
	s, path, base := reloadable(t)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+', token`).FindString(base)
	address, _, _ = strings.Cut(address, "'")
	client := &http.Client{Transport: adminapitest.New(t).RoundTripper(&http.Transport{DisableKeepAlives: true})}
	ask := func(method, at, accept string) (status int, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+at, http.NoBody)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer operators-only-0123")
		req.Header.Set("Accept", accept)
		resp, err := client.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(text)
	}
	status, body := ask(http.MethodGet, adminapi.DocumentPath, "")
	require.Equal(t, http.StatusOK, status)
	document, err := adminapi.Document()
	require.NoError(t, err)
	require.Equal(t, string(document), body)
	for _, accept := range []string{"application/json", "application/yaml"} {
		status, body = ask(http.MethodGet, adminapi.ConfigPath, accept)
		require.Equal(t, http.StatusOK, status, body)
		require.Contains(t, body, "xxxxx")
	}
	status, body = ask(http.MethodPost, adminapi.ConfigReloadPath, "")
	require.Equal(t, http.StatusOK, status, body)
	rewrite(t, path, base+"routing: {order: [nobody]}\n")
	status, body = ask(http.MethodPost, adminapi.ConfigReloadPath, "")
	require.Equal(t, http.StatusUnprocessableEntity, status, body)
	status, body = ask(http.MethodGet, adminapi.ConfigPath, "")
	require.Equal(t, http.StatusOK, status, body)
	require.Contains(t, body, "routing.order", "the last reload's faults")
	require.Zero(t, s.stop(), s.errs.String())
}

func TestReloadNeedsAnAdminListener(t *testing.T) {
	t.Parallel()
	path := configFile(t, minimal)
	for _, args := range [][]string{{"config", "reload"}, {"config", "show", "--live"}} {
		code, _, errs := sluice(t, append(args, "--config", path)...)
		require.Equal(t, exitFailure, code)
		require.Contains(t, errs, "admin.address")
	}
}

func reloadNow(t *testing.T, r *reloader) error {
	t.Helper()
	_, _, err := r.Reload(t.Context())
	return err
}

// reloaderOf is a reloader of a process without any role.
func reloaderOf(t *testing.T, options config.Options) *reloader {
	t.Helper()
	options.Environ = append(options.Environ, "PATH=")
	loaded, err := config.Load(options)
	require.NoError(t, err)
	level, err := observability.NewLevel(loaded.Config.Observability.LogLevel)
	require.NoError(t, err)
	r := newReloader(loaded, nil, level, nil, slog.New(slog.DiscardHandler))
	r.metrics.register(prometheus.NewRegistry(), r.state)
	return r
}

// valueOf returns what a metric of one series has.
func valueOf(t *testing.T, of prometheus.Collector) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(of)
	families, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, families, 1)
	require.Len(t, families[0].GetMetric(), 1)
	m := families[0].GetMetric()[0]
	return m.GetGauge().GetValue() + m.GetCounter().GetValue() // it is one of them
}

func TestReloadWithoutAFile(t *testing.T) {
	t.Parallel()
	r := reloaderOf(t, config.Options{})
	require.ErrorIs(t, reloadNow(t, r), ingress.ErrNoConfigFile)
	state, err := r.State()
	require.NoError(t, err)
	require.Nil(t, state.LastReload)
	require.Empty(t, state.File)
}

// A worker that was started for a provider does not go on without it.
func TestAWorkersProvidersAreNotTakenFromIt(t *testing.T) {
	t.Parallel()
	path := configFile(t, "queue: {url: 'nats://127.0.0.1:4222'}\nproviders: {a: {type: sim}, b: {type: sim}}\n")
	r := reloaderOf(t, config.Options{Path: path, Role: config.RoleWorker, Providers: []string{"a"}})
	rewrite(t, path, "queue: {url: 'nats://127.0.0.1:4222'}\nproviders: {b: {type: sim}}\n")
	require.ErrorContains(t, reloadNow(t, r), "providers.a")
	require.Contains(t, r.config.Providers, "a")
	rewrite(t, path, "queue: {url: 'nats://127.0.0.1:4222'}\nproviders: {a: {type: sim, concurrency: 7}}\n")
	require.NoError(t, reloadNow(t, r))
	require.Equal(t, 7, r.config.Providers["a"].Concurrency)
}

// The environment of the start goes over the file, each time.
func TestTheEnvironmentStaysOverTheFile(t *testing.T) {
	t.Parallel()
	path := configFile(t, "observability: {log_level: info}\nauth: {keys: [{name: a, key: sk-0123456789abcdef, tenant: x}]}\n")
	r := reloaderOf(t, config.Options{Path: path, Environ: []string{"SLUICE_OBSERVABILITY_LOG_LEVEL=warn"}})
	require.Equal(t, slog.LevelWarn, r.level.Level())
	rewrite(t, path, "observability: {log_level: debug}\nauth: {keys: [{name: a, key: sk-0123456789abcdef, tenant: y}]}\n")
	require.NoError(t, reloadNow(t, r))
	require.Equal(t, slog.LevelWarn, r.level.Level())
	require.Equal(t, "y", r.config.Auth.Keys[0].Tenant)
}

// A file that is written anew while it is read is waited for, and taken as a whole.
func TestAFileThatIsBeingWrittenIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := configFile(t, "observability: {log_level: info}\n")
	r := reloaderOf(t, config.Options{Path: path})
	whole := filepath.Join(t.TempDir(), "whole")
	require.NoError(t, os.WriteFile(whole, []byte("observability: {log_level: debug}\n"), 0o600))
	hash, err := config.HashFile(whole)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, nil, 0o600)) // emptied, to be written
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.reloadTo(ctx, hash)
	}()
	require.Never(t, func() bool { state, _ := r.State(); return state.LastReload != nil }, 3*changingLook, changingLook)
	require.NoError(t, os.Rename(whole, path))
	<-done
	cancel()
	require.Equal(t, slog.LevelDebug, r.level.Level())
	require.Equal(t, hash, r.lastTried())
}

// A file that becomes good while a bad one is tried is one that nobody has tried yet: the
// watch is to load it.
func TestAFileThatBecomesGoodWhileABadOneIsTried(t *testing.T) {
	t.Parallel()
	path := configFile(t, "observability: {log_level: info}\n")
	r := reloaderOf(t, config.Options{Path: path})
	good := filepath.Join(t.TempDir(), "good")
	require.NoError(t, os.WriteFile(good, []byte("observability: {log_level: debug}\n"), 0o600))
	hash, err := config.HashFile(good)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	done := make(chan error, 1)
	go func() { done <- reloadNow(t, r) }()
	bad, err := os.OpenFile(path, os.O_WRONLY, 0) // returns when it is opened to be read
	require.NoError(t, err)
	require.NoError(t, os.Rename(good, path))
	_, err = bad.WriteString("observability: {log_level: loud}\n")
	require.NoError(t, err)
	require.NoError(t, bad.Close())
	require.ErrorContains(t, <-done, "log_level")
	require.NotEqual(t, hash, r.lastTried())
	require.NotEmpty(t, r.lastTried(), "the watch need not try the bad one again")
	r.reloadTo(t.Context(), hash)
	require.Equal(t, slog.LevelDebug, r.level.Level())
}

// A file that cannot be read, or says nothing any more, is a fault of the file like any
// other: nothing changes, and the log, the metrics and the state tell of it. As soon as it is
// back it is read, also when it is as it was.
func TestAFileThatIsGoneIsAFault(t *testing.T) {
	t.Parallel()
	const settings = "observability: {log_level: warn}\n"
	for name, c := range map[string]struct {
		spoil   func(t *testing.T, path string)
		problem string
	}{
		"deleted": {func(t *testing.T, path string) { t.Helper(); require.NoError(t, os.Remove(path)) }, "cannot be read: no such file or directory"},
		"a directory": {func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o700))
		}, "cannot be read: is a directory"},
		"emptied":  {func(t *testing.T, path string) { t.Helper(); rewrite(t, path, "") }, "the file is empty"},
		"comments": {func(t *testing.T, path string) { t.Helper(); rewrite(t, path, "# server: {}\n\n# nothing else\n") }, "the file is empty"},
		"a start":  {func(t *testing.T, path string) { t.Helper(); rewrite(t, path, "\ufeff---\n") }, "the file is empty"},
	} {
		for _, asked := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s %t", name, asked), func(t *testing.T) {
				t.Parallel()
				path := configFile(t, settings)
				var log bytes.Buffer
				r := reloaderOf(t, config.Options{Path: path})
				r.log = slog.New(slog.NewJSONHandler(&log, nil))
				before := r.config
				c.spoil(t, path)
				if asked {
					require.ErrorContains(t, reloadNow(t, r), "")
				} else {
					hash, _ := config.HashFile(path) // of some there is none
					r.reloadTo(t.Context(), hash)
				}
				require.Same(t, before, r.config)
				require.Zero(t, valueOf(t, r.metrics.successful))
				state, err := r.State()
				require.NoError(t, err)
				require.False(t, state.LastReload.OK)
				require.Len(t, state.LastReload.Faults, 1)
				require.Equal(t, path, state.LastReload.Faults[0].At)
				require.Contains(t, state.LastReload.Faults[0].Problem, c.problem)
				var line map[string]any
				require.NoError(t, json.Unmarshal(log.Bytes(), &line), log.String())
				require.Equal(t, path, line["at"])
				require.NotEqual(t, state.Hash, r.lastTried(), "what was in force comes back as another content")

				require.NoError(t, os.RemoveAll(path))
				rewrite(t, path, settings)
				r.reloadTo(t.Context(), state.Hash)
				require.EqualValues(t, 1, valueOf(t, r.metrics.successful))
				require.EqualValues(t, 1, valueOf(t, r.metrics.reloads.WithLabelValues(reloadFailure)), "told once")
			})
		}
	}
}

// Who began without a setting goes on without one, until there is one.
func TestAFileThatWasEmptyMayBe(t *testing.T) {
	t.Parallel()
	path := configFile(t, "# to come\n")
	r := reloaderOf(t, config.Options{Path: path})
	require.NoError(t, reloadNow(t, r))
	rewrite(t, path, "")
	require.NoError(t, reloadNow(t, r))
	rewrite(t, path, "observability: {log_level: warn}\n")
	require.NoError(t, reloadNow(t, r))
	rewrite(t, path, "")
	require.ErrorContains(t, reloadNow(t, r), "the file is empty")
	require.Equal(t, slog.LevelWarn, r.level.Level())
	rewrite(t, path, "{}\n")
	require.NoError(t, reloadNow(t, r), "somebody says that there is none")
}

// A file that is back before it was found to be gone is read as soon as it is told of.
func TestAFileThatIsBackIsNotMissed(t *testing.T) {
	t.Parallel()
	path := configFile(t, "observability: {log_level: info}\n")
	r := reloaderOf(t, config.Options{Path: path})
	r.reloadTo(t.Context(), config.Unreadable)
	state, err := r.State()
	require.NoError(t, err)
	require.Nil(t, state.LastReload, "nothing was read")
	require.NoError(t, os.Remove(path))
	require.Error(t, reloadNow(t, r))
	r.reloadTo(t.Context(), "the hash of what was there for a moment")
	require.Equal(t, config.Unreadable, r.lastTried())
}

// A change that is taken back before it could be read is not waited for.
func TestAChangeThatIsTakenBackIsForgotten(t *testing.T) {
	t.Parallel()
	r := reloaderOf(t, config.Options{Path: configFile(t, "observability: {log_level: info}\n")})
	r.reloadTo(t.Context(), "the hash of what was there for a moment")
	state, err := r.State()
	require.NoError(t, err)
	require.Nil(t, state.LastReload)
}

func TestMarks(t *testing.T) {
	t.Parallel()
	cfg := func(change func(*config.Provider)) *config.Config {
		p := config.NewProvider(config.TypeOpenAI)
		p.BaseURL, p.APIKey, p.Models = "http://a", "secret", []string{"m"}
		change(&p)
		return &config.Config{Providers: map[string]config.Provider{"p": p}}
	}
	same := func(*config.Provider) {}
	first := marksOf(0, nil, cfg(same))
	for name, c := range map[string]struct {
		change             func(*config.Provider)
		settings, upstream bool
	}{
		"nothing":      {same, true, true},
		"models":       {func(p *config.Provider) { p.Models = []string{"m", "n"} }, false, true},
		"concurrency":  {func(p *config.Provider) { p.Concurrency = 3 }, false, true},
		"address":      {func(p *config.Provider) { p.BaseURL = "http://b" }, false, false},
		"key":          {func(p *config.Provider) { p.APIKey = "another" }, false, false},
		"header":       {func(p *config.Provider) { p.Headers = map[string]config.Secret{"a": "b"} }, false, false},
		"several keys": {func(p *config.Provider) { p.APIKey, p.APIKeys = "", []config.UpstreamKey{{Key: "k", Weight: 1}} }, false, false},
	} {
		next := marksOf(1, first, cfg(c.change))
		s1, u1 := first.of("p")
		s2, u2 := next.of("p")
		require.Equal(t, []bool{c.settings, c.upstream}, []bool{s1 == s2, u1 == u2}, name)
		s3, u3 := marksOf(2, next, cfg(c.change)).of("p")
		require.Equal(t, []string{s2, u2}, []string{s3, u3}, "it stays so")
	}

	back := marksOf(2, marksOf(1, first, &config.Config{}), cfg(func(p *config.Provider) { p.BaseURL = "http://b" }))
	s1, u1 := first.of("p")
	s2, u2 := back.of("p")
	require.NotEqual(t, s1, s2)
	require.NotEqual(t, u1, u2, "it was away and is another one now")
}
