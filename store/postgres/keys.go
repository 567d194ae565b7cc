package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"sluice/store"
	"sluice/store/internal/statement"
)

const (
	// nameIndex is the unique index that lets one key in force have a name.
	nameIndex = "api_keys_name_in_force"

	// settle is added to the timeout to say how long before its commit a change may
	// have been stamped.
	settle = time.Second
)

// CreateKey implements store.Keys.
func (s *Store) CreateKey(ctx context.Context, key store.Key, by store.Change) error {
	if err := key.Validate(); err != nil {
		return err
	}
	by, err := by.Clean()
	if err != nil {
		return err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := requireFreeHash(ctx, tx, key.Hash); err != nil {
			return err
		}
		limits, err := store.EncodeLimits(key.Limits)
		if err != nil {
			return err
		}
		made, err := queryOne(ctx, tx, scanKey, `
			INSERT INTO api_keys (id, name, tenant, display, hash, models, expires_at, revoked_at, limits)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING `+statement.KeyColumns,
			key.ID, key.Name, key.Tenant, key.Display, key.Hash[:], notNull(key.Models),
			nullTime(key.ExpiresAt), nullTime(key.RevokedAt), limits)
		if err != nil {
			return keyClash(err)
		}
		return appendKeyEntry(ctx, tx, by, "key.create", nil, made)
	})
	if err != nil {
		return fmt.Errorf("create key %s: %w", key.Name, err)
	}
	return nil
}

// notNull returns the models as they are stored: nil would be NULL.
func notNull(models []string) []string {
	if models == nil {
		return []string{}
	}
	return models
}

// keyClash says what a key that violates uniqueness clashes with. The database's own error
// is not wrapped, which shows the values that clash.
func keyClash(err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != codeUniqueViolation {
		return err
	}
	if pgErr.ConstraintName == nameIndex {
		return store.ErrNameTaken
	}
	return store.ErrDuplicate
}

// ListKeys implements store.Keys.
func (s *Store) ListKeys(ctx context.Context) ([]store.Key, error) {
	keys, err := query(ctx, s, scanKey, statement.ListKeys)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return keys, nil
}

// KeyByHash implements store.Keys.
func (s *Store) KeyByHash(ctx context.Context, hash [32]byte) (store.Key, error) {
	keys, err := query(ctx, s, scanKey, statement.KeyByHash, hash[:])
	if err != nil {
		return store.Key{}, fmt.Errorf("look up key: %w", err)
	}
	if len(keys) == 0 {
		return store.Key{}, fmt.Errorf("look up key: %w", store.ErrNotFound)
	}
	return keys[0], nil
}

// KeysChangedSince implements store.Keys. A change is stamped when its statement
// runs and seen when it commits, and a statement is given up after the timeout; so
// next is that much, and a second, before now.
func (s *Store) KeysChangedSince(
	ctx context.Context, since time.Time,
) (keys []store.Key, next time.Time, err error) {
	// The clock is read first: what commits between the two is seen, or seen again.
	now, err := query(ctx, s, pgx.RowTo[time.Time], `SELECT clock_timestamp()`)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read database clock: %w", err)
	}
	keys, err = query(ctx, s, scanKey, statement.KeysChangedSince, since)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("list changed keys: %w", err)
	}
	return keys, s.settledBefore(now[0]), nil
}

// settledBefore is the time before which everything that was stamped is seen at now.
func (s *Store) settledBefore(now time.Time) time.Time { return now.UTC().Add(-s.timeout - settle) }

func scanKey(row pgx.CollectableRow) (store.Key, error) {
	var (
		key              store.Key
		hash             []byte
		expires, revoked *time.Time
		limits, replaced *string
	)
	err := row.Scan(&key.ID, &key.Name, &key.Tenant, &key.Display, &hash, &key.Models,
		&key.CreatedAt, &key.UpdatedAt, &expires, &revoked, &limits, &replaced)
	if err != nil {
		return store.Key{}, err
	}
	if key.Limits, err = store.DecodeLimits(limits); err != nil {
		return store.Key{}, fmt.Errorf("key %s: %w", key.ID, err)
	}
	if key.Replaced, err = store.DecodeReplaced(replaced); err != nil {
		return store.Key{}, fmt.Errorf("key %s: %w", key.ID, err)
	}
	copy(key.Hash[:], hash) // a CHECK holds its length at 32
	if len(key.Models) == 0 {
		key.Models = nil
	}
	key.CreatedAt, key.UpdatedAt = key.CreatedAt.UTC(), key.UpdatedAt.UTC()
	key.ExpiresAt, key.RevokedAt = timeOrZero(expires), timeOrZero(revoked)
	return key, nil
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = store.CleanTime(t)
	return &t
}

func timeOrZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
