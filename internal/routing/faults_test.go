package routing

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFaults(t *testing.T) {
	t.Parallel()
	one := []Target{{Provider: "a", Weight: 1}}
	rule := func(change func(*Rule)) Policy {
		r := Rule{Name: "r", Targets: one}
		change(&r)
		return Policy{Rules: []Rule{r}}
	}
	match := func(m Match) Policy { return rule(func(r *Rule) { r.When.All = []Match{{Stream: new(true)}, m} }) }
	for name, c := range map[string]struct {
		policy   Policy
		at, says string
	}{
		"nothing":                 {Policy{}, "", ""},
		"a rule for all":          {rule(func(*Rule) {}), "", ""},
		"no name":                 {rule(func(r *Rule) { r.Name = "" }), "0 name", "must not be empty"},
		"a name twice":            {Policy{Rules: []Rule{{Name: "r", Targets: one, When: When{All: []Match{{Stream: new(true)}}}}, {Name: "r", Targets: one}}}, "1 name", "earlier rule"},
		"no targets":              {rule(func(r *Rule) { r.Targets = nil }), "0 targets", "at least one provider"},
		"unknown provider":        {rule(func(r *Rule) { r.Targets = []Target{{Provider: "a", Weight: 1}, {Provider: "z", Weight: 1}} }), "0 targets 1 provider", "names no provider"},
		"no provider":             {rule(func(r *Rule) { r.Targets = []Target{{Weight: 1}} }), "0 targets 0 provider", "must not be empty"},
		"no weight":               {rule(func(r *Rule) { r.Targets = []Target{{Provider: "a"}, {Provider: "b"}} }), "0 targets", "must not all have the weight 0"},
		"one without weight":      {rule(func(r *Rule) { r.Targets = []Target{{Provider: "a"}, {Provider: "b", Weight: 1}} }), "", ""},
		"negative weight":         {rule(func(r *Rule) { r.Targets = []Target{{Provider: "a", Weight: -1}} }), "0 targets 0 weight", "must not be negative"},
		"too large a weight":      {rule(func(r *Rule) { r.Targets = []Target{{Provider: "a", Weight: MaxWeight + 1}} }), "0 targets 0 weight", "must not be more than 1000000"},
		"a target twice":          {rule(func(r *Rule) { r.Targets = append(one, one...) }), "0 targets 1", "same as an earlier target"},
		"another model":           {rule(func(r *Rule) { r.Targets = append(one, Target{Provider: "a", Model: "m"}) }), "", ""},
		"unknown strategy":        {rule(func(r *Rule) { r.Strategy = "best" }), "0 strategy", "must be weighted"},
		"sticky header alone":     {rule(func(r *Rule) { r.StickyHeader = "x" }), "0 sticky_header", "unless the strategy is sticky"},
		"sticky header":           {rule(func(r *Rule) { r.StickyHeader, r.Strategy = "x", StrategySticky }), "", ""},
		"empty fallback":          {rule(func(r *Rule) { r.Fallback = []Fallback{{}} }), "0 fallback 0 targets", "must not be empty"},
		"fallback's provider":     {rule(func(r *Rule) { r.Fallback = []Fallback{{Targets: one}, {Targets: []Target{{Provider: "z"}}}} }), "0 fallback 1 targets 0 provider", "names no provider"},
		"fallback's target twice": {rule(func(r *Rule) { r.Fallback = []Fallback{{Targets: append(one, one...)}} }), "0 fallback 0 targets 1", "same as an earlier"},
		"empty match":             {rule(func(r *Rule) { r.When.Any = []Match{{Stream: new(true)}, {}} }), "0 when any 1", "must not be empty"},
		"bad model":               {match(Match{Models: []string{"m", "[a"}}), "0 when all 1 models 1", "must be a name or a glob"},
		"bad tenant":              {match(Match{Tenants: []string{""}}), "0 when all 1 tenants 0", "must be a name or a glob"},
		"bad key":                 {match(Match{Keys: []string{`\`}}), "0 when all 1 keys 0", "must be a name or a glob"},
		"bad header":              {match(Match{Headers: map[string]string{"x": "["}}), "0 when all 1 headers x", "must be a name or a glob"},
		"header without name":     {match(Match{Headers: map[string]string{"": "a"}}), "0 when all 1 headers ", "must not be empty"},
		"bad metadata":            {rule(func(r *Rule) { r.When.Not = []Match{{Metadata: map[string]string{"x": "["}}} }), "0 when not 0 metadata x", "must be a name or a glob"},
		"bad endpoint":            {match(Match{Endpoints: []string{"chat", "audio"}}), "0 when all 1 endpoints 1", "must be chat or embeddings"},
		"least above most":        {match(Match{MinPromptTokens: 2, MaxPromptTokens: 1}), "0 when all 1 min_prompt_tokens", "must not be more than max_prompt_tokens"},
		"negative least":          {match(Match{MinPromptTokens: -2, MaxPromptTokens: 1}), "0 when all 1 min_prompt_tokens", "must not be negative"},
		"negative most":           {match(Match{MinPromptTokens: 2, MaxPromptTokens: -1}), "0 when all 1 max_prompt_tokens", "must not be negative"},
		"alias of an alias":       {Policy{Aliases: map[string]string{"a": "b", "b": "c"}}, "-1 aliases a", "must not be another alias"},
		"alias of itself":         {Policy{Aliases: map[string]string{"a": "a"}}, "-1 aliases a", "must not be the alias itself"},
		"alias of nothing":        {Policy{Aliases: map[string]string{"a": ""}}, "-1 aliases a", "must not be empty"},
		"nothing as alias":        {Policy{Aliases: map[string]string{"": "a"}}, "-1 aliases ", "must not be empty"},
		"most rules":              {Policy{Rules: rules(MaxRules)}, "", ""},
		"too many rules":          {Policy{Rules: rules(MaxRules + 1)}, "-1 rules", "must not hold more than 256"},
		"most matches":            {rule(func(r *Rule) { r.When = matches(MaxMatches) }), "", ""},
		"too many matches":        {rule(func(r *Rule) { r.When = matches(MaxMatches + 1) }), "0 when", "must not hold more than 64"},
		"most candidates":         {rule(func(r *Rule) { r.Targets = models(60); r.Fallback = []Fallback{{Targets: models(4)}} }), "", ""},
		"too many candidates":     {rule(func(r *Rule) { r.Targets = models(60); r.Fallback = []Fallback{{Targets: models(5)}} }), "0 targets", "must not be more than 64"},
		"never holds":             {rule(func(r *Rule) { r.When = When{All: []Match{{Stream: new(true)}}, Not: []Match{{Stream: new(true)}}} }), "0 when", "must not rule itself out"},
		"shadowed":                {Policy{Rules: []Rule{{Name: "first", Targets: one}, {Name: "second", Targets: one}}}, "1", `must not stand behind rule "first"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found := c.policy.Faults(func(p string) bool { return len(p) == 1 && p < "y" })
			if c.at == "" {
				require.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			at := append([]string{strconv.Itoa(found[0].Rule)}, found[0].Path...)
			require.Equal(t, c.at, strings.Join(at, " "))
			require.Contains(t, found[0].Problem, c.says)
		})
	}
}

func rules(n int) (all []Rule) {
	for i := range n {
		name := strconv.Itoa(i)
		all = append(all, Rule{Name: name, When: When{All: []Match{{Tenants: []string{name}}}}, Targets: []Target{{Provider: "a", Weight: 1}}})
	}
	return all
}

func matches(n int) (w When) {
	for i := range n {
		w.Any = append(w.Any, Match{Tenants: []string{strconv.Itoa(i)}})
	}
	return w
}

func models(n int) (all []Target) {
	for i := range n {
		all = append(all, Target{Provider: "a", Model: strconv.Itoa(i), Weight: 1})
	}
	return all
}

func TestShadows(t *testing.T) {
	t.Parallel()
	all := func(m ...Match) When { return When{All: m} }
	gpt, gpt4 := Match{Models: []string{"gpt-*"}}, Match{Models: []string{"gpt-4*", "gpt-5"}}
	stream, plain, tools := Match{Stream: new(true)}, Match{Stream: new(false)}, Match{Tools: new(true)}
	for name, c := range map[string]struct {
		earlier, later When
		want           bool
	}{
		"always":                {When{}, all(gpt), true},
		"never the other way":   {all(gpt), When{}, false},
		"the same":              {all(gpt, stream), all(stream, gpt), true},
		"a wider glob":          {all(gpt), all(gpt4), true},
		"a narrower glob":       {all(gpt4), all(gpt), false},
		"a class":               {all(Match{Models: []string{"*]"}}), all(Match{Models: []string{"[ab]"}}), false},
		"a question mark":       {all(Match{Models: []string{"gpt-?"}}), all(Match{Models: []string{"gpt-*"}}), false},
		"less asked":            {all(stream), all(gpt, stream), true},
		"more asked":            {all(gpt, stream), all(gpt), false},
		"one of any":            {When{Any: []Match{gpt, stream}}, all(gpt4), true},
		"each of any":           {all(gpt), When{Any: []Match{gpt4, {Models: []string{"gpt-3"}}}}, true},
		"not each of any":       {all(gpt), When{Any: []Match{gpt4, stream}}, false},
		"not what never is":     {When{Not: []Match{stream}}, all(plain), true},
		"not what may be":       {When{Not: []Match{stream}}, all(gpt), false},
		"not, of not":           {When{Not: []Match{{Models: []string{"gpt-4*"}, Tools: new(true)}}}, When{Not: []Match{tools}}, true},
		"not, by its opposite":  {all(plain), When{Not: []Match{stream}}, true},
		"not two things":        {all(plain), When{Not: []Match{{Stream: new(true), Tools: new(true)}}}, false},
		"bounds":                {all(Match{MinPromptTokens: 5, MaxPromptTokens: 50}), all(Match{MinPromptTokens: 5}, Match{MaxPromptTokens: 49}), true},
		"other bounds":          {all(Match{MinPromptTokens: 5}), all(Match{MinPromptTokens: 4}), false},
		"bounds by not":         {all(Match{MaxPromptTokens: 9}), When{Not: []Match{{MinPromptTokens: 10}}}, true},
		"not other bounds":      {When{Not: []Match{{MinPromptTokens: 10}}}, all(Match{MaxPromptTokens: 9}), true},
		"other tenants":         {When{Not: []Match{{Tenants: []string{"a*"}}}}, all(Match{Tenants: []string{"b", "c"}}), true},
		"maybe other tenants":   {When{Not: []Match{{Tenants: []string{"a*"}}}}, all(Match{Tenants: []string{"b*"}}), false},
		"models by two names":   {When{Not: []Match{{Models: []string{"a"}}}}, all(Match{Models: []string{"b"}}), false},
		"keys by id and name":   {When{Not: []Match{{Keys: []string{"a"}}}}, all(Match{Keys: []string{"b"}}), false},
		"headers":               {all(Match{Headers: map[string]string{"x": "*"}}), all(Match{Headers: map[string]string{"x": "a", "y": "b"}}), true},
		"another header":        {all(Match{Headers: map[string]string{"x": "*"}}), all(Match{Headers: map[string]string{"y": "b"}}), false},
		"another value":         {When{Not: []Match{{Metadata: map[string]string{"x": "a"}}}}, all(Match{Metadata: map[string]string{"x": "b"}}), true},
		"absent metadata":       {When{Not: []Match{{Metadata: map[string]string{"x": "a"}}}}, all(Match{Metadata: map[string]string{"y": "b"}}), false},
		"endpoints":             {all(Match{Endpoints: []string{"chat", "embeddings"}}), all(Match{Endpoints: []string{"chat"}}), true},
		"the other endpoint":    {When{Not: []Match{{Endpoints: []string{"chat"}}}}, all(Match{Endpoints: []string{"embeddings"}}), true},
		"one endpoint for both": {all(Match{Endpoints: []string{"chat"}}), all(Match{Endpoints: []string{"chat", "embeddings"}}), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, c.earlier.follows(&c.later))
		})
	}
}

// No rule that a request can reach is said to be out of reach.
func TestShadowsAreSound(t *testing.T) {
	t.Parallel()
	r := newRandom(21)
	follows, impossible, both := 0, 0, 0
	for range 30_000 {
		earlier, later := r.when(), r.when()
		if r.rarely() { // rules that have something to do with each other
			later.All = append(later.All, earlier.All...)
			later.Not = append(later.Not, earlier.Not...)
			if r.rarely() {
				later.Any = earlier.Any
			}
		}
		shadowed, never := earlier.follows(&later), later.impossible()
		if shadowed {
			follows++
		}
		if never {
			impossible++
		}
		if !shadowed && !never {
			continue
		}
		for range 40 {
			q := r.request()
			resolved := r.one("gpt-4o", "mini", q.Model)
			if !later.holds(&q, resolved) {
				continue
			}
			both++
			require.False(t, never, "%+v\n%+v", later, q)
			require.True(t, earlier.holds(&q, resolved), "%+v\n%+v\n%+v", earlier, later, q)
		}
	}
	require.Greater(t, follows, 500)
	require.Greater(t, impossible, 500)
	require.Greater(t, both, 2000)
}

// Whatever the policy, a fault tells where it is.
func TestFaultsOfAnyPolicy(t *testing.T) {
	t.Parallel()
	r := newRandom(31)
	for range 5000 {
		p := r.policy()
		for _, f := range p.Faults(func(name string) bool { return name != "gone" }) {
			require.NotEmpty(t, f.Problem)
			require.Less(t, f.Rule, len(p.Rules))
			require.True(t, f.Rule >= 0 || f.Path[0] == "aliases" || f.Path[0] == "rules")
		}
	}
}
