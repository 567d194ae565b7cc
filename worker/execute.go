package worker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
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
	slot    *slot
	owner   owner

	recorder  *queue.Recorder // of a streamed answer
	seq       uint64          // chunks sent so far
	tries     int             // calls made in this run
	limited   int             // those of them that the provider answered with a wait
	failed    []inference.Try // those of them that failed
	blocked   *block          // why no call may be made at the moment
	blockedAt time.Time       // when first none might be made
	fetched   bool            // the body is here
	dropped   []string        // fields of the request that the provider could not honour
	calledAt  time.Time       // when the last call began
	goesBack  bool            // its body cannot be fetched at the moment
	bodyLost  bool            // its body is nowhere any more
}

// Bounds of the fetching of a body.
const (
	bodyTimeout = time.Minute     // for one try
	bodyTries   = 3               // by one worker in a row; fewer than the runs that an ingress thinks lost before it gives up
	bodyPause   = 5 * time.Second // before the job comes again: its ingress thinks this run alive for most of it
)

// errRunOver is why a run's context ends when it has taken as long as it may.
var errRunOver = &inference.Error{
	Code: inference.CodeUpstreamTimeout, Message: "The provider did not answer in the time that a run of the job may take.", Retryable: true,
}

// run makes the call, again where that may help, and returns how it ended. The end
// is complete but for the body's place.
func (x *execution) run(ctx context.Context) *queue.End {
	p := x.pool
	p.metrics.inFlight.Set(float64(p.inFlight.Add(1)))
	defer func() { p.metrics.inFlight.Set(float64(p.inFlight.Add(-1))) }()
	ctx, cancel := context.WithDeadline(ctx, x.job.Deadline)
	defer cancel()
	if x.job.RunFor > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, x.job.RunFor, errRunOver)
		defer cancel()
	}
	x.blocked = nil
	if x.job.Stream && x.recorder == nil {
		x.recorder = p.worker.conn.NewRecorder(x.job, x.held.run, 1)
	}

	end := &queue.End{JobID: x.job.ID, Run: x.held.run, Worker: p.worker.opt.ID, Provider: p.member.Name}
	err := x.prepare(ctx)
	if err == nil {
		err = p.able(x.job)
	}
	if err == nil {
		err = x.callWithRetries(ctx, end)
	}
	if err != nil {
		end.Err = x.domainError(ctx, err)
	}
	end.Attempts, end.Tries, end.Dropped = x.attempts(), x.allTries(), x.dropped
	end.LastSeq = x.seq
	end.Elapsed = time.Since(x.held.since)
	return end
}

// prepare fetches a body that travelled as a blob. What keeps it from that may pass, or
// be a fault of this worker alone: then the job goes back to the queue a few times.
func (x *execution) prepare(ctx context.Context) error {
	if err := ctx.Err(); err != nil || x.fetched {
		return err
	}
	w, most := x.pool.worker, x.pool.member.MaxBody
	fetch, cancel := context.WithTimeout(ctx, bodyTimeout)
	defer cancel()
	body, err := w.answer.Body(fetch, x.job, x.bodyRef, most)
	if err == nil {
		w.unread.clear(x.job.ID)
		x.job.Body, x.fetched = body, true
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
		x.bodyLost = true
		return &inference.Error{Code: inference.CodeInternal, Message: "The request's body was lost in the queue.", Err: err}
	}
	x.goesBack = time.Until(x.job.Deadline) > bodyPause && w.unread.add(x.job.ID) < bodyTries
	return &inference.Error{Code: inference.CodeQueueUnavailable, Message: "The request's body could not be fetched from the queue.", Retryable: true, Err: err}
}

// attempts counts the calls made for the job, those before this run included.
func (x *execution) attempts() int { return x.job.Attempts + x.tries }

// allTries are the calls for the job that failed.
func (x *execution) allTries() []inference.Try {
	if len(x.failed) == 0 {
		return x.job.Tries
	}
	return append(slices.Clip(x.job.Tries), x.failed...)
}

// callWithRetries calls the provider until it answers, or another call would not help,
// or another worker should make it.
func (x *execution) callWithRetries(ctx context.Context, end *queue.End) error {
	for {
		err := x.tryOnce(ctx, end)
		if err == nil || x.blocked != nil || ctx.Err() != nil {
			return err
		}
		e := inference.AsError(err)
		if x.peersMayHelp(e) {
			return err
		}
		wait, again := retryAfter(retryState{
			err: e, tries: x.tries, maxRetries: x.pool.member.MaxRetries, started: x.seq > 0, left: time.Until(x.job.Deadline),
		})
		if !again || wait > x.pool.member.Patience && x.next(e) || !x.pool.budget.take(time.Now()) {
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

// tryOnce makes one call, if one may be made at the moment, and notes how it went.
func (x *execution) tryOnce(ctx context.Context, end *queue.End) error {
	p, model := x.pool, x.job.Candidate().Model
	done, blocked, err := p.admit(model)
	if err != nil {
		x.blocked = blocked
		if x.blockedAt.IsZero() {
			x.blockedAt = time.Now()
		}
		return err
	}
	if x.tries++; x.tries == 1 {
		p.budget.called()
	}
	x.calledAt = time.Now()
	err = x.call(ctx, end)
	spent := time.Since(x.calledAt)
	ended := ctx.Err()
	if err != nil && errors.Is(context.Cause(ctx), errRunOver) {
		err, ended = errRunOver, nil // this end speaks against the provider
	}
	if ended != nil {
		done(ended) // whatever the adapter made of it
	} else {
		done(err)
	}
	end.Upstream += spent
	p.metrics.upstream.Observe(spent.Seconds())
	if err == nil {
		x.paced(end, spent)
		return nil
	}
	x.tryFailed(ctx, inference.AsError(err), spent)
	return err
}

// paced notes how fast the answer was.
func (x *execution) paced(end *queue.End, spent time.Duration) {
	if b := x.pool.breakers.of(x.job.Candidate().Model, time.Now()); b != nil && !x.job.Stream {
		b.pace.answered(spent, end.Usage.CompletionTokens, time.Now())
	}
}

// tryFailed notes a call that brought nothing.
func (x *execution) tryFailed(ctx context.Context, e *inference.Error, spent time.Duration) {
	x.logFailure(ctx, e)
	now := time.Now()
	if e.Status == 0 && (e.Code == inference.CodeUpstreamRateLimited || e.Code == inference.CodeUpstreamAuth) {
		x.tries-- // no key could be used, so there was no call
		if e.Code == inference.CodeUpstreamRateLimited {
			x.wait(e, now)
		}
		return
	}
	if e.Code == inference.CodeUpstreamRateLimited {
		x.limitedBy(e, now)
	}
	if (ctx.Err() == nil || errors.Is(e, errRunOver)) && x.seq == 0 {
		c := x.job.Candidate()
		x.failed = append(x.failed, inference.Try{Provider: c.Provider, Model: c.Model, Code: e.Code, Status: e.Status, Took: spent})
		x.failed = x.failed[max(len(x.failed)-inference.MaxTries, 0):]
	}
}

// limitedBy notes that the provider asks for fewer calls.
func (x *execution) limitedBy(e *inference.Error, now time.Time) {
	x.pool.limited.Add(1)
	x.pool.worker.news.Store(true)
	if !e.Retryable {
		return
	}
	if b := x.pool.breakers.of(x.job.Candidate().Model, now); b != nil && e.RetryAfter > 0 {
		b.ask(now.Add(min(e.RetryAfter, askedMost)))
	}
	x.wait(e, now)
}

// wait has the job wait for as long as it is told, and longer each time when it is told
// little or nothing.
func (x *execution) wait(e *inference.Error, now time.Time) {
	if x.limited++; x.blockedAt.IsZero() {
		x.blockedAt = now
	}
	x.blocked = &block{until: now.Add(max(e.RetryAfter, limitedWait(x.limited))), err: e}
}

// peersMayHelp reports whether another worker of the provider should make the next try.
func (x *execution) peersMayHelp(e *inference.Error) bool {
	if x.seq > 0 || e.Reason()&(inference.ReasonUnavailable|inference.ReasonTimeout) == 0 {
		return false
	}
	m := x.pool.member
	well := x.pool.worker.peers.well(m.Name, x.job.Candidate().Model, time.Now())
	return well > 0 && x.attempts() <= m.MaxRetries+well
}

// next reports whether another candidate may be tried after the error.
func (x *execution) next(e *inference.Error) bool { return x.mayGoOn(e.Reason()) }

func (x *execution) mayGoOn(reason inference.Reasons) bool {
	return len(inference.NextCandidates(x.job.Candidates, reason, x.pool.worker.alive)) > 0
}

// outlook is what is known when the job's run is over.
func (x *execution) outlook(e *inference.Error) outlook {
	o := outlook{err: e, started: x.seq > 0, blocked: x.blocked != nil && x.blocked.turned != nil, patience: x.pool.member.Patience}
	if e == nil {
		return o
	}
	now := time.Now()
	o.wait, o.left = x.blocked.wait(now), x.job.Deadline.Sub(now)
	if !x.blockedAt.IsZero() {
		o.waited = now.Sub(x.blockedAt)
	}
	o.next = x.next(e)
	o.peers = x.peersMayHelp(e)
	select {
	case <-x.pool.halt():
		o.leaving = true
	default:
	}
	return o
}

// logFailure tells of a failed call: loudly if the operator has to act, since the
// provider refuses the operator's key.
func (x *execution) logFailure(ctx context.Context, e *inference.Error) {
	level := slog.LevelDebug
	if e.Code == inference.CodeUpstreamAuth {
		level = slog.LevelWarn
	}
	args := []any{"request_id", x.job.RequestID, "job_id", x.job.ID, "provider", x.pool.member.Name, "model", x.job.Candidate().Model, "attempt", x.attempts()}
	x.pool.worker.log.Log(ctx, level, "call failed", append(args, loggable(e)...)...)
}

// call makes one call of the provider.
func (x *execution) call(ctx context.Context, end *queue.End) error {
	call := providers.Call{
		Kind: x.job.Kind, Model: x.job.Candidate().Model, Body: x.job.Body, RequestID: x.job.RequestID,
		IncludeUsage: x.job.IncludeUsage, TraceParent: x.job.TraceParent,
		Dropped: func(fields []string) { x.dropped = fields }, RefusalIsError: x.mayGoOn(inference.ReasonContentRefused),
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
		Elapsed: time.Since(x.held.since), Attempts: x.attempts(), Chunks: chunks,
	}
	if x.seq == 0 {
		e.Dropped, e.Tries = x.dropped, x.allTries()
		x.firstChunk()
	}
	if err := x.pool.worker.answer.Events(e); err != nil {
		return err
	}
	x.recorder.Add(chunks)
	x.seq += uint64(len(chunks))
	return nil
}

// firstChunk notes how long the provider took to begin.
func (x *execution) firstChunk() {
	now := time.Now()
	if b := x.pool.breakers.of(x.job.Candidate().Model, now); b != nil {
		b.pace.streamed(now.Sub(x.calledAt), now)
	}
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
