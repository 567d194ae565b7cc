package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// Ear hears one thing until it is closed.
type Ear struct{ sub *nats.Subscription }

// Close stops hearing.
func (e *Ear) Close() { _ = e.sub.Unsubscribe() } // it fails only when the connection is closed

// Purge is what an ingress did about jobs that were to end.
type Purge struct {
	Ended []string `json:"ended,omitempty"` // nobody had them; their clients are told
	Kept  []string `json:"kept,omitempty"`  // a worker has them, or they are just ending
}

// purge names the messages of jobs that are to end.
type purge struct {
	Provider string        `json:"provider"`
	Jobs     []StoredPlace `json:"jobs"`
}

// HearPurges has fn end jobs of this ingress that an operator takes out of a provider's
// queue. Calls come from one goroutine.
func (c *Conn) HearPurges(ingress string, fn func(provider string, jobs []StoredPlace) Purge) (*Ear, error) {
	sub, err := c.subscribe(purgeSubject(ingress), func(m *nats.Msg) {
		var ask purge
		err := json.Unmarshal(m.Data, &ask)
		if err == nil {
			var answer []byte
			if answer, err = json.Marshal(fn(ask.Provider, ask.Jobs)); err == nil {
				err = m.Respond(answer)
			}
		}
		if err != nil {
			c.log.Warn("purge not answered", "error", err)
		}
	})
	if err != nil {
		return nil, err
	}
	return &Ear{sub}, nil
}

// AskPurge has an ingress end jobs that wait at these places. Messages that it does not
// name in its answer stand for no job of its any more. The error wraps ErrNoIngress when
// nobody hears it.
func (c *Conn) AskPurge(ctx context.Context, ingress, provider string, jobs []StoredPlace) (Purge, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	var done Purge
	data, err := json.Marshal(purge{provider, jobs})
	if err == nil {
		var reply *nats.Msg
		if reply, err = c.nc.RequestWithContext(ctx, purgeSubject(ingress), data); err == nil {
			err = json.Unmarshal(reply.Data, &done)
		}
	}
	if errors.Is(err, nats.ErrNoResponders) {
		err = fmt.Errorf("%w: %w", ErrNoIngress, err)
	}
	if err != nil {
		return Purge{}, fmt.Errorf("purge %d jobs of ingress %s: %w", len(jobs), ingress, err)
	}
	return done, nil
}

// reset asks workers to close breakers; without a model, those of all models.
type reset struct {
	Model string `json:"model,omitempty"`
}

// resetDone is one worker's answer.
type resetDone struct {
	Closed int `json:"closed"` // breakers that were not
}

// HearResets has fn close the breakers of one model of the provider, or of all with "", and
// tell how many were not closed. Calls come from one goroutine.
func (c *Conn) HearResets(provider string, fn func(model string) int) (*Ear, error) {
	sub, err := c.subscribe(resetSubject(provider), func(m *nats.Msg) {
		var ask reset
		err := json.Unmarshal(m.Data, &ask)
		if err == nil {
			var answer []byte
			if answer, err = json.Marshal(resetDone{fn(ask.Model)}); err == nil && m.Reply != "" {
				err = m.Respond(answer)
			}
		}
		if err != nil {
			c.log.Warn("reset of breakers not answered", "provider", provider, "error", err)
		}
	})
	if err != nil {
		return nil, err
	}
	return &Ear{sub}, nil
}

// resetWait is how long workers may take to answer.
const resetWait = time.Second

// ResetBreakers has the provider's workers close breakers. It waits for as many as are
// known to be there, for a second at most, and tells how many heard it and how many
// breakers they closed.
func (c *Conn) ResetBreakers(ctx context.Context, provider, model string, workers int) (heard, closed int, err error) {
	data, err := json.Marshal(reset{model})
	if err != nil {
		return 0, 0, fmt.Errorf("reset breakers of %s: %w", provider, err)
	}
	answers := make(chan int, 1024)
	inbox := nats.NewInbox()
	sub, err := c.subscribe(inbox, func(m *nats.Msg) {
		var done resetDone
		if len(m.Data) == 0 || json.Unmarshal(m.Data, &done) != nil {
			return // nobody hears it
		}
		select {
		case answers <- done.Closed:
		default:
		}
	})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails only when the connection is closed
	if err := c.nc.PublishRequest(resetSubject(provider), inbox, data); err != nil {
		return 0, 0, fmt.Errorf("reset breakers of %s: %w", provider, err)
	}
	limit := time.NewTimer(resetWait)
	defer limit.Stop()
	for heard < workers {
		select {
		case n := <-answers:
			heard, closed = heard+1, closed+n
		case <-limit.C:
			return heard, closed, nil
		case <-ctx.Done():
			return heard, closed, nil
		}
	}
	return heard, closed, nil
}
