package ingress

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	administration "sluice/internal/admin"
	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/webhook"
	"sluice/store"
)

// Bounds of the time for which a replaced secret goes on signing.
const (
	overlapUsual = 24 * time.Hour
	overlapMost  = 30 * 24 * time.Hour
)

// routeWebhooks adds what an operator does about webhooks.
func (s *Ingress) routeWebhooks(r *mux.Router) {
	if s.opt.Webhooks.Store == nil {
		return
	}
	r.HandleFunc(adminapi.DeliveriesPath, s.listDeliveries).Methods(http.MethodGet)
	r.HandleFunc(adminapi.RedeliverPath, s.redeliver).Methods(http.MethodPost)
	r.HandleFunc(adminapi.SecretPath, s.tenantSecret).Methods(http.MethodPost)
	one := adminapi.WebhooksPath + "/{id}"
	r.HandleFunc(adminapi.WebhooksPath, s.listWebhooks).Methods(http.MethodGet)
	r.HandleFunc(adminapi.WebhooksPath, s.createWebhook).Methods(http.MethodPost)
	r.HandleFunc(one, s.deleteWebhook).Methods(http.MethodDelete)
	r.HandleFunc(one+"/enable", s.enableWebhook).Methods(http.MethodPost)
	r.HandleFunc(one+"/rotate", s.rotateWebhook).Methods(http.MethodPost)
	r.HandleFunc(one+"/test", s.testWebhook).Methods(http.MethodPost)
}

func (s *Ingress) listWebhooks(w http.ResponseWriter, r *http.Request) {
	hooks, err := s.opt.Webhooks.Store.ListWebhooks(r.Context(), r.URL.Query().Get("tenant"))
	if err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	list := adminapi.WebhookList{Webhooks: []adminapi.Webhook{}}
	for _, h := range hooks {
		list.Webhooks = append(list.Webhooks, shownWebhook(h, ""))
	}
	s.writeJSON(w, r, list)
}

func (s *Ingress) createWebhook(w http.ResponseWriter, r *http.Request) {
	var req adminapi.CreateWebhook
	if err := administration.Read(w, r, &req); err != nil {
		s.adminFail(w, r, err)
		return
	}
	if err := webhook.CheckURL(req.URL, s.opt.Webhooks.AllowPrivate); err != nil {
		s.adminFail(w, r, invalidField("url", "url %s.", err))
		return
	}
	if err := webhook.CheckTypes(req.Events); err != nil {
		s.adminFail(w, r, invalidField("events", "%s.", err))
		return
	}
	secret := webhook.NewSecret()
	h := store.Webhook{ID: webhook.NewEndpointID(), Tenant: req.Tenant, URL: req.URL, Events: req.Events}
	err := s.roomForWebhook(r.Context(), h)
	if err == nil {
		err = s.audited(r, change{"webhook.create", webhookTarget(h.ID), nil, auditedWebhook(h)}, func() (err error) {
			h, err = s.opt.Webhooks.Store.CreateWebhook(r.Context(), h, secret, s.opt.Webhooks.MaxEndpoints)
			return s.notCreated(err)
		})
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, shownWebhook(h, secret.Reveal()))
}

// roomForWebhook returns why the endpoint cannot be stored, as far as it can be seen before.
func (s *Ingress) roomForWebhook(ctx context.Context, h store.Webhook) error {
	if err := h.Validate(); err != nil {
		return s.notCreated(err)
	}
	hooks, err := s.opt.Webhooks.Store.ListWebhooks(ctx, h.Tenant)
	if err == nil && len(hooks) >= s.opt.Webhooks.MaxEndpoints {
		err = store.ErrTooMany
	}
	return s.notCreated(err)
}

// notCreated is an error of creating a webhook as it is answered.
func (s *Ingress) notCreated(err error) error {
	switch {
	case errors.Is(err, store.ErrTooMany):
		return invalidField("tenant", "The tenant has as many webhooks as webhooks.max_endpoints allows, which is %d.", s.opt.Webhooks.MaxEndpoints)
	case errors.Is(err, store.ErrInvalid):
		return errNoTenant()
	}
	return err
}

func errNoTenant() error {
	return invalidField("tenant", "tenant must be 1 to %d bytes long and hold no control character.", store.MaxTextBytes)
}

func (s *Ingress) deleteWebhook(w http.ResponseWriter, r *http.Request) {
	err := s.changeWebhook(r, "webhook.delete", func(store.Webhook) any { return nil }, func(id string) error {
		return s.opt.Webhooks.Store.DeleteWebhook(r.Context(), id)
	})
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Ingress) enableWebhook(w http.ResponseWriter, r *http.Request) {
	var h store.Webhook
	enabled := func(h store.Webhook) any {
		h.DisabledAt, h.DisabledFor = time.Time{}, ""
		return auditedWebhook(h)
	}
	err := s.changeWebhook(r, "webhook.enable", enabled, func(id string) (err error) {
		h, err = s.opt.Webhooks.Store.EnableWebhook(r.Context(), id)
		return err
	})
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.hooks.nudge() // it may have been left alone for a while
	s.writeJSON(w, r, shownWebhook(h, ""))
}

func (s *Ingress) rotateWebhook(w http.ResponseWriter, r *http.Request) {
	var req adminapi.RotateWebhook
	err := administration.Read(w, r, &req)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	overlap, err := parseOverlap(req.Overlap)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	var h store.Webhook
	secret := webhook.NewSecret()
	said := func(store.Webhook) any { return overlapAudit{overlap.String()} }
	err = s.changeWebhook(r, "webhook.rotate", said, func(id string) (err error) {
		h, err = s.opt.Webhooks.Store.RotateWebhook(r.Context(), id, secret, overlap)
		return err
	})
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, shownWebhook(h, secret.Reveal()))
}

// testWebhook sends an event of the type webhook.test about the endpoint itself.
func (s *Ingress) testWebhook(w http.ResponseWriter, r *http.Request) {
	h, err := s.opt.Webhooks.Store.Webhook(r.Context(), mux.Vars(r)["id"])
	if err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	e := store.NewEvent(h.Tenant, webhook.Test, h.ID)
	e.Only = h.ID
	deliveries, err := s.opt.Webhooks.Store.AppendEvent(r.Context(), e)
	if err == nil && deliveries == 0 {
		err = invalidField("", "The webhook is disabled. Enable it first.")
	}
	if err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	s.hooks.nudge()
	s.writeJSON(w, r, adminapi.TestWebhook{Event: e.ID})
}

func (s *Ingress) redeliver(w http.ResponseWriter, r *http.Request) {
	var req adminapi.Redeliver
	if err := administration.Read(w, r, &req); err != nil {
		s.adminFail(w, r, err)
		return
	}
	hooks := s.opt.Webhooks.Store
	err := notRedelivered(hooks.Redeliverable(r.Context(), req.Event, req.Webhook))
	if err == nil {
		err = s.audited(r, change{"webhook.redeliver", "event:" + req.Event, nil, req}, func() error {
			return notRedelivered(hooks.Redeliver(r.Context(), req.Event, req.Webhook))
		})
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.hooks.nudge()
	w.WriteHeader(http.StatusNoContent)
}

// notRedelivered is an error of delivering an event again as it is answered.
func notRedelivered(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return inference.Errorf(inference.CodeNotFound, "There is no such event of the webhook's tenant, or no such webhook in force.")
	}
	return err
}

func (s *Ingress) tenantSecret(w http.ResponseWriter, r *http.Request) {
	var req adminapi.TenantSecret
	err := administration.Read(w, r, &req)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	overlap, err := parseOverlap(req.Overlap)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	action, said := "webhook_secret.read", any(nil) // it may be made by that
	if req.Rotate {
		action, said = "webhook_secret.rotate", overlapAudit{overlap.String()}
	}
	secret := webhook.NewSecret()
	if store.CheckSecret(req.Tenant, secret) != nil { // the secret is good
		s.adminFail(w, r, errNoTenant())
		return
	}
	err = s.audited(r, change{action, "tenant:" + req.Tenant, nil, said}, func() (err error) {
		if req.Rotate {
			return s.opt.Webhooks.Store.RotateTenantSecret(r.Context(), req.Tenant, secret, overlap)
		}
		secret, err = s.opt.Webhooks.Store.TenantSecret(r.Context(), req.Tenant, secret)
		return err
	})
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, adminapi.TenantSecretShown{Tenant: req.Tenant, Secret: secret.Reveal()})
}

func (s *Ingress) listDeliveries(w http.ResponseWriter, r *http.Request) {
	f, err := deliveryQuery(r.URL.Query())
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	reports, err := s.opt.Webhooks.Store.Deliveries(r.Context(), f)
	if err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	list := adminapi.DeliveryList{Deliveries: []adminapi.Delivery{}}
	for _, d := range reports {
		list.Deliveries = append(list.Deliveries, shownDelivery(d))
	}
	s.writeJSON(w, r, list)
}

func deliveryQuery(q url.Values) (store.DeliveryFilter, error) {
	f := store.DeliveryFilter{
		Tenant: q.Get("tenant"), WebhookID: q.Get("webhook"), EventID: q.Get("event"), State: store.DeliveryState(q.Get("state")),
	}
	switch f.State {
	case "", store.DeliveryPending, store.DeliveryDelivered, store.DeliveryFailed:
	default:
		return f, invalidField("state", "state must be %s, %s or %s.", store.DeliveryPending, store.DeliveryDelivered, store.DeliveryFailed)
	}
	if text := q.Get("limit"); text != "" {
		var err error
		if f.Limit, err = strconv.Atoi(text); err != nil || f.Limit < 1 || f.Limit > store.MaxPage {
			return f, invalidField("limit", "limit must be from 1 to %d.", store.MaxPage)
		}
	}
	return f, nil
}

func parseOverlap(text string) (time.Duration, error) {
	if text == "" {
		return overlapUsual, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > overlapMost {
		return 0, invalidField("overlap", `overlap must be a time from "0s" to %q, such as "24h".`, overlapMost)
	}
	return d, nil
}

// webhookError is an error of the store as it is answered.
func webhookError(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return inference.Errorf(inference.CodeNotFound, "There is no webhook with this id.")
	}
	return err
}

func shownWebhook(h store.Webhook, secret string) adminapi.Webhook {
	return adminapi.Webhook{
		ID: h.ID, Tenant: h.Tenant, URL: h.URL, Events: append([]string{}, h.Events...), CreatedAt: h.CreatedAt,
		FailingSince: timeOrNull(h.FailingSince), DisabledAt: timeOrNull(h.DisabledAt), DisabledFor: h.DisabledFor, Secret: secret,
	}
}

func shownDelivery(d store.DeliveryReport) adminapi.Delivery {
	shown := adminapi.Delivery{
		Event: d.EventID, Type: d.Type, Object: d.ObjectID, Tenant: d.Tenant, Webhook: d.WebhookID, State: string(d.State),
		Attempts: d.Attempts, CreatedAt: d.CreatedAt, EndedAt: timeOrNull(d.EndedAt), Log: []adminapi.Attempt{},
	}
	if d.State == store.DeliveryPending {
		shown.NextAt = timeOrNull(d.NextAt)
	}
	for _, a := range d.Log {
		shown.Log = append(shown.Log, adminapi.Attempt{Number: a.Number, At: a.At, TookMS: a.Took.Milliseconds(), Status: a.Status, Failure: a.Failure})
	}
	return shown
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
