package queue

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/tidwall/gjson"

	"sluice/internal/inference"
)

// The ways in which a publish fails.
var (
	// ErrFull says that the provider's queue is at its bound.
	ErrFull = errors.New("queue full")
	// ErrNoQueue says that no stream took the job: the server has just been started
	// again, or JetStream is down.
	ErrNoQueue = errors.New("no queue")
)

// Replies is what an ingress hears about its jobs. Calls come from one goroutine, in
// the order in which the server sent them, and must not block.
type Replies interface {
	// Published tells how the server took an epoch of a job: the sequence number in
	// its stream, or an error that wraps ErrFull or ErrNoQueue.
	Published(jobID string, epoch int, seq uint64, err error)

	// Events brings chunks of a streamed answer. The chunks share memory with the
	// message and may be kept.
	Events(e *Events)

	// Ended brings the end of a run. The worker repeats it until it is settled.
	Ended(e *End)

	// Claimed answers a worker that is about to run a job again.
	Claimed(c Claim) Judgement

	// Passed tells that a worker gave a job up for another to do.
	Passed(p *Passed)

	// Held tells which jobs a worker holds; it comes every second.
	Held(h *Held)

	// Attached tells that a client of any ingress reads the job's events.
	Attached(jobID string)
}

// Dispatcher is the ingress's side of the queue: it sends jobs out and brings what
// is said about them back over one subscription.
type Dispatcher struct {
	conn    *Conn
	ingress string
	replies Replies
	sub     *nats.Subscription

	hearing sync.Mutex // held while replies is called
	closed  bool
}

// NewDispatcher starts hearing what is said to the ingress of this id.
func (c *Conn) NewDispatcher(ingress string, replies Replies) (*Dispatcher, error) {
	d := &Dispatcher{conn: c, ingress: ingress, replies: replies}
	sub, err := c.subscribe("rep."+ingress+".>", d.heard)
	if err != nil {
		return nil, err
	}
	d.sub = sub
	return d, nil
}

// Close stops hearing: replies is not called any more once it has returned.
func (d *Dispatcher) Close() {
	_ = d.sub.Unsubscribe() // it fails only when the connection is closed, and all is silent then
	d.hearing.Lock()
	defer d.hearing.Unlock()
	d.closed = true
}

// StoreBody keeps a body that is too large for a message. It returns the name to
// publish the job with, or "" when the body travels in the message itself.
func (d *Dispatcher) StoreBody(ctx context.Context, j *inference.Job) (string, error) {
	return d.conn.blobs.putBody(ctx, j)
}

// Publish sends the job to its first candidate's queue. It does not wait: Published
// tells how the server took it. The same job and epoch may be published again when
// no word comes back; the server drops a second copy.
func (d *Dispatcher) Publish(j *inference.Job, bodyRef string) error {
	m := jobMessage(j, bodyRef)
	m.Reply = replySubject(whatPublished, j.ID) + "." + strconv.Itoa(j.Epoch)
	if err := d.conn.nc.PublishMsg(m); err != nil {
		return fmt.Errorf("publish job %s: %w", j.ID, err)
	}
	return nil
}

// Open notes in the event stream that the job will be answered there, and whose it
// is, so that any ingress knows of it before its first chunk.
func (d *Dispatcher) Open(j *inference.Job) error {
	m := nats.NewMsg(eventsSubject(j.ID))
	m.Header[hdrTenant] = []string{url.QueryEscape(j.Tenant)}
	m.Header[hdrOpen] = []string{"1"}
	if err := d.conn.nc.PublishMsg(m); err != nil {
		return fmt.Errorf("open events of job %s: %w", j.ID, err)
	}
	return nil
}

// Cancel tells the provider's workers to drop the job, and takes its message out of
// the queue in case that no worker has it yet. seq zero means that the message's
// place is not known.
func (d *Dispatcher) Cancel(ctx context.Context, jobID, provider string, seq uint64) error {
	if err := d.conn.nc.Publish(cancelSubject(provider), encodeIDs([]string{jobID})); err != nil {
		return fmt.Errorf("cancel job %s: %w", jobID, err)
	}
	return d.Remove(ctx, jobID, provider, seq)
}

// Remove takes the job's message out of the provider's queue of interactive jobs, whoever
// has it.
func (d *Dispatcher) Remove(ctx context.Context, jobID, provider string, seq uint64) error {
	if seq == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	reply, err := d.conn.nc.RequestMsgWithContext(ctx, removal(jobStream(provider), seq))
	if err == nil {
		err = removed(reply)
	}
	if err != nil {
		return fmt.Errorf("remove job %s from its queue: %w", jobID, err)
	}
	return nil
}

// removal asks the server to remove one message of a stream.
func removal(stream string, seq uint64) *nats.Msg {
	return &nats.Msg{Subject: "$JS.API.STREAM.MSG.DELETE." + stream, Data: fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq)}
}

// removed reads the answer to a removal. A message that is gone was taken, finished or
// removed already: as wished.
func removed(reply *nats.Msg) error {
	if reply.Header.Get("Status") == "503" {
		return nats.ErrNoResponders // JetStream is down
	}
	code, text := apiError(reply.Data)
	if code == 0 || goneCode(code) || code == codeDeleteFailed && (text == textNotFound || text == textEnd) {
		return nil
	}
	return fmt.Errorf("%s (%d)", text, code)
}

// Queued reports whether the provider's queue of interactive jobs still has the message
// that was given this place, waiting or in a worker's hands.
func (d *Dispatcher) Queued(ctx context.Context, provider string, seq uint64) (bool, error) {
	return d.conn.holds(ctx, jobStream(provider), seq)
}

// holds reports whether the stream has a message at this place.
func (c *Conn) holds(ctx context.Context, stream string, seq uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	reply, err := c.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, fmt.Appendf(nil, `{"seq":%d}`, seq))
	if err != nil {
		return false, fmt.Errorf("look for message %d of %s: %w", seq, stream, err)
	}
	switch code, text := apiError(reply.Data); {
	case code == 0:
		return true, nil
	case goneCode(code):
		return false, nil
	default:
		return false, fmt.Errorf("look for message %d of %s: %s (%d)", seq, stream, text, code)
	}
}

// What the server says of a message to delete that is not there: codeSequenceNotFound, or
// codeDeleteFailed with what its store says, which depends on how much else is gone.
const (
	codeSequenceNotFound jetstream.ErrorCode = 10043
	codeDeleteFailed     jetstream.ErrorCode = 10057

	textNotFound = "no message found"
	textEnd      = "stream store EOF"
)

// goneCode says that there is no such message, or not even its stream.
func goneCode(c jetstream.ErrorCode) bool {
	return c == jetstream.JSErrCodeMessageNotFound || c == codeSequenceNotFound || c == jetstream.JSErrCodeStreamNotFound
}

// apiError reads the error of a JetStream API's answer; code zero means that there is
// none.
func apiError(reply []byte) (code jetstream.ErrorCode, text string) {
	e := gjson.GetBytes(reply, "error")
	return jetstream.ErrorCode(e.Get("err_code").Uint()), e.Get("description").Str
}

// Settle tells a worker that the ends of these jobs are taken and accounted for, so
// that it may acknowledge them.
func (d *Dispatcher) Settle(worker string, jobIDs []string) error {
	if err := d.conn.nc.Publish(workerInbox(worker), encodeIDs(jobIDs)); err != nil {
		return fmt.Errorf("settle with worker %s: %w", worker, err)
	}
	return nil
}

// heard takes apart rep.<ingress>.<what>.<job>[.<epoch>], or .<worker> for events.
func (d *Dispatcher) heard(m *nats.Msg) {
	d.hearing.Lock()
	defer d.hearing.Unlock()
	if d.closed {
		return
	}
	rest := m.Subject[min(len(m.Subject), len("rep.")+len(d.ingress)+1):]
	what, rest, _ := strings.Cut(rest, ".")
	jobID, epoch, _ := strings.Cut(rest, ".")
	var err error
	switch what {
	case whatPublished:
		n, _ := strconv.Atoi(epoch)
		seq, perr := parsePubAck(m)
		d.replies.Published(jobID, n, seq, perr)
	case whatEvents:
		err = eachItem(m.Data, func(jobID string, item []byte) error {
			e, err := decodeEvents(jobID, item)
			if err == nil {
				d.replies.Events(e)
			}
			return err
		})
	case whatEnd:
		var e *End
		if e, err = decodeEnd(jobID, m.Data); err == nil {
			d.replies.Ended(e)
		}
	case whatClaim:
		var c Claim
		if c, err = decodeClaim(jobID, m.Data); err == nil {
			j := d.replies.Claimed(c)
			err = m.Respond(j.encode())
		}
	case whatPassed:
		var p *Passed
		if p, err = decodePassed(jobID, m.Data); err == nil {
			d.replies.Passed(p)
		}
	case whatBeat:
		var h *Held
		if h, err = decodeHeld(m.Data); err == nil {
			d.replies.Held(h)
		}
	case whatAttach:
		d.replies.Attached(jobID)
	}
	if err != nil {
		d.conn.log.Warn("message to ingress dropped", "subject", m.Subject, "error", err)
	}
}

// parsePubAck reads JetStream's acknowledgement of a publish.
func parsePubAck(m *nats.Msg) (uint64, error) {
	if m.Header.Get("Status") == "503" {
		return 0, ErrNoQueue
	}
	ack := gjson.ParseBytes(m.Data)
	if e := ack.Get("error"); e.Exists() {
		code := jetstream.ErrorCode(e.Get("err_code").Uint())
		if fullCode(code) {
			return 0, ErrFull
		}
		return 0, fmt.Errorf("%w: %s (%d)", ErrNoQueue, e.Get("description").Str, code)
	}
	seq := ack.Get("seq").Uint()
	if seq == 0 {
		return 0, fmt.Errorf("%w: no acknowledgement", ErrNoQueue)
	}
	return seq, nil
}

// JetStream's codes for a stream that takes no more; see the server's errors.json.
const (
	codeInsufficientResources jetstream.ErrorCode = 10023
	codeStoreFailed           jetstream.ErrorCode = 10077
	codeTooManyRequests       jetstream.ErrorCode = 10167
)

func fullCode(c jetstream.ErrorCode) bool {
	return c == codeStoreFailed || c == codeTooManyRequests || c == codeInsufficientResources
}

func isFull(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && fullCode(api.ErrorCode)
}
