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

// FinishJobs implements store.Jobs.
func (s *Store) FinishJobs(ctx context.Context, ends []store.JobEnd) (news []store.Job, err error) {
	ends, err = store.CleanJobEnds(ends)
	if err != nil || len(ends) == 0 {
		return nil, err
	}
	timeout := s.timeout + store.BodyTime(store.BodiesOf(ends))
	err = s.inTxWithin(ctx, timeout, func(ctx context.Context, tx pgx.Tx) error {
		news, err = endJobs(ctx, tx, ends)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finish jobs: %w", err)
	}
	return news, nil
}

// CancelJob implements store.Jobs. It locks the job, so that what it decides on is still
// so when it ends it.
func (s *Store) CancelJob(
	ctx context.Context, tenant, id string, at, expires time.Time, row inference.Record,
) (job store.Job, news bool, err error) {
	id = store.CleanText(id)
	ends, err := store.CleanJobEnds([]store.JobEnd{store.CancelledEnd(id, at, expires, row)})
	if err != nil {
		return store.Job{}, false, err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		job, err = queryOne(ctx, tx, scanJob, statement.JobWithoutBodies+` FOR UPDATE`, store.CleanText(tenant), id)
		if err != nil || job.Status.Finished() {
			return err
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

// ExpireJobs implements store.Jobs. A job that another caller is about to end is passed
// over.
func (s *Store) ExpireJobs(
	ctx context.Context, now time.Time, retention time.Duration, limit int,
) (expired []store.Job, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, statement.OverdueJobs+` FOR UPDATE SKIP LOCKED`, stamp(now), store.JobLimit(limit))
		if err != nil {
			return err
		}
		overdue, err := pgx.CollectRows(rows, scanJob)
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

// endJobs gives jobs that are not finished yet their ends and all that goes along with an
// end, and returns them as they are then, without bodies. Every end of a job comes through
// here. The ends are clean and in order.
func endJobs(ctx context.Context, tx pgx.Tx, ends []store.JobEnd) ([]store.Job, error) {
	var (
		ended   []store.Job
		records []inference.Record
		batch   pgx.Batch // one round trip
	)
	for _, e := range ends {
		args, err := statement.EndJobArgs(e, stamp)
		if err != nil {
			return nil, fmt.Errorf("job %s: %w", e.Record.JobID, err)
		}
		batch.Queue(statement.EndJob+` RETURNING `+statement.JobColumns, args...).Query(func(rows pgx.Rows) error {
			job, err := pgx.CollectExactlyOneRow(rows, scanJob)
			if errors.Is(err, pgx.ErrNoRows) {
				return nil // finished before, or not there
			}
			if err != nil {
				return err
			}
			ended, records = append(ended, job), append(records, e.Row(job))
			return nil
		})
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, err
	}
	if len(ended) == 0 {
		return nil, nil
	}
	for _, c := range store.CountLines(ended) {
		if _, err := tx.Exec(ctx, statement.CountLines, statement.CountArgs(c)...); err != nil {
			return nil, fmt.Errorf("batch %s: %w", c.BatchID, err)
		}
	}
	if _, err := appendEvents(ctx, tx, store.JobEvents(ended)); err != nil {
		return nil, err
	}
	// Last, because its sums of money are rows that everybody's requests wait for.
	return ended, insertUsage(ctx, tx, records)
}

// insertUsage adds clean records, ordered by job, to the ledger.
func insertUsage(ctx context.Context, tx pgx.Tx, records []inference.Record) error {
	if len(records) == 0 {
		return nil
	}
	columns, err := columnsOf(records)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, appendUsage, columns...)
	return err
}

// inTx runs do in a transaction, which is committed if do returns nil.
func (s *Store) inTx(ctx context.Context, do func(context.Context, pgx.Tx) error) error {
	return s.inTxWithin(ctx, s.timeout, do)
}

func (s *Store) inTxWithin(
	ctx context.Context, timeout time.Duration, do func(context.Context, pgx.Tx) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return do(ctx, tx) })
}

// queryOne runs a statement that returns one row, or none: store.ErrNotFound.
func queryOne[T any](
	ctx context.Context, tx pgx.Tx, scan pgx.RowToFunc[T], sql string, args ...any,
) (T, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		var none T
		return none, err
	}
	value, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		err = store.ErrNotFound
	}
	return value, err
}
