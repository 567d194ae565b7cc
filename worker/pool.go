package worker

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// pool serves one provider with a fixed number of slots.
type pool struct {
	worker  *Worker
	member  Member
	metrics *providerMetrics

	jobs     sync.WaitGroup
	idle     chan *queue.Delivery // heard by goroutines without a job
	quit     chan struct{}        // closed when no more jobs are taken
	inFlight atomic.Int64
	ended    atomic.Int64
	models   atomic.Pointer[[]string]
	stale    atomic.Bool // its stream has to be made, or made again

	breakers *breakers
	budget   *retryBudget
	traits   atomic.Pointer[[]inference.ModelTraits]
	heldSize atomic.Int64 // of their bodies, bytes
	heldJobs atomic.Int64 // that gave their slot back until the provider can be called
	waiting  atomic.Int64 // jobs that no worker had, at the last delivery
	refused  atomic.Bool  // the provider accepts none of the keys
	remade   atomic.Bool  // its consumer may have been made anew
	taken    atomic.Int64 // when a job was last delivered, Unix nanoseconds
	limited  atomic.Int64 // calls answered with 429
	limit    atomic.Int64 // calls at once across all workers, as the governor says; zero until it knows

	mu      sync.Mutex
	puller  *queue.Puller
	stopped bool
	rate    rate
}

func newPool(w *Worker, m Member, metrics *providerMetrics) *pool {
	p := &pool{
		worker: w, member: m, metrics: metrics, idle: make(chan *queue.Delivery), quit: make(chan struct{}),
		budget: newRetryBudget(m.RetryBudget),
	}
	p.breakers = newBreakers(m.Breaker, p.breakerTurned, metrics.forget)
	return p
}

// breakerTurned tells of a breaker's change: the ingresses are to know soon.
func (p *pool) breakerTurned(model, state string) {
	p.metrics.breaker(model, state)
	p.worker.news.Store(true)
	level := slog.LevelInfo
	if state == inference.BreakerOpen {
		level = slog.LevelWarn
	}
	p.worker.log.Log(context.Background(), level, "circuit breaker turned", "provider", p.member.Name, "model", model, "state", state)
}

// ensure makes the provider's stream and consumer and takes jobs from them.
func (p *pool) ensure(ctx, work context.Context) error {
	if _, err := p.worker.conn.EnsureQueue(ctx, p.member.Name, p.member.MaxQueued); err != nil {
		return err
	}
	if err := p.worker.conn.EnsureConsumer(ctx, p.member.Name, p.member.Concurrency); err != nil {
		return err
	}
	p.remade.Store(true)
	return p.start(ctx, work)
}

// lost has the provider's stream made again.
func (p *pool) lost() {
	p.stale.Store(true)
	p.worker.wakeBuilder()
}

// start begins to take jobs, or asks for them again after the server forgot.
func (p *pool) start(ctx, work context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || ctx.Err() != nil {
		return nil
	}
	if p.puller != nil {
		p.puller.Reset()
		return nil
	}
	puller, err := p.worker.conn.NewPuller(p.member.Name, inference.LaneInteractive, p.member.Slots, func(d *queue.Delivery) { p.take(work, d) }, p.lost)
	if err != nil {
		return err
	}
	p.puller = puller
	p.jobs.Go(func() { puller.Run(ctx) })
	return nil
}

func (p *pool) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	if p.puller != nil {
		p.puller.Stop()
	}
	close(p.quit)
}

func (p *pool) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.puller != nil && !p.stopped
}

// waitingFor is how long the last delivery's word on the queue behind it is believed.
const waitingFor = 2 * time.Second

func (p *pool) presence() queue.ProviderPresence {
	refused := p.metrics.upstreamKeys(p.member.Provider)
	p.refused.Store(refused)
	p.metrics.limit.Set(float64(p.bears()))
	p.metrics.held.Set(float64(p.heldJobs.Load()))
	p.mu.Lock()
	perSecond := p.rate.of(p.ended.Load(), time.Now())
	p.mu.Unlock()
	now := time.Now()
	pp := queue.ProviderPresence{
		Name: p.member.Name, MaxQueued: p.member.MaxQueued, Concurrency: p.member.Concurrency,
		Slots: p.member.Slots, InFlight: int(p.inFlight.Load()), Rate: perSecond,
		Limit: int(p.limit.Load()), Held: int(p.heldJobs.Load()), Limited: p.limited.Load(), Refused: refused,
		Slowdown: p.breakers.slowdown(now), States: p.breakers.states(now),
	}
	if now.Sub(time.Unix(0, p.taken.Load())) < waitingFor {
		pp.Waiting = int(p.waiting.Load())
	}
	if t := p.traits.Load(); t != nil {
		pp.Traits = *t
	}
	if m := p.models.Load(); m != nil {
		pp.Models = *m
	}
	return pp
}

// bears is how many calls at once, across all workers, the provider is taken to bear.
func (p *pool) bears() int {
	if n := int(p.limit.Load()); n > 0 {
		return n
	}
	return p.member.Concurrency
}

// slotIdle is how long a goroutine waits for its next job. Reusing it spares each job
// the growth of a new stack.
const slotIdle = 10 * time.Second

// take gives a delivery to an idle goroutine, or to a new one; the puller's slots
// bound how many there are.
func (p *pool) take(work context.Context, d *queue.Delivery) {
	select {
	case p.idle <- d:
	default:
		p.jobs.Go(func() { p.serve(work, d) })
	}
}

// serve runs one job after another until there is none for a while, or no more will
// come.
func (p *pool) serve(work context.Context, d *queue.Delivery) {
	wait := time.NewTimer(slotIdle)
	defer wait.Stop()
	for {
		p.serveOne(work, d)
		wait.Reset(slotIdle)
		select {
		case d = <-p.idle:
		case <-wait.C:
			return
		case <-p.quit:
			return
		}
	}
}

func (p *pool) serveOne(work context.Context, d *queue.Delivery) {
	s := &slot{pool: p, delivery: d, taken: true}
	defer s.release()
	p.waiting.Store(int64(d.Waiting))
	p.taken.Store(time.Now().UnixNano())
	p.handle(work, d, s)
}

// slot is a job's share of the worker's calls at once.
type slot struct {
	pool     *pool
	delivery *queue.Delivery
	taken    bool
}

// release gives the slot back. The first jobs come before start has kept the puller,
// and wait for it here.
func (s *slot) release() {
	if s.taken {
		s.taken = false
		s.pool.taker().Free()
	}
}

// retake waits for the slot again, until quit is closed.
func (s *slot) retake(ctx context.Context, quit <-chan struct{}) error {
	select {
	case <-quit:
		return queue.ErrStopped
	default:
	}
	if s.taken {
		return nil
	}
	err := s.pool.taker().Retake(ctx, quit, s.delivery)
	s.taken = err == nil
	return err
}

func (p *pool) taker() *queue.Puller {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.puller
}

// handle judges the delivery and runs it, as often as it has to wait in between.
func (p *pool) handle(work context.Context, d *queue.Delivery, s *slot) {
	job, bodyRef, err := d.Job()
	if err != nil {
		p.worker.log.Error("job cannot be read; kept among the dead letters", "provider", p.member.Name, "error", err)
		p.bury(work, d, err.Error())
		return
	}
	ctx, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	again := d.Delivery > 1 || job.Epoch > 0
	h := &held{
		jobID: job.ID, run: queue.Run{Epoch: job.Epoch, Delivery: d.Delivery}, delivery: d, since: time.Now(),
		cancel: cancel, settled: make(chan struct{}), runs: !again,
	}
	if !p.worker.hold.add(h) {
		d.Nak(time.Second) // this worker is still at it; the server was impatient
		return
	}
	defer p.worker.hold.remove(h)
	if again {
		if p.leftToPeers(job, d) {
			return
		}
		if !p.mayRunAgain(work, job, bodyRef, h) {
			return
		}
		p.worker.hold.mayRun(h)
	}
	p.execute(work, ctx, &execution{pool: p, job: job, bodyRef: bodyRef, held: h}, s)
}

// execute runs the job until it has an end, or is somebody else's. The slot is free as
// soon as the provider is done with the call, before the end is settled.
func (p *pool) execute(work, ctx context.Context, x *execution, s *slot) {
	for {
		end := x.run(ctx)
		switch p.decide(work, ctx, x, end) {
		case toHold:
			if p.hold(ctx, x, s) {
				continue // if the job's time is over, the next run says so
			}
			p.giveBack(x)
		case toGiveBack:
			s.release()
			p.giveBack(x)
		case toAnswer:
			s.release()
			p.ended.Add(1)
			p.metrics.calls(end)
			p.settle(work, x, end)
		case toForward: // it is on its way
		}
		return
	}
}

// decide says what becomes of a job after a run. One that is to go to another candidate
// has been sent there when this returns; if nobody takes it, the next best is decided.
func (p *pool) decide(work, ctx context.Context, x *execution, end *queue.End) disposition {
	if x.goesBack || ctx.Err() != nil {
		return toAnswer
	}
	o := x.outlook(end.Err)
	what := dispose(o)
	if what == toGiveBack && o.peers && x.tries > 0 && !p.budget.take(time.Now()) {
		o.peers = false // the other worker's call would be one retry too many
		what = dispose(o)
	}
	if what == toForward && !p.forward(work, x, end) {
		o.next = false
		what = dispose(o)
	}
	return what
}

func (p *pool) bury(work context.Context, d *queue.Delivery, reason string) {
	ctx, cancel := context.WithTimeout(work, 5*time.Second)
	defer cancel()
	if err := d.Bury(ctx, p.member.Name, reason); err != nil {
		p.worker.log.Error("dead letter not kept; the job stays queued", "provider", p.member.Name, "error", err)
	}
}

// rate turns a count that only grows into a moving average of its growth.
type rate struct {
	count int64
	at    time.Time
	avg   float64
}

const rateWeight = 0.3 // of the newest second

func (r *rate) of(count int64, now time.Time) float64 {
	seconds := now.Sub(r.at).Seconds()
	if r.at.IsZero() || seconds < 0.5 {
		if r.at.IsZero() {
			r.count, r.at = count, now
		}
		return r.avg
	}
	latest := float64(count-r.count) / seconds
	if r.avg == 0 {
		r.avg = latest
	} else {
		r.avg += rateWeight * (latest - r.avg)
	}
	r.count, r.at = count, now
	return r.avg
}
