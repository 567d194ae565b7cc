package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/internal/webhook"
)

// ErrLeaseLost says that a delivery or a batch is not in the caller's hands any more: the
// lease ran out and another one has it, or it is gone.
var ErrLeaseLost = errors.New("lease lost")

// DeliveryState is where a delivery stands.
type DeliveryState string

// The states of a delivery.
const (
	DeliveryPending   DeliveryState = "pending"
	DeliveryDelivered DeliveryState = "delivered"
	DeliveryFailed    DeliveryState = "failed" // given up
)

// Delivery is an event on its way to one endpoint, or to its own target, leased to
// whoever makes the next attempt.
type Delivery struct {
	Event     Event
	WebhookID string // empty: to the event's own target
	URL       string
	Secrets   []webhook.Secret // the newest first; none if the tenant has none yet
	Failed    int              // attempts since the schedule began
	Lease     string
}

// LeaseRequest asks for deliveries that are due.
type LeaseRequest struct {
	Lease   string        // a name that no other request has
	For     time.Duration // after so long another one may have what was not finished
	Most    int
	PerLane int // deliveries to one endpoint at once, by whomever; to one that fails, one
}

// Attempt is what came of one attempt, and what is to follow.
type Attempt struct {
	Delivery Delivery
	At       time.Time
	Took     time.Duration
	Status   int    // zero: there was no answer
	Failure  string // why there was none

	State DeliveryState
	Wait  time.Duration // until the next attempt, if it stays pending
	Pause time.Duration // how long the endpoint wants to be left alone
	Gone  bool          // the endpoint is to be disabled at once

	// DisableAfter is how long the endpoint may do nothing but fail.
	DisableAfter time.Duration
}

// DeliveryFilter selects deliveries for a listing. Empty fields select everything.
type DeliveryFilter struct {
	Tenant    string
	WebhookID string
	EventID   string
	State     DeliveryState
	Limit     int // at most MaxPage; zero: DefaultPage
}

// Clean returns the filter with its limit set and bounded, and its texts storable.
func (f DeliveryFilter) Clean() DeliveryFilter {
	if f.Limit <= 0 {
		f.Limit = DefaultPage
	}
	f.Limit = min(f.Limit, MaxPage)
	for _, s := range []*string{&f.Tenant, &f.WebhookID, &f.EventID, (*string)(&f.State)} {
		*s = CleanText(*s)
	}
	return f
}

// DeliveryReport is a delivery as it is listed, with the log of its attempts.
type DeliveryReport struct {
	EventID   string
	Type      string
	ObjectID  string
	Tenant    string
	WebhookID string
	State     DeliveryState
	Attempts  int // ever made; the log may hold fewer
	CreatedAt time.Time
	NextAt    time.Time // when it is due, if it is pending
	EndedAt   time.Time // zero: it is pending
	Log       []AttemptReport
}

// AttemptReport is one attempt as the log has it.
type AttemptReport struct {
	Number  int
	At      time.Time
	Took    time.Duration
	Status  int
	Failure string
}

// Deliveries is the part of the store that remembers events and where they have to go.
// An event is written in the transaction of the state that it tells, by the noun whose
// state that is; AppendEvent is for those that tell of none.
type Deliveries interface {
	// AppendEvent stores an event and a delivery for each endpoint that it goes to, and
	// returns how many these are. An event that is stored already is left as it is.
	// Errors: ErrInvalid.
	AppendEvent(ctx context.Context, e Event) (deliveries int, err error)

	// Redeliver makes the delivery of an event due at once, with the whole schedule
	// before it, whether it was delivered, given up, or never meant for the endpoint. An
	// empty webhookID means the event's own target. Errors: ErrNotFound, also if event
	// and endpoint are different tenants', and for an endpoint that is disabled.
	Redeliver(ctx context.Context, eventID, webhookID string) error

	// Redeliverable returns the ErrNotFound that Redeliver would return now, and changes
	// nothing.
	Redeliverable(ctx context.Context, eventID, webhookID string) error

	// LeaseDeliveries hands out deliveries that are due, and whose lease, if they had
	// one, ran out. Of each lane the oldest comes before any lane's second.
	LeaseDeliveries(ctx context.Context, r LeaseRequest) ([]Delivery, error)

	// FinishAttempt notes an attempt and what is to follow, and gives the delivery back.
	// It returns why the endpoint was disabled by it, empty if it was not. Everything
	// else that waited for an endpoint that is disabled is given up. Errors:
	// ErrLeaseLost.
	FinishAttempt(ctx context.Context, a Attempt) (disabledFor string, err error)

	// Deliveries lists deliveries with their attempts, newest event first.
	Deliveries(ctx context.Context, f DeliveryFilter) ([]DeliveryReport, error)

	// PruneEvents removes at most so many events that are older than keep, with their
	// deliveries if all of these ended so long ago, and secrets that sign no more. It
	// returns how many events went.
	PruneEvents(ctx context.Context, keep time.Duration, most int) (int, error)
}

// Validate returns an ErrInvalid unless the request can be met.
func (r LeaseRequest) Validate() error {
	if r.Lease == "" || r.For <= 0 || r.Most < 1 || r.Most > MaxBatch || r.PerLane < 1 {
		return fmt.Errorf("lease of %d deliveries: %w", r.Most, ErrInvalid)
	}
	return nil
}
