package ingress

import (
	"context"
	"time"

	"sluice/internal/queue"
)

// firstRun is what is known of the first delivery of a job's first message: the only run
// that begins without a claim. A worker says what it has in hand within a tenth of a
// second, and one that is killed before that leaves no trace here. What is given up while
// nobody has spoken of this run may so have reached a provider, or have waited all along.
type firstRun struct {
	provider   string
	seq        uint64    // zero until the server has confirmed the message
	sent       time.Time // the first publish
	confirmed  time.Time
	unanswered int       // publishes that the server has neither confirmed nor refused
	gone       time.Time // when the message was known to be out of the queue; zero: it may be there
	waited     bool      // no worker was ever given the message, nor will be
	known      bool      // its worker has spoken, or it was found out otherwise whether it began
	asked      bool      // it is being found out
}

// firstRunOf is how a run must be called to be the first.
var firstRunOf = queue.Run{Epoch: 0, Delivery: 1}

// hears takes a word about any run of the job.
func (r *firstRun) hears(run queue.Run) { r.known = r.known || run == firstRunOf }

// answered takes how the server took a publish of the job: its place, or zero if it does
// not have it.
func (r *firstRun) answered(epoch int, seq uint64, now time.Time) {
	if epoch != firstRunOf.Epoch {
		return
	}
	r.unanswered--
	if seq != 0 && r.seq == 0 {
		r.seq, r.confirmed = seq, now
	}
}

// again notes that the job is published once more.
func (r *firstRun) again(epoch int) {
	if epoch == firstRunOf.Epoch {
		r.unanswered++
	}
}

// left notes that a message is out of its queue.
func (r *firstRun) left(provider string, seq uint64, now time.Time) {
	if r.gone.IsZero() && r.is(provider, seq) {
		r.gone = now
	}
}

// is reports whether the message is its.
func (r *firstRun) is(provider string, seq uint64) bool {
	return r.seq != 0 && r.seq == seq && r.provider == provider
}

// unknown reports whether it may have begun without a word: nobody has spoken of it, and
// the server may have had its message.
func (r *firstRun) unknown() bool {
	return !r.known && (r.seq != 0 && !r.waited || r.unanswered > 0)
}

// begun is whether a run may have begun unheard.
type begun int

const (
	begunNo    begun = iota
	begunMaybe       // nobody can say that it did not
	begunAsk         // the queue may know
)

// unheard judges whether any run of the job may have begun without a word: the first one,
// or a later one while this ingress could not be asked. The caller holds mu.
func (f *flight) unheard(connectedAt time.Time, workers *directory) begun {
	r := &f.firstRun
	switch {
	case f.job.Stream && (r.known || f.job.Epoch > 0) && connectedAt.After(later(f.heardAt, f.place.firstSent)):
		return begunMaybe // a worker may have done without the ingress, see the worker's mayRunOrphan
	case !r.unknown():
		return begunNo
	case r.gone.IsZero():
		return begunMaybe
	case workers.allSpoke(r.provider, r.sent, r.gone, connectedAt):
		return begunNo // whoever had it is there, and would have said so
	case r.unanswered > 0:
		return begunMaybe // another message of it was perhaps lost with its queue
	}
	return begunAsk
}

// untold reports whether a call may have been made that nobody has heard of, and whether it
// matters: the job has limits, and no call for it is known that counts anyway. The caller
// holds mu.
func (f *flight) untold() bool {
	return f.hold != nil && !f.held && f.lostRuns == 0 && (f.firstRun.unknown() || f.job.Stream)
}

// mayHaveBegun finds out whether a run of a job that is given up may have begun unheard.
// What cannot be found out may have. It asks at most twice.
func (fs *flights) mayHaveBegun(f *flight) bool {
	f.mu.Lock()
	r := f.firstRun
	f.mu.Unlock()
	if r.unknown() && r.seq != 0 && r.gone.IsZero() {
		fs.takeOut(f, r.provider, r.seq) // it did not succeed before
	}
	f.mu.Lock()
	judged := f.unheard(fs.streams.since(), fs.workers)
	f.mu.Unlock()
	if judged != begunAsk {
		return judged == begunMaybe
	}
	given, err := fs.dispatch.HandedOut(context.Background(), r.provider, r.seq, r.confirmed)
	if err != nil {
		fs.log.Debug("job may have been begun", "job_id", f.job.ID, "error", err)
	}
	return given || err != nil
}

// removed notes that a message of the job was taken out of its queue just now, and asks at
// once whether a worker had it before: once others behind it are handed out nobody can say.
func (fs *flights) removed(f *flight, provider string, seq uint64) {
	f.mu.Lock()
	r := &f.firstRun
	r.left(provider, seq, time.Now())
	ask, confirmed := f.hold != nil && r.unknown() && r.is(provider, seq), r.confirmed
	f.mu.Unlock()
	if !ask {
		return
	}
	given, err := fs.dispatch.HandedOut(context.Background(), provider, seq, confirmed)
	if given || err != nil {
		return // it is asked again when the row is written, if it still matters
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.waited = true
}

// lostBefore reports whether an end that a worker tells of may have been preceded by a run
// that nobody heard of.
func (fs *flights) lostBefore(f *flight) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.firstRun.unknown() && f.unheard(fs.streams.since(), fs.workers) != begunNo
}

// closeUnheard writes the row of a job that was given up and whose worker, if it had one,
// has not said what it used.
func (fs *flights) closeUnheard(f *flight) {
	f.mu.Lock()
	untold, asked := f.untold(), f.firstRun.asked
	f.firstRun.asked = true
	f.mu.Unlock()
	switch {
	case asked: // it is on its way
	case untold:
		fs.side.Go(func() { fs.closeAs(f, fs.mayHaveBegun(f)) })
	default:
		fs.closeAs(f, false)
	}
}

// closeAs is closeUnheard once it is known whether a call has to be counted of which nobody
// has heard.
func (fs *flights) closeAs(f *flight, unheard bool) {
	f.mu.Lock()
	e, outcome := *f.end, f.outcome
	e.Attempts, e.Tries = f.made(time.Now()), f.tries
	if unheard && f.untold() {
		e.Attempts++ // whoever had it is lost, and may have called
	}
	f.lost, f.firstRun.known = true, true
	f.mu.Unlock()
	if !f.finish(&e, outcome) {
		return
	}
	if f.feed != nil {
		last := f.feed.abort(e)
		fs.side.Go(func() { fs.keepEnd(f, last) }) // its client may still come back, and must not wait for more
	}
	fs.account(f, &e)
	fs.side.Go(func() { fs.cancel(f) }) // its worker, if it had one, will not remove it
}
