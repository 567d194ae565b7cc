package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/store"
	"sluice/store/postgres"
)

const (
	clusterKey   = "sk-e2e-configured-0123456789"
	clusterModel = "scripted"
	provider     = "up"
)

// cluster is Sluice with its roles apart: an external NATS, a Postgres, a scripted
// upstream, and as many ingresses and workers as a test starts.
type cluster struct {
	t        *testing.T
	upstream *testkit.Upstream
	nats     *testkit.NATSServer
	database string
	dir      string
	db       *postgres.Store
}

// clusterOptions say how a cluster differs from the plain one.
type clusterOptions struct {
	concurrency int    // of the provider; 64 if zero
	natsURL     string // instead of one that the cluster starts
	database    string // instead of one on the shared server
	keepalive   string // between SSE comments; 200ms if empty
	baseURL     string // of the upstream, when it is none of the cluster's
	logLevel    string // info if empty
	server      string // more settings of the server section, as YAML lines
	secret      string // the provider's
	storage     string // of the interactive lane; memory if empty
}

// newCluster starts what the processes need, migrates the database and writes their
// configuration.
func newCluster(t *testing.T, o clusterOptions) *cluster {
	t.Helper()
	c := &cluster{t: t, upstream: testkit.NewUpstream(t), dir: t.TempDir(), database: o.database}
	if c.database == "" {
		c.database = testkit.Postgres(t)
	}
	if o.natsURL == "" {
		c.nats = testkit.StartNATS(t)
		o.natsURL = c.nats.URL()
	}
	if o.baseURL == "" {
		o.baseURL = c.upstream.URL()
	}
	c.configure(o)
	code, stdout, stderr := execute(t, command{args: []string{"migrate", "--config", c.file("ingress.yaml")}})
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "up to date")
	db, err := postgres.Open(t.Context(), c.database, postgres.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	c.db = db
	return c
}

func (c *cluster) configure(o clusterOptions) {
	c.t.Helper()
	or := func(value, fallback string) string {
		if value == "" {
			return fallback
		}
		return value
	}
	if o.concurrency == 0 {
		o.concurrency = 64
	}
	level, storage := or(o.logLevel, "info"), or(o.storage, "memory")
	c.write("ingress.yaml", `server:
  address: 127.0.0.1:0
  keepalive: %s
  timeout: 2m
%squeue: {url: %q, storage: %s}
store: {url: %q}
auth: {keys: [{name: e2e, key: %s, tenant: e2e}]}
providers:
  %s: {models: [%s, "glob-*"], concurrency: %d}
observability: {log_level: %s}
`, or(o.keepalive, "200ms"), o.server, o.natsURL, storage, c.database, clusterKey, provider, clusterModel, o.concurrency, level)
	c.write("worker.yaml", `server:
  timeout: 2m
%squeue: {url: %q, storage: %s}
providers:
  %s: {type: openai, base_url: %q, api_key: %s, models: [%s, "glob-*"], concurrency: %d}
observability: {log_level: %s, address: "127.0.0.1:0"}
`, o.server, o.natsURL, storage, provider, o.baseURL, or(o.secret, "sk-upstream-0123456789"), clusterModel, o.concurrency, level)
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) write(name, format string, args ...any) {
	c.t.Helper()
	require.NoError(c.t, os.WriteFile(c.file(name), fmt.Appendf(nil, format, args...), 0o600))
}

// ingress is a running ingress and the clients that speak to it.
type ingress struct {
	*process
	client
}

func (c *cluster) ingress() *ingress {
	c.t.Helper()
	p := start(c.t, command{args: []string{"ingress", "--config", c.file("ingress.yaml")}})
	in := &ingress{process: p, client: newClient(c.t, p.address(), clusterKey)}
	in.eventually("become ready", func() bool {
		resp, err := in.http.Get(in.base + "/readyz")
		return err == nil && drop(resp) == http.StatusOK
	})
	return in
}

// worker starts a worker and waits until the ingress knows n of them.
func (c *cluster) worker(in *ingress, n int) *process {
	c.t.Helper()
	p := start(c.t, command{args: []string{"worker", "--provider", provider, "--config", c.file("worker.yaml")}})
	p.eventually("take work", func() bool { return in.workers() == n })
	return p
}

// untilHeldKnown waits until a worker has surely said what it holds, which it does
// within 100 ms of taking a job: only then does anybody know that a call was lost with
// it. Nothing shows this moment from outside.
func untilHeldKnown() {
	timer := time.NewTimer(time.Second)
	<-timer.C
}

// workers returns how many workers the ingress knows.
func (i *ingress) workers() int { return i.workersOf(provider) }

func (i *ingress) workersOf(name string) int {
	resp, err := i.http.Get(i.base + "/readyz")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	var ready struct {
		Providers map[string]struct {
			Workers int `json:"workers"`
		} `json:"providers"`
	}
	if json.NewDecoder(resp.Body).Decode(&ready) != nil {
		return -1
	}
	return ready.Providers[name].Workers
}

// ledger returns every row of the usage ledger.
func ledger(ctx context.Context, db store.Ledger) ([]inference.Record, error) {
	var all []inference.Record
	filter := store.UsageFilter{Limit: store.MaxPage}
	for {
		page, err := db.Usage(ctx, filter)
		all = append(all, page...)
		if err != nil || len(page) < store.MaxPage {
			return all, err
		}
		filter.After = store.CursorOf(page[len(page)-1])
	}
}

// requireOneRowEach waits for the ledger and requires exactly one row for each of
// the requests, and none beside them. It returns the rows by request.
func (c *cluster) requireOneRowEach(requests []string) map[string]inference.Record {
	c.t.Helper()
	return requireOneRowEach(c.t, c.db, requests)
}

func requireOneRowEach(t *testing.T, db store.Ledger, requests []string) map[string]inference.Record {
	t.Helper()
	var rows []inference.Record
	require.Eventually(t, func() bool {
		var err error
		rows, err = ledger(t.Context(), db)
		return err == nil && len(rows) >= len(requests)
	}, patience, 100*time.Millisecond, "the ledger lacks rows for some of %d requests", len(requests))
	byRequest := make(map[string]inference.Record, len(rows))
	for _, r := range rows {
		require.NotContains(t, byRequest, r.RequestID, "a second row of one request")
		byRequest[r.RequestID] = r
	}
	for _, id := range requests {
		require.Contains(t, byRequest, id, "no row")
	}
	require.Len(t, rows, len(requests), "rows that belong to no request")
	return byRequest
}

// withPassword puts a password into a URL.
func withPassword(address, user, password string) string {
	scheme, rest, _ := strings.Cut(address, "://")
	if _, host, ok := strings.Cut(rest, "@"); ok {
		rest = host
	}
	return scheme + "://" + user + ":" + password + "@" + rest
}
