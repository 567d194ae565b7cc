package ingress

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// flights are all jobs of this ingress that are not yet accounted for. It implements
// queue.Replies.
type flights struct {
	conn     *queue.Conn
	dispatch *queue.Dispatcher
	ledger   *ledger
	workers  *directory
	metrics  *Metrics
	log      *slog.Logger
	most     int
	bodies   budget

	mu     sync.Mutex
	byID   map[string]*flight
	fullAt map[string]time.Time // when a provider's queue last refused a job
	counts map[string]int       // flights by the provider that has them

	fetching sync.Map // names of large answers that clients' handlers read

	side    sync.WaitGroup // short errands that nobody waits for until the stop
	streams streamAges
	nudge   chan struct{} // the streams have to be looked at now
}

// open takes in a job and sends it to its queue. The answer comes through the flight.
func (fs *flights) open(ctx context.Context, adm admission) (*flight, error) {
	job, now := adm.job, time.Now()
	f := &flight{job: job, accepted: now.Add(-adm.waited), hold: adm.hold, settings: adm.settings, done: make(chan struct{}), window: adm.window, memory: adm.memory, cache: adm.cache}
	f.place.sent, f.place.firstSent = now, now
	f.firstRun = firstRun{provider: job.Candidate().Provider, sent: now, unanswered: 1}
	if f.cache.spares() {
		f.forsaken = make(chan struct{}, 1)
	}
	if job.Stream {
		f.feed = newFeed(fs.conn.NewKeptReader(job.ID), queue.Run{}, 1)
	}
	if err := fs.prepare(ctx, f); err != nil {
		adm.memory.release()
		f.hold.release()
		return nil, err
	}
	f.candidates = job.Candidates
	first := *job // from here on others change the job
	fs.mu.Lock()
	fs.byID[job.ID] = f
	f.counted = job.Candidate().Provider
	fs.counts[f.counted]++
	fs.mu.Unlock()
	if err := fs.dispatch.Publish(&first, f.bodyRef); err != nil {
		fs.log.Warn("job not sent; it will be tried again", "job_id", job.ID, "error", err)
	}
	return f, nil
}

// prepare sees to it that there is room for the job, and gives a large body to the
// object store: from there it is published as often as need be.
func (fs *flights) prepare(ctx context.Context, f *flight) error {
	if err := fs.room(f.job, f.place.sent); err != nil {
		return err
	}
	store, cancel := context.WithDeadline(ctx, f.job.Deadline)
	defer cancel()
	ref, err := fs.dispatch.StoreBody(store, f.job)
	switch {
	case ctx.Err() != nil:
		return errClientGone()
	case errors.Is(store.Err(), context.DeadlineExceeded):
		return errDeadline(f.job)
	case err != nil:
		return fs.publishError(err, f.job.Candidate().Provider)
	}
	if f.bodyRef = ref; ref != "" {
		f.dropBody()
	}
	return nil
}

func (fs *flights) find(jobID string) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.byID[jobID]
}

func (fs *flights) remove(jobIDs []string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, id := range jobIDs {
		if f := fs.byID[id]; f != nil {
			fs.uncount(f)
			delete(fs.byID, id)
		}
	}
}

func (fs *flights) count() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.byID)
}

func (fs *flights) all() []*flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	list := make([]*flight, 0, len(fs.byID))
	for _, f := range fs.byID {
		list = append(list, f)
	}
	return list
}

// Events implements queue.Replies.
func (fs *flights) Events(e *queue.Events) {
	f := fs.find(e.JobID)
	if f == nil || f.feed == nil || !f.events(e, time.Now()) {
		return
	}
	f.feed.push(e)
}

// Ended implements queue.Replies. An end that comes again, or too late, is settled once
// its job is accounted for and the flight is gone. Before that the worker would
// remove a message that stands for a job without a row, or that another worker runs.
func (fs *flights) Ended(e *queue.End) {
	f := fs.find(e.JobID)
	if f == nil {
		if _, read := fs.fetching.Load(e.BodyRef); e.BodyRef != "" && !read {
			fs.side.Go(func() { fs.dropBlob(e.JobID, e.BodyRef) }) // it was on its way while the client left
		}
		fs.settle(e)
		return
	}
	if f.finish(e, outcomeOf(e.Err)) {
		fs.account(f, e)
		if f.supersedes(e) {
			fs.side.Go(func() { fs.cancel(f) }) // another worker is at it still, in vain
		}
		return
	}
	f.mu.Lock()
	replaced := e.Run.Epoch < f.run.Epoch
	counts := f.end != nil && f.end.Run == e.Run
	f.mu.Unlock()
	if !counts && e.BodyRef != "" {
		fs.side.Go(func() { fs.dropBlob(e.JobID, e.BodyRef) })
	}
	if replaced {
		fs.settle(e) // a later message stands for the job
	}
}

func (fs *flights) settle(e *queue.End) {
	if err := fs.dispatch.Settle(e.Worker, []string{e.JobID}); err != nil {
		fs.log.Warn("worker not told", "job_id", e.JobID, "error", err)
	}
}

// account writes the flight into the ledger; when its row is safe the worker may
// acknowledge the job.
func (fs *flights) account(f *flight, e *queue.End) {
	now := time.Now()
	rec := f.record(e, now)
	f.settings.price(&rec)
	fs.metrics.ended(&rec)
	f.hold.endAfter(&rec, f.hold != nil && fs.lostBefore(f))
	fs.log.LogAttrs(context.Background(), slog.LevelDebug, "request ended", slog.String("request_id", rec.RequestID),
		slog.String("job_id", rec.JobID), slog.String("provider", rec.Provider), slog.String("outcome", string(rec.Outcome)),
		slog.Int("attempt", rec.Attempts), slog.Duration("queue", rec.Queue), slog.Duration("total", rec.Total))
	if f.feed != nil {
		f.feed.finish(e)
	}
	if e.BodyRef != "" && !fs.keepsAnswer(f, e) {
		fs.side.Go(func() { fs.dropBlob(e.JobID, e.BodyRef) }) // the answer came after its client had gone
	}
	fs.ledger.add(entry{record: rec, worker: e.Worker})
	if f.bodyRef != "" {
		fs.side.Go(func() { fs.dropBlob(e.JobID, f.bodyRef) })
	}
}

// keepsAnswer reports whether the large answer is the client's, whose handler reads it
// and then lets it go. Until then an end that comes again must not, also when the flight
// is gone.
func (fs *flights) keepsAnswer(f *flight, e *queue.End) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end == e && !f.fetched {
		fs.fetching.Store(e.BodyRef, true)
	}
	return f.end == e
}

// letGo removes a large answer, whatever became of its reading: nobody else asks for it.
func (fs *flights) letGo(f *flight, end *queue.End) {
	fs.dropBlob(end.JobID, end.BodyRef)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetched = true
	fs.fetching.Delete(end.BodyRef)
}

// Claimed implements queue.Replies.
func (fs *flights) Claimed(c queue.Claim) queue.Judgement {
	f := fs.find(c.JobID)
	if f == nil {
		return queue.Judgement{Verdict: queue.VerdictDrop}
	}
	judged, lost := f.claim(c, time.Now())
	fs.recount(f)
	fs.openEvents(f)
	if lost != nil {
		fs.end(f, lost)
	}
	return judged
}

// Passed implements queue.Replies.
func (fs *flights) Passed(p *queue.Passed) {
	f := fs.find(p.JobID)
	if f != nil && f.passed(p, time.Now()) {
		fs.recount(f)
		fs.openEvents(f)
		return
	}
	if len(p.Next.Candidates) > 0 { // nobody waits for the job any more
		fs.side.Go(func() { fs.cancelAt(p.JobID, p.Next.Candidates[0].Provider, p.Next.Seq) })
	}
}

// Held implements queue.Replies.
func (fs *flights) Held(h *queue.Held) {
	now := time.Now()
	for _, j := range h.Jobs {
		if f := fs.find(j.JobID); f != nil {
			f.holds(j.Run, now)
			f.idles(j.Run, j.Idle, now)
		}
	}
}

// Attached implements queue.Replies.
func (fs *flights) Attached(jobID string) {
	f := fs.find(jobID)
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.goneUntil = later(f.goneUntil, time.Now().Add(attachLease))
}

// end ends the flight with an error of the ingress's own, and the job with it, unless
// it has just ended otherwise.
func (fs *flights) end(f *flight, err *inference.Error) {
	f.mu.Lock()
	e, rowWaits := f.endHere(err, time.Now())
	f.mu.Unlock()
	if e != nil {
		fs.ended(f, e, rowWaits)
	}
}

// ended does what has to be done about a flight that has just ended by the ingress's own
// word. A row that waits is written by closeUnheard.
func (fs *flights) ended(f *flight, e *queue.End, rowWaits bool) {
	if f.feed != nil {
		last := f.feed.abort(*e)
		if !rowWaits {
			fs.side.Go(func() { fs.keepEnd(f, last) })
		}
	}
	if !rowWaits {
		fs.account(f, e)
		f.mu.Lock()
		f.lost = true
		f.mu.Unlock()
	}
	fs.side.Go(func() { fs.cancel(f) })
}

// keepEnd completes what is kept of an answer whose worker cannot do it any more, or
// never began.
func (fs *flights) keepEnd(f *flight, last queue.End) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := fs.conn.NewRecorder(f.job, last.Run, last.LastSeq+1).Finish(ctx, &last); err != nil {
		fs.log.Warn("end of events not kept", "job_id", f.job.ID, "error", err)
	}
}

// leave gives the job up: the client is gone or its deadline has passed.
func (fs *flights) leave(f *flight, outcome inference.Outcome, err *inference.Error) {
	if f.leave(outcome, err, time.Now()) {
		fs.side.Go(func() { fs.cancel(f) }) // the answer to the client does not wait for the server's word
	}
}

// cancel tells the workers, and takes the job out of its queue unless one of them has
// it: that one acknowledges it when the call is over and accounted for, so that its
// place is not given to another call before.
func (fs *flights) cancel(f *flight) {
	f.mu.Lock()
	seq, provider := f.place.seq, f.at().Provider
	if f.held && !f.lost {
		seq = 0
	}
	f.mu.Unlock()
	fs.takeOut(f, provider, seq)
}

// takeOut tells the workers to drop the job, and takes its message out of the queue.
func (fs *flights) takeOut(f *flight, provider string, seq uint64) {
	if fs.cancelAt(f.job.ID, provider, seq) {
		fs.removed(f, provider, seq)
	}
}

// cancelAt reports whether the job is out of its queue.
func (fs *flights) cancelAt(jobID, provider string, seq uint64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := fs.dispatch.Cancel(ctx, jobID, provider, seq)
	if err != nil {
		fs.log.Debug("job not taken out of its queue", "job_id", jobID, "error", err)
	}
	return err == nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
