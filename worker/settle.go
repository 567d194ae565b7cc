package worker

import (
	"context"
	"errors"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// Bounds of the handing over of an end.
const (
	settleRepeat = time.Second // the end is said again when nothing is heard for so long
	settleAsk    = 3           // repeats before asking whether the ingress is there at all
	settleGone   = 2           // times in a row that it must be found gone: it may only be reconnecting
	storeTimeout = 30 * time.Second
)

// settle hands the end to the job's ingress and acknowledges the job once the
// ingress has taken it and its usage record is kept. If the ingress is gone, the
// worker keeps the record itself.
func (o ingressOwned) settle(work, ctx context.Context, x *execution, end *queue.End) {
	p, h := o.pool, x.held
	p.ended.Add(1)
	if x.goesBack {
		h.delivery.Nak(bodyPause)
		return
	}
	if end.Err != nil && end.Err.Code == inference.CodeWorkerLost && end.LastSeq == 0 {
		p.giveBack(work, ctx, x) // nothing of it was shown: another worker takes over unseen
		return
	}
	if !p.wanted(work, end) {
		h.delivery.Ack()
		return
	}
	p.store(work, end)
	if err := p.worker.answer.End(end); err != nil {
		p.worker.log.Warn("end not sent", "job_id", end.JobID, "error", err)
	}
	p.keepEnd(work, x, end)

	tick := time.NewTicker(settleRepeat)
	defer tick.Stop()
	gone := 0
	for n := 1; ; n++ {
		select {
		case <-h.settled:
			h.delivery.Ack()
			return
		case <-tick.C:
		}
		if work.Err() != nil && n > settleAsk {
			return // the drain is over; unacknowledged, the job comes to another worker
		}
		if n%settleAsk == 0 {
			if !p.worker.answer.IngressGone(context.WithoutCancel(work), end.JobID) {
				gone = 0
			} else if gone++; gone == settleGone {
				p.abandon(work, x, end)
				return
			}
		}
		if err := p.worker.answer.End(end); err != nil {
			p.worker.log.Warn("end not sent", "job_id", end.JobID, "error", err)
		}
	}
}

// wanted asks, before a large answer is stored, whether the job is still open: one that
// was answered by another run, or given up, would leave an object that nobody fetches
// and nobody removes. The bound of what is stored is shared by all.
func (p *pool) wanted(work context.Context, end *queue.End) bool {
	if !queue.TooLarge(end) {
		return true
	}
	claim := queue.Claim{JobID: end.JobID, Run: end.Run, Worker: p.worker.opt.ID}
	judged, err := p.worker.answer.Claim(context.WithoutCancel(work), claim)
	if err != nil || judged.Verdict != queue.VerdictDrop {
		return true
	}
	p.worker.log.Info("large answer dropped: the job is accounted for without it", "job_id", end.JobID)
	return false
}

// store moves a large body out of the end. If that fails the end becomes an error:
// the client gets a clear word instead of nothing.
func (p *pool) store(work context.Context, end *queue.End) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(work), storeTimeout)
	defer cancel()
	if err := p.worker.answer.StoreAnswer(ctx, end); err != nil {
		p.worker.log.Error("large answer not stored", "job_id", end.JobID, "error", err)
		end.Body = nil
		end.Err = inference.Errorf(inference.CodeInternal, "The answer could not be stored in the queue.")
	}
}

// keepEnd completes what is kept of a streamed answer.
func (p *pool) keepEnd(work context.Context, x *execution, end *queue.End) {
	if x.recorder == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(work), storeTimeout)
	defer cancel()
	if err := x.recorder.Finish(ctx, end); err != nil {
		p.worker.log.Warn("end of events not kept for replay", "job_id", end.JobID, "error", err)
	}
}

// abandon accounts for a job whose ingress is gone, and acknowledges it.
func (p *pool) abandon(work context.Context, x *execution, end *queue.End) {
	job := x.job
	rec := inference.Record{
		JobID: job.ID, RequestID: job.RequestID, Kind: job.Kind, Tenant: job.Tenant, KeyID: job.KeyID,
		ModelAsked: job.Model, Provider: p.member.Name, ModelServed: end.Model, Stream: job.Stream,
		Usage: end.Usage, Attempts: end.Attempts, Tries: end.Tries, Outcome: inference.OutcomeAbandoned, CreatedAt: job.CreatedAt,
		Queue: x.held.since.Sub(job.CreatedAt), Total: time.Since(job.CreatedAt),
	}
	if end.Err != nil {
		rec.ErrorCode = end.Err.Code
	}
	for {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(work), 5*time.Second)
		err := p.worker.conn.AppendRecords(ctx, []inference.Record{rec})
		cancel()
		if err == nil {
			break
		}
		p.worker.log.Warn("usage record of an abandoned job waits", "job_id", job.ID, "error", err)
		select {
		case <-work.Done():
			// Unacknowledged, the job comes again, to a worker that can account for it.
			if errors.Is(context.Cause(work), errStopping) {
				return
			}
		case <-time.After(time.Second):
		}
	}
	p.removeBlobs(work, x, end)
	x.held.delivery.Ack()
}

func (p *pool) removeBlobs(work context.Context, x *execution, end *queue.End) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(work), 5*time.Second)
	defer cancel()
	for _, ref := range []string{x.bodyRef, end.BodyRef} {
		if ref == "" {
			continue
		}
		if err := p.worker.conn.RemoveBlob(ctx, ref); err != nil {
			p.worker.log.Warn("blob not removed", "job_id", x.job.ID, "error", err)
		}
	}
}
