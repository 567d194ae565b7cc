package worker

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/queue"
)

const (
	interactive = iota
	background
	batch
)

// entering is a job that waits at the gate.
type entering struct {
	lane   int
	err    chan error
	cancel context.CancelFunc
}

func (e *entering) in() bool { return len(e.err) == 1 }

// queueUp has jobs wait at the gate, one after the other. It runs in a bubble.
func queueUp(t *testing.T, g *gate, quit <-chan struct{}, lanes ...int) (all []*entering) {
	t.Helper()
	for _, lane := range lanes {
		ctx, cancel := context.WithCancel(t.Context())
		e := &entering{lane: lane, err: make(chan error, 1), cancel: cancel}
		go func() { e.err <- g.enter(ctx, quit, lane) }()
		synctest.Wait()
		all = append(all, e)
	}
	return all
}

// entered lists the lanes of those that have a slot.
func entered(all []*entering) (in []int) {
	synctest.Wait()
	for _, e := range all {
		if e.in() {
			in = append(in, e.lane)
		}
	}
	return in
}

func TestTheGateServesItsLanesInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 0.1, 0.05)
		require.True(t, g.try(batch))
		require.False(t, g.try(interactive), "one slot, one job")
		all := queueUp(t, g, nil, batch, background, interactive, background, interactive)
		require.Empty(t, entered(all))
		last := batch
		for _, want := range []int{2, 4, 1, 3, 0} {
			g.leave(last, false)
			synctest.Wait()
			require.True(t, all[want].in(), "job %d", want)
			last = all[want].lane
		}
		require.Len(t, entered(all), 5)
		running, waiting := g.count(batch)
		require.Equal(t, []int{1, 0}, []int{running, waiting})
	})
}

func TestStoredJobsLeaveHeadroom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ slots, stored int }{{1, 1}, {2, 1}, {3, 2}, {4, 3}, {8, 6}, {16, 12}} {
		g := newGate(c.slots, 0.1, 0.05)
		n := 0
		for g.try(background + n%2) {
			n++
		}
		require.Equal(t, c.stored, n, "of %d slots", c.slots)
		for ; g.try(interactive); n++ {
		}
		require.Equal(t, c.slots, n, "the rest is for interactive jobs")
	}
}

func TestAnInteractiveJobLeavesNoRoomForStoredOnes(t *testing.T) {
	t.Parallel()
	g := newGate(4, 0.1, 0.05)
	require.True(t, g.try(interactive))
	require.True(t, g.try(interactive))
	require.Equal(t, 1, g.room(background))
	require.True(t, g.try(background))
	require.Equal(t, 2, g.room(background), "the one that runs, and one to wait")
	require.False(t, g.try(background), "the last slot stays free")
	require.True(t, g.try(interactive))
}

// Interactive jobs without end do not starve the others, however few slots there are.
func TestALaneThatWaitsGetsItsShare(t *testing.T) {
	t.Parallel()
	for _, slots := range []int{1, 2, 8} {
		synctest.Test(t, func(t *testing.T) {
			const rounds = 4000
			g := newGate(slots, 0.1, 0.05)
			var running, got []int
			for range slots {
				require.True(t, g.try(interactive))
				running = append(running, interactive)
			}
			waits := map[int]*entering{}
			for range rounds {
				for lane := range 3 {
					if waits[lane] == nil {
						waits[lane] = queueUp(t, g, nil, lane)[0]
					}
				}
				g.leave(running[0], false)
				running = running[1:]
				synctest.Wait()
				for lane, e := range waits {
					if e != nil && e.in() {
						running, got = append(running, lane), append(got, lane)
						waits[lane] = nil
					}
				}
				require.Len(t, running, slots, "a slot for each that left")
			}
			count := map[int]int{}
			for _, lane := range got {
				count[lane]++
			}
			require.InDelta(t, rounds*0.1, count[background], 2)
			require.InDelta(t, rounds*0.05, count[batch], 2)
			for _, e := range waits {
				if e != nil {
					e.cancel()
				}
			}
		})
	}
}

// Where the server and not the gate bounds the interactive jobs, they have to make way.
func TestALaneGetsItsShareOfALowerLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(8, 0.25, 0.05)
		g.adjust(fits(8, 2, 1, 0))
		require.True(t, g.try(interactive))
		require.True(t, g.try(interactive))
		b := queueUp(t, g, nil, background)
		for range 3 {
			require.Empty(t, entered(b))
			g.leave(interactive, false)
			require.True(t, g.try(interactive))
		}
		g.leave(interactive, false)
		require.True(t, g.try(interactive), "the fourth grant is the last before its turn")
		i := queueUp(t, g, nil, interactive)
		require.Empty(t, entered(i), "it is due")
		g.leave(interactive, false)
		require.Len(t, entered(b), 1)
		require.Empty(t, entered(i), "no third call")
		g.leave(interactive, false)
		require.Len(t, entered(i), 1)
		require.False(t, g.try(interactive), "the provider bears two")
		g.leave(background, false)
		require.True(t, g.try(interactive))
		require.True(t, g.try(interactive), "without stored jobs the server alone bounds them")
	})
}

func TestALaneThatIsDueAndLeavesMakesWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 1, 0.05)
		g.adjust(1, 0)
		require.True(t, g.try(interactive))
		b := queueUp(t, g, nil, background)
		require.True(t, g.try(interactive), "from now on it is due")
		i := queueUp(t, g, nil, interactive)
		require.Empty(t, entered(i))
		b[0].cancel()
		require.Len(t, entered(i), 1)
		require.ErrorIs(t, <-b[0].err, context.Canceled)
	})
}

func TestWhoLeavesTheGateLosesNoSlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 0.1, 0.05)
		quit := make(chan struct{})
		require.True(t, g.try(interactive))
		all := queueUp(t, g, quit, background, interactive, background)
		all[0].cancel()
		synctest.Wait()
		require.ErrorIs(t, <-all[0].err, context.Canceled)
		g.leave(interactive, false)
		synctest.Wait()
		require.NoError(t, <-all[1].err)
		close(quit)
		synctest.Wait()
		require.ErrorIs(t, <-all[2].err, queue.ErrStopped)
		g.leave(interactive, false)
		require.True(t, g.try(batch))
	})
}

// With one slot the next interactive job comes only when the one before has left.
func TestASlotIsKeptForTheNextInteractiveJob(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 0.1, 0.05)
		require.True(t, g.try(interactive))
		b := queueUp(t, g, nil, background)
		g.leave(interactive, true)
		require.Empty(t, entered(b))
		require.True(t, g.try(interactive))
		g.leave(interactive, true)
		time.Sleep(keptFor - 1)
		require.Empty(t, entered(b))
		time.Sleep(time.Nanosecond)
		require.Len(t, entered(b), 1, "none came")
		g.leave(background, false)
		require.True(t, g.try(interactive))
		b = queueUp(t, g, nil, background)
		g.leave(interactive, false)
		require.Len(t, entered(b), 1, "none is there")
	})
}

func TestFits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                         string
		slots, bears, workers, other int
		most, idle                   int
	}{
		{"alone", 8, 8, 1, 0, 8, 6},
		{"more than it bears", 8, 4, 1, 0, 4, 3},
		{"fewer than it bears", 8, 64, 1, 0, 8, 6},
		{"the half", 8, 8, 2, 0, 8, 3},
		{"the other has the half", 8, 8, 2, 4, 4, 3},
		{"the other has nearly all", 8, 8, 2, 7, 4, 1},
		{"the other has all", 8, 8, 2, 8, 4, 0},
		{"more than all", 8, 8, 2, 12, 4, 0},
		{"one for many", 8, 1, 5, 0, 1, 1},
		{"one, and it is taken", 8, 1, 5, 1, 1, 0},
	} {
		most, idle := fits(c.slots, c.bears, c.workers, c.other)
		require.Equal(t, []int{c.most, c.idle}, []int{most, idle}, c.name)
	}
}

// However entries, ends, cancellations and changes meet: there are never more in than slots,
// and no slot is lost.
func TestTheGateCountsRight(t *testing.T) {
	t.Parallel()
	const slots = 5
	g := newGate(slots, 0.1, 0.05)
	var in, entries atomic.Int64
	var all, governing sync.WaitGroup
	over := make(chan struct{})
	governing.Go(func() { // a bound that lets no stored job in does not last
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				g.adjust(slots, slots-1)
			}
		}
	})
	for i := range 24 {
		all.Go(func() {
			for n := range 500 {
				ctx, cancel := context.WithCancel(t.Context())
				if n%3 == 0 {
					go cancel()
				}
				if n%50 == 0 {
					g.adjust(1+rand.IntN(slots), rand.IntN(slots))
				}
				if g.enter(ctx, nil, i%3) == nil {
					entries.Add(1)
					if now := in.Add(1); now > slots {
						t.Errorf("%d are in", now)
					}
					if n%7 == 0 {
						<-time.After(time.Microsecond)
					}
					in.Add(-1)
					g.leave(i%3, n%2 == 0)
				}
				cancel()
				g.adjust(slots, slots-1)
			}
		})
	}
	all.Wait()
	close(over)
	governing.Wait()
	require.Greater(t, entries.Load(), int64(1000))
	require.Zero(t, g.inUse)
	require.Zero(t, g.stored())
	for lane := range 3 {
		running, waiting := g.count(lane)
		require.Zero(t, running+waiting)
	}
}
