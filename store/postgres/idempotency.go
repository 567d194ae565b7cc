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

// beginTries bounds how often BeginIdempotent begins again because the key was freed
// between two looks at it.
const beginTries = 8

// BeginIdempotent implements store.Idempotency. Nearly every key is new, and one
// statement settles those.
func (s *Store) BeginIdempotent(
	ctx context.Context, request store.IdempotentRequest, now time.Time, lease, keep time.Duration,
) (store.IdempotentState, error) {
	if err := request.Validate(); err != nil {
		return store.IdempotentState{}, err
	}
	args := func(r store.IdempotentRequest) []any { return statement.IdempotentArgs(r, now, lease, keep, stamp) }
	for range beginTries {
		inserted, err := s.exec(ctx, statement.InsertIdempotent, args(request)...)
		if err != nil {
			return store.IdempotentState{}, fmt.Errorf("take idempotency key: %w", err)
		}
		if inserted > 0 {
			return store.IdempotentState{Outcome: store.IdempotentNew}, nil
		}
		state, err := s.meetIdempotent(ctx, request, now, args)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return store.IdempotentState{}, fmt.Errorf("take idempotency key: %w", err)
		}
		return state, nil
	}
	return store.IdempotentState{}, errors.New("take idempotency key: it changes hands too fast")
}

// meetIdempotent looks at the key that is there, and takes it where it may.
func (s *Store) meetIdempotent(
	ctx context.Context, request store.IdempotentRequest, now time.Time, args func(store.IdempotentRequest) []any,
) (state store.IdempotentState, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		held, err := queryOne(ctx, tx, scanHeld, statement.HeldIdempotent+` FOR UPDATE`, request.Tenant, request.Key)
		if err != nil {
			return err
		}
		if state, err = held.Meet(request, now); err != nil || state.Outcome != store.IdempotentNew {
			return err
		}
		_, err = tx.Exec(ctx, statement.TakeOverIdempotent, args(request.Heir(state))...)
		return err
	})
	return state, err
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
	removed, err := s.exec(ctx, `
		WITH outdated AS MATERIALIZED (`+statement.OutdatedIdempotent+` FOR UPDATE SKIP LOCKED)
		DELETE FROM idempotency_keys AS k USING outdated AS o
		WHERE k.tenant = o.tenant AND k.key = o.key`,
		stamp(now), max(0, min(limit, store.MaxPage)))
	if err != nil {
		return 0, fmt.Errorf("purge idempotency keys: %w", err)
	}
	return int(removed), nil
}

// changeHeld runs a statement that changes a key only while it is the owner's to finish.
func (s *Store) changeHeld(ctx context.Context, what, sql string, args ...any) error {
	changed, err := s.exec(ctx, sql, args...)
	if err == nil && changed == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("%s idempotency key: %w", what, err)
	}
	return nil
}

func scanHeld(row pgx.CollectableRow) (store.HeldKey, error) {
	var r statement.HeldRow[*time.Time]
	if err := row.Scan(r.Targets()...); err != nil {
		return store.HeldKey{}, err
	}
	return r.Key(timeOrZero)
}
