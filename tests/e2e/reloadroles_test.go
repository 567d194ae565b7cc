package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// role is a process of a cluster whose own file is changed while it runs.
type role struct {
	reloading
	cluster *cluster
	file    string
}

func (c *cluster) reloads(p *process, file string) *role {
	return &role{reloading{process: p, client: newClient(c.t, p.address(), clusterKey), t: c.t}, c, file}
}

// edit replaces a text of the file once, by another file that takes its name.
func (r *role) edit(before, after string) {
	r.t.Helper()
	path := r.cluster.file(r.file)
	text, err := os.ReadFile(path)
	require.NoError(r.t, err)
	require.Contains(r.t, string(text), before)
	r.put(path+".new", strings.Replace(string(text), before, after, 1))
	require.NoError(r.t, os.Rename(path+".new", path))
}

// spoil makes the file a bad one, requires that its fault is told and nothing else happens,
// and brings the file back. A signal has the bad file read once more.
func (r *role) spoil(setting, good, bad string) {
	r.t.Helper()
	_, before := r.results()
	told := fmt.Sprintf(`"at":"%s:`, r.cluster.file(r.file))
	r.edit(good, bad)
	r.eventually("refuse the file", func() bool { _, now := r.results(); return now == before+1 })
	require.Zero(r.t, r.value("sluice_config_last_reload_successful"))
	r.eventually("tell of the fault", func() bool { return strings.Contains(r.line(told), fmt.Sprintf(`"setting":%q`, setting)) })
	require.Regexp(r.t, `:\d+:\d+","setting"`, r.line(told), "with its line")
	r.signal(syscall.SIGHUP)
	r.eventually("read it again", func() bool { _, now := r.results(); return now == before+2 })
	r.edit(bad, good)
	r.eventually("take the good file", func() bool { return r.value("sluice_config_last_reload_successful") == 1 })
}

// line returns the last line of the log that has this text.
func (r *role) line(text string) (found string) {
	for line := range strings.Lines(r.stderr.String()) {
		if strings.Contains(line, text) {
			found = line
		}
	}
	return found
}

// asksForRestart waits until the process says that it takes a restart for this setting.
func (r *role) asksForRestart(setting string) {
	r.t.Helper()
	r.eventually("say what needs a restart", func() bool {
		return strings.Contains(r.line("a change of the configuration needs a restart"), fmt.Sprintf(`"setting":%q`, setting))
	})
	r.eventually("show it", func() bool { return r.value("sluice_config_restart_needed") == 1 })
}

// Apart, each role follows its own file. What a worker's says holds for the calls that begin
// then; one that is under way ends as it began.
func TestAWorkerReloadsItsOwnFile(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	second := testkit.NewUpstream(t)
	begun, release := make(chan struct{}), make(chan struct{})
	script := func(call *testkit.Call) {
		switch prompt(call) {
		case "long":
			close(begun)
			call.Wait(release)
		case "wrong":
			call.Fail(http.StatusBadRequest, "no")
			return
		case "several":
			call.Pause(100 * time.Millisecond)
		}
		call.Reply("echo ", prompt(call))
	}
	c.upstream.Handle(script)
	second.Handle(script)
	in := c.ingress()
	w := c.reloads(c.worker(in, 1), "worker.yaml")
	keyAt := func(u *testkit.Upstream) string {
		_, err := in.ask(t.Context(), "short")
		require.NoError(t, err)
		if u.Count() == 0 {
			return ""
		}
		return strings.TrimPrefix(u.Last().Header.Get("Authorization"), "Bearer ")
	}
	require.Equal(t, "sk-upstream-0123456789", keyAt(c.upstream))
	long := make(chan error, 1)
	go func() {
		_, err := in.ask(t.Context(), "long")
		long <- err
	}()
	<-begun

	w.edit("sk-upstream-0123456789", "sk-second-0123456789")
	w.eventually("use the new key", func() bool { return keyAt(c.upstream) == "sk-second-0123456789" })
	w.spoil("providers.up.concurrency", "concurrency: 64", "concurrency: many")
	require.Equal(t, "sk-second-0123456789", keyAt(c.upstream))
	close(release)
	require.NoError(t, <-long, "it ends under the settings that it began with")

	w.edit(c.upstream.URL(), second.URL())
	w.eventually("call the other address", func() bool { return keyAt(second) == "sk-second-0123456789" })
	several := func() {
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
				if _, err := in.ask(t.Context(), "several"); err != nil {
					t.Error(err)
				}
			})
		}
		asking.Wait()
	}
	w.edit("concurrency: 64", "concurrency: 1")
	w.edit("sk-second-0123456789", "sk-third-0123456789")
	w.eventually("call one at a time", func() bool { return keyAt(second) == "sk-third-0123456789" })
	require.Equal(t, 1, second.MostInFlight())
	several()
	require.Equal(t, 1, second.MostInFlight())
	w.edit("concurrency: 1", "concurrency: 4")
	w.eventually("call several at a time", func() bool { several(); return second.MostInFlight() > 1 })

	wrong := func() { _, err := in.ask(t.Context(), "wrong"); require.Error(t, err) }
	wrong()
	require.NotContains(t, w.stderr.String(), `"level":"DEBUG"`)
	w.edit("log_level: info", "log_level: debug")
	w.eventually("tell more", func() bool { wrong(); return w.line(`"msg":"call failed"`) != "" })
	w.edit("  up: {", "  other: {")
	w.eventually("not give up its provider", func() bool {
		return strings.Contains(w.line(`"setting":"providers.up"`), "is missing, and this worker was started to serve it")
	})
	require.Equal(t, "sk-third-0123456789", keyAt(second))
	w.edit("  other: {", "  up: {")
	w.edit("timeout: 2m", "timeout: 3m")
	w.asksForRestart("server.timeout")
	for _, secret := range []string{"sk-upstream", "sk-second", "sk-third"} {
		require.NotContains(t, w.stderr.String(), secret)
	}
}

// What an ingress's file says holds for the requests that begin then.
func TestAnIngressReloadsItsOwnFile(t *testing.T) {
	t.Parallel()
	const key = "sk-of-the-new-file-0123456789"
	c := newCluster(t, clusterOptions{})
	c.upstream.Handle(echo)
	in := c.ingress()
	c.worker(in, 1)
	r := c.reloads(in.process, "ingress.yaml")
	send := func(key, model, prompt string, header http.Header) *http.Response {
		resp, err := in.as(key).post(t.Context(), chatBody(model, false, prompt), header)
		require.NoError(t, err)
		drop(resp)
		return resp
	}
	status := func(key, model string) int { return send(key, model, "hello", nil).StatusCode }
	row := func(resp *http.Response) (found inference.Record) {
		in.eventually("write the row", func() bool {
			rows, err := ledger(t.Context(), c.db)
			require.NoError(t, err)
			for _, rec := range rows {
				if rec.RequestID == resp.Header.Get("X-Request-Id") {
					found = rec
					return true
				}
			}
			return false
		})
		return found
	}
	require.Equal(t, http.StatusUnauthorized, status(key, clusterModel))
	r.edit("tenant: e2e}", "tenant: e2e}, {name: new, key: "+key+", limits: {requests_per_minute: 1}}")
	in.eventually("know the key", func() bool { return status(key, "no-such-model") == http.StatusNotFound })
	require.Equal(t, http.StatusOK, status(key, clusterModel))
	require.Equal(t, http.StatusTooManyRequests, status(key, clusterModel))
	r.edit("requests_per_minute: 1}", "requests_per_minute: 100}")
	in.eventually("lift the limit", func() bool { return status(key, clusterModel) == http.StatusOK })

	require.Equal(t, http.StatusNotFound, status(clusterKey, "swift"))
	require.False(t, row(send(clusterKey, clusterModel, "hello", nil)).Priced)
	r.edit("observability:", "routing: {aliases: {swift: "+clusterModel+"}}\nobservability:")
	in.eventually("know the alias", func() bool { return status(clusterKey, "swift") == http.StatusOK })
	r.edit("concurrency: 64", "concurrency: 64, prices: [{models: [\"*\"], input: 2, output: 3}]")
	in.eventually("know the price", func() bool { return row(send(clusterKey, clusterModel, "hello", nil)).Priced })
	priced := row(send(clusterKey, clusterModel, "hello", nil))
	require.Positive(t, priced.Cost)
	require.EqualValues(t, 2000*priced.Usage.PromptTokens+3000*priced.Usage.CompletionTokens, priced.Cost, "in billionths")

	cached := func() string { return send(clusterKey, clusterModel, "again", nil).Header.Get("X-Sluice-Cache") }
	require.Empty(t, cached())
	r.edit("observability:", "cache: {rules: [{name: all, ttl: 1h}]}\nobservability:")
	in.eventually("answer from the cache", func() bool { return cached() == "hit" })

	const origin = "https://page.example"
	allowed := func() string {
		return send(clusterKey, clusterModel, "again", http.Header{"Origin": {origin}}).Header.Get("Access-Control-Allow-Origin")
	}
	require.Empty(t, allowed())
	r.edit("keepalive:", "cors: {allowed_origins: [\""+origin+"\"]}\n  keepalive:")
	in.eventually("let the page call", func() bool { return allowed() == origin })

	r.spoil("observability.log_level", "log_level: info", "log_level: loud")
	require.Equal(t, origin, allowed())
	require.NotContains(t, in.stderr.String(), `"level":"DEBUG"`)
	r.edit("log_level: info", "log_level: debug")
	in.eventually("tell more", func() bool { _ = status(clusterKey, "swift"); return r.line(`"level":"DEBUG"`) != "" })
	r.edit("name: new, key: "+key, "name: new, key: sk-of-another-file-0123456789")
	in.eventually("forget the key", func() bool { return status(key, clusterModel) == http.StatusUnauthorized })
	require.Equal(t, http.StatusOK, status("sk-of-another-file-0123456789", clusterModel))
	r.edit("keepalive: 200ms", "keepalive: 300ms")
	r.asksForRestart("server.keepalive")
	require.NotContains(t, in.stderr.String(), key)
}
