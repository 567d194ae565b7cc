package ingress

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

// TenantStore is what the ingress needs of the database to know its callers' tenants.
type TenantStore interface {
	TenantsChangedSince(ctx context.Context, since time.Time) ([]store.Tenant, time.Time, error)
}

// tenants knows what the database remembers of tenants. All of them are in memory, and the
// database is asked every second which have changed, as for keys.
type tenants struct {
	store TenantStore
	log   *slog.Logger
	since time.Time // of run alone, once it runs

	mu    sync.RWMutex
	known map[string]store.Tenant
}

// newTenants returns nil, of which nothing is known, if there is no store.
func newTenants(db TenantStore, log *slog.Logger) *tenants {
	if db == nil {
		return nil
	}
	return &tenants{store: db, log: log, known: make(map[string]store.Tenant)}
}

// get returns what is known of the tenant; nothing is known of most.
func (t *tenants) get(name string) store.Tenant {
	if t == nil {
		return store.Tenant{}
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.known[name]
}

// admits returns an error if the tenant's keys are refused.
func (t *tenants) admits(name string) error {
	if t.get(name).Disabled {
		return inference.Errorf(inference.CodeTenantDisabled, "The tenant of this API key or token is disabled.")
	}
	return nil
}

// tenantLimits returns the limits that the database has for the tenant, or nil.
func (s *Ingress) tenantLimits(name string) *limits.Limits { return s.tenants.get(name).Limits }

// load asks the database for what has changed since it was asked last.
func (t *tenants) load(ctx context.Context) error {
	changed, next, err := t.store.TenantsChangedSince(ctx, t.since)
	if err != nil {
		return err
	}
	t.since = next
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tenant := range changed {
		if tenant.DeletedAt.IsZero() {
			t.known[tenant.Name] = tenant
		} else {
			delete(t.known, tenant.Name)
		}
	}
	return nil
}

// run keeps what is known current until ctx ends.
func (t *tenants) run(ctx context.Context) {
	tick := time.NewTicker(keysPoll)
	defer tick.Stop()
	failing := false
	for {
		err := t.load(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			t.log.Warn("changes of tenants are not seen", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tenantsWait bounds how long a starting ingress waits to know its tenants.
const tenantsWait = 5 * time.Second

// start loads what is known before the first request, so that no disabled tenant slips in;
// run goes on trying if the database is down.
func (t *tenants) start(ctx context.Context, loops *sync.WaitGroup) {
	if t == nil {
		return
	}
	first, cancel := context.WithTimeout(ctx, tenantsWait)
	defer cancel()
	if err := t.load(first); err != nil {
		t.log.Warn("tenants are not known yet", "error", err)
	}
	loops.Go(func() { t.run(ctx) })
}
