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

// UsageColumns are the columns of a record, in the order in which they are written and
// read.
const (
	UsageColumns = `job_id, request_id, kind, tenant, key_id, model_asked, provider, model_served,
	stream, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated,
	attempts, outcome, status, error_code, created_at, queue_us, first_token_us, total_us, tries,
	cost, priced, cache`
	UsageColumnCount = 26
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
