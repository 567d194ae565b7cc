package queue

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"sluice/internal/inference"
)

// Presence is what a worker says of itself, every second and when it leaves.
type Presence struct {
	Worker    string             `json:"worker"`
	Leaving   bool               `json:"leaving,omitempty"`
	Providers []ProviderPresence `json:"providers"`
}

// ProviderPresence is one provider that a worker serves.
type ProviderPresence struct {
	Name        string   `json:"name"`
	Models      []string `json:"models"` // names or globs
	MaxQueued   int      `json:"max_queued"`
	Concurrency int      `json:"concurrency"` // most calls at once, across all workers
	Slots       int      `json:"slots"`       // of this worker
	InFlight    int      `json:"in_flight"`   // in this worker
	Rate        float64  `json:"rate"`        // jobs that this worker ends in a second, of late

	Limit    int     `json:"limit,omitempty"`    // calls at once across all workers that the provider bears at the moment
	Held     int     `json:"held,omitempty"`     // jobs that wait in this worker until the provider can be called
	Waiting  int     `json:"waiting,omitempty"`  // jobs in the provider's queue that no worker has, as this worker last heard
	Limited  int64   `json:"limited,omitempty"`  // calls answered with 429 since this worker started
	Refused  bool    `json:"refused,omitempty"`  // the provider accepts none of this worker's keys
	Slowdown float64 `json:"slowdown,omitempty"` // time to the first token of late, over what is usual; zero when not known

	State ProviderState `json:"state,omitempty"` // that this worker obeys; empty: it is active

	Traits []inference.ModelTraits `json:"traits,omitempty"` // the first entry that covers a model counts; one that none covers can do everything
	States []inference.ModelState  `json:"states,omitempty"` // of the models called of late
}

// maxPresence bounds what is read from one announcement.
const maxPresence = 512 << 10

// Announce tells every ingress what the worker serves.
func (c *Conn) Announce(p Presence) error {
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("announce worker %s: %w", p.Worker, err)
	}
	if err := c.nc.Publish(presenceSubject, data); err != nil {
		return fmt.Errorf("announce worker %s: %w", p.Worker, err)
	}
	return nil
}

// maxName bounds a provider's name.
const maxName = 63

// validName reports whether a stream and a subject can bear the provider's name. One
// that cannot would fail the making of all the other queues, too.
func validName(name string) bool {
	return name != "" && len(name) <= maxName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// Watcher hears what workers announce.
type Watcher struct{ sub *nats.Subscription }

// Close stops hearing.
func (w *Watcher) Close() { _ = w.sub.Unsubscribe() } // it fails only when the connection is closed

// Watch hears what workers announce. fn comes from one goroutine and must not block.
func (c *Conn) Watch(fn func(Presence)) (*Watcher, error) {
	sub, err := c.subscribe(presenceSubject, func(m *nats.Msg) {
		var p Presence
		if len(m.Data) > maxPresence || json.Unmarshal(m.Data, &p) != nil || p.Worker == "" {
			c.log.Warn("worker announcement dropped", "bytes", len(m.Data))
			return
		}
		p.Providers = slices.DeleteFunc(p.Providers, func(pp ProviderPresence) bool { return !validName(pp.Name) })
		fn(p)
	})
	if err != nil {
		return nil, err
	}
	return &Watcher{sub: sub}, nil
}
