package postgres_test

import (
	"maps"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/migrations"
	"sluice/store"
	"sluice/store/postgres"
	"sluice/store/storetest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// TestConformance runs in a session whose time zone is far from UTC, and unlike the
// machine's, so that a time which is not converted shows.
func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Open {
		t.Helper()
		address := testkit.Postgres(t)
		separator := "?"
		if strings.Contains(address, "?") {
			separator = "&"
		}
		address += separator + "timezone=%3C-0930%3E9:30&pool_max_conns=4"
		return func() store.Store { return open(t, address, postgres.Options{}) }
	})
}

func TestAnOlderSchemaIsBroughtUpToDateOnce(t *testing.T) {
	t.Parallel()
	address := testkit.Postgres(t)
	s := open(t, address, postgres.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "DROP TABLE api_keys, usage_records, files, jobs, idempotency_keys, batches, "+
		"webhooks, webhook_secrets, webhook_events, webhook_deliveries, webhook_attempts, cache_answers, cache_purges, "+
		"api_key_replaced, tenants, audit_log, spend; DELETE FROM "+
		migrations.VersionTable+" WHERE version_id > 0")
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	pending, err := s.Pending(t.Context())
	require.NoError(t, err)
	require.True(t, pending)
	storetest.MigrateTogether(t, func() store.Store { return open(t, address, postgres.Options{}) })
}

func TestOnlyARecordWithTriesTakesRoomForThem(t *testing.T) {
	t.Parallel()
	address := testkit.Postgres(t)
	s := open(t, address, postgres.Options{})
	require.NoError(t, s.Migrate(t.Context()))
	storetest.AppendTried(t, s)
	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	var jobs string
	err = conn.QueryRow(t.Context(), "SELECT string_agg(job_id, ',') FROM usage_records WHERE tries IS NULL").Scan(&jobs)
	require.NoError(t, err)
	require.Equal(t, storetest.Untried, jobs)
	var code string
	err = conn.QueryRow(t.Context(), "SELECT tries->1->>'code' FROM usage_records WHERE tries IS NOT NULL").Scan(&code)
	require.NoError(t, err)
	require.Equal(t, string(inference.CodeUpstreamUnavailable), code)
	require.NoError(t, conn.Close(t.Context()))
}

func TestMigrateNeedsOneConnectionOnly(t *testing.T) {
	t.Parallel()
	s := open(t, testkit.Postgres(t), postgres.Options{MaxConns: 1})
	require.NoError(t, s.Migrate(t.Context()))
}

func TestOpenRefusesAURLWithoutShowingIt(t *testing.T) {
	t.Parallel()
	_, err := postgres.Open(t.Context(), "postgres://sluice:hunter2@db:notaport/x", postgres.Options{})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
}

func TestAStoreOutlivesItsServersRestart(t *testing.T) {
	t.Parallel()
	server := testkit.PostgresServer(t)
	s := open(t, server.URL(), postgres.Options{Timeout: 2 * time.Second})
	require.NoError(t, s.Migrate(t.Context()))
	_, err := s.AppendUsage(t.Context(), []inference.Record{{JobID: "before"}})
	require.NoError(t, err)

	server.Stop()
	requireAllFailWithin(t, s, 4*time.Second, func() {})
	late := open(t, server.URL(), postgres.Options{})
	require.Error(t, late.Ping(t.Context()), "opened while the server is down")

	server.Start()
	for _, s := range []*postgres.Store{s, late} {
		require.Eventually(t, func() bool { return s.Ping(t.Context()) == nil }, 5*time.Second, 10*time.Millisecond)
	}
	inserted, err := s.AppendUsage(t.Context(), []inference.Record{{JobID: "before"}, {JobID: "after"}})
	require.NoError(t, err)
	require.Equal(t, 1, inserted)
}

// TestADatabaseThatNeverAnswersHoldsNobody dials a listener that takes connections
// and says nothing, as a host behind a broken network does.
func TestADatabaseThatNeverAnswersHoldsNobody(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	s := open(t, "postgres://sluice@"+listener.Addr().String()+"/sluice?sslmode=disable",
		postgres.Options{Timeout: 200 * time.Millisecond})
	requireAllFailWithin(t, s, 2*time.Second, func() {})
}

// TestADatabaseThatFallsSilentHoldsNobody freezes the network under connections
// that are open and were in use.
func TestADatabaseThatFallsSilentHoldsNobody(t *testing.T) {
	t.Parallel()
	address, err := url.Parse(testkit.Postgres(t))
	require.NoError(t, err)
	network := newProxy(t, address.Host)
	address.Host = network.address()
	s := open(t, address.String(), postgres.Options{Timeout: 300 * time.Millisecond})
	require.NoError(t, s.Migrate(t.Context()))

	back := func() bool { return s.Ping(t.Context()) == nil }
	network.freeze()
	requireAllFailWithin(t, s, 2*time.Second, func() {
		network.thaw() // so that each call meets an open connection, and no new one
		require.Eventually(t, back, 5*time.Second, 10*time.Millisecond)
		network.freeze()
	})
	network.thaw()
}

// requireAllFailWithin calls every method of the store, and before each of them
// prepare.
func requireAllFailWithin(t *testing.T, s *postgres.Store, limit time.Duration, prepare func()) {
	t.Helper()
	ctx := t.Context()
	calls := map[string]func() error{
		"Ping":    func() error { return s.Ping(ctx) },
		"Migrate": func() error { return s.Migrate(ctx) },
		"Pending": func() error { _, err := s.Pending(ctx); return err },
		"CreateKey": func() error {
			return s.CreateKey(ctx, store.Key{ID: "id", Name: "name", Tenant: "acme"}, store.Change{Actor: "test"})
		},
		"ListKeys":    func() error { _, err := s.ListKeys(ctx); return err },
		"RevokeKey":   func() error { _, err := s.RevokeKey(ctx, "name", store.Change{Actor: "test"}); return err },
		"KeyByHash":   func() error { _, err := s.KeyByHash(ctx, [32]byte{}); return err },
		"KeysChanged": func() error { _, _, err := s.KeysChangedSince(ctx, time.Time{}); return err },
		"AppendUsage": func() error {
			_, err := s.AppendUsage(ctx, []inference.Record{{JobID: "x"}})
			return err
		},
		"Usage": func() error { _, err := s.Usage(ctx, store.UsageFilter{}); return err },
	}
	maps.Copy(calls, jobCalls(ctx, s))
	maps.Copy(calls, batchCalls(ctx, s))
	for name, call := range calls {
		prepare()
		start := time.Now()
		err := call()
		require.Error(t, err, name)
		require.NotErrorIs(t, err, store.ErrNotFound, name)
		require.True(t, store.Unreachable(err), "%s: %v", name, err)
		require.Less(t, time.Since(start), limit, name)
	}
}

func open(t testing.TB, address string, opts postgres.Options) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), address, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}
