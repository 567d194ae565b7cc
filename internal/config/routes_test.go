package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/routing"
)

const twoSims = "providers: {a: {type: sim}, b: {type: sim}}\n"

// Everything that a rule may say arrives in the words of package routing, and what it
// does not say has its default.
func TestPolicy(t *testing.T) {
	t.Parallel()
	loaded, err := read(twoSims + `
routing:
  order: [b]
  aliases: {fast: gpt-4o-mini, Own/Name.1: a/m}
  rules:
    - name: pictures
      when:
        all: [{models: ["gpt-*"], endpoints: [chat, embeddings], images: true, stream: false, min_prompt_tokens: 5, max_prompt_tokens: 9}]
        any: [{tenants: [acme]}, {headers: {X-Team: "ml-*"}, metadata: {purpose: "n*"}}]
        not: [{keys: [k], tools: true}]
      targets: [{provider: a, model: m, weight: 3}, {provider: b}, {provider: b, model: z, weight: 0}]
      strategy: sticky
      sticky_header: x-session
      fallback:
        - targets: [{provider: a, model: n}]
        - {on: [context_too_long, content_refused], targets: [{provider: b, model: n}]}
    - name: rest
      when:
      targets: [{provider: a}]
`)
	require.NoError(t, err)
	require.Equal(t, routing.Policy{
		Order:   []string{"b"},
		Aliases: map[string]string{"fast": "gpt-4o-mini", "Own/Name.1": "a/m"},
		Rules: []routing.Rule{{
			Name: "pictures",
			When: routing.When{
				All: []routing.Match{{
					Models: []string{"gpt-*"}, Endpoints: []string{"chat", "embeddings"}, Images: new(true), Stream: new(false),
					MinPromptTokens: 5, MaxPromptTokens: 9,
				}},
				Any: []routing.Match{{Tenants: []string{"acme"}}, {Headers: map[string]string{"X-Team": "ml-*"}, Metadata: map[string]string{"purpose": "n*"}}},
				Not: []routing.Match{{Keys: []string{"k"}, Tools: new(true)}},
			},
			Targets:  []routing.Target{{Provider: "a", Model: "m", Weight: 3}, {Provider: "b", Weight: 1}, {Provider: "b", Model: "z"}},
			Strategy: routing.StrategySticky, StickyHeader: "x-session",
			Fallback: []routing.Fallback{
				{On: inference.DefaultReasons, Targets: []routing.Target{{Provider: "a", Model: "n"}}},
				{On: inference.ReasonContextTooLong | inference.ReasonContentRefused, Targets: []routing.Target{{Provider: "b", Model: "n"}}},
			},
		}, {
			Name: "rest", Targets: []routing.Target{{Provider: "a", Weight: 1}}, Strategy: routing.StrategyWeighted,
		}},
	}, loaded.Config.Routing.Policy())
}

// The words of the settings are those of the packages that act on them.
func TestWordsOfRouting(t *testing.T) {
	t.Parallel()
	rule := specOf(Rule{})
	require.Equal(t, []string{"weighted", "ordered", "round_robin", "least_busy", "lowest_latency", "lowest_cost", "sticky"}, rule.field("strategy").oneOf)
	on := specOf(Fallback{}).field("on")
	every := inference.Reasons(0xff)
	require.Equal(t, every.Names(), on.elem.oneOf)
	require.Equal(t, inference.DefaultReasons.Names(), on.def)
	require.Equal(t, []string{string(inference.KindChat), string(inference.KindEmbeddings)}, specOf(Match{}).field("endpoints").elem.oneOf)
	require.EqualValues(t, routing.MaxRules, specOf(Routing{}).field("rules").max)
	require.EqualValues(t, routing.MaxCandidates, rule.field("targets").max)
	require.EqualValues(t, routing.MaxWeight, specOf(Target{}).field("weight").max)
}

// A default list is not shared between those who have it.
func TestDefaultListsAreApart(t *testing.T) {
	t.Parallel()
	loaded, err := read(twoSims + "routing: {rules: [{name: r, targets: [{provider: a, model: m}], fallback: [{targets: [{provider: a, model: n}]}, {targets: [{provider: b, model: n}]}]}]}")
	require.NoError(t, err)
	fallback := loaded.Config.Routing.Rules[0].Fallback
	fallback[0].On[0] = "changed"
	require.Equal(t, []string{"unavailable", "rate_limited", "timeout"}, fallback[1].On)
}

func TestWhatIsNotGivenIsNotFalse(t *testing.T) {
	t.Parallel()
	loaded, err := read(`
providers:
  a:
    type: sim
    capabilities:
      - {models: ["m*"], images: false, tools: true, context_tokens: 0}
      - {models: ["*"], output_tokens: "${N}", chat: "${YES}"}
    prices: [{models: [m], input: 0.5}, {models: ["*"], input: 2, output: 10}]
`, "N=4096", "YES=true")
	require.NoError(t, err)
	require.Equal(t, []Capability{
		{Models: []string{"m*"}, Images: new(false), Tools: new(true), ContextTokens: new(0)},
		{Models: []string{"*"}, OutputTokens: new(4096), Chat: new(true)},
	}, loaded.Config.Providers["a"].Capabilities)
	require.Equal(t, []Price{{Models: []string{"m"}, Input: 5e8}, {Models: []string{"*"}, Input: 2e9, Output: 10e9}}, loaded.Config.Providers["a"].Prices)
}

func TestRoutingFaults(t *testing.T) {
	t.Parallel()
	sim := func(settings string) string { return "providers: {a: {type: sim, " + settings + "}}" }
	rule := func(settings string) string {
		return twoSims + "routing:\n  rules:\n    - name: first\n      " + strings.ReplaceAll(settings, "\n", "\n      ") + "\n"
	}
	admin := func(address, token string) string {
		return "admin: {address: '" + address + "', token: '" + token + "'}"
	}
	const token = "0123456789abcdef"
	cases := []struct{ name, text, want string }{
		{"unknown target", rule("targets: [{provider: a}, {provider: c}]"), "sluice.yaml:5:43: routing.rules[0].targets[1].provider: in the rule first: "},
		{"unknown fallback", rule("targets: [{provider: a}]\nfallback:\n- targets: [{provider: c}]"), "sluice.yaml:7:30: routing.rules[0].fallback[0].targets[0].provider: in the rule first: "},
		{"no targets", rule("strategy: ordered"), "sluice.yaml:4:11: routing.rules[0].targets: in the rule first: "},
		{"glob of a rule", rule("targets: [{provider: a}]\nwhen: {not: [{models: [m]}, {models: ['[']}]}"), "sluice.yaml:6:45: routing.rules[0].when.not[1].models[0]: in the rule first: "},
		{"glob of a header", rule("targets: [{provider: a}]\nwhen: {all: [{headers: {x-team: '['}}]}"), "routing.rules[0].when.all[0].headers.x-team: in the rule first: "},
		{"prompt of no length", rule("targets: [{provider: a}]\nwhen: {all: [{min_prompt_tokens: 9, max_prompt_tokens: 5}]}"), "routing.rules[0].when.all[0]"},
		{"header without sticky", rule("targets: [{provider: a}]\nsticky_header: x"), "sluice.yaml:6:22: routing.rules[0].sticky_header: in the rule first: "},
		{"name twice", rule("targets: [{provider: a}]\nwhen: {all: [{stream: true}]}") + "    - {name: first, targets: [{provider: a}]}", "routing.rules[1].name: in the rule first: "},
		{"no name", twoSims + "routing: {rules: [{targets: [{provider: a}]}]}", "routing.rules[0].name: "},
		{"odd name", twoSims + "routing: {rules: [{name: 'a b', targets: [{provider: a}]}]}", "routing.rules[0].name: must begin with a letter or digit"},
		{"alias of an alias", twoSims + "routing:\n  aliases:\n    x: y\n    y: m\n", "sluice.yaml:4:8: routing.aliases.x: "},
		{"alias of nothing", twoSims + "routing: {aliases: {x: ''}}", "routing.aliases.x: "},
		{"weight of a fallback", rule("targets: [{provider: a}]\nfallback: [{targets: [{provider: b, weight: 2}]}]"), "fallback[0].targets[0].weight: is not known"},
		{"weight without use", rule("targets: [{provider: a, weight: 2}, {provider: b}]\nstrategy: ordered"), "routing.rules[0].targets[0].weight: in the rule first: is of no use"},
		{"negative weight", rule("targets: [{provider: a, weight: -1}]"), "targets[0].weight: must be from 0 to 1000000"},
		{"strategy", rule("targets: [{provider: a}]\nstrategy: best"), "routing.rules[0].strategy: must be one of weighted, ordered"},
		{"reason", rule("targets: [{provider: a}]\nfallback: [{on: [bored], targets: [{provider: b}]}]"), "fallback[0].on[0]: must be one of unavailable"},
		{"no reason", rule("targets: [{provider: a}]\nfallback: [{on: [], targets: [{provider: b}]}]"), "fallback[0].on: in the rule first: is empty"},
		{"endpoint", rule("targets: [{provider: a}]\nwhen: {all: [{endpoints: [audio]}]}"), "endpoints[0]: must be one of chat, embeddings"},
		{"yes for true", rule("targets: [{provider: a}]\nwhen: {all: [{stream: yes}]}"), "stream: must be true or false, not text"},
		{"quoted truth", rule("targets: [{provider: a}]\nwhen: {all: [{stream: 'true'}]}"), "stream: must be true or false, not text"},
		{"one for true", rule("targets: [{provider: a}]\nwhen: {all: [{stream: 1}]}"), "stream: must be true or false, not a whole number"},
		{"match is no list", rule("targets: [{provider: a}]\nwhen: {all: {stream: true}}"), "routing.rules[0].when.all: must be a list"},
		{"too many rules", twoSims + "routing: {rules: [" + strings.Repeat("{},", 257) + "]}", "routing.rules: holds more than 256 elements"},
		{"too many headers", rule("targets: [{provider: a}]\nwhen: {all: [{headers: {" + manyKeys(65) + "}}]}"), "headers: holds more than 64 elements"},

		{"least concurrency", sim("concurrency: 2, min_concurrency: 3"), "providers.a.min_concurrency: must not be more than concurrency"},
		{"slowdown", sim("max_slowdown: 0.5"), "providers.a.max_slowdown: must be more than 1, or 0"},
		{"retry budget", sim("retry_budget: 1.5"), "providers.a.retry_budget: must be from 0 to 1"},
		{"failure rate", sim("breaker: {failure_rate: 1.1}"), "providers.a.breaker.failure_rate: must be from 0 to 1"},
		{"no probes", sim("breaker: {probes: 0}"), "providers.a.breaker.probes: must be from 1 to"},
		{"capability's glob", sim("capabilities: [{models: [m, '['], images: false}]"), "providers.a.capabilities[0].models[1]: must be a model's name or a glob"},
		{"capability of none", sim("capabilities: [{images: false}]"), "providers.a.capabilities[0].models: is missing"},
		{"capability of nothing", sim("capabilities: [{models: [m]}]"), "providers.a.capabilities[0]: says nothing of these models"},
		{"capability said before", sim("capabilities: [{models: ['m*'], images: false}, {models: [m1], images: true}]"), "providers.a.capabilities[1].models[0]: never counts"},
		{"capability after all", sim("capabilities: [{models: ['*'], images: false}, {models: ['m*'], images: true}]"), "providers.a.capabilities[1].models[0]: never counts"},
		{"negative tokens", sim("capabilities: [{models: [m], context_tokens: -1}]"), "context_tokens: must be from 0 to"},
		{"negative price", sim("prices: [{models: [m], input: -0.1}]"), "providers.a.prices[0].input: must be an amount of money"},
		{"price of none", sim("prices: [{input: 1}]"), "providers.a.prices[0].models: is missing"},
		{"price's glob", sim("prices: [{models: [''], input: 1}]"), "providers.a.prices[0].models[0]: must be a model's name or a glob"},
		{"price said before", sim("prices: [{models: [m], input: 1}, {models: [m], input: 2}]"), "providers.a.prices[1].models[0]: never counts"},
		{
			"price of a day said before",
			sim("prices: [{models: ['m*'], input: 1, from: 2026-01-01T00:00:00Z}, {models: [m], input: 2}, {models: [m-1], input: 2, from: 2026-01-01T01:00:00+01:00}]"),
			"providers.a.prices[2].models[0]: never counts",
		},

		{"admin without token", admin("127.0.0.1:8081", ""), "admin.token: must have 16 characters"},
		{"admin's short token", admin("127.0.0.1:8081", "0123456789abcde"), "admin.token: must have 16 characters"},
		{"admin's odd token", admin("127.0.0.1:8081", "0123456789 abcdef"), "admin.token: must hold no space"},
		{"token without address", admin("", token), "admin.token: needs admin.address"},
		{"admin's address", admin("x", token), "admin.address: must be host:port"},
		{"admin among clients", admin("127.0.0.1:8080", token), "admin.address: must not be where clients are served"},
		{"admin among clients everywhere", admin(":8080", token), "admin.address: must not be where clients are served"},
		{"a client's token", admin(":1", token) + "\nauth: {keys: [{name: a, key: '" + token + "'}]}", "admin.token: is a client's key too"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got := problems(t, c.text)
			require.Len(t, got, 1, "one fault is reported once")
			require.Contains(t, got[0], c.want)
			require.True(t, strings.HasPrefix(got[0], "sluice.yaml"), got[0])
		})
	}
}

func manyKeys(n int) string {
	var b strings.Builder // a line for each, since many on one line count as nested
	for i := range n {
		fmt.Fprintf(&b, "\n        x%02d: v,", i)
	}
	return b.String()
}

// A rule that could not be read is not reported once more for what it lacks.
func TestUnreadRulesAreReportedOnce(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"sluice.yaml:2:54: routing.rules[0].targets[0].provider: must be text, not a whole number; put it in quotes"},
		problems(t, twoSims+"routing: {rules: [{name: r, targets: [{provider:     5}]}]}"))
	require.Len(t, problems(t, twoSims+"routing: {rules: [{name: r, targets: 5}]}"), 1)
	require.Len(t, problems(t, twoSims+"routing: {rules: [{name: [], targets: [{provider: a}]}]}"), 1)
}

func TestAdminAddresses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"127.0.0.1:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "127.0.0.2:1", false},
		{"127.0.0.1:1", "127.0.0.1:2", false},
		{"0.0.0.0:1", "127.0.0.1:1", true},
		{"127.0.0.1:1", "[::]:1", true},
		{":1", ":1", true},
		{"127.0.0.1:0", "127.0.0.1:0", false},
	} {
		require.Equal(t, c.same, sameAddress(c.a, c.b), "%s %s", c.a, c.b)
	}
}

func TestOverridesInNestedLists(t *testing.T) {
	t.Parallel()
	file := twoSims + `
routing:
  aliases: {gpt-4.1: m, Fast: m}
  rules:
    - name: r
      when: {all: [{headers: {X-Team: t}}]}
      targets: [{provider: a}]
`
	loaded, err := read(file,
		"SLUICE_ROUTING_ALIASES_GPT_4_1=m1", "SLUICE_ROUTING_ALIASES_FAST=m2", "SLUICE_ROUTING_ALIASES_NEW_ONE=m3",
		"SLUICE_ROUTING_RULES_0_WHEN_ALL_0_HEADERS_X_TEAM=u",
		"SLUICE_ROUTING_RULES_0_WHEN_ALL_0_STREAM=false",
		"SLUICE_ROUTING_RULES_0_WHEN_ALL_0_MODELS=x,y",
		"SLUICE_ROUTING_RULES_0_TARGETS_0_WEIGHT=7",
		"SLUICE_ROUTING_RULES_0_TARGETS_1_PROVIDER=b",
		"SLUICE_ROUTING_RULES_0_FALLBACK_0_ON=timeout",
		"SLUICE_ROUTING_RULES_0_FALLBACK_0_TARGETS_0_PROVIDER=b",
		"SLUICE_ROUTING_RULES_0_FALLBACK_0_TARGETS_0_MODEL=n",
		"SLUICE_ROUTING_RULES_1_NAME=s",
		"SLUICE_ROUTING_RULES_1_TARGETS_0_PROVIDER=a",
		"SLUICE_PROVIDERS_A_BREAKER_OPEN_FOR=3s", "SLUICE_PROVIDERS_A_MIN_CONCURRENCY=2", "SLUICE_PROVIDERS_A_MAX_SLOWDOWN=2.5",
		"SLUICE_PROVIDERS_A_CAPABILITIES_0_MODELS=m", "SLUICE_PROVIDERS_A_CAPABILITIES_0_IMAGES=false", "SLUICE_PROVIDERS_A_CAPABILITIES_0_CONTEXT_TOKENS=8192",
		"SLUICE_PROVIDERS_A_PRICES_0_MODELS=m", "SLUICE_PROVIDERS_A_PRICES_0_INPUT=2.5",
		"SLUICE_ADMIN_ADDRESS=127.0.0.1:8081", "SLUICE_ADMIN_TOKEN=0123456789abcdef",
	)
	require.NoError(t, err)
	require.Empty(t, loaded.UnknownEnv)
	r := loaded.Config.Routing
	require.Equal(t, map[string]string{"gpt-4.1": "m1", "Fast": "m2", "new_one": "m3"}, r.Aliases)
	require.Equal(t, []Match{{Headers: map[string]string{"X-Team": "u"}, Stream: new(false), Models: []string{"x", "y"}}}, r.Rules[0].When.All)
	require.Equal(t, []Target{{Provider: "a", Weight: 7}, {Provider: "b", Weight: 1}}, r.Rules[0].Targets)
	require.Equal(t, []Fallback{{On: []string{"timeout"}, Targets: []FallbackTarget{{Provider: "b", Model: "n"}}}}, r.Rules[0].Fallback)
	require.Equal(t, "s", r.Rules[1].Name)
	a := loaded.Config.Providers["a"]
	require.Equal(t, "3s", a.Breaker.OpenFor.String())
	require.Equal(t, 2, a.MinConcurrency)
	require.InDelta(t, 2.5, a.MaxSlowdown, 0)
	require.Equal(t, []Capability{{Models: []string{"m"}, Images: new(false), ContextTokens: new(8192)}}, a.Capabilities)
	require.Equal(t, []Price{{Models: []string{"m"}, Input: 25e8}}, a.Prices)
	require.Equal(t, Admin{Address: "127.0.0.1:8081", Token: "0123456789abcdef"}, loaded.Config.Admin)

	for variable, want := range map[string]string{
		"ROUTING_RULES_0_TARGETS_2_PROVIDER=a":              "routing.rules[0].targets[2].provider: leaves a gap in the list; the next element is 1",
		"ROUTING_RULES_2_NAME=x":                            "routing.rules[2].name: leaves a gap in the list; the next element is 1",
		"ROUTING_RULES_0_FALLBACK_1_TARGETS_0_PROVIDER=a":   "fallback[1].targets[0].provider: leaves a gap in the list; the next element is 0",
		"ROUTING_RULES_0_WHEN_ALL_0_STREAM=yes":             "when.all[0].stream: must be true or false",
		"ROUTING_RULES_0_STRATEGY=best":                     "routing.rules[0].strategy: must be one of",
		"PROVIDERS_A_CAPABILITIES_0_CONTEXT_TOKENS=plenty":  "capabilities[0].context_tokens: must be a whole number",
		"ROUTING_RULES_0_FALLBACK_0_TARGETS_0_PROVIDER=who": "routing.rules[0].fallback[0].targets[0].provider: in the rule r: ",
	} {
		got := problems(t, file, "SLUICE_"+variable)
		require.Contains(t, strings.Join(got, "\n"), want, variable)
		require.Contains(t, got[0], "environment variable SLUICE_", variable)
	}
}

// The wall holds for the new settings too: a worker has no use for the admin's token,
// and whoever explains routing for no secret at all.
func TestRolesOfRouting(t *testing.T) {
	t.Parallel()
	const shared = `
server: {address: "${LISTEN}"}
queue: {url: "nats://q:4222"}
auth: {keys: [{name: a, key: "${CLIENT_KEY}"}]}
providers:
  a:
    type: openai
    base_url: "${A_URL}"
    api_key: "${A_KEY}"
    models: [m]
    min_concurrency: 5
    breaker: {failures: 9}
    capabilities: [{models: [m], images: false}]
    prices: [{models: [m], input: 1}]
routing: {rules: [{name: r, targets: [{provider: a}]}]}
admin: {address: "127.0.0.1:8080", token: "${ADMIN_TOKEN}"}
`
	get := func(role Role, environ ...string) (*Config, error) {
		loaded, err := load([]byte(shared), Options{Path: "f", Environ: environ, Role: role})
		if err != nil {
			return nil, err
		}
		return loaded.Config, nil
	}
	c, err := get(RoleWorker, "LISTEN=:1", "A_URL=http://a", "A_KEY=k")
	require.NoError(t, err)
	require.Equal(t, Admin{}, c.Admin, "a worker is given no admin token")
	require.Equal(t, 9, c.Providers["a"].Breaker.Failures)
	require.Len(t, c.Routing.Rules, 1, "a worker's file may carry the rules")

	c, err = get(RoleIngress, "LISTEN=:1", "CLIENT_KEY=0123456789abcdef", "ADMIN_TOKEN=fedcba9876543210")
	require.NoError(t, err)
	require.Equal(t, "fedcba9876543210", c.Admin.Token.Reveal())
	require.Equal(t, NewProvider(TypeOpenAI).Breaker, c.Providers["a"].Breaker, "what is a worker's is as if it were not set")
	require.Equal(t, 1, c.Providers["a"].MinConcurrency)
	require.Len(t, c.Providers["a"].Prices, 1)
	_, err = get(RoleIngress, "LISTEN=:1", "CLIENT_KEY=0123456789abcdef")
	require.ErrorContains(t, err, "ADMIN_TOKEN")

	c, err = get(RoleRouting)
	require.NoError(t, err, "to explain routing needs no variable")
	require.Len(t, c.Routing.Rules, 1)
	require.Equal(t, []string{"m"}, c.Providers["a"].Models)
	require.Len(t, c.Providers["a"].Capabilities, 1)
	require.Len(t, c.Providers["a"].Prices, 1)
	require.Empty(t, c.Auth.Keys)

	c, err = get(RoleOperator, "ADMIN_TOKEN=fedcba9876543210")
	require.NoError(t, err, "to ask an ingress needs what leads there, wherever it serves clients")
	require.Equal(t, Admin{Address: "127.0.0.1:8080", Token: "fedcba9876543210"}, c.Admin)
	require.Empty(t, c.Providers)
	_, err = get(RoleOperator)
	require.ErrorContains(t, err, "ADMIN_TOKEN")
	_, err = get(RoleIngress, "LISTEN=:8080", "CLIENT_KEY=0123456789abcdef", "ADMIN_TOKEN=fedcba9876543210")
	require.ErrorContains(t, err, "admin.address: must not be where clients are served")
}

// What Show prints of rules is a file that Load reads to the same rules, and the admin's
// token is not in it.
func TestRoutingIsShown(t *testing.T) {
	t.Parallel()
	loaded, err := read(twoSims + `
routing:
  aliases: {"a/b c": "x: y", "true": m}
  rules:
    - name: r
      when: {all: [{images: false, headers: {"X-Y": "*"}}], not: [{metadata: {"k k": "v"}}]}
      targets: [{provider: a, weight: 0}, {provider: b}]
      fallback: [{on: [timeout], targets: [{provider: a, model: n}]}]
admin: {address: "127.0.0.1:8081", token: ` + hidden + `}
`)
	require.NoError(t, err)
	text, err := Show(loaded.Config)
	require.NoError(t, err)
	shown := string(text)
	require.NotContains(t, shown, "hunter2")
	require.Contains(t, shown, "token: xxxxx\n")
	require.Contains(t, shown, "images: false\n")
	require.NotContains(t, shown, "tools:", "what is not given is not shown")
	again, err := read(strings.Replace(shown, "token: xxxxx", "token: "+hidden, 1))
	require.NoError(t, err, shown)
	require.Equal(t, loaded.Config, again.Config)
}
