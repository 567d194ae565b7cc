package worker

import (
	"context"
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

	mu      sync.Mutex
	puller  *queue.Puller
	stopped bool
	rate    rate
}

// ensure makes the provider's stream and consumer and takes jobs from them.
func (p *pool) ensure(ctx, work context.Context) error {
	if _, err := p.worker.conn.EnsureQueue(ctx, p.member.Name, p.member.MaxQueued); err != nil {
		return err
	}
	if err := p.worker.conn.EnsureConsumer(ctx, p.member.Name, p.member.Concurrency); err != nil {
		return err
	}
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

func (p *pool) presence() queue.ProviderPresence {
	p.metrics.upstreamKeys(p.member.Provider)
	p.mu.Lock()
	perSecond := p.rate.of(p.ended.Load(), time.Now())
	p.mu.Unlock()
	pp := queue.ProviderPresence{
		Name: p.member.Name, MaxQueued: p.member.MaxQueued, Concurrency: p.member.Concurrency,
		Slots: p.member.Slots, InFlight: int(p.inFlight.Load()), Rate: perSecond,
	}
	if m := p.models.Load(); m != nil {
		pp.Models = *m
	}
	return pp
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
	released := false
	release := func() {
		if !released {
			released = true
			p.free()
		}
	}
	defer release()
	p.handle(work, d, release)
}

// free gives a slot back. The first jobs come before start has kept the puller, and
// wait for it here.
func (p *pool) free() {
	p.mu.Lock()
	puller := p.puller
	p.mu.Unlock()
	puller.Free()
}

// handle judges the delivery and runs it. release frees the slot as soon as the
// provider is done with the call, before the end is settled.
func (p *pool) handle(work context.Context, d *queue.Delivery, release func()) {
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
	defer p.worker.hold.remove(job.ID)
	if again {
		if !p.mayRunAgain(work, job, bodyRef, h) {
			return
		}
		p.worker.hold.mayRun(h)
	}
	r := &execution{pool: p, job: job, bodyRef: bodyRef, held: h}
	end := r.run(ctx)
	p.ended.Add(1)
	release()
	p.settle(work, r, end)
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
