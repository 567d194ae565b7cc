package ingress

import (
	"context"
	"errors"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// JobOutbox is what gives jobs their messages.
type JobOutbox interface {
	LeaseJobs(ctx context.Context, now time.Time, lease time.Duration, limit int) ([]store.Job, error)
	MarkDispatched(ctx context.Context, sent []store.Dispatch, at time.Time) (useless []string, err error)
	Requeue(ctx context.Context, jobs []store.Requeue) (changed []string, err error)
}

// Rhythm and bounds of the dispatch.
const (
	dispatchEvery = time.Second
	jobLease      = 2 * time.Minute // for whoever is about to publish a job, which takes one at most
	fruitless     = 10              // leases in one go that led to no message
)

// nudge has the dispatch look for jobs now.
func (d *stored) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// dispatch gives background jobs their messages until ctx ends. Lines of batches come
// from whoever feeds them.
func (d *stored) dispatch(ctx context.Context) {
	trouble := trouble{log: d.log, doing: "dispatch jobs"}
	tick := time.NewTicker(dispatchEvery)
	defer tick.Stop()
	for {
		trouble.tell(ctx, d.dispatchWaiting(ctx))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.wake:
		case <-d.limits.due(time.Now()):
		}
	}
}

// dispatchWaiting goes on until no job waits, or nothing more can be sent. Jobs whose
// provider's queue is full are put off, so that those of others behind them come up.
func (d *stored) dispatchWaiting(ctx context.Context) error {
	for idle := 0; idle < fruitless && ctx.Err() == nil && d.conn.Connected(); {
		jobs, err := d.rows.LeaseJobs(ctx, time.Now(), jobLease, store.MaxJobs)
		if err != nil || len(jobs) == 0 {
			return err
		}
		if done, _ := d.publish(ctx, jobs); done == 0 {
			idle++
		}
	}
	return nil
}

// publish gives jobs that the caller has leased a message each, and returns how many got
// one, or their end. A job that its queue certainly did not take is put back for a while;
// one of which nobody knows comes up again, under a higher epoch, when its lease has run
// out. limited is when the first of those comes up again that a limit did not let in.
func (d *stored) publish(ctx context.Context, jobs []store.Job) (done int, limited time.Time) {
	var ready []*inference.Job
	var back []store.Requeue
	var ends []store.JobEnd
	down := false
	for i := range jobs {
		job := d.message(&jobs[i])
		if until := d.closedUntil(ctx, job.Candidate().Provider); !until.IsZero() {
			back = append(back, putBack(job, until))
			continue
		}
		until, never := d.limits.admit(ctx, job, jobs[i].Limits, &down)
		switch {
		case never != nil:
			ends = append(ends, d.refusedEnd(job, never, time.Now()))
		case !until.IsZero():
			back = append(back, putBack(job, until))
			if limited.IsZero() || until.Before(limited) {
				limited = until
			}
		default:
			ready = append(ready, job)
		}
	}
	var out []store.Dispatch
	var refused, unsure []*inference.Job
	var why error
	for i, p := range d.conn.PublishStored(ctx, ready) {
		job := ready[i]
		provider := job.Candidate().Provider
		switch {
		case p.Err == nil:
			d.limits.sent(job, p.Place.Seq)
			out = append(out, store.Dispatch{ID: job.ID, Epoch: job.Epoch, Provider: provider, Seq: p.Place.Seq, HeldBy: d.id})
			d.bodies.note(job)
		case errors.Is(p.Err, queue.ErrFull), errors.Is(p.Err, queue.ErrNoQueue):
			refused = append(refused, job)
		default:
			unsure, why = append(unsure, job), p.Err
			d.limits.doubt(job.ID)
		}
	}
	if why != nil && ctx.Err() == nil {
		d.log.Warn("jobs may have no message; they will be published again", "jobs", len(unsure), "error", why)
	}
	for _, o := range out {
		d.pauses.end(o.Provider)
	}
	d.noteSent(ctx, out)
	d.closed(unsure)
	for _, job := range refused {
		d.limits.unsent(job)
	}
	d.noteBack(ctx, append(back, d.closed(refused)...))
	return len(out) + d.refuse(ctx, ends), limited
}

// closed closes the providers whose queues did not take these jobs for a while, and returns
// the jobs put off until then.
func (d *stored) closed(jobs []*inference.Job) (back []store.Requeue) {
	until := make(map[string]time.Time)
	for _, job := range jobs {
		provider := job.Candidate().Provider
		if until[provider].IsZero() {
			until[provider] = d.pauses.begin(provider, time.Now())
			d.usage.refused(provider)
		}
		back = append(back, putBack(job, until[provider]))
	}
	return back
}

// message is what stands for the job in the queue.
func (d *stored) message(j *store.Job) *inference.Job {
	return &inference.Job{
		ID: j.ID, RequestID: j.RequestID, Epoch: j.Epoch, Kind: j.Kind, Lane: j.Lane, Tenant: j.Tenant, KeyID: j.KeyID,
		Model: j.Model, CreatedAt: j.CreatedAt, Deadline: j.Deadline, RunFor: d.runFor, Candidates: d.detour(j.Candidates),
		Attempts: j.Attempts, Tries: j.Tries, TraceParent: j.TraceParent, Body: j.Body,
	}
}

func putBack(job *inference.Job, until time.Time) store.Requeue {
	return store.Requeue{ID: job.ID, Epoch: job.Epoch, NotBefore: until, Unsent: true, Attempts: job.Attempts, Tries: job.Tries}
}

// closedUntil returns until when nothing is published to the provider, or the zero time.
// It makes sure of the provider's stream.
func (d *stored) closedUntil(ctx context.Context, provider string) time.Time {
	until, ensured := d.pauses.of(provider, time.Now())
	if ensured || !until.IsZero() {
		return until
	}
	if _, err := d.conn.EnsureStored(ctx, provider); err != nil {
		d.log.Warn("queue for jobs is not ready", "provider", provider, "error", err)
		return d.pauses.begin(provider, time.Now())
	}
	d.pauses.ensured(provider)
	return time.Time{}
}

// noteSent says in the database where the messages are. While the database is away it
// tries again for as long as the jobs are certainly leased: after that they are published
// once more, and workers are told to drop the messages of before.
func (d *stored) noteSent(ctx context.Context, sent []store.Dispatch) {
	if len(sent) == 0 {
		return
	}
	limit := time.Now().Add(jobLease / 2)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		useless, err := d.rows.MarkDispatched(ctx, sent, time.Now())
		if err == nil {
			d.removeUseless(ctx, sent, useless)
			return
		}
		if ctx.Err() != nil || time.Now().Add(wait).After(limit) {
			d.log.Warn("jobs were published and the database does not know; they will be published again", "jobs", len(sent), "error", err)
			for _, s := range sent {
				d.limits.doubt(s.ID)
			}
			return
		}
		pause(ctx, wait)
	}
}

func (d *stored) removeUseless(ctx context.Context, sent []store.Dispatch, useless []string) {
	if len(useless) == 0 {
		return
	}
	gone := make(map[string]bool, len(useless))
	for _, id := range useless {
		gone[id] = true
	}
	var jobs []store.Job
	for _, s := range sent {
		if gone[s.ID] {
			jobs = append(jobs, store.Job{ID: s.ID, Provider: s.Provider, Seq: s.Seq})
		}
	}
	// Only these messages are of no use: a later one may stand for the job, and run.
	d.takeBack(ctx, jobs, d.conn.RemoveStored)
}

// recall is for jobs that were ended without a worker's word. Once their messages are out of
// the queue it can be told which of them a worker was given.
func (d *stored) recall(ctx context.Context, jobs []store.Job) {
	d.cancel(ctx, jobs)
	if err := d.limits.cutShort(ctx, jobs); err != nil {
		d.log.Debug("what cancelled jobs took is left to the sweep", "jobs", len(jobs), "error", err)
	}
}

// cancel tells the workers that nobody wants the jobs any more, and takes their messages
// out of the queue. What it misses workers find out when they ask.
func (d *stored) cancel(ctx context.Context, jobs []store.Job) {
	d.takeBack(ctx, jobs, d.conn.CancelStored)
}

func (d *stored) takeBack(
	ctx context.Context, jobs []store.Job, from func(ctx context.Context, provider string, jobs []queue.StoredPlace) error,
) {
	places := make(map[string][]queue.StoredPlace)
	for _, j := range jobs {
		if j.Provider != "" {
			places[j.Provider] = append(places[j.Provider], queue.StoredPlace{JobID: j.ID, Seq: j.Seq})
		}
	}
	for provider, at := range places {
		if err := from(ctx, provider, at); err != nil {
			d.log.Debug("messages of jobs not removed; workers will drop them", "provider", provider, "jobs", len(at), "error", err)
		}
	}
}

// noteBack puts jobs back that got no message. If that fails they come up again when
// their lease has run out.
func (d *stored) noteBack(ctx context.Context, back []store.Requeue) {
	if len(back) == 0 {
		return
	}
	if _, err := d.rows.Requeue(ctx, back); err != nil && ctx.Err() == nil {
		d.log.Warn("jobs not put back; they wait for their lease", "jobs", len(back), "error", err)
	}
}

// Bounds of the pause that a full queue gets.
const (
	pauseLeast = time.Second
	pauseMost  = 30 * time.Second
)

// pauses remembers which providers' queues take no jobs for a while, and which are known
// to be there.
type pauses struct {
	mu         sync.Mutex
	byProvider map[string]providerPause
}

type providerPause struct {
	until   time.Time     // closed; zero: it is open
	length  time.Duration // of the last pause, while nothing was taken since
	ensured bool          // its stream has been there
}

// of returns until when the provider is closed, or zero, and whether its stream is known
// to be there.
func (p *pauses) of(provider string, now time.Time) (until time.Time, ensured bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.byProvider[provider]
	if now.Before(at.until) {
		return at.until, at.ensured
	}
	return time.Time{}, at.ensured
}

// begin closes the provider, twice as long as the last time if it has taken nothing since.
// Its stream may have been lost, and is to be looked for again.
func (p *pauses) begin(provider string, now time.Time) (until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	length := min(max(2*p.byProvider[provider].length, pauseLeast), pauseMost)
	until = now.Add(length)
	p.byProvider[provider] = providerPause{until: until, length: length}
	return until
}

func (p *pauses) ensured(provider string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.byProvider[provider]
	at.ensured = true
	p.byProvider[provider] = at
}

// end opens the provider, which has taken a job.
func (p *pauses) end(provider string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byProvider[provider] = providerPause{ensured: true}
}
