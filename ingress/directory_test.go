package ingress

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

func presence(worker string, providers ...queue.ProviderPresence) queue.Presence {
	return queue.Presence{Worker: worker, Providers: providers}
}

// directoryOf is a directory of the configuration, with nobody to hear of new providers.
func directoryOf(configured map[string]ProviderInfo, policy routing.Policy) *directory {
	return newDirectory(configured, policy, func() {})
}

func (d *directory) shown(provider string) providerState { return d.latest().providers[provider] }

func TestDirectoryKnowsConfiguredAndAnnouncedProviders(t *testing.T) {
	t.Parallel()
	added := 0
	d := newDirectory(map[string]ProviderInfo{
		"acme": {Models: []string{"m"}, MaxQueued: 5}, "open": {MaxQueued: 6},
	}, routing.Policy{Order: []string{"open"}}, func() { added++ })
	require.Equal(t, map[string]int{"acme": 5, "open": 6}, d.queues())
	require.False(t, d.anyQueueReady())
	d.queueReady("acme")
	require.True(t, d.anyQueueReady())
	require.Equal(t, []inference.Candidate{{Provider: "acme", Model: "m"}}, d.now().Serves("m"))

	d.heard(presence("w1",
		queue.ProviderPresence{Name: "open", Models: []string{"x", "m"}, MaxQueued: 60, Rate: 2, InFlight: 1},
		queue.ProviderPresence{Name: "acme", Models: []string{"not-configured"}},
	))
	require.Zero(t, added)
	require.Equal(t, map[string]int{"acme": 5, "open": 60}, d.queues(), "the worker's word on the bound comes first")
	require.Empty(t, d.now().Serves("not-configured"), "what the configuration names comes before what workers say")
	require.Equal(t, "open", d.now().Serves("m")[0].Provider, "in the configured order")

	w2 := presence("w2", queue.ProviderPresence{Name: "new", Models: []string{"n", "n", "a"}, Rate: 3, InFlight: 2}, queue.ProviderPresence{Name: "open", Models: []string{"x"}, Rate: 1})
	d.heard(w2)
	require.Equal(t, 1, added, "a new provider needs a queue")
	d.heard(presence("w2", queue.ProviderPresence{Name: "newer"}))
	require.Equal(t, 2, added, "also one that takes the place of another")
	d.heard(w2)
	want := map[string]providerState{
		"acme": {Provider: routing.Provider{Name: "acme", Models: []string{"m"}, Workers: 1}, Queued: 5},
		"open": {Provider: routing.Provider{Name: "open", Models: []string{"m", "x"}, Workers: 2, InFlight: 1}, Rate: 3, Queued: 60},
		"new":  {Provider: routing.Provider{Name: "new", Models: []string{"a", "n"}, Workers: 1, InFlight: 2}, Rate: 3},
	}
	require.Equal(t, want, d.states())

	d.heard(queue.Presence{Worker: "w2", Leaving: true})
	d.heard(queue.Presence{Worker: "nobody", Leaving: true})
	require.Len(t, d.now().Providers, 2)
	d.expire(time.Now().Add(workerGone / 2))
	require.Equal(t, 1, d.states()["open"].Workers)
	d.expire(time.Now().Add(2 * workerGone))
	require.Zero(t, d.states()["open"].Workers)
	require.False(t, d.now().Providers[0].Live())
}

func TestDirectoryIsBounded(t *testing.T) {
	t.Parallel()
	d := directoryOf(nil, routing.Policy{})
	for i := range maxWorkers {
		d.workers[fmt.Sprint(i)] = announced{}
	}
	d.heard(presence("one more", queue.ProviderPresence{Name: "p"}))
	require.Len(t, d.workers, maxWorkers)
	d.heard(presence("7", queue.ProviderPresence{Name: "p"}))
	require.Len(t, d.workers["7"].Providers, 1, "those who are known are heard")
}

func TestWhatIsBelievedOfAWorkerIsBounded(t *testing.T) {
	t.Parallel()
	p := queue.ProviderPresence{
		Name: "p", MaxQueued: -1, Concurrency: -1, InFlight: math.MinInt, Limit: math.MaxInt, Held: -3, Waiting: 7, Rate: math.NaN(),
		Models: []string{"m", strings.Repeat("x", 257)},
		Traits: []inference.ModelTraits{{Models: []string{"m"}, Traits: inference.Traits{Chat: true, ContextTokens: -1, OutputTokens: 5}}},
	}
	for i := range maxTraits {
		p.Traits = append(p.Traits, inference.ModelTraits{Models: []string{fmt.Sprint(i)}})
		p.Models = append(p.Models, fmt.Sprint(i))
	}
	p.States = []inference.ModelState{
		{Model: "z", Breaker: inference.BreakerOpen, FirstToken: -1},
		{Model: "z", Breaker: inference.BreakerClosed},
		{Model: strings.Repeat("x", 257), Breaker: inference.BreakerOpen},
		{Model: "a", Breaker: "ajar", FirstToken: math.Inf(1)},
	}
	for i := range maxStates {
		p.States = append(p.States, inference.ModelState{Model: fmt.Sprintf("m%d", i)})
	}
	d := directoryOf(nil, routing.Policy{})
	d.heard(presence("w", p, queue.ProviderPresence{Name: "p", InFlight: 100}))
	s := d.shown("p")
	require.Equal(t, 1, s.Workers, "a provider is there once")
	require.Zero(t, s.InFlight)
	require.Equal(t, maxNumber, s.Limit)
	require.Zero(t, s.Held)
	require.Equal(t, 7, s.Waiting)
	require.Zero(t, s.Rate)
	require.Zero(t, s.Queued)
	require.Len(t, s.Models, maxOffered-1)
	require.Len(t, s.Traits, maxTraits)
	require.Equal(t, inference.Traits{Chat: true, OutputTokens: 5}, s.Traits[0].Traits)
	require.Len(t, s.States, maxStates-2)
	require.Equal(t, inference.ModelState{Model: "a", Breaker: inference.BreakerClosed}, s.States[0], "a word that nobody knows")
	require.Equal(t, inference.ModelState{Model: "z", Breaker: inference.BreakerOpen}, s.States[len(s.States)-1], "the first one counts")

	for w := range 5 {
		q := queue.ProviderPresence{Name: "q"}
		for i := range maxStates {
			q.States = append(q.States, inference.ModelState{Model: fmt.Sprintf("%d-%d", w, i)})
		}
		d.heard(presence(fmt.Sprint(w), q))
	}
	require.Len(t, d.shown("q").States, maxStanding)
}

func TestNumbersOfWorkersComeTogether(t *testing.T) {
	t.Parallel()
	traits := func(model string) []inference.ModelTraits {
		return []inference.ModelTraits{{Models: []string{model}, Traits: inference.Traits{Chat: true}}}
	}
	d := directoryOf(map[string]ProviderInfo{"p": {Prices: []routing.Price{{Models: []string{"*"}, Input: 1}}}}, routing.Policy{})
	d.heard(presence("w1", queue.ProviderPresence{
		Name: "p", Concurrency: 9, InFlight: 2, Held: 1, Waiting: 5, Traits: traits("old"),
		States: []inference.ModelState{{Model: "m", Breaker: "closed", FirstToken: 1}, {Model: "n", Breaker: "closed"}},
	}))
	require.Equal(t, 9, d.shown("p").Limit, "as configured, as nothing else is known")
	require.Equal(t, "old", d.shown("p").Traits[0].Models[0])
	second := queue.ProviderPresence{
		Name: "p", Concurrency: 12, Limit: 4, InFlight: 3, Held: 2, Waiting: 3, Traits: traits("new"),
		States: []inference.ModelState{{Model: "m", Breaker: "closed", FirstToken: 2}},
	}
	d.heard(presence("w2", second))
	d.heard(presence("w3", queue.ProviderPresence{Name: "p", Limit: 3, Traits: traits("newest")}))
	s := d.shown("p")
	require.Equal(t, []int{3, 4, 5, 3, 5}, []int{s.Workers, s.Limit, s.InFlight, s.Held, s.Waiting})
	require.Equal(t, "newest", s.Traits[0].Models[0])
	require.Equal(t, []inference.ModelState{{Model: "m", Breaker: "closed", FirstToken: 1.5}, {Model: "n", Breaker: "closed"}}, s.States)
	require.Len(t, s.Prices, 1)
	second.InFlight = 30
	d.heard(presence("w2", second))
	for range 20 { // in whatever order the workers are asked
		d.draw()
		require.Equal(t, "newest", d.shown("p").Traits[0].Models[0], "not the one heard last")
	}
	require.Equal(t, 32, d.states()["p"].InFlight)
}

func TestABreakerIsOpenWhenEveryWorkerSaysSo(t *testing.T) {
	t.Parallel()
	const closed, half, open = inference.BreakerClosed, inference.BreakerHalfOpen, inference.BreakerOpen
	for name, c := range map[string]struct {
		workers []string // empty: it does not speak of the model
		want    string
	}{
		"one open":             {[]string{open}, open},
		"all open":             {[]string{open, open, open}, open},
		"one closed":           {[]string{open, closed, open}, closed},
		"one silent":           {[]string{open, "", open}, closed},
		"one half open":        {[]string{open, half, open}, half},
		"half open and silent": {[]string{half, ""}, closed},
		"all half open":        {[]string{half, half}, half},
		"unknown word":         {[]string{"ajar", open}, closed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := directoryOf(nil, routing.Policy{})
			say := func(i int, breaker string) {
				p := queue.ProviderPresence{Name: "p", Models: []string{"m"}, States: []inference.ModelState{{Model: "other", Breaker: closed}}}
				if breaker != "" {
					p.States = append(p.States, inference.ModelState{Model: "m", Breaker: breaker})
				}
				d.heard(presence(fmt.Sprint(i), p))
			}
			for i, b := range c.workers {
				say(i, b)
			}
			require.Equal(t, c.want, breakerIn(d.shown("p").States, "m"))
			// The same when workers that were well come to say so, one by one.
			for i := range c.workers {
				say(i, "")
			}
			require.Equal(t, closed, breakerIn(d.shown("p").States, "m"))
			for i, b := range c.workers {
				say(i, b)
			}
			require.Equal(t, c.want, breakerIn(d.shown("p").States, "m"), "it is seen at once")
		})
	}
}

func TestAWorkerThatLeavesMayHaveBeenTheLastThatCalls(t *testing.T) {
	t.Parallel()
	d := directoryOf(nil, routing.Policy{})
	d.heard(presence("well", queue.ProviderPresence{Name: "p"}))
	d.heard(presence("ill", queue.ProviderPresence{Name: "p", States: []inference.ModelState{{Model: "m", Breaker: inference.BreakerOpen}}}))
	require.Equal(t, inference.BreakerClosed, breakerIn(d.shown("p").States, "m"))
	d.heard(queue.Presence{Worker: "well", Leaving: true})
	require.Equal(t, inference.BreakerOpen, breakerIn(d.shown("p").States, "m"))
}

func TestMereNumbersAreSeenAWhileLater(t *testing.T) {
	t.Parallel()
	d := directoryOf(nil, routing.Policy{})
	say := func(n int) {
		d.heard(presence("w", queue.ProviderPresence{Name: "p", InFlight: n, States: []inference.ModelState{{Model: "m", Breaker: "closed", FirstToken: float64(n)}}}))
	}
	say(1)
	first := d.latest()
	say(1)
	require.Zero(t, d.due.Load(), "nothing is new")
	say(2)
	require.Same(t, first, d.latest())
	require.NotZero(t, d.due.Load())
	require.Eventually(t, func() bool { d.now(); return d.shown("p").InFlight == 2 }, soon, time.Millisecond, "by whoever asks")
	say(3)
	require.Eventually(t, func() bool { say(3); return d.shown("p").InFlight == 3 }, soon, time.Millisecond, "by whoever speaks")
	say(4)
	require.Eventually(t, func() bool { d.expire(time.Now()); return d.shown("p").InFlight == 4 }, soon, time.Millisecond, "by the clock")
	say(5)
	require.Equal(t, 5, d.states()["p"].InFlight, "whoever wants to see them sees them")
}

func TestTurnsAreCountedByRule(t *testing.T) {
	t.Parallel()
	d := directoryOf(nil, routing.Policy{Rules: []routing.Rule{{Name: "a"}, {Name: "b"}}})
	require.EqualValues(t, 0, d.layout.Load().turn("a"))
	require.EqualValues(t, 1, d.layout.Load().turn("a"))
	require.EqualValues(t, 0, d.layout.Load().turn("b"))
	require.EqualValues(t, 2, d.layout.Load().nextTurn("a"))
	require.EqualValues(t, 2, d.layout.Load().turn("a"), "it was not taken")
	require.Zero(t, d.layout.Load().turn("unknown")+d.layout.Load().nextTurn("unknown"))
}

func TestRetryAfterEstimate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		queued int
		rate   float64
		want   time.Duration
	}{
		"nothing known":  {1000, 0, retryLeast},
		"fast":           {1000, 5000, retryLeast},
		"ten seconds":    {1000, 50, 10 * time.Second},
		"slow":           {1000, 1, retryMost},
		"hardly a rate":  {1000, 1e-9, retryMost},
		"dying rate":     {1000, 1e-300, retryMost},
		"no bound known": {0, 1, retryLeast},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := directoryOf(nil, routing.Policy{})
			d.heard(presence("w", queue.ProviderPresence{Name: "p", MaxQueued: c.queued, Rate: c.rate}))
			require.Equal(t, c.want, d.retryAfter("p"))
		})
	}
	require.Equal(t, retryLeast, directoryOf(nil, routing.Policy{}).retryAfter("nobody"))
}

// BenchmarkHeard is the cost of an announcement among a thousand workers, each of three
// providers, and of the picture that is drawn every redrawEvery.
func BenchmarkHeard(b *testing.B) {
	d := directoryOf(nil, routing.Policy{})
	say := func(worker, round int) queue.Presence {
		p := presence(fmt.Sprint("worker", worker))
		for i := range 3 {
			q := queue.ProviderPresence{Name: fmt.Sprint("provider", i), MaxQueued: 100, InFlight: round}
			for j := range 10 {
				q.Models = append(q.Models, fmt.Sprint("model", j))
				q.Traits = append(q.Traits, inference.ModelTraits{Models: []string{fmt.Sprint("model", j)}})
				q.States = append(q.States, inference.ModelState{Model: fmt.Sprint("model", j), Breaker: inference.BreakerClosed, FirstToken: 1})
			}
			p.Providers = append(p.Providers, q)
		}
		return p
	}
	var rounds []queue.Presence
	for i := range 2000 {
		rounds = append(rounds, say(i%1000, i/1000))
	}
	for _, p := range rounds {
		d.heard(p)
	}
	b.Run("announcement", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			d.heard(rounds[i%len(rounds)])
		}
	})
	b.Run("picture", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.draw()
		}
	})
}
