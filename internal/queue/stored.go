package queue

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/tidwall/gjson"

	"sluice/internal/inference"
)

// storedTimeout bounds one publish of many stored jobs, with their bodies.
const storedTimeout = time.Minute

// Published tells how the server took a job.
type Published struct {
	Place Place // where its message stands, if Err is nil

	// Err wraps ErrFull or ErrNoQueue when the queue, or the store of large bodies, does
	// not take the job. After any other the queue may have it or not, and the same epoch
	// may be published again.
	Err error
}

// PublishStored sends jobs to the stored lane of their first candidates' queues and waits,
// for a minute at most, until the server has answered for each. What it returns stands in
// the order of jobs. A job and epoch that the queue was given within the last two minutes
// keeps its place: the server drops a second copy.
func (c *Conn) PublishStored(ctx context.Context, jobs []*inference.Job) []Published {
	ctx, cancel := context.WithTimeout(ctx, storedTimeout)
	defer cancel()
	out := make([]Published, len(jobs))
	if !c.Connected() {
		for i, j := range jobs {
			out[i].Err = fmt.Errorf("publish job %s: %w", j.ID, errNotConnected)
		}
		return out
	}
	messages, of := make([]*nats.Msg, 0, len(jobs)), make([]int, 0, len(jobs))
	for i, j := range jobs {
		if !j.Lane.Stored() {
			out[i].Err = fmt.Errorf("publish job %s: lane %q is no stored one", j.ID, j.Lane)
			continue
		}
		ref, err := c.blobs.putBody(ctx, j)
		if err != nil {
			out[i].Err = fmt.Errorf("publish job %s: %w", j.ID, err)
			continue
		}
		messages, of = append(messages, jobMessage(j, ref)), append(of, i)
	}
	for n, a := range c.exchange(ctx, messages) {
		i := of[n]
		seq, err := uint64(0), a.err
		if err == nil {
			seq, err = parsePubAck(a.msg)
		}
		if err != nil {
			out[i].Err = fmt.Errorf("publish job %s: %w", jobs[i].ID, err)
			continue
		}
		out[i].Place = Place{Candidates: jobs[i].Candidates, Seq: seq}
	}
	return out
}

// StoredPlace is where a stored job's message stands in a provider's queue.
type StoredPlace struct {
	JobID string
	Seq   uint64 // zero: not known
}

// StoredQueued reports of each job whether the provider's queue still has its message at
// this place, waiting or in a worker's hands. In a stream that was made anew the place may
// be another job's.
func (c *Conn) StoredQueued(ctx context.Context, provider string, jobs []StoredPlace) ([]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, storedTimeout)
	defer cancel()
	stream := storedStream(provider)
	questions := make([]*nats.Msg, len(jobs))
	for i, j := range jobs {
		questions[i] = &nats.Msg{Subject: "$JS.API.STREAM.MSG.GET." + stream, Data: fmt.Appendf(nil, `{"seq":%d}`, max(j.Seq, 1))}
	}
	there := make([]bool, len(jobs))
	for i, a := range c.exchange(ctx, questions) {
		if a.err == nil && a.msg.Header.Get("Status") == "503" {
			a.err = nats.ErrNoResponders // JetStream is down
		}
		if a.err != nil {
			return nil, fmt.Errorf("look for messages of %s: %w", stream, a.err)
		}
		switch code, text := apiError(a.msg.Data); {
		case code == 0:
			there[i] = jobs[i].Seq > 0 && jobOf(a.msg.Data) == jobs[i].JobID
		case !goneCode(code):
			return nil, fmt.Errorf("look for message %d of %s: %s (%d)", jobs[i].Seq, stream, text, code)
		}
	}
	return there, nil
}

// jobOf reads whose message the server has found.
func jobOf(reply []byte) string {
	lines, err := base64.StdEncoding.DecodeString(gjson.GetBytes(reply, "message.hdrs").Str)
	if err != nil {
		return ""
	}
	h, err := nats.DecodeHeadersMsg(lines)
	if err != nil {
		return ""
	}
	return h.Get(hdrJob)
}

// CancelStored tells the provider's workers to drop the jobs, and takes their messages out
// of the queue in case that no worker has them yet.
func (c *Conn) CancelStored(ctx context.Context, provider string, jobs []StoredPlace) error {
	for some := range slices.Chunk(jobs, heldPerMessage) {
		ids := make([]string, len(some))
		for i, j := range some {
			ids[i] = j.JobID
		}
		if err := c.nc.Publish(cancelSubject(provider), encodeIDs(ids)); err != nil {
			return fmt.Errorf("cancel %d stored jobs of %s: %w", len(jobs), provider, err)
		}
	}
	return c.RemoveStored(ctx, provider, jobs)
}

// HearCancels calls fn with the ids of jobs of which anybody tells workers that nobody wants
// them any more, until what it returns ends that. Calls must not block.
func (c *Conn) HearCancels(fn func(ids []string)) (stop func(), err error) {
	sub, err := c.subscribe(cancelSubject("*"), func(m *nats.Msg) {
		if ids, err := decodeIDs(m.Data); err == nil { // its workers tell of one that cannot be read
			fn(ids)
		}
	})
	if err != nil {
		return nil, err
	}
	return func() { _ = sub.Unsubscribe() }, nil // it fails only when the connection is closed, and all is silent then
}

// RemoveStored takes messages out of the provider's queue that stand for jobs no more,
// while others may.
func (c *Conn) RemoveStored(ctx context.Context, provider string, jobs []StoredPlace) error {
	there, err := c.StoredQueued(ctx, provider, jobs)
	if err != nil {
		return err
	}
	var removals []*nats.Msg
	for i, j := range jobs {
		if there[i] {
			removals = append(removals, removal(storedStream(provider), j.Seq))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, storedTimeout)
	defer cancel()
	for _, a := range c.exchange(ctx, removals) {
		err := a.err
		if err == nil {
			err = removed(a.msg)
		}
		if err != nil {
			return fmt.Errorf("remove %d messages of %s: %w", len(removals), storedStream(provider), err)
		}
	}
	return nil
}

// StoredGiven tells up to which place workers have had the messages of the provider's stored
// lane, and by when the stream was made that says so, by this machine's clock. A message that
// was taken out of the queue before the question, and stood behind that place, no worker was
// ever given. It is ErrNoQueue if there is no stream.
func (c *Conn) StoredGiven(ctx context.Context, provider string, lane inference.Lane) (upTo uint64, made time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	stream := storedStream(provider)
	info, err := c.streamInfo(ctx, stream, jobSubject(provider, lane))
	if err != nil {
		return 0, time.Time{}, err
	}
	if info == nil {
		return 0, time.Time{}, fmt.Errorf("look up %s: %w", stream, ErrNoQueue)
	}
	made = madeBy(time.Now(), info.Created, info.TimeStamp)
	upTo, _, err = c.handedOut(ctx, stream, lane)
	return upTo, made, err
}

// DropStoredBody removes the body that was kept beside the job's message, if there is one.
func (c *Conn) DropStoredBody(ctx context.Context, jobID string) error {
	return c.blobs.remove(ctx, bodyName(jobID))
}
