package sqlite_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/migrations"
	"sluice/store"
	"sluice/store/sqlite"
	"sluice/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Open {
		t.Helper()
		path := filepath.Join(t.TempDir(), "sluice.db")
		return func() store.Store { return open(t, path) }
	})
}

func TestAnOlderSchemaIsBroughtUpToDateOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.db")
	s := open(t, path)
	require.NoError(t, s.Migrate(t.Context()))
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	for _, statement := range []string{
		"DROP TABLE api_keys", "DROP TABLE usage_records", "DROP TABLE files",
		"DROP TABLE jobs", "DROP TABLE idempotency_keys", "DROP TABLE batches",
		"DROP TABLE webhooks", "DROP TABLE webhook_secrets", "DROP TABLE webhook_events",
		"DROP TABLE webhook_deliveries", "DROP TABLE webhook_attempts",
		"DROP TABLE cache_answers", "DROP TABLE cache_purges",
		"DROP TABLE api_key_replaced", "DROP TABLE tenants", "DROP TABLE audit_log", "DROP TABLE spend",
		"DELETE FROM " + migrations.VersionTable + " WHERE version_id > 0",
	} {
		_, err := db.ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	require.NoError(t, db.Close())
	pending, err := s.Pending(t.Context())
	require.NoError(t, err)
	require.True(t, pending)
	storetest.MigrateTogether(t, func() store.Store { return open(t, path) })
}

func TestOpenMakesAPrivateFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data", "deeper")
	path := filepath.Join(dir, "sluice.db")
	s := open(t, path)
	require.NoError(t, s.Migrate(t.Context()))
	_, err := s.AppendUsage(t.Context(), []inference.Record{{JobID: "1"}})
	require.NoError(t, err)

	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	files, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Len(t, files, 3, "the database, its journal and the journal's index")
	for _, file := range files {
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), file)
	}
}

func TestOpenTakesAnyPath(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a?mode=memory", "b#c", "100%20 d.db", "ü'\".db", "file:x.db"} {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, open(t, path).Migrate(t.Context()))
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.NotZero(t, info.Size(), "the data is in this very file")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	other := filepath.Join(dir, "notes.txt")
	require.NoError(t, os.WriteFile(other, []byte("not a database, but long enough to look like one"), 0o600))
	_, err := sqlite.Open(t.Context(), other)
	require.ErrorContains(t, err, "not a database")
	_, err = sqlite.Open(t.Context(), dir)
	require.Error(t, err, "a folder is no database")
	_, err = sqlite.Open(t.Context(), filepath.Join(other, "x.db"))
	require.Error(t, err, "no folder can be made there")
}

// TestCommitsReachTheDisk pins what the ledger's promise stands on.
func TestCommitsReachTheDisk(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "sluice.db"))
	journal, synchronous, err := s.Durability(t.Context())
	require.NoError(t, err)
	require.Equal(t, "wal", journal)
	require.Equal(t, 2, synchronous, "FULL")
}

func TestOnlyARecordWithTriesTakesRoomForThem(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.db")
	s := open(t, path)
	require.NoError(t, s.Migrate(t.Context()))
	storetest.AppendTried(t, s)
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	var jobs string
	err = db.QueryRowContext(t.Context(), "SELECT group_concat(job_id) FROM usage_records WHERE tries IS NULL").Scan(&jobs)
	require.NoError(t, err)
	require.Equal(t, storetest.Untried, jobs)
	var code string
	err = db.QueryRowContext(t.Context(), "SELECT tries->1->>'code' FROM usage_records WHERE tries IS NOT NULL").Scan(&code)
	require.NoError(t, err)
	require.Equal(t, string(inference.CodeUpstreamUnavailable), code)
}

func TestReadersDoNotWaitForAWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.db")
	s := open(t, path)
	require.NoError(t, s.Migrate(t.Context()))
	_, err := s.AppendUsage(t.Context(), []inference.Record{{JobID: "kept"}})
	require.NoError(t, err)
	holdWriteLock(t, path)

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.NoError(t, s.Ping(ctx))
	records, err := s.Usage(ctx, store.UsageFilter{})
	require.NoError(t, err)
	require.Len(t, records, 1)
}

func TestAWriterThatWaitsInVainGivesUp(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.db")
	s := open(t, path)
	require.NoError(t, s.Migrate(t.Context()))
	holdWriteLock(t, path)

	start := time.Now()
	_, err := s.AppendUsage(t.Context(), []inference.Record{{JobID: "waits"}})
	require.Error(t, err)
	require.True(t, store.Unreachable(err), err)
	require.Less(t, time.Since(start), 10*time.Second)
}

func TestAWriterHasItsTurnBesideBusyOnes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.db")
	s := open(t, path)
	require.NoError(t, s.Migrate(t.Context()))
	busy, ctx := errgroup.WithContext(t.Context())
	enough := make(chan struct{})
	for w := range 2 {
		other := open(t, path)
		busy.Go(func() error {
			for n := 0; ; n++ {
				select {
				case <-enough:
					return nil
				default:
				}
				batch := make([]inference.Record, store.MaxBatch)
				for i := range batch {
					batch[i].JobID = fmt.Sprintf("%d-%d-%d", w, n, i)
				}
				if _, err := other.AppendUsage(ctx, batch); err != nil {
					return err
				}
			}
		})
	}
	var err error
	for i := 0; i < 30 && err == nil; i++ {
		_, err = s.AppendUsage(t.Context(), []inference.Record{{JobID: fmt.Sprint(i)}})
	}
	close(enough)
	require.NoError(t, busy.Wait())
	require.NoError(t, err)
}

// holdWriteLock takes the file's write lock, as another process may, until the test
// ends.
func holdWriteLock(t *testing.T, path string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	_, err = conn.ExecContext(t.Context(), "BEGIN IMMEDIATE")
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		require.NoError(t, db.Close())
	})
}

func open(t testing.TB, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}
