package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/store"
	"sluice/store/internal/statement"
)

// leaseLines takes the time, the end of the lease, the batch, how many lines and how many
// bytes. It passes over lines that somebody has locked, who is about to lease or to end
// them.
var leaseLines = `WITH heads AS (
		SELECT id AS head_id, line AS head_line, coalesce(length(body), 0) AS size FROM jobs
		WHERE ` + statement.LeasableLines + ` ORDER BY line LIMIT $4 FOR UPDATE SKIP LOCKED),
	chosen AS (
		SELECT head_id, sum(size) OVER (ORDER BY head_line) AS bytes, row_number() OVER (ORDER BY head_line) AS place
		FROM heads)
	UPDATE jobs SET ` + statement.LeaseJob + ` FROM chosen
	WHERE id = head_id AND (bytes <= $5 OR place = 1) RETURNING ` + statement.WholeJobColumns

// finishedLines takes the batch, the line to continue behind, how many lines and how many
// bytes. Large responses are carried through it as names of where they are, and read when
// they go out.
const finishedLines = `SELECT %s FROM (
		SELECT *, sum(coalesce(length(response), 0)) OVER (ORDER BY line) AS bytes, row_number() OVER (ORDER BY line) AS place
		FROM (SELECT * FROM jobs WHERE %s ORDER BY line LIMIT $3) AS heads) AS placed
	WHERE bytes <= $4 OR place = 1 ORDER BY line`

// lockUnfinished locks jobs with the ids $1, in the order of these, unless they have ended
// meanwhile.
const lockUnfinished = `SELECT ` + statement.JobColumns + ` FROM jobs
	WHERE id = ANY ($1) AND ` + statement.StillUnfinished + ` ORDER BY id FOR UPDATE`

// inOrder keeps the planner from collecting all lines of a batch and sorting them, where an
// index has them in order and the first ones are wanted. Without it that is what it does
// as long as its statistics lag behind a batch that has just come.
const inOrder = `SET LOCAL enable_bitmapscan = off`

// AddLines implements store.Batches. The lock on the batch keeps every other caller from
// adding lines, so those that are missing can go in by COPY, which knows no conflicts.
func (s *Store) AddLines(
	ctx context.Context, owner, id string, lines []store.Job, readBytes int64, faults []store.BatchFault,
) error {
	within := s.timeout + store.BodyTime(store.LineBytes(lines))
	return s.ownedWithin(ctx, within, "add lines to", owner, id, func(ctx context.Context, tx pgx.Tx, b store.Batch) error {
		lines, err := store.CleanLines(b, lines)
		if err != nil {
			return err
		}
		if lines, err = missingLines(ctx, tx, b.ID, lines); err != nil {
			return err
		}
		if err := copyLines(ctx, tx, lines); err != nil {
			return err
		}
		args, err := statement.GrowArgs(b, lines, readBytes, faults)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, statement.GrowBatch, args...)
		return err
	}, store.BatchValidating)
}

// missingLines returns those of the ordered lines that the batch does not have.
func missingLines(ctx context.Context, tx pgx.Tx, id string, lines []store.Job) ([]store.Job, error) {
	if len(lines) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, statement.LinesFrom, id, lines[0].Line)
	if err != nil {
		return nil, err
	}
	there, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, err
	}
	return statement.Missing(lines, there), nil
}

func copyLines(ctx context.Context, tx pgx.Tx, lines []store.Job) error {
	if len(lines) == 0 {
		return nil
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"jobs"}, statement.InsertJobColumnNames(),
		pgx.CopyFromSlice(len(lines), func(i int) ([]any, error) { return statement.InsertJobArgs(lines[i], stamp) }))
	if hasCode(err, codeUniqueViolation) {
		return store.ErrDuplicate
	}
	return err
}

// LineIDs implements store.Batches.
func (s *Store) LineIDs(ctx context.Context, id string, after, limit int) ([]store.LineID, error) {
	id = store.CleanText(id)
	ids, err := queryInOrder(ctx, s, pgx.RowToStructByPos[store.LineID], statement.LineIDs, id, after, max(0, min(limit, store.MaxLineIDs)))
	if err != nil {
		return nil, fmt.Errorf("read line ids of batch %s: %w", id, err)
	}
	return ids, nil
}

// LeaseLines implements store.Batches.
func (s *Store) LeaseLines(
	ctx context.Context, id string, now time.Time, lease time.Duration, limit int,
) ([]store.Job, error) {
	id = store.CleanText(id)
	lines, err := queryInOrder(ctx, s, scanWholeJob, leaseLines,
		stamp(now), stamp(now.Add(lease)), id, store.LineLimit(limit), store.MaxLeaseBytes)
	if err != nil {
		return nil, fmt.Errorf("lease lines of batch %s: %w", id, err)
	}
	store.InLines(lines)
	return lines, nil
}

// Backlogs implements store.Batches.
func (s *Store) Backlogs(ctx context.Context) ([]store.Backlog, error) {
	backlogs, err := query(ctx, s, scanBacklog, statement.Backlogs, stamp(time.Now()), store.MaxBacklogs)
	if err != nil {
		return nil, fmt.Errorf("read backlogs: %w", err)
	}
	return backlogs, nil
}

// EndLines implements store.Batches.
func (s *Store) EndLines(
	ctx context.Context, id string, status store.JobStatus, at time.Time, limit int,
) (ended []store.Job, err error) {
	id = store.CleanText(id)
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		b, err := queryOne(ctx, tx, scanBatch, statement.AnyBatch, id)
		if err != nil || b.Status.Finished() {
			return ignoreNotFound(err)
		}
		lines, err := lockLines(ctx, tx, id, store.LineLimit(limit))
		if err != nil {
			return err
		}
		ends, err := store.LineEnds(lines, status, at)
		if err != nil {
			return err
		}
		ended, err = endJobs(ctx, tx, ends)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("end lines of batch %s: %w", id, err)
	}
	store.InLines(ended)
	return ended, nil
}

// lockLines returns unfinished lines, ordered by their ids. They are chosen without a lock:
// if others have ended all of them by the time they are locked, it chooses again, so that
// nothing means that none is left.
func lockLines(ctx context.Context, tx pgx.Tx, id string, limit int) ([]store.Job, error) {
	if _, err := tx.Exec(ctx, inOrder); err != nil {
		return nil, err
	}
	for {
		rows, err := tx.Query(ctx, statement.UnfinishedLines, id, limit)
		if err != nil {
			return nil, err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(ids) == 0 {
			return nil, err
		}
		if rows, err = tx.Query(ctx, lockUnfinished, ids); err != nil {
			return nil, err
		}
		if lines, err := pgx.CollectRows(rows, scanJob); err != nil || len(lines) > 0 {
			return lines, err
		}
	}
}

// FinishedLines implements store.Batches.
func (s *Store) FinishedLines(ctx context.Context, id string, f store.LineFilter) ([]store.Job, error) {
	id, f = store.CleanText(id), f.Clean()
	sql := fmt.Sprintf(finishedLines, statement.AnsweredColumns, statement.FinishedLines(f))
	lines, err := queryInOrder(ctx, s, scanWholeJob, sql, id, f.After, store.MaxLines, f.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read finished lines of batch %s: %w", id, err)
	}
	return lines, nil
}

// DropLines implements store.Batches. Only ended batches are touched, whose lines nobody
// changes any more; a batch that another caller drops is passed over.
func (s *Store) DropLines(ctx context.Context, before time.Time, limit int) (dropped int, err error) {
	limit = store.LineLimit(limit)
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		for left := limit; left > 0; left = limit - dropped {
			id, err := queryOne(ctx, tx, pgx.RowTo[string], statement.Undropped+` FOR UPDATE SKIP LOCKED`, store.CleanTime(before))
			if err != nil {
				return ignoreNotFound(err)
			}
			tag, err := tx.Exec(ctx, `DELETE FROM jobs WHERE id = ANY (ARRAY(`+statement.LinesOf+`))`, id, left)
			if err != nil {
				return err
			}
			if dropped += int(tag.RowsAffected()); int(tag.RowsAffected()) == left {
				return nil // there may be more
			}
			if _, err := tx.Exec(ctx, statement.MarkDropped, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("drop lines: %w", err)
	}
	return dropped, nil
}

// queryInOrder is query for a statement that asks for the first of many lines.
func queryInOrder[T any](
	ctx context.Context, s *Store, scan pgx.RowToFunc[T], sql string, args ...any,
) (values []T, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, inOrder); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		values, err = pgx.CollectRows(rows, scan)
		return err
	})
	return values, err
}

// ignoreNotFound returns no error where there was nothing to do.
func ignoreNotFound(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

func scanBacklog(row pgx.CollectableRow) (store.Backlog, error) {
	var b store.Backlog
	err := row.Scan(&b.BatchID, &b.Tenant, &b.Waiting, &b.Out, &b.CreatedAt, &b.ExpiresAt)
	b.CreatedAt, b.ExpiresAt = b.CreatedAt.UTC(), b.ExpiresAt.UTC()
	return b, err
}
