package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/store"
	"sluice/store/internal/statement"
)

// cacheLock is the advisory lock of whoever trims the cache. Its number stands for nothing.
const cacheLock = 0x51_1c_e0_ca

// Cached implements store.Cache.
func (s *Store) Cached(ctx context.Context, key [32]byte, now time.Time) (store.CachedAnswer, error) {
	answers, err := query(ctx, s, scanCached, statement.Cached, key[:], store.CleanTime(now))
	if err == nil && len(answers) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.CachedAnswer{}, fmt.Errorf("look up cached answer: %w", err)
	}
	return answers[0], nil
}

// CachedKeys implements store.Cache.
func (s *Store) CachedKeys(ctx context.Context, after [32]byte, limit int) ([][32]byte, error) {
	keys, err := query(ctx, s, pgx.RowTo[[]byte], statement.CachedKeys, after[:], max(0, min(limit, store.MaxPage)))
	if err != nil {
		return nil, fmt.Errorf("list keys of cached answers: %w", err)
	}
	return statement.Keys(keys), nil
}

// putCached is statement.PutCached with the types that Postgres cannot know.
var putCached = statement.PutCached(func(parameter, typ string) string { return "CAST(" + parameter + " AS " + typ + ")" })

// PutCached implements store.Cache. Rows are written in the order of their keys, so that
// two callers do not wait for each other in a circle, and all of them in one round trip.
func (s *Store) PutCached(ctx context.Context, answers []store.CachedAnswer) error {
	answers, err := store.CleanCached(answers)
	if err != nil || len(answers) == 0 {
		return err
	}
	slices.SortStableFunc(answers, func(a, b store.CachedAnswer) int { return cmp.Compare(string(a.Key[:]), string(b.Key[:])) })
	var puts pgx.Batch
	for i := range answers {
		puts.Queue(putCached, statement.CachedArgs(&answers[i], stamp)...)
	}
	err = s.inTxWithin(ctx, s.timeout+store.BodyTime(int(store.SizeOfCached(answers))), func(ctx context.Context, tx pgx.Tx) error {
		return tx.SendBatch(ctx, &puts).Close()
	})
	if err != nil {
		return fmt.Errorf("keep %d answers: %w", len(answers), err)
	}
	return nil
}

// ForgetCached implements store.Cache. Purges come one after another, so that whoever has
// seen one has seen all before it.
func (s *Store) ForgetCached(ctx context.Context, filter store.CacheFilter, now time.Time) (store.CachePurge, error) {
	p := store.CachePurge{Filter: filter.Clean(), At: store.CleanTime(now)}
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE cache_purges IN EXCLUSIVE MODE`); err != nil {
			return err
		}
		var err error
		p.Generation, err = queryOne(ctx, tx, pgx.RowTo[int64], statement.ForgetCached, p.Filter.Model, p.Filter.Tenant, p.Filter.KeyID, p.At)
		return err
	})
	if err != nil {
		return store.CachePurge{}, fmt.Errorf("forget cached answers: %w", err)
	}
	return p, nil
}

// DropForgotten implements store.Cache.
func (s *Store) DropForgotten(ctx context.Context, purge store.CachePurge, after [32]byte, limit int) (int, [32]byte, error) {
	keys, err := query(ctx, s, pgx.RowTo[[]byte], statement.DropForgotten, statement.DropArgs(purge, after, limit)...)
	if err != nil {
		return 0, after, fmt.Errorf("remove cached answers: %w", err)
	}
	return len(keys), statement.LastKey(keys, after), nil
}

// CachePurges implements store.Cache.
func (s *Store) CachePurges(ctx context.Context, after int64) ([]store.CachePurge, error) {
	purges, err := query(ctx, s, scanPurge, statement.CachePurges, after, store.MaxPage)
	if err != nil {
		return nil, fmt.Errorf("read purges of the cache: %w", err)
	}
	return purges, nil
}

// CacheGeneration implements store.Cache.
func (s *Store) CacheGeneration(ctx context.Context) (int64, error) {
	last, err := query(ctx, s, pgx.RowTo[int64], statement.CacheGeneration)
	if err != nil {
		return 0, fmt.Errorf("read generation of the cache: %w", err)
	}
	return last[0], nil
}

// PruneCachePurges implements store.Cache.
func (s *Store) PruneCachePurges(ctx context.Context, before time.Time, limit int) (more bool, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, statement.OldestPurge+` FOR UPDATE SKIP LOCKED`, store.CleanTime(before))
		if err != nil {
			return err
		}
		oldest, err := pgx.CollectRows(rows, scanPurge)
		if err != nil || len(oldest) == 0 {
			return err
		}
		more = true
		tag, err := tx.Exec(ctx, statement.DropForgotten, statement.DropArgs(oldest[0], [32]byte{}, limit)...)
		if err != nil || tag.RowsAffected() > 0 {
			return err
		}
		_, err = tx.Exec(ctx, statement.DropPurge, oldest[0].Generation)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("prune purges of the cache: %w", err)
	}
	return more, nil
}

// ExpireCached implements store.Cache.
func (s *Store) ExpireCached(ctx context.Context, now time.Time, limit int) (int, error) {
	removed, err := s.exec(ctx, statement.ExpireCached, store.CleanTime(now), max(0, min(limit, store.MaxPage)))
	if err != nil {
		return 0, fmt.Errorf("remove old cached answers: %w", err)
	}
	return int(removed), nil
}

// TrimCached implements store.Cache.
func (s *Store) TrimCached(ctx context.Context, most int64, limit int) (removed int, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		alone, err := queryOne(ctx, tx, pgx.RowTo[bool], `SELECT pg_try_advisory_xact_lock($1)`, int64(cacheLock))
		if err != nil || !alone {
			return err
		}
		_, bytes, err := cacheSize(tx.Query(ctx, statement.CacheSize))
		if err != nil || bytes <= most {
			return err
		}
		tag, err := tx.Exec(ctx, statement.TrimCached, bytes-most, max(0, min(limit, store.MaxPage)))
		removed = int(tag.RowsAffected())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("trim cached answers: %w", err)
	}
	return removed, nil
}

// CacheSize implements store.Cache.
func (s *Store) CacheSize(ctx context.Context) (answers, bytes int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if answers, bytes, err = cacheSize(s.pool.Query(ctx, statement.CacheSize)); err != nil {
		return 0, 0, fmt.Errorf("size of the cache: %w", err)
	}
	return answers, bytes, nil
}

func cacheSize(rows pgx.Rows, err error) (answers, bytes int64, _ error) {
	if err != nil {
		return 0, 0, err
	}
	sizes, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (s [2]int64, err error) {
		return s, row.Scan(&s[0], &s[1])
	})
	return sizes[0], sizes[1], err
}

func scanCached(row pgx.CollectableRow) (store.CachedAnswer, error) {
	var r statement.CachedRow[*time.Time]
	if err := row.Scan(r.Targets()...); err != nil {
		return store.CachedAnswer{}, err
	}
	return r.Answer(timeOrZero), nil
}

func scanPurge(row pgx.CollectableRow) (store.CachePurge, error) {
	var r statement.PurgeRow[*time.Time]
	if err := row.Scan(r.Targets()...); err != nil {
		return store.CachePurge{}, err
	}
	return r.Purge(timeOrZero), nil
}
