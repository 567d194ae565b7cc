package statement

import (
	"fmt"
	"strings"
	"time"

	"sluice/store"
)

// KeyColumns are the columns of a key, in the order in which they are read.
const KeyColumns = `id, name, tenant, display, hash, models, created_at, updated_at, expires_at, revoked_at, limits, replaced`

// The reading and changing of keys.
const (
	ListKeys         = `SELECT ` + KeyColumns + ` FROM api_keys ORDER BY created_at, id`
	KeysChangedSince = `SELECT ` + KeyColumns + ` FROM api_keys WHERE updated_at >= $1 ORDER BY updated_at, id`

	// KeyByHash takes the hash of a secret, the key's own or a replaced one.
	KeyByHash = `SELECT ` + KeyColumns + ` FROM api_keys WHERE id = (SELECT id FROM api_keys WHERE hash = $1
		UNION ALL SELECT key_id FROM api_key_replaced WHERE hash = $1 LIMIT 1)`

	// FindKey takes an id or a name.
	FindKey = `SELECT ` + KeyColumns + ` FROM api_keys WHERE id = $1 OR name = $1
		ORDER BY (id = $1) DESC, (revoked_at IS NULL) DESC, revoked_at DESC LIMIT 1`

	// WriteKey takes the id and what of a key can change.
	WriteKey = `UPDATE api_keys SET name = $2, display = $3, hash = $4, models = $5, updated_at = $6,
		expires_at = $7, revoked_at = $8, limits = $9, replaced = $10 WHERE id = $1`

	// HashTaken says whether a secret of that hash is any key's.
	HashTaken = `SELECT EXISTS (SELECT 1 FROM api_keys WHERE hash = $1) OR EXISTS (SELECT 1 FROM api_key_replaced WHERE hash = $1)`

	// ForgetReplaced takes a key's id, KeepReplaced a hash and a key's id.
	ForgetReplaced = `DELETE FROM api_key_replaced WHERE key_id = $1`
	KeepReplaced   = `INSERT INTO api_key_replaced (hash, key_id) VALUES ($1, $2)`
)

// conditions gathers the conditions of a query, numbered as its arguments are. Only those
// are named that a filter has, so that the database plans for them and finds the index
// that serves them.
type conditions struct {
	texts []string
	args  []any
}

// where adds a condition, in which each ? stands for the next of the values.
func (c *conditions) where(condition string, values ...any) {
	for _, v := range values {
		c.args = append(c.args, v)
		condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(c.args)), 1)
	}
	c.texts = append(c.texts, condition)
}

// query returns the statement that selects what meets the conditions.
func (c *conditions) query(columns, table, order string, limit int) (string, []any) {
	c.args = append(c.args, limit)
	return fmt.Sprintf("SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT $%d",
		columns, table, strings.Join(append([]string{"true"}, c.texts...), " AND "), order, len(c.args)), c.args
}

// FindKeys reads the keys that the clean filter selects. stamp encodes a time.
func FindKeys(f store.KeyFilter, stamp func(time.Time) any) (query string, args []any) {
	var c conditions
	if f.Tenant != "" {
		c.where("tenant = ?", f.Tenant)
	}
	switch f.State {
	case store.KeyActive:
		c.where("revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)", stamp(f.Now))
	case store.KeyExpired:
		c.where("revoked_at IS NULL AND expires_at <= ?", stamp(f.Now))
	case store.KeyRevoked:
		c.where("revoked_at IS NOT NULL")
	}
	if f.After != "" {
		c.where("(created_at, id) > (SELECT created_at, id FROM api_keys WHERE id = ?)", f.After)
	}
	return c.query(KeyColumns, "api_keys", "created_at, id", f.Limit)
}

// KeyExists takes an id.
const KeyExists = `SELECT EXISTS (SELECT 1 FROM api_keys WHERE id = $1)`
