package statement

import (
	"fmt"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/store"
)

// JobColumns are the columns of a job without its bodies, WholeJobColumns all of them,
// in the order in which a JobRow reads them.
const (
	JobColumns = `id, request_id, tenant, key_id, key_name, kind, model, lane, batch_id, line, custom_id,
	candidates, trace_parent, metadata, webhook, created_at, deadline, status, epoch, not_before, dispatched_at,
	provider, seq, leased_until, started_at, finished_at, expires_at, response_status, attempts, tries,
	prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated, provider_served,
	model_served, error_code, limits`
	WholeJobColumns = JobColumns + `, body, response`
)

// InsertJobColumns are the columns that a new job has values for, in the order of
// InsertJobArgs.
const (
	InsertJobColumns = `id, request_id, tenant, key_id, key_name, kind, model, lane, batch_id, line, custom_id,
	candidates, trace_parent, metadata, webhook, created_at, deadline, status, epoch, leased_until, limits, body`
	InsertJobColumnCount = 22
)

// The conditions of partial indexes, word for word: a database takes such an index only
// for a statement that says so.
const (
	unfinished = `finished_at IS NULL`
	own        = `batch_id = ''` // a job of its own, no line of a batch

	// IsLine is the condition of the index by batch and line; LineWaiting and LineOut are
	// those of a batch's lines without a message, and with one or about to have one.
	IsLine      = `batch_id <> ''`
	LineWaiting = IsLine + ` AND ` + unfinished + ` AND dispatched_at IS NULL`
	LineOut     = IsLine + ` AND ` + unfinished + ` AND (dispatched_at IS NOT NULL OR leased_until IS NOT NULL)`
)

// The writing and reading of single jobs.
const (
	// InsertJob takes the values of InsertJobArgs.
	InsertJob = `INSERT INTO jobs (` + InsertJobColumns + `)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
		ON CONFLICT (id) DO NOTHING`

	// JobByID takes tenant and id, JobWithoutBodies too.
	JobByID          = `SELECT ` + WholeJobColumns + ` FROM jobs WHERE tenant = $1 AND id = $2 AND ` + own
	JobWithoutBodies = `SELECT ` + JobColumns + ` FROM jobs WHERE tenant = $1 AND id = $2 AND ` + own

	// EndJob takes the values of EndJobArgs.
	EndJob = `UPDATE jobs SET status = $2, started_at = coalesce(started_at, $3), finished_at = $4,
		expires_at = $5, leased_until = NULL, response_status = $6, response = $7,
		attempts = $8, tries = $9, prompt_tokens = $10, completion_tokens = $11, cached_tokens = $12,
		reasoning_tokens = $13, estimated = $14, provider_served = $15, model_served = $16, error_code = $17
		WHERE id = $1 AND ` + unfinished

	// CountLines takes the values of CountArgs.
	CountLines = `UPDATE batches SET completed = completed + $2, failed = failed + $3,
		prompt_tokens = prompt_tokens + $4, completion_tokens = completion_tokens + $5,
		cached_tokens = cached_tokens + $6, reasoning_tokens = reasoning_tokens + $7 WHERE id = $1`

	// OverdueJobs takes the time and a limit. A database that locks rows adds how.
	OverdueJobs = `SELECT ` + JobColumns + ` FROM jobs WHERE deadline <= $1 AND ` + own + ` AND ` + unfinished + `
		ORDER BY deadline LIMIT $2`

	// OutdatedJobs selects the ids of jobs that are kept no longer, by time and limit.
	OutdatedJobs = `SELECT id FROM jobs WHERE expires_at <= $1 AND ` + own + ` ORDER BY expires_at LIMIT $2`
)

// waiting is the condition of the index that the dispatcher reads.
const waiting = own + ` AND ` + unfinished + ` AND dispatched_at IS NULL`

// MayLease is the condition of a job without a message that may be leased at the time $1.
const MayLease = `(leased_until IS NULL OR leased_until <= $1) AND (not_before IS NULL OR not_before <= $1)`

// LeaseJob is what a lease until $2 changes in a job without a message. A lease that was
// not ended by MarkDispatched may have led to a message all the same, so that its end
// raises the epoch.
var LeaseJob = fmt.Sprintf(`leased_until = $2,
	epoch = CASE WHEN leased_until IS NULL THEN epoch ELSE (epoch / %[1]d + 1) * %[1]d END`, inference.EpochStride)

// LeasedJobs selects the ids of jobs and of lines that are leased at $1, by the indexes that
// such ones are in. VoidJob ends a lease at that time; it does not undo it, so that the next
// one raises the epoch.
const (
	LeasedJobs = `SELECT id FROM jobs WHERE ` + waiting + ` AND leased_until > $1
		UNION ALL SELECT id FROM jobs WHERE ` + LineOut + ` AND dispatched_at IS NULL AND leased_until > $1`
	VoidJob = `leased_until = $1`
)

// headColumns are what is asked of a job before it is leased.
const headColumns = `id, tenant, created_at, leased_until, coalesce(length(body), 0) AS size`

// WaitingHeads selects the oldest jobs of a tenant that have no message and may be leased
// at $1. tenant and limit are expressions.
func WaitingHeads(tenant, limit string) string {
	return `SELECT ` + headColumns + ` FROM jobs
		WHERE tenant = ` + tenant + ` AND ` + waiting + ` AND ` + MayLease + `
		ORDER BY created_at, id LIMIT ` + limit
}

// WaitingTenants is the recursive common table expression named waiting: the tenants who
// have jobs without a message. Each step finds the next tenant in the index, so that it
// costs as much as there are tenants, however many jobs they have.
const WaitingTenants = `waiting(tenant) AS (
	SELECT min(tenant) FROM jobs WHERE ` + waiting + `
	UNION ALL
	SELECT (SELECT min(jobs.tenant) FROM jobs WHERE ` + waiting + ` AND jobs.tenant > waiting.tenant)
	FROM waiting WHERE waiting.tenant IS NOT NULL)`

// SelectJobs reads the jobs that the clean filter selects. stamp encodes a time.
func SelectJobs(f store.JobFilter, stamp func(time.Time) any) (query string, args []any) {
	args = []any{f.Tenant}
	conditions := "tenant = $1 AND " + own
	where := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		conditions += " AND " + condition
	}
	if f.Status != "" {
		where("status = ?", string(f.Status))
	}
	if f.Status.Finished() {
		where("finished_at IS NOT NULL") // the condition of the index that serves these
	}
	if f.Model != "" {
		where("model = ?", f.Model)
	}
	if !f.After.IsZero() {
		where("(created_at, id) < (?, ?)", stamp(f.After.CreatedAt), f.After.JobID)
	}
	args = append(args, f.Limit)
	return fmt.Sprintf("SELECT %s FROM jobs WHERE %s ORDER BY created_at DESC, id DESC LIMIT $%d",
		JobColumns, conditions, len(args)), args
}
