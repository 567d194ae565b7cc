package limits

import (
	"context"
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAMinuteBeginsWhenTheRequestIsAdmitted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		slow := newReach(s)
		slow.exact.Store(int64(120 * time.Millisecond))
		l, _ := run(t, Options{Counters: slow})
		other := start(t, s)
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 1})}
		admit(t, other, Demand{Scopes: []Scope{{ID: "other", Limits: d.Scopes[0].Limits}}})
		time.Sleep(time.Second)
		admit(t, l, d).Settle(0, 0)
		admitted := time.Now()
		time.Sleep(time.Minute - lookFor - time.Millisecond)
		for time.Since(admitted) < time.Minute {
			_, err := other.Reserve(t.Context(), d)
			if err == nil {
				require.GreaterOrEqual(t, time.Since(admitted), time.Minute)
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		admit(t, other, d)
	})
}

func TestWhatIsInHandCountsToItsVeryEnd(t *testing.T) {
	t.Parallel()
	l := New(Options{})
	c := change{process: 1, id: 1, now: instant{1_000_000, 1_000_010}, limits: Limits{RequestsPerMinute: 1000}, spare: amounts{requests: 10, tokens: 10}, terms: l.terms}
	out, err := c.apply("key:1", &record{})
	require.NoError(t, err)
	require.Equal(t, int64(10), out.spare.requests)
	share := out.rec.holder(1)
	require.Equal(t, 1_000_010+handFor.Milliseconds(), share.hand)
	require.GreaterOrEqual(t, out.until, share.hand+time.Minute.Milliseconds())

	used := &record{}
	used.count(entry{1_050_000, 490, 0})
	out, err = c.apply("key:1", used)
	require.NoError(t, err)
	require.Equal(t, int64(10), out.spare.requests)
	used.count(entry{1_050_000, 10, 0})
	out, err = c.apply("key:1", used)
	require.NoError(t, err)
	require.Zero(t, out.spare.requests, "half of it is used")
	c.limits.RequestsPerMinute = 16
	out, err = c.apply("key:1", &record{})
	require.NoError(t, err)
	require.Equal(t, int64(2), out.spare.requests, "an eighth of what is left")
}

// TestASwapThatIsMadeLater has a swap's answer lost, and the swap made after the process
// has looked whether it was.
func TestASwapThatIsMadeLater(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"later": true, "never": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newShelf()
				way := newReach(s)
				l, _ := run(t, Options{Counters: way})
				d := Demand{Scopes: one(Limits{RequestsPerMinute: 100, Concurrent: 10, Budget: Budget{Day: 100}}), Tokens: 10, Cost: 10}
				first, second := admit(t, l, d), admit(t, l, d)
				time.Sleep(time.Second)
				way.late.Store(true)
				first.Settle(4, 3)
				l.Charge(d)
				time.Sleep(150 * time.Millisecond)
				require.False(t, way.late.Load())
				if !again {
					way.mu.Lock()
					way.lost = nil
					way.mu.Unlock()
				}
				time.Sleep(2 * time.Second)
				rec := s.record(t, "key:1")
				require.Equal(t, total{requests: 3, tokens: 24, gauges: gauges{concurrent: 1, money: 10}}, rec.total())
				require.Equal(t, int64(13), rec.spent[day].amount)
				second.Release()
				time.Sleep(time.Second)
				require.Equal(t, total{requests: 2, tokens: 14}, s.record(t, "key:1").total())
			})
		})
	}
}

// TestASwapIsMadeAndNotAnswered has the counters make a swap whose answer is lost.
func TestASwapIsMadeAndNotAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		l, _ := run(t, Options{Counters: way})
		other := start(t, s)
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 100, Concurrent: 10, Budget: Budget{Day: 100}}), Tokens: 10, Cost: 10}
		r := admit(t, l, d)
		time.Sleep(time.Second)
		way.late.Store(true)
		r.Settle(4, 3)
		time.Sleep(150 * time.Millisecond)
		way.mu.Lock()
		way.lost()
		way.lost = nil
		way.mu.Unlock()
		admit(t, other, d)
		time.Sleep(2 * time.Second)
		rec := s.record(t, "key:1")
		require.Equal(t, total{requests: 2, tokens: 14, gauges: gauges{concurrent: 1, money: 10}}, rec.total())
		require.Equal(t, int64(3), rec.spent[day].amount)
	})
}

// However many processes are killed with money in hand, the scope stays open, and all of
// their money stays reserved until it is free.
func TestManyKilledProcessesDoNotCloseAScope(t *testing.T) {
	t.Parallel()
	const now = int64(10_000_000)
	budget := Limits{Budget: Budget{Day: 1_000_000}}
	terms := New(Options{}).terms
	r := &record{spent: [windows]spent{day: {windowStart(day, now), 1}}}
	at := now
	for p := range uint64(3 * maxHolders) { // each asks for 1, and is not heard of any more
		c := change{
			process: p + 1, id: 1, now: instant{at, at + 1}, limits: budget, terms: terms,
			wants: []*want{{need: need{limits: budget, gauges: gauges{concurrent: 1, money: 1, calls: 1}, busy: now + 3_600_000 + int64(p)}}},
		}
		out, err := c.apply("key:1", r)
		require.NoError(t, err, "process %d", p)
		require.Nil(t, out.refused[0])
		require.EqualValues(t, 1, out.held.money)
		r, err = decodeRecord(out.rec.encode())
		require.NoError(t, err)
		require.EqualValues(t, p+1, r.total().money)
		require.EqualValues(t, p+1, r.total().concurrent, "calls that go on")
		at += terms.holder + 1
		if p >= 2*maxHolders { // the last ones at once
			at -= terms.holder
		}
		if at > now+int64(moneyGrace/time.Millisecond)/2 {
			at = now + int64(moneyGrace/time.Millisecond)/2
			for i := range r.holders {
				r.holders[i].end = min(r.holders[i].end, at)
			}
		}
	}
	require.Len(t, r.holders, maxHolders)
	all := r.holder(nobody)
	require.Greater(t, all.money, int64(maxHolders))
	require.Equal(t, all.money, all.calls)
	late := &record{holders: []holder{*all}}
	late.expire(all.busy - 1)
	require.Equal(t, gauges{concurrent: all.calls, calls: all.calls}, late.holders[0].gauges)
	late.expire(all.busy)
	require.True(t, late.empty())
	for i := range r.holders {
		r.holders[i].calls = 0
	}
	r.expire(all.end + int64(moneyGrace/time.Millisecond))
	require.Nil(t, r.holder(nobody))
	for i := range r.holders { // nobody makes room for more that are there than there can be
		r.holders[i].end = math.MaxInt64 / 2
	}
	for p := range uint64(maxHolders + 1 - len(r.holders)) {
		r.holders = append(r.holders, holder{process: 1<<32 + p, end: math.MaxInt64 / 2})
	}
	require.False(t, r.makeRoom(at))
	require.Len(t, r.holders, maxHolders+1)
}

func TestADayBeginsAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l := start(t, s)
		d := Demand{Scopes: one(Limits{Budget: Budget{Day: 10, Week: 15}}), Cost: 8}
		admit(t, l, d).Settle(0, 8)
		refusal := refuse(t, l, d)
		require.Equal(t, "budget.week", refusal.Limit)
		d.Cost = 7
		require.Equal(t, "budget.day", refuse(t, l, d).Limit)
		time.Sleep(24*time.Hour + time.Second)
		admit(t, l, d).Settle(0, 7)
		d.Cost = 3
		require.Equal(t, "budget.week", refuse(t, l, d).Limit)
		time.Sleep(24 * time.Hour) // to Monday
		admit(t, l, d)
	})
}

func TestWhatIsInHandIsOfNoUseForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		l, _ := run(t, Options{Counters: way})
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 100_000})}
		for range 300 {
			admit(t, l, d).Settle(0, 0)
			time.Sleep(time.Millisecond)
		}
		way.down.Store(true)
		admit(t, l, d).Settle(0, 0)
		time.Sleep(handFor + time.Millisecond)
		_, err := l.Reserve(t.Context(), d)
		require.ErrorIs(t, err, ErrUnavailable)
	})
}

func TestALargeRequestMayHaveWhatIsInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l := start(t, s)
		d := Demand{Scopes: one(Limits{TokensPerMinute: 100_000}), Tokens: 100}
		for range 40 {
			admit(t, l, d)
			time.Sleep(time.Millisecond)
		}
		require.Greater(t, s.record(t, "key:1").total().tokens, int64(4000), "it has some in hand")
		d.Tokens = 100_000 - 4000
		admit(t, l, d)
		d.Tokens = 1
		refuse(t, l, d)
	})
}

func TestWhatIsHeldIsOfNoUseOnceOthersMayHaveIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		l, _ := run(t, Options{Counters: way})
		d := Demand{Scopes: one(Limits{Concurrent: 1})}
		admit(t, l, d).Release()
		way.down.Store(true)
		r := admit(t, l, d)
		time.Sleep(holderFor / 2)
		r.Release()
		admit(t, l, d).Release()
		time.Sleep(holderFor / 2)
		_, err := l.Reserve(t.Context(), d)
		require.ErrorIs(t, err, ErrUnavailable)
	})
}

func TestWhatIsNotBoundedIsCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		l := start(t, s)
		d := Demand{Scopes: one(Limits{RequestsPerMinute: 100_000})}
		sum := int64(0)
		for i := range int64(300) {
			d.Tokens = i * i
			sum += d.Tokens
			admit(t, l, d)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		require.Equal(t, total{requests: 300, tokens: sum, gauges: gauges{concurrent: 300}}, s.record(t, "key:1").total())
		d.Scopes[0].Limits = Limits{TokensPerMinute: sum + 10, Concurrent: 301}
		d.Tokens = 10
		r := admit(t, l, d)
		require.NotNil(t, refuse(t, l, d))
		r.Release()
		time.Sleep(time.Second)
		d.Tokens = 11
		require.Equal(t, "tokens_per_minute", refuse(t, l, d).Limit)
	})
}

func TestARequestThatGivesUpAsItIsAdmittedLeavesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		way := newReach(s)
		way.exact.Store(int64(20 * time.Millisecond))
		l, _ := run(t, Options{Counters: way})
		d := Demand{Scopes: one(Limits{Concurrent: 1000, TokensPerMinute: 30_000}), Tokens: 10}
		admit(t, l, d).Release()
		given := 0
		for range 100 {
			time.Sleep(time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Duration(way.exact.Load()))
			r, err := l.Reserve(ctx, d)
			cancel()
			if err == nil {
				given++
				r.Release()
			}
		}
		require.NotZero(t, given)
		time.Sleep(2 * time.Second)
		require.Equal(t, total{}, s.record(t, "key:1").total())

		a, w := &account{}, &want{done: make(chan verdict, 2)}
		refused, late := &want{done: make(chan verdict, 2)}, &want{done: make(chan verdict, 2)}
		w.end(verdict{entry: 7})
		refused.end(verdict{refusal: &Refusal{}})
		require.Equal(t, []hold{{a, 7}}, l.giveUp([]*asking{{a, w}, {a, refused}, {a, late}}, nil))
		late.end(verdict{entry: 8})
		require.Empty(t, late.done, "nobody would give it back")
	})
}

func TestScopesInMemoryAreBounded(t *testing.T) {
	t.Parallel()
	l := New(Options{})
	for i := range maxScopes + 10 {
		a, err := l.lock(strconv.Itoa(i))
		require.NoError(t, err)
		a.used.concurrent = 1
		if i >= 10 && i < 20 {
			a.used.concurrent = 0
		}
		a.mu.Unlock()
		if l.Scopes() == maxScopes {
			break
		}
	}
	var err error
	for i := 0; err == nil && i < 11; i++ {
		var a *account
		if a, err = l.lock("new" + strconv.Itoa(i)); err == nil {
			a.used.concurrent = 1
			a.mu.Unlock()
		}
		require.LessOrEqual(t, l.Scopes(), maxScopes)
	}
	require.ErrorIs(t, err, ErrUnavailable)
}

func TestACrowdedScopeRefusesAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		full := &record{}
		for i := range maxHolders {
			full.holders = append(full.holders, holder{process: uint64(i + 1), end: time.Now().Add(time.Hour).UnixMilli(), gauges: gauges{concurrent: 1}})
		}
		way := newReach(s)
		_, err := way.Swap(t.Context(), "key:1", full.encode(), 0)
		require.NoError(t, err)
		l, _ := run(t, Options{Counters: way})
		began := time.Now()
		_, err = l.Reserve(t.Context(), Demand{Scopes: one(Limits{Concurrent: 1000})})
		require.ErrorIs(t, err, ErrUnavailable)
		require.Less(t, time.Since(began), patience)
	})
}
