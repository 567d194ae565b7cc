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
func (s *Store) CreateKey(ctx context.Context, key store.Key) error {
	if err := key.Validate(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	models := key.Models
	if models == nil {
		models = []string{} // nil would be NULL
	}
	_, err := s.pool.Exec(ctx, `
		INSERT INTO api_keys (id, name, tenant, display, hash, models, expires_at, revoked_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		key.ID, key.Name, key.Tenant, key.Display, key.Hash[:], models,
		nullTime(key.ExpiresAt), nullTime(key.RevokedAt))
	if err == nil {
		return nil
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == codeUniqueViolation {
		// Not wrapped: the database's message shows the values that clash.
		if pgErr.ConstraintName == nameIndex {
			return fmt.Errorf("create key %s: %w", key.Name, store.ErrNameTaken)
		}
		return fmt.Errorf("create key %s: %w", key.Name, store.ErrDuplicate)
	}
	return fmt.Errorf("create key %s: %w", key.Name, err)
}

// ListKeys implements store.Keys.
func (s *Store) ListKeys(ctx context.Context) ([]store.Key, error) {
	keys, err := query(ctx, s, scanKey, statement.ListKeys)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return keys, nil
}

// RevokeKey implements store.Keys.
func (s *Store) RevokeKey(ctx context.Context, idOrName string, at time.Time) (store.Key, error) {
	name := store.CleanText(idOrName)
	keys, err := query(ctx, s, scanKey, statement.RevokeKey("clock_timestamp()"), name, store.CleanTime(at))
	if err != nil {
		return store.Key{}, fmt.Errorf("revoke key: %w", err)
	}
	if len(keys) == 0 {
		return store.Key{}, fmt.Errorf("revoke key %q: %w", name, store.ErrNotFound)
	}
	return keys[0], nil
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
	return keys, now[0].UTC().Add(-s.timeout - settle), nil
}

func scanKey(row pgx.CollectableRow) (store.Key, error) {
	var (
		key              store.Key
		hash             []byte
		expires, revoked *time.Time
	)
	err := row.Scan(&key.ID, &key.Name, &key.Tenant, &key.Display, &hash, &key.Models,
		&key.CreatedAt, &key.UpdatedAt, &expires, &revoked)
	if err != nil {
		return store.Key{}, err
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
