// Package statement has the SQL that both databases understand as it is. The
// parameters are numbered ($1), which Postgres demands and SQLite's driver takes.
//
// What the databases do differently stays with each of them: how values are encoded,
// how rows are inserted and how clashes are told apart.
package statement

import (
	"fmt"
	"strings"
	"time"

	"sluice/store"
)

// KeyColumns are the columns of a key, in the order in which they are read.
const KeyColumns = `id, name, tenant, display, hash, models, created_at, updated_at, expires_at, revoked_at`

// The reading of keys. KeyByHash takes the hash, KeysChangedSince the time.
const (
	ListKeys         = `SELECT ` + KeyColumns + ` FROM api_keys ORDER BY created_at, id`
	KeyByHash        = `SELECT ` + KeyColumns + ` FROM api_keys WHERE hash = $1`
	KeysChangedSince = `SELECT ` + KeyColumns + ` FROM api_keys WHERE updated_at >= $1 ORDER BY updated_at, id`
)

// RevokeKey revokes the key whose id or name is $1 at the time $2 and returns it. now
// is the expression for the database's clock.
func RevokeKey(now string) string {
	return `
		UPDATE api_keys SET
			updated_at = CASE WHEN revoked_at IS NULL THEN ` + now + ` ELSE updated_at END,
			revoked_at = coalesce(revoked_at, $2)
		WHERE id = (
			SELECT id FROM api_keys WHERE id = $1 OR name = $1
			ORDER BY (id = $1) DESC, (revoked_at IS NULL) DESC, revoked_at DESC LIMIT 1)
		RETURNING ` + KeyColumns
}

// UsageColumns are the columns of a record, in the order in which they are written and
// read.
const (
	UsageColumns = `job_id, request_id, kind, tenant, key_id, model_asked, provider, model_served,
	stream, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated,
	attempts, outcome, status, error_code, created_at, queue_us, first_token_us, total_us, tries`
	UsageColumnCount = 23
)

// SelectUsage reads the records that the filter selects. It names only the conditions
// that the filter has, so that the database plans for those and finds the index that
// serves them. stamp encodes a time.
func SelectUsage(f store.UsageFilter, stamp func(time.Time) any) (query string, args []any) {
	f = f.Clean()
	conditions := []string{"true"}
	where := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		conditions = append(conditions, condition)
	}
	if f.RequestID != "" {
		where("request_id = ?", f.RequestID)
	}
	if f.JobID != "" {
		where("job_id = ?", f.JobID)
	}
	if !f.After.IsZero() {
		where("(created_at, job_id) < (?, ?)", stamp(f.After.CreatedAt), f.After.JobID)
	}
	args = append(args, f.Limit)
	return fmt.Sprintf("SELECT %s FROM usage_records WHERE %s ORDER BY created_at DESC, job_id DESC LIMIT $%d",
		UsageColumns, strings.Join(conditions, " AND "), len(args)), args
}
