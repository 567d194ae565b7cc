package ingress

import (
	"context"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// jobRound is a job's way with one message, which has ended and left the job unfinished.
type jobRound struct {
	back store.Requeue
	took inference.Record
}

// roundOf is the round of which the result tells.
func (d *stored) roundOf(r *queue.Result, notBefore time.Time) jobRound {
	e := r.End
	over := jobRound{
		back: store.Requeue{ID: e.JobID, Epoch: e.Run.Epoch, NotBefore: notBefore, Attempts: e.Attempts, Tries: e.Tries},
		took: inference.Record{JobID: e.JobID},
	}
	if !r.Lost { // without its body nobody called
		over.took = d.endOf(r, nil, time.Now()).Record
	}
	return over
}

// another has jobs wait for their next rounds. What those behind them took is counted by
// whoever brings that into the database, once.
func (d *stored) another(ctx context.Context, rounds []jobRound) error {
	back := make([]store.Requeue, len(rounds))
	for i := range rounds {
		back[i] = rounds[i].back
	}
	changed, err := d.rows.Requeue(ctx, back)
	if err != nil {
		return err
	}
	over := make(map[string]bool, len(changed))
	for _, id := range changed {
		over[id] = true
	}
	var ended []jobRound
	for _, r := range rounds {
		if over[r.back.ID] {
			ended = append(ended, r)
			delete(over, r.back.ID) // the first of those that name the job counts
		}
	}
	if err := d.limits.rounds(ctx, ended); err != nil {
		d.log.Warn("what jobs took that wait again is not counted for all of them", "jobs", len(ended), "error", err)
	}
	return nil
}

// rounds counts what rounds took, as if they had been all there was of their jobs. The next
// ones reserve anew.
func (l *jobLimits) rounds(ctx context.Context, rounds []jobRound) error {
	if l == nil || len(rounds) == 0 {
		return nil
	}
	settings := &l.settings().Limits
	var ids []string
	for i := range rounds {
		r := &rounds[i].took
		if _, known := settings.spent(r); known || r.Outcome == inference.OutcomeSucceeded || reached(r) {
			ids = append(ids, r.JobID)
		}
	}
	jobs, err := l.jobs(ctx, ids)
	for i := range rounds { // whoever else has something in hand for one lets go of it
		r := &rounds[i]
		job, ended := jobs[r.back.ID], store.Job{ID: r.back.ID}
		if job != nil {
			ended = *job
		}
		ended.Epoch = r.back.Epoch
		if whole := rowOf(&ended, &r.took); !l.endHold(&ended, whole, r.back.Epoch) && job != nil {
			l.charge(ctx, &ended, whole)
		}
	}
	return err
}

// jobs returns the jobs by their ids, as far as they are there.
func (l *jobLimits) jobs(ctx context.Context, ids []string) (map[string]*store.Job, error) {
	byID := make(map[string]*store.Job, len(ids))
	if len(ids) == 0 {
		return byID, nil
	}
	jobs, err := l.rows.JobsByID(ctx, ids)
	for i := range jobs {
		byID[jobs[i].ID] = &jobs[i]
	}
	return byID, err
}

// lostRounds returns the rounds of jobs whose messages are gone without a result.
func (l *jobLimits) lostRounds(ctx context.Context, lost []store.Job) []jobRound {
	rounds := make([]jobRound, len(lost))
	var lanes givens
	if l != nil {
		lanes = l.givens()
	}
	for i := range lost {
		j := &lost[i]
		rounds[i].back = store.Requeue{ID: j.ID, Epoch: j.Epoch, Attempts: j.Attempts, Tries: j.Tries}
		at := j.DispatchedAt.Add(-clocksApart) // it may be by another machine's clock
		if l != nil && !lanes.in(ctx, lane{j.Provider, j.Lane}).untouched(j.Seq, at) {
			rounds[i].took = *untold(j.CreatedAt)
		}
		rounds[i].took.JobID = j.ID
	}
	return rounds
}
