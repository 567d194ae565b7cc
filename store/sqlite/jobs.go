package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

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
	inserted, err := s.execWithin(ctx, timeout+store.BodyTime(len(job.Body)), statement.InsertJob, args...)
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

// LeaseJobs implements store.Jobs. The transaction holds the file's write lock from its
// beginning, so what was chosen is still free when it is leased.
func (s *Store) LeaseJobs(
	ctx context.Context, now time.Time, lease time.Duration, limit int,
) (leased []store.Job, err error) {
	limit = store.JobLimit(limit)
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		heads, err := waitingHeads(ctx, tx, now, limit)
		if err != nil || len(heads) == 0 {
			return err
		}
		ids, err := json.Marshal(chosen(heads, limit))
		if err != nil {
			return err
		}
		leased, err = queryTx(ctx, tx, scanWholeJob, `UPDATE jobs SET `+statement.LeaseJob+`
			WHERE id IN (SELECT value FROM json_each($1)) RETURNING `+statement.WholeJobColumns,
			string(ids), stamp(now.Add(lease)))
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

// waitingHeads returns the oldest jobs of each tenant that may be leased, limit of each at
// most. SQLite has no LATERAL, and a query for each tenant costs no round trip.
func waitingHeads(ctx context.Context, tx *sql.Tx, now time.Time, limit int) ([]head, error) {
	tenants, err := queryTx(ctx, tx, scanText,
		`WITH RECURSIVE `+statement.WaitingTenants+` SELECT tenant FROM waiting WHERE tenant IS NOT NULL`)
	if err != nil {
		return nil, err
	}
	var heads []head
	for _, tenant := range tenants {
		more, err := queryTx(ctx, tx, scanHead, statement.WaitingHeads("$2", "$3"), stamp(now), tenant, limit)
		if err != nil {
			return nil, err
		}
		heads = append(heads, more...)
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
		if bytes += sizes[j.ID]; bytes > store.MaxLeaseBytes && len(ids) > 0 {
			break
		}
		ids = append(ids, j.ID)
	}
	return ids
}

// PurgeJobs implements store.Jobs.
func (s *Store) PurgeJobs(ctx context.Context, now time.Time, limit int) (int, error) {
	purged, err := s.exec(ctx, `DELETE FROM jobs WHERE id IN (`+statement.OutdatedJobs+`)`,
		stamp(now), store.JobLimit(limit))
	if err != nil {
		return 0, fmt.Errorf("purge jobs: %w", err)
	}
	return int(purged), nil
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
		h       head
		created int64
		leased  *int64
	)
	err := rows.Scan(&h.ID, &h.Tenant, &created, &leased, &h.size)
	h.CreatedAt, h.LeasedUntil = fromMicros(created), timeOrZero(leased)
	return h, err
}

func scanText(rows *sql.Rows) (string, error) {
	var text string
	err := rows.Scan(&text)
	return text, err
}
