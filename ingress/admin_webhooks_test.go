package ingress

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/routing"
	"sluice/internal/webhook"
	"sluice/store"
)

// hookAdmin is the admin API of an ingress that has nothing but webhooks.
func hookAdmin(t *testing.T) (*hookRig, http.Handler) {
	t.Helper()
	r := newHookRig(t, answers(http.StatusOK))
	s := ingressOf(nil, routing.Policy{})
	s.hooks, s.opt.Webhooks = r.hooks, r.hooks.opt
	return r, admin(t, s, adminToken)
}

// tell asks the admin API and reads its answer into a value, if there is one.
func tell(t *testing.T, h http.Handler, method, path, body string, into any) *httptest.ResponseRecorder {
	t.Helper()
	w := ask(h, method, path, "Bearer "+adminToken, body)
	if into != nil {
		require.Equal(t, http.StatusOK, w.Code, w.Body.String())
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), into))
	}
	return w
}

func TestWebhooksAreSeenToByAnOperator(t *testing.T) {
	t.Parallel()
	r, h := hookAdmin(t)
	require.Equal(t, http.StatusUnauthorized, ask(h, http.MethodGet, adminapi.WebhooksPath, "Bearer wrong", "").Code)

	var made, rotated, again adminapi.Webhook
	tell(t, h, http.MethodPost, adminapi.WebhooksPath, `{"tenant":"acme","url":"https://example.com/in","events":["job.failed"]}`, &made)
	require.NoError(t, webhook.Secret(made.Secret).Check())
	var list adminapi.WebhookList
	w := tell(t, h, http.MethodGet, adminapi.WebhooksPath+"?tenant=acme", "", &list)
	require.Len(t, list.Webhooks, 1)
	require.Equal(t, []string{"job.failed"}, list.Webhooks[0].Events)
	require.NotContains(t, w.Body.String(), "whsec_", "secrets are shown once")
	tell(t, h, http.MethodGet, adminapi.WebhooksPath+"?tenant=other", "", &list)
	require.Empty(t, list.Webhooks)

	one := adminapi.WebhooksPath + "/" + made.ID
	tell(t, h, http.MethodPost, one+"/rotate", `{"overlap":"1h"}`, &rotated)
	require.NotEqual(t, made.Secret, rotated.Secret)
	var sent adminapi.TestWebhook
	tell(t, h, http.MethodPost, one+"/test", "", &sent)
	stop := r.start(r.hooks)
	require.Eventually(t, func() bool { return r.report(sent.Event).State == store.DeliveryDelivered }, soon, 5*time.Millisecond)
	require.Equal(t, []webhook.Secret{webhook.Secret(rotated.Secret), webhook.Secret(made.Secret)}, r.sent[0].m.Secrets)
	require.Contains(t, string(r.sent[0].m.Body), `"type":"webhook.test"`)
	w = tell(t, h, http.MethodPost, adminapi.RedeliverPath, `{"event":"`+sent.Event+`","webhook":"`+made.ID+`"}`, nil)
	require.Equal(t, http.StatusNoContent, w.Code)
	require.Eventually(t, func() bool { return r.report(sent.Event).Attempts == 2 }, soon, 5*time.Millisecond)
	stop()

	var log adminapi.DeliveryList
	tell(t, h, http.MethodGet, adminapi.DeliveriesPath+"?webhook="+made.ID, "", &log)
	require.Len(t, log.Deliveries, 1)
	require.Len(t, log.Deliveries[0].Log, 2)
	require.Nil(t, log.Deliveries[0].NextAt)
	require.NotNil(t, log.Deliveries[0].EndedAt)

	tell(t, h, http.MethodPost, one+"/enable", "", &again)
	require.Empty(t, again.Secret)
	var first, second adminapi.TenantSecretShown
	tell(t, h, http.MethodPost, adminapi.SecretPath, `{"tenant":"acme"}`, &first)
	tell(t, h, http.MethodPost, adminapi.SecretPath, `{"tenant":"acme"}`, &second)
	require.Equal(t, first, second)
	tell(t, h, http.MethodPost, adminapi.SecretPath, `{"tenant":"acme","rotate":true}`, &second)
	require.NotEqual(t, first, second)
	require.Equal(t, http.StatusNoContent, tell(t, h, http.MethodDelete, one, "", nil).Code)
	require.Equal(t, http.StatusNotFound, tell(t, h, http.MethodDelete, one, "", nil).Code)
}

func TestWhatAnOperatorCannotDoWithWebhooks(t *testing.T) {
	t.Parallel()
	r, h := hookAdmin(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		param              string
	}{
		{"POST", "", `{"tenant":"acme","url":"http://example.com/"}`, 400, "url"},
		{"POST", "", `{"tenant":"acme","url":"https://127.0.0.1/"}`, 400, "url"},
		{"POST", "", `{"tenant":"acme","url":"https://me:hidden@example.com/"}`, 400, "url"},
		{"POST", "", `{"tenant":"acme"}`, 400, "url"},
		{"POST", "", `{"tenant":"acme","url":"https://example.com/","events":["job.done"]}`, 400, "events"},
		{"POST", "", `{"tenant":"","url":"https://example.com/"}`, 400, "tenant"},
		{"POST", "", `{"tenant":"acme","url":7}`, 400, "url"},
		{"POST", "", `{"tenant":"acme","url":"https://example.com/","secret":"x"}`, 400, "secret"},
		{"POST", "", `{`, 400, ""},
		{"PUT", "", ``, 405, ""},
		{"POST", "/whk_x/test", ``, 404, ""},
		{"POST", "/whk_x/rotate", ``, 404, ""},
		{"POST", "/whk_x/enable", ``, 404, ""},
		{"POST", "/whk_x/rotate", `{"overlap":"-1h"}`, 400, "overlap"},
		{"POST", "/whk_x/rotate", `{"overlap":"9999h"}`, 400, "overlap"},
		{"DELETE", "/whk_x", ``, 404, ""},
		{"POST", "/redeliver", `{"event":"evt_x","webhook":"whk_x"}`, 404, ""},
		{"POST", "/secret", `{}`, 400, "tenant"},
		{"GET", "/deliveries?limit=0", ``, 400, "limit"},
		{"GET", "/deliveries?limit=1001", ``, 400, "limit"},
		{"GET", "/deliveries?state=lost", ``, 400, "state"},
		{"GET", "/deliveries?evnt=evt_1", ``, 400, "evnt"},
		{"GET", "?tennant=acme", ``, 400, "tennant"},
	} {
		w := tell(t, h, c.method, adminapi.WebhooksPath+c.path, c.body, nil)
		require.Equal(t, c.status, w.Code, "%v: %s", c, w.Body)
		require.Equal(t, c.param, refusal(t, w).Error.Param, "%v: %s", c, w.Body)
		require.NotContains(t, w.Body.String(), "hidden")
	}
	require.Contains(t, tell(t, h, http.MethodPut, adminapi.WebhooksPath+"/x", "", nil).Header().Get("Allow"), "DELETE")
	for range 2 {
		tell(t, h, http.MethodPost, adminapi.WebhooksPath, `{"tenant":"acme","url":"https://example.com/"}`, &adminapi.Webhook{})
	}
	w := tell(t, h, http.MethodPost, adminapi.WebhooksPath, `{"tenant":"acme","url":"https://example.com/"}`, nil)
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Contains(t, refusal(t, w).Error.Message, "webhooks.max_endpoints")

	hooks, err := r.db.ListWebhooks(t.Context(), "acme")
	require.NoError(t, err)
	r.script = answers(http.StatusGone)
	_, err = r.db.AppendEvent(t.Context(), store.Event{ID: "evt_1", Tenant: "acme", Type: webhook.Test, ObjectID: "x", Only: hooks[0].ID})
	require.NoError(t, err)
	stop := r.start(r.hooks)
	require.Eventually(t, func() bool { return r.report("evt_1").State == store.DeliveryFailed }, soon, 5*time.Millisecond)
	stop()
	w = tell(t, h, http.MethodPost, adminapi.WebhooksPath+"/"+hooks[0].ID+"/test", "", nil)
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Contains(t, refusal(t, w).Error.Message, "disabled")
}
