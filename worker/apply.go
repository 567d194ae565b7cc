package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ErrStopped says that a worker takes no other members because it has stopped, or is
// stopping.
var ErrStopped = errors.New("worker is stopped")

// change is a new set of members on its way to Run, which alone changes the pools.
type change struct {
	members []Member
	err     error // set before done is closed
	done    chan struct{}
}

// Apply has the worker serve these members in place of those that it has, and returns
// when no new job begins under the old settings. It waits for Run to begin. A provider
// whose Settings are the same keeps its pool. One that has changed gets a new pool: jobs
// in hand end under the settings that they began with, and count against the slots of
// the new pool until then; those that only wait for a slot or for the provider go back to
// the queue. What was learned of the upstream (breakers, limit) is kept if Upstream is the
// same, the breakers only if they are also set alike. A provider that is no member any
// more is not announced, and is let go of when its queue is empty.
//
// The worker closes the members' adapters from here on, also those that it has no use
// for. When Apply returns an error nothing has changed, and they are the caller's.
func (w *Worker) Apply(members []Member) error {
	select {
	case <-w.running:
	case <-w.ended:
		return fmt.Errorf("apply settings: %w", ErrStopped)
	}
	c := &change{members: members, done: make(chan struct{})}
	select {
	case w.changes <- c:
		<-c.done
		return c.err
	case <-w.stopping:
		return fmt.Errorf("apply settings: %w", ErrStopped)
	}
}

// Close lets go of the providers' adapters, when Run has returned.
func (w *Worker) Close() error {
	var err error
	for _, p := range w.served() {
		err = errors.Join(err, p.member.Provider.Close())
	}
	return err
}

// served returns the pools of the providers that the worker serves.
func (w *Worker) served() []*pool {
	w.poolsMu.RLock()
	defer w.poolsMu.RUnlock()
	return w.pools
}

// all returns the pools that may have jobs in hand.
func (w *Worker) all() []*pool {
	w.poolsMu.RLock()
	defer w.poolsMu.RUnlock()
	return slices.Concat(w.pools, w.retired)
}

func named(pools []*pool, provider string) *pool {
	i := slices.IndexFunc(pools, func(p *pool) bool { return p.member.Name == provider })
	if i < 0 {
		return nil
	}
	return pools[i]
}

// succession is what a change makes of the pools.
type succession struct {
	next    []*pool
	fresh   []*pool // of next
	old     []*pool // those whose place others take, or that were about to go
	leaving []*pool // those of providers that are not served any more
	unused  []Member
}

// change puts the members in the place of those there are. Whatever may fail comes
// before anything is changed.
func (w *Worker) change(ctx context.Context, c *change, loops *sync.WaitGroup) {
	defer close(c.done)
	w.turnover.Lock()
	defer w.turnover.Unlock()
	if c.err = w.listen(c.members); c.err != nil {
		return
	}
	s := w.succeed(c.members)
	w.poolsMu.Lock()
	w.pools = s.next
	w.retired = append(slices.DeleteFunc(slices.Clone(w.retired), func(p *pool) bool { return slices.Contains(s.old, p) }), append(s.old, s.leaving...)...)
	w.poolsMu.Unlock()
	w.obey(time.Now()) // a provider may be paused whose pool is new
	for _, p := range s.old {
		p.replaced.Store(true)
		p.stop()
	}
	for _, p := range s.fresh {
		p.stale.Store(true)
		p.unstored.Store(true)
		p.jobs.Go(func() { p.look(ctx) })
	}
	w.wakeBuilder()
	w.announce(false)
	for _, p := range slices.Concat(s.old, s.leaving) {
		if slices.Contains(s.leaving, p) {
			loops.Go(func() { w.leave(ctx, p) })
		} else if !p.leaves {
			loops.Go(func() { w.finish(p) })
		}
	}
	for i := range s.unused {
		w.closeAdapter(&s.unused[i])
	}
}

// listen begins to hear what is said to the workers of the members' providers, of all of
// them or of none that is new. The caller holds turnover.
func (w *Worker) listen(members []Member) error {
	for i := range members {
		name := members[i].Name
		err := w.answer.Join(name)
		if err == nil {
			err = w.hearResets(name)
		}
		if err != nil {
			for _, m := range members[:i+1] {
				w.unhear(m.Name)
			}
			return fmt.Errorf("serve provider %s: %w", name, err)
		}
	}
	return nil
}

// unhear stops hearing what is said to the workers of a provider that there is no pool of,
// and reports whether there is none. The caller holds turnover.
func (w *Worker) unhear(provider string) bool {
	if named(w.all(), provider) != nil {
		return false
	}
	w.answer.Leave(provider)
	w.resets.close(provider)
	return true
}

// succeed makes the pools that are new. They take nothing yet.
func (w *Worker) succeed(members []Member) succession {
	var s succession
	served, retired := w.served(), w.all()
	for _, m := range members {
		old := named(served, m.Name)
		if old != nil && m.Settings != "" && m.Settings == old.member.Settings {
			s.next, s.unused = append(s.next, old), append(s.unused, m)
			continue
		}
		p := newPool(w, m, w.opt.Metrics.provider(m.Name))
		if old == nil { // it may be about to leave
			i := slices.IndexFunc(retired, func(r *pool) bool { return r.member.Name == m.Name && r.leaves && !r.replaced.Load() })
			if i >= 0 {
				old = retired[i]
			}
		}
		if old != nil {
			p.inherit(old)
			s.old = append(s.old, old)
		}
		s.next, s.fresh = append(s.next, p), append(s.fresh, p)
	}
	for _, p := range served {
		if !slices.Contains(s.next, p) && !slices.Contains(s.old, p) {
			p.leaves = true
			s.leaving = append(s.leaving, p)
		}
	}
	return s
}

// inherit takes over from the pool that has served the provider until now. Both share the
// gate, so that the calls of both together are never more than there are slots.
func (p *pool) inherit(old *pool) {
	m := p.member
	p.gate, p.inFlight = old.gate, old.inFlight
	p.gate.resize(m.Slots, cmp.Or(m.BackgroundShare, defaultBackgroundShare), cmp.Or(m.BatchShare, defaultBatchShare))
	p.inherited = old.started()
	p.ended.Store(old.ended.Load())
	old.mu.Lock()
	p.rate = old.rate
	old.mu.Unlock()
	p.models.Store(old.models.Load())
	p.traits.Store(old.traits.Load())
	if m.Upstream == "" || m.Upstream != old.member.Upstream {
		old.breakers.over.Store(true)
		p.metrics.breakersAnew()
		return
	}
	if n := old.limit.Load(); int(n) < old.member.Concurrency { // it bore no more
		p.limit.Store(min(n, int64(m.Concurrency)))
	}
	if m.Breaker == old.member.Breaker {
		p.breakers = old.breakers
	} else {
		old.breakers.over.Store(true)
		p.metrics.breakersAnew()
	}
	if m.RetryBudget == old.member.RetryBudget {
		p.budget = old.budget
	}
}

// look watches the provider until no more jobs are taken for it.
func (p *pool) look(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { p.watchModels(ctx) })
	loops.Go(func() { newGovernor(p).run(ctx) })
	select {
	case <-ctx.Done():
	case <-p.quit:
		cancel()
	}
}

// vacated has the pool that took over ask for a job in place of one that its predecessor
// has done.
func (w *Worker) vacated(l *lane) {
	if next := named(w.served(), l.pool.member.Name); next != nil {
		next.lanes[l.nth].rebound()
	}
}

// Whoever is to send no more jobs to a provider may have one on its way still.
const (
	leaveAfter = 2 * time.Second
	leaveLook  = 250 * time.Millisecond
)

// leave works off the queue of a provider that is not served any more, and lets go of it.
// Nobody is told that the worker serves it, so that no new jobs come.
func (w *Worker) leave(ctx context.Context, p *pool) {
	w.log.Info("provider is not served any more; its queue is worked off", "provider", p.member.Name)
	began := time.Now()
	tick := time.NewTicker(leaveLook)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-p.quit: // it is served again
			over = true
		case now := <-tick.C:
			over = now.Sub(began) > w.opt.DrainTimeout || now.Sub(began) >= leaveAfter && p.empty(ctx)
		}
	}
	p.replaced.Store(true)
	p.stop()
	w.finish(p)
}

// empty reports whether nothing is left for the pool to take.
func (p *pool) empty(ctx context.Context) bool {
	for _, l := range p.lanes {
		depth, err := p.worker.conn.LaneDepth(ctx, p.member.Name, l.name)
		if err != nil || depth.Waiting+depth.Running > 0 {
			return false
		}
	}
	return true
}

// finish waits for the last job of a pool that takes no more, and lets go of it.
func (w *Worker) finish(p *pool) {
	p.jobs.Wait()
	w.turnover.Lock()
	defer w.turnover.Unlock()
	w.poolsMu.Lock()
	w.retired = slices.DeleteFunc(slices.Clone(w.retired), func(r *pool) bool { return r == p })
	w.poolsMu.Unlock()
	w.closeAdapter(&p.member)
	if w.unhear(p.member.Name) {
		p.metrics.gone()
	}
}

func (w *Worker) closeAdapter(m *Member) {
	if err := m.Provider.Close(); err != nil {
		w.log.Warn("adapter of provider not closed", "provider", m.Name, "error", err)
	}
}
