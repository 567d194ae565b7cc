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

// Key implements store.Keys.
func (s *Store) Key(ctx context.Context, idOrName string) (store.Key, error) {
	name := store.CleanText(idOrName)
	keys, err := query(ctx, s, scanKey, statement.FindKey, name)
	if err == nil && len(keys) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Key{}, fmt.Errorf("find key %q: %w", name, err)
	}
	return keys[0], nil
}

// FindKeys implements store.Keys.
func (s *Store) FindKeys(ctx context.Context, filter store.KeyFilter) ([]store.Key, error) {
	filter = filter.Clean()
	text, args := statement.FindKeys(filter, stamp)
	keys, err := query(ctx, s, scanKey, text, args...)
	if err == nil && len(keys) == 0 {
		err = s.requirePlace(ctx, statement.KeyExists, filter.After)
	}
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return keys, nil
}

// requirePlace returns store.ErrNotFound if a page is to begin behind what is not there.
func (s *Store) requirePlace(ctx context.Context, exists, id string) error {
	if id == "" {
		return nil
	}
	there, err := query(ctx, s, pgx.RowTo[bool], exists, id)
	if err == nil && !there[0] {
		err = store.ErrNotFound
	}
	return err
}

// UpdateKey implements store.Keys.
func (s *Store) UpdateKey(ctx context.Context, key store.Key, by store.Change) (store.Key, error) {
	return s.changeKey(ctx, "key.update", key.ID, by, func(_ context.Context, _ pgx.Tx, old store.Key, now time.Time) (store.Key, error) {
		return old.Updated(key, now)
	})
}

// RotateKey implements store.Keys.
func (s *Store) RotateKey(ctx context.Context, idOrName string, r store.Rotation, by store.Change) (store.Key, error) {
	if err := r.Validate(); err != nil {
		return store.Key{}, err
	}
	return s.changeKey(ctx, "key.rotate", idOrName, by, func(ctx context.Context, tx pgx.Tx, old store.Key, now time.Time) (store.Key, error) {
		next, err := old.Rotated(r, now)
		if err == nil {
			err = requireFreeHash(ctx, tx, r.Hash)
		}
		if err == nil {
			err = keepReplaced(ctx, tx, next)
		}
		return next, err
	})
}

// RevokeKey implements store.Keys.
func (s *Store) RevokeKey(ctx context.Context, idOrName string, by store.Change) (store.Key, error) {
	by, err := by.Clean()
	if err != nil {
		return store.Key{}, err
	}
	return s.changeKey(ctx, "key.revoke", idOrName, by, func(_ context.Context, _ pgx.Tx, old store.Key, now time.Time) (store.Key, error) {
		return old.Revoked(by.At, now), nil
	})
}

// changeKey brings a key from one state to the next, with its entry of the audit. The row
// is locked from the look to the commit, so that changes at once come one after the other.
// A change that leaves the key's time as it is changes nothing.
func (s *Store) changeKey(
	ctx context.Context, action, idOrName string, by store.Change,
	change func(context.Context, pgx.Tx, store.Key, time.Time) (store.Key, error),
) (next store.Key, err error) {
	name := store.CleanText(idOrName)
	if by, err = by.Clean(); err != nil {
		return store.Key{}, err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		old, err := queryOne(ctx, tx, scanKey, statement.FindKey+" FOR UPDATE", name)
		if err != nil {
			return err
		}
		now, err := queryOne(ctx, tx, pgx.RowTo[time.Time], "SELECT clock_timestamp()")
		if err != nil {
			return err
		}
		next, err = change(ctx, tx, old, store.Later(now, old.UpdatedAt))
		if err != nil || next.UpdatedAt.Equal(old.UpdatedAt) {
			return err
		}
		if err := writeKey(ctx, tx, next); err != nil {
			return err
		}
		return appendKeyEntry(ctx, tx, by, action, &old, next)
	})
	if err != nil {
		return store.Key{}, fmt.Errorf("%s %q: %w", action, name, err)
	}
	return next, nil
}

func writeKey(ctx context.Context, tx pgx.Tx, k store.Key) error {
	limits, err := store.EncodeLimits(k.Limits)
	if err != nil {
		return err
	}
	replaced, err := store.EncodeReplaced(k.Replaced)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, statement.WriteKey, k.ID, k.Name, k.Display, k.Hash[:], notNull(k.Models), k.UpdatedAt,
		nullTime(k.ExpiresAt), nullTime(k.RevokedAt), limits, replaced)
	return keyClash(err)
}

// requireFreeHash returns store.ErrDuplicate if a key has a secret of this hash, its own
// or a replaced one.
func requireFreeHash(ctx context.Context, tx pgx.Tx, hash [32]byte) error {
	taken, err := queryOne(ctx, tx, pgx.RowTo[bool], statement.HashTaken, hash[:])
	if err == nil && taken {
		err = store.ErrDuplicate
	}
	return err
}

// keepReplaced has the key found by the replaced secrets that it remembers.
func keepReplaced(ctx context.Context, tx pgx.Tx, k store.Key) error {
	if _, err := tx.Exec(ctx, statement.ForgetReplaced, k.ID); err != nil {
		return err
	}
	for _, r := range k.Replaced {
		if _, err := tx.Exec(ctx, statement.KeepReplaced, r.Hash[:], k.ID); err != nil {
			return err
		}
	}
	return nil
}

func appendKeyEntry(ctx context.Context, tx pgx.Tx, by store.Change, action string, before *store.Key, after store.Key) error {
	entry, err := by.KeyEntry(action, before, after)
	if err != nil {
		return err
	}
	return appendEntry(ctx, tx, entry)
}

func appendEntry(ctx context.Context, tx pgx.Tx, entry store.AuditEntry) error {
	entry, err := entry.Clean()
	if err == nil {
		_, err = tx.Exec(ctx, statement.AppendAudit, statement.AuditArgs(entry, stamp)...)
	}
	if hasCode(err, codeUniqueViolation) {
		return errors.Join(store.ErrDuplicate, errors.New("id of an audit entry"))
	}
	return err
}
