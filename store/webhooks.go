package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/internal/webhook"
)

// ErrTooMany says that a tenant has as many webhooks as it may.
var ErrTooMany = errors.New("too many webhooks")

// Bounds of what is kept about deliveries.
const (
	MaxAttempts = 50 // attempts that the log of one delivery holds; older ones go
	MaxEvents   = MaxBatch
)

// Webhook is an endpoint of a tenant's: where its events are sent. Its secrets are not
// here, so that no listing can show them.
type Webhook struct {
	ID     string
	Tenant string
	URL    string
	Events []string // the types that it wants; empty: all

	CreatedAt    time.Time
	FailingSince time.Time // since when there were nothing but failures; zero: it is well
	DisabledAt   time.Time // zero: it is in force
	DisabledFor  string    // DisabledGone or DisabledFailing
}

// Why an endpoint gets no events any more.
const (
	DisabledGone    = "gone"    // it answered 410
	DisabledFailing = "failing" // for days there were nothing but failures
)

// Validate returns an ErrInvalid that says what is wrong with the endpoint, if it cannot
// be stored. Whether its address may be one of a private network, the caller knows.
func (w Webhook) Validate() error {
	for _, f := range []struct{ name, value string }{{"id", w.ID}, {"tenant", w.Tenant}} {
		if err := checkRequired("webhook", f.name, f.value); err != nil {
			return err
		}
	}
	if err := webhook.CheckURL(w.URL, true); err != nil {
		return fmt.Errorf("webhook url %w: %w", err, ErrInvalid)
	}
	if err := webhook.CheckTypes(w.Events); err != nil {
		return fmt.Errorf("webhook: %w: %w", err, ErrInvalid)
	}
	return nil
}

// Event is something that came to its end, as it is told to a tenant's endpoints.
type Event struct {
	ID       string // by webhook.NewEventID; it stays the same however often it is delivered
	Tenant   string
	Type     string
	ObjectID string // of the batch or job

	CreatedAt time.Time

	// Target is one more address that the event goes to, beside the endpoints; empty:
	// none. Whoever names it has checked it with webhook.CheckURL, and applied its own
	// filter. It is signed with the tenant's secret.
	Target string

	// Only is the endpoint that alone gets the event, whatever its filter; empty: every
	// one in force whose filter takes the type.
	Only string
}

// NewEvent returns an event of this moment.
func NewEvent(tenant, kind, objectID string) Event {
	return Event{ID: webhook.NewEventID(), Tenant: tenant, Type: kind, ObjectID: objectID, CreatedAt: time.Now()}
}

// Validate returns an ErrInvalid if the event cannot be stored.
func (e Event) Validate() error {
	for _, f := range []struct{ name, value string }{{"id", e.ID}, {"tenant", e.Tenant}, {"object id", e.ObjectID}} {
		if err := checkRequired("event", f.name, f.value); err != nil {
			return err
		}
	}
	if e.Type != webhook.Test && !slices.Contains(webhook.Types(), e.Type) {
		return fmt.Errorf("event has no known type: %w", ErrInvalid)
	}
	if e.Target != "" {
		if err := webhook.CheckURL(e.Target, true); err != nil {
			return fmt.Errorf("event target %w: %w", err, ErrInvalid)
		}
	}
	return nil
}

// ValidEvents returns an ErrInvalid if the events cannot be stored in one transaction.
func ValidEvents(events []Event) error {
	if len(events) > MaxEvents {
		return fmt.Errorf("%d events at once, more than %d: %w", len(events), MaxEvents, ErrInvalid)
	}
	for _, e := range events {
		if err := e.Validate(); err != nil {
			return err
		}
	}
	return nil
}

func checkRequired(noun, name, value string) error {
	problem := checkText(value)
	if value == "" {
		problem = "is empty"
	}
	if problem != "" {
		return fmt.Errorf("%s %s %s: %w", noun, name, problem, ErrInvalid)
	}
	return nil
}

// Webhooks is the part of the store that remembers endpoints and what signs for them.
// Secrets are kept as they are: a signature needs the secret itself, so a database that
// leaks has to be followed by a rotation.
type Webhooks interface {
	// CreateWebhook stores an endpoint and returns it as stored. Errors: ErrInvalid,
	// ErrDuplicate, and ErrTooMany if its tenant has so many already.
	CreateWebhook(ctx context.Context, w Webhook, secret webhook.Secret, most int) (Webhook, error)

	// ListWebhooks returns the endpoints of the tenant, or of all if it is empty, the
	// oldest of each tenant first.
	ListWebhooks(ctx context.Context, tenant string) ([]Webhook, error)

	// Webhook returns the endpoint. Errors: ErrNotFound.
	Webhook(ctx context.Context, id string) (Webhook, error)

	// DeleteWebhook removes the endpoint with its deliveries. Errors: ErrNotFound.
	DeleteWebhook(ctx context.Context, id string) error

	// EnableWebhook puts a disabled endpoint in force again, as if it had never failed.
	// What was given up meanwhile stays given up. Errors: ErrNotFound.
	EnableWebhook(ctx context.Context, id string) (Webhook, error)

	// RotateWebhook gives the endpoint a new secret. The one before it goes on signing
	// beside the new one for so long, and the one before that no more. Errors:
	// ErrNotFound, ErrInvalid.
	RotateWebhook(ctx context.Context, id string, secret webhook.Secret, overlap time.Duration) (Webhook, error)

	// TenantSecret returns the secret that signs what goes to no endpoint of the
	// tenant's; the first time that is fresh. Errors: ErrInvalid.
	TenantSecret(ctx context.Context, tenant string, fresh webhook.Secret) (webhook.Secret, error)

	// RotateTenantSecret is RotateWebhook for the tenant's secret, whether it had one
	// or not. Errors: ErrInvalid.
	RotateTenantSecret(ctx context.Context, tenant string, secret webhook.Secret, overlap time.Duration) error
}

// CheckSecret returns an ErrInvalid unless the secret can sign for the tenant or endpoint
// of that name.
func CheckSecret(owner string, secret webhook.Secret) error {
	if err := checkRequired("secret", "owner", owner); err != nil {
		return err
	}
	if err := secret.Check(); err != nil {
		return fmt.Errorf("secret %w: %w", err, ErrInvalid)
	}
	return nil
}

// JoinTypes and SplitTypes are how a filter is kept: in one text, with spaces between.
func JoinTypes(types []string) string { return strings.Join(types, " ") }

// SplitTypes reads what JoinTypes returned.
func SplitTypes(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, " ")
}
