package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// BeginIdempotent implements store.Idempotency.
func (s *Store) BeginIdempotent(
	ctx context.Context, request store.IdempotentRequest, now time.Time, lease, keep time.Duration,
) (state store.IdempotentState, err error) {
	if err := request.Validate(); err != nil {
		return store.IdempotentState{}, err
	}
	args := func(r store.IdempotentRequest) []any { return statement.IdempotentArgs(r, now, lease, keep, stamp) }
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		held, err := queryTx(ctx, tx, scanHeld, statement.HeldIdempotent, request.Tenant, request.Key)
		if err != nil {
			return err
		}
		if len(held) == 0 {
			state = store.IdempotentState{Outcome: store.IdempotentNew}
			_, err = tx.ExecContext(ctx, statement.InsertIdempotent, args(request)...)
			return err
		}
		if state, err = held[0].Meet(request, now); err != nil || state.Outcome != store.IdempotentNew {
			return err
		}
		_, err = tx.ExecContext(ctx, statement.TakeOverIdempotent, args(request.Heir(state))...)
		return err
	})
	if err != nil {
		return store.IdempotentState{}, fmt.Errorf("take idempotency key: %w", err)
	}
	return state, nil
}

// RenewIdempotent implements store.Idempotency.
func (s *Store) RenewIdempotent(ctx context.Context, tenant, key, owner string, until time.Time) error {
	return s.changeHeld(ctx, "renew", statement.RenewIdempotent, statement.HeldArgs(tenant, key, owner, stamp(until))...)
}

// FinishIdempotent implements store.Idempotency.
func (s *Store) FinishIdempotent(
	ctx context.Context, tenant, key, owner string, answer store.IdempotentAnswer,
) error {
	if err := answer.Validate(); err != nil {
		return err
	}
	args, err := statement.AnswerArgs(tenant, key, owner, answer)
	if err != nil {
		return fmt.Errorf("finish idempotency key: %w", err)
	}
	return s.changeHeld(ctx, "finish", statement.FinishIdempotent, args...)
}

// DropIdempotent implements store.Idempotency.
func (s *Store) DropIdempotent(ctx context.Context, tenant, key, owner string) error {
	return s.changeHeld(ctx, "drop", statement.DropIdempotent, statement.HeldArgs(tenant, key, owner)...)
}

// PurgeIdempotent implements store.Idempotency.
func (s *Store) PurgeIdempotent(ctx context.Context, now time.Time, limit int) (int, error) {
	removed, err := s.exec(ctx, `DELETE FROM idempotency_keys WHERE (tenant, key) IN (`+
		statement.OutdatedIdempotent+`)`, stamp(now), max(0, min(limit, store.MaxPage)))
	if err != nil {
		return 0, fmt.Errorf("purge idempotency keys: %w", err)
	}
	return int(removed), nil
}

// changeHeld runs a statement that changes a key only while it is the owner's to finish.
func (s *Store) changeHeld(ctx context.Context, what, text string, args ...any) error {
	changed, err := s.exec(ctx, text, args...)
	if err == nil && changed == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("%s idempotency key: %w", what, err)
	}
	return nil
}

func scanHeld(rows *sql.Rows) (store.HeldKey, error) {
	var r statement.HeldRow[*int64]
	if err := rows.Scan(r.Targets()...); err != nil {
		return store.HeldKey{}, err
	}
	return r.Key(timeOrZero)
}
