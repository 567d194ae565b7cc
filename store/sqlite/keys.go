package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// settle is added to the timeout to say how long before its commit a change may have
// been stamped.
const settle = time.Second

const createKey = `INSERT INTO api_keys (` + statement.KeyColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

// CreateKey implements store.Keys.
func (s *Store) CreateKey(ctx context.Context, key store.Key) error {
	if err := key.Validate(); err != nil {
		return err
	}
	models, err := json.Marshal(key.Models)
	if err != nil {
		return fmt.Errorf("encode models: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("create key %s: %w", key.Name, err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	if err := insertKey(ctx, tx, key, models); err != nil {
		return fmt.Errorf("create key %s: %w", key.Name, err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("create key %s: %w", key.Name, err)
	}
	return nil
}

// insertKey looks for what a new key would clash with before it inserts, because
// SQLite's error names the column in its text only. The transaction holds the
// file's write lock from its beginning, so nothing comes in between.
func insertKey(ctx context.Context, tx *sql.Tx, key store.Key, models []byte) error {
	var sameName, sameKey bool
	err := tx.QueryRowContext(ctx, `
		SELECT EXISTS (SELECT 1 FROM api_keys WHERE name = ? AND revoked_at IS NULL),
		       EXISTS (SELECT 1 FROM api_keys WHERE id = ? OR hash = ?)`,
		key.Name, key.ID, key.Hash[:]).Scan(&sameName, &sameKey)
	switch {
	case err != nil:
		return err
	case sameKey:
		return store.ErrDuplicate
	case sameName && key.RevokedAt.IsZero():
		return store.ErrNameTaken
	}
	now := micros(time.Now())
	_, err = tx.ExecContext(ctx, createKey,
		key.ID, key.Name, key.Tenant, key.Display, key.Hash[:], string(models),
		now, now, nullMicros(key.ExpiresAt), nullMicros(key.RevokedAt))
	return err
}

// ListKeys implements store.Keys.
func (s *Store) ListKeys(ctx context.Context) ([]store.Key, error) {
	keys, err := query(ctx, s.reader, scanKey, statement.ListKeys)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return keys, nil
}

// RevokeKey implements store.Keys.
func (s *Store) RevokeKey(ctx context.Context, idOrName string, at time.Time) (store.Key, error) {
	name := store.CleanText(idOrName)
	keys, err := query(ctx, s.writer, scanKey, statement.RevokeKey("$3"), name, micros(at), micros(time.Now()))
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
	keys, err := query(ctx, s.reader, scanKey, statement.KeyByHash, hash[:])
	if err != nil {
		return store.Key{}, fmt.Errorf("look up key: %w", err)
	}
	if len(keys) == 0 {
		return store.Key{}, fmt.Errorf("look up key: %w", store.ErrNotFound)
	}
	return keys[0], nil
}

// KeysChangedSince implements store.Keys. The database's clock is this machine's,
// since all processes that share the file run on it. A change may wait for the
// write lock between its stamp and its commit, for as long as the timeout; so next
// is that much, and a second, before now.
func (s *Store) KeysChangedSince(
	ctx context.Context, since time.Time,
) (keys []store.Key, next time.Time, err error) {
	now := time.Now() // before the look: what commits in between is seen, or seen again
	keys, err = query(ctx, s.reader, scanKey, statement.KeysChangedSince, micros(since))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("list changed keys: %w", err)
	}
	return keys, store.CleanTime(now).Add(-timeout - settle), nil
}

func scanKey(rows *sql.Rows) (store.Key, error) {
	var (
		key              store.Key
		hash, models     []byte
		created, updated int64
		expires, revoked sql.NullInt64
	)
	err := rows.Scan(&key.ID, &key.Name, &key.Tenant, &key.Display, &hash, &models,
		&created, &updated, &expires, &revoked)
	if err != nil {
		return store.Key{}, err
	}
	copy(key.Hash[:], hash) // a CHECK holds its length at 32
	if err := json.Unmarshal(models, &key.Models); err != nil {
		return store.Key{}, fmt.Errorf("decode models of key %s: %w", key.ID, err)
	}
	if len(key.Models) == 0 {
		key.Models = nil
	}
	key.CreatedAt, key.UpdatedAt = fromMicros(created), fromMicros(updated)
	key.ExpiresAt, key.RevokedAt = fromNullMicros(expires), fromNullMicros(revoked)
	return key, nil
}
