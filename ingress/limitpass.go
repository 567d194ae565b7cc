package ingress

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// pass takes what the request may need from its limits, before it counts as accepted, and
// says in headers how the caller stands. If the limits say so it waits until it fits, as
// it would in its queue: a stream's head goes out meanwhile, through the writer that is
// returned then.
func (s *Ingress) pass(w http.ResponseWriter, r *http.Request, adm *admission) (*sseWriter, error) {
	q := s.limitsOf(adm)
	if q == nil {
		return adm.out(), nil
	}
	q.demand.Queued = true
	begun := time.Now()
	held, err := s.limits.reserve(r.Context(), q) // which takes no longer than the limiter's patience
	defer func() {
		adm.hold = held
		adm.waited += time.Since(begun)
	}()
	refusal, refused := errors.AsType[*limits.Refusal](err)
	if !refused || !q.waits || final(refusal) {
		tellStanding(w.Header(), s.limits.by.Standing(q.demand.Scopes))
		return adm.out(), s.limitError(r.Context(), r.Context(), q, err)
	}
	ctx, cancel := context.WithDeadline(r.Context(), adm.job.Deadline)
	defer cancel()
	q.renewed = func() limits.Demand { return s.demandNow(adm, q) }
	q.overtaken = s.cache.yield(adm.cache)
	out := adm.out()
	if out == nil {
		out = newSSEWriter(w)
	}
	held, err = s.limits.await(ctx, q, refusal, s.opt.Keepalive, func() error { return s.stillWaiting(ctx, out, q, adm.cache) })
	switch {
	case !out.head:
		tellStanding(w.Header(), s.limits.by.Standing(q.demand.Scopes))
	case adm.cache != nil:
		adm.cache.out = out // an answer from before comes through it, too
	}
	return out, s.limitError(r.Context(), ctx, q, err)
}

// out returns the writer of a stream whose head went out while it waited for the answer of
// another request, or nil.
func (adm *admission) out() *sseWriter {
	if adm.cache == nil {
		return nil
	}
	return adm.cache.out
}

// stillWaiting keeps a stream's connection open while its request waits for its limits. It
// ends the wait if nobody is left for whom that would be, and there is an answer from before.
func (s *Ingress) stillWaiting(ctx context.Context, out *sseWriter, q *limited, c *cacheCall) error {
	if c.spares() && !s.anyAble(c.candidates) && s.hasSpare(ctx, c) {
		return s.workers.errForsaken(c.candidates)
	}
	if !q.job.Stream {
		return nil
	}
	if !out.head {
		tellStanding(out.w.Header(), s.limits.by.Standing(q.demand.Scopes))
		out.w.Header().Set(jobIDHeader, q.job.ID)
		c.openEarly(out)
		out.begin()
	}
	if out.comment("waiting") != nil {
		return errClientGone()
	}
	return nil
}

// limitError says what it means to the client that its limits did not let it in.
func (s *Ingress) limitError(client, ctx context.Context, q *limited, err error) error {
	if err == nil {
		return nil
	}
	r, refused := errors.AsType[*limits.Refusal](err)
	switch {
	case client.Err() != nil:
		return errClientGone()
	case ctx.Err() != nil:
		return errDeadline(q.job)
	case refused:
		s.limits.metrics.refused(r)
		return errRefused(r, q.model)
	case errors.Is(err, limits.ErrUnavailable):
		return errLimitsUnavailable(err)
	}
	return err
}

// tellLimits says how the caller stands whose request reserves nothing here.
func (s *Ingress) tellLimits(h http.Header, adm *admission) {
	if q := s.limitsOf(adm); q != nil {
		tellStanding(h, s.limits.by.Standing(q.demand.Scopes))
	}
}

// failUnopened answers a request that was not accepted: as a response of its own, or as an
// event if the head of a stream is out.
func (s *Ingress) failUnopened(w http.ResponseWriter, r *http.Request, out *sseWriter, adm *admission, err error) {
	details := map[string]any{"provider": adm.job.Candidate().Provider}
	if out == nil || !out.head {
		h := w.Header()
		h.Set("X-Sluice-Attempts", "0")
		h.Set("X-Sluice-Queue-Ms", strconv.FormatInt(adm.waited.Milliseconds(), 10))
		s.fail(w, r, err, details)
		return
	}
	e := inference.AsError(err)
	s.logFailure(r.Context(), adm.job.RequestID, e, details)
	s.metrics.failed(statusOf(e), e.Code)
	_ = out.fail(e, details, batch{}) // a client that is gone needs no word
}
