package routing

import (
	"math/rand/v2"
	"net/http"

	"sluice/internal/inference"
)

// random makes policies, providers and requests that have much to do with each other.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 7))} }

func (r random) one(texts ...string) string { return texts[r.IntN(len(texts))] }

func (r random) some(n int, texts ...string) []string {
	var s []string
	for range r.IntN(n + 1) {
		s = append(s, r.one(texts...))
	}
	return s
}

func (r random) rarely() bool { return r.IntN(4) == 0 }

func (r random) maybe() *bool {
	switch r.IntN(8) {
	case 0:
		return new(true)
	case 1:
		return new(false)
	default:
		return nil
	}
}

var globs = []string{"gpt-4o", "gpt-*", "*", "mini", "m?ni", "m[a-j]ni", "fast", "*i*", "gpt-?o", "a/*", `mi\ni`, "[", "gpt-*o"}

func (r random) match() Match {
	m := Match{Stream: r.maybe(), Tools: r.maybe(), Images: r.maybe()}
	if r.rarely() {
		m.Models = r.some(2, globs...)
	}
	if r.rarely() {
		m.Endpoints = r.some(2, "chat", "embeddings")
	}
	if r.rarely() {
		m.Tenants = r.some(2, globs...)
	}
	if r.rarely() {
		m.Keys = r.some(2, globs...)
	}
	if r.rarely() {
		m.Headers = map[string]string{r.one("x-a", "x-b"): r.one(globs...)}
	}
	if r.rarely() {
		m.Metadata = map[string]string{r.one("a", "b"): r.one(globs...)}
	}
	if r.rarely() {
		m.MinPromptTokens = r.IntN(8)
	}
	if r.rarely() {
		m.MaxPromptTokens = r.IntN(8)
	}
	return m
}

func (r random) when() When {
	matches := func(n int) (all []Match) {
		for range r.IntN(n) {
			all = append(all, r.match())
		}
		return all
	}
	return When{All: matches(3), Any: matches(4), Not: matches(3)}
}

func (r random) request() Request {
	texts := []string{"gpt-4o", "mini", "fast", "gpt-5", "a/mini", "", "m/ni", "[", "gpt-xo"}
	header := make(http.Header)
	q := Request{
		Model: r.one(texts...), Tenant: r.one(texts...), KeyID: r.one(texts...), KeyName: r.one(texts...), Header: header.Get, Metadata: map[string]string{}, User: r.one("", "u1", "u2"),
		Stream: r.rarely(), Tools: r.rarely(), Images: r.rarely(), StructuredOutput: r.IntN(8) == 0, PromptTokens: r.IntN(9), OutputTokens: r.IntN(4) * 1000,
		Kind: inference.KindChat, Random: r.Uint64(),
	}
	if r.rarely() {
		q.Kind = inference.KindEmbeddings
	}
	for _, name := range []string{"x-a", "x-b"} {
		if !r.rarely() {
			header.Set(name, r.one(texts...))
		}
	}
	for _, name := range []string{"a", "b"} {
		if !r.rarely() {
			q.Metadata[name] = r.one(texts...)
		}
	}
	turn := r.Uint64()
	q.Turn = func(string) uint64 { return turn }
	load := r.IntN(5)
	q.Load = func(provider string) int { return len(provider) * load }
	return q
}

func (r random) traits() inference.Traits {
	yes := func() bool { return !r.rarely() }
	return inference.Traits{
		Chat: yes(), Embeddings: yes(), Streaming: yes(), Tools: yes(), Images: yes(), StructuredOutput: yes(),
		ContextTokens: r.IntN(3) * 4, OutputTokens: r.IntN(3) * 1000,
	}
}

var names = []string{"a", "b", "c", "d", "e"}

func (r random) providers() []Provider {
	var all []Provider
	for _, name := range names {
		p := Provider{Name: name, Models: r.some(3, globs...), Workers: r.IntN(3), Limit: r.IntN(4), InFlight: r.IntN(9), Waiting: r.IntN(9), Held: r.IntN(2)}
		for range r.IntN(3) {
			p.Traits = append(p.Traits, inference.ModelTraits{Models: r.some(2, globs...), Traits: r.traits()})
		}
		for _, model := range []string{"gpt-4o", "mini", "big"} {
			if !r.rarely() {
				p.States = append(p.States, inference.ModelState{
					Model: model, Breaker: r.one(inference.BreakerClosed, inference.BreakerHalfOpen, inference.BreakerOpen), FirstToken: float64(r.IntN(4)),
				})
			}
		}
		if r.rarely() {
			p.Prices = []Price{{Models: r.some(2, globs...), Input: r.Float64(), Output: r.Float64()}}
		}
		all = append(all, p)
	}
	return all
}

func (r random) targets(n int) []Target {
	var all []Target
	for range r.IntN(n) + 1 {
		all = append(all, Target{Provider: r.one(append([]string{"gone"}, names...)...), Model: r.one("", "", "gpt-4o", "mini", "big"), Weight: r.IntN(4)})
	}
	return all
}

var strategies = []Strategy{"", StrategyWeighted, StrategyOrdered, StrategyRoundRobin, StrategyLeastBusy, StrategyLowestLatency, StrategyLowestCost, StrategySticky}

func (r random) policy() Policy {
	p := Policy{Aliases: map[string]string{"fast": r.one("mini", "a/mini", "gpt-4o")}, Order: r.some(3, names...)}
	for range r.IntN(3) {
		rule := Rule{Name: r.one("one", "two"), Targets: r.targets(4), Strategy: strategies[r.IntN(len(strategies))], StickyHeader: r.one("", "x-a")}
		if r.rarely() {
			rule.When = r.when()
		}
		for range r.IntN(4) {
			rule.Fallback = append(rule.Fallback, Fallback{On: inference.Reasons(r.IntN(32)), Targets: r.targets(2)})
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}
