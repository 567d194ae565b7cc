// Package sqlite keeps what Sluice remembers in one SQLite file, for a Sluice that
// runs without any other server.
//
// It decides nothing: what may be stored and how it is found again is said by
// package store. Several processes on one machine may share the file; a network
// file system may not hold it.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"sluice/migrations"
	"sluice/store"
)

const (
	driverName = "sqlite"

	// timeout bounds one call, busyTimeout the part of it that waits for another
	// process's transaction.
	timeout     = 5 * time.Second
	busyTimeout = 4 * time.Second

	// maxReaders is how many reads run beside each other; there is always one writer.
	maxReaders = 4
)

// Store is a store.Store in a SQLite file.
//
// One connection writes, because SQLite has one writer at a time and callers wait
// better in a queue of Go's than in SQLite's polling. Others read, and in WAL mode
// no reader waits for the writer. What requests wait for is looked up on connections of
// its own, where no long report is before it.
type Store struct {
	path    string
	writer  *sql.DB
	reader  *sql.DB
	lookups *sql.DB

	writes, looks *prepared
}

var _ store.Store = (*Store)(nil)

// Open opens the database file at path, and makes it, readable by its owner alone,
// and its folder where they do not exist.
//
// synchronous is FULL: a commit has reached the disk when it returns. The ledger
// needs that, because the queue forgets a record once it is committed here. NORMAL
// would survive the end of the process, kill -9 included, but lose the last
// commits with the machine's power. It would save a sync of the disk for each
// commit; since records come in batches and no request waits for one, that is
// nothing to save.
func Open(ctx context.Context, path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("resolve database path: %w", err)
	}
	if err := createFile(abs); err != nil {
		return nil, err
	}
	writer, err := openWriter(abs, 0)
	if err != nil {
		return nil, err
	}
	reader, err := openReader(abs)
	if err != nil {
		return nil, errors.Join(err, writer.Close())
	}
	lookups, err := openReader(abs)
	if err != nil {
		return nil, errors.Join(err, reader.Close(), writer.Close())
	}
	s := &Store{path: abs, writer: writer, reader: reader, lookups: lookups, writes: newPrepared(writer), looks: newPrepared(lookups)}

	// The writer's first connection turns the file to WAL, which has to come before
	// any reader's; it also shows whether the file is a database at all.
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := whenFree(ctx, func() error { return s.writer.PingContext(ctx) }); err != nil {
		return nil, errors.Join(fmt.Errorf("open database %s: %w", path, err), s.Close())
	}
	return s, nil
}

// openWriter opens a connection that writes, whose transactions hold the file's write lock
// from their beginning. SQLite itself waits so long for the lock: see whenFree.
func openWriter(path string, busy time.Duration) (*sql.DB, error) {
	writer, err := sql.Open(driverName, dsn(path, busy, url.Values{
		"_journal_mode": {"WAL"}, "_synchronous": {"FULL"}, "_txlock": {"immediate"},
	}))
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	writer.SetMaxOpenConns(1)
	return writer, nil
}

// openReader opens connections that read alone.
func openReader(path string) (*sql.DB, error) {
	reader, err := sql.Open(driverName, dsn(path, busyTimeout, url.Values{"_query_only": {"true"}}))
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	reader.SetMaxOpenConns(maxReaders)
	reader.SetMaxIdleConns(maxReaders)
	return reader, nil
}

// createFile makes the file before SQLite would, which gives it the process's
// default mode. SQLite gives its journal the mode of the database.
func createFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make database folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make database file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("make database file: %w", err)
	}
	return nil
}

// dsn returns path as a URI, in which no character of a path has a meaning.
func dsn(path string, busy time.Duration, params url.Values) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a drive letter
	}
	params.Set("mode", "rw")
	params.Set("_busy_timeout", fmt.Sprint(busy.Milliseconds()))
	params.Set("_dqs", "false")
	uri := url.URL{Scheme: "file", Path: path, RawQuery: params.Encode()}
	return uri.String()
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var tables int
	if err := s.reader.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master").Scan(&tables); err != nil {
		return fmt.Errorf("ping database: %w", err)
	}
	return nil
}

// Migrate implements store.Store. It takes as long as the migrations take; ctx
// bounds it.
func (s *Store) Migrate(ctx context.Context) error {
	writer, err := openWriter(s.path, busyTimeout)
	if err != nil {
		return err
	}
	return errors.Join(migrations.SQLite(ctx, writer), writer.Close())
}

// Pending implements store.Store.
func (s *Store) Pending(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	latest, err := migrations.LatestSQLite()
	if err != nil {
		return false, err
	}
	var tables int
	err = s.reader.QueryRowContext(ctx,
		"SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?", migrations.VersionTable).Scan(&tables)
	if err != nil {
		return false, fmt.Errorf("look for schema version: %w", err)
	}
	if tables == 0 {
		return true, nil
	}
	var version int64
	err = s.reader.QueryRowContext(ctx,
		"SELECT coalesce(max(version_id), 0) FROM "+migrations.VersionTable+" WHERE is_applied").Scan(&version)
	if err != nil {
		return false, fmt.Errorf("read schema version: %w", err)
	}
	return version < latest, nil
}

// Close implements store.Store. It waits for calls in flight.
func (s *Store) Close() error {
	if err := errors.Join(s.looks.close(), s.writes.close(), s.lookups.Close(), s.reader.Close(), s.writer.Close()); err != nil {
		return fmt.Errorf("close database: %w", err)
	}
	return nil
}

// micros returns t as it is stored.
func micros(t time.Time) int64 { return t.UnixMicro() }

func nullMicros(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

func fromMicros(n int64) time.Time { return time.UnixMicro(n).UTC() }

func fromNullMicros(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return fromMicros(n.Int64)
}
