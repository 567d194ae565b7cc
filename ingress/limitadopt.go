package ingress

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// JobHolds is what knows which ingress holds for which jobs.
type JobHolds interface {
	HeldBy(ctx context.Context) (ingresses []string, err error)
	AdoptedJobs(ctx context.Context, from string, ids []string) (adopted []string, err error)
	AdoptJobs(ctx context.Context, from, by string, limit int) ([]store.Job, error)
}

// Rhythm and bounds of looking for ingresses that are gone. What one of them had counts for
// some ten seconds more as concurrent: by then another one holds it.
const (
	adoptEvery  = 3 * time.Second
	adoptFirst  = 10 * time.Second // that a starting ingress waits for it
	adoptAtOnce = 500              // jobs
)

// adoption takes over what jobs have in hand with ingresses that are gone. One that is cut
// off looks like that, too. It lets go of what was taken over when it finds out.
type adoption struct {
	limits *jobLimits
	rows   JobHolds
	conn   *queue.Conn
	id     string // of this ingress

	silent  map[string]bool // those that nobody heard the last time
	pending []store.Job     // ours by now, for which nothing is held yet
}

// begin looks before anything else is done about jobs: what is gone at the start of an
// ingress may be all there was. It waits no longer than adoptFirst; while nobody could tell,
// limited jobs get no messages.
func (a *adoption) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adoptFirst)
	defer cancel()
	return a.look(ctx)
}

// look is one round.
func (a *adoption) look(ctx context.Context) error {
	if err := a.hold(ctx); err != nil {
		return err
	}
	holders, err := a.rows.HeldBy(ctx)
	if err != nil {
		return err
	}
	silent, others := make(map[string]bool), false
	for _, id := range holders {
		if id == a.id {
			continue
		}
		others = true
		gone, err := a.conn.IngressGone(ctx, id)
		if err != nil {
			return err
		}
		if !gone {
			continue
		}
		silent[id] = true
		if a.limits.looked.Load() && !a.silent[id] {
			continue // it may be about to connect again
		}
		if err := a.from(ctx, id); err != nil {
			return err
		}
	}
	a.silent = silent
	a.limits.looked.Store(true)
	if others {
		return a.letGo(ctx)
	}
	return nil
}

// from takes over the jobs of an ingress that is gone.
func (a *adoption) from(ctx context.Context, ingress string) error {
	for taken := 0; ; {
		// What the database has noted must be known here, so that nothing cuts this short.
		jobs, err := a.rows.AdoptJobs(context.WithoutCancel(ctx), ingress, a.id, min(adoptAtOnce, a.limits.room()))
		if err != nil {
			return err
		}
		if taken += len(jobs); len(jobs) == 0 {
			if taken > 0 {
				a.limits.log.Info("limits of jobs are held in the place of an ingress that is gone", "of", ingress, "jobs", taken)
			}
			return nil
		}
		a.pending = jobs
		if err := a.hold(ctx); err != nil {
			return err
		}
	}
}

// hold holds for the jobs that were taken over, without asking whether that fits.
func (a *adoption) hold(ctx context.Context) error {
	for len(a.pending) > 0 {
		if err := a.limits.adopt(ctx, &a.pending[0]); err != nil {
			return fmt.Errorf("hold the limits of job %s: %w", a.pending[0].ID, err)
		}
		a.pending = a.pending[1:]
	}
	return nil
}

// letGo lets go of what another ingress holds by now: this one was cut off.
func (a *adoption) letGo(ctx context.Context) error {
	ids := a.limits.heldJobs()
	for len(ids) > 0 {
		page := ids[:min(store.MaxPage, len(ids))]
		ids = ids[len(page):]
		adopted, err := a.rows.AdoptedJobs(ctx, a.id, page)
		if err != nil {
			return err
		}
		for id, epoch := range a.limits.epochs(adopted) {
			a.limits.outdated(id, epoch)
		}
	}
	return nil
}

// adopt has the job in hand that another ingress had. Of one that nothing limits, or that is
// not there any more, there is nothing to have.
func (l *jobLimits) adopt(ctx context.Context, job *store.Job) error {
	settings := l.settings()
	p, err := l.payer(ctx, settings, job.Limits, job.KeyID, job.Tenant, job.Model, job.Candidates)
	if err != nil {
		return err
	}
	if len(settings.Limits.scopes(p)) == 0 {
		return nil
	}
	q, err := l.asked(ctx, job)
	if _, unread := errors.AsType[*inference.Error](err); unread || errors.Is(err, store.ErrNotFound) {
		return nil // it cannot have been let in
	}
	if err != nil || q == nil {
		return err
	}
	if old, held := l.holdOf(job.ID); held && family(old.epoch) < family(job.Epoch) {
		l.outdated(job.ID, old.epoch)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holds[job.ID] != nil {
		return nil
	}
	h := l.unreserved(q)
	h.reservation = l.by.Adopt(q.demand)
	l.holds[job.ID] = &jobHold{
		hold: h, epoch: job.Epoch, lane: job.Lane, provider: job.Provider, seq: job.Seq,
		at: job.DispatchedAt.Add(-clocksApart), // it may be by another machine's clock
	}
	return nil
}

// room is how many more holds there may be.
func (l *jobLimits) room() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(jobHolds-len(l.holds)-len(l.leaving), 0)
}
