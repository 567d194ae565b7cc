package ingress

import (
	"errors"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// Published implements queue.Replies.
func (fs *flights) Published(jobID string, epoch int, seq uint64, err error) {
	f := fs.find(jobID)
	if f == nil {
		return
	}
	if err != nil {
		fs.notPublished(f, epoch, err)
		return
	}
	f.mu.Lock()
	f.firstRun.answered(epoch, seq, time.Now())
	news := f.job.Epoch == epoch && f.place.seq == 0
	if news {
		f.place.seq, f.place.known = seq, true
	}
	left := !f.closing.IsZero()
	f.mu.Unlock()
	if !news {
		return
	}
	if left {
		fs.side.Go(func() { fs.cancel(f) }) // the client went before the server had the job
		return
	}
	fs.openEvents(f)
}

// openEvents notes, once the queue has the job, that its events will come, so that any
// ingress knows of them before the first chunk.
func (fs *flights) openEvents(f *flight) {
	f.mu.Lock()
	due := f.job.Stream && !f.opened && f.place.seq != 0
	f.opened = f.opened || due
	f.mu.Unlock()
	if !due {
		return
	}
	if err := fs.dispatch.Open(f.job); err != nil {
		fs.log.Warn("events not opened", "job_id", f.job.ID, "error", err)
	}
}

// notPublished takes a job whose queue is full to another candidate's, and ends its
// flight if there is none. A queue that is not there is made again, and the sweep
// repeats the publish.
func (fs *flights) notPublished(f *flight, epoch int, err error) {
	full := errors.Is(err, queue.ErrFull)
	now := time.Now()
	f.mu.Lock()
	f.firstRun.answered(epoch, 0, now)
	current, known, provider := f.job.Epoch == epoch && f.place.seq == 0, f.place.known, f.at().Provider
	aside := current && full && f.sidestep(now, fs.workers.alive)
	if current && !aside {
		f.place.sent = now.Add(sweepEvery - confirmWait) // soon again, not at once
	}
	again := f.message()
	f.mu.Unlock()
	switch {
	case !current:
	case aside:
		fs.noteFull(provider)
		fs.recount(f)
		if err := fs.dispatch.Publish(&again, f.bodyRef); err != nil {
			fs.log.Warn("job not sent; it will be tried again", "job_id", again.ID, "error", err)
		}
	case full && !known:
		fs.noteFull(provider)
		fs.refuse(f, fs.publishError(err, provider))
	default:
		fs.needStreams()
	}
}

// message is the job as it is published now. The caller holds mu.
func (f *flight) message() inference.Job {
	m := *f.job
	m.Attempts, m.Tries = f.attempts, f.tries
	if f.candidates != nil {
		m.Candidates = f.candidates
	}
	return m
}

// refuse ends a flight that was never accepted: it has no row in the ledger.
func (fs *flights) refuse(f *flight, err error) {
	if !f.finish(&queue.End{JobID: f.job.ID, Err: inference.AsError(err)}, inference.OutcomeRejected) {
		return
	}
	fs.remove([]string{f.job.ID})
	f.hold.release()
	fs.side.Go(func() { fs.dropBlob(f.job.ID, f.bodyRef) }) // the caller must not block
	fs.metrics.refused(f.provider())
	if f.feed != nil {
		f.feed.abort(*f.end)
	}
}

func (fs *flights) publishError(err error, provider string) error {
	if errors.Is(err, queue.ErrFull) {
		return &inference.Error{
			Code: inference.CodeQueueFull, Retryable: true, RetryAfter: fs.workers.retryAfter(provider),
			Message: "The queue of this model's provider is full. Try again later.", Err: err,
		}
	}
	return errQueueGone(err)
}
