package ingress

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// JobUpkeep is what finds jobs that were lost, whose time is over, or who are not needed
// any more.
type JobUpkeep interface {
	Dispatched(ctx context.Context, before time.Time, limit int) ([]store.Job, error)
	Confirm(ctx context.Context, ids []string, at time.Time) error
	ExpireJobs(ctx context.Context, now time.Time, retention time.Duration, limit int) ([]store.Job, error)
	PurgeJobs(ctx context.Context, now time.Time, limit int) (int, error)
}

// Rhythm and bounds of the upkeep.
const (
	reconcileEvery = 5 * time.Second
	unheardFor     = time.Minute // since which a message is to be looked for
	missingFor     = 30 * time.Second
	missingMost    = 10 * time.Minute
	clocksApart    = 10 * time.Second // the server's and this machine's
	lookedFor      = 500              // messages in one round
	expireEvery    = 2 * time.Second
	purgeEvery     = time.Minute
	backlogEvery   = 15 * time.Second
	portions       = 100 // of jobs that are expired or purged in one round
)

// reconcile looks for the messages of jobs that have not been heard of for a while, and
// has those dispatched again whose message is gone. It is gone for good when it was missed
// twice and no result from before is still to be taken: the end of a job whose message was
// acknowledged may be on its way. In a stream that was made since there is none of before.
func (d *stored) reconcile(ctx context.Context) error {
	if !d.conn.Connected() {
		return nil
	}
	return d.reconcileAt(ctx, time.Now())
}

func (d *stored) reconcileAt(ctx context.Context, now time.Time) error {
	oldest, err := d.conn.OldestResult(ctx)
	if err != nil {
		return err
	}
	defer d.missing.forget(now)
	for range portions {
		jobs, err := d.rows.Dispatched(ctx, now.Add(-unheardFor), lookedFor)
		if err != nil {
			return err
		}
		byProvider := make(map[string][]store.Job)
		for _, j := range jobs {
			byProvider[j.Provider] = append(byProvider[j.Provider], j)
		}
		settled := 0
		for provider, jobs := range byProvider {
			n, err := d.reconcileProvider(ctx, provider, jobs, now, oldest)
			if err != nil {
				return err
			}
			settled += n
		}
		if len(jobs) < lookedFor || settled == 0 {
			return nil // the rest is missed, for not long enough
		}
	}
	return nil
}

// reconcileProvider looks for the messages of jobs in one provider's queue, and returns of
// how many it knows now where they are.
func (d *stored) reconcileProvider(ctx context.Context, provider string, jobs []store.Job, now, oldest time.Time) (int, error) {
	made, err := d.conn.EnsureStored(ctx, provider)
	if err != nil {
		return 0, err
	}
	places := make([]queue.StoredPlace, len(jobs))
	for i, j := range jobs {
		places[i] = queue.StoredPlace{JobID: j.ID, Seq: j.Seq}
	}
	found, err := d.conn.StoredQueued(ctx, provider, places)
	if err != nil {
		return 0, err
	}
	var there []string
	var lost []store.Job
	for i, j := range jobs {
		if found[i] {
			there = append(there, j.ID)
		} else if j.DispatchedAt.Before(made) || d.missing.longEnough(j, now, oldest) {
			lost = append(lost, j)
		}
	}
	if len(there) > 0 {
		if err := d.rows.Confirm(ctx, there, now); err != nil {
			return 0, err
		}
	}
	return len(there) + len(lost), d.restore(ctx, lost)
}

func (d *stored) restore(ctx context.Context, lost []store.Job) error {
	if len(lost) == 0 {
		return nil
	}
	if err := d.another(ctx, d.limits.lostRounds(ctx, lost)); err != nil {
		return err
	}
	d.log.Warn("messages of jobs were lost; they are dispatched again", "jobs", len(lost))
	d.metrics.lost.Add(float64(len(lost)))
	d.nudge()
	return nil
}

// missing remembers whose message was not found, since when.
type missing struct {
	mu    sync.Mutex
	since map[string]missed
}

type missed struct {
	epoch       int
	first, last time.Time
}

// longEnough notes that the job's message was not found, and reports whether it has been
// so for missingFor, while all results were taken that were there before. oldest is the
// time of the oldest one that is still to be taken, zero if there is none. One result that
// cannot be taken does not keep all jobs from being found: that is what missingMost is for.
func (m *missing) longEnough(j store.Job, now, oldest time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, known := m.since[j.ID]
	if !known || at.epoch != j.Epoch {
		at = missed{epoch: j.Epoch, first: now}
	}
	at.last = now
	m.since[j.ID] = at
	taken := oldest.IsZero() || oldest.After(at.first.Add(clocksApart))
	return now.Sub(at.first) >= missingFor && (taken || now.Sub(at.first) >= missingMost)
}

// forget lets go of what was not missed of late: it ended, or was found.
func (m *missing) forget(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, at := range m.since {
		if now.Sub(at.last) > missingFor {
			delete(m.since, id)
		}
	}
}

// expire ends jobs whose deadline has passed.
func (d *stored) expire(ctx context.Context) error {
	for range portions {
		jobs, err := d.rows.ExpireJobs(ctx, time.Now(), d.opt.Retention, store.MaxJobs)
		if err != nil || len(jobs) == 0 {
			return err
		}
		d.ended(jobs)
		d.recall(ctx, jobs)
	}
	return nil
}

// purge removes jobs whose time is over.
func (d *stored) purge(ctx context.Context) error {
	for range portions {
		n, err := d.rows.PurgeJobs(ctx, time.Now(), store.MaxJobs)
		if err != nil || n < store.MaxJobs {
			return err
		}
	}
	return nil
}

// bodies remembers the jobs published here whose body may stand beside its message. What
// it forgets, because there are too many or with the process, the bodies' age removes.
type bodies struct {
	mu  sync.Mutex
	ids map[string]bool
}

// Bounds of that. No body that is smaller stands beside its message.
const (
	besideBytes = 128 << 10
	bodiesMost  = 10_000
	bodiesEvery = 5 * time.Second
)

func (b *bodies) note(job *inference.Job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(job.Body) > besideBytes && len(b.ids) < bodiesMost {
		b.ids[job.ID] = true
	}
}

// sweepBodies removes the bodies of jobs that have ended, wherever that was.
func (d *stored) sweepBodies(ctx context.Context) error {
	d.bodies.mu.Lock()
	ids := slices.Collect(maps.Keys(d.bodies.ids))
	d.bodies.mu.Unlock()
	for page := range slices.Chunk(ids, store.MaxPage) {
		ended, err := d.rows.EndedJobs(ctx, page)
		if err != nil {
			return err
		}
		for _, id := range ended {
			if err := d.conn.DropStoredBody(ctx, id); err != nil {
				return err
			}
			d.bodies.mu.Lock()
			delete(d.bodies.ids, id)
			d.bodies.mu.Unlock()
		}
	}
	return nil
}

// measure tells how long the oldest job waits for its message.
func (d *stored) measure(ctx context.Context) error {
	oldest, err := d.rows.OldestWaiting(ctx)
	if err != nil {
		return err
	}
	age := time.Duration(0)
	if !oldest.IsZero() {
		age = max(time.Since(oldest), 0)
	}
	d.metrics.backlog.Set(age.Seconds())
	return nil
}

// cancelledRow is the ledger's row of a job that its client cancelled.
func cancelledRow(j *store.Job, now time.Time) inference.Record {
	started := j.StartedAt
	if started.IsZero() {
		started = now
	}
	return inference.Record{
		JobID: j.ID, Provider: j.Provider, Attempts: j.Attempts, Tries: j.Tries,
		Outcome: inference.OutcomeCancelled, Status: statusClientClosed, ErrorCode: inference.CodeCancelled,
		Queue: max(started.Sub(j.CreatedAt), 0), Total: max(now.Sub(j.CreatedAt), 0),
	}
}
