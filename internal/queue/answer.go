package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"sluice/internal/inference"
)

// ErrNoIngress says that nobody hears what is said to the job's ingress: it is gone,
// or cut off for the moment.
var ErrNoIngress = errors.New("ingress does not answer")

// Word is what a worker hears.
type Word interface {
	// Settled says that the ends of these jobs are taken and accounted for.
	Settled(jobIDs []string)
	// Cancelled says that nobody wants these jobs any more, whoever holds them.
	Cancelled(jobIDs []string)
}

// Answerer is the worker's side of the way back.
type Answerer struct {
	conn   *Conn
	worker string
	word   Word
	events gatherers

	mu        sync.Mutex
	settled   *nats.Subscription
	cancelled map[string]*nats.Subscription // by provider
}

// NewAnswerer starts hearing what is said to the worker of this id, and to all
// workers of the providers. Calls of word must not block.
func (c *Conn) NewAnswerer(worker string, providers []string, word Word) (*Answerer, error) {
	a := &Answerer{
		conn: c, worker: worker, word: word, events: gatherers{conn: c, worker: worker}, cancelled: make(map[string]*nats.Subscription),
	}
	var err error
	if a.settled, err = a.hear(workerInbox(worker), word.Settled); err != nil {
		return nil, err
	}
	for _, p := range providers {
		if err := a.Join(p); err != nil {
			a.Close()
			return nil, err
		}
	}
	return a, nil
}

func (a *Answerer) hear(subject string, fn func(ids []string)) (*nats.Subscription, error) {
	return a.conn.subscribe(subject, func(m *nats.Msg) {
		ids, err := decodeIDs(m.Data)
		if err != nil {
			a.conn.log.Warn("message to worker dropped", "subject", m.Subject, "error", err)
			return
		}
		fn(ids)
	})
}

// Join starts hearing what is said to all workers of one more provider.
func (a *Answerer) Join(provider string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancelled[provider] != nil {
		return nil
	}
	sub, err := a.hear(cancelSubject(provider), a.word.Cancelled)
	if err != nil {
		return err
	}
	a.cancelled[provider] = sub
	return nil
}

// Leave stops hearing what is said to all workers of the provider.
func (a *Answerer) Leave(provider string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if sub := a.cancelled[provider]; sub != nil {
		_ = sub.Unsubscribe()
		delete(a.cancelled, provider)
	}
}

// Close stops hearing, and sends what is left to be said.
func (a *Answerer) Close() {
	a.events.close()
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.settled.Unsubscribe()
	for _, sub := range a.cancelled {
		_ = sub.Unsubscribe()
	}
}

// Body returns the job's body: what came in the message, or the blob of that name.
func (a *Answerer) Body(ctx context.Context, j *inference.Job, bodyRef string, maxBytes int64) ([]byte, error) {
	if bodyRef == "" {
		return j.Body, nil
	}
	return a.conn.FetchBlob(ctx, bodyRef, maxBytes)
}

// Events sends chunks to the job's ingress, perhaps together with those of other jobs.
// It does not wait.
func (a *Answerer) Events(e *Events) error {
	size := 0
	for _, c := range e.Chunks {
		size += len(c)
	}
	if size > inlineBytes && len(e.Chunks) > 1 {
		half := len(e.Chunks) / 2
		first, second := *e, *e
		first.Chunks, second.Chunks = e.Chunks[:half], e.Chunks[half:]
		second.FirstSeq += uint64(half)
		return errors.Join(a.Events(&first), a.Events(&second))
	}
	// Such a chunk is alone in its message; the question takes the lock of the connection.
	if size > inlineBytes && int64(size+eventsOverhead) > a.conn.nc.MaxPayload() {
		return inference.Errorf(inference.CodeUpstreamTooLarge, "The provider sent a chunk of %d bytes, which is more than can be passed on.", size)
	}
	return a.events.with(IngressOf(e.JobID), func(g *gatherer) error { return g.add(e, size) })
}

// TooLarge reports whether the end's body does not fit in a message.
func TooLarge(e *End) bool { return len(e.Body) > inlineBytes }

// StoreAnswer moves the body of an end that is too large for a message into a blob.
func (a *Answerer) StoreAnswer(ctx context.Context, e *End) error {
	if !TooLarge(e) {
		return nil
	}
	ref := fmt.Sprintf("%s.%d.%d.answer", e.JobID, e.Run.Epoch, e.Run.Delivery)
	if err := a.conn.blobs.put(ctx, ref, e.Body); err != nil {
		return err
	}
	e.BodyRef, e.bodyBytes, e.Body = ref, len(e.Body), nil
	return nil
}

// End tells the job's ingress how the run ended. It does not wait: Settled tells
// that the ingress has taken it, and until then the worker repeats it.
func (a *Answerer) End(e *End) error {
	if e.LastSeq > 0 {
		_ = a.events.with(IngressOf(e.JobID), func(g *gatherer) error { g.flush(); return nil }) // it never fails
	}
	if err := a.conn.nc.Publish(replySubject(whatEnd, e.JobID), e.encode()); err != nil {
		return fmt.Errorf("send end of job %s: %w", e.JobID, err)
	}
	return nil
}

// claimTimeout is how long an ingress may take to judge a claim.
const claimTimeout = 2 * time.Second

// Claim asks the job's ingress whether a job that was handed out before is still
// wanted. The error wraps ErrNoIngress when nobody hears the question; when it is heard
// and not judged in time, or lost with the connection, the error is another one.
func (a *Answerer) Claim(ctx context.Context, c Claim) (Judgement, error) {
	return a.conn.ask(ctx, replySubject(whatClaim, c.JobID), c)
}

func (c *Conn) ask(ctx context.Context, subject string, claim Claim) (Judgement, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	m, err := c.nc.RequestWithContext(ctx, subject, claim.encode())
	if errors.Is(err, nats.ErrNoResponders) {
		return Judgement{}, fmt.Errorf("claim job %s: %w: %w", claim.JobID, ErrNoIngress, err)
	}
	if err != nil {
		return Judgement{}, fmt.Errorf("claim job %s: %w", claim.JobID, err)
	}
	j, err := decodeJudgement(m.Data)
	if err != nil {
		return Judgement{}, fmt.Errorf("claim job %s: %w", claim.JobID, err)
	}
	return j, nil
}

// Forward publishes the job to its lane of its first candidate's queue and waits until
// the server has it. It returns the message's place in the stream. The error wraps ErrFull or
// ErrNoQueue when the queue does not take the job; after any other it may have it or
// not, and the same call may be made again.
func (a *Answerer) Forward(ctx context.Context, j *inference.Job, bodyRef string) (seq uint64, err error) {
	if seq, err = a.conn.publishAcked(ctx, jobMessage(j, bodyRef)); err != nil {
		return 0, fmt.Errorf("forward job %s: %w", j.ID, err)
	}
	return seq, nil
}

// publishAcked publishes a message and waits for its place in its stream.
func (c *Conn) publishAcked(ctx context.Context, m *nats.Msg) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	reply, err := c.nc.RequestMsgWithContext(ctx, m)
	if errors.Is(err, nats.ErrNoResponders) {
		return 0, ErrNoQueue
	}
	if err != nil {
		return 0, err
	}
	return parsePubAck(reply)
}

// Passed tells the job's ingress that the worker gives the job up for another to do.
func (a *Answerer) Passed(p *Passed) error {
	if err := a.conn.nc.Publish(replySubject(whatPassed, p.JobID), p.encode()); err != nil {
		return fmt.Errorf("pass job %s on: %w", p.JobID, err)
	}
	return nil
}

// heldPerMessage keeps the message with a worker's jobs well below the payload limit.
const heldPerMessage = 4096

// Hold tells each ingress which of its jobs the worker holds.
func (a *Answerer) Hold(jobs []HeldJob) error {
	byIngress := make(map[string][]HeldJob)
	for _, j := range jobs {
		i := IngressOf(j.JobID)
		byIngress[i] = append(byIngress[i], j)
	}
	var errs []error
	for ingress, held := range byIngress {
		for len(held) > 0 {
			n := min(len(held), heldPerMessage)
			h := Held{Worker: a.worker, Jobs: held[:n]}
			errs = append(errs, a.conn.nc.Publish(beatSubject(ingress), h.encode()))
			held = held[n:]
		}
	}
	return errors.Join(errs...)
}

// IngressGone reports whether nobody at all hears what is said to the job's ingress.
func (a *Answerer) IngressGone(ctx context.Context, jobID string) bool {
	// The zero run is earlier than any other, so the claim changes nothing.
	_, err := a.Claim(ctx, Claim{JobID: jobID, Worker: a.worker})
	return errors.Is(err, ErrNoIngress)
}

// IngressGone reports whether nobody at all hears what is said to the ingress of this id. One
// that is cut off for the moment looks the same. An error says that the server did not tell;
// an ingress that hears and does not answer in time is there.
func (c *Conn) IngressGone(ctx context.Context, ingress string) (bool, error) {
	if !c.Connected() {
		return false, fmt.Errorf("look for ingress %s: %w", ingress, errNotConnected)
	}
	id := NewJobID(ingress, time.Now()) // nobody's, so the claim changes nothing
	_, err := c.ask(ctx, replySubject(whatClaim, id), Claim{JobID: id})
	switch {
	case errors.Is(err, ErrNoIngress):
		return true, nil
	case err != nil && (ctx.Err() != nil || !c.Connected()):
		return false, fmt.Errorf("look for ingress %s: %w", ingress, err)
	}
	return false, nil
}
