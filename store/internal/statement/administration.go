package statement

import (
	"time"

	"sluice/store"
)

// TenantColumns are the columns of a tenant, in the order in which they are written and
// read.
const TenantColumns = `name, limits, disabled, created_at, updated_at, deleted_at`

// The reading and changing of tenants.
const (
	GetTenant           = `SELECT ` + TenantColumns + ` FROM tenants WHERE name = $1`
	ListTenants         = `SELECT ` + TenantColumns + ` FROM tenants WHERE name > $1 AND deleted_at IS NULL ORDER BY name LIMIT $2`
	TenantsChangedSince = `SELECT ` + TenantColumns + ` FROM tenants WHERE updated_at >= $1 ORDER BY updated_at, name`
	CountTenants        = `SELECT count(*) FROM tenants WHERE deleted_at IS NULL`
	PutTenant           = `INSERT INTO tenants (` + TenantColumns + `) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (name) DO UPDATE SET limits = excluded.limits, disabled = excluded.disabled,
			created_at = excluded.created_at, updated_at = excluded.updated_at, deleted_at = excluded.deleted_at`
)

// AuditColumns are the columns of an entry of the audit, in the order in which they are
// written and read.
const AuditColumns = `id, at, actor, request_id, action, target, before, after`

// AppendAudit takes the values of AuditColumns, AuditExists an id.
const (
	AppendAudit = `INSERT INTO audit_log (` + AuditColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	AuditExists = `SELECT EXISTS (SELECT 1 FROM audit_log WHERE id = $1)`
)

// ListAudit reads the entries that the clean filter selects. stamp encodes a time.
func ListAudit(f store.AuditFilter, stamp func(time.Time) any) (query string, args []any) {
	var c conditions
	for _, equal := range []struct{ column, value string }{{"actor", f.Actor}, {"action", f.Action}, {"target", f.Target}} {
		if equal.value != "" {
			c.where(equal.column+" = ?", equal.value)
		}
	}
	if !f.From.IsZero() {
		c.where("at >= ?", stamp(f.From))
	}
	if !f.To.IsZero() {
		c.where("at < ?", stamp(f.To))
	}
	if f.After != "" {
		c.where("(at, id) < (SELECT at, id FROM audit_log WHERE id = ?)", f.After)
	}
	return c.query(AuditColumns, "audit_log", "at DESC, id DESC", f.Limit)
}

// AuditArgs returns the values of a clean entry for AppendAudit. stamp encodes a time.
func AuditArgs(e store.AuditEntry, stamp func(time.Time) any) []any {
	return []any{e.ID, stamp(e.At), e.Actor, e.RequestID, e.Action, e.Target, textOrNull(e.Before), textOrNull(e.After)}
}

func textOrNull(text []byte) *string {
	if text == nil {
		return nil
	}
	s := string(text)
	return &s
}
