package migrations

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/testkit"
)

// spendDatabases are the databases, with what they write differently.
var spendDatabases = map[string]struct {
	dialect        goose.Dialect
	driver, folder string
	address        func(t testing.TB) string
	stamp          string // makes a time of microseconds since 1970
	day            string // writes spend.day as microseconds since 1970
}{
	"postgres": {
		goose.DialectPostgres, "pgx", "postgres",
		func(t testing.TB) string { // far from UTC, so that a day which is not UTC's shows
			t.Helper()
			u, err := url.Parse(testkit.Postgres(t))
			require.NoError(t, err)
			q := u.Query()
			q.Set("timezone", "<-0930>9:30")
			u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20")
			return u.String()
		},
		"to_timestamp(0) + $%d::bigint * interval '1 microsecond'", "(extract(epoch FROM day) * 1000000)::bigint",
	},
	"sqlite": {
		goose.DialectSQLite3, "sqlite", "sqlite",
		func(t testing.TB) string {
			t.Helper()
			return "file:" + filepath.Join(t.TempDir(), "sluice.db") + "?_txlock=immediate&_journal_mode=WAL&_busy_timeout=4000"
		},
		"$%d", "day",
	},
}

// TestSpendIsFilledFromTheRows brings a database up to date in which there are rows, while a
// process that knows nothing of their sums adds others.
func TestSpendIsFilledFromTheRows(t *testing.T) {
	t.Parallel()
	const day = 86_400_000_000
	for name, d := range spendDatabases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, err := sql.Open(d.driver, d.address(t))
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, db.Close()) })
			provider, err := newProvider(d.dialect, db, d.folder)
			require.NoError(t, err)
			_, err = provider.UpTo(t.Context(), 11)
			require.NoError(t, err)
			insert := `INSERT INTO usage_records (job_id, request_id, kind, tenant, key_id, model_asked, provider,
				model_served, stream, estimated, attempts, outcome, status, error_code, queue_us, total_us, cost, created_at)
				VALUES ($1, 'r', 'chat', 'acme', $2, 'm', 'p', 'm', false, false, 1, 'succeeded', 200, '', 1, 2, $3, ` +
				fmt.Sprintf(d.stamp, 4) + `) ON CONFLICT (job_id) DO NOTHING`
			add := func(ctx context.Context, id, key string, cost, at int64) error {
				_, err := db.ExecContext(ctx, insert, id, key, cost, at)
				return err
			}
			const most = 1<<63 - 1
			for i, r := range []struct{ cost, at int64 }{
				{most, 20_000 * day}, {most, 20_001*day - 1}, {7, 20_001 * day}, {0, 20_002 * day}, {5, -1}, {3, -day},
			} {
				require.NoError(t, add(t.Context(), fmt.Sprint("before-", i), "k", r.cost, r.at))
			}

			writers, ctx := errgroup.WithContext(t.Context())
			var migrated atomic.Bool
			started := make(chan struct{})
			writers.Go(func() error {
				for i := 0; !migrated.Load(); i++ {
					if i == 10 {
						close(started)
					}
					if err := add(ctx, fmt.Sprint("beside-", i), "beside", 1, 20_000*day); err != nil {
						return err
					}
				}
				return nil
			})
			select {
			case <-started:
			case <-ctx.Done():
				require.NoError(t, writers.Wait())
			}
			_, err = provider.Up(t.Context())
			migrated.Store(true)
			require.NoError(t, err)
			require.NoError(t, writers.Wait())
			require.NoError(t, add(t.Context(), "after", "k", 2_000_000_001, 20_001*day+5))
			require.NoError(t, add(t.Context(), "after", "k", 2_000_000_001, 20_001*day+5), "a row that is there counts once")

			sum := func(at int64) (whole, billionths int) {
				of := " FROM spend WHERE key_id = 'k' AND tenant = 'acme' AND model = 'm' AND " + d.day + " = " + fmt.Sprint(at)
				require.Equal(t, 1, count(t, db, "SELECT count(*)"+of))
				return count(t, db, "SELECT whole"+of), count(t, db, "SELECT billionths"+of)
			}
			for at, want := range map[int64][2]int{
				20_000 * day: {2 * (most / 1_000_000_000), 2 * (most % 1_000_000_000)}, 20_001 * day: {2, 8}, -day: {0, 8},
			} {
				whole, billionths := sum(at)
				require.Equal(t, want, [2]int{whole, billionths}, "day %d", at/day)
			}
			require.Equal(t, 4, count(t, db, "SELECT count(*) FROM spend"), "what cost nothing has no sum")
			require.Equal(t, count(t, db, "SELECT count(*) FROM usage_records WHERE key_id = 'beside'"),
				count(t, db, "SELECT billionths FROM spend WHERE key_id = 'beside'"), "not one that was added meanwhile is missing")

			_, err = provider.DownTo(t.Context(), 11)
			require.NoError(t, err)
			require.NoError(t, add(t.Context(), "down", "k", 1, 0), "nothing is left that would add it up")
			_, err = provider.Up(t.Context())
			require.NoError(t, err)
			require.Equal(t, 5, count(t, db, "SELECT count(*) FROM spend"))
		})
	}
}
