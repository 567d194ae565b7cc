package ingress

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
	"sluice/store"
	"sluice/store/postgres"
	"sluice/store/sqlite"
)

// keyRig is a rig whose ingresses share a database that remembers keys, and has files.
type keyRig struct {
	*fileRig
	db *tappedKeys
}

// tappedKeys is a real database that can be out of reach, and tells what is done to keys.
type tappedKeys struct {
	store.Store
	began, renewed, finished chan struct{}

	mu   sync.Mutex
	down error
}

func tap(db store.Store) *tappedKeys {
	many := func() chan struct{} { return make(chan struct{}, 1000) }
	return &tappedKeys{Store: db, began: many(), renewed: many(), finished: many()}
}

func (k *tappedKeys) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = err
}

func (k *tappedKeys) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.down
}

func (k *tappedKeys) BeginIdempotent(ctx context.Context, r store.IdempotentRequest, now time.Time, lease, keep time.Duration) (store.IdempotentState, error) {
	if err := k.failure(); err != nil {
		return store.IdempotentState{}, err
	}
	defer func() { k.began <- struct{}{} }()
	return k.Store.BeginIdempotent(ctx, r, now, lease, keep)
}

func (k *tappedKeys) RenewIdempotent(ctx context.Context, tenant, key, owner string, until time.Time) error {
	if err := k.failure(); err != nil {
		return err
	}
	defer func() { k.renewed <- struct{}{} }()
	return k.Store.RenewIdempotent(ctx, tenant, key, owner, until)
}

func (k *tappedKeys) FinishIdempotent(ctx context.Context, tenant, key, owner string, a store.IdempotentAnswer) error {
	if err := k.failure(); err != nil {
		return err
	}
	defer func() { k.finished <- struct{}{} }()
	return k.Store.FinishIdempotent(ctx, tenant, key, owner, a)
}

// databases are those that a promise about keys is tried on.
var databases = map[string]func(*testing.T) store.Store{
	"sqlite": func(t *testing.T) store.Store {
		t.Helper()
		db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "sluice.db"))
		require.NoError(t, err)
		return db
	},
	"postgres": func(t *testing.T) store.Store {
		t.Helper()
		db, err := postgres.Open(t.Context(), testkit.Postgres(t), postgres.Options{})
		require.NoError(t, err)
		return db
	},
}

// eachDatabase runs a test on every database.
func eachDatabase(t *testing.T, test func(*testing.T, *keyRig)) {
	t.Helper()
	for name, open := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, setupKeys(t, open(t)))
		})
	}
}

func setupKeys(t *testing.T, db store.Store) *keyRig {
	t.Helper()
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	k := tap(db)
	r := setup(t, k.options)
	r.work()
	return &keyRig{&fileRig{r, k}, k}
}

func (k *tappedKeys) options(o *Options) {
	o.Idempotency = IdempotencyOptions{Keys: k, Keep: time.Hour}
	o.Files = FileOptions{Rows: k, MaxBytes: 2 << 20, MaxBatchBytes: 1 << 20, MaxTransfers: 4}
}

// second is one more ingress on the same queue and database.
func (r *keyRig) second() *httptest.Server {
	r.t.Helper()
	_, srv := r.startIngress(r.db.options)
	return srv
}

func (r *keyRig) chatAt(srv *httptest.Server, body string, headers ...string) *call {
	r.t.Helper()
	return r.send(r.request(http.MethodPost, srv.URL+"/v1/chat/completions", body, headers...))
}

// serve is a server whose requests go to the handler once for each key.
func (r *keyRig) serve(do http.HandlerFunc) *httptest.Server {
	r.t.Helper()
	srv := httptest.NewServer(r.ingress.identified(r.ingress.keyed(do)))
	r.t.Cleanup(srv.Close)
	return srv
}

// dropped is a call on a server of its own, and a way to hang up on it which returns when
// the ingress knows.
func (r *keyRig) dropped(body string, headers ...string) (c *call, hangUp func()) {
	r.t.Helper()
	gone := make(chan struct{})
	handler := r.ingress.Handler()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		context.AfterFunc(q.Context(), func() { close(gone) })
		handler.ServeHTTP(w, q)
	}))
	r.t.Cleanup(srv.Close)
	c = r.chatAt(srv, body, headers...)
	return c, func() {
		c.cancel()
		next(r.t, gone)
	}
}

// free checks that nothing is held for keys any more.
func (r *keyRig) free() {
	r.t.Helper()
	i := r.ingress.idempotency
	require.Eventually(r.t, func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return len(i.running) == 0 && i.tapes.held.Load() == 0 && i.callers.Load() == 0 && r.ingress.flights.bodies.held.Load() == 0
	}, soon, time.Millisecond)
}

// quiet checks that no job beyond those taken has come.
func (r *keyRig) quiet() {
	r.t.Helper()
	require.Empty(r.t, r.jobs, "a second upstream call")
}

const idem = "Idempotency-Key"

// same checks that a call was answered as another was, and says so.
func (r *keyRig) same(c *call, first *http.Response, firstBody string) {
	r.t.Helper()
	resp, body := c.whole()
	require.Equal(r.t, firstBody, body)
	require.Equal(r.t, first.StatusCode, resp.StatusCode)
	require.Equal(r.t, "true", resp.Header.Get("Idempotency-Replayed"))
	for _, name := range []string{"Content-Type", "X-Sluice-Job-Id"} {
		require.Equal(r.t, first.Header.Get(name), resp.Header.Get(name), name)
	}
	require.NotEqual(r.t, first.Header.Get("X-Request-Id"), resp.Header.Get("X-Request-Id"))
}
