package limits

import (
	"container/heap"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
)

// How long things are good.
const (
	handFor    = 150 * time.Millisecond // what was taken in advance
	lateHand   = 100 * time.Millisecond // after its end it is given back by then
	tellWithin = 100 * time.Millisecond // ends of requests are told by then
	tellTight  = 2 * time.Millisecond   // the same where little is left
	holderFor  = 15 * time.Second       // a process that is silent for so long is gone

	lookFirst = 10 * time.Millisecond  // a request that does not fit looks again
	lookFor   = handFor + lateHand     // for so long at most
	patience  = 250 * time.Millisecond // the default of Options.Patience

	retryEvery  = 250 * time.Millisecond // what could not be told is tried again
	sweepEvery  = time.Second
	leaveAfter  = 2 * time.Second // a process that uses nothing says so
	clearAfter  = 5 * time.Second // of a window without a request: a record that says nothing is removed
	forgetAfter = 7 * time.Second // the same: the scope is forgotten
	goodbyeFor  = 2 * time.Second

	ledgerFor = 30 * time.Second // an answer of the ledger
)

// Bounds of what is kept at once.
const (
	maxScopes  = 100_000
	maxWaiting = 4096 // requests that wait for one scope
	maxGather  = 512  // of them in one swap
	maxFlushes = 256  // scopes that are flushed at once
	maxAsking  = 16   // scopes that the ledger is asked for at once
	maxPending = 4096 // of those, and those that wait for it

	goodbyesAtOnce = 16
)

// Options make a Limiter.
type Options struct {
	Counters Counters
	Logger   *slog.Logger

	// Ingress is the id of the ingress that this counts for, by which others know whose the
	// calls are that outlive it. It is another one after each start. Empty: a random one.
	Ingress string

	// Alone says that no request goes on without this process: their Ends are not looked at.
	Alone bool

	// Patience bounds the wait for an answer of the counters; zero is 250 ms.
	Patience time.Duration

	// Spent returns what requests of the scope have cost since a time, as far as the ledger
	// knows. It is asked when the record does not say, and every few minutes. Nil: nobody
	// knows more than the records.
	Spent func(ctx context.Context, scope Scope, since time.Time) (inference.Cost, error)

	// Swapped is told of each change of a record that was asked for. Nil: nobody is.
	Swapped func(result SwapResult, took time.Duration)
}

// SwapResult is how a change of a record ended.
type SwapResult string

// The results.
const (
	SwapDone     SwapResult = "done"
	SwapConflict SwapResult = "conflict" // another process was first; it is made anew
	SwapFailed   SwapResult = "failed"   // the counters did not answer
)

// Limiter counts for one process what its requests take. It is a Reserver. What its
// methods owe to the records is told as long as Run runs.
type Limiter struct {
	counters Counters
	log      *slog.Logger
	patience time.Duration
	ledger   func(ctx context.Context, scope Scope, since time.Time) (inference.Cost, error)
	swapped  func(SwapResult, time.Duration)

	process uint64
	alone   bool
	changes atomic.Uint64
	clock   *clock
	terms   terms
	down    atomic.Int64 // until when the counters are not asked again; zero: they answer
	slots   chan struct{}
	asking  chan struct{}

	questions sync.WaitGroup // to the ledger
	pending   atomic.Int64   // how many there are
	hush      chan struct{}  // closed when their answers are of no use any more
	mute      atomic.Int64   // until when nobody waits for an answer that is not needed: none came in time

	mu       sync.RWMutex
	accounts map[string]*account

	gate    sync.Mutex
	closed  bool
	work    sync.WaitGroup
	leaving atomic.Bool // nothing is taken in advance any more

	alarms alarms
}

var _ Reserver = (*Limiter)(nil)

// New returns a limiter, for Run to keep.
func New(o Options) *Limiter {
	if o.Patience <= 0 {
		o.Patience = patience
	}
	if o.Swapped == nil {
		o.Swapped = func(SwapResult, time.Duration) {}
	}
	if o.Ingress == "" {
		o.Ingress = rand.Text()
	}
	return &Limiter{
		counters: o.Counters, log: o.Logger, patience: o.Patience, ledger: o.Spent, swapped: o.Swapped,
		process: processOf(o.Ingress), alone: o.Alone, clock: newClock(),
		terms: terms{
			window: windowLength.Milliseconds(), hand: handFor.Milliseconds(),
			reach: (max(handFor, o.Patience) + 50*time.Millisecond).Milliseconds(), holder: holderFor.Milliseconds(),
		},
		slots: make(chan struct{}, maxFlushes), asking: make(chan struct{}, maxAsking), hush: make(chan struct{}),
		accounts: make(map[string]*account), alarms: alarms{changed: make(chan struct{}, 1)},
	}
}

// Run does what no request waits for, until the context ends. Then it tells what is left
// to tell and returns.
func (l *Limiter) Run(ctx context.Context) error {
	var background sync.WaitGroup
	background.Go(func() { l.keepTime(ctx) })
	background.Go(func() { l.keepSwept(ctx) })
	l.keepAlarms(ctx)
	background.Wait()
	l.goodbye()
	return nil
}

func (l *Limiter) since() time.Duration { return time.Since(l.clock.began) }

// begin counts a goroutine of the limiter's in. It returns false once Run is ending.
func (l *Limiter) begin() bool {
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.closed {
		return false
	}
	l.work.Add(1)
	return true
}

// goodbye tells what is left to tell, as far as the counters answer: first what is in
// hand, then that nothing is. Calls that go on without this process stay.
func (l *Limiter) goodbye() {
	l.gate.Lock()
	l.closed = true
	l.gate.Unlock()
	l.work.Wait()
	l.leaving.Store(true)
	until := l.since() + goodbyeFor
	var group errgroup.Group
	group.SetLimit(goodbyesAtOnce)
	for _, a := range l.all() {
		group.Go(func() error {
			for range 3 {
				a.mu.Lock()
				done := l.since() > until || a.parted || a.quiet() && (a.rec == nil || a.rec.holder(l.process) == nil)
				a.busy = !done
				a.mu.Unlock()
				if done {
					break
				}
				l.flush(a)
			}
			return nil
		})
	}
	_ = group.Wait() // none of them returns an error
	close(l.hush)
	l.questions.Wait()
}

// keepTime asks for the counters' time again and again.
func (l *Limiter) keepTime(ctx context.Context) {
	for {
		every := clockEvery
		if err := l.measure(); err != nil {
			l.log.Debug("counters' time not known", "error", err)
			every = time.Second
		}
		pause(ctx, every)
		if ctx.Err() != nil {
			return
		}
	}
}

func (l *Limiter) measure() error {
	ctx, cancel := l.patient()
	defer cancel()
	if err := l.clock.measure(ctx, l.counters); err != nil {
		l.unreached()
		return err
	}
	l.reached()
	return nil
}

// reached and unreached note whether the counters answer.
func (l *Limiter) reached() {
	if l.down.Load() != 0 && l.down.Swap(0) != 0 {
		l.log.Info("limit counters answer")
	}
}

func (l *Limiter) unreached() {
	if l.down.Swap(int64(l.since()+retryEvery)) == 0 {
		l.log.Warn("limit counters do not answer")
	}
}

// reachable reports whether to ask the counters. While they do not answer, one request in
// a while tries; the others need not wait for nothing.
func (l *Limiter) reachable() bool {
	until := l.down.Load()
	if until == 0 {
		return true
	}
	at := l.since()
	return int64(at) >= until && l.down.CompareAndSwap(until, int64(at+l.patience+retryEvery))
}

func (l *Limiter) observe(err error, took time.Duration) {
	switch {
	case err == nil:
		l.swapped(SwapDone, took)
	case errors.Is(err, ErrConflict):
		l.swapped(SwapConflict, took)
	default:
		l.swapped(SwapFailed, took)
	}
}

// alarms are when accounts are to be flushed.
type alarms struct {
	mu      sync.Mutex
	list    alarmHeap
	changed chan struct{}
}

type alarm struct {
	at time.Duration
	a  *account
}

type alarmHeap []alarm

func (h *alarmHeap) Len() int           { return len(*h) }
func (h *alarmHeap) Less(i, j int) bool { return (*h)[i].at < (*h)[j].at }
func (h *alarmHeap) Swap(i, j int)      { (*h)[i], (*h)[j] = (*h)[j], (*h)[i] }

// Push and Pop are for package heap.
func (h *alarmHeap) Push(x any) { *h = append(*h, x.(alarm)) } //nolint:errcheck // nothing else is ever pushed

func (h *alarmHeap) Pop() any {
	list := *h
	last := list[len(list)-1]
	list[len(list)-1] = alarm{}
	*h = list[:len(list)-1]
	return last
}

// wake has the account flushed at a time, or earlier. The caller holds the account's mu.
func (l *Limiter) wake(a *account, at time.Duration) {
	if a.wakeAt != 0 && a.wakeAt <= at {
		return
	}
	a.wakeAt = at
	l.alarms.mu.Lock()
	heap.Push(&l.alarms.list, alarm{at, a})
	first := l.alarms.list[0].at == at
	l.alarms.mu.Unlock()
	if first {
		select {
		case l.alarms.changed <- struct{}{}:
		default:
		}
	}
}

// keepAlarms flushes the accounts at their times.
func (l *Limiter) keepAlarms(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(l.ring())
		select {
		case <-timer.C:
		case <-l.alarms.changed:
		case <-ctx.Done():
			return
		}
	}
}

// ring flushes the accounts whose time has come, and returns how long it is to the next.
func (l *Limiter) ring() time.Duration {
	for {
		l.alarms.mu.Lock()
		if len(l.alarms.list) == 0 {
			l.alarms.mu.Unlock()
			return time.Hour
		}
		if wait := l.alarms.list[0].at - l.since(); wait > 0 {
			l.alarms.mu.Unlock()
			return wait
		}
		due, ok := heap.Pop(&l.alarms.list).(alarm)
		l.alarms.mu.Unlock()
		if !ok {
			continue
		}
		due.a.mu.Lock()
		if due.a.wakeAt == due.at {
			due.a.wakeAt = 0
			l.kick(due.a)
		}
		due.a.mu.Unlock()
	}
}
