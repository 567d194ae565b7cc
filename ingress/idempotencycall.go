package ingress

import (
	"context"
	"errors"
	"net/http"
	"time"

	"sluice/internal/queue"
	"sluice/store"
)

// keyedCall is a request that has its key, from then on until its answer is stored.
type keyedCall struct {
	request store.IdempotentRequest
	again   bool // somebody had the key before, and was lost
	cancel  context.CancelFunc
	done    chan struct{}           // closed when it has been answered
	answer  *store.IdempotentAnswer // after that; nil if it could not be recorded
	stored  chan struct{}           // closed when the database knows, or nobody tries to tell it any more
}

// jobIDKey is the context's key of the id that the request's job is to have.
type jobIDKey struct{}

// jobID returns the id of the job that a request becomes. One with an idempotency key has
// told it already to those who wait for the same.
func (s *Ingress) jobID(ctx context.Context, now time.Time) string {
	if id, ok := ctx.Value(jobIDKey{}).(string); ok {
		return id
	}
	return queue.NewJobID(s.opt.ID, now)
}

// perform has the request done whose turn it is. It goes on without its client, who comes
// back for the answer.
//
// Of a call whose ingress was lost nobody knows how far it came. What it may have created
// is found under its job's id, which the request therefore has, too. A call that was to be
// answered at once is made anew, under a fresh id: its old job may still be at a worker,
// and the queue and the ledger would take the new one for its copy. The old one's events
// are not followed either, since with its ingress it lost who would have seen it through.
func (s *Ingress) perform(w http.ResponseWriter, r *http.Request, call *keyedCall, do http.HandlerFunc) {
	i := s.idempotency
	ctx := context.WithValue(context.WithoutCancel(r.Context()), jobIDKey{}, call.request.JobID)
	ctx, call.cancel = context.WithTimeout(ctx, s.opt.Timeout+overtime)
	defer call.cancel()
	call.done, call.stored = make(chan struct{}), make(chan struct{})
	if !i.enter(call) {
		i.letGo(call, false)
		s.fail(w, r, errNoIdempotency(nil), nil)
		return
	}
	t := &tape{to: w, memory: share{of: &i.tapes}}
	defer i.settle(call, t) // also after a panic
	do(t, r.WithContext(ctx))
	t.whole = true
}

// enter makes a call known to those who wait for it here, unless the ingress stops.
func (i *idempotency) enter(c *keyedCall) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopped {
		return false
	}
	i.running[heldKey{c.request.Tenant, c.request.Key}] = c
	i.calls.Go(func() { i.hold(c) })
	i.calls.Add(1) // leave is its end
	return true
}

func (i *idempotency) leave(c *keyedCall) {
	i.mu.Lock()
	name := heldKey{c.request.Tenant, c.request.Key}
	if i.running[name] == c { // a call that lost its lease may have met its successor here
		delete(i.running, name)
	}
	i.mu.Unlock()
	close(c.stored)
	i.calls.Done()
}

// stop ends the calls under way, as the end of their connections would have done without
// a key, and waits for them.
func (i *idempotency) stop() {
	i.mu.Lock()
	if !i.stopped {
		i.stopped = true
		close(i.stopping)
	}
	i.mu.Unlock()
	i.calls.Wait()
}

// hold prolongs the call's lease until its answer is stored.
func (i *idempotency) hold(c *keyedCall) {
	timer := time.NewTimer(idemRenew)
	defer timer.Stop()
	for {
		select {
		case <-c.stored:
			return
		case <-i.stopping:
			c.cancel()
			return
		case <-timer.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), idemWait)
		err := i.opt.Keys.RenewIdempotent(ctx, c.request.Tenant, c.request.Key, c.request.Owner, time.Now().Add(idemLease))
		cancel()
		switch {
		case err == nil:
			timer.Reset(idemRenew)
		case errors.Is(err, store.ErrNotFound):
			i.log.Debug("idempotency key is stored or taken over", "job_id", c.request.JobID) // nothing to prolong
		default:
			i.log.Warn("lease of an idempotency key not prolonged; it will be tried again", "job_id", c.request.JobID, "error", err)
			timer.Reset(idemRenewSoon)
		}
	}
}

// settle stores the answer of a call that is over, or frees its key where the next call
// is to try again. What the client has not got yet it gets after that: an answer that
// somebody has seen is the one that everybody gets.
func (i *idempotency) settle(c *keyedCall, t *tape) {
	answer, recorded := t.answer()
	answer.JobID = c.request.JobID
	var err error
	if recorded && keeps(answer) {
		err = i.finish(c, answer)
	} else {
		i.letGo(c, recorded && frees(answer, c.again))
	}
	if recorded && answer.Status != statusClientClosed {
		c.answer = &answer
	}
	close(c.done)
	if t.whole {
		t.deliver()
	}
	end := func() {
		i.leave(c)
		t.memory.release()
	}
	if err == nil {
		end()
		return
	}
	i.calls.Go(func() {
		defer end()
		i.finishLater(c, answer)
	})
}

// finish stores the answer. Of its errors only one that may pass is returned.
func (i *idempotency) finish(c *keyedCall, a store.IdempotentAnswer) error {
	ctx, cancel := context.WithTimeout(context.Background(), idemWait)
	defer cancel()
	err := i.opt.Keys.FinishIdempotent(ctx, c.request.Tenant, c.request.Key, c.request.Owner, a)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrInvalid):
		i.log.Warn("answer cannot be kept for its idempotency key", "job_id", c.request.JobID, "error", err)
		i.letGo(c, false)
		return nil
	case errors.Is(err, store.ErrNotFound):
		i.log.Warn("idempotency key was taken over", "job_id", c.request.JobID) // its lease ran out unnoticed
		return nil
	}
	i.log.Warn("answer not kept for its idempotency key; it will be tried again", "job_id", c.request.JobID, "error", err)
	return err
}

// finishLater goes on trying to store an answer that its client has.
func (i *idempotency) finishLater(c *keyedCall, a store.IdempotentAnswer) {
	limit := time.NewTimer(idemStoreFor)
	defer limit.Stop()
	tick := time.NewTicker(idemRenewSoon)
	defer tick.Stop()
	for {
		select {
		case <-i.stopping:
			return
		case <-limit.C:
			return
		case <-tick.C:
		}
		if i.finish(c, a) == nil {
			return
		}
	}
}

// letGo gives the key up without an answer. If that fails its lease runs out. Of a call
// that creates something the key goes on naming what that may be, for the next call to
// find, unless it can be freed.
func (i *idempotency) letGo(c *keyedCall, free bool) {
	ctx, cancel := context.WithTimeout(context.Background(), idemWait)
	defer cancel()
	var err error
	if c.request.Inherits && !free {
		err = i.opt.Keys.RenewIdempotent(ctx, c.request.Tenant, c.request.Key, c.request.Owner, time.Now())
	} else {
		err = i.opt.Keys.DropIdempotent(ctx, c.request.Tenant, c.request.Key, c.request.Owner)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		i.log.Warn("idempotency key not freed; its lease will run out", "job_id", c.request.JobID, "error", err)
	}
}
