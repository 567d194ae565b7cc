package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// JobStore is what an ingress needs of the database to answer requests later.
type JobStore interface {
	JobRows
	JobOutbox
	JobCourse
	JobUpkeep
	JobWatch
	JobHolds
}

// JobOptions are how requests are answered later. Without a Store none are.
type JobOptions struct {
	Store        JobStore
	Retention    time.Duration // of a job and its answer, after its end
	Deadline     time.Duration // from a job's acceptance; the most that a client may ask for
	MaxWait      time.Duration // of one request for a job's end
	MaxPerTenant int           // unfinished jobs
}

// stored does what there is to do about jobs that the database owns, background jobs and
// lines of batches: it gives them messages, takes in what workers say of them, and finds
// what was lost on the way. Every ingress does all of it; the database sees to it that two
// of them do no job twice.
type stored struct {
	id      string // of this ingress
	opt     JobOptions
	rows    JobStore
	conn    *queue.Conn
	runFor  time.Duration // of one run of a job
	answers *semaphore.Weighted
	memory  int64 // what answers counts, in bytes
	detour  func([]inference.Candidate) []inference.Candidate
	events  func() // events have been written
	lines   func() // lines of batches have ended
	metrics *jobMetrics
	usage   *Metrics
	price   func(*inference.Record)
	limits  *jobLimits // nil: nothing is limited
	log     *slog.Logger

	wake    chan struct{} // a job waits for its message
	pauses  pauses
	missing missing
	bodies  bodies
	waiters waiters
	room    tenantRoom
	reads   chan struct{} // jobs that are read whole at the moment
}

// readsAtOnce bounds the jobs that are read whole at once: each may have a large body and
// a large answer.
const readsAtOnce = 16

// newStored returns nothing without a database to own the jobs.
func newStored(s *Ingress) *stored {
	o := s.opt.Jobs
	if o.Store == nil {
		return nil
	}
	d := &stored{
		id: s.opt.ID, opt: o, rows: o.Store, conn: s.conn, runFor: s.opt.Timeout, answers: s.answers, memory: s.opt.BodyMemory,
		detour: s.workers.detour, events: s.hooks.nudge, lines: func() {}, metrics: newJobMetrics(s.metrics.reg), usage: s.metrics, price: func(r *inference.Record) { s.current().price(r) }, log: s.log,
		wake: make(chan struct{}, 1), reads: make(chan struct{}, readsAtOnce),
		pauses: pauses{byProvider: make(map[string]providerPause)}, missing: missing{since: make(map[string]missed)},
		bodies:  bodies{ids: make(map[string]bool)},
		waiters: waiters{byID: make(map[string]map[chan struct{}]bool)}, room: tenantRoom{counts: make(map[string]tenantCount)},
	}
	d.limits = newJobLimits(s, d.nudge)
	return d
}

// start begins to hear workers' claims, and runs the loops in the group until ctx ends.
// close ends the hearing.
func (d *stored) start(ctx context.Context, loops *sync.WaitGroup) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, end := range stops {
			end()
		}
	}
	for _, lane := range []inference.Lane{inference.LaneBackground, inference.LaneBatch} {
		h, err := d.conn.HearClaims(lane, d.judge)
		if err != nil {
			stop()
			return nil, fmt.Errorf("hear claims of lane %s: %w", lane, err)
		}
		stops = append(stops, h.Close)
		loops.Go(func() { d.conn.ConsumeResults(ctx, lane, store.MaxJobs, d.take) })
	}
	if d.limits != nil {
		unhear, err := d.conn.HearCancels(d.limits.recalled)
		if err != nil {
			stop()
			return nil, fmt.Errorf("hear of cancelled jobs: %w", err)
		}
		stops = append(stops, unhear)
		adoption := adoption{limits: d.limits, rows: d.rows, conn: d.conn, id: d.id}
		_ = adoption.begin(ctx) // what it cannot do yet the loop does, and tells of what hinders it
		loops.Go(func() { d.every(ctx, adoptEvery, "take over limits", adoption.look) })
		loops.Go(func() { d.limits.reviewRecalled(ctx) })
		loops.Go(func() { d.every(ctx, holdsEvery, "give back limits", d.limits.sweepHolds) })
	}
	loops.Go(func() { d.dispatch(ctx) })
	loops.Go(func() { d.watch(ctx) })
	loops.Go(func() { d.every(ctx, reconcileEvery, "reconcile jobs", d.reconcile) })
	loops.Go(func() { d.every(ctx, expireEvery, "expire jobs", d.expire) })
	loops.Go(func() { d.every(ctx, bodiesEvery, "remove bodies", d.sweepBodies) })
	loops.Go(func() { d.every(ctx, purgeEvery, "purge jobs", d.purge) })
	loops.Go(func() { d.every(ctx, backlogEvery, "measure the backlog", d.measure) })
	return stop, nil
}

// every does the work time and again until ctx ends. What keeps it from it is told once.
func (d *stored) every(ctx context.Context, interval time.Duration, doing string, work func(context.Context) error) {
	trouble := trouble{log: d.log, doing: doing}
	for ctx.Err() == nil {
		pause(ctx, interval)
		if ctx.Err() == nil {
			trouble.tell(ctx, work(ctx))
		}
	}
}

// trouble tells what keeps a loop from its work when it begins, and not at every round.
type trouble struct {
	log   *slog.Logger
	doing string
	told  bool
}

func (t *trouble) tell(ctx context.Context, err error) {
	if err != nil && !t.told && ctx.Err() == nil {
		t.log.Warn("jobs wait; it will be tried again", "doing", t.doing, "error", err)
	}
	t.told = err != nil
}

// judge answers a worker that asks whether a job is still wanted.
func (d *stored) judge(ctx context.Context, c queue.Claim) (queue.Judgement, error) {
	claimed, err := d.rows.ClaimJob(ctx, c.JobID, c.Run.Epoch, time.Now())
	if err != nil {
		return queue.Judgement{}, err
	}
	if !claimed.Wanted {
		return queue.Judgement{Verdict: queue.VerdictDrop}, nil
	}
	return queue.Judgement{Verdict: queue.VerdictRun, Attempts: claimed.Attempts, Tries: claimed.Tries}, nil
}
