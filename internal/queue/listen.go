package queue

import (
	"errors"
	"sync"

	"github.com/nats-io/nats.go"
)

// Listener hears a job's live events, on whichever ingress it was accepted.
type Listener struct {
	jobID  string
	events func(*Events)
	end    *nats.Subscription
	hubs   *hubs
}

// Listen starts hearing the job's events and ends. Both come in their own order, but
// an end may overtake events: its LastSeq tells. Calls must not block.
func (c *Conn) Listen(jobID string, events func(*Events), end func(*End)) (*Listener, error) {
	l := &Listener{jobID: jobID, events: events, hubs: &c.hubs}
	var err error
	l.end, err = c.subscribe(replySubject(whatEnd, jobID), func(m *nats.Msg) {
		if e, err := decodeEnd(jobID, m.Data); err == nil {
			end(e)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := c.hubs.join(c, l); err != nil {
		_ = l.end.Unsubscribe() // the first error says more
		return nil, err
	}
	return l, nil
}

// Close stops hearing.
func (l *Listener) Close() {
	_ = l.end.Unsubscribe() // it fails only when the connection is closed, and all is silent then
	l.hubs.leave(l)
}

// hubs hear the chunks of other ingresses' jobs: one subscription for each ingress of
// which somebody here follows a job, however many do.
type hubs struct {
	mu        sync.Mutex
	byIngress map[string]*hub
}

type hub struct {
	sub   *nats.Subscription
	byJob map[string][]*Listener
}

func (hs *hubs) join(c *Conn, l *Listener) error {
	ingress := IngressOf(l.jobID)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h, ok := hs.byIngress[ingress]
	if !ok {
		h = &hub{byJob: make(map[string][]*Listener)}
		sub, err := c.subscribe(eventsReply(ingress, "*"), func(m *nats.Msg) { hs.heard(h, m.Data) })
		if err != nil {
			return err
		}
		h.sub = sub
		if hs.byIngress == nil {
			hs.byIngress = make(map[string]*hub)
		}
		hs.byIngress[ingress] = h
	}
	h.byJob[l.jobID] = append(h.byJob[l.jobID], l)
	return nil
}

func (hs *hubs) leave(l *Listener) {
	ingress := IngressOf(l.jobID)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.byIngress[ingress]
	if h == nil {
		return
	}
	var rest []*Listener // a new list: heard may be going through the old one
	for _, other := range h.byJob[l.jobID] {
		if other != l {
			rest = append(rest, other)
		}
	}
	if len(rest) > 0 {
		h.byJob[l.jobID] = rest
		return
	}
	delete(h.byJob, l.jobID)
	if len(h.byJob) == 0 {
		_ = h.sub.Unsubscribe() // as in Close
		delete(hs.byIngress, ingress)
	}
}

// heard passes on what is of the followed jobs and skips the rest.
func (hs *hubs) heard(h *hub, data []byte) {
	_ = eachItem(data, func(jobID string, item []byte) error { // a message that cannot be read has nothing for anybody
		hs.mu.Lock()
		listeners := h.byJob[jobID]
		hs.mu.Unlock()
		if len(listeners) == 0 {
			return nil
		}
		e, err := decodeEvents(jobID, item)
		for _, l := range listeners {
			if err == nil {
				l.events(e)
			}
		}
		return err
	})
}

// eachItem takes apart a message of gathered events. It goes on behind an item that fn
// cannot read.
func eachItem(data []byte, fn func(jobID string, item []byte) error) error {
	r := openFrame(data)
	var errs []error
	for len(r.b) > 0 {
		jobID, item := r.str(), r.bytes()
		if r.err == nil {
			errs = append(errs, fn(jobID, item))
		}
	}
	return errors.Join(append(errs, r.end())...)
}
