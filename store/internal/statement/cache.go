package statement

import (
	"strconv"
	"strings"
	"time"

	"sluice/store"
)

// CachedColumns are the columns of a cached answer in the order in which they are written
// and read.
const CachedColumns = `key, kind, tenant, key_id, model, provider, served, dropped, body, generation,
	created_at, fresh_until, stale_until`

// covered is the condition under which a purge covers an answer.
const covered = `a.generation < p.id AND (p.model = '' OR p.model = a.model)
	AND (p.tenant = '' OR p.tenant = a.tenant) AND (p.key_id = '' OR p.key_id = a.key_id)`

// The statements of cached answers.
const (
	// Cached takes a key and the time.
	Cached = `SELECT ` + CachedColumns + ` FROM cache_answers AS a
		WHERE key = $1 AND stale_until > $2 AND NOT EXISTS (SELECT 1 FROM cache_purges AS p WHERE ` + covered + `)`

	ForgetCached = `INSERT INTO cache_purges (model, tenant, key_id, purged_at) VALUES ($1, $2, $3, $4) RETURNING id`

	CachedKeys = `SELECT key FROM cache_answers WHERE key > $1 ORDER BY key LIMIT $2`

	// DropForgotten takes the values of DropArgs.
	DropForgotten = `DELETE FROM cache_answers WHERE key IN (SELECT key FROM cache_answers
			WHERE key > $1 AND generation < $2 AND ($3 = '' OR model = $3) AND ($4 = '' OR tenant = $4) AND ($5 = '' OR key_id = $5)
			ORDER BY key LIMIT $6)
		RETURNING key`

	purgeColumns    = `id, model, tenant, key_id, purged_at`
	CachePurges     = `SELECT ` + purgeColumns + ` FROM cache_purges WHERE id > $1 ORDER BY id LIMIT $2`
	OldestPurge     = `SELECT ` + purgeColumns + ` FROM cache_purges WHERE purged_at < $1 ORDER BY id LIMIT 1`
	DropPurge       = `DELETE FROM cache_purges WHERE id = $1`
	CacheGeneration = `SELECT coalesce(max(id), 0) FROM cache_purges`

	ExpireCached = `DELETE FROM cache_answers WHERE key IN (
		SELECT key FROM cache_answers WHERE stale_until <= $1 ORDER BY stale_until LIMIT $2)`

	CacheSize = `SELECT count(*), CAST(coalesce(sum(size), 0) AS bigint) FROM cache_answers`

	// TrimCached removes the oldest answers that make up so many bytes, $1, at most $2 of them.
	TrimCached = `DELETE FROM cache_answers WHERE key IN (
		SELECT key FROM (SELECT key, sum(size) OVER (ORDER BY created_at, key) - size AS before FROM (
			SELECT key, size, created_at FROM cache_answers ORDER BY created_at, key LIMIT $2) AS oldest) AS summed
		WHERE before < $1)`
)

// PutCached returns the statement that keeps an answer, unless a purge behind its
// generation covers it, or a later answer is kept. It takes the values of CachedArgs; typed gives a parameter the type
// that it has in Postgres.
func PutCached(typed func(parameter, typ string) string) string {
	types := []string{
		"bytea", "text", "text", "text", "text", "text", "text", "text", "bytea", "bigint", "timestamptz", "timestamptz", "timestamptz", "bigint",
	}
	values := make([]string, len(types))
	for i, typ := range types {
		values[i] = typed("$"+strconv.Itoa(i+1), typ)
	}
	return `INSERT INTO cache_answers (` + CachedColumns + `, size) SELECT ` + strings.Join(values, ", ") + `
		WHERE NOT EXISTS (SELECT 1 FROM cache_purges WHERE id > $10 AND (model = '' OR model = $5)
			AND (tenant = '' OR tenant = $3) AND (key_id = '' OR key_id = $4))
		ON CONFLICT (key) DO UPDATE SET kind = excluded.kind, tenant = excluded.tenant, key_id = excluded.key_id,
			model = excluded.model, provider = excluded.provider, served = excluded.served, dropped = excluded.dropped,
			body = excluded.body, generation = excluded.generation, created_at = excluded.created_at,
			fresh_until = excluded.fresh_until, stale_until = excluded.stale_until, size = excluded.size
		WHERE excluded.created_at >= cache_answers.created_at`
}

// CachedArgs returns the values of a clean answer for PutCached's statement. stamp encodes a time.
func CachedArgs(a *store.CachedAnswer, stamp func(time.Time) any) []any {
	return []any{
		a.Key[:], a.Kind, a.Tenant, a.KeyID, a.Model, a.Provider, a.Served, a.Dropped, a.Body, a.Generation,
		stamp(a.CreatedAt), stamp(a.FreshUntil), stamp(a.StaleUntil), a.Size(),
	}
}

// DropArgs returns the values for DropForgotten.
func DropArgs(p store.CachePurge, after [32]byte, limit int) []any {
	f := p.Filter.Clean()
	return []any{after[:], p.Generation, f.Model, f.Tenant, f.KeyID, max(0, min(limit, store.MaxPage))}
}

// Keys returns keys as a database gives them in the form of the store.
func Keys(read [][]byte) [][32]byte {
	keys := make([][32]byte, len(read))
	for i, k := range read {
		copy(keys[i][:], k) // a CHECK holds its length at 32
	}
	return keys
}

// LastKey returns the greatest of the keys, or after if there is none.
func LastKey(keys [][]byte, after [32]byte) [32]byte {
	last := after
	for _, k := range keys {
		if string(k) > string(last[:]) {
			copy(last[:], k) // a CHECK holds its length at 32
		}
	}
	return last
}

// CachedRow is one row of Cached on its way into a store.CachedAnswer. T is how the
// database's driver reads a time.
type CachedRow[T any] struct {
	answer                store.CachedAnswer
	key                   []byte
	created, fresh, stale T
}

// Targets returns where the values go.
func (r *CachedRow[T]) Targets() []any {
	a := &r.answer
	return []any{
		&r.key, &a.Kind, &a.Tenant, &a.KeyID, &a.Model, &a.Provider, &a.Served, &a.Dropped, &a.Body, &a.Generation,
		&r.created, &r.fresh, &r.stale,
	}
}

// Answer returns the answer that was read. read decodes a time.
func (r *CachedRow[T]) Answer(read func(T) time.Time) store.CachedAnswer {
	a := r.answer
	copy(a.Key[:], r.key) // a CHECK holds its length at 32
	a.CreatedAt, a.FreshUntil, a.StaleUntil = read(r.created), read(r.fresh), read(r.stale)
	return a
}

// PurgeRow is one row of purges on its way into a store.CachePurge.
type PurgeRow[T any] struct {
	purge store.CachePurge
	at    T
}

// Targets returns where the values go.
func (r *PurgeRow[T]) Targets() []any {
	p := &r.purge
	return []any{&p.Generation, &p.Filter.Model, &p.Filter.Tenant, &p.Filter.KeyID, &r.at}
}

// Purge returns the purge that was read.
func (r *PurgeRow[T]) Purge(read func(T) time.Time) store.CachePurge {
	p := r.purge
	p.At = read(r.at)
	return p
}
