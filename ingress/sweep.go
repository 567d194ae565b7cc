package ingress

import (
	"context"
	"errors"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// sweepEvery is how often flights are looked at that nothing is heard of.
const sweepEvery = 250 * time.Millisecond

// streamAges remembers when each provider's stream was made, to notice that a server
// has lost it.
type streamAges struct {
	mu          sync.Mutex
	made        map[string]time.Time
	connectedAt time.Time
}

// note takes when the provider's stream was made and reports whether that differs
// from before.
func (s *streamAges) note(provider string, made time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made == nil {
		s.made = make(map[string]time.Time)
	}
	before, known := s.made[provider]
	s.made[provider] = made
	return known && !before.Equal(made)
}

func (s *streamAges) reconnected(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connectedAt = now
}

func (s *streamAges) since() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connectedAt
}

// sinceIf is since, and whether there is a connection. It asks for that first: a connection
// that is new in between would count as long there, and the time without one as silence.
func (s *streamAges) sinceIf(connected func() bool) (since time.Time, there bool) {
	there = connected()
	return s.since(), there
}

func (fs *flights) needStreams() {
	select {
	case fs.nudge <- struct{}{}:
	default:
	}
}

// Streams are looked at when there is a reason, and now and then without one.
const (
	streamsCheck = 15 * time.Second
	streamsRetry = 250 * time.Millisecond
)

// keepStreams makes sure that the streams exist, and finds out which were lost.
func (fs *flights) keepStreams(ctx context.Context) {
	said := ""
	for {
		wait := streamsCheck
		err := fs.ensureStreams(ctx)
		switch {
		case err == nil:
			said = ""
		case ctx.Err() == nil:
			if said != err.Error() {
				said = err.Error()
				fs.log.Warn("queue is not ready", "error", err)
			}
			wait = streamsRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-fs.nudge:
		}
		timer.Stop()
	}
}

func (fs *flights) ensureStreams(ctx context.Context) error {
	if err := fs.conn.EnsureShared(ctx); err != nil {
		return err
	}
	var errs []error // one provider's trouble is not the others'
	for provider, maxQueued := range fs.workers.queues() {
		made, err := fs.conn.EnsureQueue(ctx, provider, maxQueued)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fs.workers.queueReady(provider)
		if fs.streams.note(provider, made) {
			fs.streamLost(provider)
		}
	}
	return errors.Join(errs...)
}

// streamLost marks the flights whose job went down with the provider's stream.
func (fs *flights) streamLost(provider string) {
	now := time.Now()
	lost := 0
	for _, f := range fs.all() {
		f.mu.Lock()
		if f.at().Provider == provider && f.place.seq != 0 && f.place.lostAt.IsZero() {
			f.place.lostAt = now
			f.firstRun.left(provider, f.place.seq, now)
			lost++
		}
		f.mu.Unlock()
	}
	fs.log.Warn("queue was lost by its server", "provider", provider, "jobs", lost)
}

// sweep looks after the flights until ctx ends.
func (fs *flights) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			since, connected := fs.streams.sinceIf(fs.conn.Connected)
			left := lookUps
			for _, f := range fs.all() {
				fs.tellForsaken(f, now, since, connected)
				if !connected {
					continue // nothing can be heard: silence means nothing
				}
				fs.lookAfter(f, now, since)
				if left > 0 && f.doubtful(now, since) {
					left--
					fs.side.Go(func() { fs.lookUp(ctx, f) })
				}
			}
		}
	}
}

// A job can leave its queue without a word to its ingress: a worker gave the ingress up
// for lost, an operator emptied the queue. So the queue is asked for jobs that nothing
// was heard of for long, a few at a time.
const (
	lookUpEvery = 10 * time.Second // for one job
	lookUps     = 10               // in one sweep
)

// doubtful reports whether the queue is to be asked for the job, and notes that it is.
func (f *flight) doubtful(now, connectedAt time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	heard := later(later(f.heardAt, connectedAt), later(f.place.sent, f.place.askedAt))
	if f.ended || f.begun || !f.closing.IsZero() || f.place.seq == 0 || !f.place.lostAt.IsZero() || now.Sub(heard) < lookUpEvery {
		return false
	}
	f.place.askedAt = now
	return true
}

// lookUp asks the queue for the job, and takes it for lost if it is not there.
func (fs *flights) lookUp(ctx context.Context, f *flight) {
	f.mu.Lock()
	seq, provider := f.place.seq, f.at().Provider
	f.mu.Unlock()
	there, err := fs.dispatch.Queued(ctx, provider, seq)
	if err != nil {
		fs.log.Debug("job not looked up in its queue", "job_id", f.job.ID, "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !there && f.place.seq == seq && !f.ended && f.place.lostAt.IsZero() {
		f.place.lostAt = time.Now()
		f.firstRun.left(provider, seq, f.place.lostAt)
		fs.log.Warn("job is not in its queue any more", "job_id", f.job.ID, "provider", provider)
	}
}

// need is what a flight asks for that nothing is heard of.
type need int

const (
	needNothing    need = iota
	needRepeat          // publish the same epoch again: the server has not confirmed it
	needRefusal         // the queue took nothing for too long
	needNewEpoch        // the queue lost the job: publish it again
	needLostError       // the worker is gone and its answer had begun
	needQueueError      // the queue loses the job again and again
	needUsageRow        // the worker's last word did not come
	needCancel          // the client did not come back
	needExpiry          // the deadline has passed, and no client of this ingress watches it
	needAside           // the provider has no worker left, and another candidate has
)

// lookAfter decides under the flight's lock and acts without it.
func (fs *flights) lookAfter(f *flight, now, connectedAt time.Time) {
	f.mu.Lock()
	n := f.needs(now, connectedAt)
	left := queue.Place{Candidates: []inference.Candidate{f.at()}, Seq: f.place.seq}
	if n == needNothing && !fs.workers.keeps(left.Candidates[0]) && f.deserted(now, connectedAt, fs.workers.alive) {
		n = needAside
		if f.held {
			f.lostRuns++
		}
		f.sidestep(now, fs.workers.alive)
		f.run, f.held = queue.Run{Epoch: f.job.Epoch}, false
	}
	switch n {
	case needRepeat:
		f.place.sent = now
		f.firstRun.again(f.job.Epoch)
	case needNewEpoch:
		f.job.Epoch += inference.EpochStride - f.job.Epoch%inference.EpochStride
		if f.held {
			f.lostRuns++
		}
		f.held = false
		f.place = place{known: true, sent: now, firstSent: now}
	}
	again := f.message() // the publish must not race with a later epoch
	f.mu.Unlock()

	switch n {
	case needNothing:
	case needRepeat, needNewEpoch:
		fs.metrics.republished(again.Candidate().Provider)
		if err := fs.dispatch.Publish(&again, f.bodyRef); err != nil {
			fs.log.Warn("job not sent again", "job_id", again.ID, "error", err)
		}
	case needAside:
		fs.aside(f, &again, left)
	case needRefusal:
		// The server may have the job after all and only have failed to say so: it has a row.
		fs.end(f, errQueueGone(nil))
	case needLostError:
		fs.end(f, answerLost("The worker was lost while it answered."))
	case needQueueError:
		fs.end(f, answerLost("The queue lost this request several times."))
	case needUsageRow:
		fs.closeUnheard(f)
	case needCancel:
		fs.leave(f, inference.OutcomeCancelled, errClientGone())
	case needExpiry:
		fs.leave(f, inference.OutcomeExpired, errDeadline(f.job))
	}
}

// asideAfter is how long a job waits for a provider without workers before it goes to
// another candidate.
const asideAfter = 2 * time.Second

// deserted reports whether the job waits for a provider that has no worker left, or was
// in the hands of one that is gone, while another candidate is alive. The caller holds
// mu.
func (f *flight) deserted(now, connectedAt time.Time, alive func(inference.Candidate) bool) bool {
	if f.ended || f.begun || !f.closing.IsZero() || f.clientGone || f.place.seq == 0 || len(f.candidates) < 2 {
		return false
	}
	heard := later(later(f.heardAt, connectedAt), f.place.sent)
	if now.Sub(heard) < asideAfter || f.held && now.Sub(heard) < aliveFor || alive(f.at()) {
		return false
	}
	return len(inference.NextCandidates(f.candidates, inference.ReasonUnavailable, alive)) > 0
}

// aside publishes the job for its next candidate and takes it away where it was.
func (fs *flights) aside(f *flight, job *inference.Job, left queue.Place) {
	fs.recount(f)
	fs.log.Info("job goes to another provider: its own has no worker", "job_id", job.ID, "provider", left.Candidates[0].Provider, "to", job.Candidate().Provider)
	if err := fs.dispatch.Publish(job, f.bodyRef); err != nil {
		fs.log.Warn("job not sent; it will be tried again", "job_id", job.ID, "error", err)
	}
	fs.side.Go(func() {
		if err := fs.dispatch.Remove(context.Background(), job.ID, left.Candidates[0].Provider, left.Seq); err != nil {
			fs.log.Debug("job not taken out of its queue", "job_id", job.ID, "error", err)
			return
		}
		fs.removed(f, left.Candidates[0].Provider, left.Seq)
	})
}

// needs is the pure part of looking after. The caller holds mu.
func (f *flight) needs(now, connectedAt time.Time) need {
	silent := now.Sub(later(f.heardAt, connectedAt))
	switch {
	case f.ended:
		return needNothing
	case !f.closing.IsZero():
		if now.After(later(f.closing, connectedAt.Add(closingWait))) {
			return needUsageRow
		}
		return needNothing
	case f.clientGone && now.After(f.job.Deadline):
		return needExpiry
	case f.clientGone && now.After(f.goneUntil):
		return needCancel
	case f.begun && silent > silentFor:
		return needLostError
	case f.place.seq == 0 && !f.begun:
		return f.unconfirmed(now, connectedAt, silent)
	case !f.place.lostAt.IsZero() && !f.begun && now.Sub(f.place.lostAt) > lostGrace && silent > aliveFor:
		if f.job.Epoch/inference.EpochStride >= maxLostRuns {
			return needQueueError
		}
		return needNewEpoch
	}
	return needNothing
}

// unconfirmed is what a flight needs of which the server has not said that it has it.
func (f *flight) unconfirmed(now, connectedAt time.Time, silent time.Duration) need {
	switch {
	case f.held && silent > silentFor:
		return needNewEpoch // its worker is lost, and the queue may be, too
	case f.held:
		return needNothing
	case !f.place.known && now.Sub(later(f.place.firstSent, connectedAt)) > publishMost:
		return needRefusal
	case now.Sub(f.place.sent) > confirmWait:
		return needRepeat
	}
	return needNothing
}
