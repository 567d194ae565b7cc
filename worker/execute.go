package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// execution is one run of a job: the calls of the provider and what they bring.
type execution struct {
	pool    *pool
	job     *inference.Job
	bodyRef string
	held    *held

	recorder *queue.Recorder // of a streamed answer
	seq      uint64          // chunks sent so far
	tries    int             // calls made in this run
	dropped  []string        // fields of the request that the provider could not honour
	goesBack bool            // its body cannot be fetched at the moment
}

// Bounds of the fetching of a body.
const (
	bodyTimeout = time.Minute     // for one try
	bodyTries   = 3               // by one worker in a row; fewer than the runs that an ingress thinks lost before it gives up
	bodyPause   = 5 * time.Second // before the job comes again: its ingress thinks this run alive for most of it
)

// run makes the call, again where that may help, and returns how it ended. The end
// is complete but for the body's place.
func (x *execution) run(ctx context.Context) *queue.End {
	p := x.pool
	p.metrics.inFlight.Set(float64(p.inFlight.Add(1)))
	defer func() { p.metrics.inFlight.Set(float64(p.inFlight.Add(-1))) }()
	ctx, cancel := context.WithDeadline(ctx, x.job.Deadline)
	defer cancel()
	if x.job.Stream {
		x.recorder = p.worker.conn.NewRecorder(x.job, x.held.run, 1)
	}

	end := &queue.End{JobID: x.job.ID, Run: x.held.run, Worker: p.worker.opt.ID, Provider: p.member.Name}
	err := x.prepare(ctx)
	if err == nil {
		err = x.callWithRetries(ctx, end)
	}
	if err != nil {
		end.Err = x.domainError(ctx, err)
	}
	end.Attempts, end.Dropped = x.job.Attempts+x.tries, x.dropped
	end.LastSeq = x.seq
	end.Elapsed = time.Since(x.held.since)
	p.metrics.calls(end)
	return end
}

// prepare fetches a body that travelled as a blob. What keeps it from that may pass, or
// be a fault of this worker alone: then the job goes back to the queue a few times.
func (x *execution) prepare(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w, most := x.pool.worker, x.pool.member.MaxBody
	fetch, cancel := context.WithTimeout(ctx, bodyTimeout)
	defer cancel()
	body, err := w.answer.Body(fetch, x.job, x.bodyRef, most)
	if err == nil {
		w.unread.clear(x.job.ID)
		x.job.Body = body
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	w.log.Warn("body of job not fetched", "job_id", x.job.ID, "error", err)
	switch {
	case errors.Is(err, queue.ErrBlobTooLarge):
		e := inference.Errorf(inference.CodeRequestTooLarge, "The request's body is larger than the %d bytes that a worker of provider %q takes.", most, x.pool.member.Name)
		e.Err = err
		return e
	case errors.Is(err, queue.ErrNoBlob):
		return &inference.Error{Code: inference.CodeInternal, Message: "The request's body was lost in the queue.", Err: err}
	}
	x.goesBack = time.Until(x.job.Deadline) > bodyPause && w.unread.add(x.job.ID) < bodyTries
	return &inference.Error{Code: inference.CodeQueueUnavailable, Message: "The request's body could not be fetched from the queue.", Retryable: true, Err: err}
}

func (x *execution) callWithRetries(ctx context.Context, end *queue.End) error {
	for {
		x.tries++
		started := time.Now()
		err := x.call(ctx, end)
		spent := time.Since(started)
		end.Upstream += spent
		x.pool.metrics.upstream.Observe(spent.Seconds())
		if err == nil {
			return nil
		}
		x.logFailure(ctx, inference.AsError(err))
		wait, again := retryAfter(retryState{
			err: inference.AsError(err), tries: x.tries, maxRetries: x.pool.member.MaxRetries,
			started: x.seq > 0, left: time.Until(x.job.Deadline),
		})
		if !again || ctx.Err() != nil {
			return err
		}
		x.pool.metrics.retries.Inc()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}

// logFailure tells of a failed call: loudly if the operator has to act, since the
// provider refuses the operator's key.
func (x *execution) logFailure(ctx context.Context, e *inference.Error) {
	level := slog.LevelDebug
	if e.Code == inference.CodeUpstreamAuth {
		level = slog.LevelWarn
	}
	args := []any{"request_id", x.job.RequestID, "job_id", x.job.ID, "provider", x.pool.member.Name, "model", x.job.Candidate().Model, "attempt", x.job.Attempts + x.tries}
	x.pool.worker.log.Log(ctx, level, "call failed", append(args, loggable(e)...)...)
}

// call makes one call of the provider.
func (x *execution) call(ctx context.Context, end *queue.End) error {
	call := providers.Call{
		Kind: x.job.Kind, Model: x.job.Candidate().Model, Body: x.job.Body, RequestID: x.job.RequestID,
		IncludeUsage: x.job.IncludeUsage, TraceParent: x.job.TraceParent,
		Dropped: func(fields []string) { x.dropped = fields },
	}
	if x.job.Stream {
		sum, err := x.pool.member.Provider.StreamGenerate(ctx, call, x.emit)
		end.Model, end.Usage = sum.Model, sum.Usage
		return err
	}
	resp, err := x.pool.member.Provider.Generate(ctx, call)
	if err != nil {
		return err
	}
	end.Model, end.Usage, end.Body = resp.Model, resp.Usage, resp.Body
	return nil
}

// emit passes chunks on as they come and keeps them for replay.
func (x *execution) emit(chunks [][]byte) error {
	if len(chunks) == 0 {
		return nil
	}
	e := &queue.Events{
		JobID: x.job.ID, Run: x.held.run, Worker: x.pool.worker.opt.ID, FirstSeq: x.seq + 1,
		Elapsed: time.Since(x.held.since), Attempts: x.job.Attempts + x.tries, Chunks: chunks,
	}
	if x.seq == 0 {
		e.Dropped = x.dropped
	}
	if err := x.pool.worker.answer.Events(e); err != nil {
		return err
	}
	x.recorder.Add(chunks)
	x.seq += uint64(len(chunks))
	return nil
}

// domainError says why the run ended: the context's end comes before whatever error
// the provider made of it.
func (x *execution) domainError(ctx context.Context, err error) *inference.Error {
	cause := context.Cause(ctx)
	switch {
	case cause == nil:
		return inference.AsError(err)
	case errors.Is(cause, context.DeadlineExceeded):
		return &inference.Error{Code: inference.CodeDeadlineExceeded, Message: "The request's deadline passed before it was answered.", Err: err}
	case errors.Is(cause, errStopping):
		return &inference.Error{Code: inference.CodeWorkerLost, Message: "The worker was stopped while it answered.", Retryable: true, Err: cause}
	default:
		return inference.AsError(cause)
	}
}
