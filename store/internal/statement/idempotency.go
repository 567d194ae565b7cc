package statement

import (
	"fmt"
	"time"

	"sluice/store"
)

// The statements of idempotency keys. Each takes tenant and key first.
const (
	// InsertIdempotent and TakeOverIdempotent take the values of IdempotentArgs. The one adds
	// a key that is not there, the other gives one that is there to a new request.
	InsertIdempotent = `INSERT INTO idempotency_keys
		(tenant, key, key_id, hash, owner, job_id, leased_until, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (tenant, key) DO NOTHING`
	TakeOverIdempotent = `UPDATE idempotency_keys SET key_id = $3, hash = $4, owner = $5, job_id = $6,
		leased_until = $7, expires_at = $8, done = false,
		answer_status = 0, answer_header = NULL, answer_job = '', answer = NULL
		WHERE tenant = $1 AND key = $2`

	// HeldIdempotent reads what a HeldRow takes. A database that locks rows adds how.
	HeldIdempotent = `SELECT hash, owner, job_id, leased_until, expires_at, done,
		answer_status, answer_header, answer_job, answer
		FROM idempotency_keys WHERE tenant = $1 AND key = $2`

	RenewIdempotent = `UPDATE idempotency_keys SET leased_until = $4
		WHERE tenant = $1 AND key = $2 AND owner = $3 AND NOT done`

	// FinishIdempotent takes the values of AnswerArgs.
	FinishIdempotent = `UPDATE idempotency_keys SET done = true, answer_status = $4, answer_header = $5,
		answer_job = $6, answer = $7
		WHERE tenant = $1 AND key = $2 AND owner = $3 AND NOT done`

	DropIdempotent = `DELETE FROM idempotency_keys
		WHERE tenant = $1 AND key = $2 AND owner = $3 AND NOT done`

	// OutdatedIdempotent are the keys that are kept no longer, by time and limit: what a
	// store.HeldKey calls free.
	OutdatedIdempotent = `SELECT tenant, key FROM idempotency_keys
		WHERE expires_at <= $1 AND (done OR leased_until <= $1) ORDER BY expires_at LIMIT $2`
)

// IdempotentArgs returns the values of a request that takes a key at the time now. stamp
// encodes a time.
func IdempotentArgs(
	r store.IdempotentRequest, now time.Time, lease, keep time.Duration, stamp func(time.Time) any,
) []any {
	return []any{
		r.Tenant, r.Key, store.CleanText(r.KeyID), r.Hash[:], r.Owner, r.JobID,
		stamp(now.Add(lease)), stamp(now.Add(keep)),
	}
}

// AnswerArgs returns the values of an answer for FinishIdempotent. Errors: ErrInvalid for
// a header that is too long.
func AnswerArgs(tenant, key, owner string, a store.IdempotentAnswer) ([]any, error) {
	header, err := encodeTexts(a.Header)
	if err != nil {
		return nil, fmt.Errorf("encode header: %w", err)
	}
	if header != nil && len(*header) > store.MaxAnswerHeaderBytes {
		return nil, fmt.Errorf("header of more than %d bytes: %w", store.MaxAnswerHeaderBytes, store.ErrInvalid)
	}
	return HeldArgs(tenant, key, owner, int64(a.Status), header, a.JobID, nullBytes(a.Body)), nil
}

// HeldArgs returns the values that name a key which is its owner's, and further ones. What
// cannot be stored is made so, and then names no key.
func HeldArgs(tenant, key, owner string, more ...any) []any {
	return append([]any{store.CleanText(tenant), store.CleanText(key), store.CleanText(owner)}, more...)
}

// HeldRow is one row of HeldIdempotent on its way into a store.HeldKey. T is how the
// database's driver reads a time.
type HeldRow[T any] struct {
	held            store.HeldKey
	hash            []byte
	leased, expires T
	header          *string
}

// Targets returns where the values go.
func (r *HeldRow[T]) Targets() []any {
	h := &r.held
	return []any{
		&r.hash, &h.Owner, &h.JobID, &r.leased, &r.expires, &h.Done,
		&h.Answer.Status, &r.header, &h.Answer.JobID, &h.Answer.Body,
	}
}

// Key returns the key that was read. read decodes a time.
func (r *HeldRow[T]) Key(read func(T) time.Time) (store.HeldKey, error) {
	h := r.held
	copy(h.Hash[:], r.hash) // a CHECK holds its length at 32
	h.LeasedUntil, h.ExpiresAt = read(r.leased), read(r.expires)
	var err error
	if h.Answer.Header, err = decodeTexts(r.header); err != nil {
		return store.HeldKey{}, fmt.Errorf("decode header: %w", err)
	}
	return h, nil
}
