// Package integration runs ingresses and workers in this process, as the binary
// composes them, against real queues, real databases and scripted upstreams, and looks
// at them from outside: over HTTP, in the ledger, at the upstream, in logs and metrics.
//
// Processes that are killed are the subject of its neighbour e2e.
package integration

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/ingress"
	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/observability"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/internal/testkit"
	"sluice/internal/token"
	"sluice/providers/registry"
	"sluice/store"
	"sluice/store/postgres"
	"sluice/store/sqlite"
	"sluice/worker"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// patience bounds every wait for something that must happen. It is no measure of
// speed: the machine may be busy.
const patience = 30 * time.Second

// tickEvery is how often a condition is looked at.
const tickEvery = 10 * time.Millisecond

const (
	provider    = "acme"
	upstreamKey = "sk-upstream-0123456789-secret"
	tenant      = "blue"

	// canary stands in prompts and answers of every test; it must never be logged.
	canary = "canary-c0ffee"
)

// options are what the tests of this package vary.
type options struct {
	natsURL     string // empty: a server inside the process
	database    string // a Postgres URL; empty: SQLite
	ingresses   int
	workers     int
	models      []string
	concurrency int
	slots       int
	maxQueued   int
	maxRetries  int
	maxInFlight int
	maxBody     int64
	ackWait     time.Duration
	drain       time.Duration
	keepalive   time.Duration
	timeout     time.Duration
	callTimeout time.Duration
	window      time.Duration
	others      []string // further providers that serve the same models, behind the first one
	static      []store.Key
	policy      routing.Policy
	tokens      []token.Issuer
	private     bool // webhooks may go to this machine
	wrap        func(store.Store) store.Store
}

// stack is a running Sluice.
type stack struct {
	t        testing.TB
	opt      options
	db       store.Store
	up       *testkit.Upstream
	embedded *queue.Embedded
	logs     *logBuffer
	log      *slog.Logger
	http     *http.Client
	key      store.Key
	secret   string
	doors    []*door
	hands    []*hand
}

// door is one ingress with its HTTP server.
type door struct {
	url     string
	conn    *queue.Conn
	ingress *ingress.Ingress
}

// hand is one worker.
type hand struct {
	worker *worker.Worker
	conn   *queue.Conn
	reg    *prometheus.Registry
	stop   func() // takes no more jobs, finishes those in hand, lets go of the queue
}

// start runs a stack that ends with the test. The upstream answers as testkit's does
// until the test scripts it.
func start(t testing.TB, change func(*options)) *stack {
	t.Helper()
	o := options{
		ingresses: 1, workers: 1, models: []string{"m", "org/deep/m", "glob-*"}, concurrency: 16, slots: 16,
		maxQueued: 1000, maxInFlight: 10_000, maxBody: 32 << 20, ackWait: 5 * time.Second, drain: 10 * time.Second,
		keepalive: time.Second, timeout: time.Minute, callTimeout: time.Minute,
	}
	if change != nil {
		change(&o)
	}
	s := &stack{t: t, opt: o, logs: &logBuffer{}, up: testkit.NewUpstream(t)}
	t.Cleanup(func() { s.judgeLogs() })
	level, err := observability.NewLevel("debug")
	require.NoError(t, err)
	s.log = observability.NewLogger(s.logs, level, "json")
	s.openStore()
	if o.natsURL == "" {
		s.embedded, err = queue.StartEmbedded(queue.EmbeddedOptions{Dir: t.TempDir(), MemoryBytes: 2 << 30, Logger: s.log})
		require.NoError(t, err)
		t.Cleanup(s.embedded.Close)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	s.http = &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
	s.secret, s.key = s.mint("main", nil)
	for range o.ingresses {
		s.addIngress()
	}
	for range o.workers {
		s.addWorker(s.up)
	}
	s.awaitWorkers(o.workers)
	return s
}

func (s *stack) openStore() {
	t, ctx := s.t, s.t.Context()
	t.Helper()
	var err error
	if s.opt.database == "" {
		s.db, err = sqlite.Open(ctx, filepath.Join(t.TempDir(), "sluice.db"))
	} else {
		s.db, err = postgres.Open(ctx, s.opt.database, postgres.Options{Timeout: 2 * time.Second})
	}
	require.NoError(t, err)
	require.NoError(t, s.db.Migrate(ctx))
	if s.opt.wrap != nil {
		s.db = s.opt.wrap(s.db)
	}
	t.Cleanup(func() { require.NoError(t, s.db.Close()) })
}

// mint stores a new key and returns its secret.
func (s *stack) mint(name string, change func(*store.Key)) (secret string, key store.Key) {
	s.t.Helper()
	secret = apikey.Mint()
	key = store.Key{ID: "key-" + name, Name: name, Tenant: tenant, Display: apikey.Display(secret), Hash: apikey.Hash(secret)}
	if change != nil {
		change(&key)
	}
	require.NoError(s.t, s.db.CreateKey(s.t.Context(), key, store.Change{Actor: "test"}))
	s.logs.forbid(secret)
	return secret, key
}

func (s *stack) connect(name, url string) *queue.Conn {
	s.t.Helper()
	c, err := queue.Connect(queue.Options{
		Name: name, Embedded: s.embedded, URL: url,
		Limits: queue.Limits{
			Storage: "memory", Replicas: 1, AckWait: s.opt.ackWait, EventsBytes: 256 << 20, EventsAge: 15 * time.Minute,
			BlobsBytes: 1 << 30, BlobsAge: time.Hour, FilesBytes: 1 << 30, UsageBytes: 64 << 20, DeadLetterAge: time.Hour,
		},
		Logger: s.log,
	})
	require.NoError(s.t, err)
	return c
}

// addIngress starts one more ingress on loopback.
func (s *stack) addIngress() {
	t, o := s.t, s.opt
	t.Helper()
	reg := prometheus.NewRegistry()
	d := &door{conn: s.connect("ingress", o.natsURL)}
	infos := make(map[string]ingress.ProviderInfo)
	for _, name := range append([]string{provider}, o.others...) {
		infos[name] = ingress.ProviderInfo{Models: o.models, MaxQueued: o.maxQueued}
	}
	t.Cleanup(d.conn.Close)
	hooks := ingress.WebhookOptions{
		Store: s.db, AllowPrivate: o.private, Timeout: 15 * time.Second, MaxEndpoints: 100, Keep: time.Hour,
	}
	d.ingress = ingress.New(ingress.Options{
		ID: queue.NewProcessID(), Conn: d.conn, Keys: s.db, Append: s.db.AppendUsage, Ping: s.db.Ping,
		Settings: ingress.Settings{StaticKeys: o.static, Providers: infos, Policy: o.policy, Tokens: o.tokens}, Webhooks: hooks,
		Jobs:    ingress.JobOptions{Store: s.db, Retention: time.Hour, Deadline: time.Hour, MaxWait: patience, MaxPerTenant: 10_000},
		Batches: ingress.BatchOptions{Store: s.db, MaxLines: 10_000, MaxLineBytes: int(o.maxBody), Window: 1000, Retention: time.Hour},
		Timeout: o.timeout, Keepalive: o.keepalive, MaxBodyBytes: o.maxBody, ResumeWindow: o.window, MaxInFlight: o.maxInFlight, BodyMemory: 512 << 20,
		Files:   ingress.FileOptions{Rows: s.db, MaxBytes: 96 << 20, MaxBatchBytes: 32 << 20, MaxTransfers: 16},
		Tenants: s.db, Admin: s.db,
		Metrics: ingress.NewMetrics(reg), MetricsHandler: observability.MetricsHandler(reg), Logger: s.log,
	})
	stop, err := d.ingress.Start()
	require.NoError(t, err)
	t.Cleanup(stop)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d.url = "http://" + listener.Addr().String()
	srv := &http.Server{Handler: d.ingress.Handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(listener) }()
	t.Cleanup(func() {
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	s.doors = append(s.doors, d)
}

// addWorker starts one more worker of the provider, which calls this upstream.
func (s *stack) addWorker(up *testkit.Upstream) { s.addWorkerAt(up, s.opt.natsURL) }

// addWorkerAt is addWorker with a way of its own to the queue.
func (s *stack) addWorkerAt(up *testkit.Upstream, natsURL string) {
	s.addWorkerOf(provider, up, natsURL, nil)
}

// addWorkerOf starts a worker of any provider, as change wants it.
func (s *stack) addWorkerOf(name string, up *testkit.Upstream, natsURL string, change func(*worker.Member)) {
	t, o := s.t, s.opt
	t.Helper()
	s.logs.forbid(strings.TrimPrefix(up.URL(), "http://"))
	adapter, err := registry.Build(name, registry.Settings{
		Type: registry.TypeOpenAI, BaseURL: up.URL(), Keys: []registry.Key{{Secret: upstreamKey}}, Models: o.models,
		Timeout: o.callTimeout, IdleTimeout: o.callTimeout, MaxResponseBytes: 32 << 20,
	})
	require.NoError(t, err)
	member := worker.Member{
		Name: name, Provider: adapter, Slots: o.slots, Concurrency: o.concurrency, MaxQueued: o.maxQueued,
		MaxRetries: o.maxRetries, MaxBody: o.maxBody,
	}
	if change != nil {
		change(&member)
	}
	h := &hand{conn: s.connect("worker", natsURL), reg: prometheus.NewRegistry()}
	h.worker = worker.New(worker.Options{
		ID: queue.NewProcessID(), Conn: h.conn, AckWait: o.ackWait, DrainTimeout: o.drain, Metrics: worker.NewMetrics(h.reg), Logger: s.log,
		Members: []worker.Member{member},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.worker.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
		h.conn.Close()
		require.NoError(t, adapter.Close())
	})
	t.Cleanup(h.stop)
	s.hands = append(s.hands, h)
}

// awaitWorkers waits until every ingress knows of n workers.
func (s *stack) awaitWorkers(n int) {
	s.t.Helper()
	for _, h := range s.hands {
		select {
		case <-h.worker.Ready():
		case <-time.After(patience):
			require.FailNow(s.t, "worker is not ready")
		}
	}
	for i := range s.doors {
		s.eventually(func() bool { return s.ready(i).Providers[provider].Workers == n }, "ingress %d knows %d workers", i, n)
	}
}

// eventually waits for a condition.
func (s *stack) eventually(cond func() bool, msg string, args ...any) {
	s.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for !cond() {
		select {
		case <-limit.C:
			require.FailNow(s.t, "waited in vain: "+fmt.Sprintf(msg, args...), s.logs.tail())
		case <-tick.C:
		}
	}
}

// rows waits until the ledger has n rows, and returns them oldest first. It fails if
// there are more.
func (s *stack) rows(n int) []inference.Record {
	s.t.Helper()
	var found []inference.Record
	s.eventually(func() bool {
		var err error
		found, err = s.db.Usage(s.t.Context(), store.UsageFilter{Limit: store.MaxPage})
		return err == nil && len(found) >= n
	}, "%d rows in the ledger", n)
	require.Len(s.t, found, n)
	for i, j := 0, len(found)-1; i < j; i, j = i+1, j-1 {
		found[i], found[j] = found[j], found[i]
	}
	return found
}

// row waits for the ledger's row of the request.
func (s *stack) row(requestID string) inference.Record {
	s.t.Helper()
	var found []inference.Record
	s.eventually(func() bool {
		var err error
		found, err = s.db.Usage(s.t.Context(), store.UsageFilter{RequestID: requestID})
		return err == nil && len(found) > 0
	}, "a row of request %s", requestID)
	require.Len(s.t, found, 1)
	return found[0]
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu        sync.Mutex
	text      bytes.Buffer
	forbidden []string
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) forbid(secret string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forbidden = append(b.forbidden, secret)
}

func (b *logBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Split(strings.TrimSpace(b.text.String()), "\n")
}

func (b *logBuffer) tail() string {
	lines := b.lines()
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// judgeLogs holds the logs of every test, all levels of them, to the promise that no
// secret, address or content is in them.
func (s *stack) judgeLogs() {
	text := strings.Join(s.logs.lines(), "\n")
	for _, secret := range append(s.logs.forbidden, upstreamKey, canary) {
		if strings.Contains(text, secret) {
			s.t.Errorf("the logs hold %q", secret)
		}
	}
	if s.t.Failed() {
		s.t.Logf("the end of the logs:\n%s", s.logs.tail())
	}
}
