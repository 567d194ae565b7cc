package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// lanes are served in this order.
var lanes = [...]inference.Lane{inference.LaneInteractive, inference.LaneBackground, inference.LaneBatch}

// gate hands out a provider's slots in this worker, never more of them than there are.
// Interactive jobs come first, background jobs before lines of batches. A stored lane may
// use idle slots, but not the last ones: an interactive job is to find one free. While it
// waits it has a claim to a share of the grants, which comes before everything: so it is
// never starved, even by a single slot.
type gate struct {
	mu    sync.Mutex
	slots int
	most  int // slots in use while stored jobs are among them, or are due
	idle  int // slots in use below which a stored job may have one that is not due
	inUse int
	kept  bool // no stored job has an idle slot: an interactive one may be on its way
	lanes [len(lanes)]gateLane
}

type gateLane struct {
	share   int64 // of the grants while it waits, in parts of wholeGrant; zero: no claim
	credit  int64 // what it is owed of them
	running int
	wants   int             // jobs that have no slot
	waiting []chan struct{} // theirs, the oldest first; closed when its turn comes
}

const wholeGrant = 1_000_000

func newGate(slots int, background, batch float64) *gate {
	g := new(gate)
	g.resize(slots, background, batch)
	return g
}

// resize changes how many slots there are, and the shares of the stored lanes. Of fewer
// slots those that are in use too many fall away when they become free.
func (g *gate) resize(slots int, background, batch float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slots, g.most, g.idle = slots, slots, slots-headroom(slots)
	g.lanes[1].share = int64(background * wholeGrant)
	g.lanes[2].share = int64(batch * wholeGrant)
	g.grantAll()
}

// headroom is how many slots of so many stored jobs leave idle.
func headroom(slots int) int {
	if slots < 2 {
		return 0
	}
	return max(slots/4, 1)
}

// try takes a slot for a job of the lane if there is one for it now.
func (g *gate) try(lane int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lanes[lane].wants++
	if g.next() == lane { // nobody waited who might have had it
		g.grant(lane)
		return true
	}
	g.lanes[lane].wants--
	return false
}

// enter waits for a slot for a job of the lane, until ctx ends or quit is closed.
func (g *gate) enter(ctx context.Context, quit <-chan struct{}, lane int) error {
	g.mu.Lock()
	l := &g.lanes[lane]
	if l.wants++; g.next() == lane {
		g.grant(lane)
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	g.mu.Unlock()
	var err error
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-quit:
		err = queue.ErrStopped
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(l.waiting, turn)
	if i < 0 {
		return nil // its turn came at the same moment
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	l.wants--
	g.grantAll() // what it was due held up others
	return err
}

// keptFor is how long a slot that an interactive job leaves is kept for the next one of
// the queue, which only then is asked for.
const keptFor = 50 * time.Millisecond

// leave gives back the slot of a job of the lane. Of an interactive one it is told whether
// there may be more of them in the queue: where stored jobs leave no headroom, because
// there is but one slot for all, they would else take turns with those.
func (g *gate) leave(lane int, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inUse--
	g.lanes[lane].running--
	if more && !g.kept && g.idle <= 1 && g.lanes[1].wants+g.lanes[2].wants > 0 {
		g.kept = true
		time.AfterFunc(keptFor, g.keepNone)
	}
	g.grantAll()
}

func (g *gate) keepNone() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kept = false
	g.grantAll()
}

// adjust changes the bounds that depend on what the provider bears: how many slots may be
// in use while stored jobs are among them, and how many of them stored jobs fill.
func (g *gate) adjust(most, idle int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.most, g.idle = min(max(most, 1), g.slots), idle
	g.grantAll()
}

// room is how many jobs of a stored lane are worth having in hand: those that run, those
// that would, and at least one that waits, for the lane's claim to a share to count.
func (g *gate) room(lane int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lanes[lane].running + max(g.idle-g.inUse, 1)
}

// stored returns how many stored jobs wait.
func (g *gate) stored() (n int) {
	for i := 1; i < len(g.lanes); i++ {
		_, waiting := g.count(i)
		n += waiting
	}
	return n
}

// count returns how many jobs of the lane run, and how many wait.
func (g *gate) count(lane int) (running, waiting int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lanes[lane].running, g.lanes[lane].wants
}

// none is the lane of nobody.
const none = -1

// next returns the lane that has the next slot, none if no job may have one now. The
// caller holds mu.
func (g *gate) next() int {
	mixed := false // stored jobs have slots, or are to have the next one
	for i := 1; i < len(g.lanes); i++ {
		l := &g.lanes[i]
		due := l.wants > 0 && l.credit >= wholeGrant
		if due && g.inUse < g.most {
			return i
		}
		mixed = mixed || due || l.running > 0
	}
	most := g.slots
	if mixed {
		most = g.most
	}
	if g.lanes[0].wants > 0 {
		if g.inUse < most {
			return 0
		}
		return none
	}
	for i := 1; i < len(g.lanes) && !g.kept; i++ {
		if g.lanes[i].wants > 0 && g.inUse < min(g.idle, g.most) {
			return i
		}
	}
	return none
}

// grant gives the lane a slot. The stored lanes that go on waiting are owed their share of
// it. What a lane had beyond its share is not held against it. The caller holds mu.
func (g *gate) grant(lane int) {
	g.inUse++
	g.lanes[lane].running++
	for i := range g.lanes {
		if l := &g.lanes[i]; l.wants > 0 {
			l.credit = min(l.credit+l.share, 2*wholeGrant)
		}
	}
	if lane == 0 {
		g.kept = false
	}
	l := &g.lanes[lane]
	l.wants--
	l.credit = max(l.credit-wholeGrant, 0)
}

// grantAll gives slots to those who wait, as long as they may have one. The caller holds mu.
func (g *gate) grantAll() {
	for lane := g.next(); lane != none; lane = g.next() {
		g.grant(lane)
		l := &g.lanes[lane]
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
	}
}

// fits says how many calls a worker may have open at once while stored jobs are among them,
// and how many of those stored jobs fill: the provider bears so many, and its other
// workers have some open. Each worker has its part of them, so that those that begin at
// the same moment do not all take the whole.
func fits(slots, bears, workers, others int) (most, idle int) {
	part := max((bears+workers-1)/workers, 1)
	left := max(bears-others, 0)
	most = min(slots, max(left, part))
	own := min(slots, part)
	return most, min(own-headroom(own), left)
}
