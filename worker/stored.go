package worker

import (
	"context"
	"errors"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// storeOwned are the jobs that the database owns. Any ingress answers for it. What comes of
// them is kept by the server until one has stored it; nobody else hears of them.
type storeOwned struct{ *pool }

// A line of a batch that nobody can have had before runs without a question while its
// message is no older than this: it is hardly cancelled already, and there are many of them.
const unaskedFor = 10 * time.Second

// asks reports whether to ask about a job before it runs: always where that marks its start
// for a client who may be watching.
func asks(lane inference.Lane, again bool, age time.Duration) bool {
	return lane != inference.LaneBatch || again || age > unaskedFor
}

// admit waits for the job's slot and asks whether it is still wanted: only then, since
// both may take long.
func (o storeOwned) admit(work, ctx context.Context, x *execution) bool {
	h := x.held
	if !o.enter(ctx, x) {
		h.delivery.Nak(0)
		return false
	}
	if ctx.Err() == nil && asks(h.lane, !h.runs, time.Since(h.delivery.Published)) && !o.mayRun(work, x) {
		return false
	}
	o.worker.hold.mayRun(h)
	return true
}

// mayRun asks whether the job is wanted, and disposes of it if not. A job that is handed out
// for the first time runs, too, if nobody can say: its answer is kept until somebody can. One
// that comes again may have been answered, so it waits for a word a few times.
func (o storeOwned) mayRun(work context.Context, x *execution) bool {
	job, h := x.job, x.held
	if h.run.Delivery > 1 {
		o.metrics.redeliveries.Inc()
	}
	judged, err := o.worker.claim(work, h.lane, queue.Claim{
		JobID: job.ID, Run: h.run, Worker: o.worker.opt.ID, Place: queue.Place{Candidates: job.Candidates, Seq: h.delivery.Seq},
	})
	if err != nil {
		o.worker.log.Debug("claim not judged", "job_id", job.ID, "error", err)
		if h.run.Delivery > 1 && !orphaned(o.worker.absent.add(job.ID), h.run.Delivery) {
			h.delivery.Nak(time.Second)
			return false
		}
		return true
	}
	o.worker.absent.clear(job.ID)
	switch judged.Verdict {
	case queue.VerdictRun:
		if judged.Attempts > job.Attempts {
			job.Attempts, job.Tries = judged.Attempts, judged.Tries
		}
		return true
	case queue.VerdictDrop:
		h.delivery.Ack()
	default:
		h.delivery.Nak(time.Second)
	}
	return false
}

// passed needs no word when the job only goes back: its message still stands for it.
func (o storeOwned) passed(_, ctx context.Context, x *execution, next queue.Place) bool {
	if len(next.Candidates) == 0 {
		return true
	}
	x.slot.called()
	return o.report(ctx, x, &queue.Result{Passed: x.passedOn(next)})
}

func (o storeOwned) settle(work, ctx context.Context, x *execution, end *queue.End) {
	switch {
	case x.goesBack:
		x.held.delivery.Nak(bodyPause)
	case end.Err != nil && end.Err.Code == inference.CodeWorkerLost:
		o.giveBack(work, ctx, x)
	case o.report(ctx, x, &queue.Result{End: end, Lost: x.bodyLost}):
		x.held.delivery.Ack()
	default:
		x.held.delivery.Nak(0)
	}
}

// Bounds of the handing over of a result.
const (
	reportTimeout = 10 * time.Second // of one try, besides the storing of a large answer
	reportPerMiB  = time.Second      // of its answer, so that a slow link gets through one day
	reportPause   = time.Second
	reportLast    = 3 // tries of a worker that is to stop
)

// report keeps what came of the job where an ingress finds it, and reports whether its
// message is needed no more. While that cannot be done the job stays here, since its
// answer is paid for. A cancelled job has ended without us.
func (o storeOwned) report(ctx context.Context, x *execution, r *queue.Result) bool {
	r.Lane, r.Tenant, r.Taken, r.CreatedAt = x.held.lane, x.job.Tenant, x.held.since, x.job.CreatedAt
	var said complaint
	for last := reportLast; ; {
		if errors.Is(context.Cause(ctx), errCancelled) {
			return true
		}
		err := o.reportOnce(ctx, r)
		if err == nil {
			return true
		}
		if said.news("told") {
			o.worker.log.Warn("result of job waits", "job_id", x.job.ID, "error", err)
		}
		x.held.delivery.Progress()
		select {
		case <-o.worker.stopping:
			if last--; last == 0 {
				return false
			}
		default:
		}
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errCancelled) {
				return false
			}
		case <-time.After(reportPause):
		}
	}
}

func (o storeOwned) reportOnce(ctx context.Context, r *queue.Result) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.reportTime(r))
	defer cancel()
	return o.worker.answer.Result(ctx, r)
}

// reportTime is how long one try may take. Every MiB of the answer that has begun counts.
// A job that is passed on is not among the worker's any more, of which it tells that they
// get on: that it does between two tries.
func (o storeOwned) reportTime(r *queue.Result) time.Duration {
	if r.End == nil {
		return min(reportTimeout, o.worker.opt.AckWait/2)
	}
	return reportTimeout + time.Duration((len(r.End.Body)+1<<20-1)>>20)*reportPerMiB
}
