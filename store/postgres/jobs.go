package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/store"
	"sluice/store/internal/statement"
)

// leaseJobs takes the time, the end of the lease, how many jobs to look at, how many to
// take and how many bytes.
//
// Jobs are chosen without a lock and then locked in their order. Those that another caller
// has locked are passed over; one that changed in between is seen as it then is, and left
// out because it is no longer what was chosen. (Asking for that, and not once more for
// what makes a job fit, also leaves the primary key as the only index to find it by: a
// planner whose statistics lag behind a backlog would read all of the backlog for each.)
// It looks at more jobs than it takes, so that two callers at one time both find some.
var leaseJobs = `WITH RECURSIVE ` + statement.WaitingTenants + `,
	heads AS (
		SELECT head.* FROM waiting CROSS JOIN LATERAL (` + statement.WaitingHeads("waiting.tenant", "$3") + `) AS head),
	ranked AS (
		SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY created_at, id) AS round FROM heads),
	chosen AS (
		SELECT *, sum(size) OVER (ORDER BY round, created_at, id) AS bytes
		FROM ranked ORDER BY round, created_at, id LIMIT $3),
	held AS (
		SELECT jobs.id AS held_id FROM jobs JOIN chosen ON chosen.id = jobs.id
		WHERE (chosen.bytes <= $5 OR chosen.bytes = chosen.size) AND jobs.finished_at IS NULL
			AND jobs.dispatched_at IS NULL AND jobs.leased_until IS NOT DISTINCT FROM chosen.leased_until
		ORDER BY chosen.round, chosen.created_at, chosen.id LIMIT $4 FOR UPDATE OF jobs SKIP LOCKED)
	UPDATE jobs SET ` + statement.LeaseJob + ` FROM held WHERE id = held_id RETURNING ` + statement.WholeJobColumns

// lookFactor is how many times more jobs than a lease takes are looked at.
const lookFactor = 2

// CreateJob implements store.Jobs.
func (s *Store) CreateJob(ctx context.Context, job store.Job) error {
	job, err := job.Clean()
	if err != nil {
		return err
	}
	if job.BatchID != "" {
		return fmt.Errorf("create job %s, a line of a batch: %w", job.ID, store.ErrInvalid)
	}
	args, err := statement.InsertJobArgs(job, stamp)
	if err != nil {
		return fmt.Errorf("create job %s: %w", job.ID, err)
	}
	inserted, err := s.execWithin(ctx, s.timeout+store.BodyTime(len(job.Body)), statement.InsertJob, args...)
	if err != nil {
		return fmt.Errorf("create job %s: %w", job.ID, err)
	}
	if inserted == 0 {
		return fmt.Errorf("create job %s: %w", job.ID, store.ErrDuplicate)
	}
	return nil
}

// Job implements store.Jobs.
func (s *Store) Job(ctx context.Context, tenant, id string) (store.Job, error) {
	id = store.CleanText(id)
	jobs, err := query(ctx, s, scanWholeJob, statement.JobByID, store.CleanText(tenant), id)
	if err != nil {
		return store.Job{}, fmt.Errorf("read job %s: %w", id, err)
	}
	if len(jobs) == 0 {
		return store.Job{}, fmt.Errorf("read job %s: %w", id, store.ErrNotFound)
	}
	return jobs[0], nil
}

// ListJobs implements store.Jobs.
func (s *Store) ListJobs(ctx context.Context, filter store.JobFilter) ([]store.Job, error) {
	filter, err := filter.Clean()
	if err != nil {
		return nil, err
	}
	sql, args := statement.SelectJobs(filter, stamp)
	jobs, err := query(ctx, s, scanJob, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	return jobs, nil
}

// LeaseJobs implements store.Jobs.
func (s *Store) LeaseJobs(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]store.Job, error) {
	limit = store.JobLimit(limit)
	jobs, err := query(ctx, s, scanWholeJob, leaseJobs,
		stamp(now), stamp(now.Add(lease)), lookFactor*limit, limit, store.MaxLeaseBytes)
	if err != nil {
		return nil, fmt.Errorf("lease jobs: %w", err)
	}
	store.InRounds(jobs)
	return jobs, nil
}

// PurgeJobs implements store.Jobs. The array is made once, where a plain IN might be
// asked for each row and lock more of them each time.
func (s *Store) PurgeJobs(ctx context.Context, now time.Time, limit int) (int, error) {
	purged, err := s.exec(ctx, `DELETE FROM jobs WHERE id = ANY (ARRAY(`+
		statement.OutdatedJobs+` FOR UPDATE SKIP LOCKED))`, stamp(now), store.JobLimit(limit))
	if err != nil {
		return 0, fmt.Errorf("purge jobs: %w", err)
	}
	return int(purged), nil
}

// exec runs a statement and returns how many rows it changed.
func (s *Store) exec(ctx context.Context, sql string, args ...any) (int64, error) {
	return s.execWithin(ctx, s.timeout, sql, args...)
}

func (s *Store) execWithin(ctx context.Context, timeout time.Duration, sql string, args ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tag, err := s.pool.Exec(ctx, sql, args...)
	return tag.RowsAffected(), err
}

// stamp returns t as it is stored, the zero time as NULL.
func stamp(t time.Time) any { return nullTime(t) }

func scanJob(row pgx.CollectableRow) (store.Job, error) {
	var r statement.JobRow[*time.Time]
	if err := row.Scan(r.Targets(false)...); err != nil {
		return store.Job{}, err
	}
	return r.Job(timeOrZero)
}

func scanWholeJob(row pgx.CollectableRow) (store.Job, error) {
	var r statement.JobRow[*time.Time]
	if err := row.Scan(r.Targets(true)...); err != nil {
		return store.Job{}, err
	}
	return r.Job(timeOrZero)
}
