package routing

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// ruled is a table of one rule for the providers a, b, c … with these weights.
func ruled(s Strategy, change func(i int, p *Provider), weights ...int) *Table {
	rule := Rule{Name: "r", Strategy: s}
	var providers []Provider
	for i, w := range weights {
		p := worker(string(rune('a' + i)))
		if change != nil {
			change(i, &p)
		}
		providers = append(providers, p)
		rule.Targets = append(rule.Targets, Target{Provider: p.Name, Weight: w})
	}
	return NewTable(Policy{Rules: []Rule{rule}}, providers)
}

// converges fails unless the counts are what the weights say, but for chance: the
// statistic of Pearson's chi-square test stays under its 99.9th percentile.
func converges(t *testing.T, counts map[string]int, weights ...int) {
	t.Helper()
	total, sum, positive := 0, 0, 0
	for i, w := range weights {
		total += counts[string(rune('a'+i))]
		sum += w
		if w > 0 {
			positive++
		}
	}
	statistic := 0.0
	for i, w := range weights {
		name := string(rune('a' + i))
		if w == 0 {
			require.Zero(t, counts[name])
			continue
		}
		expected := float64(total) * float64(w) / float64(sum)
		d := float64(counts[name]) - expected
		statistic += d * d / expected
	}
	require.Less(t, statistic, []float64{0, 10.83, 13.82, 16.27, 18.47}[positive-1], "%v", counts)
}

func TestWeightedConverges(t *testing.T) {
	t.Parallel()
	for _, weights := range [][]int{{1, 1}, {3, 1}, {1, 2, 3}, {100, 1, 0, 10}, {0, 5, 1, 1, 1}} {
		table := ruled(StrategyWeighted, nil, weights...)
		first, second := map[string]int{}, map[string]int{}
		r := newRandom(1)
		for range 40_000 {
			q := Request{Model: "m", Random: r.Uint64()}
			got := candidates(table, q)
			require.Len(t, got, len(weights))
			first[got[0].Provider]++
			if got[0].Provider == "a" {
				second[got[1].Provider]++
			}
		}
		converges(t, first, weights...)
		if weights[0] > 0 && len(weights) > 2 {
			rest := append([]int{0}, weights[1:]...)
			converges(t, second, rest...)
		}
	}
}

func TestOrderedAndWithoutWeight(t *testing.T) {
	t.Parallel()
	require.Equal(t, "b c a d ", order(ruled(StrategyOrdered, nil, 0, 1, 9, -1).Route(Request{Model: "m", Random: 5})))
	require.Equal(t, "a b ", order(ruled(StrategyOrdered, nil, 0, 0).Route(Request{Model: "m"})))
	for _, s := range strategies {
		got := candidates(ruled(s, nil, 0, 1, 0), Request{Model: "m", Random: 11, User: "u"})
		require.Equal(t, "b", got[0].Provider, s)
		require.Len(t, got, 3, s)
	}
}

func TestRoundRobinIsExactOverACycle(t *testing.T) {
	t.Parallel()
	for _, weights := range [][]int{{1}, {1, 1, 1}, {5, 1, 1}, {3, 2}, {7, 3, 11, 0}, {1, 1000}, {2, 2, 2, 2}} {
		table := ruled(StrategyRoundRobin, nil, weights...)
		cycle := 0
		for _, w := range weights {
			cycle += w
		}
		for _, start := range []uint64{0, 3, 1 << 40} {
			counts := map[string]int{}
			for turn := range uint64(cycle) {
				named := ""
				got := candidates(table, Request{Model: "m", Turn: func(rule string) uint64 { named += rule; return start + turn }})
				require.Equal(t, "r", named, "asked once, by the rule's name")
				require.Len(t, got, len(weights))
				counts[got[0].Provider]++
				for i, w := range weights {
					if start == 0 {
						due := float64(turn+1) * float64(w) / float64(cycle)
						require.InDelta(t, due, counts[string(rune('a'+i))], float64(len(weights))/2+1, "evenly spread")
					}
				}
			}
			for i, w := range weights {
				require.Equal(t, w, counts[string(rune('a'+i))], "%v", weights)
			}
		}
	}
	byTurn := ""
	for turn := range uint64(7) {
		byTurn += candidates(ruled(StrategyRoundRobin, nil, 5, 1, 1), Request{Model: "m", Turn: func(string) uint64 { return turn }})[0].Provider
	}
	require.Equal(t, "aaabaca", byTurn)
	huge := ruled(StrategyRoundRobin, nil, MaxWeight, MaxWeight*5, 1)
	require.Len(t, candidates(huge, Request{Model: "m", Turn: func(string) uint64 { return 1<<64 - 1 }}), 3)
	counts := map[string]int{}
	for i := range uint64(20_000) {
		counts[candidates(ruled(StrategyRoundRobin, nil, 3, 1), Request{Model: "m", Random: i})[0].Provider]++
	}
	converges(t, counts, 3, 1)
}

// The turns of a target that cannot be called are taken by the others.
func TestRoundRobinWithoutOne(t *testing.T) {
	t.Parallel()
	counts := map[string]int{}
	table := ruled(StrategyRoundRobin, func(i int, p *Provider) { p.Workers = i }, 2, 1, 1)
	for turn := range uint64(4) {
		got := candidates(table, Request{Model: "m", Turn: func(string) uint64 { return turn }})
		counts[got[0].Provider]++
		require.Equal(t, "a", got[2].Provider)
	}
	require.Equal(t, map[string]int{"b": 2, "c": 2}, counts)
}

func TestLeastBusy(t *testing.T) {
	t.Parallel()
	table := ruled(StrategyLeastBusy, func(i int, p *Provider) {
		*p = []Provider{
			{Name: p.Name, Models: p.Models, Workers: 1, Limit: 10, InFlight: 2, Waiting: 2, Held: 1},
			{Name: p.Name, Models: p.Models, Workers: 1, Limit: 100, InFlight: 40},
			{Name: p.Name, Models: p.Models, Workers: 1, Limit: 0, InFlight: 1},
		}[i]
	}, 1, 1, 1)
	require.Equal(t, "b a c ", order(table.Route(Request{Model: "m"})))
	own := func(name string) int { return map[string]int{"b": 60}[name] }
	require.Equal(t, "a b c ", order(table.Route(Request{Model: "m", Load: own})), "sooner known here")
	require.Equal(t, "b a c ", order(table.Route(Request{Model: "m", Load: func(string) int { return 0 }})))
	require.Equal(t, "b a c ", order(table.Route(Request{Model: "m", Load: func(name string) int { return map[string]int{"b": 45}[name] }})), "the same jobs are not counted twice")

	counts := map[string]int{}
	for i := range uint64(20_000) {
		counts[candidates(ruled(StrategyLeastBusy, nil, 3, 1), Request{Model: "m", Random: i})[0].Provider]++
	}
	converges(t, counts, 3, 1)
}

func TestLowestLatency(t *testing.T) {
	t.Parallel()
	const n = 64_000
	firsts := func(times ...float64) map[string]int {
		weights := make([]int, len(times))
		for i := range weights {
			weights[i] = 1
		}
		table := ruled(StrategyLowestLatency, func(i int, p *Provider) {
			p.States = []inference.ModelState{{Model: "other", FirstToken: 0.001}, {Model: "m", FirstToken: times[i]}}
		}, weights...)
		counts := map[string]int{}
		for i := range uint64(n) {
			counts[candidates(table, Request{Model: "m", Random: i})[0].Provider]++
		}
		return counts
	}
	counts := firsts(0.5, 0.2, 0.3)
	require.InDelta(t, n/128, counts["a"], 100)
	require.InDelta(t, n/128, counts["c"], 100, "or its average would never move")
	counts = firsts(0.5, 0, 0)
	require.InDelta(t, n/32, counts["b"], 250, "must be measured")
	require.InDelta(t, n/32, counts["c"], 250)
	converges(t, firsts(0, 0), 1, 1)
	require.Equal(t, "c a b ", order(ruled(StrategyLowestLatency, func(i int, p *Provider) {
		p.States = []inference.ModelState{{Model: "m", FirstToken: []float64{0.3, 0, 0.2}[i]}}
	}, 1, 1, 1).Route(Request{Model: "m"})))
}

func TestLowestCost(t *testing.T) {
	t.Parallel()
	table := ruled(StrategyLowestCost, func(i int, p *Provider) {
		p.Prices = [][]Price{
			{{Models: []string{"m"}, Input: 1, Output: 10}, {Models: []string{"*"}}},
			{{Models: []string{"x"}}, {Models: []string{"m*"}, Input: 2, Output: 2}},
			{{Models: []string{"x"}, Input: 0.1}},
		}[i]
	}, 1, 1, 100)
	for _, c := range []struct {
		q    Request
		want string
	}{
		{Request{PromptTokens: 10_000, OutputTokens: 10}, "a b c "},
		{Request{PromptTokens: 10, OutputTokens: 10_000}, "b a c "},
		{Request{PromptTokens: 2047}, "b a c "}, // 256 tokens are to be answered: 2047+2560 against 4094+512
		{Request{PromptTokens: 2049}, "a b c "},
		{Request{PromptTokens: 1, OutputTokens: 500, Kind: inference.KindEmbeddings}, "a b c "}, // no answer to pay
	} {
		c.q.Model = "m"
		require.Equal(t, c.want, order(table.Route(c.q)))
	}
}

func TestSticky(t *testing.T) {
	t.Parallel()
	weights := []int{3, 1, 2}
	table := ruled(StrategySticky, nil, weights...)
	counts := map[string]int{}
	home := map[string]string{}
	r := newRandom(5)
	for i := range 20_000 {
		user := "user-" + strconv.Itoa(i)
		d := order(table.Route(Request{Model: "m", User: user, Random: r.Uint64()}))
		require.Equal(t, d, order(table.Route(Request{Model: "m", User: user, Random: r.Uint64()})))
		home[user] = d[:1]
		counts[d[:1]]++
	}
	converges(t, counts, weights...)

	fewer := ruled(StrategySticky, func(i int, p *Provider) { p.Workers = i }, weights...) // a is gone
	for user, was := range home {
		now := candidates(fewer, Request{Model: "m", User: user})[0].Provider
		if was != "a" {
			require.Equal(t, was, now, "only whoever was there moves")
		}
	}

	byHeader := ruled(StrategySticky, nil, weights...)
	byHeader.Rules[0].StickyHeader = "x-session"
	header := func(value string) func(string) string {
		return func(name string) string { return map[string]string{"x-session": value}[name] }
	}
	seen := map[string]bool{}
	counts = map[string]int{}
	for i := range 20_000 {
		a := candidates(byHeader, Request{Model: "m", User: strconv.Itoa(i), Header: header("s"), Random: r.Uint64()})
		seen[a[0].Provider] = true
		user := candidates(byHeader, Request{Model: "m", User: "user-7", Header: header("")})
		require.Equal(t, home["user-7"], user[0].Provider, "without the header, the end user")
		counts[candidates(byHeader, Request{Model: "m", Random: r.Uint64()})[0].Provider]++
	}
	require.Len(t, seen, 1)
	converges(t, counts, weights...)
	require.Equal(t, uint64(0xb912458b53ec5105), digest("a", "b"), "every process of every version must come to the same")
}
