package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"sluice/internal/inference"
)

// pullExpiry is how long the server keeps a request for jobs open. A puller that
// hears nothing for somewhat longer asks anew. It is short, because to a worker that
// hangs, or is cut off, the server hands jobs for as long as its request is open.
const pullExpiry = 5 * time.Second

// Puller takes jobs of one provider off the queue, never more than there are free
// slots for, so that no job waits in a busy worker while another one idles. It keeps
// one request open for all free slots together.
type Puller struct {
	conn   *Conn
	stream string
	next   string // where the server takes requests for jobs
	take   func(*Delivery)
	lost   func() // the consumer is gone: somebody must make it again

	taking sync.Mutex    // held while a job is handed over
	quit   chan struct{} // closed when no more jobs are taken

	mu        sync.Mutex
	sub       *nats.Subscription
	free      int // slots that no job occupies
	requested int // jobs asked for and not yet delivered
	lastHeard time.Time
	slots     int
	most      int // jobs that may be in hand at the moment; more than slots are not anyway
	share     int // the same while jobs want their slot back
	stopped   bool
	paused    bool
	waiters   []waiter // want a slot back, the oldest job first
}

// NewPuller starts taking jobs of the lane for slots slots. take is called from one
// goroutine and must not block; each job occupies a slot until Free is called. lost
// is called when the server has no consumer to take jobs from.
func (c *Conn) NewPuller(provider string, lane inference.Lane, slots int, take func(*Delivery), lost func()) (*Puller, error) {
	return c.pull(laneStream(provider, lane), string(lane), slots, take, lost)
}

// NewBoundPuller is NewPuller with a Bound from the start.
func (c *Conn) NewBoundPuller(provider string, lane inference.Lane, slots, most int, take func(*Delivery), lost func()) (*Puller, error) {
	return c.pullBound(laneStream(provider, lane), string(lane), slots, most, take, lost)
}

// NewPausedPuller is NewBoundPuller for one that takes nothing before Resume.
func (c *Conn) NewPausedPuller(provider string, lane inference.Lane, slots, most int, take func(*Delivery), lost func()) *Puller {
	p := c.newPuller(laneStream(provider, lane), string(lane), slots, most, take, lost)
	p.paused = true
	return p
}

// pull starts taking messages of any consumer.
func (c *Conn) pull(stream, consumer string, slots int, take func(*Delivery), lost func()) (*Puller, error) {
	return c.pullBound(stream, consumer, slots, slots, take, lost)
}

func (c *Conn) newPuller(stream, consumer string, slots, most int, take func(*Delivery), lost func()) *Puller {
	return &Puller{
		conn: c, stream: stream, take: take, lost: lost, free: slots, slots: slots, most: most, share: slots, lastHeard: time.Now(), quit: make(chan struct{}),
		next: "$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer,
	}
}

func (c *Conn) pullBound(stream, consumer string, slots, most int, take func(*Delivery), lost func()) (*Puller, error) {
	p := c.newPuller(stream, consumer, slots, most, take, lost)
	sub, err := c.subscribe(nats.NewInbox(), p.heard)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sub = sub
	p.ask()
	return p, nil
}

// Run asks anew when the server has been silent for too long, until ctx ends or Stop is
// called.
func (p *Puller) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.quit:
			return
		case <-tick.C:
			p.mu.Lock()
			if p.requested > 0 && time.Since(p.lastHeard) > pullExpiry+5*time.Second {
				p.requested = 0
			}
			p.ask()
			p.mu.Unlock()
		}
	}
}

// Free gives a slot back, to whoever waits for one, or for the next job.
func (p *Puller) Free() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	p.grant()
	p.ask()
}

// grant gives free slots to jobs that want theirs back, as many as may be in hand while
// such jobs wait. The caller holds mu.
func (p *Puller) grant() {
	for len(p.waiters) > 0 && p.free > 0 && p.slots-p.free < p.share {
		p.free--
		close(p.waiters[0].turn)
		p.waiters = p.waiters[1:]
	}
}

// waiter is a job that wants its slot back.
type waiter struct {
	seq  uint64
	turn chan struct{} // closed when it has one
}

// ErrStopped says that the wait for a slot was given up because no more jobs are taken.
var ErrStopped = errors.New("no more jobs are taken")

// Retake waits for a slot for a job that gave its own back, until ctx ends or quit is
// closed. Such jobs come before those that are still in the queue, in the order that they
// have there.
func (p *Puller) Retake(ctx context.Context, quit <-chan struct{}, d *Delivery) error {
	turn := make(chan struct{})
	p.mu.Lock()
	i, _ := slices.BinarySearchFunc(p.waiters, d.Seq, func(w waiter, seq uint64) int { return cmp.Compare(w.seq, seq) })
	p.waiters = slices.Insert(p.waiters, i, waiter{d.Seq, turn})
	p.grant()
	p.mu.Unlock()
	var err error
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-quit:
		err = ErrStopped
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.IndexFunc(p.waiters, func(w waiter) bool { return w.turn == turn }); i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
		p.ask()
		return err
	}
	return nil // its turn came at the same moment
}

// Share bounds how many jobs may be in hand while some want their slot back: all of the
// provider's workers may have such jobs at once, and together they must not make more
// calls than the provider bears.
func (p *Puller) Share(most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.share = most
	p.grant()
}

// Bound asks for no more jobs while most of them are in hand. Those that were asked for
// may still come.
func (p *Puller) Bound(most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = most
	p.ask()
}

// Reset forgets what was asked for: the connection was lost, and the requests with it.
func (p *Puller) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requested = 0
	p.ask()
}

// Stop takes no more jobs: none is handed over after it has returned. Those that are
// on their way go back to the queue at once.
func (p *Puller) Stop() {
	p.mu.Lock()
	if !p.stopped {
		close(p.quit)
	}
	p.stopped = true
	sub := p.sub
	p.mu.Unlock()
	p.letGo(sub)
}

// letGo ends a subscription. When it returns, no job of it is being handed over.
func (p *Puller) letGo(sub *nats.Subscription) {
	p.taking.Lock()
	defer p.taking.Unlock()
	if sub != nil {
		_ = sub.Drain() // hears what is buffered, then unsubscribes; the server forgets the open requests
	}
}

// Pause takes no jobs until Resume: none is handed over after it has returned. Those that
// are on their way go back to the queue at once.
func (p *Puller) Pause() {
	p.mu.Lock()
	sub := p.sub
	p.paused, p.sub, p.requested = true, nil, 0
	p.mu.Unlock()
	p.letGo(sub)
}

// Resume takes jobs again.
func (p *Puller) Resume() error {
	sub, err := p.conn.subscribe(nats.NewInbox(), p.heard)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || !p.paused {
		_ = sub.Unsubscribe() // nothing was asked for there
		return nil
	}
	p.paused, p.sub = false, sub
	p.ask()
	return nil
}

// ask requests as many jobs as there are free slots not yet asked for. While most of
// them are asked for it waits for more, so that requests are few. The caller holds mu.
func (p *Puller) ask() {
	n := min(p.free, p.most-(p.slots-p.free)) - p.requested
	if p.stopped || len(p.waiters) > 0 || n <= 0 || p.requested > p.free/2 || p.sub == nil || !p.conn.nc.IsConnected() {
		return
	}
	req := fmt.Appendf(nil, `{"batch":%d,"expires":%d}`, n, pullExpiry.Nanoseconds())
	if err := p.conn.nc.PublishRequest(p.next, p.sub.Subject, req); err != nil {
		p.conn.log.Warn("request for messages not sent", "stream", p.stream, "error", err)
		return
	}
	p.requested += n
	p.lastHeard = time.Now()
}

func (p *Puller) heard(m *nats.Msg) {
	if m.Reply == "" {
		p.status(m)
		return
	}
	p.taking.Lock()
	defer p.taking.Unlock()
	p.mu.Lock()
	p.lastHeard = time.Now()
	// A request thought lost may still be served; what no slot is free for goes back.
	refuse := p.stopped || p.free == 0 || p.sub != m.Sub
	if p.sub == m.Sub {
		p.requested = max(p.requested-1, 0)
	}
	if !refuse {
		p.free--
		p.ask()
	}
	p.mu.Unlock()

	d := newDelivery(p.conn, m)
	if refuse {
		d.Nak(0)
		return
	}
	p.take(d)
}

// status reads what the server says of a request that will bring no more jobs.
func (p *Puller) status(m *nats.Msg) {
	status := m.Header.Get("Status")
	if status == "100" { // a heartbeat
		return
	}
	p.mu.Lock()
	if p.sub != m.Sub {
		p.mu.Unlock()
		return // of a request from before a pause
	}
	left := p.requested
	if v := m.Header.Get("Nats-Pending-Messages"); v != "" {
		if n, err := headerInt("Nats-Pending-Messages", v); err == nil {
			left = n
		}
	}
	p.requested = max(p.requested-left, 0)
	p.lastHeard = time.Now()
	expired := status == "408"
	if expired {
		p.ask()
	}
	stopped := p.stopped
	p.mu.Unlock()
	if !expired && !stopped && p.lost != nil {
		p.lost() // 404, 409 and 503: deleted, moved, not there; Run asks again in a second
	}
}

// Delivery is one job in a worker's hands. Exactly one of Ack, Nak and Bury ends it;
// until then Progress keeps it from being given to another worker.
type Delivery struct {
	conn *Conn
	msg  *nats.Msg

	// Delivery counts how often JetStream has handed the message out: 1 for the first
	// time.
	Delivery int

	// Seq is the message's place in its stream, and Waiting how many jobs were behind
	// it that no worker had.
	Seq     uint64
	Waiting int

	// Published is when the server took the message, by its clock.
	Published time.Time
}

func newDelivery(c *Conn, m *nats.Msg) *Delivery {
	d := &Delivery{conn: c, msg: m, Delivery: 1}
	if md, err := m.Metadata(); err == nil {
		d.Delivery, d.Seq, d.Waiting, d.Published = int(md.NumDelivered), md.Sequence.Stream, int(md.NumPending), md.Timestamp
	}
	return d
}

// Job reads the message. bodyRef names the blob that holds the body, if it did not
// travel along.
func (d *Delivery) Job() (j *inference.Job, bodyRef string, err error) {
	return parseJob(d.msg.Subject, d.msg.Header, d.msg.Data)
}

// Ack removes the job from the queue: its end is settled.
func (d *Delivery) Ack() { d.say("+ACK") }

// Nak puts the job back, to be handed out again after delay.
func (d *Delivery) Nak(delay time.Duration) {
	if delay <= 0 {
		d.say("-NAK")
		return
	}
	d.say(fmt.Sprintf(`-NAK {"delay":%d}`, delay.Nanoseconds()))
}

// Progress says that the job is still worked on.
func (d *Delivery) Progress() { d.say("+WPI") }

// Bury keeps a copy of the job among the dead letters, with the reason, and removes
// it from the queue. If the copy cannot be kept, the job stays queued.
func (d *Delivery) Bury(ctx context.Context, provider, reason string) error {
	m := nats.NewMsg(deadSubject(provider))
	for k, v := range d.msg.Header {
		if k != hdrMsgID {
			m.Header[k] = v
		}
	}
	m.Header.Set(hdrReason, reason)
	m.Header.Set(hdrDeliveries, fmt.Sprint(d.Delivery))
	m.Header.Set(hdrSubject, d.msg.Subject)
	m.Data = d.msg.Data
	if _, err := d.conn.js.PublishMsg(ctx, m); err != nil {
		d.Nak(5 * time.Second)
		return fmt.Errorf("bury job: %w", err)
	}
	d.say("+TERM")
	return nil
}

// say is not confirmed: a word that gets lost means that the job is handed out once
// more, and the claim before that run finds it done.
func (d *Delivery) say(word string) {
	if err := d.conn.nc.Publish(d.msg.Reply, []byte(word)); err != nil {
		d.conn.log.Warn("word on a job not sent", "word", word, "error", err)
	}
}
