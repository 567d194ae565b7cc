package ingress

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/pricing"
	"sluice/internal/routing"
	"sluice/store"
)

func TestScopesOfARequest(t *testing.T) {
	t.Parallel()
	entries := []limits.ModelLimits{{Models: []string{"free-*"}}, {Models: []string{"gpt-*", "x"}, Concurrent: 3}, {Models: []string{"*"}, Queued: 9}}
	ten := limits.Limits{RequestsPerMinute: 10, OnLimit: limits.Queue}
	bare := limits.Limits{RequestsPerMinute: 10}
	withModels := limits.Limits{TokensPerMinute: 5, Models: entries}
	for name, c := range map[string]struct {
		settings LimitSettings
		payer    payer
		want     []limits.Scope
	}{
		"nothing":                  {payer: payer{key: "k", tenant: "t", model: "m"}},
		"an action bounds nothing": {settings: LimitSettings{Key: limits.Limits{OnLimit: limits.Queue}}, payer: payer{key: "k", tenant: "t", model: "m"}},
		"keys without their own":   {LimitSettings{Key: ten}, payer{key: "k", tenant: "t", model: "m"}, []limits.Scope{{ID: "key:k", Limits: bare}}},
		"a key's own, whatever others have": {
			LimitSettings{Key: ten},
			payer{key: "k", own: &limits.Limits{Concurrent: 1}, tenant: "t", model: "m"},
			[]limits.Scope{{ID: "key:k", Limits: limits.Limits{Concurrent: 1}}},
		},
		"a key without any":      {LimitSettings{Key: ten}, payer{key: "k", own: &limits.Limits{}, tenant: "t", model: "m"}, []limits.Scope{{ID: "key:k", Limits: bare}}},
		"a key's action alone":   {LimitSettings{Key: ten}, payer{key: "k", own: &limits.Limits{OnLimit: limits.Refuse}, tenant: "t", model: "m"}, []limits.Scope{{ID: "key:k", Limits: bare}}},
		"a key that is exempt":   {LimitSettings{Key: ten}, payer{key: "k", own: &limits.Limits{Models: []limits.ModelLimits{{Models: []string{"*"}}}}, tenant: "t", model: "m"}, nil},
		"tenants without any":    {LimitSettings{Tenant: ten}, payer{key: "k", tenant: "t", model: "m"}, []limits.Scope{{ID: "tenant:t", Limits: bare}}},
		"a tenant of the file":   {LimitSettings{Tenant: ten, Tenants: map[string]*limits.Limits{"t": {Queued: 2}}}, payer{tenant: "t"}, []limits.Scope{{ID: "tenant:t", Limits: limits.Limits{Queued: 2}}}},
		"the entry that exempts": {LimitSettings{Models: entries}, payer{key: "k", tenant: "t", model: "free-1"}, nil},
		"a model by itself":      {LimitSettings{Models: entries}, payer{key: "k", tenant: "t", model: "gpt-4o"}, []limits.Scope{{ID: "model:gpt-4o", Limits: limits.Limits{Concurrent: 3}}}},
		"a holder's model, counted with its entry": {
			LimitSettings{Tenant: limits.Limits{Models: entries}},
			payer{key: "k", own: &withModels, tenant: "t", model: "gpt-4o"},
			[]limits.Scope{
				{ID: "key:k", Limits: limits.Limits{TokensPerMinute: 5}},
				{ID: "key:k/models:gpt-*\nx", Limits: limits.Limits{Concurrent: 3}, Before: entries[:1]},
				{ID: "tenant:t/models:gpt-*\nx", Limits: limits.Limits{Concurrent: 3}, Before: entries[:1]},
			},
		},
		"a tenant's action alone": {
			LimitSettings{Tenant: ten, TenantLimits: func(string) *limits.Limits { return &limits.Limits{OnLimit: limits.Refuse} }},
			payer{tenant: "t"},
			[]limits.Scope{{ID: "tenant:t", Limits: bare}},
		},
		"a tenant of the database": {
			LimitSettings{TenantLimits: func(name string) *limits.Limits { return &limits.Limits{Concurrent: int64(len(name))} }},
			payer{tenant: "four"},
			[]limits.Scope{{ID: "tenant:four", Limits: limits.Limits{Concurrent: 4}}},
		},
	} {
		require.Equal(t, c.want, c.settings.scopes(c.payer), name)
	}
	all := LimitSettings{Key: withModels, Tenant: withModels, Models: entries}
	require.Len(t, all.scopes(payer{key: "k", tenant: "t", model: "gpt-4o"}), scopesMost)
}

func TestWhoseCostsCountForAScope(t *testing.T) {
	t.Parallel()
	entry := []limits.ModelLimits{{Models: []string{"gpt-*", "x"}, Concurrent: 3}}
	l := LimitSettings{Key: limits.Limits{Concurrent: 1, Models: entry}, Tenant: limits.Limits{Queued: 1, Models: entry}, Models: entry}
	var spenders []store.SpendScope
	for _, scope := range l.scopes(payer{key: "config:k/a", tenant: "t:1", model: "x"}) {
		spenders = append(spenders, SpendScope(scope))
	}
	require.Equal(t, []store.SpendScope{
		{KeyID: "config:k/a"},
		{KeyID: "config:k/a", Models: entry[0].Models},
		{Tenant: "t:1"},
		{Tenant: "t:1", Models: entry[0].Models},
		{Models: []string{"x"}},
	}, spenders)

	// What an earlier entry covers, also one that bounds nothing, is not a later one's.
	l = LimitSettings{Key: limits.Limits{Models: []limits.ModelLimits{
		{Models: []string{"gpt-4o", "o3"}}, {Models: []string{"gpt-4*"}, Queued: 1}, {Models: []string{"gpt-*"}, Budget: limits.Budget{Day: 1}},
	}}}
	later := l.scopes(payer{key: "k", model: "gpt-5"})
	require.Len(t, later, 1)
	spender := SpendScope(later[0])
	require.Equal(t, store.SpendScope{KeyID: "k", Models: []string{"gpt-*"}, Except: []string{"gpt-4o", "o3", "gpt-4*"}}, spender)
	for model, want := range map[string]bool{"gpt-4o": false, "gpt-4.1": false, "gpt-5": true, "o3": false, "claude": false} {
		require.Equal(t, want, spender.Covers(model), model)
	}
}

// A subject or a tenant of a token may be called anything: no name makes two scopes one.
func TestNoTwoScopesShareAnID(t *testing.T) {
	t.Parallel()
	names := []string{
		"bob", "idp/bob", "bob/models:*", "bob/models:", "bob%2Fmodels:*", "bob/waiting", "bob/waiting/waiting", "bob%2Fwaiting", "bob/models:x/waiting",
		"/models:", "/waiting", "%", "%25", "a\nb", "a%0Ab", "bob/models:a\nb", "waiting", "models:",
	}
	globs := [][]string{{"*"}, {"a", "b"}, {"a\nb"}, {"a%0Ab"}, {"x"}, {"x/waiting"}, {"x", "y/waiting"}, {"/models:x"}}
	seen := make(map[string]bool)
	see := func(s limits.Scope) {
		for _, id := range []string{s.ID, waitingScope(&s).ID} {
			require.False(t, seen[id], "%q", id)
			seen[id] = true
		}
	}
	for _, name := range names {
		for i, models := range globs {
			all := limits.Limits{Concurrent: 1, Models: []limits.ModelLimits{{Models: models, Queued: 1}}}
			l := LimitSettings{Key: all, Tenant: all}
			for j, holder := range []store.SpendScope{{KeyID: name}, {Tenant: name}} {
				held := heldScopes(holderScope([]string{kindKey, kindTenant}[j], name), &all)
				require.Len(t, held, 2)
				require.Equal(t, holder, SpendScope(held[0].Scope))
				if i == 0 {
					see(held[0].Scope)
				}
				see(held[1].Scope)
				holder.Models = models
				require.Equal(t, holder, SpendScope(held[1].Scope))
				if models[0] == "*" {
					require.Equal(t, []limits.Scope{held[0].Scope, held[1].Scope}, l.scopes(payer{key: name, tenant: name, model: "m"})[2*j:2*j+2])
				}
			}
		}
		l := LimitSettings{Models: []limits.ModelLimits{{Models: []string{"*"}, Queued: 1}}}
		model := l.scopes(payer{model: name})[0]
		see(model)
		require.Equal(t, store.SpendScope{Models: []string{name}}, SpendScope(model))
		refusal := limits.Refusal{Scope: holderScope(kindKey, name), Limit: "concurrent", Most: 1, Asked: 1, RetryAfter: time.Second}
		require.Contains(t, errRefused(&refusal, "m").Message, "of this caller is")
	}
	for _, ordinary := range []string{"config:ci", "jwt:idp:ada@example.com", "vendor/model", "waiting", "a/waiting/b"} {
		require.Equal(t, kindKey+ordinary, holderScope(kindKey, ordinary))
	}
}

func TestWhoseLimitsSayToWait(t *testing.T) {
	t.Parallel()
	queue, refuse := limits.Limits{Concurrent: 1, OnLimit: limits.Queue}, limits.Limits{Concurrent: 1, OnLimit: limits.Refuse}
	for _, c := range []struct {
		key, tenant limits.Limits
		want        bool
	}{
		{queue, refuse, true}, {refuse, queue, false}, {limits.Limits{OnLimit: limits.Refuse}, queue, true}, {limits.Limits{}, limits.Limits{}, false},
	} {
		l := LimitSettings{Key: c.key, Tenant: c.tenant}
		require.Equal(t, c.want, l.waits(payer{key: "k", tenant: "t"}))
	}
	alone := func(l limits.Limits) *limits.Limits { return &limits.Limits{OnLimit: l.OnLimit} }
	for _, c := range []struct{ others, own limits.Limits }{{refuse, queue}, {queue, refuse}} {
		ofKeys := LimitSettings{Key: c.others}
		require.Equal(t, c.own.OnLimit == limits.Queue, ofKeys.waits(payer{key: "k", own: alone(c.own)}), "a key's action holds for the others' bounds")
		ofTenants := LimitSettings{Tenant: c.others, TenantLimits: func(string) *limits.Limits { return alone(c.own) }}
		require.Equal(t, c.own.OnLimit == limits.Queue, ofTenants.waits(payer{tenant: "t"}), "and a tenant's")
	}
}

func TestNoLimitsCostNothing(t *testing.T) { //nolint:paralleltest // others' allocations would count
	s := &Ingress{limits: &limiting{}, workers: newDirectory(nil, routing.Policy{}, func() {})}
	adm := &admission{settings: &Settings{layout: s.workers.layout.Load()}, job: &inference.Job{KeyID: "key", Tenant: "team", Model: "m", Candidates: []inference.Candidate{{Provider: "a", Model: "m"}}}}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if s.limitsOf(adm) != nil {
			t.Error("something limits")
		}
	}))
}

func TestCountedModel(t *testing.T) {
	t.Parallel()
	table := routing.NewTable(routing.Policy{
		Aliases: map[string]string{"fast": "gpt-4o", "pinned": "openai/gpt-4o"}, Order: []string{"later"},
		Rules: []routing.Rule{{
			When:     routing.When{Any: []routing.Match{{Models: []string{"*gpt-4o"}}}},
			Targets:  []routing.Target{{Provider: "azure", Model: "gpt-4o"}, {Provider: "gone"}},
			Fallback: []routing.Fallback{{Targets: []routing.Target{{Provider: "spare"}}}},
		}},
	}, []routing.Provider{{Name: "openai"}, {Name: "azure"}})
	pinned := []inference.Candidate{{Provider: "azure", Model: "gpt-4o"}, {Provider: "new", Model: "m"}}
	for asked, want := range map[string]string{
		"gpt-4o": "gpt-4o", "fast": "gpt-4o", "pinned": "gpt-4o", "vendor/gpt-4o": "vendor/gpt-4o", "openai/": "openai/", "/gpt-4o": "/gpt-4o",
		"azure/gpt-4o": "gpt-4o", "openai/gpt-4o": "gpt-4o", // whoever serves it
		"gone/gpt-4o": "gpt-4o", "spare/gpt-4o": "gpt-4o", "later/gpt-4o": "gpt-4o", "new/gpt-4o": "gpt-4o", // of no worker now
		"openai/vendor/m": "vendor/m",
	} {
		require.Equal(t, want, countedModel(table, asked, pinned), asked)
	}
}

func TestDemandOfARequest(t *testing.T) {
	t.Parallel()
	table := routing.NewTable(routing.Policy{}, []routing.Provider{
		{Name: "short", Traits: []inference.ModelTraits{{Models: []string{"m"}, Traits: inference.Traits{OutputTokens: 50}}}},
		{Name: "long", Traits: []inference.ModelTraits{{Models: []string{"m"}, Traits: inference.Traits{OutputTokens: 5000}}}},
		{Name: "unknown"},
	})
	to := func(providers ...string) (list []inference.Candidate) {
		for _, p := range providers {
			list = append(list, inference.Candidate{Provider: p, Model: "m"})
		}
		return list
	}
	price := func(provider, _, _ string, prompt, output int64, _ time.Time) (inference.Cost, bool) {
		return inference.Cost(prompt + 10*output), provider == "short"
	}
	dear := func(provider, model, asked string, prompt, output int64, at time.Time) (inference.Cost, bool) {
		cost, ok := price(provider, model, asked, prompt, output, at)
		return cost * 3, ok || provider == "long"
	}
	tpm := func(n int64) []limits.Scope {
		return []limits.Scope{{Limits: limits.Limits{Concurrent: 1}}, {Limits: limits.Limits{TokensPerMinute: n}}, {Limits: limits.Limits{TokensPerMinute: 10_000}}}
	}
	money := []limits.Scope{{Limits: limits.Limits{Budget: limits.Budget{Week: 200, Month: 5000}}}}
	for name, c := range map[string]struct {
		scopes     []limits.Scope
		kind       inference.Kind
		size       size
		candidates []inference.Candidate
		price      func(string, string, string, int64, int64, time.Time) (inference.Cost, bool)
		tokens     int64
		cost       inference.Cost
	}{
		"a cap of the client's":            {size: size{7, 20, 1}, candidates: to("short"), tokens: 27},
		"a cap for each choice":            {size: size{7, 20, 4}, candidates: to("short"), tokens: 87},
		"no cap, and the model has one":    {size: size{7, 0, 2}, candidates: to("short"), tokens: 107},
		"no cap, and the model has more":   {size: size{7, 0, 1}, candidates: to("short", "long"), tokens: 107},
		"no cap, and nobody knows":         {size: size{7, 0, 1}, candidates: to("short", "unknown"), tokens: 107},
		"embeddings":                       {kind: inference.KindEmbeddings, size: size{7, 0, 1}, candidates: to("unknown"), tokens: 7},
		"a guess that would never fit":     {scopes: tpm(60), size: size{7, 0, 1}, candidates: to("unknown"), tokens: 60},
		"a cap that never fits":            {scopes: tpm(60), size: size{7, 90, 1}, candidates: to("unknown"), tokens: 97},
		"a prompt that never fits":         {scopes: tpm(60), size: size{70, 0, 1}, candidates: to("unknown"), tokens: 70},
		"its cost":                         {size: size{7, 20, 1}, candidates: to("unknown", "short"), price: price, tokens: 27, cost: 207},
		"the dearest":                      {size: size{7, 20, 1}, candidates: to("short", "long"), price: dear, tokens: 27, cost: 621},
		"a guess beyond the budget":        {scopes: money, size: size{7, 0, 1}, candidates: to("long"), price: dear, tokens: 107, cost: 200},
		"a cap beyond the budget":          {scopes: money, size: size{7, 100, 1}, candidates: to("long"), price: dear, tokens: 107, cost: 3021},
		"a prompt that the budget forbids": {scopes: money, size: size{70, 0, 1}, candidates: to("long"), price: dear, tokens: 170, cost: 210},
	} {
		kind := inference.KindChat
		if c.kind != "" {
			kind = c.kind
		}
		l := LimitSettings{DefaultOutput: 100, Price: c.price}
		got := l.demand(c.scopes, &inference.Job{Kind: kind, Candidates: c.candidates}, c.size, table, time.Now())
		require.Equal(t, limits.Demand{Scopes: c.scopes, Tokens: c.tokens, Cost: c.cost}, got, name)
	}
}

// A provider may be known by the name alone that clients ask for: what is reserved is what
// its row will cost, reasoning included.
func TestDemandHasThePriceOfTheRow(t *testing.T) {
	t.Parallel()
	dear := inference.Cost(10_000_000_000)
	prices := pricing.New(map[string][]pricing.Price{"azure": {{Models: []string{"fast"}, Output: 1_000_000_000, Reasoning: &dear}}}, nil)
	l := LimitSettings{Price: prices.Estimate, RowCost: prices.RowCost}
	job := &inference.Job{Model: "fast", Candidates: []inference.Candidate{{Provider: "azure", Model: "prod-1"}}, CreatedAt: time.Now()}
	scopes := []limits.Scope{{ID: "key:k", Limits: limits.Limits{Budget: limits.Budget{Day: 10}}}}
	got := l.demand(scopes, job, size{prompt: 1, output: 1000, choices: 1}, routing.NewTable(routing.Policy{}, nil), job.CreatedAt)
	took, known := l.spent(&inference.Record{
		Provider: "azure", ModelServed: "gpt-4o-2024-08-06", ModelAsked: "fast", CreatedAt: job.CreatedAt,
		Usage: inference.Usage{Known: true, PromptTokens: 1, CompletionTokens: 1000, ReasoningTokens: 1000},
	})
	require.True(t, known)
	require.EqualValues(t, 10_000_000, took.cost)
	require.Equal(t, took.cost, got.Cost)
}

func TestWhatARefusalSays(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		refusal     limits.Refusal
		code        inference.ErrorCode
		says        string
		after, inMs string
		retry       string
	}{
		{
			limits.Refusal{Scope: "key:config:ci", Limit: "requests_per_minute", Most: 60, Asked: 1, RetryAfter: 1200 * time.Millisecond},
			inference.CodeRateLimited,
			"The limit requests_per_minute of this caller is 60 requests in a minute; this request asks for 1 and does not fit now. Try again in 2s.", "2", "1200", "",
		},
		{
			limits.Refusal{Scope: "key:k", Limit: "concurrent", Most: 1, Asked: 1, RetryAfter: time.Second},
			inference.CodeRateLimited,
			"The limit concurrent of this caller is 1 request at a time; this request asks for 1 and does not fit now. Try again in 1s.", "1", "1000", "",
		},
		{
			limits.Refusal{Scope: "tenant:team/models:m", Limit: "tokens_per_minute", Most: 100, Asked: 70, RetryAfter: 20 * time.Millisecond},
			inference.CodeRateLimited,
			`The limit tokens_per_minute of this caller's tenant for the model "m" is 100 tokens in a minute; this request asks for 70 and does not fit now. Try again in 20ms.`, "1", "20", "",
		},
		{
			limits.Refusal{Scope: "model:m", Limit: "tokens_per_minute", Most: 100, Asked: 170},
			inference.CodeRateLimited,
			`The limit tokens_per_minute of the model "m" is 100 tokens in a minute, and this request alone asks for 170: it can never be served. Send a shorter prompt or a smaller max_tokens.`, "", "", "false",
		},
		{
			limits.Refusal{Scope: "key:k/models:m", Limit: "budget.day", Most: 5_000_000_000, Asked: 250_000_000, RetryAfter: 90 * time.Minute},
			inference.CodeQuota,
			`The limit budget.day of this caller for the model "m" is 5 a day; this request may cost 0.25 and does not fit any more. Try again in 1h30m0s, or have the budget raised.`, "5400", "5400000", "",
		},
		{
			limits.Refusal{Scope: "tenant:t", Limit: "budget.month", Most: 1_000_000_000, Asked: 2_000_000_000},
			inference.CodeQuota,
			"The limit budget.month of this caller's tenant is 1 a month, and this request alone asks for 2: it can never be served. Ask for less.", "", "", "false",
		},
	} {
		e := errRefused(&c.refusal, "m")
		require.Equal(t, c.code, e.Code)
		require.Equal(t, c.says, e.Message)
		require.Equal(t, c.refusal.RetryAfter > 0, e.Retryable)
		w := httptest.NewRecorder()
		writeError(w, e, nil)
		require.Equal(t, http.StatusTooManyRequests, w.Code)
		h := w.Header()
		require.Equal(t, []string{c.after, c.inMs, c.retry}, []string{h.Get("Retry-After"), h.Get("Retry-After-Ms"), h.Get("X-Should-Retry")}, c.says)
	}
}

func TestStandingIsToldAsOpenAIDoes(t *testing.T) {
	t.Parallel()
	h := make(http.Header)
	tellStanding(h, limits.Standing{
		Requests: limits.Left{Limit: 60, Remaining: 59, Reset: time.Second},
		Tokens:   limits.Left{Limit: 150_000, Remaining: 149_984, Reset: 6 * time.Minute},
	})
	require.Equal(t, http.Header{
		"X-Ratelimit-Limit-Requests": {"60"}, "X-Ratelimit-Remaining-Requests": {"59"}, "X-Ratelimit-Reset-Requests": {"1s"},
		"X-Ratelimit-Limit-Tokens": {"150000"}, "X-Ratelimit-Remaining-Tokens": {"149984"}, "X-Ratelimit-Reset-Tokens": {"6m0s"},
	}, h)
	h = make(http.Header)
	tellStanding(h, limits.Standing{Tokens: limits.Left{Limit: 1, Remaining: -3, Reset: 19*time.Millisecond + 1}})
	require.Equal(t, http.Header{"X-Ratelimit-Limit-Tokens": {"1"}, "X-Ratelimit-Remaining-Tokens": {"0"}, "X-Ratelimit-Reset-Tokens": {"20ms"}}, h)
}
