package pricing

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// now is when the shipped prices were read.
var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func cost(t *testing.T, text string) inference.Cost {
	t.Helper()
	c, err := inference.ParseCost(text)
	require.NoError(t, err)
	return c
}

func known(prompt, completion, cached, reasoning int64) inference.Usage {
	return inference.Usage{PromptTokens: prompt, CompletionTokens: completion, CachedTokens: cached, ReasoningTokens: reasoning, Known: true}
}

var types = map[string]string{
	"openai": "openai", "eu": "openai", "claude": "anthropic", "google": "gemini", "sim": "sim", "own": "custom", "anthropic": "", "nameless": "",
}

func TestShippedPricesAreWhole(t *testing.T) {
	t.Parallel()
	vendors, err := readPrices(pricesFile)
	require.NoError(t, err)
	require.Len(t, vendors, 3)
	for _, vendor := range []string{typeOpenAI, typeAnthropic, typeGemini} {
		seen := make(map[string]bool)
		require.NotEmpty(t, vendors[vendor])
		for _, p := range vendors[vendor] {
			require.NotEmpty(t, p.Models)
			require.False(t, p.From.IsZero(), p.Models)
			require.Positive(t, p.Input, p.Models)
			require.LessOrEqual(t, either(p.CachedInput, p.Input), p.Input, p.Models)
			if !strings.Contains(p.Models[0], "embedding") {
				require.GreaterOrEqual(t, p.Output, p.Input, p.Models)
			}
			if p.Long != nil {
				require.GreaterOrEqual(t, p.Long.Over, int64(100_000), p.Models)
				require.Greater(t, p.Long.Input, p.Input, p.Models)
				require.Greater(t, p.Long.Output, p.Output, p.Models)
			}
			for _, model := range p.Models {
				require.NotContains(t, strings.TrimSuffix(model, "*"), "*", "only names, and what they begin with")
				id := model + p.From.String()
				require.False(t, seen[id], "%s has two prices from one day", model)
				seen[id] = true
			}
		}
	}
}

func TestAFileOfPricesIsReadStrictly(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"unknown field": "openai: [{models: [m], from: 2026-01-01, inptu: 1}]",
		"no date":       "openai: [{models: [m], from: soon, input: 1}]",
		"no money":      "openai: [{models: [m], from: 2026-01-01, input: cheap}]",
		"negative":      "openai: [{models: [m], from: 2026-01-01, input: -1}]",
		"too fine":      "openai: [{models: [m], from: 2026-01-01, input: 0.0000000001}]",
		"no list":       "openai: {models: [m]}",
	} {
		_, err := readPrices([]byte(text))
		require.Error(t, err, name)
	}
}

func TestAVendorsModelsArePriced(t *testing.T) {
	t.Parallel()
	table := New(nil, types)
	for _, c := range []struct {
		provider, model, input, output string // empty: not priced
	}{
		{"openai", "gpt-4o", "2.5", "10"},
		{"openai", "gpt-4o-2024-08-06", "2.5", "10"},
		{"openai", "gpt-4o-2024-05-13", "5", "15"}, // by its whole name, not by its beginning
		{"openai", "gpt-4o-mini-2024-07-18", "0.15", "0.6"},
		{"openai", "gpt-4o-audio-preview", "", ""},
		{"openai", "gpt-5.5-pro", "30", "180"},
		{"openai", "o3-2025-04-16", "2", "8"},
		{"openai", "text-embedding-3-small", "0.02", "0"},
		{"eu", "gpt-4.1-nano", "0.1", "0.4"},
		{"eu", "llama-3.3-70b", "", ""},
		{"eu", "gpt-oss-120b", "", ""},
		{"eu", "claude-opus-5", "", ""}, // somebody who resells it
		{"claude", "claude-opus-4-20250514", "15", "75"},
		{"claude", "claude-opus-4-5-20251101", "5", "25"},
		{"claude", "claude-3-5-haiku-20241022", "0.8", "4"},
		{"claude", "gpt-4o", "", ""},
		{"google", "gemini-2.5-flash", "0.3", "2.5"},
		{"google", "gemini-2.5-flash-lite", "0.1", "0.4"},
		{"google", "gemini-2.5-flash-image", "", ""},
		{"sim", "whatever", "0", "0"},
		{"own", "gpt-4o", "", ""},
		{"anthropic", "claude-haiku-4-5", "1", "5"}, // of a type that its name tells
		{"nameless", "gpt-4o", "", ""},
		{"unknown", "gpt-4o", "", ""},
		{"openai", "", "", ""},
	} {
		p, ok := table.Find(c.provider, c.model, now)
		require.Equal(t, c.input != "", ok, "%s of %s", c.model, c.provider)
		if ok {
			require.Equal(t, cost(t, c.input), p.Input, c.model)
			require.Equal(t, cost(t, c.output), p.Output, c.model)
		}
	}
	var none *Table
	_, ok := none.Find("openai", "gpt-4o", now)
	require.False(t, ok)
	require.Empty(t, none.List("openai", now))
}

func TestTheLatestPriceThatHasBegunCounts(t *testing.T) {
	t.Parallel()
	day := func(d int) time.Time { return time.Date(2026, 1, d, 0, 0, 0, 0, time.UTC) }
	table := New(map[string][]Price{"openai": {
		{Models: []string{"gpt-4o*"}, From: day(10), Input: 10},
		{Models: []string{"gpt-4o"}, From: day(20), Input: 20},
		{Models: []string{"gpt-4o*"}, From: day(20), Input: 21},
		{Models: []string{"in*"}, Input: 1},
	}}, types)
	shippedPrice := cost(t, "2.5")
	for _, c := range []struct {
		model string
		at    time.Time
		want  inference.Cost
	}{
		{"gpt-4o", day(9), shippedPrice}, // none of its own has begun
		{"gpt-4o", day(10), 10},
		{"gpt-4o", day(20).Add(-1), 10},
		{"gpt-4o", day(20), 20}, // the first of those from one day
		{"gpt-4o-2024-08-06", day(20), 21},
		{"inhouse", day(1), 1},
		{"gpt-4.1", day(20), cost(t, "2")},
	} {
		p, ok := table.Find("openai", c.model, c.at)
		require.True(t, ok)
		require.Equal(t, c.want, p.Input, "%s at %s", c.model, c.at)
	}
	before, ok := New(nil, types).Find("openai", "o3", time.Date(2025, 6, 9, 23, 59, 0, 0, time.UTC))
	require.True(t, ok)
	require.Equal(t, cost(t, "10"), before.Input, "as it was then")
	_, ok = New(nil, types).Find("openai", "o3", time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC))
	require.False(t, ok, "before there was one")
}

func TestTheLongestBeginningCounts(t *testing.T) {
	t.Parallel()
	l := newList([]Price{
		{Models: []string{"gpt-*"}, Input: 1},
		{Models: []string{"gpt-4o-*"}, From: now.Add(time.Hour), Input: 2},
		{Models: []string{"gpt-4o*"}, Input: 3},
		{Models: []string{"gpt-4o"}, Input: 4},
	})
	for model, want := range map[string]inference.Cost{"gpt-5": 1, "gpt-4o-mini": 3, "gpt-4o2": 3, "gpt-4o": 4} {
		p, ok := l.find(model, now)
		require.True(t, ok)
		require.Equal(t, want, p.Input, model)
	}
	p, _ := l.find("gpt-4o-mini", now.Add(time.Hour))
	require.Equal(t, inference.Cost(2), p.Input)
}

// What List returns must tell the same as Find, taken in order.
func TestListAgreesWithFind(t *testing.T) {
	t.Parallel()
	table := New(map[string][]Price{"eu": {
		{Models: []string{"gpt-4o-mini", "x*"}, From: now.Add(time.Hour), Input: 1},
		{Models: []string{"gpt-4o-mini"}, From: now.Add(-time.Hour), Input: 2},
	}}, types)
	for _, provider := range []string{"openai", "eu", "claude", "google", "sim", "own"} {
		list := table.List(provider, now)
		for _, model := range []string{"gpt-4o", "gpt-4o-2024-05-13", "gpt-4o-2024-11-20", "gpt-4o-mini", "claude-opus-4-1-20250805", "gemini-2.5-pro", "x", "llama"} {
			want, found := table.Find(provider, model, now)
			var got Price
			ok := false
			for _, p := range list {
				if covers(p, model) {
					got, ok = p, true
					break
				}
			}
			require.Equal(t, found, ok, "%s of %s", model, provider)
			require.Equal(t, want.Input, got.Input, "%s of %s", model, provider)
		}
	}
}

func covers(p Price, model string) bool {
	_, ok := New(map[string][]Price{"p": {{Models: p.Models}}}, nil).Find("p", model, now)
	return ok
}

func TestTokensArePricedByTheirKind(t *testing.T) {
	t.Parallel()
	one := inference.Cost(1)
	table := New(map[string][]Price{"p": {
		{Models: []string{"all"}, Input: 3_000_000, CachedInput: &one, Output: 15_000_000, Reasoning: &one},
		{Models: []string{"two"}, Input: 3_000_000, Output: 15_000_000},
		{Models: []string{"free-cache"}, Input: 3_000_000, CachedInput: new(inference.Cost), Output: 15_000_000},
		{Models: []string{"small"}, Input: 1},
	}}, nil)
	for name, c := range map[string]struct {
		model string
		usage inference.Usage
		want  inference.Cost
	}{
		"cached and reasoning":   {"all", known(1000, 100, 400, 60), 600*3 + 40*15 + 0}, // 460 millionths round to none
		"as input and output":    {"two", known(1000, 100, 400, 60), 1000*3 + 100*15},
		"cached for nothing":     {"free-cache", known(1000, 0, 400, 0), 600 * 3},
		"more cached than there": {"all", known(10, 0, 400, 0), 0},
		"more reasoning":         {"two", known(0, 10, 0, 400), 150},
		"negative":               {"two", known(-5, -5, -5, -5), 0},
		"none":                   {"two", known(0, 0, 0, 0), 0},
		"just below half":        {"small", known(499_999, 0, 0, 0), 0},
		"half":                   {"small", known(500_000, 0, 0, 0), 1},
		"rounded once":           {"small", known(1_499_999, 0, 0, 0), 1},
	} {
		got, ok := table.Cost("p", c.model, c.usage, now)
		require.True(t, ok, name)
		require.Equal(t, c.want, got, name)
	}
	_, ok := table.Cost("p", "all", inference.Usage{PromptTokens: 9}, now)
	require.False(t, ok, "nobody knows the tokens")
	estimate, ok := table.Estimate("p", "two", "any", 1000, 100, now)
	require.True(t, ok)
	require.Equal(t, inference.Cost(1000*3+100*15), estimate)
	_, ok = table.Estimate("p", "other", "any", 1, 1, now)
	require.False(t, ok)
}

// A request reserves what its row can cost at most: none of the ways in which the tokens may
// turn out to be cached or reasoning takes more.
func TestAnEstimateIsTheMostThatARowCosts(t *testing.T) {
	t.Parallel()
	dear, cheap, one := inference.Cost(60_000_000), inference.Cost(1_000_000), inference.Cost(1)
	table := New(map[string][]Price{"p": {
		{Models: []string{"reasons"}, Input: 3_000_000, Output: 15_000_000, Reasoning: &dear},
		{Models: []string{"caches"}, Input: 3_000_000, CachedInput: &dear, Output: 15_000_000, Reasoning: &cheap},
		{Models: []string{"plain", "chat"}, Input: 3_000_000, CachedInput: &one, Output: 15_000_000},
		{Models: []string{"long"}, Input: 1, CachedInput: &dear, Output: 1, Reasoning: &dear, Long: &LongPrice{Over: 999, Input: 6_000_000, Output: 9_000_000}},
	}}, map[string]string{"p": "x", "openai": ""})
	for _, c := range []struct {
		provider, model, asked string
		want                   inference.Cost
	}{
		{"p", "reasons", "m", 1000*3 + 100*60},
		{"p", "caches", "m", 1000*60 + 100*15},
		{"p", "plain", "m", 1000*3 + 100*15},
		{"p", "long", "m", 1000*6 + 100*9},
		{"p", "deployment-1", "chat", 1000*3 + 100*15}, // known by the name that was asked for alone
		{"p", "reasons", "chat", 1000*3 + 100*60},
		{"openai", "gpt-4o", "chat", 1000*2500 + 100*10_000},
	} {
		estimate, ok := table.Estimate(c.provider, c.model, c.asked, 1000, 100, now)
		require.True(t, ok, "%+v", c)
		require.Equal(t, c.want, estimate, "%+v", c)
		for cached := int64(0); cached <= 1000; cached += 500 {
			for reasoning := int64(0); reasoning <= 100; reasoning += 50 {
				row := &inference.Record{Provider: c.provider, ModelServed: c.model, ModelAsked: c.asked, CreatedAt: now, Usage: known(1000, 100, cached, reasoning)}
				cost, ok := table.RowCost(row)
				require.True(t, ok)
				require.LessOrEqual(t, cost, estimate, "%+v", c)
			}
		}
	}
	_, ok := table.Estimate("openai", "deployment-1", "gpt-4o", 1, 1, now)
	require.False(t, ok, "a vendor's list knows what served alone")
}

func TestALongPromptHasItsOwnPrice(t *testing.T) {
	t.Parallel()
	table := New(nil, types)
	short, _ := table.Cost("google", "gemini-2.5-pro", known(200_000, 1000, 0, 0), now)
	require.Equal(t, cost(t, "0.26"), short)
	long, _ := table.Cost("google", "gemini-2.5-pro", known(200_001, 1000, 100_000, 500), now)
	require.Equal(t, cost(t, "0.2900025"), long, "all of it: 100,001 at 2.50, 100,000 at 0.25, 1,000 at 15")
}

// However many tokens an upstream says that there were, nothing overflows, and the result
// is what exact arithmetic gives, as far as it can be held.
func TestCostsAreExact(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	numbers := []int64{0, 1, 499_999, 500_000, 1_000_000, 1 << 40, 1<<53 + 1, math.MaxInt64 - 1, math.MaxInt64}
	number := func() int64 {
		if random.IntN(3) == 0 {
			return numbers[random.IntN(len(numbers))]
		}
		return random.Int64N(1 << random.IntN(63))
	}
	for range 20_000 {
		in, out, cached, reasoning := price(number()), price(number()), price(number()), price(number())
		u := known(number(), number(), number(), number())
		p := Price{Input: in, Output: out, CachedInput: &cached, Reasoning: &reasoning}
		exact := new(big.Int)
		c, r := min(u.CachedTokens, u.PromptTokens), min(u.ReasoningTokens, u.CompletionTokens)
		for _, term := range [][2]int64{
			{u.PromptTokens - c, int64(in)}, {c, int64(cached)}, {u.CompletionTokens - r, int64(out)}, {r, int64(reasoning)},
		} {
			exact.Add(exact, new(big.Int).Mul(big.NewInt(term[0]), big.NewInt(term[1])))
		}
		exact.Add(exact, big.NewInt(million/2)).Div(exact, big.NewInt(million))
		want := int64(math.MaxInt64)
		if exact.IsInt64() {
			want = exact.Int64()
		}
		require.Equal(t, inference.Cost(want), p.Of(u), "%+v at %+v", u, p)
	}
}

func price(n int64) inference.Cost { return min(inference.Cost(n), mostPrice) }

func TestARowIsPricedByWhatServedIt(t *testing.T) {
	t.Parallel()
	table := New(map[string][]Price{"eu": {{Models: []string{"chat"}, Input: 7_000_000}}}, types)
	row := func(provider, asked, served string) *inference.Record {
		return &inference.Record{Provider: provider, ModelAsked: asked, ModelServed: served, CreatedAt: now, Usage: known(1000, 0, 0, 0)}
	}
	for _, c := range []struct {
		row  *inference.Record
		want string // empty: not priced
	}{
		{row("openai", "fast", "gpt-4o-mini-2024-07-18"), "0.00015"},
		{row("openai", "gpt-4o", "llama-3"), ""}, // an alias for what costs something else
		{row("openai", "gpt-4o", ""), "0.0025"},
		{row("eu", "chat", "inhouse-7"), "0.000007"},
		{row("eu", "chat", "gpt-4o"), "0.000007"},
		{row("eu", "other", "chat"), "0.000007"},
		{row("eu", "other", "inhouse-7"), ""},
	} {
		got, ok := table.RowCost(c.row)
		require.Equal(t, c.want != "", ok, "%+v", c.row)
		if ok {
			require.Equal(t, c.want, got.String(), "%+v", c.row)
		}
	}
	unknown := row("openai", "gpt-4o", "gpt-4o")
	unknown.Usage.Known = false
	_, ok := table.RowCost(unknown)
	require.False(t, ok)
}
