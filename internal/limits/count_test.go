package limits

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestEverybodySeesTheSameCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		spent := func(context.Context, Scope, time.Time) (inference.Cost, error) { return 40, nil }
		l, _ := run(t, Options{Counters: newReach(s), Spent: spent})
		way := newReach(s)
		other, _ := run(t, Options{Counters: way, Spent: spent})
		scopes := one(Limits{RequestsPerMinute: 100, TokensPerMinute: 10_000, Concurrent: 9, Queued: 9, Budget: Budget{Week: 100}})
		count := func() Count {
			time.Sleep(time.Second)
			all, err := l.Count(t.Context(), scopes)
			require.NoError(t, err)
			stranger, stop := run(t, Options{Counters: newReach(s), Spent: spent})
			again, err := stranger.Count(t.Context(), scopes)
			require.NoError(t, err)
			stop()
			again[0].Requests.Reset, again[0].Tokens.Reset = all[0].Requests.Reset, all[0].Tokens.Reset // a moment later
			require.Equal(t, all[0].Requests, again[0].Requests, "also who has never heard of the scope")
			require.Equal(t, []inference.Cost{all[0].Reserved, all[0].Spent.Week}, []inference.Cost{again[0].Reserved, again[0].Spent.Week})
			return all[0]
		}
		nothing := count()
		require.Equal(t, Count{Ends: nothing.Ends, Spent: Budget{Week: 40}}, nothing, "the ledger knows of what no record does")
		require.Equal(t, time.Date(2000, 1, 3, 0, 0, 0, 0, time.UTC), nothing.Ends.Week, "a Monday")

		d := Demand{Scopes: scopes, Tokens: 50, Cost: 8, Queued: true}
		first, second := admit(t, l, d), admit(t, other, d)
		second.Started()
		c := count()
		require.Equal(t, []int64{2, 100, 2, 1, 2}, []int64{c.Requests.Used, c.Tokens.Used, c.Concurrent, c.Queued, int64(c.Processes)})
		require.InDelta(t, time.Minute.Seconds(), c.Tokens.Reset.Seconds(), 3)
		require.Equal(t, []inference.Cost{16, 0, 40}, []inference.Cost{c.Reserved, c.Orphaned, c.Spent.Week})

		first.Settle(20, 3)
		c = count()
		require.Equal(t, []int64{2, 70, 1, 0}, []int64{c.Requests.Used, c.Tokens.Used, c.Concurrent, c.Queued})
		require.Equal(t, []inference.Cost{8, 43}, []inference.Cost{c.Reserved, c.Spent.Week})

		close(way.cut)
		time.Sleep(holderFor)
		c = count()
		require.Equal(t, []int64{2, 0, 0}, []int64{c.Requests.Used, c.Concurrent, int64(c.Processes)}, "a killed process holds nothing")
		require.Equal(t, []inference.Cost{8, 8}, []inference.Cost{c.Reserved, c.Orphaned}, "but money")
		require.InDelta(t, moneyGrace.Seconds(), time.Until(c.Until).Seconds(), 5)
		time.Sleep(moneyGrace)
		c = count()
		require.Equal(t, Count{Ends: c.Ends, Spent: Budget{Week: 43}}, c)
	})
}

func TestCountsOutOfReach(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		way := newReach(newShelf())
		l, _ := run(t, Options{Counters: way})
		scopes := one(Limits{Concurrent: 1})
		_, err := l.Count(t.Context(), scopes)
		require.NoError(t, err)
		way.down.Store(true)
		_, err = l.Count(t.Context(), scopes)
		require.ErrorIs(t, err, ErrUnavailable)
		way.down.Store(false)
		way.exact.Store(int64(time.Hour))
		begun := time.Now()
		_, err = l.Count(t.Context(), scopes)
		require.ErrorIs(t, err, ErrUnavailable)
		require.Equal(t, countPatience, time.Since(begun), "no longer than that")
		close(way.cut)
	})
}
