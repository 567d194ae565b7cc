package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// PutTenant implements store.Tenants.
func (s *Store) PutTenant(ctx context.Context, tenant store.Tenant, by store.Change) (stored store.Tenant, err error) {
	err = s.changeTenant(ctx, tenant.Name, by, func(ctx context.Context, tx *sql.Tx, old *store.Tenant, now time.Time) (*store.Tenant, error) {
		var err error
		if stored, err = tenant.Put(old, now); err != nil {
			return nil, err
		}
		if old == nil || !old.DeletedAt.IsZero() {
			count, err := oneRow(ctx, tx, scanInt, statement.CountTenants)
			if err == nil && count >= store.MaxTenants {
				err = store.ErrTooMany
			}
			if err != nil {
				return nil, err
			}
		}
		return &stored, nil
	})
	if err != nil {
		return store.Tenant{}, fmt.Errorf("put tenant: %w", err)
	}
	return stored, nil
}

// GetTenant implements store.Tenants.
func (s *Store) GetTenant(ctx context.Context, name string) (store.Tenant, error) {
	name = store.CleanText(name)
	tenants, err := query(ctx, s.reader, scanTenant, statement.GetTenant, name)
	if err == nil && (len(tenants) == 0 || !tenants[0].DeletedAt.IsZero()) {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Tenant{}, fmt.Errorf("look up tenant %q: %w", name, err)
	}
	return tenants[0], nil
}

// ListTenants implements store.Tenants.
func (s *Store) ListTenants(ctx context.Context, after string, limit int) ([]store.Tenant, error) {
	tenants, err := query(ctx, s.reader, scanTenant, statement.ListTenants, store.CleanText(after), limit)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	return tenants, nil
}

// DeleteTenant implements store.Tenants.
func (s *Store) DeleteTenant(ctx context.Context, name string, by store.Change) error {
	err := s.changeTenant(ctx, name, by, func(_ context.Context, _ *sql.Tx, old *store.Tenant, _ time.Time) (*store.Tenant, error) {
		if old == nil || !old.DeletedAt.IsZero() {
			return nil, store.ErrNotFound
		}
		if old.Disabled {
			return nil, fmt.Errorf("tenant is disabled: %w", store.ErrConflict)
		}
		return nil, nil //nolint:nilnil // nothing is what is left of it
	})
	if err != nil {
		return fmt.Errorf("delete tenant: %w", err)
	}
	return nil
}

// changeTenant brings a tenant from one state to the next, with its entry of the audit.
// change returns nil for one that is to be deleted.
func (s *Store) changeTenant(
	ctx context.Context, name string, by store.Change,
	change func(context.Context, *sql.Tx, *store.Tenant, time.Time) (*store.Tenant, error),
) error {
	by, err := by.Clean()
	if err != nil {
		return err
	}
	name = store.CleanText(name)
	return s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		var before *store.Tenant
		old, err := oneRow(ctx, tx, scanTenant, statement.GetTenant, name)
		switch {
		case err == nil:
			before = &old
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		now := store.Later(time.Now(), old.UpdatedAt)
		after, err := change(ctx, tx, before, now)
		if err != nil {
			return err
		}
		kept := store.Tenant{Name: name, CreatedAt: old.CreatedAt, UpdatedAt: now, DeletedAt: now}
		if after != nil {
			kept = *after
		}
		limits, err := store.EncodeLimits(kept.Limits)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, statement.PutTenant, kept.Name, limits, kept.Disabled,
			micros(kept.CreatedAt), micros(kept.UpdatedAt), nullMicros(kept.DeletedAt)); err != nil {
			return err
		}
		entry, err := by.TenantEntry(name, before, after)
		if err != nil {
			return err
		}
		return appendEntry(ctx, tx, entry)
	})
}

// TenantsChangedSince implements store.Tenants, as KeysChangedSince does for keys.
func (s *Store) TenantsChangedSince(
	ctx context.Context, since time.Time,
) (tenants []store.Tenant, next time.Time, err error) {
	now := time.Now() // before the look: what commits in between is seen, or seen again
	tenants, err = query(ctx, s.reader, scanTenant, statement.TenantsChangedSince, micros(since))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("list changed tenants: %w", err)
	}
	return tenants, settledBefore(now), nil
}

func scanInt(rows *sql.Rows) (value int, err error) { return value, rows.Scan(&value) }

func scanTenant(row *sql.Rows) (store.Tenant, error) {
	var (
		t                store.Tenant
		limits           *string
		created, updated int64
		deleted          sql.NullInt64
	)
	err := row.Scan(&t.Name, &limits, &t.Disabled, &created, &updated, &deleted)
	if err != nil {
		return store.Tenant{}, err
	}
	if t.Limits, err = store.DecodeLimits(limits); err != nil {
		return store.Tenant{}, fmt.Errorf("tenant %s: %w", t.Name, err)
	}
	t.CreatedAt, t.UpdatedAt, t.DeletedAt = fromMicros(created), fromMicros(updated), fromNullMicros(deleted)
	return t, nil
}

// AppendAudit implements store.Audit.
func (s *Store) AppendAudit(ctx context.Context, entry store.AuditEntry) error {
	err := s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error { return appendEntry(ctx, tx, entry) })
	if err != nil {
		return fmt.Errorf("append audit of %s: %w", entry.Target, err)
	}
	return nil
}

// ListAudit implements store.Audit.
func (s *Store) ListAudit(ctx context.Context, filter store.AuditFilter) ([]store.AuditEntry, error) {
	filter = filter.Clean()
	text, args := statement.ListAudit(filter, stamp)
	entries, err := query(ctx, s.reader, scanEntry, text, args...)
	if err == nil && len(entries) == 0 {
		err = s.requirePlace(ctx, statement.AuditExists, filter.After)
	}
	if err != nil {
		return nil, fmt.Errorf("list audit: %w", err)
	}
	return entries, nil
}

func scanEntry(row *sql.Rows) (store.AuditEntry, error) {
	var (
		e             store.AuditEntry
		at            int64
		before, after *string
	)
	if err := row.Scan(&e.ID, &at, &e.Actor, &e.RequestID, &e.Action, &e.Target, &before, &after); err != nil {
		return store.AuditEntry{}, err
	}
	e.At = fromMicros(at)
	for _, side := range []struct {
		from *string
		into *json.RawMessage
	}{{before, &e.Before}, {after, &e.After}} {
		if side.from != nil {
			*side.into = json.RawMessage(*side.from)
		}
	}
	return e, nil
}
