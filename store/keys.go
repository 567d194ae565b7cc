package store

import (
	"context"
	"time"
)

// Keys is the part of the store that remembers API keys. What changes one writes an entry
// of the audit with it. The times of changes are the database's own, whatever the key says.
type Keys interface {
	// CreateKey stores a key. Errors: ErrInvalid, ErrNameTaken, ErrDuplicate.
	CreateKey(ctx context.Context, key Key, by Change) error

	// Key returns the key with this id, or else the key in force with this name, or else
	// the one last revoked that had it. Errors: ErrNotFound.
	Key(ctx context.Context, idOrName string) (Key, error)

	// ListKeys returns every key, revoked ones too, oldest first.
	ListKeys(ctx context.Context) ([]Key, error)

	// FindKeys returns the keys that the filter selects, oldest first. Errors: ErrNotFound
	// if there is no key to continue behind.
	FindKeys(ctx context.Context, filter KeyFilter) ([]Key, error)

	// UpdateKey gives the key of that id the name, the models, the end and the limits of
	// key, as Key.Updated says, and returns it. Errors: ErrInvalid, ErrNotFound,
	// ErrNameTaken, and ErrConflict if the key's UpdatedAt is not the stored one any more or
	// the key is revoked.
	UpdateKey(ctx context.Context, key Key, by Change) (Key, error)

	// RotateKey gives the key that Key finds a new secret, as Key.Rotated says, and returns
	// it. What counts for the key goes on counting for it. Errors: ErrInvalid, ErrNotFound,
	// ErrDuplicate, ErrTooMany, and ErrConflict if the key is revoked.
	RotateKey(ctx context.Context, idOrName string, r Rotation, by Change) (Key, error)

	// RevokeKey marks as revoked the key that Key finds, at the time of the change, and
	// returns it. A key that is revoked already keeps its first time. Errors: ErrNotFound.
	RevokeKey(ctx context.Context, idOrName string, by Change) (Key, error)

	// KeyByHash returns the key of which a secret, its own or a replaced one, has this hash,
	// also when it is revoked or expired. Errors: ErrNotFound.
	KeyByHash(ctx context.Context, hash [32]byte) (Key, error)

	// KeysChangedSince returns the keys created or changed at or after since, and the
	// time to ask with next. Both are of the database's own clock, so clocks that
	// differ lose nothing. next lies a little in the past, because a change becomes
	// visible later than the moment it is stamped with: the same key may come
	// twice, and none is missed. The zero time returns every key.
	KeysChangedSince(ctx context.Context, since time.Time) (keys []Key, next time.Time, err error)
}

// KeyState is how a key stands.
type KeyState string

// The states of a key.
const (
	KeyActive  KeyState = "active"
	KeyExpired KeyState = "expired"
	KeyRevoked KeyState = "revoked"
)

// State returns how the key stands at the time now.
func (k Key) State(now time.Time) KeyState {
	switch {
	case !k.RevokedAt.IsZero():
		return KeyRevoked
	case !k.Active(now):
		return KeyExpired
	}
	return KeyActive
}

// KeyFilter selects keys. Zero fields select everything.
type KeyFilter struct {
	Tenant string
	State  KeyState
	Now    time.Time // for the state; zero: now

	Limit int    // at most MaxPage; zero: DefaultPage
	After string // continue behind the key of this id
}

// Clean returns the filter with its limit and its time set, and its texts as keys have them.
func (f KeyFilter) Clean() KeyFilter {
	f.Limit = pageLimit(f.Limit)
	f.Tenant, f.After = CleanText(f.Tenant), CleanText(f.After)
	if f.Now.IsZero() {
		f.Now = time.Now()
	}
	f.Now = CleanTime(f.Now)
	return f
}
