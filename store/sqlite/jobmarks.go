package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/internal/statement"
)

// MarkDispatched implements store.Jobs.
func (s *Store) MarkDispatched(ctx context.Context, sent []store.Dispatch, at time.Time) (useless []string, err error) {
	sent, err = store.CleanDispatches(sent)
	if err != nil {
		return nil, err
	}
	rows := make([][]any, len(sent))
	for i, d := range sent {
		rows[i] = statement.DispatchArgs(d, stamp(at))
	}
	found, err := s.execEach(ctx, statement.MarkDispatched, rows)
	if err != nil {
		return nil, fmt.Errorf("mark jobs as dispatched: %w", err)
	}
	for i, d := range sent {
		if !found[i] {
			useless = append(useless, d.ID)
		}
	}
	return useless, nil
}

// ClaimJob implements store.Jobs.
func (s *Store) ClaimJob(ctx context.Context, id string, epoch int, at time.Time) (store.Claimed, error) {
	claimed, err := query(ctx, s.writer, scanClaimed, statement.ClaimJob, statement.ClaimArgs(id, epoch, stamp(at))...)
	if err != nil {
		return store.Claimed{}, fmt.Errorf("claim job %s: %w", store.CleanText(id), err)
	}
	if len(claimed) == 0 {
		return store.Claimed{}, nil
	}
	return claimed[0], nil
}

// MoveJob implements store.Jobs.
func (s *Store) MoveJob(
	ctx context.Context, id string, epoch int, provider string, seq uint64,
	attempts int, tries []inference.Try, at time.Time,
) error {
	args, err := statement.MoveArgs(id, epoch, provider, seq, attempts, tries, stamp(at))
	if err == nil {
		_, err = s.exec(ctx, statement.MoveJob, args...)
	}
	if err != nil {
		return fmt.Errorf("move job %s: %w", store.CleanText(id), err)
	}
	return nil
}

// Dispatched implements store.Jobs.
func (s *Store) Dispatched(ctx context.Context, before time.Time, limit int) ([]store.Job, error) {
	jobs, err := query(ctx, s.reader, scanJob, statement.DispatchedJobs, stamp(before), store.MarkLimit(limit))
	if err != nil {
		return nil, fmt.Errorf("list dispatched jobs: %w", err)
	}
	return jobs, nil
}

// Confirm implements store.Jobs.
func (s *Store) Confirm(ctx context.Context, ids []string, at time.Time) error {
	ids, err := store.CleanIDs(ids)
	if err != nil {
		return err
	}
	rows := make([][]any, len(ids))
	for i, id := range ids {
		rows[i] = []any{id, stamp(at)}
	}
	if _, err := s.execEach(ctx, statement.ConfirmJob, rows); err != nil {
		return fmt.Errorf("confirm jobs: %w", err)
	}
	return nil
}

// Requeue implements store.Jobs.
func (s *Store) Requeue(ctx context.Context, requeued []store.Requeue) (changed []string, err error) {
	requeued, err = store.CleanRequeues(requeued)
	if err != nil {
		return nil, err
	}
	rows := make([][]any, len(requeued))
	for i, r := range requeued {
		if rows[i], err = statement.RequeueArgs(r, stamp); err != nil {
			return nil, fmt.Errorf("requeue jobs: %w", err)
		}
	}
	found, err := s.execEach(ctx, statement.RequeueJob, rows)
	if err != nil {
		return nil, fmt.Errorf("requeue jobs: %w", err)
	}
	for i, r := range requeued {
		if found[i] {
			changed = append(changed, r.ID)
		}
	}
	return changed, nil
}

// execEach runs a statement with each row of values, in one transaction, and returns which
// of them changed something.
func (s *Store) execEach(ctx context.Context, text string, rows [][]any) (changed []bool, err error) {
	if len(rows) == 0 {
		return nil, nil
	}
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		changed, err = execEach(ctx, tx, text, rows)
		return err
	})
	return changed, err
}

// execEach is described at the method. The statement is prepared, because otherwise most
// of the time goes into understanding it.
func execEach(ctx context.Context, tx *sql.Tx, text string, rows [][]any) ([]bool, error) {
	stmt, err := tx.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stmt.Close() }() // the transaction's end closes it in any case
	changed := make([]bool, len(rows))
	for i, args := range rows {
		result, err := stmt.ExecContext(ctx, args...)
		if err != nil {
			return nil, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return nil, err
		}
		changed[i] = n > 0
	}
	return changed, nil
}

func scanClaimed(rows *sql.Rows) (store.Claimed, error) {
	claimed := store.Claimed{Wanted: true}
	var tries *string
	err := rows.Scan(&claimed.Attempts, &tries)
	if err == nil {
		claimed.Tries, err = statement.DecodeTries(tries)
	}
	return claimed, err
}
