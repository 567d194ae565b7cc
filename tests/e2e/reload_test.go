package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	reloadKey   = "sk-e2e-reload-0123456789"
	reloadToken = "an-operators-token-0123456789"
)

// reloading is a serve whose configuration is changed while it answers.
type reloading struct {
	*process
	client
	t    *testing.T
	dir  string // of what the link to the configuration is swapped between
	path string
	n    int // versions so far
}

// version is a configuration that differs from all others in every kind of setting that
// may change, and good for the requests of the test.
func (r *reloading) version() string {
	r.n++
	level := []string{"info", "warn", "error"}[(r.n-1)%3]
	text := fmt.Sprintf(`server: {address: "127.0.0.1:0", max_in_flight: 20000, cors: {max_age: %ds}}
data_dir: data
admin: {address: "127.0.0.1:0", token: %s}
auth: {keys: [{name: e2e, key: %s}, {name: v%d, key: sk-of-version-%016d}]}
providers:
  sim: {type: sim, models: [%s, "v%d"], concurrency: %d, max_queued: 5000, breaker: {failures: %d}, sim: {first_token_delay: 1ms, tokens_per_second: 20000, completion_tokens: %d}}
`, r.n, reloadToken, reloadKey, r.n, r.n, clusterModel, r.n, 256+r.n%3, 5+r.n%2, 8+r.n%4)
	if r.n%2 == 0 {
		text += fmt.Sprintf("  extra%d: {type: sim, models: [extra%d]}\n", r.n%3, r.n%3)
	}
	return text + fmt.Sprintf(`routing: {rules: [{name: all, when: {all: [{models: [%s]}]}, targets: [{provider: sim, model: v%d}]}]}
observability: {log_level: %s}
`, clusterModel, r.n, level)
}

// bad is a file that no version follows from.
func (r *reloading) bad() string {
	r.n++
	return []string{
		"providers: {sim: {type: nothing}}\n", "server: [\n", fmt.Sprintf("nobody_knows: %d\n", r.n),
		"auth: {keys: [{name: short, key: x}]}\n",
	}[r.n%4]
}

func (r *reloading) put(path, text string) {
	require.NoError(r.t, os.WriteFile(path, []byte(text), 0o600))
}

// change brings the text to where the process reads it, each time in another way.
func (r *reloading) change(way int, text string) {
	switch way % 4 {
	case 0: // written where it is
		target, err := filepath.EvalSymlinks(r.path)
		require.NoError(r.t, err)
		r.put(target, text)
	case 1: // the link is swapped, as of a ConfigMap
		version := fmt.Sprintf("..%d", r.n)
		require.NoError(r.t, os.Mkdir(filepath.Join(r.dir, version), 0o700))
		r.put(filepath.Join(r.dir, version, "sluice.yaml"), text)
		require.NoError(r.t, os.Symlink(version, filepath.Join(r.dir, "..data_tmp")))
		require.NoError(r.t, os.Rename(filepath.Join(r.dir, "..data_tmp"), filepath.Join(r.dir, "..data")))
	case 2: // renamed over
		target, err := filepath.EvalSymlinks(r.path)
		require.NoError(r.t, err)
		r.put(target+".new", text)
		require.NoError(r.t, os.Rename(target+".new", target))
	default: // told of by a signal, before anybody could notice
		target, err := filepath.EvalSymlinks(r.path)
		require.NoError(r.t, err)
		r.put(target, text)
		r.signal(syscall.SIGHUP)
	}
}

// metric is the sum of a metric's series whose text begins so; zero if there are none.
func (r *reloading) metric(prefix string) (sum float64, series int) {
	resp, err := r.http.Get(r.base + "/metrics")
	require.NoError(r.t, err)
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && (name == prefix || strings.HasPrefix(name, prefix+"{")) {
			v, err := strconv.ParseFloat(value, 64)
			require.NoError(r.t, err)
			sum += v
			series++
		}
	}
	return sum, series
}

func (r *reloading) value(name string) float64 {
	sum, _ := r.metric(name)
	return sum
}

// results are how many reloads went well, and how many did not.
func (r *reloading) results() (good, bad float64) {
	return r.value(`sluice_config_reloads_total{result="success"}`), r.value(`sluice_config_reloads_total{result="failure"}`)
}

func startReloading(t *testing.T) *reloading {
	t.Helper()
	home := t.TempDir()
	r := &reloading{t: t, dir: filepath.Join(home, "etc")}
	require.NoError(t, os.MkdirAll(filepath.Join(r.dir, "..0"), 0o700))
	r.put(filepath.Join(r.dir, "..0", "sluice.yaml"), r.version())
	require.NoError(t, os.Symlink("..0", filepath.Join(r.dir, "..data")))
	r.path = filepath.Join(r.dir, "sluice.yaml")
	require.NoError(t, os.Symlink(filepath.Join("..data", "sluice.yaml"), r.path))
	r.process = start(t, command{dir: home, args: []string{"serve", "--config", r.path}})
	r.client = newClient(t, r.address(), reloadKey)
	r.eventually("answer", func() bool {
		_, err := r.ask(t.Context(), "ready?")
		return err == nil
	})
	return r
}

const (
	reloads          = 100
	spareGoroutines  = 20 // goroutines more or less that a process has; fewer than one for each good reload
	reloadsPerSecond = 500

	// Streams of so many tokens at this pace go on over many reloads.
	longTokens = 60
	longPace   = 40
)

// Five hundred requests come each second, every tenth of them streamed and some of these for
// longer than several reloads take, while the configuration is changed a hundred times, every
// other time for the worse. Nobody notices, nothing is left behind, and the metrics tell what
// happened. No other test runs meanwhile: the load is to be had.
func TestNobodyNoticesAReload(t *testing.T) {
	r := startReloading(t)
	for range 12 { // each name of a provider has its queue then, which stays
		ok, _ := r.results()
		r.change(1, r.version())
		r.eventually("reload", func() bool { good, _ := r.results(); return good > ok })
	}
	before := r.value("go_goroutines")
	ctx, stop := context.WithCancel(t.Context())
	var sending, finished sync.WaitGroup
	a := &arrivals{began: time.Now()}
	var sent int
	var took time.Duration
	sending.Go(func() {
		tick := time.NewTicker(time.Second / reloadsPerSecond)
		defer tick.Stop()
		for ; ctx.Err() == nil; sent++ {
			<-tick.C
			n := sent
			finished.Go(func() { a.note(r.once(t.Context(), n)) })
		}
		took = time.Since(a.began)
	})
	for i := range reloads / 2 {
		good, _ := r.results()
		r.change(i, r.version())
		r.eventually("reload", func() bool { now, _ := r.results(); return now > good })
		require.Equal(t, 1.0, r.value("sluice_config_last_reload_successful"))
		_, bad := r.results()
		r.change(i, r.bad())
		r.eventually("refuse a bad file", func() bool { _, now := r.results(); return now > bad })
		require.Zero(t, r.value("sluice_config_last_reload_successful"))
	}
	r.change(1, r.version())
	r.eventually("reload", func() bool { return r.value("sluice_config_last_reload_successful") == 1 })
	stop()
	sending.Wait()
	finished.Wait()
	require.Empty(t, a.failures)
	require.Greater(t, sent, 5*reloadsPerSecond)
	require.Greater(t, float64(sent)/took.Seconds(), 0.8*reloadsPerSecond, "as many a second as were meant, but for what the machine had no time for")
	_, hashes := r.metric("sluice_config_info")
	require.Equal(t, 1, hashes)
	require.Zero(t, r.value("sluice_config_restart_needed"))
	require.InDelta(t, float64(time.Now().Unix()), r.value("sluice_config_last_reload_success_timestamp_seconds"), 10)
	_, err := r.ask(t.Context(), "still there?")
	require.NoError(t, err)
	r.http.CloseIdleConnections()
	r.eventually("let go of all that the reloads made", func() bool { return r.value("go_goroutines") <= before+spareGoroutines })
	require.NotContains(t, r.stderr.String(), reloadKey)
	require.NotContains(t, r.stderr.String(), reloadToken)
	r.signal(syscall.SIGTERM)
	require.Zero(t, r.wait())
}

// A file that stays away, in whatever manner, or loses its content is told of as a bad one
// is, and what was in force stays. When it is back as it was, all is well again.
func TestAFileThatIsLostIsTold(t *testing.T) {
	t.Parallel()
	r := startReloading(t)
	text, err := os.ReadFile(r.path)
	require.NoError(t, err)
	current := filepath.Join(r.dir, "..data", "sluice.yaml")
	for i, lose := range []struct {
		how     func() error
		problem string
	}{
		{func() error { return os.Remove(current) }, "cannot be read: no such file or directory"},
		{func() error { return errors.Join(os.Remove(current), os.Mkdir(current, 0o700)) }, "cannot be read: is a directory"},
		{func() error { return errors.Join(os.Remove(current), os.Symlink("nothing", current)) }, "cannot be read: no such file or directory"},
		{func() error { return os.WriteFile(current, nil, 0o600) }, "the file is empty"},
		{func() error { return os.WriteFile(current, []byte("# nothing\n"), 0o600) }, "the file is empty"},
	} {
		require.NoError(t, lose.how())
		r.eventually("tell of it in its metrics", func() bool { return r.value("sluice_config_last_reload_successful") == 0 })
		told := fmt.Sprintf(`"at":%q,"setting":"","problem":"%s`, r.path, lose.problem)
		r.eventually("tell of it in the log", func() bool { return strings.Contains(r.stderr.String(), told) })
		_, bad := r.results()
		require.EqualValues(t, i+1, bad, "once")
		_, err := r.ask(t.Context(), "still there?")
		require.NoError(t, err)
		require.NoError(t, os.RemoveAll(current))
		r.put(current, string(text))
		r.eventually("take it again", func() bool { return r.value("sluice_config_last_reload_successful") == 1 })
	}
	r.signal(syscall.SIGTERM)
	require.Zero(t, r.wait())
}

// once makes the n-th request, and says what was wrong with its answer.
func (r *reloading) once(ctx context.Context, n int) error {
	body, long := chatBody(clusterModel, n%10 == 0, "hello"), n%50 == 0
	if long {
		body = fmt.Sprintf(`{"sim":{"tokens_per_second":%d,"completion_tokens":%d},%s`, longPace, longTokens, body[1:])
	}
	resp, err := r.post(ctx, body, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d: %s", resp.StatusCode, text)
	case n%10 == 0 && !strings.HasSuffix(strings.TrimSpace(string(text)), "data: [DONE]"):
		return errors.New("the stream was dropped")
	case long && strings.Count(string(text), `"content":"`) < longTokens:
		return fmt.Errorf("tokens of the stream are missing: %s", text)
	}
	return nil
}

// note keeps what went wrong.
func (a *arrivals) note(err error) {
	if err == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures = append(a.failures, err)
}
