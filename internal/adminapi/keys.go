package adminapi

import (
	"time"

	"sluice/internal/limits"
)

// KeysPath is where an ingress is asked about API keys. Below it stands a key's id or name,
// and below that what is to be done with it. GET it for a KeyList; the query's tenant, state
// (active, expired or revoked), limit and after say which keys are wanted.
const KeysPath = "/admin/v1/keys"

// MaxName bounds the names of new keys and tenants, in characters.
const MaxName = 100

// Key is an API key. Its secret is shown once, in the answer to the request that makes it.
type Key struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Tenant    string         `json:"tenant"`
	Display   string         `json:"display"` // the masked secret
	Models    []string       `json:"models"`  // names or globs; empty: all
	Limits    *limits.Limits `json:"limits"`  // null: those of keys without
	State     string         `json:"state"`   // active, expired or revoked
	CreatedAt time.Time      `json:"created_at"`
	UpdatedAt time.Time      `json:"updated_at"`
	ExpiresAt *time.Time     `json:"expires_at"` // null: never
	RevokedAt *time.Time     `json:"revoked_at"` // null: it is not
	Replaced  []ReplacedKey  `json:"replaced"`   // secrets that rotations replaced

	Secret string `json:"secret,omitempty"`
}

// ReplacedKey is a secret that a rotation replaced.
type ReplacedKey struct {
	Display    string    `json:"display"`
	ValidUntil time.Time `json:"valid_until"`
}

// Page says whether a list goes on, and where.
type Page struct {
	HasMore bool   `json:"has_more"`
	Next    string `json:"next,omitempty"` // what the query's after has to be for the next page
}

// KeyList is a page of keys, oldest first.
type KeyList struct {
	Keys []Key `json:"keys"`
	Page
}

// CreateKey makes a key, by POST to KeysPath. The answer is a Key with its secret.
type CreateKey struct {
	Name      string     `json:"name"`
	Tenant    string     `json:"tenant,omitempty"` // empty: default
	Models    []string   `json:"models,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	ExpiresIn string     `json:"expires_in,omitempty"` // such as "720h", in place of expires_at

	Limits Field[limits.Limits] `json:"limits,omitzero"` // null: those of keys without
}

// UpdateKey changes a key, by PATCH: what is not given stays.
type UpdateKey struct {
	Name      *string              `json:"name,omitempty"`
	Models    Field[[]string]      `json:"models,omitzero"`     // null: all
	ExpiresAt Field[time.Time]     `json:"expires_at,omitzero"` // null: never
	Limits    Field[limits.Limits] `json:"limits,omitzero"`     // null: those of keys without

	// UpdatedAt is what the key's must be yet; not given: the change is made to whatever
	// the key has become.
	UpdatedAt *time.Time `json:"updated_at,omitempty"`
}

// RotateKey gives a key a new secret, by POST to rotate below the key. The answer is a Key
// with that secret.
type RotateKey struct {
	Overlap string `json:"overlap,omitempty"` // how long the old one stays valid, such as "24h", which it is when empty
}
