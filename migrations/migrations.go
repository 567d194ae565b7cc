// Package migrations holds the schema of both databases as numbered SQL files,
// embedded in the binary, and applies them to a database that a store opened.
//
// It opens no database and knows nothing of what the tables mean. A migration that
// has been released is never edited; a change is a new file in both folders.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed postgres/*.sql sqlite/*.sql
var files embed.FS

// VersionTable is the table in which the applied migrations are written down.
const VersionTable = goose.DefaultTablename

const (
	// lockID is the advisory lock that starting processes take in turn.
	lockID = 7_245_118_309

	// A process tries for that lock once a second and gives up after so many tries:
	// longer than another one's migration should take.
	lockPeriodSeconds = 1
	lockTries         = 600
)

// Postgres applies all pending migrations to a Postgres database, under a session
// lock: of processes that start together one migrates and the others wait for it.
func Postgres(ctx context.Context, db *sql.DB) error {
	locker, err := lock.NewPostgresSessionLocker(
		lock.WithLockID(lockID), lock.WithLockTimeout(lockPeriodSeconds, lockTries))
	if err != nil {
		return fmt.Errorf("make migration lock: %w", err)
	}
	provider, err := newProvider(goose.DialectPostgres, db, "postgres", goose.WithSessionLocker(locker))
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate postgres: %w", err)
	}
	return nil
}

// SQLite applies all pending migrations to a SQLite database. SQLite has no lock
// for a session, so processes that start together may try the same migration; each
// is one transaction together with its entry in the table of versions, so one of
// them succeeds and the other, whose transaction left nothing behind, looks again. One
// that loses has been overtaken by a migration of another, so it needs no more tries than
// there are migrations, one for the table of versions, and the last.
func SQLite(ctx context.Context, db *sql.DB) error {
	newest, err := LatestSQLite()
	if err != nil {
		return err
	}
	var failure error
	for range newest + 2 {
		// A new provider each time: one remembers that the table of versions is made.
		provider, err := newProvider(goose.DialectSQLite3, db, "sqlite")
		if err != nil {
			return err
		}
		if _, err = provider.Up(ctx); err == nil {
			return nil
		}
		failure = err
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("migrate sqlite: %w", failure)
}

// LatestPostgres returns the number of the newest migration for Postgres.
func LatestPostgres() (int64, error) { return latest("postgres") }

// LatestSQLite returns the number of the newest migration for SQLite.
func LatestSQLite() (int64, error) { return latest("sqlite") }

func newProvider(
	dialect goose.Dialect, db *sql.DB, folder string, opts ...goose.ProviderOption,
) (*goose.Provider, error) {
	sub, err := fs.Sub(files, folder)
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	opts = append(opts, goose.WithDisableGlobalRegistry(true))
	provider, err := goose.NewProvider(dialect, db, sub, opts...)
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	return provider, nil
}

func latest(folder string) (int64, error) {
	entries, err := files.ReadDir(folder)
	if err != nil {
		return 0, fmt.Errorf("list migrations: %w", err)
	}
	var newest int64
	for _, e := range entries {
		version, err := goose.NumericComponent(e.Name())
		if err != nil {
			return 0, fmt.Errorf("read migration name %s: %w", e.Name(), err)
		}
		newest = max(newest, version)
	}
	return newest, nil
}
