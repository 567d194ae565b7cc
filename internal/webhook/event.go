package webhook

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The types of events.
const (
	BatchCompleted = "batch.completed"
	BatchFailed    = "batch.failed"
	BatchExpired   = "batch.expired"
	BatchCancelled = "batch.cancelled"
	JobCompleted   = "job.completed"
	JobFailed      = "job.failed"
	JobCancelled   = "job.cancelled"

	// Test is sent by an operator to one endpoint, whatever that asks for. No filter
	// names it.
	Test = "webhook.test"
)

// Types returns the types that a filter may name.
func Types() []string {
	return []string{BatchCompleted, BatchFailed, BatchExpired, BatchCancelled, JobCompleted, JobFailed, JobCancelled}
}

// CheckTypes returns what is wrong with an endpoint's filter, which names each type of
// event at most once; an empty one asks for all.
func CheckTypes(types []string) error {
	for i, t := range types {
		if !slices.Contains(Types(), t) {
			return fmt.Errorf("event %d is none of %s", i+1, strings.Join(Types(), ", "))
		}
		if slices.Contains(types[:i], t) {
			return fmt.Errorf("event %s is named twice", t)
		}
	}
	return nil
}

// NewEventID returns the id of a new event, which is also the webhook-id by which a
// receiver knows a repeated delivery.
func NewEventID() string { return newID("evt_") }

// NewEndpointID returns the id of a new endpoint.
func NewEndpointID() string { return newID("whk_") }

// idLength is how many random characters of five bits an id has.
const idLength = 24

func newID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:idLength]) }

// payload is an event as it is sent: OpenAI's shape.
type payload struct {
	ID        string `json:"id"`
	Object    string `json:"object"`
	CreatedAt int64  `json:"created_at"`
	Type      string `json:"type"`
	Data      object `json:"data"`
}

type object struct {
	ID string `json:"id"`
}

// Body returns the event as it is sent. The same event has the same bytes at every
// attempt. It tells which object it is about and nothing of what is in it: who wants
// that asks the API with a key.
func Body(id, kind, objectID string, createdAt time.Time) ([]byte, error) {
	body, err := json.Marshal(payload{ID: id, Object: "event", CreatedAt: createdAt.Unix(), Type: kind, Data: object{ID: objectID}})
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", id, err)
	}
	return body, nil
}
