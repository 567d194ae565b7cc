package store

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"sluice/internal/limits"
)

// Bounds of a rotation.
const (
	MaxReplaced = 10                  // replaced secrets that a key remembers
	MaxOverlap  = 30 * 24 * time.Hour // for which a replaced secret stays valid
)

// Replaced is a secret that a rotation has replaced. It opens as the key's own does until
// its overlap ends, and after that it is known for what it was.
type Replaced struct {
	Hash    [32]byte
	Display string
	Until   time.Time
}

// Rotation gives a key a new secret.
type Rotation struct {
	Hash    [32]byte
	Display string
	Overlap time.Duration // for which the secret before stays valid
}

// Validate returns an ErrInvalid if the rotation cannot be done.
func (r Rotation) Validate() error {
	if r.Overlap < 0 || r.Overlap > MaxOverlap {
		return fmt.Errorf("overlap is not between 0 and %s: %w", MaxOverlap, ErrInvalid)
	}
	if problem := checkText(r.Display); problem != "" {
		return fmt.Errorf("key display %s: %w", problem, ErrInvalid)
	}
	return nil
}

// OpensWith reports whether the secret of this hash is valid for the key at the time now,
// as far as rotations are concerned: it is the key's own, or its overlap has not ended.
func (k Key) OpensWith(hash [32]byte, now time.Time) bool {
	if hash == k.Hash {
		return true
	}
	return slices.ContainsFunc(k.Replaced, func(r Replaced) bool { return r.Hash == hash && now.Before(r.Until) })
}

// Updated returns the key as an update leaves it: with the name, the models, the end and
// the limits of to, which has to know the key as it is. Errors: ErrInvalid, ErrNotFound if
// it is another key, and ErrConflict if the key has changed since, or is revoked.
func (k Key) Updated(to Key, now time.Time) (Key, error) {
	switch {
	case k.ID != to.ID:
		return Key{}, ErrNotFound
	case !k.RevokedAt.IsZero():
		return Key{}, fmt.Errorf("key is revoked: %w", ErrConflict)
	case !k.UpdatedAt.Equal(to.UpdatedAt):
		return Key{}, fmt.Errorf("key has changed: %w", ErrConflict)
	}
	next := k
	next.Name, next.Models, next.ExpiresAt, next.Limits, next.UpdatedAt = to.Name, to.Models, to.ExpiresAt, to.Limits, now
	if len(next.Models) == 0 {
		next.Models = nil
	}
	if !next.ExpiresAt.IsZero() {
		next.ExpiresAt = CleanTime(next.ExpiresAt)
	}
	return next, next.Validate()
}

// Rotated returns the key with its new secret. The one before is valid until the overlap
// ends. Those replaced earlier keep the ends that they were promised, but with no overlap
// all of them end at once.
// Errors: ErrConflict if the key is revoked, ErrTooMany if as many replaced secrets as are
// remembered would be valid yet.
func (k Key) Rotated(r Rotation, now time.Time) (Key, error) {
	if !k.RevokedAt.IsZero() {
		return Key{}, fmt.Errorf("key is revoked: %w", ErrConflict)
	}
	until := CleanTime(now.Add(r.Overlap))
	next := k
	next.Hash, next.Display, next.UpdatedAt = r.Hash, r.Display, now
	next.Replaced = []Replaced{{Hash: k.Hash, Display: k.Display, Until: until}}
	for _, old := range k.Replaced {
		if r.Overlap == 0 && old.Until.After(until) {
			old.Until = until
		}
		next.Replaced = append(next.Replaced, old)
	}
	slices.SortStableFunc(next.Replaced, func(a, b Replaced) int { return b.Until.Compare(a.Until) })
	if len(next.Replaced) > MaxReplaced {
		if next.Replaced[MaxReplaced].Until.After(now) {
			return Key{}, fmt.Errorf("%d replaced secrets are valid yet: %w", MaxReplaced, ErrTooMany)
		}
		next.Replaced = next.Replaced[:MaxReplaced]
	}
	return next, nil
}

// Revoked returns the key as revoked at that time. One that is revoked stays as it is.
func (k Key) Revoked(at, now time.Time) Key {
	if k.RevokedAt.IsZero() {
		k.RevokedAt, k.UpdatedAt = CleanTime(at), now
	}
	return k
}

// Later returns the moment of a change: now, but after the change before. So no two
// states of the same thing have the same time, by which an update knows what it is of.
func Later(now, before time.Time) time.Time {
	now = CleanTime(now)
	if least := before.Add(time.Microsecond); now.Before(least) {
		return least
	}
	return now
}

// replacedJSON is a replaced secret as databases keep it.
type replacedJSON struct {
	Hash    string    `json:"hash"`
	Display string    `json:"display"`
	Until   time.Time `json:"until"`
}

// EncodeReplaced returns replaced secrets as they are kept: a JSON array, or nil, which
// stands for NULL, when there are none.
func EncodeReplaced(replaced []Replaced) (*string, error) {
	if len(replaced) == 0 {
		return nil, nil
	}
	rows := make([]replacedJSON, len(replaced))
	for i, r := range replaced {
		rows[i] = replacedJSON{hex.EncodeToString(r.Hash[:]), r.Display, r.Until}
	}
	return encodeJSON("replaced secrets", rows)
}

// DecodeReplaced reads what EncodeReplaced returned.
func DecodeReplaced(text *string) ([]Replaced, error) {
	if text == nil {
		return nil, nil
	}
	var rows []replacedJSON
	if err := json.Unmarshal([]byte(*text), &rows); err != nil {
		return nil, fmt.Errorf("decode replaced secrets: %w", err)
	}
	replaced := make([]Replaced, len(rows))
	for i, r := range rows {
		replaced[i] = Replaced{Display: r.Display, Until: r.Until}
		hash, err := hex.DecodeString(r.Hash)
		if err = cmp.Or(err, lengthFault(len(hash))); err != nil {
			return nil, fmt.Errorf("decode replaced secrets: %w", err)
		}
		copy(replaced[i].Hash[:], hash)
	}
	return replaced, nil
}

func lengthFault(n int) error {
	if n != len(Replaced{}.Hash) {
		return fmt.Errorf("hash of %d bytes", n)
	}
	return nil
}

// EncodeLimits returns limits as they are kept: JSON, or nil, which stands for NULL.
func EncodeLimits(l *limits.Limits) (*string, error) {
	if l == nil {
		return nil, nil
	}
	return encodeJSON("limits", l)
}

// DecodeLimits reads what EncodeLimits returned.
func DecodeLimits(text *string) (*limits.Limits, error) {
	if text == nil {
		return nil, nil //nolint:nilnil // no limits of its own are limits like any other
	}
	l := new(limits.Limits)
	if err := json.Unmarshal([]byte(*text), l); err != nil {
		return nil, fmt.Errorf("decode limits: %w", err)
	}
	return l, nil
}

func encodeJSON(what string, v any) (*string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", what, err)
	}
	text := string(b)
	return &text, nil
}

// keyAudit is a key as the audit shows it: without its secrets and their hashes.
type keyAudit struct {
	Name      string          `json:"name"`
	Tenant    string          `json:"tenant"`
	Display   string          `json:"display"`
	Models    []string        `json:"models,omitempty"`
	Limits    *limits.Limits  `json:"limits,omitempty"`
	ExpiresAt time.Time       `json:"expires_at,omitzero"`
	RevokedAt time.Time       `json:"revoked_at,omitzero"`
	Replaced  []replacedAudit `json:"replaced,omitempty"`
}

type replacedAudit struct {
	Display string    `json:"display"`
	Until   time.Time `json:"until"`
}

// KeyTarget is what the audit calls a key.
func KeyTarget(id string) string { return "key:" + id }

// KeyEntry returns the entry about a change of a key. before is nil for a new one.
func (c Change) KeyEntry(action string, before *Key, after Key) (AuditEntry, error) {
	if before == nil {
		return c.Entry(action, KeyTarget(after.ID), nil, after.audited())
	}
	return c.Entry(action, KeyTarget(after.ID), before.audited(), after.audited())
}

func (k Key) audited() keyAudit {
	a := keyAudit{
		Name: k.Name, Tenant: k.Tenant, Display: k.Display, Models: k.Models, Limits: k.Limits,
		ExpiresAt: k.ExpiresAt, RevokedAt: k.RevokedAt,
	}
	for _, r := range k.Replaced {
		a.Replaced = append(a.Replaced, replacedAudit{r.Display, r.Until})
	}
	return a
}
