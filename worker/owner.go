package worker

import (
	"context"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// owner is whom a job belongs to: the ingress whose client waits for it, or the database,
// for which any ingress speaks. It is asked before a run that may not be the first one, and
// told what came of it.
type owner interface {
	// admit waits until the job may run and has a slot. It returns false when it is not to
	// run, after disposing of it.
	admit(work, ctx context.Context, x *execution) bool

	// passed tells that the worker gives the job up: a message stands for it elsewhere, or,
	// with the zero Place, it goes back. It returns false when that cannot be told.
	passed(work, ctx context.Context, x *execution, next queue.Place) bool

	// settle hands over how the job ended and disposes of its message.
	settle(work, ctx context.Context, x *execution, end *queue.End)
}

func (p *pool) ownerOf(job *inference.Job) owner {
	if job.Lane.Stored() {
		return storeOwned{p}
	}
	return ingressOwned{p}
}

// ingressOwned are the jobs whose client waits, at the ingress that accepted them.
type ingressOwned struct{ *pool }

func (o ingressOwned) passed(_, _ context.Context, x *execution, next queue.Place) bool {
	if err := o.worker.answer.Passed(x.passedOn(next)); err != nil {
		o.worker.log.Warn("ingress not told of a job passed on", "job_id", x.job.ID, "error", err)
	}
	return true // it finds out by itself
}
