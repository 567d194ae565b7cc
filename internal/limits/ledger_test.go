package limits

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestTheLedgerSaysWhatIsSpent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		ledger := map[time.Time]inference.Cost{
			time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC):   60,
			time.Date(1999, 12, 27, 0, 0, 0, 0, time.UTC): 70,
		}
		var mu sync.Mutex
		fails, asked := true, 0
		spentFunc := func(_ context.Context, scope Scope, since time.Time) (inference.Cost, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			if fails {
				return 0, errors.New("no database")
			}
			require.Equal(t, "key:1", scope.ID)
			cost, ok := ledger[since]
			require.True(t, ok, since)
			return cost, nil
		}
		l, _ := run(t, Options{Counters: newReach(s), Spent: spentFunc})
		d := Demand{Scopes: one(Limits{Budget: Budget{Day: 100, Week: 100}}), Cost: 30}
		_, err := l.Reserve(t.Context(), d)
		require.ErrorIs(t, err, ErrUnavailable)
		mu.Lock()
		fails, asked = false, 0
		mu.Unlock()
		time.Sleep(time.Second)
		r := admit(t, l, d)
		refusal := refuse(t, l, d)
		require.Equal(t, "budget.day", refusal.Limit)
		require.Equal(t, gaugeRetry, refusal.RetryAfter, "what is reserved may come back")
		r.Settle(0, 30)
		refusal = refuse(t, l, d)
		require.Equal(t, "budget.week", refusal.Limit)
		require.Equal(t, 48*time.Hour, refusal.RetryAfter.Round(time.Hour))
		require.Equal(t, 2, asked, "each window once")
		mu.Lock()
		ledger[time.Date(1999, 12, 27, 0, 0, 0, 0, time.UTC)] = 109 // what a killed process could not tell
		mu.Unlock()
		admit(t, l, Demand{Scopes: d.Scopes}).Release()
		for range 4 {
			time.Sleep(time.Minute)
			admit(t, l, Demand{Scopes: d.Scopes}).Release()
		}
		time.Sleep(time.Second)
		require.Equal(t, int64(109), s.record(t, "key:1").spent[week].amount)
		require.Equal(t, int64(90), s.record(t, "key:1").spent[day].amount, "the ledger may lag")
	})
}

// A process that is killed leaves the money reserved that it had in hand. What became of it
// the ledger knows: one that has started since asks for that, before it is not reserved any
// more.
func TestTheLedgerSaysWhatAKilledProcessHadInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		var spent atomic.Int64
		ledger := func(context.Context, Scope, time.Time) (inference.Cost, error) {
			return inference.Cost(spent.Load()), nil
		}
		way := newReach(s)
		killed, _ := run(t, Options{Counters: way, Spent: ledger})
		scopes := one(Limits{Budget: Budget{Month: 100}})
		admit(t, killed, Demand{Scopes: scopes, Cost: 30}).Settle(0, 30)
		admit(t, killed, Demand{Scopes: scopes, Cost: 40})
		time.Sleep(time.Second)
		close(way.cut)
		spent.Store(70)
		l, _ := run(t, Options{Counters: newReach(s), Spent: ledger})
		for time.Sleep(holderFor); s.record(t, "key:1").total().money > 0; time.Sleep(10 * time.Second) {
			refuse(t, l, Demand{Scopes: scopes, Cost: 40})
		}
		require.EqualValues(t, 70, s.record(t, "key:1").spent[month].amount)
		refuse(t, l, Demand{Scopes: scopes, Cost: 40})
	})
}

// At midnight, on Monday and on the first of a month the records know that nothing was spent
// yet: requests pass while the database is away, and what it says later counts.
func TestAWindowBeginsWithoutTheLedger(t *testing.T) {
	t.Parallel()
	for name, silent := range map[string]bool{"it is away": false, "it does not answer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var away atomic.Bool
				var spent atomic.Int64
				ledger := func(ctx context.Context, _ Scope, _ time.Time) (inference.Cost, error) {
					if away.Load() && silent {
						<-ctx.Done()
					}
					if away.Load() {
						return 0, errors.New("away")
					}
					return inference.Cost(spent.Load()), nil
				}
				s := newShelf()
				scopes := one(Limits{Budget: Budget{Day: 100, Week: 1000, Month: 1000}})
				another := []Scope{{ID: "key:2", Limits: scopes[0].Limits}}
				month := time.Date(2000, 5, 1, 0, 0, 0, 0, time.UTC) // a Monday
				time.Sleep(time.Until(month.Add(-time.Minute)))
				l, _ := run(t, Options{Counters: newReach(s), Spent: ledger})
				admit(t, l, Demand{Scopes: another, Cost: 90}).Settle(0, 90)
				admit(t, l, Demand{Scopes: scopes, Cost: 90}).Settle(0, 90)
				refuse(t, l, Demand{Scopes: scopes, Cost: 20})
				away.Store(true)
				time.Sleep(time.Until(month.Add(time.Second)))
				before := time.Now()
				admit(t, l, Demand{Scopes: scopes, Cost: 60}).Settle(0, 60)
				require.LessOrEqual(t, time.Since(before), patience)
				counts, err := l.Count(t.Context(), another)
				require.NoError(t, err)
				require.Equal(t, Budget{}, counts[0].Spent)
				before = time.Now()
				admit(t, l, Demand{Scopes: another, Cost: 60}).Release()
				require.Zero(t, time.Since(before), "not every scope waits for nothing")
				refuse(t, l, Demand{Scopes: scopes, Cost: 60})
				other, _ := run(t, Options{Counters: newReach(s), Spent: ledger})
				refuse(t, other, Demand{Scopes: scopes, Cost: 60})
				admit(t, other, Demand{Scopes: scopes, Cost: 10}).Release()
				time.Sleep(ledgerFor)
				away.Store(false)
				spent.Store(95) // it knows of a process that was killed
				for range 8 {   // more often than a scope is forgotten
					time.Sleep(30 * time.Second)
					admit(t, l, Demand{Scopes: scopes}).Release()
				}
				time.Sleep(time.Second)
				for w := range windows {
					require.EqualValues(t, 95, s.record(t, "key:1").spent[w].amount, windowNames[w])
				}
			})
		})
	}
}

// A scope that nothing was spent of yet knows so at midnight, as long as it is in use.
func TestAWindowWithoutSpendingIsKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		s := newShelf()
		l, _ := run(t, Options{Counters: newReach(s), Spent: func(context.Context, Scope, time.Time) (inference.Cost, error) {
			if asked.Add(1) > 1 {
				return 0, errors.New("away")
			}
			return 0, nil
		}})
		d := Demand{Scopes: one(Limits{Budget: Budget{Day: 100}}), Cost: 60}
		time.Sleep(23*time.Hour + 59*time.Minute + 59*time.Second)
		r := admit(t, l, d)
		refuse(t, l, d)
		time.Sleep(2 * time.Second)
		require.Equal(t, "budget.day", refuse(t, l, d).Limit, "what runs is reserved on")
		r.Release()
		admit(t, l, d).Release()
		require.Less(t, asked.Load(), int64(4), "it is not asked again at once")
		time.Sleep(5 * time.Minute)
		require.Nil(t, s.record(t, "key:1"), "a record that says nothing goes")
	})
}

// A holder may have had no budget for a while, so that its record does not know what was
// spent since: it is asked for as long as a request can wait.
func TestABudgetThatComesBackAsksTheLedger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var spent atomic.Int64
		s := newShelf()
		l, _ := run(t, Options{Counters: newReach(s), Spent: func(context.Context, Scope, time.Time) (inference.Cost, error) {
			time.Sleep(patience / 3)
			return inference.Cost(spent.Load()), nil
		}})
		d := Demand{Scopes: one(Limits{Budget: Budget{Day: 100}}), Cost: 60}
		admit(t, l, d).Settle(0, 60)
		time.Sleep(36 * time.Hour)
		spent.Store(70)
		counts, err := l.Count(t.Context(), d.Scopes)
		require.NoError(t, err)
		require.EqualValues(t, 70, counts[0].Spent.Day)
		refuse(t, l, d)
		admit(t, l, Demand{Scopes: d.Scopes, Cost: 30}).Release()
	})
}

// A holder may have had no limits for a part of a window, so that nothing of what it spent
// then was told to its record, whether its scope was forgotten meanwhile or not.
func TestABudgetThatComesBackInItsWindowCountsWhatWasSpent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		away   time.Duration
		budget inference.Cost
	}{
		"another budget, soon":   {budgetEvery + time.Second, 120},
		"another budget, later":  {5 * time.Minute, 120},
		"the same budget, later": {5 * time.Minute, 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var spent, asked atomic.Int64
				s := newShelf()
				l, _ := run(t, Options{Counters: newReach(s), Spent: func(context.Context, Scope, time.Time) (inference.Cost, error) {
					asked.Add(1)
					return inference.Cost(spent.Load()), nil
				}})
				admit(t, l, Demand{Scopes: one(Limits{Budget: Budget{Month: 100}}), Cost: 30}).Settle(0, 30)
				time.Sleep(c.away)
				spent.Store(90)
				asked.Store(0)
				d := Demand{Scopes: one(Limits{Budget: Budget{Month: c.budget}}), Cost: c.budget - 80}
				require.Equal(t, "budget.month", refuse(t, l, d).Limit)
				d.Cost = 1
				for range 20 {
					admit(t, l, d).Release()
					time.Sleep(time.Second)
				}
				require.EqualValues(t, 90, s.record(t, "key:1").spent[month].amount)
				require.EqualValues(t, 1, asked.Load(), "it is asked once")
			})
		})
	}
}

// Callers of one scope may have budgets of their own, out of tokens that say different things:
// the ledger is asked for one that was not asked for last, but not all the time.
func TestBudgetsThatTakeTurnsAskTheLedgerSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		l, _ := run(t, Options{Counters: newReach(newShelf()), Spent: func(context.Context, Scope, time.Time) (inference.Cost, error) {
			asked.Add(1)
			return 0, nil
		}})
		for i := range 300 {
			admit(t, l, Demand{Scopes: one(Limits{Budget: Budget{Month: inference.Cost(1000 + i%2)}}), Cost: 1}).Release()
			time.Sleep(time.Second)
		}
		require.LessOrEqual(t, asked.Load(), int64(11), "every 30 seconds in five minutes")
	})
}

// Also a budget that changes right after the ledger was asked is asked for in the end.
func TestABudgetThatChangesAtOnceIsAskedForSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var spent atomic.Int64
		s := newShelf()
		l, _ := run(t, Options{Counters: newReach(s), Spent: func(context.Context, Scope, time.Time) (inference.Cost, error) {
			return inference.Cost(spent.Load()), nil
		}})
		admit(t, l, Demand{Scopes: one(Limits{Budget: Budget{Month: 100}}), Cost: 30}).Settle(0, 30)
		time.Sleep(time.Second)
		spent.Store(90)
		for began := time.Now(); time.Since(began) <= budgetEvery; time.Sleep(time.Second) {
			admit(t, l, Demand{Scopes: one(Limits{Budget: Budget{Month: 120}}), Cost: 1}).Release()
		}
		time.Sleep(time.Second)
		require.EqualValues(t, 90, s.record(t, "key:1").spent[month].amount)
	})
}

// An answer for the budget there was says nothing of a window that came back while it was
// on its way.
func TestAnAnswerForAnotherBudgetIsNotEnough(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		var spent atomic.Int64
		s := newShelf()
		l, _ := run(t, Options{Counters: newReach(s), Spent: func(context.Context, Scope, time.Time) (inference.Cost, error) {
			if slow.Load() {
				time.Sleep(2 * patience)
			}
			return inference.Cost(spent.Load()), nil
		}})
		both := Demand{Scopes: one(Limits{Budget: Budget{Day: 1000, Month: 100}}), Cost: 10}
		admit(t, l, both).Settle(0, 10)
		time.Sleep(budgetEvery + time.Second)
		slow.Store(true)
		spent.Store(95)
		admit(t, l, Demand{Scopes: one(Limits{Budget: Budget{Day: 1000}}), Cost: 10}).Release() // nobody waits for all of it
		admit(t, l, both).Release()
		for range 3 {
			time.Sleep(time.Second)
			admit(t, l, Demand{Scopes: both.Scopes}).Release()
		}
		refuse(t, l, both)
		require.EqualValues(t, 95, s.record(t, "key:1").spent[month].amount)
	})
}

// A ledger of millions of rows takes longer to sum them up than a request waits.
func TestASlowLedgerIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		l, _ := run(t, Options{Counters: newReach(newShelf()), Spent: func(ctx context.Context, _ Scope, _ time.Time) (inference.Cost, error) {
			asked.Add(1)
			select {
			case <-time.After(5 * time.Second):
				return 60, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}})
		d := Demand{Scopes: one(Limits{Budget: Budget{Month: 100}}), Cost: 30}
		for range 4 {
			_, err := l.Reserve(t.Context(), d)
			require.ErrorIs(t, err, ErrUnavailable)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
		admit(t, l, d).Settle(0, 30)
		require.EqualValues(t, 1, asked.Load())
		refuse(t, l, d)
		time.Sleep(ledgerEvery) // it is asked again, and nobody waits for that
		d.Cost = 10
		admit(t, l, d).Release()
	})
}

func TestASlowLedgerHoldsUpNoStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, stop := run(t, Options{Counters: newReach(newShelf()), Spent: func(ctx context.Context, _ Scope, _ time.Time) (inference.Cost, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}})
		_, err := l.Reserve(t.Context(), Demand{Scopes: one(Limits{Budget: Budget{Month: 100}}), Cost: 30})
		require.ErrorIs(t, err, ErrUnavailable)
		began := time.Now()
		stop()
		require.Less(t, time.Since(began), 2*goodbyeFor)
	})
}
