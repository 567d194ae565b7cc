package queue

import (
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
}

// add sends the chunks, of so many bytes, now or together with others within
// gatherFor. The first chunk of an answer never waits.
func (g *gatherer) add(e *Events, size int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.pending.b)+size > gatherBytes {
		g.sendOthers()
	}
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
	return nil
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
func (g *gatherer) flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sendOthers()
}

func (g *gatherer) due() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	g.sendOthers()
}

// sendOthers sends what is pending where the caller's own chunks are not among it. An
// error is of no use to the caller: whoever misses the chunks reads them from the kept
// events. The caller holds mu.
func (g *gatherer) sendOthers() {
	if err := g.send(); err != nil {
		g.conn.log.Warn("events not sent", "subject", g.subject, "error", err)
	}
}

// send publishes what is pending. The caller holds mu.
func (g *gatherer) send() error {
	if len(g.pending.b) == 0 {
		return nil
	}
	err := g.conn.nc.Publish(g.subject, g.pending.b)
	g.sent = time.Now()
	g.pending.b, g.item.b = reuse(g.pending.b), reuse(g.item.b)
	if err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	return nil
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
	if len(gs.byIngress) >= maxGatherers {
		gs.flush()
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
	return fn(g)
}

// close sends what is pending.
func (gs *gatherers) close() {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.flush()
}

func (gs *gatherers) flush() {
	for _, g := range gs.byIngress {
		g.flush()
	}
}
