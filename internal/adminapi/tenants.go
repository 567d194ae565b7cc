package adminapi

import (
	"time"

	"sluice/internal/limits"
)

// TenantsPath is where an ingress is asked about tenants, and below it by their names. GET
// it for a TenantList, by name; the query's limit and after say which are wanted.
const TenantsPath = "/admin/v1/tenants"

// Tenant is what is remembered of a tenant.
type Tenant struct {
	Name      string         `json:"name"`
	Limits    *limits.Limits `json:"limits"`   // of all its keys together; null: those of tenants without
	Disabled  bool           `json:"disabled"` // whether all its keys are refused
	CreatedAt time.Time      `json:"created_at"`
	UpdatedAt time.Time      `json:"updated_at"`
}

// TenantList is a page of tenants.
type TenantList struct {
	Tenants []Tenant `json:"tenants"`
	Page
}

// PutTenant says what is to be remembered of a tenant, whether there is something yet or
// not. The answer is a Tenant.
type PutTenant struct {
	Limits    Field[limits.Limits] `json:"limits,omitzero"` // null: those of tenants without
	Disabled  bool                 `json:"disabled,omitempty"`
	UpdatedAt *time.Time           `json:"updated_at,omitempty"` // as in UpdateKey
}

// UpdateTenant changes a tenant, by PATCH: what is not given stays.
type UpdateTenant struct {
	Limits    Field[limits.Limits] `json:"limits,omitzero"` // null: those of tenants without
	Disabled  *bool                `json:"disabled,omitempty"`
	UpdatedAt *time.Time           `json:"updated_at,omitempty"` // as in UpdateKey
}
