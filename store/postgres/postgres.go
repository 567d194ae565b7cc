// Package postgres keeps what Sluice remembers in a Postgres database, by pgx.
//
// It decides nothing: what may be stored and how it is found again is said by
// package store. Every call but Migrate ends within a timeout, so that a database
// which is down, or does not answer, never holds a caller.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"sluice/migrations"
	"sluice/store"
)

// DefaultTimeout bounds one call when the options name no other time.
const DefaultTimeout = 5 * time.Second

// SQLSTATE codes, from the appendix of the Postgres manual.
const (
	codeUniqueViolation = "23505"
	codeUndefinedTable  = "42P01"
)

// Options change how a Store behaves. The zero value is ready for use.
type Options struct {
	Timeout  time.Duration // of one call; zero: DefaultTimeout
	MaxConns int32         // zero: what the URL's pool_max_conns says, or else pgx's own default
}

// Store is a store.Store in Postgres.
type Store struct {
	pool    *pgxpool.Pool
	timeout time.Duration
}

var _ store.Store = (*Store)(nil)

// Open returns a Store for the database at url (postgres://…, or libpq's keywords).
// It fails only if url cannot be understood: a database that is down is no reason
// not to start, and Ping tells.
func Open(ctx context.Context, url string, opts Options) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(url) // its errors leave the password out
	if err != nil {
		return nil, fmt.Errorf("parse database url: %w", err)
	}
	timeout := opts.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	if opts.MaxConns > 0 {
		cfg.MaxConns = opts.MaxConns
	}
	if cfg.ConnConfig.ConnectTimeout == 0 || cfg.ConnConfig.ConnectTimeout > timeout {
		cfg.ConnConfig.ConnectTimeout = timeout
	}
	if _, set := cfg.ConnConfig.RuntimeParams["application_name"]; !set {
		cfg.ConnConfig.RuntimeParams["application_name"] = "sluice"
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return &Store{pool: pool, timeout: timeout}, nil
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := s.pool.Ping(ctx); err != nil {
		return fmt.Errorf("ping database: %w", err)
	}
	return nil
}

// Migrate implements store.Store. It takes as long as the migrations take, and
// waits for another process that is migrating; ctx bounds it. A database that does
// not answer is noticed within the timeout.
func (s *Store) Migrate(ctx context.Context) error {
	if err := s.Ping(ctx); err != nil {
		return err
	}
	db := stdlib.OpenDBFromPool(s.pool)
	migrateErr := migrations.Postgres(ctx, db)
	if err := db.Close(); err != nil {
		return errors.Join(migrateErr, fmt.Errorf("close migration connection: %w", err))
	}
	return migrateErr
}

// Pending implements store.Store.
func (s *Store) Pending(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	latest, err := migrations.LatestPostgres()
	if err != nil {
		return false, err
	}
	var version int64
	err = s.pool.QueryRow(ctx,
		"SELECT coalesce(max(version_id), 0) FROM "+migrations.VersionTable+" WHERE is_applied").Scan(&version)
	if hasCode(err, codeUndefinedTable) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read schema version: %w", err)
	}
	return version < latest, nil
}

// Close implements store.Store. It waits for calls in flight.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

// query runs a statement that returns rows and collects them.
func query[T any](
	ctx context.Context, s *Store, scan pgx.RowToFunc[T], sql string, args ...any,
) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

func hasCode(err error, code string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == code
}
