package worker

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// lane is what the worker takes of one lane of its provider's queue. Of the interactive
// one as many jobs are asked for as there are slots. Of a stored one only those that the
// gate would let run, and one that waits: another worker may have room for the rest.
type lane struct {
	pool *pool
	nth  int // in lanes
	name inference.Lane

	most     atomic.Int64 // jobs that may be in hand whatever the gate lets run
	running  atomic.Int64 // jobs that have a slot of the gate, which the pool before may have some of, too
	held     atomic.Int64 // jobs that wait until the provider can be called
	heldSize atomic.Int64 // of their bodies, bytes
	settling atomic.Int64 // jobs whose call is over, and whose end is not yet handed over
	waiting  atomic.Int64 // jobs that no worker had, at the last delivery
	taken    atomic.Int64 // when a job was last delivered, Unix nanoseconds

	puller *queue.Puller // guarded by the pool's mu; nil before the lane is started
}

func newLane(p *pool, nth int, name inference.Lane) *lane {
	l := &lane{pool: p, nth: nth, name: name}
	l.most.Store(int64(l.bound()))
	return l
}

func (l *lane) stored() bool { return l.nth > 0 }

// bound is how many jobs of the lane are ever in hand. A stored one is in hand until its
// end is handed over, and does not keep others from running meanwhile.
func (l *lane) bound() int {
	if l.stored() {
		return 2 * l.pool.member.Slots
	}
	return l.pool.member.Slots
}

// start begins to take jobs, or asks for them again after the server forgot.
func (l *lane) start(ctx, work context.Context) error {
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || ctx.Err() != nil {
		return nil
	}
	if l.puller != nil {
		l.puller.Reset()
		return nil
	}
	most, lost := l.worthwhile(), p.lost
	if l.stored() {
		lost = p.lostStored
	}
	take := func(d *queue.Delivery) { p.take(work, taken{l, d}) }
	if p.state == queue.ProviderPaused {
		l.puller = p.worker.conn.NewPausedPuller(p.member.Name, l.name, l.bound(), most, take, lost)
	} else {
		puller, err := p.worker.conn.NewBoundPuller(p.member.Name, l.name, l.bound(), most, take, lost)
		if err != nil {
			return err
		}
		l.puller = puller
	}
	puller := l.puller
	p.jobs.Go(func() { puller.Run(ctx) })
	return nil
}

// taker returns the lane's puller. The first jobs come before start has kept it, and wait
// for it here.
func (l *lane) taker() *queue.Puller {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.puller
}

// worthwhile is how many of the lane's jobs are worth having in hand: of interactive ones
// those for which the pool that served the provider before leaves a slot. Ends of stored
// jobs that cannot be handed over count from some number on: then no more jobs are run.
func (l *lane) worthwhile() int {
	if !l.stored() {
		running, _ := l.pool.gate.count(l.nth)
		before := max(running-int(l.running.Load()), 0)
		return max(min(int(l.most.Load()), l.bound()-before), 0)
	}
	settling := min(int(l.settling.Load()), l.pool.member.Slots)
	return min(int(l.most.Load()), l.pool.gate.room(l.nth)+settling)
}

// follow has a stored lane's puller ask for as many jobs as are worth having.
func (l *lane) follow() {
	if l.stored() {
		l.rebound()
	}
}

func (l *lane) rebound() {
	if puller := l.taker(); puller != nil {
		puller.Bound(l.worthwhile())
	}
}

func (l *lane) noteDelivery(d *queue.Delivery) {
	l.waiting.Store(int64(d.Waiting))
	l.taken.Store(time.Now().UnixNano())
}

// waitingFor is how long the last delivery's word on the queue behind it is believed.
const waitingFor = 2 * time.Second

// behind is how many of the lane's jobs no worker has, as far as is known.
func (l *lane) behind(now time.Time) int {
	if now.Sub(time.Unix(0, l.taken.Load())) >= waitingFor {
		return 0
	}
	return int(l.waiting.Load())
}

// more reports whether jobs of the lane may be in the queue.
func (l *lane) more(now time.Time) bool {
	return l.behind(now) > 0 || now.Sub(time.Unix(0, l.taken.Load())) >= waitingFor
}

// slot is a job's share of what the worker can do at once: a place among the jobs in hand,
// and one of the calls that are open.
type slot struct {
	lane     *lane
	delivery *queue.Delivery
	inHand   bool // counts with its lane's puller
	taken    bool // counts with the gate
	settling bool
}

// enter waits for a slot of the gate, until the job's deadline or quit is closed.
func (s *slot) enter(ctx context.Context, deadline time.Time, quit <-chan struct{}) error {
	gate := s.lane.pool.gate
	if s.taken = gate.try(s.lane.nth); !s.taken {
		ctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		if err := gate.enter(ctx, quit, s.lane.nth); err != nil {
			return err
		}
		s.taken = true
	}
	s.lane.running.Add(1)
	s.lane.follow()
	return nil
}

// leave gives back the slot of the gate.
func (s *slot) leave() {
	if s.taken {
		s.taken = false
		s.lane.running.Add(-1)
		s.lane.pool.gate.leave(s.lane.nth, !s.lane.stored() && s.lane.more(time.Now()))
		if s.lane.pool.replaced.Load() {
			s.lane.pool.worker.vacated(s.lane)
		}
	}
}

// called says that the job's call is over. An interactive job does not count any more. A
// stored one goes on being in hand until its end is handed over: a worker that cannot hand
// over ends must not go on to make more of them.
func (s *slot) called() {
	if !s.lane.stored() {
		s.release()
		return
	}
	s.leave()
	if !s.settling {
		s.settling = true
		s.lane.settling.Add(1)
	}
	s.lane.follow()
}

// release gives back all that the job has.
func (s *slot) release() {
	s.leave()
	if s.settling {
		s.settling = false
		s.lane.settling.Add(-1)
	}
	if s.inHand {
		s.inHand = false
		s.lane.follow() // first, for the puller to ask by the new bound
		s.lane.taker().Free()
	}
}

// retake waits for what the job gave back, until quit is closed.
func (s *slot) retake(ctx context.Context, deadline time.Time, quit <-chan struct{}) error {
	select {
	case <-quit:
		return queue.ErrStopped
	default:
	}
	if !s.inHand {
		if err := s.lane.taker().Retake(ctx, quit, s.delivery); err != nil {
			return err
		}
		s.inHand = true
	}
	if s.taken {
		return nil
	}
	return s.enter(ctx, deadline, quit)
}

// enter has the job wait for its slot. It returns false when the worker is to stop first;
// if the job's time is over, its run says so.
func (p *pool) enter(ctx context.Context, x *execution) bool {
	return !errors.Is(x.slot.enter(ctx, x.job.Deadline, p.halt()), queue.ErrStopped)
}
