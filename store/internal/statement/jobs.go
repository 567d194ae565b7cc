package statement

import (
	"fmt"
	"strings"
	"time"

	"sluice/store"
)

// JobColumns are the columns of a job without its bodies, WholeJobColumns all of them,
// in the order in which a JobRow reads them.
const (
	JobColumns = `id, request_id, tenant, key_id, key_name, kind, model, lane, body_ref, candidates,
	trace_parent, metadata, webhook, created_at, deadline, status, epoch, dispatched_at, provider, seq,
	leased_until, started_at, finished_at, expires_at, response_status, response_ref, attempts, tries,
	prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated, provider_served,
	model_served, error_code`
	WholeJobColumns = JobColumns + `, body, response`
)

// unfinished is the condition of the index by deadline, word for word.
const unfinished = `status IN ('queued', 'in_progress')`

// The conditions of the two indexes that the dispatcher reads, word for word.
const (
	undispatched = `status = 'queued' AND dispatched_at IS NULL`
	dispatched   = `status = 'queued' AND dispatched_at IS NOT NULL`
)

// The writing and reading of single jobs.
const (
	// InsertJob takes the values of InsertJobArgs.
	InsertJob = `INSERT INTO jobs (id, request_id, tenant, key_id, key_name, kind, model, lane, body_ref,
		candidates, trace_parent, metadata, webhook, created_at, deadline, status, epoch, leased_until, body)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
		ON CONFLICT (id) DO NOTHING`

	// JobByID takes tenant and id, JobWithoutBodies too.
	JobByID          = `SELECT ` + WholeJobColumns + ` FROM jobs WHERE tenant = $1 AND id = $2`
	JobWithoutBodies = `SELECT ` + JobColumns + ` FROM jobs WHERE tenant = $1 AND id = $2`

	JobStatus = `SELECT status, epoch FROM jobs WHERE id = $1`

	// MarkDispatched takes id, epoch, provider, sequence and time. A worker may have begun
	// before the publisher gets to say where the message is.
	MarkDispatched = `UPDATE jobs SET provider = $3, seq = $4, dispatched_at = $5, leased_until = NULL
		WHERE id = $1 AND epoch = $2 AND ` + unfinished

	// MarkStarted takes id, epoch and time. A worker that passes a job on gives it an
	// epoch a little higher than the row has.
	MarkStarted = `UPDATE jobs SET status = 'in_progress', started_at = $3
		WHERE id = $1 AND epoch <= $2 AND status = 'queued'`

	// EndJob takes the values of EndJobArgs.
	EndJob = `UPDATE jobs SET status = $2, started_at = coalesce(started_at, $3), finished_at = $4,
		expires_at = $5, leased_until = NULL, response_status = $6, response_ref = $7, response = $8,
		attempts = $9, tries = $10, prompt_tokens = $11, completion_tokens = $12, cached_tokens = $13,
		reasoning_tokens = $14, estimated = $15, provider_served = $16, model_served = $17, error_code = $18
		WHERE id = $1 AND ` + unfinished + ` RETURNING ` + JobColumns

	// OverdueJobs takes the time and a limit. A database that locks rows adds how.
	OverdueJobs = `SELECT ` + JobColumns + ` FROM jobs WHERE deadline <= $1 AND ` + unfinished + `
		ORDER BY deadline LIMIT $2`

	// OutdatedJobs selects the ids of jobs that are kept no longer, by time and limit.
	OutdatedJobs = `SELECT id FROM jobs WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2`
)

// notLeased is the condition of a job that may be leased at the time $1.
const notLeased = `(leased_until IS NULL OR leased_until <= $1)`

// LeaseJob is what a lease until $3 changes in a job. A lease that was not ended by
// MarkDispatched may have led to a message all the same, so the epoch rises behind it as
// it does behind a message. stride is by how much.
const LeaseJob = `leased_until = $3,
	epoch = CASE WHEN dispatched_at IS NULL AND leased_until IS NULL THEN epoch ELSE epoch + $4 END`

// headColumns are what is asked of a job before it is leased.
const headColumns = `id, tenant, created_at, status, leased_until, dispatched_at, coalesce(length(body), 0) AS size`

// FreshHeads selects the oldest jobs of a tenant that have no message and may be leased at
// $1. tenant and limit are expressions.
func FreshHeads(tenant, limit string) string {
	return `SELECT ` + headColumns + ` FROM jobs
		WHERE tenant = ` + tenant + ` AND ` + undispatched + ` AND ` + notLeased + `
		ORDER BY created_at, id LIMIT ` + limit
}

// StaleHeads selects those that have a message, which is not newer than $2.
func StaleHeads(tenant, limit string) string {
	return `SELECT ` + headColumns + ` FROM jobs
		WHERE tenant = ` + tenant + ` AND ` + dispatched + ` AND dispatched_at <= $2 AND ` + notLeased + `
		ORDER BY dispatched_at, id LIMIT ` + limit
}

// The common table expressions named fresh and stale: the tenants who have jobs without a
// message, and with one. Each step finds the next tenant in the index, so that it costs as
// much as there are tenants, however many jobs they have.
var (
	FreshTenants = tenantsWith("fresh", undispatched)
	StaleTenants = tenantsWith("stale", dispatched)
)

func tenantsWith(name, condition string) string {
	return strings.NewReplacer("{name}", name, "{condition}", condition).Replace(`{name}(tenant) AS (
		SELECT min(tenant) FROM jobs WHERE {condition}
		UNION ALL
		SELECT (SELECT min(jobs.tenant) FROM jobs WHERE {condition} AND jobs.tenant > {name}.tenant)
		FROM {name} WHERE {name}.tenant IS NOT NULL)`)
}

// SelectJobs reads the jobs that the clean filter selects. stamp encodes a time.
func SelectJobs(f store.JobFilter, stamp func(time.Time) any) (query string, args []any) {
	args = []any{f.Tenant}
	conditions := "tenant = $1"
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
