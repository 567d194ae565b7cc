package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/fx"

	"sluice/ingress"
	"sluice/internal/apikey"
	"sluice/internal/config"
	"sluice/internal/observability"
	"sluice/internal/pricing"
	"sluice/internal/queue"
	"sluice/providers/registry"
	"sluice/store"
	"sluice/worker"
)

// serving names the providers that a worker in this process serves.
type serving []string

// The parts of which roles are made. fx starts them in the order in which they depend
// on each other and stops them in the reverse: the HTTP server first, then the
// worker, then what both of them stand on.
var (
	baseModule = fx.Module("base",
		fx.Provide(observability.NewRegistry, func(r *prometheus.Registry) prometheus.Registerer { return r }, newEmbedded),
	)
	storeModule   = fx.Module("store", fx.Provide(newDatabase, func(db *database) store.Store { return db.Store }))
	ingressModule = fx.Module("ingress", fx.Provide(ingress.NewMetrics, newIngress, newListener, newAdminListener), fx.Invoke(serveAdmin, serveHTTP))
	workerModule  = fx.Module("worker", fx.Provide(worker.NewMetrics, newWorker), fx.Invoke(func(*runningWorker) {}))
)

// newEmbedded starts the embedded queue, or returns nil when an external one is
// configured.
func newEmbedded(lc fx.Lifecycle, cfg *config.Config, log *slog.Logger) (*queue.Embedded, error) {
	if cfg.Queue.URL != "" {
		return nil, nil //nolint:nilnil // no embedded server is a configuration like any other
	}
	lock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return nil, startFailed(err)
	}
	e, err := queue.StartEmbedded(queue.EmbeddedOptions{
		Dir: filepath.Join(cfg.DataDir, "nats"), MemoryBytes: embeddedMemory(cfg), Logger: log,
	})
	if err != nil {
		return nil, startFailed(errors.Join(err, lock.Close()))
	}
	lc.Append(fx.StopHook(func() error {
		e.Close()
		return lock.Close()
	}))
	return e, nil
}

// embeddedMemory bounds the embedded server's memory streams: the events, and room
// for the jobs of every provider.
func embeddedMemory(cfg *config.Config) int64 {
	return int64(cfg.Queue.EventsMaxBytes) + 4<<30
}

// Bounds of what the queue holds for stored jobs.
const (
	storedJobs   = 100_000 // messages, for each provider
	resultsBytes = 1 << 30
)

func connect(name string, cfg *config.Config, embedded *queue.Embedded, log *slog.Logger) (*queue.Conn, error) {
	q := cfg.Queue
	c, err := queue.Connect(queue.Options{
		Name: name, Embedded: embedded, URL: string(q.URL), CredentialsFile: q.CredentialsFile,
		User: q.User, Password: q.Password.Reveal(), Token: q.Token.Reveal(),
		CAFile: q.TLS.CAFile, CertFile: q.TLS.CertFile, KeyFile: q.TLS.KeyFile,
		Limits: queue.Limits{
			Storage: q.Storage, Replicas: q.Replicas, AckWait: q.AckWait,
			EventsBytes: int64(q.EventsMaxBytes), EventsAge: q.EventsMaxAge, BlobsBytes: int64(q.BodiesMaxBytes),
			BlobsAge: 24*time.Hour + time.Hour, FilesBytes: int64(cfg.Files.StoreMaxBytes),
			UsageBytes: 2 << 30, StoredJobs: storedJobs, ResultsBytes: resultsBytes, DeadLetterAge: 7 * 24 * time.Hour,
		},
		Logger: log,
	})
	return c, startFailed(err)
}

// newIngress starts what hears the queue. It is stopped after the HTTP server and
// the worker, whose last answers it takes.
func newIngress(lc fx.Lifecycle, cfg *config.Config, embedded *queue.Embedded, db store.Store, conf *reloader, m *ingress.Metrics, reg *prometheus.Registry, log *slog.Logger) (*ingress.Ingress, error) {
	conn, err := connect("sluice-ingress", cfg, embedded, log)
	if err != nil {
		return nil, err
	}
	id := queue.NewProcessID()
	limiter := startLimiter(conn, id, embedded != nil, db, reg, log)
	in := ingress.New(ingress.Options{
		ID: id, Conn: conn, Keys: db, Append: db.AppendUsage, Ping: db.Ping,
		Limiter: limiter, LimitCounts: limiter,
		Settings: ingressSettings(cfg), Config: conf, Webhooks: webhookOptions(cfg, db),
		Jobs: jobOptions(cfg, db), Batches: batchOptions(cfg, db),
		Timeout: cfg.Server.Timeout, Keepalive: cfg.Server.Keepalive, MaxBodyBytes: int64(cfg.Server.MaxBodyBytes),
		ResumeWindow: cfg.Server.ResumeWindow, MaxInFlight: cfg.Server.MaxInFlight, BodyMemory: int64(cfg.Server.BodyMemory),
		Files: ingress.FileOptions{
			Rows: db, MaxBytes: int64(cfg.Files.MaxBytes), MaxBatchBytes: int64(cfg.Files.MaxBatchBytes),
			ExpireAfter: cfg.Files.ExpireAfter, MaxTransfers: cfg.Files.MaxTransfers,
		},
		Tenants: db, Admin: db,
		Idempotency: ingress.IdempotencyOptions{Keys: db, Keep: cfg.Idempotency.Keep},
		Cache:       ingress.CacheOptions{Rows: db},
		Metrics:     m, MetricsHandler: observability.MetricsHandler(reg), Logger: log,
	})
	var stop func()
	lc.Append(fx.StartStopHook(
		func(ctx context.Context) error {
			// Who has locked the data directory has its database to itself: what an earlier
			// process had leased when it was killed is free at once.
			if embedded != nil && cfg.Store.URL == "" {
				if err := db.VoidLeases(ctx, time.Now()); err != nil {
					return startFailed(err)
				}
			}
			var err error
			stop, err = in.Start()
			return startFailed(err)
		},
		func() {
			stop()
			limiter.stop()
			conn.Close()
		},
	))
	return in, nil
}

// ingressSettings is what of the configuration may change while an ingress runs.
func ingressSettings(cfg *config.Config) ingress.Settings {
	prices := priceTable(cfg)
	return ingress.Settings{
		StaticKeys: staticKeys(cfg), Providers: providerInfos(cfg, prices), Policy: routingPolicy(cfg), Prices: prices,
		Tokens: tokenIssuers(cfg), CORS: crossOrigin(cfg),
		Limits: limitSettings(cfg, prices), Cache: cfg.Cache.Policy(),
	}
}

func jobOptions(cfg *config.Config, db store.Store) ingress.JobOptions {
	j := cfg.Jobs
	return ingress.JobOptions{Store: db, Retention: j.Retention, Deadline: j.Deadline, MaxWait: j.MaxWait, MaxPerTenant: j.MaxPerTenant}
}

func batchOptions(cfg *config.Config, db store.Store) ingress.BatchOptions {
	b := cfg.Batches
	line := int64(b.MaxLineBytes)
	if line == 0 {
		line = int64(cfg.Server.MaxBodyBytes)
	}
	return ingress.BatchOptions{
		Store: db, MaxLines: b.MaxLines, MaxLineBytes: int(min(line, store.MaxInlineBytes)), SingleModel: b.SingleModel,
		Window: b.Window, Retention: b.Retention,
	}
}

func providerInfos(cfg *config.Config, prices *pricing.Table) map[string]ingress.ProviderInfo {
	infos := make(map[string]ingress.ProviderInfo, len(cfg.Providers))
	for name, p := range cfg.Providers {
		infos[name] = ingress.ProviderInfo{Models: p.Models, MaxQueued: maxQueued(cfg, p), Prices: routingPrices(prices, name)}
	}
	return infos
}

func maxQueued(cfg *config.Config, p config.Provider) int {
	if p.MaxQueued > 0 {
		return p.MaxQueued
	}
	return cfg.Queue.MaxQueued
}

func staticKeys(cfg *config.Config) []store.Key {
	keys := make([]store.Key, 0, len(cfg.Auth.Keys))
	for _, k := range cfg.Auth.Keys {
		keys = append(keys, store.Key{
			ID: ingress.FileKeyPrefix + k.Name, Name: k.Name, Tenant: k.Tenant, Hash: apikey.Hash(k.Key.Reveal()), Models: k.Models, ExpiresAt: k.ExpiresAt,
			Limits: ownLimits(k.Limits),
		})
	}
	return keys
}

// runningWorker is a worker with its own loop.
type runningWorker struct{ *worker.Worker }

func newWorker(lc fx.Lifecycle, parts *supervisor, cfg *config.Config, embedded *queue.Embedded, names serving, conf *reloader, m *worker.Metrics, log *slog.Logger) (*runningWorker, error) {
	members, err := workerMembers(cfg, names, conf.marks)
	if err != nil {
		return nil, startFailed(err)
	}
	conn, err := connect("sluice-worker", cfg, embedded, log)
	if err != nil {
		return nil, err
	}
	w := worker.New(worker.Options{
		ID: queue.NewProcessID(), Conn: conn, Members: members, AckWait: cfg.Queue.AckWait,
		DrainTimeout: cfg.Server.DrainTimeout, Metrics: m, Logger: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wait func()
	lc.Append(fx.StartStopHook(
		func() { wait = parts.run("worker", func() error { return w.Run(ctx) }) },
		func() error {
			cancel()
			wait()
			conn.Close()
			return w.Close()
		},
	))
	return &runningWorker{w}, nil
}

func workerMembers(cfg *config.Config, names []string, marks marks) ([]worker.Member, error) {
	var members []worker.Member
	for _, name := range names {
		p := cfg.Providers[name]
		adapter, err := registry.Build(name, adapterSettings(p))
		if err != nil {
			return nil, errors.Join(err, closeAdapters(members))
		}
		settings, upstream := marks.of(name)
		slots := p.Concurrency
		if p.WorkerConcurrency > 0 {
			slots = min(slots, p.WorkerConcurrency)
		}
		members = append(members, worker.Member{
			Name: name, Provider: adapter, Slots: slots, Concurrency: p.Concurrency, MaxQueued: maxQueued(cfg, p),
			MaxRetries: p.MaxRetries, MaxBody: int64(cfg.Server.MaxBodyBytes),
			MinConcurrency: p.MinConcurrency, MaxSlowdown: p.MaxSlowdown, RetryBudget: p.RetryBudget, Patience: p.Patience,
			Breaker: breakerSettings(p.Breaker), Settings: settings, Upstream: upstream,
			BackgroundShare: cfg.Queue.Lanes.BackgroundMinShare, BatchShare: cfg.Queue.Lanes.BatchMinShare,
		})
	}
	return members, nil
}

// newListener opens the public address before anything else starts, so that an
// address in use is told at once.
func newListener(cfg *config.Config) (net.Listener, error) {
	l, err := listen(cfg.Server.Address)
	if err != nil {
		return nil, startFailed(fmt.Errorf("listen on server.address %s: %w", cfg.Server.Address, err))
	}
	return l, nil
}

func listen(address string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(context.Background(), "tcp", address)
}

// Bounds of the HTTP server. Bodies and answers have their own: a ReadTimeout would
// take a client for gone that has waited so long for its answer.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	headerBytes   = 64 << 10
)

type httpParts struct {
	fx.In
	LC       fx.Lifecycle
	Parts    *supervisor
	Config   *config.Config
	Listener net.Listener
	Ingress  *ingress.Ingress
	Worker   *runningWorker `optional:"true"` // in the same process: it starts before and stops after
	Log      *slog.Logger
}

// lastRequests is how long a stopping server still takes requests over connections
// that it has.
const lastRequests = 500 * time.Millisecond

// takeLastRequests refuses new connections and goes on serving those there are for a
// moment. Shutdown alone would close a connection just accepted without a word, its
// request unread; and a client that keeps its connection learns from the answer to
// its next request that it has to open another one, elsewhere.
func takeLastRequests(ctx context.Context, l net.Listener) {
	_ = l.Close() // Serve has the error
	timer := time.NewTimer(lastRequests)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func serveHTTP(p httpParts) {
	srv := &http.Server{
		Handler: p.Ingress.Handler(), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: headerBytes, ErrorLog: slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug),
	}
	var wait func()
	p.LC.Append(fx.StartStopHook(
		func() {
			wait = p.Parts.serve("http server", srv, p.Listener)
			p.Log.Info("serving", "address", p.Listener.Addr().String())
		},
		func(ctx context.Context) {
			p.Ingress.Drain()
			drain, cancel := context.WithTimeout(ctx, p.Config.Server.DrainTimeout)
			defer cancel()
			p.lameDuck(drain)
			takeLastRequests(drain, p.Listener)
			if err := srv.Shutdown(drain); err != nil {
				p.Log.Warn("drain ran out of time; open connections are closed", "error", err)
				_ = srv.Close() // its error says what Shutdown's said
			}
			wait()
		},
	))
}

// lameDuck waits for the load balancer to notice that this ingress is stopping.
func (p httpParts) lameDuck(ctx context.Context) {
	timer := time.NewTimer(p.Config.Server.DrainDelay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// serveWorkerHealth gives a worker its own small listener, if one is configured.
func serveWorkerHealth(lc fx.Lifecycle, parts *supervisor, cfg *config.Config, w *runningWorker, names serving, reg *prometheus.Registry, log *slog.Logger) error {
	if cfg.Observability.Address == "" {
		return nil
	}
	l, err := listen(cfg.Observability.Address)
	if err != nil {
		return startFailed(fmt.Errorf("listen on observability.address %s: %w", cfg.Observability.Address, err))
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", observability.MetricsHandler(reg))
	mux.HandleFunc("GET /livez", func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		if !slices.Equal(w.Serves(), names) || !w.Connected() {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = fmt.Fprintf(rw, "connected: %t\nserving: %v of %v\n", w.Connected(), w.Serves(), []string(names))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
	var wait func()
	lc.Append(fx.StartStopHook(
		func() {
			wait = parts.serve("health listener", srv, l)
			log.Info("serving health and metrics", "address", l.Addr().String())
		},
		func() error {
			err := srv.Close()
			wait()
			return err
		},
	))
	return nil
}
