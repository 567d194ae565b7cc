package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/internal/statement"
)

// leaseJobs takes the time, the latest time of a stale message, the end of the lease, the
// epoch's stride, how many jobs to look at, how many to take and how many bytes.
//
// Jobs are chosen without a lock and then locked in their order. Those that another caller
// has locked are passed over; one that changed in between is seen as it then is, and left
// out because it is no longer what was chosen. (Asking for that, and not once more for
// what makes a job fit, also leaves the primary key as the only index to find it by: a
// planner whose statistics lag behind a backlog would read all of the backlog for each.)
// It looks at more jobs than it takes, so that two callers at one time both find some.
const leaseJobs = `
	heads AS (
		SELECT head.* FROM fresh CROSS JOIN LATERAL (%s) AS head
		UNION ALL
		SELECT head.* FROM stale CROSS JOIN LATERAL (%s) AS head),
	ranked AS (
		SELECT *, row_number() OVER (PARTITION BY tenant ORDER BY created_at, id) AS round FROM heads),
	chosen AS (
		SELECT *, sum(size) OVER (ORDER BY round, created_at, id) AS bytes
		FROM ranked ORDER BY round, created_at, id LIMIT $5),
	held AS (
		SELECT jobs.id AS held_id FROM jobs JOIN chosen ON chosen.id = jobs.id
		WHERE chosen.bytes <= $7 AND jobs.status = chosen.status
			AND jobs.leased_until IS NOT DISTINCT FROM chosen.leased_until
			AND jobs.dispatched_at IS NOT DISTINCT FROM chosen.dispatched_at
		ORDER BY chosen.round, chosen.created_at, chosen.id LIMIT $6 FOR UPDATE OF jobs SKIP LOCKED)
	UPDATE jobs SET %s FROM held WHERE id = held_id RETURNING ` + statement.WholeJobColumns

// lookFactor is how many times more jobs than a lease takes are looked at.
const lookFactor = 2

// CreateJob implements store.Jobs.
func (s *Store) CreateJob(ctx context.Context, job store.Job) error {
	job, err := job.Clean()
	if err != nil {
		return err
	}
	args, err := statement.InsertJobArgs(job, stamp)
	if err != nil {
		return fmt.Errorf("create job %s: %w", job.ID, err)
	}
	inserted, err := s.exec(ctx, statement.InsertJob, args...)
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

// JobStatus implements store.Jobs.
func (s *Store) JobStatus(ctx context.Context, id string) (status store.JobStatus, epoch int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	id = store.CleanText(id)
	err = s.pool.QueryRow(ctx, statement.JobStatus, id).Scan(&status, &epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		err = store.ErrNotFound
	}
	if err != nil {
		return "", 0, fmt.Errorf("read status of job %s: %w", id, err)
	}
	return status, epoch, nil
}

// LeaseUndispatched implements store.Jobs.
func (s *Store) LeaseUndispatched(
	ctx context.Context, now time.Time, stale, lease time.Duration, limit int,
) ([]store.Job, error) {
	limit = store.JobLimit(limit)
	sql := `WITH RECURSIVE ` + statement.FreshTenants + `, ` + statement.StaleTenants + `, ` + fmt.Sprintf(leaseJobs,
		statement.FreshHeads("fresh.tenant", "$5"), statement.StaleHeads("stale.tenant", "$5"), statement.LeaseJob)
	jobs, err := query(ctx, s, scanWholeJob, sql,
		stamp(now), stamp(now.Add(-stale)), stamp(now.Add(lease)), inference.EpochStride,
		lookFactor*limit, limit, store.MaxLeaseBytes)
	if err != nil {
		return nil, fmt.Errorf("lease jobs: %w", err)
	}
	store.InRounds(jobs)
	return jobs, nil
}

// MarkDispatched implements store.Jobs.
func (s *Store) MarkDispatched(
	ctx context.Context, id string, epoch int, provider string, seq uint64, at time.Time,
) error {
	id = store.CleanText(id)
	marked, err := s.exec(ctx, statement.MarkDispatched, id, epoch, store.CleanText(provider), int64(seq), stamp(at))
	if err == nil && marked == 0 {
		err = store.ErrConflict
	}
	if err != nil {
		return fmt.Errorf("mark job %s as dispatched: %w", id, err)
	}
	return nil
}

// MarkStarted implements store.Jobs.
func (s *Store) MarkStarted(ctx context.Context, id string, epoch int, at time.Time) error {
	id = store.CleanText(id)
	if _, err := s.exec(ctx, statement.MarkStarted, id, epoch, stamp(at)); err != nil {
		return fmt.Errorf("mark job %s as started: %w", id, err)
	}
	return nil
}

// PurgeJobs implements store.Jobs. The array is made once, where a plain IN might be
// asked for each row and lock more of them each time.
func (s *Store) PurgeJobs(ctx context.Context, now time.Time, limit int) ([]store.Job, error) {
	jobs, err := query(ctx, s, scanJob, `DELETE FROM jobs WHERE id = ANY (ARRAY(`+
		statement.OutdatedJobs+` FOR UPDATE SKIP LOCKED)) RETURNING `+statement.JobColumns,
		stamp(now), store.JobLimit(limit))
	if err != nil {
		return nil, fmt.Errorf("purge jobs: %w", err)
	}
	return jobs, nil
}

// exec runs a statement and returns how many rows it changed.
func (s *Store) exec(ctx context.Context, sql string, args ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
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
