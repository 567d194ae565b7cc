package ingress

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// A client that reads a job's events keeps the job alive for as long as attachLease
// after each attachEvery.
const (
	attachEvery = 3 * time.Second
	attachLease = 10 * time.Second
)

// resume serves GET /v1/chat/completions/{id}/events: the streamed answer of a job,
// from the beginning or from behind the event that Last-Event-ID names. Any ingress
// serves it, whichever accepted the job.
func (s *Ingress) resume(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	jobID := mux.Vars(r)["id"]
	from, err := resumeFrom(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	if !queue.ValidJobID(jobID) {
		s.fail(w, r, errNoEvents(), nil)
		return
	}
	if err := s.follow(w, r, jobID, key.Tenant, from); err != nil {
		s.fail(w, r, err, nil)
	}
}

// follow sends the events of a job, if there are any; an error says why nothing was sent.
func (s *Ingress) follow(w http.ResponseWriter, r *http.Request, jobID, tenant string, from eventID) error {
	defer s.tails.Add(-1)
	if s.tails.Add(1) > int64(s.opt.MaxInFlight) {
		return errBusy()
	}
	if !s.conn.Connected() {
		return errQueueGone(nil)
	}
	t, err := s.openTail(r.Context(), jobID, tenant, from)
	if err != nil {
		return err
	}
	defer t.listener.Close()
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	s.tail(w, r, t)
	return nil
}

// resumeFrom reads Last-Event-ID. Without one the answer is sent from its beginning.
func resumeFrom(r *http.Request) (eventID, error) {
	v := r.Header.Get("Last-Event-ID")
	if v == "" {
		return eventID{}, nil
	}
	id, ok := parseEventID(v)
	if !ok {
		return eventID{}, errEventID()
	}
	return id, nil
}

func errEventID() *inference.Error {
	return &inference.Error{Code: inference.CodeInvalidRequest, Param: "Last-Event-ID", Message: "The header Last-Event-ID is not an event id of this stream."}
}

func errNoEvents() error {
	return inference.Errorf(inference.CodeNotFound, "There is no stream of this id, or its events are no longer kept.")
}

// tailing is one client's view of a job's events.
type tailing struct {
	jobID    string
	feed     *feed
	listener *queue.Listener
	attached time.Time
	deadline time.Time
}

// openTail looks the job up and begins to hear it. Live events are heard before the
// kept ones are read, so that none falls between.
func (s *Ingress) openTail(ctx context.Context, jobID, tenant string, from eventID) (*tailing, error) {
	f := newFeed(s.conn.NewKeptReader(jobID), from.run, from.seq+1)
	listener, err := s.conn.Listen(jobID, f.push, f.finish)
	if err != nil {
		return nil, errQueueGone(err)
	}
	probe := s.conn.NewKeptReader(jobID)
	blocks, err := lookUp(ctx, probe, from.run)
	if err != nil {
		listener.Close()
		return nil, &inference.Error{Code: inference.CodeQueueUnavailable, Message: "The kept events cannot be read at the moment.", Retryable: true, Err: err}
	}
	owner, found := probe.Found()
	if !found || owner != tenant {
		listener.Close()
		return nil, errNoEvents()
	}
	if endedWithout(blocks, from.run) {
		listener.Close()
		return nil, errEventID()
	}
	if len(blocks) > 0 {
		begun := slices.IndexFunc(blocks, func(b queue.Block) bool { return len(b.Chunks) > 0 })
		f.begin(blocks[max(begun, 0)].Run) // a run that was fenced before it began may stand before the one that counts
	}
	f.look()
	return &tailing{jobID: jobID, feed: f, listener: listener, deadline: time.Now().Add(s.opt.Timeout)}, nil
}

// A client can be back before what it has heard is kept, be it the end of the answer.
const (
	openingEvery = 10 * time.Millisecond // the first pause; each other one is twice as long
	openingMost  = 400 * time.Millisecond
)

// lookUp reads the first kept events, and a little later again while there are none,
// or only those of another run than the one that the client knows, ended already.
func lookUp(ctx context.Context, probe *queue.KeptReader, run queue.Run) ([]queue.Block, error) {
	var blocks []queue.Block
	for wait := openingEvery; ; wait *= 2 {
		more, err := probe.Next(ctx)
		blocks = append(blocks, more...)
		if _, found := probe.Found(); err != nil || wait > openingMost || found && !endedWithout(blocks, run) {
			return blocks, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

// endedWithout reports that the answer has ended, and that it was not this run's.
func endedWithout(blocks []queue.Block, run queue.Run) bool {
	ended := false
	for _, b := range blocks {
		if run == (queue.Run{}) || b.Run == run {
			return false
		}
		ended = ended || b.End != nil
	}
	return ended
}

// tail sends events until the answer's end. The response's head waits a little for what
// may be kept only just now: to a client that has it all there is nothing to say.
func (s *Ingress) tail(w http.ResponseWriter, r *http.Request, t *tailing) {
	ctx, cancel := context.WithDeadline(r.Context(), t.deadline)
	defer cancel()
	out := newSSEWriter(w)
	w.Header().Set("X-Sluice-Job-Id", t.jobID)
	most := min(s.opt.Keepalive, attachEvery)
	for wait := openingEvery; ; wait = min(2*wait, most) {
		if time.Since(t.attached) > attachEvery {
			t.attached = time.Now()
			if err := s.conn.Attach(t.jobID); err != nil {
				s.log.Warn("job's ingress not told of its reader", "job_id", t.jobID, "error", err)
			}
		}
		b, err := t.feed.take(ctx, wait)
		switch {
		case r.Context().Err() != nil:
			return
		case err != nil:
			s.failTail(w, r, out, t, inference.AsError(err), batch{})
			return
		case b.End != nil && b.First > b.End.LastSeq+2:
			s.failTail(w, r, out, t, errEventID(), batch{}) // there never was an event of this id
			return
		case b.End != nil && b.First == b.End.LastSeq+2: // the client has it all
			if !out.head {
				w.WriteHeader(http.StatusNoContent) // an EventSource stops here
			}
			return
		case b.End != nil && b.End.Err != nil:
			s.failTail(w, r, out, t, b.End.Err, b)
			return
		case len(b.Chunks) == 0 && b.End == nil:
			t.feed.look() // whoever should send live events may be gone
			if !out.head && 2*wait < min(most, openingMost) {
				continue
			}
		}
		if !out.head {
			out.begin()
		}
		if last, err := s.sendBatch(out, b); err != nil || last {
			return
		}
	}
}

func (s *Ingress) failTail(w http.ResponseWriter, r *http.Request, out *sseWriter, t *tailing, e *inference.Error, b batch) {
	details := map[string]any{"job_id": t.jobID}
	if b.End != nil && b.End.Provider != "" {
		details["provider"] = b.End.Provider
	}
	if !out.head {
		s.fail(w, r, e, details)
		return
	}
	s.logFailure(r.Context(), w.Header().Get(requestIDHeader), e, details)
	s.metrics.failed(statusOf(e), e.Code)
	_ = out.fail(e, details, b) // a client that is gone needs no word
}
