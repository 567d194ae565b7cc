package limits

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// What a killed process had in hand stays in hand with the one that takes it over, beside its
// own share until that is gone. By the minute nothing counts twice.
func TestWhatIsAdoptedStaysInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		killed, _ := run(t, Options{Counters: way})
		l, other := start(t, s), start(t, s)
		scopes := one(Limits{RequestsPerMinute: 100, TokensPerMinute: 10_000, Concurrent: 2, Budget: Budget{Day: 100}})
		d := Demand{Scopes: append(scopes, Scope{ID: "key:1/models:free"}), Tokens: 50, Cost: 30}
		count := func() []int64 {
			t.Helper()
			time.Sleep(time.Second)
			all, err := l.Count(t.Context(), scopes)
			require.NoError(t, err)
			c := all[0]
			return []int64{c.Requests.Used, c.Tokens.Used, c.Concurrent, int64(c.Reserved), int64(c.Spent.Day)}
		}
		admit(t, killed, d)
		admit(t, killed, d)
		close(way.cut)
		first, second := l.Adopt(d), l.Adopt(d)
		require.Equal(t, []int64{2, 100, 4, 120, 0}, count(), "with that of the killed one")
		time.Sleep(holderFor)
		require.Equal(t, []int64{2, 100, 2, 120, 0}, count())
		require.Equal(t, "concurrent", refuse(t, other, Demand{Scopes: scopes}).Limit)
		time.Sleep(moneyGrace)
		require.Equal(t, []int64{0, 0, 2, 60, 0}, count())
		require.Equal(t, "budget.day", refuse(t, other, Demand{Scopes: one(Limits{Budget: Budget{Day: 100}}), Cost: 41}).Limit)

		first.Settle(7, 3)
		first.Release() // nothing
		require.Equal(t, []int64{0, 7, 1, 30, 3}, count())
		second.Release()
		second.Settle(7, 3) // nothing
		require.Equal(t, []int64{0, 7, 0, 0, 3}, count())
		admit(t, other, d).Settle(50, inference.Cost(30))
	})
}

// Whoever comes right after what was adopted is asked with it, whatever the record says.
func TestWhatIsAdoptedCountsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := start(t, newShelf())
		d := Demand{Scopes: one(Limits{Concurrent: 2})}
		l.Adopt(d)
		third := l.Adopt(d)
		l.Adopt(d) // more than fit
		require.Equal(t, "concurrent", refuse(t, l, d).Limit)
		third.Release()
		require.Equal(t, "concurrent", refuse(t, l, d).Limit)
	})
}
