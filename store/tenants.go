package store

import (
	"context"
	"fmt"
	"time"

	"sluice/internal/limits"
)

// MaxTenants bounds the tenants of which something is remembered: every ingress has all
// of them in memory.
const MaxTenants = 10_000

// Tenant is what is remembered of a tenant. A tenant of which nothing is needs no row: a
// key names any tenant it likes.
type Tenant struct {
	Name string

	// Limits are what all keys of the tenant together may take; nil: what the ingress has
	// for tenants without.
	Limits *limits.Limits

	// Disabled has every key of the tenant refused.
	Disabled bool

	CreatedAt time.Time
	UpdatedAt time.Time // the last change, on the database's clock
	DeletedAt time.Time // zero: it is there
}

// Validate returns an ErrInvalid that says what is wrong with the tenant, if it cannot be
// stored.
func (t Tenant) Validate() error {
	if err := checkRequired("tenant", "name", t.Name); err != nil {
		return err
	}
	if problem := checkLimits(t.Limits); problem != "" {
		return fmt.Errorf("tenant limits: %s: %w", problem, ErrInvalid)
	}
	return nil
}

// Put returns the tenant as it is stored in the place of old, which is nil when nothing
// was ever stored. Errors: ErrInvalid, and ErrConflict if the tenant's UpdatedAt is not
// zero and not that of old.
func (t Tenant) Put(old *Tenant, now time.Time) (Tenant, error) {
	there := old != nil && old.DeletedAt.IsZero()
	if !t.UpdatedAt.IsZero() && (!there || !old.UpdatedAt.Equal(t.UpdatedAt)) {
		return Tenant{}, fmt.Errorf("tenant has changed: %w", ErrConflict)
	}
	t.CreatedAt, t.UpdatedAt, t.DeletedAt = now, now, time.Time{}
	if there {
		t.CreatedAt = old.CreatedAt
	}
	return t, t.Validate()
}

// Tenants is the part of the store that remembers tenants. What changes one writes an
// entry of the audit with it.
type Tenants interface {
	// PutTenant stores the tenant, or what has become of it, and returns it as stored. One
	// whose UpdatedAt is not zero must be stored as of then. Errors: ErrInvalid,
	// ErrConflict, ErrTooMany.
	PutTenant(ctx context.Context, tenant Tenant, by Change) (Tenant, error)

	// GetTenant returns the tenant. Errors: ErrNotFound.
	GetTenant(ctx context.Context, name string) (Tenant, error)

	// ListTenants returns as many tenants as limit says by name, the first of them behind
	// after.
	ListTenants(ctx context.Context, after string, limit int) ([]Tenant, error)

	// DeleteTenant forgets what is remembered of the tenant; its keys stay. Errors:
	// ErrNotFound, and ErrConflict if it is disabled: its callers would be let in again, and
	// not all of them are known to the database.
	DeleteTenant(ctx context.Context, name string, by Change) error

	// TenantsChangedSince is KeysChangedSince for tenants, deleted ones too.
	TenantsChangedSince(ctx context.Context, since time.Time) (tenants []Tenant, next time.Time, err error)
}

// tenantAudit is a tenant as the audit shows it.
type tenantAudit struct {
	Limits   *limits.Limits `json:"limits,omitempty"`
	Disabled bool           `json:"disabled"`
}

func auditedTenant(t *Tenant) any {
	if t == nil || !t.DeletedAt.IsZero() {
		return nil
	}
	return tenantAudit{t.Limits, t.Disabled}
}

// TenantEntry returns the entry about a change of a tenant. before is nil, or was deleted,
// for a new one; after is nil for one that is deleted.
func (c Change) TenantEntry(name string, before, after *Tenant) (AuditEntry, error) {
	action := "tenant.update"
	switch {
	case after == nil:
		action = "tenant.delete"
	case auditedTenant(before) == nil:
		action = "tenant.create"
	}
	return c.Entry(action, "tenant:"+name, auditedTenant(before), auditedTenant(after))
}
