package routing

import (
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// worker is a provider with a worker and any model.
func worker(name string) Provider {
	return Provider{Name: name, Models: []string{"*"}, Workers: 1}
}

func standing(name, breaker string) Provider {
	p := worker(name)
	p.States = []inference.ModelState{{Model: "m", Breaker: breaker}}
	return p
}

// order is the decision's providers, first to last, each with its reasons if it has any
// of its own.
func order(d Decision) string {
	s := ""
	for _, c := range d.Candidates {
		s += c.Provider
		for _, reason := range c.On.Names() {
			s += ":" + reason
		}
		s += " "
	}
	return s
}

func ordered(targets ...string) Rule {
	r := Rule{Name: "r", Strategy: StrategyOrdered}
	for _, name := range targets {
		r.Targets = append(r.Targets, Target{Provider: name, Weight: 1})
	}
	return r
}

func (r Rule) or(on inference.Reasons, targets ...string) Rule {
	f := Fallback{On: on}
	for _, name := range targets {
		f.Targets = append(f.Targets, Target{Provider: name})
	}
	r.Fallback = append(r.Fallback, f)
	return r
}

func TestTheFirstRuleThatHoldsDecides(t *testing.T) {
	t.Parallel()
	first, second, third := ordered("a"), ordered("b"), ordered("c")
	first.Name, first.When = "first", When{All: []Match{{Tenants: []string{"acme"}}}}
	second.Name, second.When = "second", When{All: []Match{{Models: []string{"m"}}}}
	third.Name, third.When = "third", When{All: []Match{{Models: []string{"m*"}}}}
	table := NewTable(Policy{Rules: []Rule{first, second, third}, Aliases: map[string]string{"alias": "m"}}, []Provider{worker("a"), worker("b"), worker("c"), {Name: "d", Models: []string{"x"}}})
	for _, c := range []struct {
		q          Request
		rule, want string
	}{
		{Request{Model: "m", Tenant: "acme"}, "first", "a "},
		{Request{Model: "m"}, "second", "b "},
		{Request{Model: "alias"}, "second", "b "},
		{Request{Model: "m2"}, "third", "c "},
		{Request{Model: "x"}, "", "a b c d "},
	} {
		d := table.Route(c.q)
		require.Equal(t, c.rule, d.Rule)
		require.Equal(t, c.want, order(d))
	}
}

func TestTheModelOfATarget(t *testing.T) {
	t.Parallel()
	rule := Rule{Name: "r", Strategy: StrategyOrdered, Targets: []Target{
		{Provider: "glob"}, {Provider: "other", Model: "big"}, {Provider: "named"}, {Provider: "unknown"}, {Provider: "gone", Model: "big"},
	}}
	table := NewTable(Policy{Rules: []Rule{rule}, Aliases: map[string]string{"alias": "named/m"}}, []Provider{
		{Name: "glob", Models: []string{"m*", "glob/exact", "exact"}, Workers: 1},
		{Name: "other", Models: []string{"x"}, Workers: 1},
		{Name: "named", Models: []string{"m"}, Workers: 1},
		{Name: "unknown"},
	})
	for model, want := range map[string][]inference.Candidate{
		"m":          {{Provider: "glob", Model: "m"}, {Provider: "other", Model: "big"}, {Provider: "named", Model: "m"}, {Provider: "unknown", Model: "m"}},
		"m2":         {{Provider: "glob", Model: "m2"}, {Provider: "other", Model: "big"}, {Provider: "unknown", Model: "m2"}},
		"alias":      {{Provider: "other", Model: "big"}, {Provider: "named", Model: "m"}, {Provider: "unknown", Model: "named/m"}},
		"glob/m":     {{Provider: "glob", Model: "m"}, {Provider: "other", Model: "big"}, {Provider: "unknown", Model: "glob/m"}},
		"glob/exact": {{Provider: "glob", Model: "glob/exact"}, {Provider: "other", Model: "big"}, {Provider: "unknown", Model: "glob/exact"}},
		"unknown/z":  {{Provider: "other", Model: "big"}, {Provider: "unknown", Model: "z"}},
		"unknown/":   {{Provider: "other", Model: "big"}, {Provider: "unknown", Model: "unknown/"}},
	} {
		require.Equal(t, want, candidates(table, Request{Model: model}), model)
	}
}

func TestHealthAndFallback(t *testing.T) {
	t.Parallel()
	providers := []Provider{
		worker("well"), worker("well2"), standing("closed", inference.BreakerClosed), standing("half", inference.BreakerHalfOpen),
		standing("open", inference.BreakerOpen), standing("open2", inference.BreakerOpen),
		{Name: "none", Models: []string{"*"}},
	}
	const (
		length  = inference.ReasonContextTooLong
		content = inference.ReasonContentRefused
		down    = inference.ReasonUnavailable
		slow    = inference.ReasonTimeout
	)
	for name, c := range map[string]struct {
		rule Rule
		want string
	}{
		"targets by health":                   {ordered("none", "open", "half", "well", "closed"), "well closed half open none "},
		"fallback by health":                  {ordered("well").or(length, "none", "half", "well2"), "well well2:context_too_long half:context_too_long none:context_too_long "},
		"fallback in order":                   {ordered("well").or(0, "open").or(0, "well2"), "well open well2 "},
		"no fallback passes a target":         {ordered("well", "open").or(0, "well2"), "well open well2 "},
		"nor one that is half open":           {ordered("half").or(0, "well2"), "half well2 "},
		"unless none can be called":           {ordered("open", "none").or(length, "half").or(down, "closed"), "closed:unavailable open none half:context_too_long "},
		"by default reasons":                  {ordered("none").or(0, "open", "half", "well"), "well half none open "},
		"not for another reason":              {ordered("open").or(slow|content, "well"), "open well:timeout:content_refused "},
		"not by one that cannot be called":    {ordered("open").or(0, "open2"), "open open2 "},
		"twice in fallbacks":                  {ordered("well").or(length, "closed").or(down, "half", "closed"), "well closed:unavailable:context_too_long half:unavailable "},
		"default and another":                 {ordered("well").or(0, "closed").or(content, "closed"), "well closed:unavailable:rate_limited:timeout:content_refused "},
		"a target and a fallback":             {ordered("well", "closed").or(length, "closed"), "well closed:unavailable:rate_limited:timeout:context_too_long "},
		"a target twice":                      {ordered("well", "closed", "well"), "well closed "},
		"targets unknown, fallback due":       {ordered("gone").or(content, "well2").or(0, "open", "well"), "well open well2:content_refused "},
		"targets unknown, only open ones due": {ordered("gone").or(content, "well2").or(0, "open"), "open well2:content_refused "},
		"targets unknown, none due":           {ordered("gone").or(content, "well"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, order(NewTable(Policy{Rules: []Rule{c.rule}}, providers).Route(Request{Model: "m"})))
		})
	}
	require.Equal(t, "closed well well2 half open open2 none ", order(NewTable(Policy{Order: []string{"none", "half", "closed"}}, providers).Route(Request{Model: "m"})), "default routing")
}

// Without calls a half open breaker would never close.
func TestHalfOpenIsTriedByChance(t *testing.T) {
	t.Parallel()
	providers := []Provider{standing("half", inference.BreakerHalfOpen), worker("well")}
	for name, policy := range map[string]Policy{"default": {Order: []string{"half"}}, "rule": {Rules: []Rule{ordered("half", "well")}}} {
		table := NewTable(policy, providers)
		first := 0
		for i := range uint64(16_000) {
			if table.Route(Request{Model: "m", Random: i}).Candidates[0].Provider == "half" {
				first++
			}
		}
		require.InDelta(t, 1000, first, 120, name)
		require.Equal(t, "well", table.Route(Request{Model: "m"}).Candidates[0].Provider)
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	all := inference.Traits{Chat: true, Embeddings: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true, ContextTokens: 1000, OutputTokens: 500}
	for _, c := range []struct {
		name          string
		lose          func(*inference.Traits)
		q             Request
		missing, says string
	}{
		{"chat", func(t *inference.Traits) { t.Chat = false }, Request{Kind: inference.KindChat}, "chat", "does not chat"},
		{"embeddings", func(t *inference.Traits) { t.Embeddings = false }, Request{Kind: inference.KindEmbeddings}, "embeddings", "cannot make embeddings"},
		{"stream", func(t *inference.Traits) { t.Streaming = false }, Request{Stream: true}, "streaming", "cannot stream"},
		{"tools", func(t *inference.Traits) { t.Tools = false }, Request{Tools: true}, "tools", "cannot call tools"},
		{"images", func(t *inference.Traits) { t.Images = false }, Request{Images: true}, "images", "cannot see images"},
		{"structured", func(t *inference.Traits) { t.StructuredOutput = false }, Request{StructuredOutput: true}, "structured output", "cannot follow a JSON Schema"},
		{"context", func(t *inference.Traits) { t.ContextTokens = 999 }, Request{PromptTokens: 1500}, "a prompt of this length", "has a context too short for the prompt"},
		{"output", func(t *inference.Traits) { t.OutputTokens = 499 }, Request{OutputTokens: 500}, "an answer of this length", "cannot answer at the length that is allowed for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			less := all
			c.lose(&less)
			able := worker("able")
			able.Traits = []inference.ModelTraits{{Models: []string{"m"}, Traits: all}, {Models: []string{"*"}}}
			unable := worker("unable")
			unable.Traits = []inference.ModelTraits{{Models: []string{"x"}, Traits: all}, {Models: []string{"m"}, Traits: less}, {Models: []string{"*"}, Traits: all}}
			q := c.q
			q.Model = "m"
			excluded := []Exclusion{{inference.Candidate{Provider: "unable", Model: "m"}, c.says}}
			for _, policy := range []Policy{{}, {Rules: []Rule{ordered("unable", "able")}}, {Rules: []Rule{ordered("able").or(0, "unable")}}} {
				both := NewTable(policy, []Provider{able, unable, worker("unsaid")}).Explain(q)
				require.Contains(t, order(both), "able ")
				require.NotContains(t, order(both), "unable")
				require.Equal(t, excluded, both.Excluded)
				require.Nil(t, both.Lacking, "someone can")
			}
			for _, policy := range []Policy{{}, {Rules: []Rule{ordered("unable")}}} {
				alone := NewTable(policy, []Provider{unable})
				require.Empty(t, alone.Route(q).Candidates)
				require.Equal(t, []string{c.missing}, alone.Route(q).Lacking)
				require.Len(t, alone.Route(Request{Model: "m"}).Candidates, 1, "nothing is asked for")
			}
		})
	}
}

func TestLackingIsSaidOnce(t *testing.T) {
	t.Parallel()
	p := func(name string) Provider {
		p := worker(name)
		p.Traits = []inference.ModelTraits{{Models: []string{"*"}, Traits: inference.Traits{Chat: true}}}
		return p
	}
	d := NewTable(Policy{}, []Provider{p("a"), p("b")}).Explain(Request{Model: "m", Kind: inference.KindChat, Tools: true, Images: true})
	require.Equal(t, []string{"tools", "images"}, d.Lacking)
	require.Equal(t, "cannot call tools, cannot see images", d.Excluded[1].Why)
	require.Nil(t, NewTable(Policy{}, nil).Route(Request{Model: "m"}).Lacking, "nobody serves it at all")
}

// The fallback for what is too long is due when it is known to be.
func TestFallbackForWhatTargetsLack(t *testing.T) {
	t.Parallel()
	short := worker("short")
	short.Traits = []inference.ModelTraits{{Models: []string{"*"}, Traits: inference.Traits{Chat: true, ContextTokens: 100}}}
	table := NewTable(Policy{Rules: []Rule{ordered("short").or(inference.ReasonContentRefused, "free").or(inference.ReasonContextTooLong, "long").or(0, "well")}},
		[]Provider{short, worker("free"), worker("long"), worker("well")})
	require.Equal(t, "short free:content_refused long:context_too_long well ", order(table.Route(Request{Model: "m", PromptTokens: 150})))
	require.Equal(t, "long:context_too_long free:content_refused well ", order(table.Route(Request{Model: "m", PromptTokens: 151})))
	require.Equal(t, "well free:content_refused long:context_too_long ", order(table.Route(Request{Model: "m", Images: true})))
	require.Equal(t, "long:context_too_long well free:content_refused ", order(table.Route(Request{Model: "m", Images: true, PromptTokens: 151})))
}

func TestServes(t *testing.T) {
	t.Parallel()
	byTenant, byModel, rest := ordered("a").or(0, "b"), ordered("b"), ordered("c")
	byTenant.When = When{All: []Match{{Models: []string{"m"}, Tenants: []string{"acme"}}}, Not: []Match{{Stream: new(true)}}}
	byModel.When = When{Any: []Match{{Models: []string{"n"}}, {Models: []string{"o"}}}}
	rest.When = When{Not: []Match{{Models: []string{"m"}}}}
	providers := []Provider{worker("a"), {Name: "b", Models: []string{"*"}}, {Name: "c", Models: []string{"m", "n", "z"}, Workers: 1}, {Name: "d", Models: []string{"m"}, Workers: 1}}
	table := NewTable(Policy{Rules: []Rule{byTenant, byModel, rest}, Aliases: map[string]string{"alias": "n"}}, providers)
	for model, want := range map[string]string{"m": "a b c d ", "n": "b ", "alias": "b ", "z": "c ", "y": ""} {
		require.Equal(t, want, order(Decision{Candidates: table.Serves(model)}), model)
	}
	require.Equal(t, []inference.Candidate{{Provider: "b", Model: "n"}}, table.Serves("alias"))
	require.Equal(t, "c d a b ", order(Decision{Candidates: NewTable(Policy{}, providers).Serves("m")}))
	require.Equal(t, []inference.Candidate{{Provider: "a", Model: "q"}}, NewTable(Policy{}, providers).Serves("a/q"))
}

func TestExplain(t *testing.T) {
	t.Parallel()
	half := standing("half", inference.BreakerHalfOpen)
	half.Limit, half.InFlight = 4, 1
	table := NewTable(Policy{Rules: []Rule{func() Rule {
		r := ordered("gone", "half", "spare").or(inference.ReasonContextTooLong, "none")
		r.Targets[2].Weight = 0
		r.Strategy = StrategyLeastBusy
		r.When = When{All: []Match{{Models: []string{"m"}}}}
		return r
	}()}}, []Provider{half, {Name: "none", Models: []string{"*"}}, {Name: "spare", Models: []string{"*"}, Workers: 2}, {Name: "exact", Models: []string{"half/x"}, Workers: 1}})
	d := table.Explain(Request{Model: "m"})
	require.Equal(t, []string{
		"target, load 0, without a weight; can be called", "target, load 0.25, weight 1; breaker half open", "fallback 1 on context_too_long; no worker",
	}, d.Why)
	require.Equal(t, []Exclusion{{inference.Candidate{Provider: "gone", Model: "m"}, "is a provider that nobody serves and the configuration does not name"}}, d.Excluded)
	d = table.Explain(Request{Model: "half/x"})
	require.Equal(t, "exact half ", order(d))
	require.Equal(t, []string{"no rule applies; serves the model by its name; can be called", "no rule applies; the model's name names the provider; can be called"}, d.Why)
	require.Len(t, d.Excluded, 2)
	require.Equal(t, "serves any such model, but this one's name names another provider", d.Excluded[0].Why)
}
