package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// leaseBatches takes the owner, the time, a limit and the end of the lease.
const leaseBatches = `UPDATE batches SET owner = $1, leased_until = $4 WHERE id IN (` + statement.FreeBatches + `)
	RETURNING ` + statement.BatchColumns

// CreateBatch implements store.Batches.
func (s *Store) CreateBatch(ctx context.Context, b store.Batch) error {
	b, err := b.Clean()
	if err != nil {
		return err
	}
	args, err := statement.InsertBatchArgs(b, stamp)
	if err != nil {
		return fmt.Errorf("create batch %s: %w", b.ID, err)
	}
	inserted, err := s.exec(ctx, statement.InsertBatch, args...)
	if err == nil && inserted == 0 {
		err = store.ErrDuplicate
	}
	if err != nil {
		return fmt.Errorf("create batch %s: %w", b.ID, err)
	}
	return nil
}

// Batch implements store.Batches.
func (s *Store) Batch(ctx context.Context, tenant, id string) (store.Batch, error) {
	id = store.CleanText(id)
	batches, err := query(ctx, s.reader, scanBatch, statement.BatchByID, store.CleanText(tenant), id)
	if err == nil && len(batches) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Batch{}, fmt.Errorf("read batch %s: %w", id, err)
	}
	return batches[0], nil
}

// ListBatches implements store.Batches.
func (s *Store) ListBatches(ctx context.Context, f store.BatchFilter) ([]store.Batch, error) {
	f, err := f.Clean()
	if err != nil {
		return nil, err
	}
	text, args := statement.SelectBatches(f, stamp)
	batches, err := query(ctx, s.reader, scanBatch, text, args...)
	if err != nil {
		return nil, fmt.Errorf("list batches: %w", err)
	}
	return batches, nil
}

// LeaseBatches implements store.Batches.
func (s *Store) LeaseBatches(
	ctx context.Context, owner string, now time.Time, lease time.Duration, limit int,
) ([]store.Batch, error) {
	if err := store.CheckOwner(owner); err != nil {
		return nil, err
	}
	batches, err := query(ctx, s.writer, scanBatch, leaseBatches, owner, stamp(now), store.BatchLimit(limit), stamp(now.Add(lease)))
	if err != nil {
		return nil, fmt.Errorf("lease batches: %w", err)
	}
	store.ByAge(batches)
	return batches, nil
}

// ReleaseBatches implements store.Batches.
func (s *Store) ReleaseBatches(ctx context.Context, owner string) error {
	_, err := s.exec(ctx, statement.ReleaseBatches, store.CleanText(owner))
	if err != nil {
		return fmt.Errorf("release batches: %w", err)
	}
	return nil
}

// BeginBatch implements store.Batches.
func (s *Store) BeginBatch(ctx context.Context, owner, id string, at time.Time) error {
	return s.owned(ctx, "begin", owner, id, func(ctx context.Context, tx *sql.Tx, b store.Batch) error {
		_, err := execTx(ctx, tx, statement.MoveBatch(store.BatchInProgress), b.ID, stamp(at))
		return err
	}, store.BatchValidating)
}

// FailBatch implements store.Batches.
func (s *Store) FailBatch(ctx context.Context, owner, id string, at, purge time.Time) error {
	return s.owned(ctx, "fail", owner, id, func(ctx context.Context, tx *sql.Tx, b store.Batch) error {
		return endBatch(ctx, tx, b, store.BatchEnd{Status: store.BatchFailed, At: at, Purge: purge})
	}, store.BatchValidating)
}

// CancelBatch implements store.Batches.
func (s *Store) CancelBatch(ctx context.Context, tenant, id string, at time.Time) (b store.Batch, err error) {
	id = store.CleanText(id)
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		b, err = oneRow(ctx, tx, scanBatch, statement.BatchByID, store.CleanText(tenant), id)
		if err != nil || !b.Status.Cancellable() {
			return err
		}
		b.Status, b.CancellingAt = store.BatchCancelling, store.CleanTime(at)
		_, err = execTx(ctx, tx, statement.MoveBatch(b.Status), b.ID, stamp(at))
		return err
	})
	if err != nil {
		return store.Batch{}, fmt.Errorf("cancel batch %s: %w", id, err)
	}
	return b, nil
}

// FinalizeBatch implements store.Batches. Nobody adds a line to a batch in progress, and no
// line begins again: once all are seen finished they stay so.
func (s *Store) FinalizeBatch(ctx context.Context, owner, id string, at time.Time) error {
	return s.owned(ctx, "finalize", owner, id, func(ctx context.Context, tx *sql.Tx, b store.Batch) error {
		_, err := oneRow(ctx, tx, scanText, statement.UnfinishedLines, b.ID, 1)
		if err == nil {
			return fmt.Errorf("a line is unfinished: %w", store.ErrConflict)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		_, err = execTx(ctx, tx, statement.MoveBatch(store.BatchFinalizing), b.ID, stamp(at))
		return err
	}, store.BatchInProgress, store.BatchCancelling)
}

// CompleteBatch implements store.Batches.
func (s *Store) CompleteBatch(ctx context.Context, owner, id string, end store.BatchEnd) error {
	if err := end.Validate(); err != nil {
		return err
	}
	return s.owned(ctx, "complete", owner, id, func(ctx context.Context, tx *sql.Tx, b store.Batch) error {
		return endBatch(ctx, tx, b, end)
	}, store.BatchFinalizing)
}

// NoteRate implements store.Batches.
func (s *Store) NoteRate(ctx context.Context, owner, id string, perSecond float64) error {
	if err := store.CheckRate(perSecond); err != nil {
		return err
	}
	return s.owned(ctx, "note rate of", owner, id, func(ctx context.Context, tx *sql.Tx, b store.Batch) error {
		_, err := execTx(ctx, tx, statement.NoteRate, b.ID, perSecond)
		return err
	}, store.UnfinishedBatch()...)
}

// PurgeBatches implements store.Batches.
func (s *Store) PurgeBatches(ctx context.Context, now time.Time, limit int) (int, error) {
	purged, err := s.exec(ctx, `DELETE FROM batches WHERE id IN (`+statement.OutdatedBatches+`)`,
		stamp(now), store.BatchLimit(limit))
	if err != nil {
		return 0, fmt.Errorf("purge batches: %w", err)
	}
	return int(purged), nil
}

// owned runs do in a transaction on a batch that is the owner's and has one of the
// statuses. The transaction holds
// the file's write lock, so it stays both until that ends.
func (s *Store) owned(
	ctx context.Context, what, owner, id string,
	do func(context.Context, *sql.Tx, store.Batch) error, statuses ...store.BatchStatus,
) error {
	return s.ownedWithin(ctx, timeout, what, owner, id, do, statuses...)
}

func (s *Store) ownedWithin(
	ctx context.Context, timeout time.Duration, what, owner, id string,
	do func(context.Context, *sql.Tx, store.Batch) error, statuses ...store.BatchStatus,
) error {
	id = store.CleanText(id)
	err := s.inTxWithin(ctx, timeout, func(ctx context.Context, tx *sql.Tx) error {
		b, err := oneRow(ctx, tx, scanBatch, statement.AnyBatch, id)
		if errors.Is(err, store.ErrNotFound) {
			return store.ErrLeaseLost
		}
		if err != nil {
			return err
		}
		if err := b.Held(owner, statuses...); err != nil {
			return err
		}
		return do(ctx, tx, b)
	})
	if err != nil {
		return fmt.Errorf("%s batch %s: %w", what, id, err)
	}
	return nil
}

// endBatch gives a batch its last status and the files that it made, and tells its tenant.
func endBatch(ctx context.Context, tx *sql.Tx, b store.Batch, end store.BatchEnd) error {
	end, err := end.Of(b)
	if err != nil {
		return err
	}
	for _, file := range end.Files() {
		_, err := oneRow(ctx, tx, scanFile, statement.CreateFile, statement.CreateFileArgs(file, stamp)...)
		if errors.Is(err, store.ErrNotFound) {
			err = store.ErrDuplicate
		}
		if err != nil {
			return fmt.Errorf("create file %s: %w", file.ID, err)
		}
	}
	output, failed := end.FileIDs()
	if _, err := execTx(ctx, tx, statement.EndBatch(end.Status), b.ID, stamp(end.At), output, failed, stamp(end.Purge)); err != nil {
		return err
	}
	_, err = appendEvents(ctx, tx, []store.Event{end.Event(b)})
	return err
}

func scanBatch(rows *sql.Rows) (store.Batch, error) {
	var r statement.BatchRow[*int64]
	if err := rows.Scan(r.Targets()...); err != nil {
		return store.Batch{}, err
	}
	return r.Batch(timeOrZero)
}

// oneRow runs a statement that returns one row, or none: store.ErrNotFound.
func oneRow[T any](
	ctx context.Context, tx *sql.Tx, scan func(*sql.Rows) (T, error), text string, args ...any,
) (one T, err error) {
	rows, err := queryTx(ctx, tx, scan, text, args...)
	if err == nil && len(rows) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return one, err
	}
	return rows[0], nil
}
