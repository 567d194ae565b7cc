package worker

import (
	"context"
	"errors"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// Bounds of the patience with an ingress that is not there to judge.
const (
	// maxAbsences is how often in a row it must be found gone by one worker.
	maxAbsences = 5

	// maxOrphanDeliveries stands in where so many workers take turns that none of them
	// counts so far. The deliveries before may all have been judged, so a second
	// absence is asked for, too.
	maxOrphanDeliveries = 60
)

// admit asks about a job that others may have had, and waits for its slot.
func (o ingressOwned) admit(work, ctx context.Context, x *execution) bool {
	if !x.held.runs {
		if !o.mayRunAgain(work, x.job, x.bodyRef, x.held) {
			return false
		}
		o.worker.hold.mayRun(x.held)
	}
	if !o.enter(ctx, x) {
		o.giveBack(work, ctx, x)
		return false
	}
	return true
}

// mayRunAgain asks the ingress whether a job that was handed out or published before is
// still wanted, and disposes of it if not.
func (p *pool) mayRunAgain(work context.Context, job *inference.Job, bodyRef string, h *held) bool {
	p.metrics.redeliveries.Inc()
	judged, err := p.worker.answer.Claim(work, queue.Claim{
		JobID: job.ID, Run: h.run, Worker: p.worker.opt.ID, Place: queue.Place{Candidates: job.Candidates, Seq: h.delivery.Seq},
	})
	if errors.Is(err, queue.ErrNoIngress) {
		return p.mayRunOrphan(work, job, bodyRef, h)
	}
	p.worker.absent.clear(job.ID)
	switch {
	case err != nil:
		p.worker.log.Warn("claim not judged", "job_id", job.ID, "error", err)
		h.delivery.Nak(time.Second)
	case judged.Verdict == queue.VerdictRun:
		if judged.Attempts > job.Attempts {
			job.Attempts, job.Tries = judged.Attempts, judged.Tries
		}
		return true
	case judged.Verdict == queue.VerdictDrop:
		h.delivery.Ack()
	default:
		h.delivery.Nak(time.Second)
	}
	return false
}

// mayRunOrphan decides about a job whose ingress does not answer. The ingress may
// only be cut off, so the job waits for it a few times. After that a plain call has
// nobody to take its answer; a streamed one may still be read through another
// ingress, unless its answer had begun: then it ends with an error, for its
// continuation would be another text.
func (p *pool) mayRunOrphan(work context.Context, job *inference.Job, bodyRef string, h *held) bool {
	if absences := p.worker.absent.add(job.ID); !orphaned(absences, h.run.Delivery) {
		h.delivery.Nak(time.Second)
		return false
	}
	lost := inference.Errorf(inference.CodeWorkerLost, "The worker was lost while it answered.")
	end := &queue.End{JobID: job.ID, Run: h.run, Worker: p.worker.opt.ID, Provider: p.member.Name, Attempts: job.Attempts, Tries: job.Tries, Err: lost}
	if h.run.Delivery > 1 {
		end.Attempts++ // the run before, which was lost
	}
	if job.Stream {
		last, err := p.lastKept(work, job.ID)
		switch {
		case err != nil:
			h.delivery.Nak(time.Second)
			return false
		case last == nil && h.run.Delivery < maxOrphanDeliveries:
			return true
		case last == nil:
		case last.End != nil:
			end = last.End // it was answered to its end, and only its account is missing
		default:
			end.Run, end.LastSeq = last.Run, last.FirstSeq+uint64(len(last.Chunks))-1
			r := p.worker.conn.NewRecorder(job, last.Run, end.LastSeq+1)
			if err := r.Finish(work, end); err != nil {
				p.worker.log.Warn("end of a lost stream not kept", "job_id", job.ID, "error", err)
			}
		}
	}
	p.worker.absent.clear(job.ID)
	p.abandon(work, &execution{pool: p, job: job, bodyRef: bodyRef, held: h}, end)
	return false
}

// orphaned reports whether a job's ingress was missed often enough to be thought gone.
func orphaned(absences, deliveries int) bool {
	return absences >= maxAbsences || absences >= 2 && deliveries >= maxOrphanDeliveries
}

// lastKept returns the last block that is kept of the job's answer, nil if none is.
func (p *pool) lastKept(ctx context.Context, jobID string) (*queue.Block, error) {
	var last *queue.Block
	for kept := p.worker.conn.NewKeptReader(jobID); ; {
		blocks, err := kept.Next(ctx)
		if err != nil {
			return nil, err
		}
		if len(blocks) == 0 {
			return last, nil
		}
		last = &blocks[len(blocks)-1]
	}
}

// pulse notices that the worker was frozen, or cut off from the queue, for so long that
// its jobs may have been given to others meanwhile.
type pulse struct {
	limit    time.Duration
	at, wall time.Time // when the worker last ran and was connected, by both clocks
}

// missed takes a beat and reports whether too long a time had passed before it. The
// monotonic clock stands still while a machine sleeps and the wall clock may be set
// back, so the longer time counts: to ask in vain does no harm.
func (p *pulse) missed(now, wall time.Time, connected bool) bool {
	if !connected {
		return false
	}
	gap := max(now.Sub(p.at), wall.Sub(p.wall))
	p.at, p.wall = now, wall
	return gap > p.limit
}

// askAgain asks whether a job is still this worker's that others may have been given
// meanwhile. Otherwise its call is given up: whatever it brings, another's counts.
func (w *Worker) askAgain(ctx context.Context, j *held) {
	judged, err := w.claim(ctx, j.lane, queue.Claim{JobID: j.jobID, Run: j.run, Worker: w.opt.ID})
	switch {
	case err != nil:
		j.delivery.Progress() // and it is asked again with the next word of progress
	case judged.Verdict == queue.VerdictRun:
		w.hold.trust(j)
		j.delivery.Progress()
	default:
		w.log.Info("job given up: it was answered or given to another worker", "job_id", j.jobID)
		j.cancel(errCancelled)
	}
}

// claim asks whoever owns the job.
func (w *Worker) claim(ctx context.Context, lane inference.Lane, c queue.Claim) (queue.Judgement, error) {
	if lane.Stored() {
		return w.answer.ClaimStored(ctx, lane, c)
	}
	return w.answer.Claim(ctx, c)
}
