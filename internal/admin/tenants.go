package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/store"
)

func (a *API) registerTenants(r *mux.Router) {
	one := adminapi.TenantsPath + "/{tenant:.+}"
	r.HandleFunc(adminapi.TenantsPath, a.listTenants).Methods(http.MethodGet)
	r.HandleFunc(one, a.getTenant).Methods(http.MethodGet)
	r.HandleFunc(one, a.putTenant).Methods(http.MethodPut)
	r.HandleFunc(one, a.updateTenant).Methods(http.MethodPatch)
	r.HandleFunc(one, a.deleteTenant).Methods(http.MethodDelete)
}

func (a *API) listTenants(w http.ResponseWriter, r *http.Request) {
	q := queryOf(r)
	limit, after := q.limit(), q.text("after")
	err := q.err
	var tenants []store.Tenant
	if err == nil {
		tenants, err = a.opt.Store.ListTenants(r.Context(), after, limit+1)
	}
	if err != nil {
		a.opt.Fail(w, r, err)
		return
	}
	list := adminapi.TenantList{Tenants: []adminapi.Tenant{}}
	tenants, list.Page = pageOf(tenants, limit, func(t store.Tenant) string { return t.Name })
	for _, t := range tenants {
		list.Tenants = append(list.Tenants, shownTenant(t))
	}
	a.write(w, r, http.StatusOK, list)
}

func (a *API) getTenant(w http.ResponseWriter, r *http.Request) {
	t, err := a.opt.Store.GetTenant(r.Context(), mux.Vars(r)["tenant"])
	a.answerTenant(w, r, t, err)
}

func (a *API) answerTenant(w http.ResponseWriter, r *http.Request, t store.Tenant, err error) {
	if err != nil {
		a.opt.Fail(w, r, tenantError(err))
		return
	}
	a.write(w, r, http.StatusOK, shownTenant(t))
}

func (a *API) putTenant(w http.ResponseWriter, r *http.Request) {
	var req adminapi.PutTenant
	err := Read(w, r, &req)
	t := store.Tenant{Name: mux.Vars(r)["tenant"], Limits: req.Limits.Value, Disabled: req.Disabled}
	if req.UpdatedAt != nil {
		t.UpdatedAt = *req.UpdatedAt
	}
	if err == nil {
		err = a.checkTenant(r.Context(), t)
	}
	if err == nil {
		t, err = a.opt.Store.PutTenant(r.Context(), t, a.by(r))
	}
	a.answerTenant(w, r, t, err)
}

func (a *API) updateTenant(w http.ResponseWriter, r *http.Request) {
	var req adminapi.UpdateTenant
	if err := Read(w, r, &req); err != nil {
		a.opt.Fail(w, r, err)
		return
	}
	var t store.Tenant
	err := store.ErrConflict
	for range updateTries {
		if !errors.Is(err, store.ErrConflict) {
			break
		}
		if t, err = a.opt.Store.GetTenant(r.Context(), mux.Vars(r)["tenant"]); err != nil {
			break
		}
		if req.UpdatedAt != nil && !req.UpdatedAt.Equal(t.UpdatedAt) {
			err = inference.Errorf(inference.CodeConflict, "The tenant has changed since: its updated_at is %s.", t.UpdatedAt.Format(time.RFC3339Nano))
			break
		}
		if req.Limits.Given {
			t.Limits = req.Limits.Value
		}
		if req.Disabled != nil {
			t.Disabled = *req.Disabled
		}
		if err = tenantFault(t); err == nil {
			t, err = a.opt.Store.PutTenant(r.Context(), t, a.by(r))
		}
	}
	a.answerTenant(w, r, t, err)
}

func (a *API) deleteTenant(w http.ResponseWriter, r *http.Request) {
	err := a.opt.Store.DeleteTenant(r.Context(), mux.Vars(r)["tenant"], a.by(r))
	if errors.Is(err, store.ErrConflict) {
		err = inference.Errorf(inference.CodeConflict, "The tenant is disabled. Were it forgotten, its callers would be let in again: if they are to be, enable it first.")
	}
	if err != nil {
		a.opt.Fail(w, r, tenantError(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// checkTenant returns what is wrong with a tenant that is put. One that is there may be called
// as no new one may.
func (a *API) checkTenant(ctx context.Context, t store.Tenant) error {
	wrong := checkName("tenant", "The tenant's name", t.Name)
	if wrong == nil {
		return tenantFault(t)
	}
	_, err := a.opt.Store.GetTenant(ctx, t.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return wrong
	case err != nil:
		return err
	}
	return tenantFault(t)
}

// tenantFault names the field of a tenant that cannot be stored.
func tenantFault(t store.Tenant) error {
	// A key of the tenant with these limits has the same faults, each by its field.
	faults := (store.Key{ID: "key", Name: "key", Tenant: t.Name, Limits: t.Limits}).Faults()
	switch {
	case len(faults) == 0:
		return nil
	case faults[0].Field == "tenant":
		return invalid("tenant", "The tenant's name %s.", faults[0].Problem)
	}
	return invalid(faults[0].Field, "tenant %s %s.", faults[0].Field, faults[0].Problem)
}

// tenantError is an error of the store as it is answered.
func tenantError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return inference.Errorf(inference.CodeNotFound, "Nothing is remembered of a tenant of this name.")
	case errors.Is(err, store.ErrConflict):
		return inference.Errorf(inference.CodeConflict, "The tenant has changed since it was looked at.")
	case errors.Is(err, store.ErrTooMany):
		return inference.Errorf(inference.CodeConflict, "There are %d tenants, as many as there may be.", store.MaxTenants)
	}
	return err
}

func shownTenant(t store.Tenant) adminapi.Tenant {
	return adminapi.Tenant{Name: t.Name, Limits: t.Limits, Disabled: t.Disabled, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt}
}
