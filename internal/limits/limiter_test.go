package limits

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFourProcessesInTurnAdmitEachOfALimitAndNoMore(t *testing.T) {
	t.Parallel()
	for name, limits := range map[string]Limits{
		"requests":   {RequestsPerMinute: 10},
		"tokens":     {TokensPerMinute: 1000},
		"concurrent": {Concurrent: 10},
		"queued":     {Queued: 10},
		"budget":     {Budget: Budget{Day: 10}},
		"all":        {RequestsPerMinute: 10, TokensPerMinute: 1000, Concurrent: 10, Queued: 10, Budget: Budget{10, 10, 10}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newShelf()
				var four []*Limiter
				for range 4 {
					four = append(four, start(t, s))
				}
				d := Demand{Scopes: one(limits), Tokens: 100, Cost: 1, Queued: true}
				for i := range 10 {
					admit(t, four[i%4], d)
				}
				before := time.Now()
				for _, l := range four {
					require.NotZero(t, refuse(t, l, d).RetryAfter)
				}
				require.Less(t, time.Since(before), 4*300*time.Millisecond)
			})
		})
	}
}

func TestWhoComesOneAfterTheOtherIsOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		var four []*Limiter
		for range 4 {
			way := newReach(s)
			way.delay = 3 * time.Millisecond
			l, _ := run(t, Options{Counters: way})
			four = append(four, l)
		}
		d := Demand{Scopes: one(Limits{Concurrent: 1, Queued: 1}), Queued: true}
		began := time.Now()
		for i := range 100 {
			r := admit(t, four[i%4], d)
			refuse(t, four[(i+1)%4], d)
			r.Settle(1, 1)
		}
		require.Less(t, time.Since(began), 100*(lookFor+50*time.Millisecond))
	})
}

func TestAWindowSlides(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, other := start(t, s), start(t, s)
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 2})}
		began := time.Now()
		admit(t, l, d).Settle(0, 0)
		time.Sleep(30 * time.Second)
		admit(t, other, d).Settle(0, 0)
		wait := refuse(t, l, d).RetryAfter
		require.InDelta(t, 30*time.Second, wait, float64(time.Second))
		time.Sleep(wait - 20*time.Millisecond)
		require.NotZero(t, refuse(t, other, d).RetryAfter)
		time.Sleep(40 * time.Millisecond)
		admit(t, other, d).Settle(0, 0)
		require.Greater(t, time.Since(began), time.Minute)
		require.InDelta(t, 30*time.Second, refuse(t, l, d).RetryAfter, float64(time.Second))
	})
}

func TestWhatIsNotTakenIsGivenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, other := start(t, s), start(t, s)
		limits := Limits{RequestsPerMinute: 100, TokensPerMinute: 1000, Concurrent: 5, Queued: 5, Budget: Budget{Day: 100}}
		d := Demand{Scopes: one(limits), Tokens: 1000, Cost: 100, Queued: true}
		r := admit(t, l, d)
		require.Equal(t, "tokens_per_minute", refuse(t, other, d).Limit)
		r.Settle(400, 40)
		r.Settle(1000, 100) // nothing
		r.Release()
		time.Sleep(200 * time.Millisecond)
		d.Tokens, d.Cost = 600, 60
		second := admit(t, other, d)
		second.Started()
		second.Release()
		time.Sleep(200 * time.Millisecond)
		third := admit(t, l, d)
		third.Settle(700, 70) // more than was reserved
		time.Sleep(200 * time.Millisecond)
		left := other.Standing(d.Scopes)
		require.Equal(t, int64(1000), left.Tokens.Limit)
		d.Tokens, d.Cost = 1, 0
		require.Equal(t, "tokens_per_minute", refuse(t, other, d).Limit)
		rec := s.record(t, "key:1")
		require.Equal(t, total{requests: 2, tokens: 1100}, rec.total())
		require.Equal(t, int64(110), rec.spent[day].amount)
		require.Equal(t, Left{100, 98, other.Standing(d.Scopes).Requests.Reset}, other.Standing(d.Scopes).Requests)
		require.Zero(t, other.Standing(d.Scopes).Tokens.Remaining)
		time.Sleep(2 * leaveAfter)
		require.Empty(t, s.record(t, "key:1").holders)
		time.Sleep(2 * time.Minute)
		rec = s.record(t, "key:1")
		require.Equal(t, total{}, rec.total())
		require.Empty(t, rec.holders)
		require.Equal(t, int64(110), rec.spent[day].amount, "money is kept")
		require.Zero(t, l.Scopes())
	})
}

func TestARecordThatSaysNothingIsRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, other := start(t, s), start(t, s)
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 100, Concurrent: 3}), Tokens: 5}
		a, b := admit(t, l, d), admit(t, other, d)
		time.Sleep(time.Minute)
		third := start(t, s)
		last := admit(t, third, d)
		require.Equal(t, "concurrent", refuse(t, third, d).Limit, "the two others are not forgotten")
		last.Release()
		a.Settle(1, 1)
		b.Settle(1, 1)
		time.Sleep(leaveAfter + 3*sweepEvery/2)
		way := newReach(s)
		killed, _ := run(t, Options{Counters: way})
		admit(t, killed, d)
		close(way.cut)
		time.Sleep(2 * time.Minute)
		require.Nil(t, s.record(t, "key:1"))
		require.Zero(t, l.Scopes()+other.Scopes())
	})
}

func TestAKilledProcessGivesItsShareBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		killed, _ := run(t, Options{Counters: way})
		l := start(t, s)
		d := Demand{Scopes: one(Limits{Concurrent: 3, Queued: 2, Budget: Budget{Week: 10}}), Cost: 4, Queued: true}
		admit(t, killed, d)
		admit(t, killed, d).Started()
		time.Sleep(200 * time.Millisecond)
		close(way.cut)
		require.Equal(t, "budget.week", refuse(t, l, d).Limit)
		free := d
		free.Cost = 0
		admit(t, l, free)
		require.NotNil(t, refuse(t, l, free))
		time.Sleep(holderFor + time.Second)
		admit(t, l, free).Release()
		require.Equal(t, "budget.week", refuse(t, l, d).Limit, "the ledger may not know yet")
		time.Sleep(moneyGrace)
		admit(t, l, d)
	})
}

func TestAllScopesOrNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, other := start(t, s), start(t, s)
		d := Demand{Tokens: 10, Scopes: []Scope{
			{ID: "key:1", Limits: Limits{RequestsPerMinute: 5}},
			{ID: "tenant:1", Limits: Limits{TokensPerMinute: 30}},
			{ID: "model:1", Limits: Limits{Concurrent: 2}},
			{ID: "open", Limits: Limits{}},
		}}
		admit(t, l, d)
		admit(t, other, d)
		require.Equal(t, "concurrent", refuse(t, l, d).Limit)
		time.Sleep(time.Second)
		require.Equal(t, int64(2), s.record(t, "key:1").total().requests)
		require.Equal(t, int64(20), s.record(t, "tenant:1").total().tokens)
		require.Nil(t, s.record(t, "open"))
		d.Tokens = 31
		refusal := refuse(t, l, d)
		require.Equal(t, Refusal{Scope: "tenant:1", Limit: "tokens_per_minute", Most: 30, Asked: 31}, *refusal, "never is longest")
		d.Tokens = 20
		refusal = refuse(t, l, d)
		require.Equal(t, "tenant:1", refusal.Scope, "a minute is longer than a guess")
		require.Greater(t, refusal.RetryAfter, 50*time.Second)
		st := l.Standing(d.Scopes)
		require.Equal(t, int64(3), st.Requests.Remaining)
		require.Equal(t, int64(10), st.Tokens.Remaining)
	})
}

func TestCountersOutOfReachAreSaidSoSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		l, _ := run(t, Options{Counters: way})
		limits := Limits{RequestsPerMinute: 100, Concurrent: 50, Budget: Budget{Month: 1000}}
		d := Demand{Scopes: one(limits), Tokens: 3, Cost: 7}
		r := admit(t, l, d)
		way.down.Store(true)
		for range 20 {
			before := time.Now()
			_, err := l.Reserve(t.Context(), d)
			require.ErrorIs(t, err, ErrUnavailable)
			require.LessOrEqual(t, time.Since(before), patience)
		}
		way.down.Store(false)
		way.faults.Store(100)
		time.Sleep(time.Second)
		before := time.Now()
		_, err := l.Reserve(t.Context(), d)
		require.ErrorIs(t, err, ErrUnavailable)
		require.LessOrEqual(t, time.Since(before), lookFor+2*patience)
		before = time.Now()
		for range 50 {
			_, err := l.Reserve(t.Context(), d)
			require.ErrorIs(t, err, ErrUnavailable)
		}
		require.LessOrEqual(t, time.Since(before), lookFor+2*patience, "not each of them waits for nothing")
		r.Settle(2, 5)
		l.Charge(d) // let pass although nobody could count it
		time.Sleep(5 * time.Second)
		way.faults.Store(0)
		time.Sleep(5 * time.Second)
		rec := s.record(t, "key:1")
		require.Equal(t, total{requests: 2, tokens: 5}, rec.total())
		require.Equal(t, int64(12), rec.spent[month].amount)
		admit(t, l, d).Release()
	})
}

func TestAPlentyCostsNoRoundTrip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		way.delay = 5 * time.Millisecond
		var swaps atomic.Int64
		l, _ := run(t, Options{Counters: way, Swapped: func(SwapResult, time.Duration) { swaps.Add(1) }})
		limits := Limits{RequestsPerMinute: 1_000_000, TokensPerMinute: 1_000_000_000, Concurrent: 10_000, Queued: 10_000, Budget: Budget{Day: 1 << 40}}
		d := Demand{Scopes: one(limits), Tokens: 1000, Cost: 1000, Queued: true}
		waited := 0
		const n = 5000
		for range n {
			before := time.Now()
			r := admit(t, l, d)
			if time.Since(before) > 0 {
				waited++
			}
			r.Started()
			r.Settle(900, 900)
			time.Sleep(time.Millisecond)
		}
		require.Less(t, waited, n/100)
		require.Less(t, swaps.Load(), int64(n/25))
		time.Sleep(time.Second)
		rec := s.record(t, "key:1")
		require.Equal(t, total{requests: n, tokens: 900 * n}, rec.total())
		require.Equal(t, int64(900*n), rec.spent[day].amount)
	})
}

func TestARequestThatIsGivenUpLeavesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		way.delay = 40 * time.Millisecond
		l, _ := run(t, Options{Counters: way})
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 100, Concurrent: 100, Budget: Budget{Day: 1000}}), Tokens: 3, Cost: 2}
		for i := range 30 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*3*time.Millisecond)
			r, err := l.Reserve(ctx, d)
			if err == nil {
				r.Release()
			} else {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			cancel()
		}
		time.Sleep(2 * time.Second)
		require.Equal(t, total{}, s.record(t, "key:1").total())
	})
}

func TestAGoodbyeLeavesNothingInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l, stop := run(t, Options{Counters: newReach(s)})
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 10_000, Concurrent: 1000}), Tokens: 3}
		for range 100 {
			admit(t, l, d).Settle(2, 0)
			time.Sleep(time.Millisecond)
		}
		stop()
		rec := s.record(t, "key:1")
		require.Equal(t, total{requests: 100, tokens: 200}, rec.total())
		require.Empty(t, rec.holders)
		_, err := l.Reserve(t.Context(), d)
		require.ErrorIs(t, err, ErrUnavailable)
	})
}
