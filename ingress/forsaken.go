package ingress

import (
	"context"
	"net/http"
	"slices"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// tellEvery is how often the handler of a request that nobody is left for is told so: an
// answer from before may turn up that was not there the last time.
const tellEvery = 5 * time.Second

// tellForsaken tells the handler of a request that waits if nobody is left to serve it. Who
// has an answer from before gives it then; the others go on waiting.
func (fs *flights) tellForsaken(f *flight, now, connectedAt time.Time, connected bool) {
	if f.forsaken == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.toldAt) < tellEvery || !f.isForsaken(now, connectedAt, connected, fs.workers) {
		return
	}
	f.toldAt = now
	select {
	case f.forsaken <- struct{}{}:
	default:
	}
}

// isForsaken reports whether the job waits and nobody is left that could serve it: not
// where it is, nor with another candidate that may take it. Workers are out of sight, too,
// while the queue is out of reach, but one that has the job then may be answering it. The
// caller holds mu.
func (f *flight) isForsaken(now, connectedAt time.Time, connected bool, workers *directory) bool {
	if !f.waiting(now) || f.held && !connected || workers.holds(f.at()) {
		return false
	}
	if !f.idle(now) {
		since := later(later(f.heardAt, connectedAt), f.place.firstSent)
		return now.Sub(since) >= asideAfter && !f.anyLeft(workers, workers.shut)
	}
	// While a breaker is half open, other requests find out whether the provider is well.
	// Their calls may hang.
	return !f.anyLeft(workers, workers.shut) || now.Sub(f.idleSince) >= asideAfter && !f.anyLeft(workers, workers.ailing)
}

// anyLeft reports whether a worker serves the candidate that the job is with, or another
// one that may take it, and is not barred from that. The caller holds mu.
func (f *flight) anyLeft(workers *directory, barred func(inference.Candidate) bool) bool {
	if workers.keeps(f.at()) && !barred(f.at()) {
		return true
	}
	can := func(c inference.Candidate) bool { return workers.alive(c) && !barred(c) }
	return len(inference.NextCandidates(f.candidates, inference.ReasonUnavailable, can)) > 0
}

// waiting reports whether the job waits for a worker, or in the hands of one that makes no
// call, and a client for the job. The caller holds mu.
func (f *flight) waiting(now time.Time) bool {
	return !f.ended && !f.begun && f.closing.IsZero() && !f.clientGone && (!f.held || f.idle(now) || now.Sub(f.heardAt) >= aliveFor)
}

// giveUp ends a job that nobody is left for, unless a worker has come after all. A run that
// begins later is not let, and what one may still send counts no more. It returns the
// job's end, or nil.
func (fs *flights) giveUp(f *flight, err *inference.Error) *queue.End {
	f.mu.Lock()
	now := time.Now()
	if !f.waiting(now) {
		f.mu.Unlock()
		return nil
	}
	var e *queue.End
	rowWaits := f.idle(now)
	if rowWaits {
		f.leaveAs(outcomeOf(err), err, now) // its worker says what it took
		e = f.end
	} else {
		e, rowWaits = f.endHere(err, now)
	}
	f.mu.Unlock()
	fs.ended(f, e, rowWaits)
	return e
}

// errForsaken is the end of a request that nobody was left for, and that got an answer from
// before instead.
func (d *directory) errForsaken(candidates []inference.Candidate) *inference.Error {
	if slices.ContainsFunc(candidates, d.alive) {
		return &inference.Error{Code: inference.CodeUpstreamUnavailable, Retryable: true, Message: "The providers that could serve this request fail at the moment and are not called."}
	}
	return answerLost("No worker is left that could serve this request.")
}

// insteadOf gives the client of a request that nobody is left for an answer from before, if
// there is one, and gives the job up. It reports whether the request is answered. The job
// is given up only when the answer is in hand, and the answer is given only if the job was:
// so there is never both.
func (s *Ingress) insteadOf(w http.ResponseWriter, r *http.Request, f *flight) bool {
	c := f.cache
	ctx, cancel := context.WithDeadline(r.Context(), f.job.Deadline)
	defer cancel()
	var g *gift
	found := s.eachSpare(ctx, c, func(a *store.CachedAnswer) bool {
		g = s.wrap(c, a)
		return g != nil
	})
	if !found {
		return false
	}
	defer g.memory.release()
	if r.Context().Err() != nil || s.ledger.crowded() {
		return false
	}
	err := s.workers.errForsaken(c.candidates)
	end := s.flights.giveUp(f, err)
	if end == nil {
		return false
	}
	s.log.Info("nobody is left for a request; it gets an answer from before", "request_id", f.job.RequestID, "job_id", f.job.ID, "code", string(err.Code))
	s.cache.leaderFailed(c, err)
	if c.out != nil {
		s.tellStreamRoute(c.out, f, end)
	} else {
		s.tellRoute(w.Header(), "", f, end)
	}
	s.hand(w, c, g, cacheStale)
	return true
}
