package limits

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// doomed starts a limiter that can be killed, or stopped.
func doomed(t *testing.T, s *shelf) (l *Limiter, kill, stop func()) {
	t.Helper()
	way := newReach(s)
	l, stop = run(t, Options{Counters: way, Ingress: "doomed"})
	return l, func() { close(way.cut) }, stop
}

// calling is a demand that goes on when its process is gone, for two minutes at most.
func calling(l Limits) Demand {
	return Demand{Scopes: one(l), Tokens: 10, Cost: 5, Queued: true, Ends: time.Now().Add(2 * time.Minute)}
}

// fits requires that so many requests fit, and no more, and lets them go.
func fits(t *testing.T, l *Limiter, d Demand, many int) {
	t.Helper()
	d.Ends = time.Time{}
	var all []Reservation
	for range many {
		all = append(all, admit(t, l, d))
	}
	require.Equal(t, "concurrent", refuse(t, l, d).Limit)
	for _, r := range all {
		r.Release()
	}
}

func TestCallsOfAKilledProcessStayUntilTheyHaveEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, kill, _ := doomed(t, s)
		other := start(t, s)
		d := calling(Limits{Concurrent: 4})
		other.Ended("nobody", d.Scopes)
		admit(t, l, d)
		admit(t, l, d)
		looked := d
		looked.Ends = time.Time{} // whose end others see to
		admit(t, l, looked)
		begun := time.Now()
		kill()
		fits(t, other, d, 1)
		time.Sleep(holderFor + time.Second)
		fits(t, other, d, 2)
		time.Sleep(2 * leaveAfter)
		c, err := other.Count(t.Context(), d.Scopes)
		require.NoError(t, err)
		require.Equal(t, []int64{2, 0, 0}, []int64{c[0].Concurrent, c[0].Queued, int64(c[0].Processes)})
		time.Sleep(time.Minute - time.Since(begun))
		fits(t, other, d, 2)
		other.Ended("doomed", d.Scopes)
		time.Sleep(time.Second)
		fits(t, other, d, 3)
		time.Sleep(2*time.Minute - time.Second - time.Since(begun))
		fits(t, other, d, 3)
		time.Sleep(2 * time.Second)
		fits(t, other, d, 4)
		time.Sleep(moneyGrace)
		c, err = other.Count(t.Context(), d.Scopes)
		require.NoError(t, err)
		require.Equal(t, Count{Ends: c[0].Ends}, c[0], "nothing is left")
	})
}

func TestACallMayEndBeforeItsProcessIsKnownToBeGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, kill, _ := doomed(t, s)
		other := start(t, s)
		d := calling(Limits{Concurrent: 2})
		admit(t, l, d)
		admit(t, l, d)
		kill()
		time.Sleep(3 * time.Second)
		other.Ended("doomed", d.Scopes)
		time.Sleep(6 * time.Second)
		fits(t, other, d, 0)
		time.Sleep(7 * time.Second)
		fits(t, other, d, 1)
		for range 3 { // more than it has
			other.Ended("doomed", d.Scopes)
		}
		r := admit(t, other, d)
		time.Sleep(time.Second)
		fits(t, other, d, 1)
		r.Release()
	})
}

func TestNothingEndsForAProcessThatLives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, kill, _ := doomed(t, s)
		other := start(t, s)
		d := calling(Limits{Concurrent: 1})
		admit(t, l, d)
		for range 4 {
			other.Ended("doomed", d.Scopes)
			l.Ended("doomed", d.Scopes)
			time.Sleep(10 * time.Second)
			fits(t, other, d, 0)
		}
		time.Sleep(20 * time.Second) // it was heard of since
		kill()
		time.Sleep(20 * time.Second)
		fits(t, other, d, 0)
		other.Ended("doomed", d.Scopes)
		time.Sleep(time.Second)
		fits(t, other, d, 1)
	})
}

func TestAProcessThatStopsLeavesItsCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, _, stop := doomed(t, s)
		other := start(t, s)
		d := calling(Limits{Concurrent: 3, Queued: 3, TokensPerMinute: 1000, Budget: Budget{Day: 100}})
		first, second, third := admit(t, l, d), admit(t, l, d), admit(t, l, d)
		first.Settle(10, 5)
		second.Started()
		second.Abandon()
		second.Settle(0, 0) // nothing
		third.Abandon()
		stop()
		rec := s.record(t, "key:1")
		require.Equal(t, total{requests: 3, tokens: 30, gauges: gauges{concurrent: 2, calls: 2}}, rec.total())
		require.Equal(t, int64(15), rec.spent[day].amount)
		require.LessOrEqual(t, rec.holders[0].end, time.Now().UnixMilli(), "it is known to be gone")
		fits(t, other, d, 1)
		other.Ended("doomed", d.Scopes)
		time.Sleep(time.Second)
		fits(t, other, d, 2)
		time.Sleep(2 * time.Minute)
		fits(t, other, d, 3)
	})
}

func TestWhoAbandonsNothingThatGoesOnLeavesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, _, stop := doomed(t, s)
		d := calling(Limits{Concurrent: 3, TokensPerMinute: 1000})
		admit(t, l, d).Settle(7, 0)
		d.Ends = time.Time{}
		admit(t, l, d).Abandon()
		stop()
		require.Equal(t, total{requests: 2, tokens: 17}, s.record(t, "key:1").total())
		require.Empty(t, s.record(t, "key:1").holders)
	})
}

func TestNothingOutlivesAProcessThatIsAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		l, _ := run(t, Options{Counters: way, Ingress: "doomed", Alone: true})
		other := start(t, s)
		d := calling(Limits{Concurrent: 2})
		admit(t, l, d)
		admit(t, l, d).Abandon()
		close(way.cut)
		time.Sleep(holderFor + time.Second)
		fits(t, other, d, 2)
	})
}

// The end of a call is told once, whatever becomes of the first try.
func TestAnEndIsToldOnce(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(way *reach){
		"out of reach":        func(way *reach) { way.down.Store(true) },
		"not made, no answer": func(way *reach) { way.late.Store(true) },
		"made, no answer": func(way *reach) {
			way.late.Store(true)
			time.AfterFunc(150*time.Millisecond, func() {
				way.mu.Lock()
				defer way.mu.Unlock()
				way.lost()
				way.lost = nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newShelf()
				l, kill, _ := doomed(t, s)
				way := newReach(s)
				other, _ := run(t, Options{Counters: way})
				d := calling(Limits{Concurrent: 3})
				for range 3 {
					admit(t, l, d)
				}
				kill()
				time.Sleep(holderFor + time.Second)
				fits(t, other, d, 0)
				fail(way)
				other.Ended("doomed", d.Scopes)
				time.Sleep(3 * time.Second)
				way.down.Store(false)
				time.Sleep(3 * time.Second)
				fits(t, other, d, 1)
			})
		})
	}
}

// Whoever was told does not remember whether it was, when that is known no more.
func TestAnEndIsNotToldAgainLongAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, kill, _ := doomed(t, s)
		way := newReach(s)
		other, _ := run(t, Options{Counters: way})
		third := start(t, s)
		d := calling(Limits{Concurrent: 3})
		for range 3 {
			admit(t, l, d)
		}
		kill()
		time.Sleep(holderFor + time.Second)
		fits(t, other, d, 0)
		way.late.Store(true)
		other.Ended("doomed", d.Scopes)
		time.Sleep(120 * time.Millisecond)
		way.down.Store(true)
		way.mu.Lock()
		way.lost()
		way.lost = nil
		way.mu.Unlock()
		time.Sleep(holderFor + time.Second)
		fits(t, third, d, 1)
		time.Sleep(time.Second)
		way.down.Store(false)
		time.Sleep(2 * time.Second)
		fits(t, third, d, 1)
	})
}

// Nobody else asks for the scope: the record that is known of it is from before the call.
func TestAnEndIsToldOfAScopeThatNobodyAsksFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, kill, _ := doomed(t, s)
		other := start(t, s)
		d := calling(Limits{Concurrent: 3})
		fits(t, other, d, 3)
		time.Sleep(2 * leaveAfter)
		for range 3 {
			admit(t, l, d)
		}
		time.Sleep(time.Second)
		kill()
		other.Ended("doomed", d.Scopes)
		time.Sleep(holderFor + time.Second)
		require.EqualValues(t, 2, s.record(t, "key:1").total().calls, "which had not been known to be gone")
		other.Ended("doomed", d.Scopes)
		time.Sleep(time.Second)
		require.EqualValues(t, 1, s.record(t, "key:1").total().calls)
	})
}
