package storetest

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/webhook"
	"sluice/store"
)

const manyWebhooks = 100

// newWebhook returns an endpoint of the tenant acme that can be stored.
func newWebhook(events ...string) store.Webhook {
	return store.Webhook{ID: webhook.NewEndpointID(), Tenant: "acme", URL: "https://hooks.example.com/in?token=t", Events: events}
}

// addWebhook stores an endpoint and returns it with its secret.
func addWebhook(t *testing.T, s store.Store, w store.Webhook) (store.Webhook, webhook.Secret) {
	t.Helper()
	secret := webhook.NewSecret()
	made, err := s.CreateWebhook(t.Context(), w, secret, manyWebhooks)
	require.NoError(t, err)
	return made, secret
}

var webhookTests = map[string]func(*testing.T, Open){
	"an endpoint comes back as it was stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w := newWebhook(webhook.BatchCompleted, webhook.JobFailed)
		w.Tenant = "北京 'quoted'"
		made, _ := addWebhook(t, s, w)
		require.WithinDuration(t, time.Now(), made.CreatedAt, clockSlack)
		require.Equal(t, time.UTC, made.CreatedAt.Location())
		w.CreatedAt = made.CreatedAt
		require.Equal(t, w, made)
		got, err := s.Webhook(t.Context(), w.ID)
		require.NoError(t, err)
		require.Equal(t, w, got)
		_, err = s.CreateWebhook(t.Context(), w, webhook.NewSecret(), manyWebhooks)
		require.ErrorIs(t, err, store.ErrDuplicate)
	},

	"an endpoint that cannot be stored is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, change := range []func(*store.Webhook){
			func(w *store.Webhook) { w.ID = "" },
			func(w *store.Webhook) { w.Tenant = "" },
			func(w *store.Webhook) { w.Tenant = "nul\x00" },
			func(w *store.Webhook) { w.URL = "" },
			func(w *store.Webhook) { w.URL = "ftp://example.com" },
			func(w *store.Webhook) { w.URL = "https://me:secret@example.com" },
			func(w *store.Webhook) { w.URL = "https://example.com/" + strings.Repeat("x", webhook.MaxURLBytes) },
			func(w *store.Webhook) { w.Events = []string{"batch.done"} },
			func(w *store.Webhook) { w.Events = []string{webhook.Test} },
			func(w *store.Webhook) { w.Events = []string{webhook.JobFailed, webhook.JobFailed} },
		} {
			w := newWebhook()
			change(&w)
			_, err := s.CreateWebhook(t.Context(), w, webhook.NewSecret(), manyWebhooks)
			require.ErrorIs(t, err, store.ErrInvalid)
			require.NotContains(t, err.Error(), "secret@")
		}
		_, err := s.CreateWebhook(t.Context(), newWebhook(), "whsec_short", manyWebhooks)
		require.ErrorIs(t, err, store.ErrInvalid)
		require.NotContains(t, err.Error(), "short")
		hooks, err := s.ListWebhooks(t.Context(), "")
		require.NoError(t, err)
		require.Empty(t, hooks)
	},

	"a tenant has so many endpoints and no more": func(t *testing.T, open Open) {
		s := migrated(t, open)
		const most = 3
		var group errgroup.Group
		results := make(chan error, 4*most)
		for range 4 * most {
			group.Go(func() error {
				_, err := s.CreateWebhook(t.Context(), newWebhook(), webhook.NewSecret(), most)
				results <- err
				return nil
			})
		}
		require.NoError(t, group.Wait())
		close(results)
		made := 0
		for err := range results {
			if err == nil {
				made++
				continue
			}
			require.ErrorIs(t, err, store.ErrTooMany)
		}
		require.Equal(t, most, made)
		other := newWebhook()
		other.Tenant = "other"
		_, err := s.CreateWebhook(t.Context(), other, webhook.NewSecret(), most)
		require.NoError(t, err, "each tenant for itself")
	},

	"endpoints are listed by tenant": func(t *testing.T, open Open) {
		s := migrated(t, open)
		first, _ := addWebhook(t, s, newWebhook())
		second, _ := addWebhook(t, s, newWebhook())
		w := newWebhook()
		w.Tenant = "zeta"
		third, _ := addWebhook(t, s, w)
		for tenant, want := range map[string][]store.Webhook{"acme": {first, second}, "zeta": {third}, "": {first, second, third}, "nobody": {}} {
			got, err := s.ListWebhooks(t.Context(), tenant)
			require.NoError(t, err)
			require.Equal(t, want, append([]store.Webhook{}, got...), tenant)
		}
	},

	"what is not there is not found": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, id := range []string{"", "whk_nothing", "nul\x00", "\xff"} {
			_, err := s.Webhook(t.Context(), id)
			require.ErrorIs(t, err, store.ErrNotFound)
			_, err = s.EnableWebhook(t.Context(), id)
			require.ErrorIs(t, err, store.ErrNotFound)
			_, err = s.RotateWebhook(t.Context(), id, webhook.NewSecret(), time.Hour)
			require.ErrorIs(t, err, store.ErrNotFound)
			require.ErrorIs(t, s.DeleteWebhook(t.Context(), id), store.ErrNotFound)
			require.ErrorIs(t, s.Redeliver(t.Context(), id, id), store.ErrNotFound)
		}
	},

	"a rotated secret signs beside the new one for a while": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, first := addWebhook(t, s, newWebhook())
		require.Equal(t, []webhook.Secret{first}, signsFor(t, s, w))
		second, third := webhook.NewSecret(), webhook.NewSecret()
		got, err := s.RotateWebhook(t.Context(), w.ID, second, time.Hour)
		require.NoError(t, err)
		require.Equal(t, w, got)
		require.Equal(t, []webhook.Secret{second, first}, signsFor(t, s, w))
		_, err = s.RotateWebhook(t.Context(), w.ID, third, time.Hour)
		require.NoError(t, err)
		require.Equal(t, []webhook.Secret{third, second}, signsFor(t, s, w), "two at most")
		_, err = s.RotateWebhook(t.Context(), w.ID, first, 0)
		require.NoError(t, err)
		require.Equal(t, []webhook.Secret{first}, signsFor(t, s, w), "no overlap")
		_, err = s.RotateWebhook(t.Context(), w.ID, "whsec_", time.Hour)
		require.ErrorIs(t, err, store.ErrInvalid)
	},

	"a tenant's secret is made once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		first := webhook.NewSecret()
		got, err := s.TenantSecret(t.Context(), "acme", first)
		require.NoError(t, err)
		require.Equal(t, first, got)
		got, err = s.TenantSecret(t.Context(), "acme", webhook.NewSecret())
		require.NoError(t, err)
		require.Equal(t, first, got)
		other, err := s.TenantSecret(t.Context(), "other", webhook.NewSecret())
		require.NoError(t, err)
		require.NotEqual(t, first, other)

		second := webhook.NewSecret()
		require.NoError(t, s.RotateTenantSecret(t.Context(), "acme", second, time.Hour))
		e := store.NewEvent("acme", webhook.JobCompleted, "job_1")
		e.Target = "https://jobs.example.com/done"
		require.Equal(t, 1, appendEvent(t, s, e))
		d := leaseAll(t, s)
		require.Len(t, d, 1)
		require.Equal(t, []webhook.Secret{second, first}, d[0].Secrets)

		require.NoError(t, s.RotateTenantSecret(t.Context(), "new", second, time.Hour))
		got, err = s.TenantSecret(t.Context(), "new", webhook.NewSecret())
		require.NoError(t, err)
		require.Equal(t, second, got)
		_, err = s.TenantSecret(t.Context(), "", first)
		require.ErrorIs(t, err, store.ErrInvalid)
		require.ErrorIs(t, s.RotateTenantSecret(t.Context(), "acme", "x", time.Hour), store.ErrInvalid)
	},

	"an endpoint goes with all that waits for it": func(t *testing.T, open Open) {
		s := migrated(t, open)
		w, _ := addWebhook(t, s, newWebhook())
		stays, _ := addWebhook(t, s, newWebhook())
		appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_1"))
		held := leaseAll(t, s)
		require.Len(t, held, 2)
		require.NoError(t, s.DeleteWebhook(t.Context(), w.ID))
		reports, err := s.Deliveries(t.Context(), store.DeliveryFilter{})
		require.NoError(t, err)
		require.Len(t, reports, 1)
		require.Equal(t, stays.ID, reports[0].WebhookID)
		for _, d := range held {
			_, err := s.FinishAttempt(t.Context(), store.Attempt{Delivery: d, At: time.Now(), Status: 200, State: store.DeliveryDelivered})
			if d.WebhookID == w.ID {
				require.ErrorIs(t, err, store.ErrLeaseLost)
				continue
			}
			require.NoError(t, err)
		}
		appendEvent(t, s, store.NewEvent("acme", webhook.JobFailed, "job_2"))
		require.Len(t, leaseAll(t, s), 1)
	},
}

// signsFor returns the secrets that sign a new event to the endpoint.
func signsFor(t *testing.T, s store.Store, w store.Webhook) []webhook.Secret {
	t.Helper()
	appendEvent(t, s, store.NewEvent(w.Tenant, webhook.JobCompleted, "job_1"))
	leased := leaseAll(t, s)
	require.Len(t, leased, 1)
	finish(t, s, leased[0], func(*store.Attempt) {})
	return leased[0].Secrets
}
