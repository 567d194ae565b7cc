package store

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Key is an API key as the database knows it. The secret itself is nowhere.
type Key struct {
	ID      string
	Name    string // unique among the keys that are not revoked
	Tenant  string
	Display string   // the masked secret, for listings
	Hash    [32]byte // SHA-256 of the secret
	Models  []string // globs of the models allowed; empty: all

	CreatedAt time.Time
	UpdatedAt time.Time // the last change, on the database's clock
	ExpiresAt time.Time // zero: never
	RevokedAt time.Time // zero: not revoked
}

// Active reports whether the key is in force at the time now. A revoked key never
// is, whatever time the revocation carries: a clock that runs ahead must not keep
// a key alive.
func (k Key) Active(now time.Time) bool {
	return k.RevokedAt.IsZero() && (k.ExpiresAt.IsZero() || now.Before(k.ExpiresAt))
}

// Validate returns an error that wraps ErrInvalid and names the field, if the key
// cannot be stored. A key is made by an operator, who can put a wrong one right;
// so nothing is changed silently.
func (k Key) Validate() error {
	fields := []struct {
		name, value string
		required    bool
	}{
		{"id", k.ID, true},
		{"name", k.Name, true},
		{"tenant", k.Tenant, false},
		{"display", k.Display, false},
	}
	for _, f := range fields {
		if f.required && f.value == "" {
			return fmt.Errorf("key %s is empty: %w", f.name, ErrInvalid)
		}
		if err := checkText(f.value); err != nil {
			return fmt.Errorf("key %s %w", f.name, err)
		}
	}
	if len(k.Models) > MaxModels {
		return fmt.Errorf("key has %d models, more than %d: %w", len(k.Models), MaxModels, ErrInvalid)
	}
	for i, m := range k.Models {
		if err := checkText(m); err != nil {
			return fmt.Errorf("key model %d %w", i+1, err)
		}
	}
	return nil
}

func checkText(s string) error {
	switch {
	case len(s) > MaxTextBytes:
		return fmt.Errorf("is longer than %d bytes: %w", MaxTextBytes, ErrInvalid)
	case !utf8.ValidString(s):
		return fmt.Errorf("is not UTF-8: %w", ErrInvalid)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("has a control character: %w", ErrInvalid)
	}
	return nil
}
