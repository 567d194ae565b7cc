package ingress

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/mux"

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
	if err := readAdmin(w, r, &req); err != nil {
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
	made, err := s.opt.Webhooks.Store.CreateWebhook(r.Context(), store.Webhook{
		ID: webhook.NewEndpointID(), Tenant: req.Tenant, URL: req.URL, Events: req.Events,
	}, secret, s.opt.Webhooks.MaxEndpoints)
	switch {
	case errors.Is(err, store.ErrTooMany):
		err = invalidField("tenant", "The tenant has %d webhooks, which is as many as webhooks.max_endpoints allows.", s.opt.Webhooks.MaxEndpoints)
	case errors.Is(err, store.ErrInvalid):
		err = invalidField("tenant", "tenant must be 1 to %d bytes long and hold no control character.", store.MaxTextBytes)
	}
	if err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	s.writeJSON(w, r, shownWebhook(made, secret.Reveal()))
}

func (s *Ingress) deleteWebhook(w http.ResponseWriter, r *http.Request) {
	if err := s.opt.Webhooks.Store.DeleteWebhook(r.Context(), mux.Vars(r)["id"]); err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Ingress) enableWebhook(w http.ResponseWriter, r *http.Request) {
	h, err := s.opt.Webhooks.Store.EnableWebhook(r.Context(), mux.Vars(r)["id"])
	if err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	s.hooks.nudge() // it may have been left alone for a while
	s.writeJSON(w, r, shownWebhook(h, ""))
}

func (s *Ingress) rotateWebhook(w http.ResponseWriter, r *http.Request) {
	var req adminapi.RotateWebhook
	err := readAdmin(w, r, &req)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	overlap, err := parseOverlap(req.Overlap)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	secret := webhook.NewSecret()
	h, err := s.opt.Webhooks.Store.RotateWebhook(r.Context(), mux.Vars(r)["id"], secret, overlap)
	if err != nil {
		s.adminFail(w, r, webhookError(err))
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
	if err := readAdmin(w, r, &req); err != nil {
		s.adminFail(w, r, err)
		return
	}
	if err := s.opt.Webhooks.Store.Redeliver(r.Context(), req.Event, req.Webhook); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			err = inference.Errorf(inference.CodeNotFound, "There is no such event of the webhook's tenant, or no such webhook in force.")
		}
		s.adminFail(w, r, err)
		return
	}
	s.hooks.nudge()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Ingress) tenantSecret(w http.ResponseWriter, r *http.Request) {
	var req adminapi.TenantSecret
	err := readAdmin(w, r, &req)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	overlap, err := parseOverlap(req.Overlap)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	secret := webhook.NewSecret()
	if req.Rotate {
		err = s.opt.Webhooks.Store.RotateTenantSecret(r.Context(), req.Tenant, secret, overlap)
	} else {
		secret, err = s.opt.Webhooks.Store.TenantSecret(r.Context(), req.Tenant, secret)
	}
	if errors.Is(err, store.ErrInvalid) {
		err = invalidField("tenant", "tenant must be 1 to %d bytes long and hold no control character.", store.MaxTextBytes)
	}
	if err != nil {
		s.adminFail(w, r, webhookError(err))
		return
	}
	s.writeJSON(w, r, adminapi.TenantSecretShown{Tenant: req.Tenant, Secret: secret.Reveal()})
}

func (s *Ingress) listDeliveries(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f := store.DeliveryFilter{
		Tenant: q.Get("tenant"), WebhookID: q.Get("webhook"), EventID: q.Get("event"), State: store.DeliveryState(q.Get("state")),
	}
	if text := q.Get("limit"); text != "" {
		var err error
		if f.Limit, err = strconv.Atoi(text); err != nil || f.Limit < 1 || f.Limit > store.MaxPage {
			s.adminFail(w, r, invalidField("limit", "limit must be from 1 to %d.", store.MaxPage))
			return
		}
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

// readAdmin reads a request's body into a struct. It may hold nothing that is not known:
// whoever asks must not get something else than they mean. No body is an empty one.
func readAdmin(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := readAdminBody(w, r)
	switch {
	case err != nil:
		return err
	case len(body) == 0:
		return nil
	case !json.Valid(body):
		return inference.Errorf(inference.CodeInvalidJSON, "The request body is not valid JSON.")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return invalidField(wrong.Field, "%q must not be a JSON %s.", wrong.Field, wrong.Value)
		}
		return invalidField("", "The request body holds a field that is not known.")
	}
	return nil
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
