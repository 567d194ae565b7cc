package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/internal/statement"
)

// FinishJobs implements store.Jobs.
func (s *Store) FinishJobs(ctx context.Context, ends []store.JobEnd) (news []string, err error) {
	ends, err = store.CleanJobEnds(ends)
	if err != nil || len(ends) == 0 {
		return nil, err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		ended, err := endJobs(ctx, tx, ends)
		for _, job := range ended {
			news = append(news, job.ID)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finish jobs: %w", err)
	}
	return news, nil
}

// CancelJob implements store.Jobs.
func (s *Store) CancelJob(
	ctx context.Context, tenant, id string, at, expires time.Time, row inference.Record,
) (job store.Job, news bool, err error) {
	id = store.CleanText(id)
	ends, err := store.CleanJobEnds([]store.JobEnd{store.CancelledEnd(id, at, expires, row)})
	if err != nil {
		return store.Job{}, false, err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		found, err := queryTx(ctx, tx, scanJob, statement.JobWithoutBodies, store.CleanText(tenant), id)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return store.ErrNotFound
		}
		if job = found[0]; job.Status.Finished() {
			return nil
		}
		ended, err := endJobs(ctx, tx, ends)
		for _, job = range ended {
			news = true
		}
		return err
	})
	if err != nil {
		return store.Job{}, false, fmt.Errorf("cancel job %s: %w", id, err)
	}
	return job, news, nil
}

// ExpireJobs implements store.Jobs.
func (s *Store) ExpireJobs(
	ctx context.Context, now time.Time, retention time.Duration, limit int,
) (expired []store.Job, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		overdue, err := queryTx(ctx, tx, scanJob, statement.OverdueJobs, stamp(now), store.JobLimit(limit))
		if err != nil {
			return err
		}
		ends := make([]store.JobEnd, len(overdue))
		for i, job := range overdue {
			ends[i] = store.ExpiredEnd(job, now, retention)
		}
		if ends, err = store.CleanJobEnds(ends); err != nil {
			return err
		}
		expired, err = endJobs(ctx, tx, ends)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("expire jobs: %w", err)
	}
	return expired, nil
}

// endJobs gives jobs that are not finished yet their ends, and their rows in the ledger,
// and returns them as they are then, without bodies. Every end of a job comes through
// here, so what has to be written along with one is written here. The ends are clean and
// in order.
func endJobs(ctx context.Context, tx *sql.Tx, ends []store.JobEnd) ([]store.Job, error) {
	var (
		ended   []store.Job
		records []inference.Record
	)
	stmt, err := tx.PrepareContext(ctx, statement.EndJob) // most of the time goes into understanding it
	if err != nil {
		return nil, err
	}
	defer func() { _ = stmt.Close() }() // the transaction's end closes it in any case
	for _, e := range ends {
		args, err := statement.EndJobArgs(e, stamp)
		if err != nil {
			return nil, fmt.Errorf("job %s: %w", e.Record.JobID, err)
		}
		rows, err := stmt.QueryContext(ctx, args...)
		if err != nil {
			return nil, err
		}
		jobs, err := collect(rows, scanJob)
		if err != nil {
			return nil, err
		}
		for _, job := range jobs { // none if it is finished already, or not there
			ended, records = append(ended, job), append(records, store.RecordOf(job, e.Record))
		}
	}
	if _, err := insertUsage(ctx, tx, records); err != nil {
		return nil, err
	}
	return ended, nil
}

// inTx runs do in a transaction that holds the file's write lock from its beginning, and
// commits it if do returns nil.
func (s *Store) inTx(ctx context.Context, do func(context.Context, *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	if err := do(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

// queryTx runs a statement that returns rows and collects them.
func queryTx[T any](
	ctx context.Context, tx *sql.Tx, scan func(*sql.Rows) (T, error), text string, args ...any,
) ([]T, error) {
	rows, err := tx.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, scan)
}

// collect reads rows to their end and closes them.
func collect[T any](rows *sql.Rows, scan func(*sql.Rows) (T, error)) (values []T, err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		value, err := scan(rows)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, rows.Err()
}
