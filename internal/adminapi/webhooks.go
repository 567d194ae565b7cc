package adminapi

import "time"

// Where an ingress is asked about webhooks. Below WebhooksPath stands an endpoint's id, and
// below that what is to be done with it.
const (
	WebhooksPath   = "/admin/v1/webhooks"
	DeliveriesPath = WebhooksPath + "/deliveries"
	RedeliverPath  = WebhooksPath + "/redeliver"
	SecretPath     = WebhooksPath + "/secret"
)

// Webhook is an endpoint as it is listed, and as an answer to each request that makes or
// changes one.
type Webhook struct {
	ID           string     `json:"id"`
	Tenant       string     `json:"tenant"`
	URL          string     `json:"url"`
	Events       []string   `json:"events"` // empty: all
	CreatedAt    time.Time  `json:"created_at"`
	FailingSince *time.Time `json:"failing_since"` // null: it is well
	DisabledAt   *time.Time `json:"disabled_at"`   // null: it is in force
	DisabledFor  string     `json:"disabled_for,omitempty"`

	// Secret is what its deliveries are signed with, shown once, when it is made.
	Secret string `json:"secret,omitempty"`
}

// WebhookList is the answer to GET WebhooksPath, for the tenant of the query or for all.
type WebhookList struct {
	Webhooks []Webhook `json:"webhooks"`
}

// CreateWebhook makes an endpoint.
type CreateWebhook struct {
	Tenant string   `json:"tenant"`
	URL    string   `json:"url"`
	Events []string `json:"events,omitempty"` // empty: all
}

// RotateWebhook gives an endpoint a new secret.
type RotateWebhook struct {
	Overlap string `json:"overlap,omitempty"` // how long the old one goes on signing, such as "24h", which it is when empty
}

// TestWebhook is the answer to a request for an event of the type webhook.test.
type TestWebhook struct {
	Event string `json:"event"` // its id
}

// Redeliver has an event delivered again.
type Redeliver struct {
	Event   string `json:"event"`
	Webhook string `json:"webhook,omitempty"` // empty: to the address that the event itself names
}

// TenantSecret asks for what signs webhooks that single jobs name.
type TenantSecret struct {
	Tenant  string `json:"tenant"`
	Rotate  bool   `json:"rotate,omitempty"`
	Overlap string `json:"overlap,omitempty"` // as in RotateWebhook
}

// TenantSecretShown is the answer to TenantSecret.
type TenantSecretShown struct {
	Tenant string `json:"tenant"`
	Secret string `json:"secret"`
}

// DeliveryList is the answer to GET DeliveriesPath. The query's tenant, webhook, event,
// state and limit say which are wanted.
type DeliveryList struct {
	Deliveries []Delivery `json:"deliveries"`
}

// Delivery is an event on its way to an endpoint, with the log of its attempts.
type Delivery struct {
	Event     string     `json:"event"`
	Type      string     `json:"type"`
	Object    string     `json:"object"`
	Tenant    string     `json:"tenant"`
	Webhook   string     `json:"webhook,omitempty"` // empty: it goes to the address that the event itself names
	State     string     `json:"state"`             // pending, delivered or failed
	Attempts  int        `json:"attempts"`
	CreatedAt time.Time  `json:"created_at"`
	NextAt    *time.Time `json:"next_at"` // null: there is no next attempt
	EndedAt   *time.Time `json:"ended_at"`
	Log       []Attempt  `json:"log"`
}

// Attempt is one attempt to deliver an event.
type Attempt struct {
	Number  int       `json:"number"`
	At      time.Time `json:"at"`
	TookMS  int64     `json:"took_ms"`
	Status  int       `json:"status,omitempty"` // zero: there was no answer
	Failure string    `json:"failure,omitempty"`
}
