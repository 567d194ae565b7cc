package ingress

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// streamAnswer sends chunks as they come. The response's head waits a little for the
// first of them, so that an early failure still has its own HTTP status; after that
// comments keep the connection open. out is the writer of a response that has begun while
// the request waited for its limits, or nil.
func (s *Ingress) streamAnswer(w http.ResponseWriter, r *http.Request, f *flight, out *sseWriter) {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	// Seen at once, also while a write to a slow client blocks.
	stop := context.AfterFunc(r.Context(), func() { s.clientGone(f) })
	defer stop()

	ctx, cancel := context.WithDeadline(r.Context(), f.job.Deadline)
	defer cancel()
	if out == nil {
		out = newSSEWriter(w)
	}
	if f.cache != nil {
		f.cache.out = out
	}
	if out.head {
		out.late = f
	}
	for {
		b, err := f.feed.take(ctx, s.opt.Keepalive)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && r.Context().Err() == nil:
			e := errDeadline(f.job)
			s.flights.leave(f, inference.OutcomeExpired, e)
			s.failStream(w, r, out, f, e, batch{})
			return
		case r.Context().Err() != nil:
			return
		case err != nil:
			e := inference.AsError(err)
			s.flights.leave(f, inference.OutcomeFailed, e) // nobody is there for the rest
			s.failStream(w, r, out, f, e, batch{})
			return
		}
		if len(b.Chunks) == 0 && b.End == nil && s.beatForsaken(w, r, f) {
			return
		}
		if b.End != nil && b.End.Err != nil {
			s.failStream(w, r, out, f, b.End.Err, b)
			return
		}
		if !out.head {
			s.beginStream(w, out, f)
		}
		s.gather(f, b)
		last, err := s.sendBatch(out, b)
		if err != nil {
			return // the client is gone; AfterFunc has seen it or is about to
		}
		if last {
			return
		}
	}
}

// sendBatch writes what came, or a comment if nothing did. last is set after the
// answer's end.
func (s *Ingress) sendBatch(out *sseWriter, b batch) (last bool, err error) {
	switch {
	case b.End != nil:
		return true, out.done(b)
	case len(b.Chunks) > 0:
		return false, out.chunks(b)
	default:
		return false, out.comment("waiting")
	}
}

// beginStream sets the headers. What is not known yet, because the job still waits,
// follows in trailers.
func (s *Ingress) beginStream(w http.ResponseWriter, out *sseWriter, f *flight) {
	f.mu.Lock()
	begun, first, lost := f.begun, f.first, f.lostRuns
	f.mu.Unlock()
	if begun {
		h := w.Header()
		h.Set("X-Sluice-Provider", first.provider)
		h.Set("X-Sluice-Attempts", strconv.Itoa(first.attempts+lost))
		tellDropped(h, droppedHeader, first.dropped)
		tellTries(h, triesHeader, first.tries)
		h.Set("X-Sluice-Queue-Ms", strconv.FormatInt(max(first.after-first.elapsed, 0).Milliseconds(), 10))
	} else {
		out.late = f
		f.cache.openEarly(out)
	}
	out.begin()
}

// failStream ends the answer with an error: as a response of its own while the head
// is not out, as an event after that. As long as nothing of the answer is out one from
// before may stand in.
func (s *Ingress) failStream(w http.ResponseWriter, r *http.Request, out *sseWriter, f *flight, e *inference.Error, b batch) {
	f.mu.Lock()
	end := f.end
	f.mu.Unlock()
	if end != nil {
		s.tellStreamRoute(out, f, end)
	}
	if s.standIn(w, r, f.cache, e) {
		return
	}
	if !out.head {
		s.fail(w, r, e, s.errorDetails(f))
		return
	}
	s.logFailure(r.Context(), f.job.RequestID, e, s.errorDetails(f))
	s.metrics.failed(statusOf(e), e.Code)
	_ = out.fail(e, s.errorDetails(f), b) // a client that is gone needs no word
}

// beatForsaken looks, when nothing has come for a while, whether nobody is left for the
// request, and whether it could be answered from before. It reports whether it was.
func (s *Ingress) beatForsaken(w http.ResponseWriter, r *http.Request, f *flight) bool {
	select {
	case <-f.forsaken:
		return s.insteadOf(w, r, f)
	default:
		return false
	}
}

// tellStreamRoute says who served the request, while nothing of the answer is out: in
// headers, or in trailers if the head went out too early for them.
func (s *Ingress) tellStreamRoute(out *sseWriter, f *flight, end *queue.End) {
	switch {
	case !out.head:
		s.tellRoute(out.w.Header(), "", f, end)
	case !out.begun:
		s.tellRoute(out.w.Header(), http.TrailerPrefix, f, end)
		out.late = nil
	}
}

// clientGone gives the job up, unless its client may come back: because it said so,
// or because it was this ingress that cut it off to stop.
func (s *Ingress) clientGone(f *flight) {
	window := f.window
	if s.draining.Load() {
		window = max(window, time.Until(f.job.Deadline))
	}
	if window <= 0 {
		s.flights.leave(f, inference.OutcomeCancelled, errClientGone())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clientGone = true
	f.goneUntil = later(f.goneUntil, time.Now().Add(window))
}
