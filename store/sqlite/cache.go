package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// Cached implements store.Cache. A row is found by its key in less time than it takes to
// have somebody stand by to interrupt the search: ctx is heeded before it alone.
func (s *Store) Cached(ctx context.Context, key [32]byte, now time.Time) (store.CachedAnswer, error) {
	answers, err := s.cached(ctx, key, now)
	if err == nil && len(answers) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.CachedAnswer{}, fmt.Errorf("look up cached answer: %w", err)
	}
	return answers[0], nil
}

func (s *Store) cached(ctx context.Context, key [32]byte, now time.Time) ([]store.CachedAnswer, error) {
	stmt, err := s.looks.get(ctx, statement.Cached) //nolint:sqlclosecheck // it is kept until the store is closed
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	rows, err := stmt.QueryContext(context.WithoutCancel(ctx), key[:], micros(now))
	if err != nil {
		return nil, err
	}
	return collect(rows, scanCached)
}

// CachedKeys implements store.Cache.
func (s *Store) CachedKeys(ctx context.Context, after [32]byte, limit int) ([][32]byte, error) {
	keys, err := query(ctx, s.reader, scanBytes, statement.CachedKeys, after[:], max(0, min(limit, store.MaxPage)))
	if err != nil {
		return nil, fmt.Errorf("list keys of cached answers: %w", err)
	}
	return statement.Keys(keys), nil
}

// putCached is statement.PutCached with columns that have their types by themselves.
var putCached = statement.PutCached(func(parameter, _ string) string { return parameter })

// PutCached implements store.Cache.
func (s *Store) PutCached(ctx context.Context, answers []store.CachedAnswer) error {
	answers, err := store.CleanCached(answers)
	if err != nil || len(answers) == 0 {
		return err
	}
	within := timeout + store.BodyTime(int(store.SizeOfCached(answers)))
	err = s.inTxWith(ctx, within, putCached, func(ctx context.Context, put *sql.Stmt) error {
		for i := range answers {
			if _, err := put.ExecContext(context.WithoutCancel(ctx), statement.CachedArgs(&answers[i], stamp)...); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keep %d answers: %w", len(answers), err)
	}
	return nil
}

// ForgetCached implements store.Cache.
func (s *Store) ForgetCached(ctx context.Context, filter store.CacheFilter, now time.Time) (store.CachePurge, error) {
	p := store.CachePurge{Filter: filter.Clean(), At: store.CleanTime(now)}
	scan := func(rows *sql.Rows) (generation int64, err error) { return generation, rows.Scan(&generation) }
	made, err := query(ctx, s.writer, scan, statement.ForgetCached, p.Filter.Model, p.Filter.Tenant, p.Filter.KeyID, micros(p.At))
	if err != nil {
		return store.CachePurge{}, fmt.Errorf("forget cached answers: %w", err)
	}
	p.Generation = made[0]
	return p, nil
}

// DropForgotten implements store.Cache.
func (s *Store) DropForgotten(ctx context.Context, purge store.CachePurge, after [32]byte, limit int) (int, [32]byte, error) {
	keys, err := query(ctx, s.writer, scanBytes, statement.DropForgotten, statement.DropArgs(purge, after, limit)...)
	if err != nil {
		return 0, after, fmt.Errorf("remove cached answers: %w", err)
	}
	return len(keys), statement.LastKey(keys, after), nil
}

// CachePurges implements store.Cache.
func (s *Store) CachePurges(ctx context.Context, after int64) ([]store.CachePurge, error) {
	purges, err := query(ctx, s.reader, scanPurge, statement.CachePurges, after, store.MaxPage)
	if err != nil {
		return nil, fmt.Errorf("read purges of the cache: %w", err)
	}
	return purges, nil
}

// CacheGeneration implements store.Cache.
func (s *Store) CacheGeneration(ctx context.Context) (last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.reader.QueryRowContext(ctx, statement.CacheGeneration).Scan(&last); err != nil {
		return 0, fmt.Errorf("read generation of the cache: %w", err)
	}
	return last, nil
}

// PruneCachePurges implements store.Cache.
func (s *Store) PruneCachePurges(ctx context.Context, before time.Time, limit int) (more bool, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		oldest, err := queryTx(ctx, tx, scanPurge, statement.OldestPurge, micros(before))
		if err != nil || len(oldest) == 0 {
			return err
		}
		more = true
		removed, err := queryTx(ctx, tx, scanBytes, statement.DropForgotten, statement.DropArgs(oldest[0], [32]byte{}, limit)...)
		if err != nil || len(removed) > 0 {
			return err
		}
		_, err = tx.ExecContext(ctx, statement.DropPurge, oldest[0].Generation)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("prune purges of the cache: %w", err)
	}
	return more, nil
}

// ExpireCached implements store.Cache.
func (s *Store) ExpireCached(ctx context.Context, now time.Time, limit int) (int, error) {
	removed, err := s.exec(ctx, statement.ExpireCached, micros(now), max(0, min(limit, store.MaxPage)))
	if err != nil {
		return 0, fmt.Errorf("remove old cached answers: %w", err)
	}
	return int(removed), nil
}

// errInBounds ends a transaction that has nothing to do.
var errInBounds = errors.New("in bounds")

// TrimCached implements store.Cache. There is one writer at a time; nobody holds the file's
// lock who finds nothing to do.
func (s *Store) TrimCached(ctx context.Context, most int64, limit int) (removed int, err error) {
	if _, bytes, err := s.CacheSize(ctx); err != nil || bytes <= most {
		return 0, err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var answers, bytes int64
		if err := tx.QueryRowContext(ctx, statement.CacheSize).Scan(&answers, &bytes); err != nil {
			return err
		}
		if bytes <= most {
			return errInBounds
		}
		result, err := tx.ExecContext(ctx, statement.TrimCached, bytes-most, max(0, min(limit, store.MaxPage)))
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		removed = int(n)
		return err
	})
	if err != nil && !errors.Is(err, errInBounds) {
		return 0, fmt.Errorf("trim cached answers: %w", err)
	}
	return removed, nil
}

// CacheSize implements store.Cache.
func (s *Store) CacheSize(ctx context.Context) (answers, bytes int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.reader.QueryRowContext(ctx, statement.CacheSize).Scan(&answers, &bytes); err != nil {
		return 0, 0, fmt.Errorf("size of the cache: %w", err)
	}
	return answers, bytes, nil
}

func scanBytes(rows *sql.Rows) (b []byte, err error) {
	err = rows.Scan(&b)
	return b, err
}

func scanCached(rows *sql.Rows) (store.CachedAnswer, error) {
	var r statement.CachedRow[*int64]
	if err := rows.Scan(r.Targets()...); err != nil {
		return store.CachedAnswer{}, err
	}
	return r.Answer(timeOrZero), nil
}

func scanPurge(rows *sql.Rows) (store.CachePurge, error) {
	var r statement.PurgeRow[*int64]
	if err := rows.Scan(r.Targets()...); err != nil {
		return store.CachePurge{}, err
	}
	return r.Purge(timeOrZero), nil
}
