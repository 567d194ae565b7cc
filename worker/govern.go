package worker

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"sluice/internal/queue"
)

// governor sets how many jobs all workers of a provider may have in hand: as many calls
// as the provider bears, and the jobs that are held until it can be called. The server
// enforces it, so that a fast worker gets more of it than a slow one. Of the provider's
// workers the one with the least id governs; the others follow what it announces, and
// one of them goes on from there when it is gone.
type governor struct {
	pool    *pool
	limit   limit
	limited map[string]int64 // 429s that each worker had counted
	unseen  int64            // those that were not yet taken into account
	applied int              // what the server was told; zero: not known
	stored  [len(lanes)]told // of each stored lane
	lately  int              // calls at once in the period before
	at      time.Time        // when the limit was last adjusted
	joined  bool             // what the others had found out was taken over, if there were any
}

func newGovernor(p *pool) *governor {
	m := p.member
	l := limit{least: max(min(m.MinConcurrency, m.Concurrency), 1), most: m.Concurrency, maxSlowdown: m.MaxSlowdown, now: float64(m.Concurrency)}
	if m.MinConcurrency <= 0 {
		l.least = m.Concurrency
	}
	if n := int(p.limit.Load()); n > 0 { // the pool before it had found out
		l.now = float64(min(max(n, l.least), l.most))
	}
	return &governor{pool: p, limit: l, limited: map[string]int64{p.worker.opt.ID: 0}}
}

const (
	governEvery = 200 * time.Millisecond
	adjustEvery = time.Second
)

// run governs until ctx ends.
func (g *governor) run(ctx context.Context) {
	tick := time.NewTicker(governEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if !g.pool.started() || !g.pool.worker.conn.Connected() {
				continue
			}
			if n := g.govern(ctx, g.pool.presence(), now); g.joined {
				g.pool.limit.Store(int64(n))
			}
			g.pool.throttle(now)
		}
	}
}

// govern looks at the provider once and returns the limit that is in force. Until every
// other worker has been heard of, this one cannot know who governs.
func (g *governor) govern(ctx context.Context, own queue.ProviderPresence, now time.Time) int {
	w := g.pool.worker
	if !w.peers.complete(now) {
		return int(g.limit.now)
	}
	others := w.peers.of(g.pool.member.Name, now)
	all, leader := congestionOf(own, others, w.opt.ID)
	g.countLimited(own, others)
	g.follow(others, leader != w.opt.ID)
	if leader != w.opt.ID {
		g.applied, g.unseen = 0, 0
		clear(g.stored[:])
		return int(g.limit.now)
	}
	if now.Sub(g.at) >= adjustEvery {
		g.at = now
		inUse := all.inUse
		all.inUse, g.lately, all.limited, g.unseen = max(inUse, g.lately), inUse, g.unseen, 0
		all.waiting += g.pool.gate.stored()
		g.limit.adjust(all)
	}
	held := own.Held
	for _, o := range others {
		held += o.Held
	}
	g.apply(ctx, int(g.limit.now)+held)
	g.applyStored(ctx, int(g.limit.now), len(others)+1, now)
	return int(g.limit.now)
}

// follow takes over the limit of the worker that governed so far: each time as a
// follower, once as the one to govern from now on. A worker that has just begun tells
// none.
func (g *governor) follow(others map[string]queue.ProviderPresence, always bool) {
	first := !g.joined
	g.joined = true
	if !first && !always {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(others)) {
		if n := others[id].Limit; n > 0 {
			g.limit.now = math.Min(math.Max(float64(n), float64(g.limit.least)), float64(g.limit.most))
			return
		}
	}
}

// apply tells the server, if that is news to it: a change of the consumer holds up its
// deliveries for some milliseconds.
func (g *governor) apply(ctx context.Context, most int) {
	if g.pool.remade.Swap(false) || g.applied == 0 {
		g.applied, _ = g.pool.worker.conn.Concurrency(ctx, g.pool.member.Name) // not known is zero
	}
	if most == g.applied {
		return
	}
	if err := g.pool.worker.conn.SetConcurrency(ctx, g.pool.member.Name, most); err != nil {
		g.pool.worker.log.Debug("limit not set; it will be tried again", "provider", g.pool.member.Name, "error", err)
		return
	}
	g.applied = most
}

// told is what the server knows of a stored lane.
type told struct {
	most int // zero: not known
	at   time.Time
}

// exactly is how long a stored lane's bound may be off by a little.
const exactly = time.Minute

// applyStored bounds the jobs of the stored lanes that are in hand, as apply does, but to
// a quarter or so: the gates bound the calls, and deliveries are held up more rarely. The
// other workers hold about as many jobs as this one, since it is the same provider.
func (g *governor) applyStored(ctx context.Context, most, workers int, now time.Time) {
	p := g.pool
	if p.restored.Swap(false) {
		clear(g.stored[:])
	}
	for _, l := range p.lanes[1:] {
		t, want := &g.stored[l.nth], most+workers*int(l.held.Load())
		off := max(want-t.most, t.most-want)
		if off == 0 || l.taker() == nil || t.most > 0 && 4*off <= t.most && now.Sub(t.at) < exactly {
			continue
		}
		if err := p.worker.conn.SetLaneConcurrency(ctx, p.member.Name, l.name, want); err != nil {
			p.worker.log.Debug("bound of a lane not set; it will be tried again", "provider", p.member.Name, "lane", l.name, "error", err)
			continue
		}
		*t = told{want, now}
	}
}

// congestionOf sums up what the workers say, and finds the one that governs.
func congestionOf(own queue.ProviderPresence, others map[string]queue.ProviderPresence, self string) (c congestion, leader string) {
	leader = self
	sum, weight := own.Slowdown*float64(own.InFlight), 0.0
	if own.Slowdown > 0 {
		weight = float64(own.InFlight)
	}
	c.inUse, c.waiting = own.InFlight, own.Waiting
	for id, o := range others {
		leader = min(leader, id)
		c.inUse += o.InFlight
		c.waiting = max(c.waiting, o.Waiting)
		if o.Slowdown > 0 {
			sum, weight = sum+o.Slowdown*float64(o.InFlight), weight+float64(o.InFlight)
		}
	}
	if weight > 0 {
		c.slowdown = sum / weight
	}
	return c, leader
}

// countLimited notes who is there, and counts the 429s that were not yet taken into account. Those of a worker
// that is new here were before.
func (g *governor) countLimited(own queue.ProviderPresence, others map[string]queue.ProviderPresence) {
	seen := make(map[string]int64, len(others)+1)
	seen[g.pool.worker.opt.ID] = own.Limited
	for id, o := range others {
		seen[id] = o.Limited
	}
	for id, n := range seen {
		if before, known := g.limited[id]; known {
			g.unseen += max(n-before, 0)
		}
	}
	if !maps.EqualFunc(g.limited, seen, func(int64, int64) bool { return true }) {
		g.applied = 0 // whoever comes or goes may have told the server something else
		clear(g.stored[:])
	}
	g.limited = seen
}
