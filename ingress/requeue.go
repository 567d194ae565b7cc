package ingress

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

func errBodyGone() *inference.Error {
	return &inference.Error{Code: inference.CodeConflict, Param: "id", Message: "The body of the dead letter is not kept any more."}
}

func errStays(format string, args ...any) error {
	return &inference.Error{Code: inference.CodeConflict, Param: "id", Message: fmt.Sprintf(format, args...)}
}

// requeue sends a dead letter on its way again, and removes it once that is safe. Whoever
// does it twice, at once or after a crash between the two, changes nothing more: each step
// knows what was done before.
func (s *Ingress) requeue(ctx context.Context, l *queue.DeadLetter) (done adminapi.LetterRequeued, err error) {
	if err := s.staysFor(l); err != nil {
		return done, err
	}
	if l.Kind == queue.LetterJob {
		done, err = s.requeueJob(ctx, l)
	} else {
		done.As = string(l.Kind)
		err = queueError(s.conn.Republish(ctx, l))
	}
	done.ID = letterID(l.Seq)
	if err != nil {
		return done, err
	}
	if err := s.conn.DropLetter(ctx, l.Seq); err != nil {
		return done, errQueueGone(err)
	}
	return done, nil
}

// staysFor returns why a letter cannot be sent on its way again, as far as it can be seen
// from the letter alone; nil if nothing speaks against it.
func (s *Ingress) staysFor(l *queue.DeadLetter) error {
	switch {
	case l.Kind != queue.LetterJob && !l.HasWayBack():
		return errStays("The dead letter does not say where it came from, and cannot go back there.")
	case l.Kind != queue.LetterJob:
		return nil
	case l.Unread != nil:
		return errStays("The dead letter cannot be read as a job: %s.", l.Unread)
	case s.stored == nil:
		return errStays("This ingress has no database for jobs.")
	}
	return nil
}

// requeueJob has a job run again. One that the database owns and that has not ended gets a
// message of a new epoch. Of any other nobody waits for the answer any more: it becomes a
// background job of the same tenant and key, of which the answer can be asked for.
func (s *Ingress) requeueJob(ctx context.Context, l *queue.DeadLetter) (done adminapi.LetterRequeued, err error) {
	if l.Lane == inference.LaneInteractive {
		return s.letterBecomes(ctx, l, nil)
	}
	job, err := s.stored.rows.Job(ctx, l.Job.Tenant, l.Job.ID)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return s.requeueLine(ctx, l)
	case err != nil:
		return done, jobError(err)
	case job.Status == store.JobCompleted, job.Status == store.JobCancelled:
		return done, errStays("The job %s is %s.", store.JobPrefix+job.ID, job.Status)
	case job.Status.Finished():
		return s.letterBecomes(ctx, l, &job)
	}
	done.As, done.JobID = "job", store.JobPrefix+job.ID
	return done, s.runAgain(ctx, l)
}

// requeueLine has a line of a batch run again. What is no line that has not ended, and no
// job either, is not there any more.
func (s *Ingress) requeueLine(ctx context.Context, l *queue.DeadLetter) (done adminapi.LetterRequeued, err error) {
	ended, err := s.stored.rows.EndedJobs(ctx, []string{l.Job.ID})
	switch {
	case err != nil:
		return done, jobError(err)
	case len(ended) == 0:
		done.As, done.JobID = "line", l.Job.ID
		return done, s.runAgain(ctx, l)
	case l.Lane == inference.LaneBatch:
		return done, errStays("The line of the batch has ended.")
	}
	return s.letterBecomes(ctx, l, nil)
}

// runAgain gives the job an epoch of the next family, unless it has one: then it runs by
// itself.
func (s *Ingress) runAgain(ctx context.Context, l *queue.DeadLetter) error {
	again := jobRound{
		back: store.Requeue{ID: l.Job.ID, Epoch: l.Job.Epoch, Attempts: l.Job.Attempts, Tries: l.Job.Tries},
		took: inference.Record{JobID: l.Job.ID}, // nobody could read it, so nobody called
	}
	if err := s.stored.another(ctx, []jobRound{again}); err != nil {
		return jobError(err)
	}
	s.stored.nudge()
	s.stored.lines()
	return nil
}

// letterBecomes makes a background job of the letter, within the limits of the old one if
// that is known. Its id follows from the letter, so that it is made once.
func (s *Ingress) letterBecomes(ctx context.Context, l *queue.DeadLetter, old *store.Job) (done adminapi.LetterRequeued, err error) {
	var body []byte
	var lent *limits.Limits
	if old != nil {
		body, lent = old.Body, old.Limits
	}
	if body == nil {
		body = l.Body()
		if l.BodyRef != "" {
			if body, err = s.conn.FetchBlob(ctx, l.BodyRef, store.MaxInlineBytes); errors.Is(err, queue.ErrNoBlob) {
				return done, errBodyGone()
			}
		}
	}
	if err != nil {
		return done, errQueueGone(err)
	}
	if l.Job.Stream {
		body = openaiapi.Unstreamed(body)
	}
	now, j := time.Now(), l.Job
	err = s.opt.Jobs.Store.CreateJob(ctx, store.Job{
		ID: l.NewJobID(), RequestID: j.RequestID, Tenant: j.Tenant, KeyID: j.KeyID, Limits: lent, Kind: j.Kind, Model: j.Model,
		Lane: inference.LaneBackground, Body: body, Candidates: j.Candidates, TraceParent: j.TraceParent,
		CreatedAt: now, Deadline: now.Add(s.opt.Jobs.Deadline), Status: store.JobQueued,
	})
	switch {
	case errors.Is(err, store.ErrInvalid):
		return done, errStays("The dead letter cannot become a job: its request is not whole.")
	case err != nil && !errors.Is(err, store.ErrDuplicate):
		return done, jobError(err)
	}
	s.stored.nudge()
	return adminapi.LetterRequeued{As: "job", JobID: store.JobPrefix + l.NewJobID()}, nil
}
