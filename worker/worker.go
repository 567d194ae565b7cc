package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/internal/queue"
	"sluice/providers"
)

// Member is one provider that a worker serves.
type Member struct {
	Name        string
	Provider    providers.Provider
	Slots       int   // calls at once in this worker
	Concurrency int   // calls at once across all workers of the provider
	MaxQueued   int   // bound of the provider's queue
	MaxRetries  int   // further tries of a call that failed in a way that may pass
	MaxBody     int64 // largest request body, bytes

	MinConcurrency int           // least that congestion brings Concurrency down to; zero: it is fixed
	MaxSlowdown    float64       // times slower than usual at which it falls; zero: slowness does not count
	RetryBudget    float64       // share of the calls that may be retries, from 0 to 1
	Patience       time.Duration // of a job that another candidate could serve, when the provider asks for a wait
	Breaker        BreakerSettings

	// Settings is the same for members that are set up alike, and Upstream for those that
	// call the same upstream with the same keys. Both are fingerprints, of which Apply sees
	// what has changed; empty ones differ from all.
	Settings, Upstream string

	// Shares of the grants of slots that a stored lane has at the least while it waits,
	// from 0 to 1. Zero: 0.1 and 0.05.
	BackgroundShare float64
	BatchShare      float64
}

const (
	defaultBackgroundShare = 0.1
	defaultBatchShare      = 0.05
)

// Options are what a worker is made of.
type Options struct {
	ID           string
	Conn         *queue.Conn
	Members      []Member
	AckWait      time.Duration // the queue's: progress is reported three times in it
	DrainTimeout time.Duration // how long work in hand may take after the stop
	Metrics      *Metrics
	Logger       *slog.Logger
}

// Worker runs one pool for each of its providers.
type Worker struct {
	opt    Options
	conn   *queue.Conn
	log    *slog.Logger
	answer *queue.Answerer
	hold   *holdings
	absent *tally // questions about a job that its ingress was not there to hear
	unread *tally // tries to fetch a job's body that failed
	failed *tally // jobs that the provider failed here, and that another worker is to have
	peers  *peers

	poolsMu sync.RWMutex
	pools   []*pool // of the providers that are served; the slice itself is never changed
	retired []*pool // take no new jobs, or soon none, and have some in hand

	turnover sync.Mutex // held while pools come and go
	changes  chan *change
	running  chan struct{} // closed when Run has begun to serve
	stopping chan struct{} // closed when the worker is to stop
	ended    chan struct{} // closed when Run has returned

	ready     chan struct{} // closed when jobs are taken for the first time
	readyOnce sync.Once
	rebuild   chan struct{} // the server has to be given its streams again
	news      atomic.Bool   // something to announce before the next second
	resets    resets
	orders    orders
}

// New returns a worker that has not yet taken anything.
func New(o Options) *Worker {
	w := &Worker{
		opt: o, conn: o.Conn, log: o.Logger.With("worker", o.ID), hold: newHoldings(),
		absent: newTally(), unread: newTally(), failed: newTally(), peers: newPeers(o.ID), ready: make(chan struct{}), rebuild: make(chan struct{}, 1),
		changes: make(chan *change), running: make(chan struct{}), stopping: make(chan struct{}), ended: make(chan struct{}),
		orders: orders{heard: make(chan struct{})}, resets: make(resets),
	}
	for _, m := range o.Members {
		w.pools = append(w.pools, newPool(w, m, o.Metrics.provider(m.Name)))
	}
	return w
}

// Ready is closed once the worker takes jobs of any provider. Serves tells of which.
func (w *Worker) Ready() <-chan struct{} { return w.ready }

// A worker tells every second what it serves and all that it holds, and of a job
// that is new in its hands sooner, so that hardly a call is lost with a worker
// without anybody knowing that it was made.
const (
	beat      = time.Second
	firstBeat = 100 * time.Millisecond
)

// Run serves until ctx ends, then finishes what it has in hand. It returns an error
// only if it could not begin.
func (w *Worker) Run(ctx context.Context) error {
	defer close(w.ended)
	var names []string
	for _, p := range w.served() {
		names = append(names, p.member.Name)
	}
	var err error
	if w.answer, err = w.conn.NewAnswerer(w.opt.ID, names, w.hold); err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	defer w.answer.Close()
	watch, err := w.conn.Watch(w.peers.heard)
	if err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	defer watch.Close()
	w.peers.begin(time.Now())
	defer w.closeResets()
	for _, name := range names {
		if err := w.hearResets(name); err != nil {
			return fmt.Errorf("start worker: %w", err)
		}
	}
	w.conn.OnReconnect(w.needRebuild)
	w.needRebuild()

	// work outlives ctx: it ends when the drain is over or out of time.
	work, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	var loops sync.WaitGroup
	beats, stopBeats := context.WithCancel(context.WithoutCancel(ctx))
	defer loops.Wait()
	defer stopBeats()
	loops.Go(func() { w.keepStreams(ctx, work) })
	loops.Go(func() { w.keepBeating(beats) })
	loops.Go(func() { w.conn.FollowControls(ctx, w.ordered) })
	for _, p := range w.served() {
		p.jobs.Go(func() { p.look(ctx) })
	}
	close(w.running)
	for {
		select {
		case c := <-w.changes:
			w.change(ctx, c, &loops)
		case <-ctx.Done():
			close(w.stopping)
			w.drain(abort)
			return nil
		}
	}
}

// errStopping is why a job is given up when a drain runs out of time.
var errStopping = errors.New("worker is stopping")

// drain takes no more jobs and waits for those in hand.
func (w *Worker) drain(abort context.CancelCauseFunc) {
	var jobs sync.WaitGroup
	for _, p := range w.all() {
		p.stop()
		jobs.Go(p.jobs.Wait)
	}
	w.announce(true)
	done := make(chan struct{})
	go func() {
		jobs.Wait()
		close(done)
	}()
	limit := time.NewTimer(w.opt.DrainTimeout)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		w.log.Warn("drain ran out of time; jobs in hand go back to the queue", "jobs", w.hold.count())
		abort(errStopping)
		<-done
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := w.conn.Flush(ctx); err != nil {
		w.log.Warn("last words not sent", "error", err)
	}
}

// streamsRetry is the pause before streams that could not be made are tried again.
const streamsRetry = 500 * time.Millisecond

// keepStreams makes sure that the server has the worker's streams and consumers: at
// the start, after each reconnect (a server with memory storage forgets them), and
// when a pull finds none.
func (w *Worker) keepStreams(ctx, work context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-w.orders.heard: // so that nothing is taken in a pause that began before the worker
	}
	var said complaint
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.rebuild:
		}
		for {
			err := w.ensure(ctx, work)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				if said.over() {
					w.log.Info("queue is ready")
				}
				break
			}
			if said.news(err.Error()) {
				w.log.Warn("queue is not ready", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-w.rebuild: // what has to be made is marked; it is made without the pause
			case <-time.After(streamsRetry):
			}
		}
	}
}

// ensure makes what is missing of the worker's streams and starts their pools. A
// provider whose stream cannot be made does not keep the others from serving.
func (w *Worker) ensure(ctx, work context.Context) error {
	if err := w.conn.EnsureShared(ctx); err != nil {
		return err
	}
	w.greet()
	var errs []error
	for _, p := range w.served() {
		errs = append(errs, p.remake(ctx, work, &p.stale, p.ensure))
	}
	w.announce(false)
	if len(w.Serves()) > 0 {
		w.readyOnce.Do(func() { close(w.ready) })
	}
	for _, p := range w.served() {
		errs = append(errs, p.remake(ctx, work, &p.unstored, p.ensureStored))
	}
	return errors.Join(errs...)
}

// needRebuild has the streams of all providers made again.
func (w *Worker) needRebuild() {
	for _, p := range w.served() {
		p.stale.Store(true)
		p.unstored.Store(true)
	}
	w.wakeBuilder()
}

func (w *Worker) wakeBuilder() {
	select {
	case w.rebuild <- struct{}{}:
	default:
	}
}

func (w *Worker) keepBeating(ctx context.Context) {
	var asks sync.WaitGroup
	defer asks.Wait()
	ask := func(jobs []*held) {
		for _, j := range jobs {
			asks.Go(func() { w.askAgain(ctx, j) })
		}
	}
	tick := time.NewTicker(firstBeat)
	defer tick.Stop()
	now := time.Now()
	beats := pulse{limit: w.opt.AckWait * 2 / 3, at: now, wall: now.Round(0)} // the last word of progress may be a third older
	const full = int(beat / firstBeat)
	progress := full * max(1, int(w.opt.AckWait/(3*beat)))
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now = time.Now()
		}
		w.obey(now)
		if err := w.answer.Hold(w.hold.list(n%full == 0)); err != nil {
			w.log.Warn("beat not sent", "error", err)
		}
		if w.news.Swap(false) || n%full == 0 {
			w.announce(false)
		}
		if n%full == 0 {
			w.hold.forget()
		}
		if beats.missed(now, now.Round(0), w.conn.Connected()) {
			w.hold.doubt()
			ask(w.hold.progress())
		} else if n%progress == 0 {
			ask(w.hold.progress())
		}
	}
}

// greet announces the worker before it takes anything, or takes anything again: whoever is
// lost after that has been heard of.
func (w *Worker) greet() {
	if len(w.Serves()) > 0 {
		w.announce(false)
	} else if err := w.conn.Announce(queue.Presence{Worker: w.opt.ID}); err != nil {
		w.log.Warn("announcement not sent", "error", err)
	}
}

func (w *Worker) announce(leaving bool) {
	p := queue.Presence{Worker: w.opt.ID, Leaving: leaving}
	for _, pl := range w.served() {
		if pl.started() {
			p.Providers = append(p.Providers, pl.presence())
		}
	}
	if len(p.Providers) == 0 && !leaving {
		return
	}
	if err := w.conn.Announce(p); err != nil {
		w.log.Warn("announcement not sent", "error", err)
	}
}

// Serves returns the providers that this worker takes jobs of at the moment.
func (w *Worker) Serves() []string {
	var names []string
	for _, p := range w.served() {
		if p.started() {
			names = append(names, p.member.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Connected reports whether the queue is reachable at this moment.
func (w *Worker) Connected() bool { return w.conn.Connected() }
