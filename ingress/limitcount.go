package ingress

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

// ended counts what a job took that a run of this epoch has ended just now, if that is up to
// this ingress. Nobody has anything in hand for a run whose message stood for the job no more.
// What it took is in the row, though, and counts with the message that stands for it instead.
func (l *jobLimits) ended(ctx context.Context, job *store.Job, r *inference.Record, run int) {
	if l == nil || r == nil {
		return
	}
	whole := rowOf(job, r)
	if !l.endHold(job, whole, run) && family(run) != family(job.Epoch) && job.DispatchedAt.IsZero() {
		l.charge(ctx, job, whole)
	}
}

// rowOf is what a run took, of the job as the database knows it.
func rowOf(job *store.Job, r *inference.Record) *inference.Record {
	whole := *r
	whole.ModelAsked, whole.CreatedAt = job.Model, job.CreatedAt
	return &whole
}

// endHold ends what a job has in hand here, and reports whether the run is counted with it:
// it is if it was reserved for the message that stands for the job.
func (l *jobLimits) endHold(job *store.Job, r *inference.Record, run int) (counted bool) {
	h := l.hold(job.ID, job.Epoch)
	if h == nil {
		return false
	}
	defer l.over(h.hold)
	switch {
	case family(h.epoch) == family(job.Epoch):
		h.end(r)
		return true
	case h.doubtful && family(h.epoch) != family(run): // see outdated
		h.end(untold(time.Now()))
	default:
		h.release()
	}
	return false
}

// charge counts a job for which nobody has anything in hand, as its hold would have.
func (l *jobLimits) charge(ctx context.Context, job *store.Job, r *inference.Record) {
	settings := l.settings()
	took, known := settings.Limits.spent(r)
	if !known && r.Outcome != inference.OutcomeSucceeded && !reached(r) {
		return
	}
	if !known {
		if q, _ := l.asked(ctx, job); q != nil {
			l.unreserved(q).end(r)
			return
		}
	}
	p, err := l.payer(ctx, settings, job.Limits, job.KeyID, job.Tenant, job.Model, job.Candidates)
	if err != nil {
		return // nobody knows its limits while the database is away
	}
	if scopes := settings.Limits.scopes(p); len(scopes) > 0 {
		l.by.Charge(limits.Demand{Scopes: scopes, Tokens: took.tokens, Cost: took.cost})
	}
}

// asked returns what a job has asked of its limits, or nil if nothing limits it.
func (l *jobLimits) asked(ctx context.Context, job *store.Job) (*limited, error) {
	body, err := l.rows.JobBody(ctx, job.ID)
	if err != nil {
		return nil, err
	}
	return l.limited(ctx, &inference.Job{
		ID: job.ID, Kind: job.Kind, Tenant: job.Tenant, KeyID: job.KeyID, Model: job.Model, Candidates: job.Candidates, Body: body,
	}, job.Limits, job.CreatedAt)
}

// recordOfEnd returns what the row of a job tells that a worker has ended.
func recordOfEnd(j *store.Job) *inference.Record {
	r := &inference.Record{
		JobID: j.ID, Provider: j.ProviderServed, ModelAsked: j.Model, ModelServed: j.ModelServed, Usage: j.Usage,
		Attempts: j.Attempts, Tries: j.Tries, ErrorCode: j.ErrorCode, Outcome: inference.OutcomeFailed, CreatedAt: j.CreatedAt,
	}
	switch j.Status {
	case store.JobCompleted:
		r.Outcome = inference.OutcomeSucceeded
	case store.JobExpired:
		r.Outcome = inference.OutcomeExpired
	}
	return r
}

// sweepHolds ends what jobs have in hand that ended elsewhere, or whose message was found
// to be gone elsewhere: another one stands for them, or will.
func (l *jobLimits) sweepHolds(ctx context.Context) error {
	l.giveBack(time.Now())
	return l.review(ctx, l.heldJobs())
}

// heldJobs returns the ids of the jobs that have something in hand here.
func (l *jobLimits) heldJobs() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.holds))
}

// review looks whether these jobs' messages still stand for them, and ends the holds of
// those for which they do not.
func (l *jobLimits) review(ctx context.Context, ids []string) error {
	if l == nil {
		return nil
	}
	epochs := l.epochs(ids)
	ids = ids[:0:0]
	for id := range epochs {
		ids = append(ids, id)
	}
	var errs []error
	for len(ids) > 0 {
		page := ids[:min(store.MaxPage, len(ids))]
		ids = ids[len(page):]
		now, err := l.rows.JobEpochs(ctx, page)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		var over []string
		for _, id := range page {
			if epoch, unfinished := now[id]; !unfinished {
				over = append(over, id)
			} else if family(epoch) > family(epochs[id]) {
				l.outdated(id, epochs[id])
			}
		}
		if err := l.settle(ctx, over, epochs); err != nil {
			errs = append(errs, err) // what cannot be found out of some keeps no others waiting
		}
	}
	return errors.Join(errs...)
}

// epochs returns those under which the jobs' messages were published, as far as we have
// holds of them.
func (l *jobLimits) epochs(ids []string) map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	epochs := make(map[string]int, len(ids))
	for _, id := range ids {
		if h := l.holds[id]; h != nil {
			epochs[id] = h.epoch
		}
	}
	return epochs
}

// settle ends the holds of jobs that have ended, with what their rows say.
func (l *jobLimits) settle(ctx context.Context, ids []string, epochs map[string]int) error {
	if len(ids) == 0 {
		return nil
	}
	byID, err := l.jobs(ctx, ids)
	if err != nil {
		return err
	}
	var cut []store.Job
	for _, id := range ids {
		switch job := byID[id]; {
		case job == nil: // nobody knows any more what it took
			l.endOf(id, epochs[id], untold(time.Now()))
		case family(job.Epoch) > family(epochs[id]):
			l.outdated(id, epochs[id])
		case unheard(job):
			cut = append(cut, *job)
		default:
			l.endOf(id, epochs[id], recordOfEnd(job))
		}
	}
	return l.cutShort(ctx, cut)
}

// endOf ends a hold, unless it is by now that of a later message, with what the record says
// that was taken; without one nothing was, as far as this ingress is to count.
func (l *jobLimits) endOf(id string, epoch int, r *inference.Record) {
	l.mu.Lock()
	h := l.holds[id]
	if h == nil || h.epoch != epoch {
		l.mu.Unlock()
		return
	}
	delete(l.holds, id)
	l.mu.Unlock()
	if r != nil {
		h.end(r)
	} else {
		h.release()
	}
	l.over(h.hold)
}

// outdated ends what a job has in hand for a message that stands for it no more. Whoever
// found that out counts what came of it, but for a message of which nobody knew.
func (l *jobLimits) outdated(id string, epoch int) {
	if h, held := l.holdOf(id); held && h.doubtful {
		l.endOf(id, epoch, untold(time.Now()))
		return
	}
	l.leave(id, epoch)
}

// leave gives a hold back some time from now, unless it is by now that of a later message.
func (l *jobLimits) leave(id string, epoch int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.holds[id]; h != nil && h.epoch == epoch {
		delete(l.holds, id)
		l.leaving = append(l.leaving, leaving{h.hold, time.Now()})
	}
}

// giveBack ends the holds that have been leaving for long enough.
func (l *jobLimits) giveBack(now time.Time) {
	l.mu.Lock()
	n := 0
	for n < len(l.leaving) && now.Sub(l.leaving[n].since) >= leavesAfter {
		n++
	}
	over := slices.Clone(l.leaving[:n])
	l.leaving = slices.Delete(l.leaving, 0, n)
	l.mu.Unlock()
	for _, h := range over {
		h.release()
		l.over(h.hold)
	}
}
