package worker

import (
	"cmp"
	"context"
	"fmt"
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
	gate    *gate
	lanes   [len(lanes)]*lane

	jobs     sync.WaitGroup
	idle     chan taken    // heard by goroutines without a job
	quit     chan struct{} // closed when no more jobs are taken
	inFlight *atomic.Int64 // calls that are open, those of the pools before it included
	ended    atomic.Int64
	models   atomic.Pointer[[]string]
	stale    atomic.Bool // its stream has to be made, or made again
	unstored atomic.Bool // so has the one of stored jobs

	breakers *breakers
	budget   *retryBudget
	traits   atomic.Pointer[[]inference.ModelTraits]
	refused  atomic.Bool  // the provider accepts none of the keys
	remade   atomic.Bool  // its consumer may have been made anew
	restored atomic.Bool  // so may those of the stored lanes
	limited  atomic.Int64 // calls answered with 429
	limit    atomic.Int64 // calls at once across all workers, as the governor says; zero until it knows

	replaced  atomic.Bool // another pool has taken over, or nobody serves the provider any more
	inherited bool        // the one before it had begun to take jobs
	leaves    bool        // its provider is not served any more; known to Run alone

	mu      sync.Mutex // also of the lanes' pullers
	stopped bool
	state   queue.ProviderState // that operators want, as far as is known; empty: it is active
	halted  chan struct{}       // closed while no job is begun
	rate    rate
}

func newPool(w *Worker, m Member, metrics *providerMetrics) *pool {
	p := &pool{
		worker: w, member: m, metrics: metrics, idle: make(chan taken), quit: make(chan struct{}), halted: make(chan struct{}),
		gate:   newGate(m.Slots, cmp.Or(m.BackgroundShare, defaultBackgroundShare), cmp.Or(m.BatchShare, defaultBatchShare)),
		budget: newRetryBudget(m.RetryBudget), inFlight: new(atomic.Int64),
	}
	for i, name := range lanes {
		p.lanes[i] = newLane(p, i, name)
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

// remake has made what is marked as stale.
func (p *pool) remake(ctx, work context.Context, stale *atomic.Bool, ensure func(ctx, work context.Context) error) error {
	if !stale.CompareAndSwap(true, false) { // before the work: what is lost meanwhile counts
		return nil
	}
	if err := ensure(ctx, work); err != nil {
		stale.Store(true)
		return fmt.Errorf("provider %s: %w", p.member.Name, err)
	}
	return nil
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
	return p.lanes[0].start(ctx, work)
}

// ensureStored makes the provider's stream of stored jobs and the consumers of its lanes,
// and takes jobs from them.
func (p *pool) ensureStored(ctx, work context.Context) error {
	if _, err := p.worker.conn.EnsureStored(ctx, p.member.Name); err != nil {
		return err
	}
	for _, l := range p.lanes[1:] {
		if err := p.worker.conn.EnsureLane(ctx, p.member.Name, l.name, p.bears()); err != nil {
			return err
		}
		if err := l.start(ctx, work); err != nil {
			return err
		}
	}
	p.restored.Store(true)
	return nil
}

// lost has the provider's stream made again.
func (p *pool) lost() {
	p.stale.Store(true)
	p.worker.wakeBuilder()
}

// lostStored has the stream of its stored jobs made again.
func (p *pool) lostStored() {
	p.unstored.Store(true)
	p.worker.wakeBuilder()
}

func (p *pool) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	p.stopped = true
	for _, l := range p.lanes {
		if l.puller != nil {
			l.puller.Stop()
		}
	}
	p.haltLocked()
	close(p.quit)
}

func (p *pool) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return (p.lanes[0].puller != nil || p.inherited) && !p.stopped
}

func (p *pool) presence() queue.ProviderPresence {
	refused := p.metrics.upstreamKeys(p.member.Provider)
	p.refused.Store(refused)
	p.metrics.limit.Set(float64(p.bears()))
	held := int(p.lanes[0].held.Load())
	p.metrics.held.Set(float64(held))
	for _, l := range p.lanes[1:] {
		p.metrics.lane(l)
	}
	p.mu.Lock()
	perSecond, state := p.rate.of(p.ended.Load(), time.Now()), p.state
	p.mu.Unlock()
	now := time.Now()
	pp := queue.ProviderPresence{
		Name: p.member.Name, MaxQueued: p.member.MaxQueued, Concurrency: p.member.Concurrency,
		Slots: p.member.Slots, InFlight: int(p.inFlight.Load()), Rate: perSecond,
		Limit: int(p.limit.Load()), Held: held, Limited: p.limited.Load(), Refused: refused,
		Slowdown: p.breakers.slowdown(now), States: p.breakers.states(now),
		State: state,
	}
	pp.Waiting = p.lanes[0].behind(now)
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

// taken is a delivery of one of the lanes.
type taken struct {
	lane     *lane
	delivery *queue.Delivery
}

// take gives a delivery to an idle goroutine, or to a new one; what the pullers may have
// in hand bounds how many there are.
func (p *pool) take(work context.Context, t taken) {
	select {
	case p.idle <- t:
	default:
		p.jobs.Go(func() { p.serve(work, t) })
	}
}

// serve runs one job after another until there is none for a while, or no more will
// come.
func (p *pool) serve(work context.Context, t taken) {
	wait := time.NewTimer(slotIdle)
	defer wait.Stop()
	for {
		p.serveOne(work, t)
		wait.Reset(slotIdle)
		select {
		case t = <-p.idle:
		case <-wait.C:
			return
		case <-p.quit:
			return
		}
	}
}

func (p *pool) serveOne(work context.Context, t taken) {
	s := &slot{lane: t.lane, delivery: t.delivery, inHand: true}
	defer s.release()
	t.lane.noteDelivery(t.delivery)
	p.handle(work, t.delivery, s)
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
		jobID: job.ID, lane: job.Lane, run: queue.Run{Epoch: job.Epoch, Delivery: d.Delivery}, delivery: d, since: time.Now(),
		cancel: cancel, settled: make(chan struct{}), runs: !again,
	}
	if !p.worker.hold.add(h) {
		d.Nak(time.Second) // this worker is still at it; the server was impatient
		return
	}
	defer p.worker.hold.remove(h)
	if again && p.leftToPeers(job, d) {
		return
	}
	x := &execution{pool: p, job: job, bodyRef: bodyRef, held: h, slot: s, owner: p.ownerOf(job)}
	if x.owner.admit(work, ctx, x) {
		p.execute(work, ctx, x)
	}
}

// execute runs the job until it has an end, or is somebody else's. The slot is free as
// soon as the provider is done with the call, before the end is settled.
func (p *pool) execute(work, ctx context.Context, x *execution) {
	for {
		end := x.run(ctx)
		switch p.decide(work, ctx, x, end) {
		case toHold:
			if p.hold(ctx, x) {
				continue // if the job's time is over, the next run says so
			}
			p.giveBack(work, ctx, x)
		case toGiveBack:
			x.slot.release()
			p.giveBack(work, ctx, x)
		case toAnswer:
			x.slot.called()
			p.metrics.calls(end)
			x.owner.settle(work, ctx, x, end)
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
	if what == toForward && !p.forward(work, ctx, x, end) {
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
