package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// The choice of lines before they are leased or read: their ids and how many bytes each
// would bring. A blob's length stands beside it, so that none is read for this.
const (
	leasable = `SELECT id, coalesce(length(body), 0) FROM jobs WHERE ` + statement.LeasableLines + ` ORDER BY line LIMIT $4`
	finished = `SELECT id, coalesce(length(response), 0) FROM jobs WHERE %s ORDER BY line LIMIT $3`
)

const unfinishedLines = `SELECT ` + statement.JobColumns + ` FROM jobs WHERE id IN (` + statement.UnfinishedLines + `) ORDER BY id`

// These take the ids as a JSON array.
var (
	leaseLines = `UPDATE jobs SET ` + statement.LeaseJob + ` WHERE id IN (SELECT value FROM json_each($1))
		RETURNING ` + statement.WholeJobColumns
	answeredLines = `SELECT ` + statement.AnsweredColumns + ` FROM jobs WHERE id IN (SELECT value FROM json_each($1)) ORDER BY line`
)

// AddLines implements store.Batches.
func (s *Store) AddLines(
	ctx context.Context, owner, id string, lines []store.Job, readBytes int64, faults []store.BatchFault,
) error {
	within := timeout + store.BodyTime(store.LineBytes(lines))
	return s.ownedWithin(ctx, within, "add lines to", owner, id, func(ctx context.Context, tx *sql.Tx, b store.Batch) error {
		lines, err := store.CleanLines(b, lines)
		if err != nil {
			return err
		}
		if lines, err = missingLines(ctx, tx, b.ID, lines); err != nil {
			return err
		}
		if err := insertLines(ctx, tx, lines); err != nil {
			return err
		}
		args, err := statement.GrowArgs(b, lines, readBytes, faults)
		if err != nil {
			return err
		}
		_, err = execTx(ctx, tx, statement.GrowBatch, args...)
		return err
	}, store.BatchValidating)
}

// missingLines returns those of the ordered lines that the batch does not have.
func missingLines(ctx context.Context, tx *sql.Tx, id string, lines []store.Job) ([]store.Job, error) {
	if len(lines) == 0 {
		return nil, nil
	}
	there, err := queryTx(ctx, tx, scanLine, statement.LinesFrom, id, lines[0].Line)
	if err != nil {
		return nil, err
	}
	return statement.Missing(lines, there), nil
}

func insertLines(ctx context.Context, tx *sql.Tx, lines []store.Job) error {
	stmt, err := tx.PrepareContext(ctx, statement.InsertJob)
	if err != nil {
		return err
	}
	defer func() { _ = stmt.Close() }() // the transaction's end closes it in any case
	for _, line := range lines {
		args, err := statement.InsertJobArgs(line, stamp)
		if err != nil {
			return err
		}
		result, err := stmt.ExecContext(ctx, args...)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, store.ErrDuplicate)
		}
	}
	return nil
}

// LineIDs implements store.Batches.
func (s *Store) LineIDs(ctx context.Context, id string, after, limit int) ([]store.LineID, error) {
	id = store.CleanText(id)
	ids, err := query(ctx, s.reader, scanLineID, statement.LineIDs, id, after, max(0, min(limit, store.MaxLineIDs)))
	if err != nil {
		return nil, fmt.Errorf("read line ids of batch %s: %w", id, err)
	}
	return ids, nil
}

// LeaseLines implements store.Batches.
func (s *Store) LeaseLines(
	ctx context.Context, id string, now time.Time, lease time.Duration, limit int,
) (lines []store.Job, err error) {
	id = store.CleanText(id)
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		heads, err := queryTx(ctx, tx, scanLineHead, leasable, stamp(now), nil, id, store.LineLimit(limit))
		if err != nil || len(heads) == 0 {
			return err
		}
		ids, err := fitting(heads, store.MaxLeaseBytes)
		if err != nil {
			return err
		}
		lines, err = queryTx(ctx, tx, scanWholeJob, leaseLines, ids, stamp(now.Add(lease)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lease lines of batch %s: %w", id, err)
	}
	store.InLines(lines)
	return lines, nil
}

// Backlogs implements store.Batches.
func (s *Store) Backlogs(ctx context.Context) ([]store.Backlog, error) {
	backlogs, err := query(ctx, s.reader, scanBacklog, statement.Backlogs, stamp(time.Now()), store.MaxBacklogs)
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
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		b, err := oneRow(ctx, tx, scanBatch, statement.AnyBatch, id)
		if err != nil || b.Status.Finished() {
			return ignoreNotFound(err)
		}
		lines, err := queryTx(ctx, tx, scanJob, unfinishedLines, id, store.LineLimit(limit))
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

// FinishedLines implements store.Batches.
func (s *Store) FinishedLines(ctx context.Context, id string, f store.LineFilter) ([]store.Job, error) {
	id, f = store.CleanText(id), f.Clean()
	lines, err := s.finishedLines(ctx, id, f)
	if err != nil {
		return nil, fmt.Errorf("read finished lines of batch %s: %w", id, err)
	}
	return lines, nil
}

func (s *Store) finishedLines(ctx context.Context, id string, f store.LineFilter) ([]store.Job, error) {
	heads, err := query(ctx, s.reader, scanLineHead, fmt.Sprintf(finished, statement.FinishedLines(f)), id, f.After, store.MaxLines)
	if err != nil || len(heads) == 0 {
		return nil, err
	}
	ids, err := fitting(heads, f.Bytes)
	if err != nil {
		return nil, err
	}
	return query(ctx, s.reader, scanWholeJob, answeredLines, ids)
}

// DropLines implements store.Batches.
func (s *Store) DropLines(ctx context.Context, before time.Time, limit int) (dropped int, err error) {
	limit = store.LineLimit(limit)
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for left := limit; left > 0; left = limit - dropped {
			id, err := oneRow(ctx, tx, scanText, statement.Undropped, micros(before))
			if err != nil {
				return ignoreNotFound(err)
			}
			n, err := execTx(ctx, tx, `DELETE FROM jobs WHERE id IN (`+statement.LinesOf+`)`, id, left)
			if err != nil {
				return err
			}
			if dropped += n; n == left {
				return nil // there may be more
			}
			if _, err := execTx(ctx, tx, statement.MarkDropped, id); err != nil {
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

// ignoreNotFound returns no error where there was nothing to do.
func ignoreNotFound(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// lineHead is a line that may be taken, and how many bytes come with it.
type lineHead struct {
	id   string
	size int
}

// fitting returns the ids of the first lines that bring so many bytes together at most, but
// of one line at least, as a JSON array.
func fitting(heads []lineHead, most int) (string, error) {
	ids, bytes := []string{}, 0
	for _, h := range heads {
		if bytes += h.size; bytes > most && len(ids) > 0 {
			break
		}
		ids = append(ids, h.id)
	}
	text, err := json.Marshal(ids)
	return string(text), err
}

func scanLineHead(rows *sql.Rows) (h lineHead, err error) {
	err = rows.Scan(&h.id, &h.size)
	return h, err
}

func scanLine(rows *sql.Rows) (line int, err error) {
	err = rows.Scan(&line)
	return line, err
}

func scanLineID(rows *sql.Rows) (l store.LineID, err error) {
	err = rows.Scan(&l.Line, &l.CustomID)
	return l, err
}

func scanBacklog(rows *sql.Rows) (store.Backlog, error) {
	var (
		b                store.Backlog
		created, expires int64
	)
	err := rows.Scan(&b.BatchID, &b.Tenant, &b.Waiting, &b.Out, &created, &expires)
	b.CreatedAt, b.ExpiresAt = fromMicros(created), fromMicros(expires)
	return b, err
}
