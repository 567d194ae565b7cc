package queue

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// gatherFor is the least time between two messages with chunks from one worker to one
// ingress. Under load the chunks of many streams share a message, which spares NATS
// most of its work; a stream alone has each chunk sent as it comes.
const gatherFor = time.Millisecond

// gatherBytes is how much is gathered before it is sent at once.
const gatherBytes = 64 << 10

// eventsOverhead is more than a frame takes beside its chunks.
const eventsOverhead = 1024

// gatherer sends the chunks of all streams that a worker answers for one ingress, in
// the order in which they are added.
type gatherer struct {
	conn    *Conn
	subject string

	mu      sync.Mutex
	pending writer // a batch of events, as appendItem frames them
	item    writer // what is being framed
	sent    time.Time
	armed   bool // timer is to send what is pending
	timer   *time.Timer
	err     error // of a message that the timer could not send
}

// add sends the chunks now, or together with others within gatherFor. The first chunk
// of an answer never waits. An error may be of chunks that were added before.
func (g *gatherer) add(e *Events) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.append(e)
	wait := gatherFor - time.Since(g.sent)
	if e.FirstSeq <= 1 || wait <= 0 || len(g.pending.b) > gatherBytes {
		return g.send()
	}
	if !g.armed {
		g.armed = true
		if g.timer == nil {
			g.timer = time.AfterFunc(wait, g.due)
		} else {
			g.timer.Reset(wait)
		}
	}
	return g.take()
}

// append frames the chunks behind what is pending. The caller holds mu.
func (g *gatherer) append(e *Events) {
	if len(g.pending.b) == 0 {
		g.pending.b = append(g.pending.b, frameVersion)
	}
	g.item.b = g.item.b[:0]
	e.append(&g.item)
	g.pending.str(e.JobID)
	g.pending.bytes(g.item.b)
}

// flush sends what is pending, so that what is said next comes after it.
func (g *gatherer) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.send()
}

func (g *gatherer) due() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	g.err = errors.Join(g.err, g.send())
}

// send publishes what is pending. The caller holds mu.
func (g *gatherer) send() error {
	if len(g.pending.b) == 0 {
		return g.take()
	}
	err := g.conn.nc.Publish(g.subject, g.pending.b)
	g.sent = time.Now()
	g.pending.b, g.item.b = reuse(g.pending.b), reuse(g.item.b)
	if err != nil {
		err = fmt.Errorf("send events: %w", err)
	}
	return errors.Join(err, g.take())
}

// take returns the error of an earlier message, once. The caller holds mu.
func (g *gatherer) take() error {
	err := g.err
	g.err = nil
	return err
}

// reuse empties a buffer, and lets go of one that is larger than is often needed.
func reuse(b []byte) []byte {
	if cap(b) > 2*gatherBytes {
		return nil
	}
	return b[:0]
}

// gatherers has one gatherer for each ingress.
type gatherers struct {
	conn   *Conn
	worker string

	mu        sync.RWMutex // held for reading while one is used
	byIngress map[string]*gatherer
}

// maxGatherers bounds the ingresses that are remembered; most of so many are gone.
const maxGatherers = 1024

// with calls fn with the ingress's gatherer.
func (gs *gatherers) with(ingress string, fn func(*gatherer) error) error {
	gs.mu.RLock()
	if g, ok := gs.byIngress[ingress]; ok {
		defer gs.mu.RUnlock()
		return fn(g)
	}
	gs.mu.RUnlock()
	gs.mu.Lock()
	defer gs.mu.Unlock()
	var err error
	if len(gs.byIngress) >= maxGatherers {
		err = gs.flush()
		gs.byIngress = nil
	}
	if gs.byIngress == nil {
		gs.byIngress = make(map[string]*gatherer)
	}
	g, ok := gs.byIngress[ingress]
	if !ok {
		g = &gatherer{conn: gs.conn, subject: eventsReply(ingress, gs.worker)}
		gs.byIngress[ingress] = g
	}
	return errors.Join(err, fn(g))
}

// close sends what is pending.
func (gs *gatherers) close() error {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return gs.flush()
}

func (gs *gatherers) flush() error {
	var errs []error
	for _, g := range gs.byIngress {
		errs = append(errs, g.flush())
	}
	return errors.Join(errs...)
}
