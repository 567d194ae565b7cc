package ingress

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/routing"
	"sluice/internal/token"
	"sluice/internal/webhook"
	"sluice/store"
)

// rotated puts the key into the table as rotations have left it.
func (k *keyTable) rotated(key store.Key, secret string, replaced ...store.Replaced) {
	key.Replaced = replaced
	k.put(secret, key)
	k.mu.Lock()
	defer k.mu.Unlock()
	key.Hash = apikey.Hash(secret)
	for _, r := range replaced {
		k.keys[r.Hash] = key
	}
}

func messageOf(err error) string { return inference.AsError(err).Message }

// An ingress that knows a key hears of its rotation, has both secrets open it, and refuses
// the old one once the overlap has ended, though nothing changes in the database then.
func TestARotationIsSeenWithinSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		db := &keyTable{}
		first, second, third := apikey.Mint(), apikey.Mint(), apikey.Mint()
		key := store.Key{ID: "k1", Limits: &limits.Limits{Queued: 1}}
		db.put(first, key)
		k := ringOf(db, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { k.run(ctx) })
		_, err := k.authenticate(asking(first))
		require.NoError(t, err)

		key.Limits = &limits.Limits{Queued: 2}
		db.rotated(key, second, store.Replaced{Hash: apikey.Hash(first), Until: time.Now().Add(time.Minute)})
		time.Sleep(2 * keysPoll)
		for _, secret := range []string{first, second} {
			got, err := k.authenticate(asking(secret))
			require.NoError(t, err)
			require.Equal(t, "k1", got.ID, "it is the same key")
			require.Equal(t, int64(2), got.Limits.Queued, "with the limits that it has now")
		}
		time.Sleep(time.Minute)
		_, err = k.authenticate(asking(first))
		require.Equal(t, inference.CodeUnauthenticated, codeOf(err))
		require.Contains(t, messageOf(err), "was rotated")
		_, err = k.authenticate(asking(second))
		require.NoError(t, err)

		// The key has forgotten its first secret; who has it in memory must not let it in.
		db.rotated(key, third, store.Replaced{Hash: apikey.Hash(second), Until: time.Now().Add(time.Minute)})
		time.Sleep(2 * keysPoll)
		_, err = k.authenticate(asking(first))
		require.Contains(t, messageOf(err), "was rotated")

		key.RevokedAt = time.Now()
		db.rotated(key, third, store.Replaced{Hash: apikey.Hash(second), Until: time.Now().Add(time.Hour)})
		time.Sleep(2 * keysPoll)
		for _, secret := range []string{second, third} {
			_, err = k.authenticate(asking(secret))
			require.Contains(t, messageOf(err), "revoked", "whichever secret it is shown with")
		}
		cancel()
		loop.Wait()
	})
}

// tenantTable is a database of tenants that can be down.
type tenantTable struct {
	mu      sync.Mutex
	changed []store.Tenant
	asked   []time.Time
	err     error
}

func (t *tenantTable) TenantsChangedSince(_ context.Context, since time.Time) ([]store.Tenant, time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = append(t.asked, since)
	if t.err != nil {
		return nil, time.Time{}, t.err
	}
	changed := t.changed
	t.changed = nil
	return changed, time.Unix(int64(len(t.asked)), 0), nil
}

func (t *tenantTable) set(err error, changed ...store.Tenant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err, t.changed = err, changed
}

func TestTenantsAreKnownAndKeptCurrent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bounds := &limits.Limits{Concurrent: 3}
		db := &tenantTable{changed: []store.Tenant{{Name: "acme", Limits: bounds}, {Name: "closed", Disabled: true}}}
		s := &Ingress{tenants: newTenants(db, discard())}
		s.keys = newKeyring(&keyTable{}, discard())
		s.settings.Store(&Settings{callers: newCallers([]store.Key{
			{ID: "a", Tenant: "acme", Hash: sha256.Sum256([]byte("a-secret"))}, {ID: "c", Tenant: "closed", Hash: sha256.Sum256([]byte("c-secret"))},
		}, token.Trusted{})})
		s.keys.tenants = s.tenants
		ctx, cancel := context.WithCancel(t.Context())
		var loops sync.WaitGroup
		s.tenants.start(ctx, &loops)
		require.Equal(t, bounds, s.tenantLimits("acme"), "from the first request on")
		require.Nil(t, s.tenantLimits("nobody"))
		_, err := s.authenticate(asking("c-secret"))
		require.Equal(t, inference.CodeTenantDisabled, codeOf(err))
		require.Equal(t, http.StatusForbidden, statusOf(inference.AsError(err)))
		_, err = s.authenticate(asking("a-secret"))
		require.NoError(t, err)

		db.set(errors.New("down"))
		time.Sleep(3 * keysPoll)
		require.Equal(t, bounds, s.tenantLimits("acme"), "who is known stays known")
		db.set(nil, store.Tenant{Name: "acme", Disabled: true}, store.Tenant{Name: "closed", DeletedAt: time.Now()})
		time.Sleep(2 * keysPoll)
		require.Nil(t, s.tenantLimits("acme"))
		_, err = s.authenticate(asking("a-secret"))
		require.Equal(t, inference.CodeTenantDisabled, codeOf(err))
		_, err = s.authenticate(asking("c-secret"))
		require.NoError(t, err)
		cancel()
		loops.Wait()
		require.True(t, db.asked[0].IsZero(), "everything at first")
		require.Equal(t, time.Unix(1, 0), db.asked[1], "and then what has changed")
	})
}

func TestAnIngressWithoutTenantsRefusesNone(t *testing.T) {
	t.Parallel()
	s := &Ingress{tenants: newTenants(nil, discard())}
	require.Nil(t, s.tenantLimits("acme"))
	require.NoError(t, s.tenants.admits("acme"))
	var loops sync.WaitGroup
	s.tenants.start(t.Context(), &loops)
	loops.Wait()
}

func TestOperatorsAreToldApart(t *testing.T) {
	t.Parallel()
	r, _ := hookAdmin(t)
	s := ingressOf(nil, routing.Policy{})
	s.hooks, s.opt.Webhooks, s.opt.Admin, s.log = r.hooks, r.hooks.opt, r.db, discard()
	h := checked(t, s.AdminHandler(adminToken, Operator{Name: "on-call", Token: "on-call-token-0123456789"},
		Operator{Name: "dashboards", Token: "dashboards-token-0123456789", Viewer: true}, Operator{Name: "nobody"}))
	const hook = `{"tenant":"acme","url":"https://example.com/in?token=hidden"}`
	for _, c := range []struct {
		token, method, path, body string
		status                    int
	}{
		{adminToken, "POST", "/admin/v1/webhooks", hook, 200},
		{"on-call-token-0123456789", "POST", "/admin/v1/webhooks", hook, 200},
		{"on-call-token-0123456789", "GET", "/admin/v1/keys", "", 200},
		{"dashboards-token-0123456789", "GET", "/admin/v1/keys", "", 200},
		{"dashboards-token-0123456789", "HEAD", "/admin/v1/keys", "", 200},
		{"dashboards-token-0123456789", "HEAD", "/admin/v1/dead-letters/dead_1?body=true", "", 403},
		{"dashboards-token-0123456789", "POST", "/admin/v1/webhooks", hook, 403},
		{"dashboards-token-0123456789", "POST", "/admin/v1/route/explain", `{"model":"m"}`, 200},
		{"dashboards-token-0123456789", "DELETE", "/admin/v1/keys/x", "", 403},
		{"dashboards-token-0123456789", "PATCH", "/admin/v1/keys/x", "", 403},
		{"dashboards-token-0123456789", "PUT", "/admin/v1/tenants/x", "", 403},
		{"dashboards-token-0123456789", "POST", "/admin/v1/webhooks/secret", `{"tenant":"acme"}`, 403},
		{"dashboards-token", "GET", "/admin/v1/keys", "", 401},
		{"", "GET", "/admin/v1/keys", "", 401},
		{strings.Repeat("x", 10_000), "GET", "/admin/v1/keys", "", 401},
	} {
		w := ask(h, c.method, c.path, "Bearer "+c.token, c.body)
		require.Equal(t, c.status, w.Code, "%v: %s", c, w.Body)
	}
	require.Equal(t, http.StatusUnauthorized, ask(h, http.MethodGet, "/admin/v1/keys", "Basic "+adminToken, "").Code)
	entries, err := r.db.ListAudit(t.Context(), store.AuditFilter{})
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, []string{"on-call", "admin"}, []string{entries[0].Actor, entries[1].Actor})
	require.NotEmpty(t, entries[0].RequestID)
	require.Contains(t, string(entries[0].After), `"https://example.com"`)
	require.NotContains(t, string(entries[0].After), "hidden")
	require.Contains(t, ask(h, http.MethodDelete, "/admin/v1/tenants", "Bearer "+adminToken, "").Header().Get("Allow"), "GET")
	require.Equal(t, "DELETE, GET, PATCH", ask(h, http.MethodPost, "/admin/v1/keys/x", "Bearer "+adminToken, "").Header().Get("Allow"))
}

// unwritten is a database that takes nothing into its audit.
type unwritten struct{ store.Store }

func (unwritten) AppendAudit(context.Context, store.AuditEntry) error { return errors.New("disk full") }

func TestNothingIsChangedThatTheAuditDoesNotKnowOf(t *testing.T) {
	t.Parallel()
	r, _ := hookAdmin(t)
	w := r.endpoint()
	e := store.NewEvent("acme", webhook.JobFailed, "job_1")
	_, err := r.db.AppendEvent(t.Context(), e)
	require.NoError(t, err)
	s := ingressOf(nil, routing.Policy{})
	s.hooks, s.opt.Webhooks, s.opt.Admin = r.hooks, r.hooks.opt, unwritten{r.db}
	h := admin(t, s, adminToken)
	for path, body := range map[string]string{
		"":                     `{"tenant":"acme","url":"https://example.com/in"}`,
		"/" + w.ID + "/rotate": ``,
		"/" + w.ID + "/enable": ``,
		"/redeliver":           `{"event":"` + e.ID + `","webhook":"` + w.ID + `"}`,
		"/secret":              `{"tenant":"acme","rotate":true}`,
	} {
		got := ask(h, http.MethodPost, "/admin/v1/webhooks"+path, "Bearer "+adminToken, body)
		require.Equal(t, http.StatusInternalServerError, got.Code, path)
		require.NotContains(t, got.Body.String(), "disk full")
	}
	require.Equal(t, http.StatusInternalServerError, ask(h, http.MethodDelete, "/admin/v1/webhooks/"+w.ID, "Bearer "+adminToken, "").Code)
	hooks, err := r.db.ListWebhooks(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, []store.Webhook{w}, hooks)
}
