package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers"
)

var testBreaker = BreakerSettings{Failures: 3, FailureRate: 0.5, MinCalls: 10, Window: 10 * time.Second, OpenFor: 5 * time.Second, Probes: 1}

// gated is a pool that does nothing but ask its breakers, and what they told.
type gated struct {
	*pool
	t     *testing.T
	turns []string
}

func newGated(t *testing.T, s BreakerSettings) *gated {
	t.Helper()
	g := &gated{t: t}
	g.pool = &pool{member: Member{Name: testName, Provider: &script{}}}
	g.breakers = newBreakers(s, func(model, state string) { g.turns = append(g.turns, model+" "+state) }, func(string) {})
	return g
}

// call makes calls of the model that end so, and reports how many of them were let
// through.
func (g *gated) call(model string, n int, err error) (let int) {
	g.t.Helper()
	for range n {
		if done, _, refused := g.admit(model); refused == nil {
			done(err)
			let++
		}
	}
	return let
}

func (g *gated) state() string {
	for _, s := range g.breakers.states(time.Now()) {
		if s.Model == "m" {
			return s.Breaker
		}
	}
	return ""
}

func TestWhatABreakerCounts(t *testing.T) {
	t.Parallel()
	for code, counts := range map[inference.ErrorCode]bool{
		inference.CodeUpstreamError: true, inference.CodeUpstreamUnavailable: true, inference.CodeUpstreamTimeout: true,
		inference.CodeUpstreamCut: true, inference.CodeUpstreamInvalid: true,
		inference.CodeUpstreamRejected: false, inference.CodeUpstreamRateLimited: false, inference.CodeUpstreamAuth: false,
		inference.CodeUpstreamTooLarge: false, inference.CodeCancelled: false, inference.CodeDeadlineExceeded: false,
		inference.CodeWorkerLost: false, inference.CodeInternal: false, inference.CodeQueueUnavailable: false,
	} {
		g := newGated(t, testBreaker)
		g.call("m", 50, fmt.Errorf("call: %w", failed(code)))
		want := inference.BreakerClosed
		if counts {
			want = inference.BreakerOpen
		}
		require.Equal(t, want, g.state(), code)
	}
	g := newGated(t, testBreaker)
	g.call("m", 50, context.Canceled)
	g.call("m", 50, errors.New("of ours"))
	require.Equal(t, inference.BreakerClosed, g.state())
}

func TestBreakerOpensAfterFailuresInARow(t *testing.T) {
	t.Parallel()
	down := failed(inference.CodeUpstreamError)
	s := testBreaker
	s.FailureRate = 0
	g := newGated(t, s)
	for range 20 {
		require.Equal(t, 2, g.call("m", 2, down))
		g.call("m", 5, failed(inference.CodeUpstreamRateLimited)) // says nothing
		g.call("m", 5, failed(inference.CodeUpstreamRejected))    // nor does this
		require.Equal(t, 1, g.call("m", 1, nil))
	}
	require.Empty(t, g.turns)
	g.call("m", 2, down)
	g.call("m", 5, failed(inference.CodeCancelled))
	g.call("m", 1, down)
	require.Equal(t, []string{"m open"}, g.turns)
	require.Zero(t, g.call("m", 5, nil))
	require.Equal(t, 5, g.call("other", 5, nil), "each model for itself")

	never := newGated(t, BreakerSettings{OpenFor: time.Second})
	require.Equal(t, 500, never.call("m", 500, down), "no threshold, no breaker")
}

func TestBreakerOpensAtARateOfFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := failed(inference.CodeUpstreamTimeout)
		s := testBreaker
		s.Failures = 0
		g := newGated(t, s)
		require.Equal(t, 9, g.call("m", 9, down), "too few calls to tell")
		require.Equal(t, 1, g.call("m", 1, down))
		require.Equal(t, inference.BreakerOpen, g.state())

		g = newGated(t, s)
		g.call("m", 6, nil)
		g.call("m", 100, failed(inference.CodeUpstreamRateLimited)) // no calls as far as this goes
		g.call("m", 4, down)
		require.Equal(t, inference.BreakerClosed, g.state(), "4 of 10")
		g.call("m", 2, down)
		require.Equal(t, inference.BreakerOpen, g.state(), "6 of 12")

		// What was more than a window ago does not count any more, part by part.
		g = newGated(t, s)
		g.call("m", 9, down)
		time.Sleep(9 * time.Second)
		g.call("m", 9, nil)
		time.Sleep(2 * time.Second) // the first ones are out of the window
		g.call("m", 8, down)
		require.Equal(t, inference.BreakerClosed, g.state(), "8 of 17")
		g.call("m", 1, down)
		require.Equal(t, inference.BreakerOpen, g.state(), "9 of 18")
	})
}

func TestAnOpenBreakerIsProbed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		down := failed(inference.CodeUpstreamError)
		s := testBreaker
		s.Probes = 2
		g := newGated(t, s)
		require.Equal(t, 3, g.call("m", 4, down))
		done, b, err := g.admit("m")
		require.Nil(t, done)
		e := inference.AsError(err)
		require.Equal(t, inference.CodeUpstreamUnavailable, e.Code)
		require.True(t, e.Retryable)
		require.Equal(t, s.OpenFor, e.RetryAfter)
		require.Equal(t, s.OpenFor, b.wait(time.Now()))
		time.Sleep(s.OpenFor)
		require.Zero(t, g.call("m", 1, nil), "not before it is over")
		time.Sleep(time.Nanosecond)
		require.Equal(t, inference.BreakerHalfOpen, g.state())

		first, _, err := g.admit("m")
		require.NoError(t, err)
		second, _, err := g.admit("m")
		require.NoError(t, err)
		_, b, err = g.admit("m")
		require.Error(t, err, "so many at once")
		require.Zero(t, b.wait(time.Now()), "nobody knows how long they take")
		first(nil)
		require.Equal(t, inference.BreakerHalfOpen, g.state())
		second(down)
		require.Equal(t, inference.BreakerOpen, g.state())
		select {
		case <-b.turned:
		default:
			require.Fail(t, "who waits is woken by the turn")
		}

		time.Sleep(s.OpenFor + 1)
		require.Equal(t, 2, g.call("m", 2, nil))
		require.Equal(t, inference.BreakerClosed, g.state())
		require.Equal(t, 2, g.call("m", 2, down), "the failures from before are forgotten")
		require.Equal(t, []string{"m open", "m half_open", "m open", "m half_open", "m closed"}, g.turns)
		late, _, err := g.admit("m")
		require.NoError(t, err)
		g.call("m", 1, down)
		late(nil)
		require.Equal(t, inference.BreakerOpen, g.state(), "a call from before the turn says nothing")
	})
}

// A probe that ended for a reason of our own has said nothing: another one may follow.
func TestAProbeThatSaysNothingMakesRoomForAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, testBreaker)
		g.call("m", 3, failed(inference.CodeUpstreamError))
		time.Sleep(testBreaker.OpenFor + 1)
		for range 10 {
			require.Equal(t, 1, g.call("m", 1, failed(inference.CodeCancelled)))
			require.Equal(t, inference.BreakerHalfOpen, g.state())
		}
		require.Equal(t, 1, g.call("m", 1, nil))
		require.Equal(t, inference.BreakerClosed, g.state())
	})
}

// Whoever was refused a moment before the turn must not sleep through it.
func TestNoTurnIsMissed(t *testing.T) {
	t.Parallel()
	s := BreakerSettings{Failures: 1, OpenFor: time.Millisecond, Probes: 1}
	g := newGated(t, s)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for served := 0; served < 20; {
				done, b, err := g.admit("m")
				if err == nil {
					served++
					if served%3 == 0 {
						done(failed(inference.CodeUpstreamError))
					} else {
						done(nil)
					}
					continue
				}
				wait := soon
				if known := b.wait(time.Now()); known > 0 {
					wait = known
				}
				select {
				case <-b.turned:
				case <-time.After(wait):
					if wait == soon {
						t.Error("slept through a turn")
						return
					}
				}
			}
		})
	}
	all.Wait()
}

// The breakers are asked, listed and forgotten by many at once, and tell of their turns
// while they are locked.
func TestBreakersByMany(t *testing.T) {
	t.Parallel()
	s := BreakerSettings{Failures: 1, OpenFor: time.Microsecond, Probes: 1}
	p := &pool{member: Member{Name: testName, Provider: &script{}}}
	var mu sync.Mutex
	p.breakers = newBreakers(s, func(string, string) { mu.Lock(); defer mu.Unlock() }, func(string) {})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 300 {
				model := fmt.Sprint("m", n%40)
				if done, _, err := p.admit(model); err == nil {
					if i%2 == 0 {
						done(failed(inference.CodeUpstreamError))
					} else {
						done(nil)
					}
				}
				p.breakers.states(time.Now())
				p.breakers.slowdown(time.Now())
			}
		})
	}
	all.Wait()
}

func TestBreakersAreBoundedAndForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, testBreaker)
		down := failed(inference.CodeUpstreamError)
		for i := range maxModels + 10 {
			g.call(fmt.Sprintf("m%04d", i), 1, nil)
			time.Sleep(time.Millisecond)
		}
		require.Len(t, g.breakers.byModel, maxModels)
		require.NotContains(t, g.breakers.byModel, "m0000", "the oldest made room")
		require.Len(t, g.breakers.states(time.Now()), statesMost)
		require.Equal(t, 3, g.call("one more", 50, down), "there is always room for one more")
		require.Equal(t, 50, g.call(strings.Repeat("x", maxModelName+1), 50, down), "but for an absurd name")
		require.Contains(t, g.breakers.states(time.Now()), inference.ModelState{Model: "one more", Breaker: inference.BreakerOpen})
		for i := range maxModels {
			g.call(fmt.Sprintf("n%04d", i), 1, nil)
		}
		require.Contains(t, g.breakers.byModel, "one more", "an open one is not forgotten for others")
		long := strings.Repeat("y", maxModelName-4)
		for i := range maxModels {
			g.call(fmt.Sprintf("%s%04d", long, i), 1, nil)
		}
		size := 0
		for _, s := range g.breakers.states(time.Now()) {
			size += len(s.Model)
		}
		require.LessOrEqual(t, size, statesBytes)

		time.Sleep(modelIdle - time.Second)
		g.call("m0007", 1, nil)
		time.Sleep(time.Second + 1)
		require.Equal(t, []inference.ModelState{{Model: "m0007", Breaker: inference.BreakerClosed}}, g.breakers.states(time.Now()))
		require.Empty(t, g.breakers.byModel["one more"], "in the end it is")
	})
}

func TestSlowdownOverTheModels(t *testing.T) {
	t.Parallel()
	now := time.Now()
	bs := newBreakers(testBreaker, func(string, string) {}, func(string) {})
	require.Zero(t, bs.slowdown(now))
	for _, m := range []string{"a", "b"} {
		b := bs.of(m, now)
		for range 50 {
			b.pace.streamed(time.Second, now)
		}
	}
	require.InDelta(t, 1, bs.slowdown(now), 1e-9)
	for range 100 {
		bs.of("b", now).pace.streamed(9*time.Second, now)
	}
	got := bs.slowdown(now)
	require.Greater(t, got, 2.0)
	require.Less(t, got, 8.0, "the other model is as fast as ever")
	require.InDelta(t, 1, bs.states(now)[0].FirstToken, 1e-9)
}

// cooling is a provider whose keys were all told to wait.
type cooling struct {
	script
	until time.Time
}

func (k *cooling) OpenAt(time.Time) time.Time { return k.until }

var _ providers.Provider = (*cooling)(nil)

func TestKeysThatWaitAreNotCalled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, testBreaker)
		k := &cooling{until: time.Now().Add(3 * time.Second)}
		g.member.Provider = k
		_, b, err := g.admit("m")
		e := inference.AsError(err)
		require.Equal(t, inference.CodeUpstreamRateLimited, e.Code)
		require.Equal(t, 3*time.Second, e.RetryAfter)
		require.Equal(t, 3*time.Second, b.wait(time.Now()))
		require.Nil(t, b.turned)
		time.Sleep(3 * time.Second)
		require.Equal(t, 1, g.call("m", 1, nil))
	})
}

func TestBlockWait(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var none *block
	require.Zero(t, none.wait(now))
	require.Zero(t, (&block{}).wait(now), "not known")
	require.Equal(t, time.Minute, (&block{until: now.Add(time.Minute)}).wait(now))
	require.Equal(t, time.Millisecond, (&block{until: now.Add(-time.Minute)}).wait(now), "known, and over")
}

// A call that ends in a timeout began long before the window that its end falls into.
func TestTimeoutsLongerThanTheWindowOpenTheBreaker(t *testing.T) {
	t.Parallel()
	s := BreakerSettings{Failures: 5, FailureRate: 0.5, MinCalls: 20, Window: 30 * time.Second, OpenFor: 10 * time.Second, Probes: 1}
	slow := failed(inference.CodeUpstreamTimeout)
	for name, together := range map[string]int{"one after the other": 1, "together": 64} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := newGated(t, s)
				for range 5 {
					var open []func(error)
					for range together {
						done, _, err := g.admit("m")
						require.NoError(t, err)
						open = append(open, done)
					}
					time.Sleep(5 * time.Minute)
					for _, done := range open {
						done(slow)
					}
					if g.state() == inference.BreakerOpen {
						return
					}
				}
				require.Fail(t, "it stayed closed")
			})
		})
	}
}
