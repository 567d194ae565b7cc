package ingress

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/webhook"
	"sluice/store"
)

// The two places where a request names its job's webhook.
const (
	webhookHeader = "X-Sluice-Webhook"
	webhookField  = "metadata.webhook"
)

// takeWebhook returns the webhook that the request names for its job, as the database
// keeps it, and the body without it. Errors name the field at fault.
func (s *Ingress) takeWebhook(r *http.Request, body []byte) (rest, hook []byte, err error) {
	rest, hook, err = openaiapi.TakeWebhook(body)
	if err != nil {
		return nil, nil, err
	}
	field := webhookField
	switch header := r.Header.Values(webhookHeader); {
	case len(header) > 1, len(header) == 1 && hook != nil:
		return nil, nil, invalidField(webhookHeader, "A job has one webhook; name it once, in the header %s or in %s.", webhookHeader, webhookField)
	case len(header) == 1:
		field, hook = webhookHeader, []byte(header[0])
	case hook == nil:
		return rest, nil, nil
	}
	hook, err = s.checkWebhook(field, hook)
	return rest, hook, err
}

// checkWebhook reads a job's webhook and returns it as the database keeps it.
func (s *Ingress) checkWebhook(field string, text []byte) ([]byte, error) {
	if len(text) > store.MaxWebhookBytes {
		return nil, invalidField(field, "%s is longer than %d bytes.", field, store.MaxWebhookBytes)
	}
	var target store.JobWebhook
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if !json.Valid(text) || dec.Decode(&target) != nil {
		return nil, invalidField(field, `%s must be JSON such as {"url": "https://example.com/hook", "events": ["job.completed"]}.`, field)
	}
	if err := webhook.CheckURL(target.URL, s.opt.Webhooks.AllowPrivate); err != nil {
		return nil, invalidField(field+".url", "%s.url %s.", field, err)
	}
	err := webhook.CheckTypes(target.Events)
	for _, kind := range target.Events {
		if err == nil && !strings.HasPrefix(kind, "job.") {
			return nil, invalidField(field+".events", "%s.events: %s tells of no job.", field, kind)
		}
	}
	if err != nil {
		return nil, invalidField(field+".events", "%s.events: %s.", field, err)
	}
	kept, err := json.Marshal(target)
	if err != nil {
		return nil, inference.AsError(err)
	}
	return kept, nil
}
