package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/internal/statement"
)

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
	jobs, err := query(ctx, s.reader, scanWholeJob, statement.JobByID, store.CleanText(tenant), id)
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
	text, args := statement.SelectJobs(filter, stamp)
	jobs, err := query(ctx, s.reader, scanJob, text, args...)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	return jobs, nil
}

// JobStatus implements store.Jobs.
func (s *Store) JobStatus(ctx context.Context, id string) (status store.JobStatus, epoch int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id = store.CleanText(id)
	err = s.reader.QueryRowContext(ctx, statement.JobStatus, id).Scan(&status, &epoch)
	if errors.Is(err, sql.ErrNoRows) {
		err = store.ErrNotFound
	}
	if err != nil {
		return "", 0, fmt.Errorf("read status of job %s: %w", id, err)
	}
	return status, epoch, nil
}

// LeaseUndispatched implements store.Jobs. The transaction holds the file's write lock
// from its beginning, so what was chosen is still free when it is leased.
func (s *Store) LeaseUndispatched(
	ctx context.Context, now time.Time, stale, lease time.Duration, limit int,
) (leased []store.Job, err error) {
	limit = store.JobLimit(limit)
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		heads, err := leasableHeads(ctx, tx, now, now.Add(-stale), limit)
		if err != nil {
			return err
		}
		ids, err := json.Marshal(chosen(heads, limit))
		if err != nil {
			return err
		}
		leased, err = queryTx(ctx, tx, scanWholeJob, `UPDATE jobs SET `+statement.LeaseJob+`
			WHERE id IN (SELECT value FROM json_each($1)) RETURNING `+statement.WholeJobColumns,
			string(ids), nil, stamp(now.Add(lease)), inference.EpochStride)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lease jobs: %w", err)
	}
	store.InRounds(leased)
	return leased, nil
}

// head is a job that may be leased, as far as the choice needs to know it.
type head struct {
	store.Job
	size int
}

// leasableHeads returns the oldest jobs of each tenant that may be leased, limit of each
// at most. SQLite has no LATERAL, and a query for each tenant costs no round trip.
func leasableHeads(ctx context.Context, tx *sql.Tx, now, staleSince time.Time, limit int) ([]head, error) {
	var heads []head
	for _, part := range []struct{ tenants, heads string }{
		{`WITH RECURSIVE ` + statement.FreshTenants + ` SELECT tenant FROM fresh WHERE tenant IS NOT NULL`, statement.FreshHeads("$4", "$3")},
		{`WITH RECURSIVE ` + statement.StaleTenants + ` SELECT tenant FROM stale WHERE tenant IS NOT NULL`, statement.StaleHeads("$4", "$3")},
	} {
		tenants, err := queryTx(ctx, tx, scanText, part.tenants)
		if err != nil {
			return nil, err
		}
		for _, tenant := range tenants {
			more, err := queryTx(ctx, tx, scanHead, part.heads, stamp(now), stamp(staleSince), limit, tenant)
			if err != nil {
				return nil, err
			}
			heads = append(heads, more...)
		}
	}
	return heads, nil
}

// chosen returns the ids of the jobs to lease.
func chosen(heads []head, limit int) []string {
	jobs, sizes := make([]store.Job, len(heads)), make(map[string]int, len(heads))
	for i, h := range heads {
		jobs[i], sizes[h.ID] = h.Job, h.size
	}
	store.InRounds(jobs)
	ids, bytes := []string{}, 0
	for _, j := range jobs[:min(limit, len(jobs))] {
		if bytes += sizes[j.ID]; bytes > store.MaxLeaseBytes {
			break
		}
		ids = append(ids, j.ID)
	}
	return ids
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

// PurgeJobs implements store.Jobs.
func (s *Store) PurgeJobs(ctx context.Context, now time.Time, limit int) ([]store.Job, error) {
	jobs, err := query(ctx, s.writer, scanJob, `DELETE FROM jobs WHERE id IN (`+statement.OutdatedJobs+`)
		RETURNING `+statement.JobColumns, stamp(now), store.JobLimit(limit))
	if err != nil {
		return nil, fmt.Errorf("purge jobs: %w", err)
	}
	return jobs, nil
}

// exec runs a statement and returns how many rows it changed.
func (s *Store) exec(ctx context.Context, text string, args ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	result, err := s.writer.ExecContext(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// stamp returns t as it is stored, the zero time as NULL.
func stamp(t time.Time) any { return nullMicros(t) }

func timeOrZero(us *int64) time.Time {
	if us == nil {
		return time.Time{}
	}
	return fromMicros(*us)
}

func scanJob(rows *sql.Rows) (store.Job, error) {
	var r statement.JobRow[*int64]
	if err := rows.Scan(r.Targets(false)...); err != nil {
		return store.Job{}, err
	}
	return r.Job(timeOrZero)
}

func scanWholeJob(rows *sql.Rows) (store.Job, error) {
	var r statement.JobRow[*int64]
	if err := rows.Scan(r.Targets(true)...); err != nil {
		return store.Job{}, err
	}
	return r.Job(timeOrZero)
}

func scanHead(rows *sql.Rows) (head, error) {
	var (
		h                  head
		created            int64
		leased, dispatched *int64
	)
	err := rows.Scan(&h.ID, &h.Tenant, &created, &h.Status, &leased, &dispatched, &h.size)
	h.CreatedAt, h.LeasedUntil, h.DispatchedAt = fromMicros(created), timeOrZero(leased), timeOrZero(dispatched)
	return h, err
}

func scanText(rows *sql.Rows) (string, error) {
	var text string
	err := rows.Scan(&text)
	return text, err
}
