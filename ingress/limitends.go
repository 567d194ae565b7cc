package ingress

import (
	"context"
	"time"

	"sluice/internal/inference"
	"sluice/store"
)

// refusedEnd is the end of a job that can never be served: a limit is smaller than what it
// asks for.
func (d *stored) refusedEnd(job *inference.Job, e *inference.Error, now time.Time) store.JobEnd {
	id := job.ID
	if job.Lane == inference.LaneBackground {
		id = store.JobPrefix + id // a line is no job of the API's
	}
	end := store.JobEnd{
		Status: store.JobFailed, FinishedAt: now, Response: errorJSON(e, map[string]any{"job_id": id}),
		Record: inference.Record{
			JobID: job.ID, Provider: job.Candidate().Provider, Attempts: job.Attempts, Tries: job.Tries,
			Outcome: inference.OutcomeRejected, Status: statusOf(e), ErrorCode: e.Code,
			Queue: max(now.Sub(job.CreatedAt), 0), Total: max(now.Sub(job.CreatedAt), 0),
		},
	}
	if job.Lane == inference.LaneBackground {
		end.ExpiresAt = now.Add(d.opt.Retention)
	}
	return end
}

// refuse ends jobs that can never be served, and returns how many. What the database does
// not take comes up again when its lease has run out.
func (d *stored) refuse(ctx context.Context, ends []store.JobEnd) int {
	if err := d.finish(ctx, ends, nil); err != nil {
		if ctx.Err() == nil {
			d.log.Warn("jobs that no limit lets in are not ended; they come up again", "jobs", len(ends), "error", err)
		}
		return 0
	}
	return len(ends)
}
