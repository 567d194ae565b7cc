package ingress

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// JobCourse is what workers' words change in a job.
type JobCourse interface {
	ClaimJob(ctx context.Context, id string, epoch int, at time.Time) (store.Claimed, error)
	MoveJob(ctx context.Context, id string, epoch int, provider string, seq uint64, attempts int, tries []inference.Try, at time.Time) error
	FinishJobs(ctx context.Context, ends []store.JobEnd) (news []store.Job, err error)
}

// take brings results into the database. After an error all of them come again, which
// changes nothing about those that are in by then.
func (d *stored) take(ctx context.Context, results []*queue.Result) (err error) {
	var ends []store.JobEnd
	var again []jobRound
	var blobs []string
	ran := make(map[string]int)
	for _, r := range results {
		kind := "end"
		switch {
		case r.Passed != nil:
			kind = "passed"
			err = d.moved(ctx, r.Passed)
		case undone(r):
			kind = "lost"
			again = append(again, d.roundOf(r, time.Time{}))
		default:
			var body []byte
			switch body, err = d.answerOf(ctx, r.End); {
			case errors.Is(err, queue.ErrNoBlob):
				kind, err = "lost", nil
				again = append(again, d.roundOf(r, time.Time{}))
			case err == nil && anotherRound(r):
				kind = "again"
				again = append(again, d.roundOf(r, time.Now().Add(roundPause(r.End))))
			case err == nil:
				if _, twice := ran[r.End.JobID]; !twice { // the first one counts
					ends = append(ends, d.endOf(r, body, time.Now()))
					ran[r.End.JobID] = r.End.Run.Epoch
				}
				blobs = append(blobs, r.End.BodyRef)
			}
		}
		if err != nil {
			return err
		}
		d.metrics.results.WithLabelValues(string(r.Lane), kind).Inc()
	}
	if len(again) > 0 {
		if err = d.another(ctx, again); err != nil {
			return err
		}
		d.nudge()
	}
	if err = d.finish(ctx, ends, ran); err != nil {
		return err
	}
	d.dropBlobs(ctx, blobs)
	return nil
}

// undone reports whether the run says nothing of the job: its body was gone, its worker
// stopped, or it was dropped. Whoever cancels a job ends it first, so a job that has not
// ended was not meant to be.
func undone(r *queue.Result) bool {
	err := r.End.Err
	return r.Lost || err != nil && (err.Code == inference.CodeCancelled || err.Code == inference.CodeWorkerLost)
}

// moved notes where a worker passed a job on to. One that went back to its own queue has
// its message where it was.
func (d *stored) moved(ctx context.Context, p *queue.Passed) error {
	if p.Next.Seq == 0 || len(p.Next.Candidates) == 0 {
		return nil
	}
	return d.rows.MoveJob(ctx, p.JobID, p.Run.Epoch+1, p.Next.Candidates[0].Provider, p.Next.Seq, p.Attempts, p.Tries, time.Now())
}

// answerOf returns the answer, from its blob if it is a large one. What is too large for
// the database becomes an error of the end.
func (d *stored) answerOf(ctx context.Context, e *queue.End) (body []byte, err error) {
	body = e.Body
	if e.BodyRef != "" && e.Err == nil {
		body, err = d.conn.FetchBlob(ctx, e.BodyRef, store.MaxInlineBytes)
	}
	if errors.Is(err, queue.ErrBlobTooLarge) || len(body) > store.MaxInlineBytes {
		e.Err = inference.Errorf(inference.CodeUpstreamTooLarge, "The answer is larger than %d bytes and cannot be kept.", store.MaxInlineBytes)
		body, err = nil, nil
	}
	return body, err
}

// roundPauses are how long a job waits before it is tried again, from its first candidate,
// whose providers could not serve it: nobody waits on the line for its answer, and what
// hinders a provider often passes. The last one is for all further rounds.
var roundPauses = [...]time.Duration{30 * time.Second, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute}

const (
	longestPause = 10 * time.Minute // that a provider may ask a job to wait
	faultRounds  = 2                // further ones of a job that may itself be what its provider fails of
)

// round is how many rounds the run has behind it: each time that a job is dispatched again
// its epoch rises by a stride.
func round(e *queue.End) int { return e.Run.Epoch / inference.EpochStride }

// anotherRound reports whether a job that failed is tried again: up to its deadline if its
// provider cannot be reached or has no room, a few times if it answered with a fault.
func anotherRound(r *queue.Result) bool {
	err := r.End.Err
	if err == nil || !err.Retryable {
		return false
	}
	switch err.Code {
	case inference.CodeUpstreamUnavailable, inference.CodeUpstreamRateLimited:
		return true
	case inference.CodeUpstreamError:
		switch err.Status {
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true // who says so stands before the provider, or in its place
		}
	}
	return strings.HasPrefix(string(err.Code), "upstream_") && round(r.End) < faultRounds
}

func roundPause(e *queue.End) time.Duration {
	return min(max(roundPauses[min(round(e), len(roundPauses)-1)], e.Err.RetryAfter), longestPause)
}

// endOf is the end of a job as the database takes it. The worker's clock tells when the
// run ended, as far as that lies between the job's acceptance and now: a result may have
// waited for the database.
func (d *stored) endOf(r *queue.Result, body []byte, now time.Time) store.JobEnd {
	e := r.End
	finished := r.Taken.Add(e.Elapsed)
	if finished.After(now) || finished.Before(r.CreatedAt) {
		finished = now
	}
	started := later(finished.Add(-e.Elapsed), r.CreatedAt)
	end := store.JobEnd{
		Status: store.JobCompleted, StartedAt: started, FinishedAt: finished, Response: body,
		Record: inference.Record{
			JobID: e.JobID, Provider: e.Provider, ModelServed: e.Model, Usage: e.Usage, Attempts: e.Attempts, Tries: e.Tries,
			Outcome: outcomeOf(e.Err), Status: 200, Queue: max(started.Sub(r.CreatedAt), 0), Total: max(finished.Sub(r.CreatedAt), 0),
		},
	}
	if r.Lane == inference.LaneBackground {
		end.ExpiresAt = now.Add(d.opt.Retention)
	}
	if e.Err == nil {
		return end
	}
	end.Status = store.JobFailed
	if end.Record.Outcome == inference.OutcomeExpired {
		end.Status = store.JobExpired
	}
	end.Record.ErrorCode, end.Record.Status = e.Err.Code, statusOf(e.Err)
	id := e.JobID
	if r.Lane == inference.LaneBackground {
		id = store.JobPrefix + id // a line is no job of the API's
	}
	end.Response = errorJSON(e.Err, map[string]any{"job_id": id, "provider": e.Provider})
	return end
}

// finish stores ends, one for each job, and tells whoever waits for them. ran has the epochs
// of the runs that ended them, by the jobs' ids; without one it was no run that did. An end
// that can never be stored keeps no other out.
func (d *stored) finish(ctx context.Context, ends []store.JobEnd, ran map[string]int) error {
	if len(ends) == 0 {
		return nil
	}
	for i := range ends {
		ends[i].Price = d.price
	}
	news, err := d.rows.FinishJobs(ctx, ends)
	if errors.Is(err, store.ErrInvalid) {
		return d.finishEach(ctx, ends, ran)
	}
	if err != nil {
		return err
	}
	records := make(map[string]*inference.Record, len(ends))
	for i := range ends {
		records[ends[i].Record.JobID] = &ends[i].Record
	}
	for i := range news {
		r := records[news[i].ID]
		if r != nil {
			row := store.RecordOf(news[i], *r)
			d.price(&row)
			d.usage.spent(&row)
		}
		run, was := ran[news[i].ID]
		if !was {
			run = news[i].Epoch
		}
		d.limits.ended(ctx, &news[i], r, run)
	}
	d.ended(news)
	return nil
}

// finishEach stores ends of which one is invalid, and an error in the place of that one.
func (d *stored) finishEach(ctx context.Context, ends []store.JobEnd, ran map[string]int) error {
	if len(ends) > 1 {
		for i := range ends {
			if err := d.finish(ctx, ends[i:i+1], ran); err != nil {
				return err
			}
		}
		return nil
	}
	end := ends[0]
	if end.Record.ErrorCode == inference.CodeInternal {
		d.log.Error("end of a job cannot be stored; the job will expire", "job_id", end.Record.JobID)
		return nil
	}
	d.log.Error("end of a job cannot be stored; it ends with an error", "job_id", end.Record.JobID)
	end.Status, end.Response = store.JobFailed, errorJSON(inference.Errorf(inference.CodeInternal, "The answer cannot be kept."), nil)
	end.Record.Outcome, end.Record.Status, end.Record.ErrorCode = inference.OutcomeFailed, 500, inference.CodeInternal
	return d.finish(ctx, []store.JobEnd{end}, ran)
}

// ended tells everyone here that jobs have ended; their ends are in the database.
func (d *stored) ended(jobs []store.Job) {
	lines := false
	for _, j := range jobs {
		d.metrics.finished.WithLabelValues(string(j.Lane), string(j.Status)).Inc()
		if j.BatchID == "" {
			d.waiters.wake(j.ID)
			d.events()
		} else {
			lines = true
		}
	}
	if lines {
		d.lines()
	}
}

// dropBlobs removes answers that the database has now.
func (d *stored) dropBlobs(ctx context.Context, refs []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	for _, ref := range refs {
		if ref == "" {
			continue
		}
		if err := d.conn.RemoveBlob(ctx, ref); err != nil {
			d.log.Debug("answer not removed from the queue; its age will", "error", err)
		}
	}
}
