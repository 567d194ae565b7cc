package worker

import (
	"context"
	"errors"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// block is why no call may be made at the moment, and what to wait for.
type block struct {
	until  time.Time        // zero: not known
	turned <-chan struct{}  // closed when the breaker changes; nil without one
	err    *inference.Error // what it looks like to the client
}

// wait is how long to wait at the least; zero when that is not known.
func (b *block) wait(now time.Time) time.Duration {
	if b == nil || b.until.IsZero() {
		return 0
	}
	return max(b.until.Sub(now), time.Millisecond)
}

// Bounds of what is held without a slot. Beyond them a job keeps its slot while it
// waits, so that the queue keeps the rest.
const (
	heldMost  = 4096
	heldBytes = 64 << 20
)

// hold waits until the provider may be called, or the job's time is over. Meanwhile the
// slot is free for jobs that can go elsewhere; afterwards the job has one again. It
// returns false, without a slot, when the worker is to stop.
func (p *pool) hold(ctx context.Context, x *execution) bool {
	ctx, cancel := context.WithDeadline(ctx, x.job.Deadline)
	defer cancel()
	s, l, size := x.slot, x.slot.lane, int64(len(x.job.Body))
	if jobs, bytes := l.held.Add(1), l.heldSize.Add(size); jobs <= heldMost && bytes <= heldBytes {
		s.release()
	}
	p.worker.news.Store(true)
	p.worker.hold.idle(x.held, x.blocked.turned != nil)
	defer p.worker.hold.idle(x.held, false)
	p.pause(ctx, x)
	l.held.Add(-1)
	p.worker.news.Store(true)
	err := s.retake(ctx, x.job.Deadline, p.halt())
	l.heldSize.Add(-size)
	if errors.Is(err, queue.ErrStopped) {
		s.release()
		return false
	}
	return true
}

// holdAtMost is how long a held job waits before it looks again by itself, and lookEvery
// how often it looks whether another candidate has come to life.
const (
	holdAtMost = 5 * time.Second
	lookEvery  = 500 * time.Millisecond
)

// pause waits for what stands in the way, or for another candidate that may serve the
// job. A worker that is to stop, or whose provider is paused, does not wait.
func (p *pool) pause(ctx context.Context, x *execution) {
	wait := holdAtMost
	if known := x.blocked.wait(time.Now()); known > 0 {
		wait = known
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var look <-chan time.Time
	if len(x.job.Candidates) > 1 {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		look = tick.C
	}
	halted := p.halt()
	for {
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-x.blocked.turned:
		case <-halted:
		case <-look:
			if time.Since(x.blockedAt) <= p.member.Patience || !x.next(x.blocked.err) {
				continue
			}
		}
		return
	}
}

// A job waits so long for another worker that is to have it, twice as long each time:
// the others may be busy.
const (
	peersPause = 50 * time.Millisecond
	peersMost  = time.Second
)

func peersWait(times int) time.Duration { return min(peersPause<<min(max(times-1, 0), 5), peersMost) }

// failing names the job as one that this provider failed: another one may be well.
func (p *pool) failing(job *inference.Job) string { return job.ID + p.member.Name }

// leftToPeers puts a job back that failed here and that another worker is to have, and
// reports whether it did. It is not left to them up to its deadline: a failure here is
// worth more than none.
func (p *pool) leftToPeers(job *inference.Job, d *queue.Delivery) bool {
	name := p.failing(job)
	if p.worker.failed.count(name) == 0 || time.Until(job.Deadline) < 2*peersMost ||
		p.worker.peers.well(p.member.Name, job.Candidate().Model, time.Now()) == 0 {
		return false
	}
	d.Nak(peersWait(p.worker.failed.add(name)))
	return true
}

// giveBack puts the job back into its queue for another worker, and tells its owner, who
// might take this one for lost.
func (p *pool) giveBack(work, ctx context.Context, x *execution) {
	delay := time.Duration(0)
	if p.paused() {
		// It did not fail here: whoever is the first to take jobs again has it.
	} else if n := p.worker.failed.add(p.failing(x.job)); n > 1 {
		delay = peersWait(n) // it came back here before
	}
	p.worker.hold.remove(x.held)
	x.owner.passed(work, ctx, x, queue.Place{})
	x.held.delivery.Nak(delay)
}

// passedOn is what the job's owner is told of it.
func (x *execution) passedOn(next queue.Place) *queue.Passed {
	return &queue.Passed{JobID: x.job.ID, Run: x.held.run, Worker: x.pool.worker.opt.ID, Attempts: x.attempts(), Tries: x.allTries(), Next: next}
}

// Bounds of the publishing of a job that is passed on.
const (
	forwardTries = 3
	forwardPause = time.Second
)

// forward publishes the job to the queue of the next candidate that may serve it, and
// acknowledges it here once the server has it there and its owner is told. It returns
// false when no candidate's queue takes the job.
func (p *pool) forward(work, ctx context.Context, x *execution, end *queue.End) bool {
	reason := end.Err.Reason()
	job := *x.job
	job.Epoch, job.Attempts, job.Tries = job.Epoch+1, x.attempts(), x.allTries()
	p.worker.hold.remove(x.held) // its next message may come to this worker, too
	for tries := 0; ; {
		rest := inference.NextCandidates(job.Candidates, reason, p.worker.alive)
		if len(rest) == 0 {
			p.worker.hold.add(x.held)
			return false
		}
		to := job
		to.Candidates = rest
		seq, err := p.worker.answer.Forward(context.WithoutCancel(work), &to, x.bodyRef)
		switch {
		case err == nil:
			if x.owner.passed(work, ctx, x, queue.Place{Candidates: rest, Seq: seq}) {
				x.held.delivery.Ack()
			} else {
				x.held.delivery.Nak(0)
			}
			p.metrics.failedOver(reason)
			p.worker.log.Debug("job passed on", "request_id", job.RequestID, "job_id", job.ID, "provider", p.member.Name, "to", rest[0].Provider, "code", string(end.Err.Code))
			return true
		case errors.Is(err, queue.ErrFull), errors.Is(err, queue.ErrNoQueue):
			job.Candidates = append(job.Candidates[:1:1], rest[1:]...)
		default:
			p.worker.log.Warn("job not passed on", "job_id", job.ID, "to", rest[0].Provider, "error", err)
			if tries++; tries == forwardTries {
				// The server may have it there or not: it comes again here, and is asked about.
				x.owner.passed(work, ctx, x, queue.Place{})
				x.held.delivery.Nak(forwardPause)
				return true
			}
		}
	}
}

// throttle takes no more jobs than may be called while this worker's upstream is the one
// that fails: the provider's other workers have the queue to themselves then.
func (p *pool) throttle(now time.Time) {
	taker := p.lanes[0].taker()
	if taker == nil {
		return
	}
	most := p.member.Slots
	states := p.breakers.states(now)
	for i, s := range states {
		if s.Breaker == inference.BreakerClosed || p.worker.peers.well(p.member.Name, s.Model, now) == 0 {
			most = p.member.Slots
			break
		}
		if i == 0 {
			most = 0
		}
		if s.Breaker == inference.BreakerHalfOpen {
			most = max(p.member.Breaker.Probes, 1)
		}
	}
	p.lanes[0].most.Store(int64(most))
	taker.Bound(p.lanes[0].worthwhile())
	others := p.worker.peers.of(p.member.Name, now)
	workers, elsewhere := len(others)+1, 0
	for _, o := range others {
		elsewhere += o.InFlight
	}
	taker.Share(max((p.bears()+workers-1)/workers, 1))
	p.gate.adjust(fits(p.member.Slots, p.bears(), workers, elsewhere))
	for _, l := range p.lanes[1:] {
		bound := l.bound()
		if most < p.member.Slots {
			bound = most
		}
		l.most.Store(int64(bound))
		l.follow()
	}
}
