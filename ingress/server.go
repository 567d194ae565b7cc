package ingress

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"golang.org/x/sync/semaphore"

	administration "sluice/internal/admin"
	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/internal/token"
	"sluice/store"
)

// Options are what an ingress is made of.
type Options struct {
	ID       string
	Conn     *queue.Conn
	Keys     KeyStore
	Append   func(ctx context.Context, records []inference.Record) (int, error) // into the database
	Ping     func(ctx context.Context) error                                    // the database
	Settings Settings                                                           // to begin with
	Config   ConfigSource                                                       // where Settings come from; nil: operators cannot ask
	Webhooks WebhookOptions
	Jobs     JobOptions

	Idempotency IdempotencyOptions
	Cache       CacheOptions

	Timeout      time.Duration // a request's deadline, and the most that a client may ask for
	Keepalive    time.Duration
	MaxBodyBytes int64
	BodyTimeout  time.Duration // for a client to send its body; zero: 5 minutes
	ResumeWindow time.Duration
	MaxInFlight  int
	BodyMemory   int64           // bytes of request bodies held at once, and of large answers as much again
	Limiter      limits.Reserver // nil: nothing is limited
	LimitCounts  LimitCounts     // what operators see of that; nil: nothing
	Files        FileOptions
	Batches      BatchOptions

	Tenants TenantStore          // nil: nothing is remembered of tenants
	Admin   administration.Store // what operators see to in the database; nil: nothing

	Metrics        *Metrics
	MetricsHandler http.Handler
	Logger         *slog.Logger
}

// Ingress serves the client-facing API.
type Ingress struct {
	opt     Options
	conn    *queue.Conn
	keys    *keyring
	tokens  *token.Verifier
	tenants *tenants // nil: nothing is remembered of them
	workers *directory
	flights *flights
	ledger  *ledger
	files   *files
	hooks   *hooks
	batches *batches  // nil: there are none
	stored  *stored   // nil: nothing is answered later
	limits  *limiting // nil: nothing is limited

	idempotency *idempotency
	cache       *answerCache
	answers     *semaphore.Weighted       // bytes of large answers in memory
	tails       atomic.Int64              // clients that read events of a job from its keep
	load        func(provider string) int // jobs of this ingress that the provider has
	metrics     *Metrics
	log         *slog.Logger

	applying sync.Mutex // one Apply after the other
	settings atomic.Pointer[Settings]
	draining atomic.Bool
	unknown  seldom // callers that could not be told from others
}

// bodyTimeout is how long a client may take to send its body, unless Options say
// otherwise.
const bodyTimeout = 5 * time.Minute

// New returns an ingress. Handler serves requests once Start has returned.
func New(o Options) *Ingress {
	if o.BodyTimeout <= 0 {
		o.BodyTimeout = bodyTimeout
	}
	s := &Ingress{
		opt: o, conn: o.Conn, metrics: o.Metrics, log: o.Logger.With("ingress", o.ID),
		answers: semaphore.NewWeighted(o.BodyMemory),
	}
	s.keys = newKeyring(o.Keys, s.log)
	s.tenants = newTenants(o.Tenants, s.log)
	s.keys.tenants = s.tenants
	s.tokens = token.NewVerifier(token.Options{Metrics: token.NewMetrics(o.Metrics.reg), Logger: s.log})
	s.flights = &flights{
		conn: o.Conn, metrics: o.Metrics, log: s.log, most: o.MaxInFlight, bodies: budget{most: o.BodyMemory},
		byID: make(map[string]*flight), fullAt: make(map[string]time.Time), counts: make(map[string]int), nudge: make(chan struct{}, 1),
	}
	s.files = newFiles(o.Files, o.Conn, s.log)
	s.workers = newDirectory(o.Settings.Providers, o.Settings.Policy, s.flights.needStreams)
	s.take(o.Settings)
	s.ledger = &ledger{
		append: o.Conn.AppendRecords, settle: func(w string, ids []string) error { return s.flights.dispatch.Settle(w, ids) },
		safe: s.flights.remove, log: s.log, wake: make(chan struct{}, 1),
	}
	s.flights.ledger, s.flights.workers, s.load = s.ledger, s.workers, s.flights.load
	s.hooks = newHooks(o.Webhooks, o.Metrics, s.log)
	s.idempotency = newIdempotency(o.Idempotency, o.MaxInFlight, o.BodyMemory, o.Metrics, s.log)
	s.limits = newLimiting(s)
	s.cache = newAnswerCache(o.Cache, o.Conn, func() *cache.Policy { return &s.current().Cache }, o.Metrics, s.log)
	s.stored = newStored(s)
	s.batches = newBatches(s)
	o.Metrics.watch(s)
	return s
}

// Start begins to hear what the queue says. Stop ends it.
func (s *Ingress) Start() (stop func(), err error) {
	dispatch, err := s.conn.NewDispatcher(s.opt.ID, s.flights)
	if err != nil {
		return nil, fmt.Errorf("start ingress: %w", err)
	}
	s.flights.dispatch = dispatch
	watch, err := s.conn.Watch(s.workers.heard)
	if err != nil {
		dispatch.Close()
		return nil, fmt.Errorf("start ingress: %w", err)
	}
	purges, err := s.conn.HearPurges(s.opt.ID, s.flights.purge)
	if err != nil {
		watch.Close()
		dispatch.Close()
		return nil, fmt.Errorf("start ingress: %w", err)
	}
	s.conn.OnReconnect(func() {
		s.flights.streams.reconnected(time.Now())
		s.flights.needStreams()
	})
	ctx, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	s.tenants.start(ctx, &loops) // before jobs: their limits may be their tenants'
	unhear := func() {}
	if s.stored != nil {
		if unhear, err = s.stored.start(ctx, &loops); err != nil {
			cancel()
			loops.Wait()
			purges.Close()
			watch.Close()
			dispatch.Close()
			return nil, fmt.Errorf("start ingress: %w", err)
		}
	}
	if s.conn.Connected() {
		if err := s.flights.ensureStreams(ctx); err != nil {
			s.log.Warn("queue is not ready", "error", err) // keepStreams goes on trying
		}
	}
	loops.Go(func() { s.flights.keepStreams(ctx) })
	loops.Go(func() { s.flights.sweep(ctx) })
	loops.Go(func() { s.keys.run(ctx) })
	loops.Go(func() { s.tokens.Run(ctx) })
	loops.Go(func() { s.ledger.run(ctx) })
	loops.Go(func() { s.conn.ConsumeRecords(ctx, s.storeRecords) })
	loops.Go(func() { s.expireWorkers(ctx) })
	loops.Go(func() { s.conn.FollowControls(ctx, s.workers.ordered) })
	if s.opt.Files.Rows != nil {
		if s.conn.Connected() {
			s.files.ready(ctx) // so that files are served from the start; run goes on trying
		}
		loops.Go(func() { s.files.run(ctx) })
	}
	if s.batches != nil {
		loops.Go(func() { s.batches.engine.Run(ctx) })
	}
	loops.Go(func() { s.hooks.run(ctx) })
	loops.Go(func() { s.hooks.prune(ctx) })
	loops.Go(func() { s.idempotency.purge(ctx) })
	loops.Go(func() { s.cache.run(ctx) })
	return func() {
		s.idempotency.stop()
		s.settleRest()
		cancel()
		loops.Wait()
		unhear()
		purges.Close()
		watch.Close()
		dispatch.Close()
		s.flights.side.Wait()
		s.flights.keepHolds()
	}, nil
}

// settleWait bounds how long a stopping ingress waits for the last words on jobs
// that nobody waits for any more.
const settleWait = 5 * time.Second

// settleRest waits until every job is accounted for.
func (s *Ingress) settleRest() {
	limit := time.NewTimer(settleWait)
	defer limit.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for s.flights.count() > 0 || !s.ledger.empty() {
		select {
		case <-limit.C:
			s.log.Warn("stopping with jobs not accounted for; their workers will do it", "jobs", s.flights.count())
			return
		case <-tick.C:
		}
	}
}

// Drain makes /readyz fail, so that no new work is sent here, tells clients to open
// their next connection elsewhere, and lets streams that must be cut go on without
// their client. Who waits for a job is told how it stands: it is accepted, and the answer
// must not be lost with the connection.
func (s *Ingress) Drain() {
	s.draining.Store(true)
	if s.stored != nil {
		s.stored.waiters.close()
	}
}

func (s *Ingress) expireWorkers(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.workers.expire(now)
		}
	}
}

// storeRecords brings rows of the usage stream into the database.
func (s *Ingress) storeRecords(ctx context.Context, records []inference.Record) error {
	for len(records) > 0 {
		n := s.together(records)
		s.current().priceAll(records[:n])
		inserted, err := s.opt.Append(ctx, records[:n])
		if errors.Is(err, store.ErrInvalid) {
			return fmt.Errorf("%w: %w", queue.ErrNeverTaken, err)
		}
		if err != nil {
			return err
		}
		s.metrics.ledgerRows.Add(float64(inserted))
		if n == 1 && inserted == 1 && s.orphaned(records[0]) {
			s.freeOrphan(ctx, &records[0])
		}
		records = records[n:]
	}
	return nil
}

// Paths that are named in more than one place.
const (
	chatPath  = "/v1/chat/completions"
	filesPath = "/v1/files"

	batchesPath = "/v1/batches"
)

// Handler returns the HTTP handler of the public API.
func (s *Ingress) Handler() http.Handler {
	r := mux.NewRouter().SkipClean(true) // a path that is not clean is a wrong one: no redirect would keep the body
	r.Use(s.keyed)
	r.HandleFunc(chatPath, s.chat).Methods(http.MethodPost)
	r.HandleFunc("/v1/embeddings", s.embeddings).Methods(http.MethodPost)
	r.HandleFunc(chatPath+"/{id}/events", s.resume).Methods(http.MethodGet)
	r.HandleFunc("/v1/models", s.models).Methods(http.MethodGet)
	r.HandleFunc("/v1/models/{id:.+}", s.model).Methods(http.MethodGet)
	s.fileRoutes(r)
	s.jobRoutes(r)
	s.batchRoutes(r)
	r.HandleFunc("/livez", s.livez).Methods(http.MethodGet, http.MethodHead)
	r.HandleFunc("/readyz", s.readyz).Methods(http.MethodGet, http.MethodHead)
	r.Handle("/metrics", s.opt.MetricsHandler).Methods(http.MethodGet)
	r.NotFoundHandler = http.HandlerFunc(s.notFound)
	r.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { s.methodNotAllowed(r, w, q) })
	return s.identified(s.crossOrigin(r))
}

// requestIDHeader carries the id by which a request is found in logs and ledger.
const requestIDHeader = "X-Request-Id"

// identified gives every request its id, the client's own if that is fit to be
// logged, and answers with it.
func (s *Ingress) identified(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = s.begun(r)
		id := r.Header.Get(requestIDHeader)
		if !saneRequestID(id) {
			id = newRequestID()
			r.Header.Set(requestIDHeader, id)
		}
		w.Header()[requestIDHeader] = []string{id}
		if s.draining.Load() {
			w.Header().Set("Connection", "close") // the client's next request goes elsewhere
		}
		if r.ContentLength != 0 {
			body := &incoming{ReadCloser: r.Body}
			r.Body = body
			defer body.linger(w)
			if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodDelete {
				body.closing(w) // nobody will read it
			}
		}
		defer s.recovered(w, r)
		next.ServeHTTP(w, r)
	})
}

// recovered answers for a handler that panicked, and tells where; what it panicked with
// may hold a client's words.
func (s *Ingress) recovered(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) //nolint:forbidigo // it is the server's own way to end a connection
	}
	s.log.Error("handler panicked", "request_id", w.Header().Get(requestIDHeader), "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
	if strings.HasPrefix(w.Header().Get("Content-Type"), eventStream) {
		panic(http.ErrAbortHandler) //nolint:forbidigo // a stream that has begun must not look whole
	}
	s.fail(w, r, inference.Errorf(inference.CodeInternal, "internal error"), nil)
}

func newRequestID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return "req_" + hex.EncodeToString(b[:])
}

const maxRequestID = 128

func saneRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

func (s *Ingress) notFound(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, inference.Errorf(inference.CodeNotFound, "There is nothing at this path. The API begins with /v1."), nil)
}

// methodNotAllowed also says which methods the path takes (RFC 9110, 15.5.6).
func (s *Ingress) methodNotAllowed(router *mux.Router, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Allow", allowedMethods(router, r))
	s.fail(w, r, errMethodNotAllowed(r), nil)
}

func allowedMethods(router *mux.Router, r *http.Request) string {
	var allowed []string
	for _, method := range []string{http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodPatch, http.MethodPost, http.MethodPut} {
		other := r.Clone(r.Context())
		other.Method = method
		if m := (mux.RouteMatch{}); router.Match(other, &m) && m.MatchErr == nil {
			allowed = append(allowed, method)
		}
	}
	return strings.Join(allowed, ", ")
}

func errMethodNotAllowed(r *http.Request) error {
	return inference.Errorf(inference.CodeMethodNotAllowed, "This path does not take the method %s.", r.Method)
}

// fail answers with an error and logs it once.
func (s *Ingress) fail(w http.ResponseWriter, r *http.Request, err error, details map[string]any) {
	e := inference.AsError(err)
	s.logFailure(r.Context(), w.Header().Get(requestIDHeader), e, details)
	s.metrics.failed(statusOf(e), e.Code)
	if body, ok := r.Body.(*incoming); ok {
		body.closing(w)
	}
	if statusOf(e) == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", challenge(e))
	}
	writeError(w, e, details)
}
