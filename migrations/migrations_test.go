package migrations

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // registers the driver "pgx"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"sluice/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// oldRow is a row as a process that knows the first migration alone writes it.
const oldRow = `INSERT INTO usage_records (job_id, request_id, kind, tenant, key_id, model_asked, provider,
	model_served, stream, estimated, attempts, outcome, status, error_code, created_at, queue_us, total_us)
	VALUES ($1, 'r', 'chat', 'acme', 'k', 'm', 'p', 'm', false, false, 1, 'succeeded', 200, '', %s, 1, 2)`

func TestMigrationsGoUpAndDown(t *testing.T) {
	t.Parallel()
	databases := map[string]struct {
		dialect        goose.Dialect
		driver, folder string
		address        func(t testing.TB) string
		insert         string
	}{
		"postgres": {
			goose.DialectPostgres, "pgx", "postgres", testkit.Postgres,
			fmt.Sprintf(oldRow, "now()"),
		},
		"sqlite": {
			goose.DialectSQLite3, "sqlite", "sqlite",
			func(t testing.TB) string { t.Helper(); return filepath.Join(t.TempDir(), "sluice.db") },
			fmt.Sprintf(oldRow, "0"),
		},
	}
	for name, d := range databases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, err := sql.Open(d.driver, d.address(t))
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			provider, err := newProvider(d.dialect, db, d.folder)
			require.NoError(t, err)

			_, err = provider.UpTo(t.Context(), 1)
			require.NoError(t, err)
			_, err = db.ExecContext(t.Context(), d.insert, "before")
			require.NoError(t, err)

			_, err = provider.Up(t.Context())
			require.NoError(t, err)
			_, err = db.ExecContext(t.Context(), d.insert, "beside")
			require.NoError(t, err, "a process that is not upgraded yet writes on")
			require.Equal(t, 2, count(t, db, "SELECT count(*) FROM usage_records WHERE tries IS NULL"))
			require.Equal(t, 2, count(t, db, "SELECT count(*) FROM usage_records WHERE cost = 0 AND NOT priced AND cache = ''"), "what such a row cost is not known")

			_, err = provider.DownTo(t.Context(), 1)
			require.NoError(t, err)
			_, err = db.ExecContext(t.Context(), "SELECT tries FROM usage_records")
			require.Error(t, err, "the column is gone")
			_, err = db.ExecContext(t.Context(), "SELECT priced FROM usage_records")
			require.Error(t, err, "and those of the costs")
			require.Equal(t, 2, count(t, db, "SELECT count(*) FROM usage_records"), "and no row with it")

			_, err = provider.DownTo(t.Context(), 0)
			require.NoError(t, err)
			_, err = provider.Up(t.Context())
			require.NoError(t, err)
			require.Zero(t, count(t, db, "SELECT count(*) FROM usage_records"))
		})
	}
}

func count(t *testing.T, db *sql.DB, query string) int {
	t.Helper()
	var n int
	require.NoError(t, db.QueryRowContext(t.Context(), query).Scan(&n))
	return n
}
