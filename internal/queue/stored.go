package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

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

// StoredQueued reports whether the provider's queue still has the message of a stored job
// that was given this place, waiting or in a worker's hands.
func (c *Conn) StoredQueued(ctx context.Context, provider string, seq uint64) (bool, error) {
	if seq == 0 {
		return false, nil // no message has this place
	}
	return c.holds(ctx, storedStream(provider), seq)
}

// StoredPlace is where a stored job's message stands in a provider's queue.
type StoredPlace struct {
	JobID string
	Seq   uint64 // zero: not known
}

// CancelStored tells the provider's workers to drop the jobs, and takes their messages out
// of the queue in case that no worker has them yet.
func (c *Conn) CancelStored(ctx context.Context, provider string, jobs []StoredPlace) error {
	ids, removals := make([]string, 0, len(jobs)), make([]*nats.Msg, 0, len(jobs))
	for _, j := range jobs {
		ids = append(ids, j.JobID)
		if j.Seq > 0 {
			removals = append(removals, removal(storedStream(provider), j.Seq))
		}
	}
	for len(ids) > 0 {
		n := min(len(ids), heldPerMessage)
		if err := c.nc.Publish(cancelSubject(provider), encodeIDs(ids[:n])); err != nil {
			return fmt.Errorf("cancel %d stored jobs of %s: %w", len(jobs), provider, err)
		}
		ids = ids[n:]
	}
	ctx, cancel := context.WithTimeout(ctx, storedTimeout)
	defer cancel()
	for _, a := range c.exchange(ctx, removals) {
		err := a.err
		if err == nil {
			err = removed(a.msg)
		}
		if err != nil {
			return fmt.Errorf("cancel %d stored jobs of %s: %w", len(jobs), provider, err)
		}
	}
	return nil
}

// DropStoredBody removes the body that was kept beside the job's message, if there is one.
func (c *Conn) DropStoredBody(ctx context.Context, jobID string) error {
	return c.blobs.remove(ctx, bodyName(jobID))
}
