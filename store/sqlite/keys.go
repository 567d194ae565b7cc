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

const createKey = `INSERT INTO api_keys (` + statement.KeyColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	RETURNING ` + statement.KeyColumns

// CreateKey implements store.Keys.
func (s *Store) CreateKey(ctx context.Context, key store.Key, by store.Change) error {
	if err := key.Validate(); err != nil {
		return err
	}
	by, err := by.Clean()
	if err != nil {
		return err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		made, err := insertKey(ctx, tx, key)
		if err != nil {
			return err
		}
		return appendKeyEntry(ctx, tx, by, "key.create", nil, made)
	})
	if err != nil {
		return fmt.Errorf("create key %s: %w", key.Name, err)
	}
	return nil
}

// insertKey looks for what a new key would clash with before it inserts, because
// SQLite's error names the column in its text only. The transaction holds the
// file's write lock from its beginning, so nothing comes in between.
func insertKey(ctx context.Context, tx *sql.Tx, key store.Key) (store.Key, error) {
	var sameID bool
	err := tx.QueryRowContext(ctx, statement.KeyExists, key.ID).Scan(&sameID)
	if err == nil && sameID {
		err = store.ErrDuplicate
	}
	if err == nil {
		err = requireFreeHash(ctx, tx, key.Hash)
	}
	if err == nil && key.RevokedAt.IsZero() {
		err = requireFreeName(ctx, tx, key)
	}
	if err != nil {
		return store.Key{}, err
	}
	models, err := json.Marshal(key.Models)
	if err != nil {
		return store.Key{}, fmt.Errorf("encode models: %w", err)
	}
	limits, err := store.EncodeLimits(key.Limits)
	if err != nil {
		return store.Key{}, err
	}
	now := micros(time.Now())
	return oneRow(ctx, tx, scanKey, createKey, key.ID, key.Name, key.Tenant, key.Display, key.Hash[:], string(models),
		now, now, nullMicros(key.ExpiresAt), nullMicros(key.RevokedAt), limits, nil)
}

// ListKeys implements store.Keys.
func (s *Store) ListKeys(ctx context.Context) ([]store.Key, error) {
	keys, err := query(ctx, s.reader, scanKey, statement.ListKeys)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return keys, nil
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
	return keys, settledBefore(now), nil
}

// settledBefore is the time before which everything that was stamped is seen at now.
func settledBefore(now time.Time) time.Time { return store.CleanTime(now).Add(-timeout - settle) }

func scanKey(rows *sql.Rows) (store.Key, error) {
	var (
		key              store.Key
		hash, models     []byte
		created, updated int64
		expires, revoked sql.NullInt64
		limits, replaced *string
	)
	err := rows.Scan(&key.ID, &key.Name, &key.Tenant, &key.Display, &hash, &models,
		&created, &updated, &expires, &revoked, &limits, &replaced)
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
