package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/config"
	"sluice/internal/inference"
	"sluice/providers/registry"
	"sluice/worker"
)

const routingExample = "../../deploy/examples/routing.yaml"

// explainJSON runs 'route explain' on the example and returns what it answers.
func explainJSON(t *testing.T, args ...string) (code int, answer adminapi.ExplainResponse, errs string) {
	t.Helper()
	code, out, errs := sluice(t, append([]string{"route", "explain", "--json", "--config", routingExample}, args...)...)
	require.NoError(t, json.Unmarshal([]byte(out), &answer), "%s%s", out, errs)
	return code, answer, errs
}

// names lists the candidates as provider/model.
func names(a adminapi.ExplainResponse) []string {
	var all []string
	for _, c := range a.Candidates {
		all = append(all, c.Provider+"/"+c.Model)
	}
	return all
}

// The configuration alone decides, and none of the variables for its secrets is set.
func TestExplainFromTheConfiguration(t *testing.T) {
	t.Parallel()
	const o, az, g, v = "openai/gpt-4o", "azure/gpt-4o", "gemini/gemini-2.5-pro", "vllm/llama"
	cases := []struct {
		name, args, rule string
		want             []string
	}{
		{"cheapest first", "--model fast --tenant acme --metadata purpose=nightly-7 --prompt-tokens 1000 --output-tokens 100", "nightly", []string{"openai/gpt-4o-mini", g, v}},
		{"another tenant", "--model fast --metadata purpose=nightly-7", "in-house", []string{v, "openai/gpt-4o-mini"}},
		{"a trait that the configuration denies", "--model gpt-4o --tenant acme --metadata purpose=nightly-7 --images", "nightly", []string{"openai/gpt-4o-mini", g}},
		{"a condition that forbids", "--model fast --tools", "", []string{"openai/gpt-4o-mini"}},
		{"too long for the condition", "--model fast --prompt-tokens 4001", "", []string{"openai/gpt-4o-mini"}},
		{"embeddings", "--model text-embedding-3-small --endpoint embeddings", "", []string{"openai/text-embedding-3-small"}},
		{"a provider by name", "--model openai/gpt-4o-mini", "", []string{"openai/gpt-4o-mini"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			code, a, errs := explainJSON(t, strings.Fields(c.args)...)
			require.Zero(t, code, errs)
			require.Equal(t, c.rule, a.Rule)
			require.Equal(t, c.want, names(a))
		})
	}

	_, a, _ := explainJSON(t, "--model", "assistant", "--header", "x-session=42")
	require.Equal(t, "conversations", a.Rule)
	require.Equal(t, "gpt-4o", a.Model, "the alias is replaced")
	require.ElementsMatch(t, []string{o, az}, names(a))
	for range 5 {
		_, again, _ := explainJSON(t, "--model", "assistant", "--header", "X-Session=42")
		require.Equal(t, a, again, "the same session goes to the same target, whatever the case of its header")
	}

	_, a, _ = explainJSON(t, "--model", "gpt-4o", "--stream")
	require.Len(t, a.Candidates, 3)
	require.ElementsMatch(t, []string{o, az}, names(a)[:2])
	require.Equal(t, g, names(a)[2])
	every := inference.Reasons(0xff)
	require.Equal(t, every.Names(), a.Candidates[2].On, "both fallbacks name it")
}

// A weighted rule goes by chance, which is drawn for each question.
func TestExplainDrawsAnew(t *testing.T) {
	t.Parallel()
	first := make(map[string]int)
	for range 60 {
		_, a, _ := explainJSON(t, "--model", "gpt-4o")
		first[names(a)[0]]++
	}
	require.Len(t, first, 2)
	require.Greater(t, first["openai/gpt-4o"], first["azure/gpt-4o"], "it has three times the weight")
}

func TestExplainForAPerson(t *testing.T) {
	t.Parallel()
	explain := func(args string) (int, string, string) {
		return sluice(t, append([]string{"route", "explain", "--config", routingExample}, strings.Fields(args)...)...)
	}
	code, out, errs := explain("--model assistant")
	require.Zero(t, code, errs)
	require.Empty(t, errs)
	require.Regexp(t, `(?m)^model  gpt-4o \(assistant is an alias of it\)$`, out)
	require.Regexp(t, `(?m)^rule   gpt-4o$`, out)
	require.Regexp(t, `(?m)^1  \w+/gpt-4o +\S`, out)
	require.Regexp(t, `(?m)^3  gemini/gemini-2.5-pro +.*context_too_long`, out)
	require.Contains(t, out, "The configuration alone decided")
	require.Contains(t, out, "by chance: the next request")

	_, out, _ = explain("--model fast --tenant acme --metadata purpose=nightly-7 --images")
	require.Regexp(t, `(?m)^rule   nightly$`, out)
	require.Regexp(t, `(?m)^-  vllm/llama +.*image`, out)
	require.NotContains(t, out, "the next request", "nothing is by chance here")

	_, out, _ = explain("--model fast --tools")
	require.Regexp(t, `(?m)^rule   none applies$`, out)
}

// Nobody could serve these requests, and that is said on stderr and with the exit code.
func TestExplainWhenNobodyCan(t *testing.T) {
	t.Parallel()
	code, out, errs := sluice(t, "route", "explain", "--config", routingExample, "--model", "nobody-has-it")
	require.Equal(t, exitFailure, code)
	require.Empty(t, out)
	require.Equal(t, "sluice: no provider serves the model \"nobody-has-it\"\n", errs)

	code, out, errs = sluice(t, "route", "explain", "--config", routingExample, "--model", "llama", "--images", "--tools")
	require.Equal(t, exitFailure, code)
	require.Regexp(t, `(?m)^-  vllm/llama +\S`, out)
	require.Contains(t, errs, `no provider of the model "llama" supports tools, images`)

	code, a, _ := explainJSON(t, "--model", "nobody-has-it")
	require.Equal(t, exitFailure, code)
	require.Equal(t, adminapi.ExplainResponse{Model: "nobody-has-it", Candidates: []adminapi.Candidate{}, Excluded: []adminapi.Excluded{}}, a)

	code, _, errs = sluice(t, "route", "explain", "--config", configFile(t, "data_dir: DIR"), "--model", "m")
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "has no providers")
}

// What a provider without a list of models serves only a worker could say.
func TestExplainSaysWhatItTakesForGranted(t *testing.T) {
	t.Parallel()
	path := configFile(t, `
providers: {a: {type: sim}, b: {type: sim}, c: {type: sim, models: [m]}}
routing:
  rules:
    - {name: turns, when: {all: [{tenants: [x]}]}, targets: [{provider: a}, {provider: b}], strategy: round_robin}
    - {name: busy, when: {all: [{tenants: [z]}]}, targets: [{provider: a}, {provider: b}], strategy: least_busy}
`)
	for tenant, want := range map[string]string{
		"y": "The provider a names no models",
		"x": "another one with each request",
		"z": "ask it with --live",
	} {
		code, out, errs := sluice(t, "route", "explain", "--config", path, "--model", "m", "--tenant", tenant)
		require.Zero(t, code, errs)
		require.Equal(t, 1, strings.Count(out, want), out)
	}
}

// operators is an admin listener that answers as told, and what it was asked.
type operators struct {
	status int
	answer string
	asked  *http.Request
	body   string
}

func (o *operators) serve(t *testing.T) (config string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		o.asked, o.body = r, string(body)
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(o.status)
		_, _ = io.WriteString(w, o.answer)
	}))
	t.Cleanup(s.Close)
	return configFile(t, "server: {address: '${SLUICE_TEST_NOT_SET}'}\nadmin: {address: '"+s.Listener.Addr().String()+"', token: operators-only-0123}\n")
}

func TestExplainAsksTheIngress(t *testing.T) {
	t.Parallel()
	o := operators{status: http.StatusOK, answer: `{"model":"gpt-4o","rule":"r","candidates":[{"provider":"a","model":"m","why":"free"}],"excluded":[{"provider":"b","model":"m","why":"breaker open"}]}`}
	path := o.serve(t)
	code, out, errs := sluice(t, "route", "explain", "--live", "--config", path, "--model", "fast", "--endpoint", "chat", "--tenant", "acme", "--key", "ci",
		"--header", "x-a=1=2", "--metadata", "purpose=p,q", "--user", "u", "--stream", "--tools", "--images", "--structured-output", "--prompt-tokens", "7", "--output-tokens", "8")
	require.Zero(t, code, errs)
	require.Regexp(t, `(?m)^1  a/m  free$`, out)
	require.Regexp(t, `(?m)^-  b/m  breaker open$`, out)
	require.NotContains(t, out, "The configuration alone")
	require.Equal(t, http.MethodPost, o.asked.Method)
	require.Equal(t, "/admin/v1/route/explain", o.asked.URL.Path)
	require.Equal(t, "Bearer operators-only-0123", o.asked.Header.Get("Authorization"))
	require.JSONEq(t, `{"model":"fast","endpoint":"chat","tenant":"acme","key":"ci","headers":{"x-a":"1=2"},"metadata":{"purpose":"p,q"},"user":"u",
		"stream":true,"tools":true,"images":true,"structured_output":true,"prompt_tokens":7,"output_tokens":8}`, o.body)
}

func TestExplainWhenTheIngressDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		operators
		want string
	}{
		"refused":   {operators{status: http.StatusUnauthorized}, "does not accept admin.token"},
		"an error":  {operators{status: http.StatusBadRequest, answer: `{"error":{"message":"no\nway"}}`}, `answered 400: "no\nway"`},
		"elsewhere": {operators{status: http.StatusTemporaryRedirect}, "answered 307"},
		"nonsense":  {operators{status: http.StatusOK, answer: "<html>"}, "read the answer"},
		"endless":   {operators{status: http.StatusOK, answer: strings.Repeat(" ", maxAnswerBytes+1)}, "is longer than"},
		"nobody":    {operators{status: http.StatusOK, answer: `{"model":"m","candidates":[],"excluded":[]}`}, `no provider serves the model "m"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, out, errs := sluice(t, "route", "explain", "--live", "--model", "m", "--config", c.serve(t))
			require.Equal(t, exitFailure, code)
			require.Empty(t, out)
			require.Contains(t, errs, c.want)
			require.NotContains(t, errs, "operators-only", "the token is not shown")
		})
	}
	code, _, errs := sluice(t, "route", "explain", "--live", "--model", "m", "--config", configFile(t, minimal))
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "admin.address")
	code, _, errs = sluice(t, "route", "explain", "--live", "--model", "m", "--config", configFile(t, "admin: {address: '127.0.0.1:1', token: operators-only-0123}"))
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "ask the ingress at admin.address 127.0.0.1:1")
}

// freeAddress is one that nobody listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

func TestOperatorsHaveAListenerOfTheirOwn(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	path := configFile(t, minimal+"admin: {address: '"+address+"', token: operators-only-0123}\nrouting: {rules: [{name: only, targets: [{provider: sim}]}]}\n")
	s := serveHere(t, path, "curl ")
	require.Eventually(t, func() bool {
		code, out, _ := sluice(t, "route", "explain", "--live", "--model", "sim", "--config", path)
		return code == 0 && strings.Contains(out, "sim/sim") && strings.Contains(out, "rule   only\n")
	}, soon, 20*time.Millisecond)

	wrong := configFile(t, "admin: {address: '"+address+"', token: another-token-0123}\n")
	code, _, errs := sluice(t, "route", "explain", "--live", "--model", "sim", "--config", wrong)
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "does not accept admin.token")

	status := func(base string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+adminapi.ExplainPath, strings.NewReader(`{"model":"sim"}`))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer operators-only-0123")
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	require.Equal(t, http.StatusOK, status("http://"+address))
	require.Equal(t, http.StatusNotFound, status(s.base), "clients cannot reach it")

	code, _, errs = sluice(t, "serve", "--config", configFile(t, minimal+"admin: {address: '"+address+"', token: operators-only-0123}\n"))
	require.Equal(t, exitFailure, code)
	require.Contains(t, errs, "listen on admin.address "+address)
	require.Zero(t, s.stop(), s.errs.String())
	_, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	require.Error(t, err, "it is closed with the process")
	require.NotContains(t, s.errs.String(), "operators-only")
}

// Each setting of a provider reaches the part that goes by it.
func TestSettingsReachTheirParts(t *testing.T) {
	t.Parallel()
	no, yes, many, some := false, true, 8192, 4096
	cfg := config.Default()
	p := config.NewProvider(config.TypeSim)
	p.Models = []string{"m"}
	p.Concurrency, p.WorkerConcurrency, p.MinConcurrency, p.MaxSlowdown, p.RetryBudget, p.Patience = 9, 5, 2, 4, 0.3, 7*time.Second
	p.Breaker = config.Breaker{Failures: 1, FailureRate: 0.25, MinCalls: 3, Window: 4 * time.Second, OpenFor: 5 * time.Second, Probes: 6}
	p.Capabilities = []config.Capability{{
		Models: []string{"m"}, Chat: &yes, Embeddings: &no, Streaming: &yes, Tools: &no, Images: &yes, StructuredOutput: &no,
		ContextTokens: &many, OutputTokens: &some,
	}}
	p.Prices = []config.Price{{Models: []string{"m"}, Input: 1e9, Output: 2e9}}
	cfg.Providers = map[string]config.Provider{"a": p}

	members, err := workerMembers(&cfg, []string{"a"}, marksOf(0, nil, &cfg))
	require.NoError(t, err)
	m := members[0]
	t.Cleanup(func() { require.NoError(t, m.Provider.Close()) })
	require.Equal(t, []any{5, 9, 2, 4.0, 0.3, 7 * time.Second}, []any{m.Slots, m.Concurrency, m.MinConcurrency, m.MaxSlowdown, m.RetryBudget, m.Patience})
	require.Equal(t, worker.BreakerSettings{Failures: 1, FailureRate: 0.25, MinCalls: 3, Window: 4 * time.Second, OpenFor: 5 * time.Second, Probes: 6}, m.Breaker)
	require.Equal(t, []registry.TraitOverride{{
		Models: []string{"m"}, Chat: &yes, Embeddings: &no, Streaming: &yes, Tools: &no, Images: &yes, StructuredOutput: &no,
		ContextTokens: &many, OutputTokens: &some,
	}}, adapterSettings(p).Overrides)
	later := p.Prices[0]
	later.From = time.Now().Add(time.Hour)
	p.Prices = append(p.Prices, later)
	prices := ingressSettings(&cfg).Providers["a"].Prices
	require.Equal(t, []string{"m"}, prices[0].Models)
	require.InDelta(t, 2, prices[0].Output, 0)
	require.Len(t, prices, 2, "its own that has begun, and that of every simulated provider")
	cost, ok := ingressSettings(&cfg).Prices.Estimate("a", "m", "m", 1_000_000, 0, time.Now())
	require.True(t, ok)
	require.EqualValues(t, 1e9, cost)

	require.Equal(t, []inference.ModelTraits{{Models: []string{"m"}, Traits: inference.Traits{
		Chat: true, Streaming: true, Images: true, ContextTokens: 8192, OutputTokens: 4096,
	}}}, configuredTraits(p))
	p.Capabilities = []config.Capability{{Models: []string{"m"}, Images: &no}}
	require.Equal(t, []inference.ModelTraits{{Models: []string{"m"}, Traits: inference.Traits{
		Chat: true, Embeddings: true, Streaming: true, Tools: true, StructuredOutput: true,
	}}}, configuredTraits(p), "what is not given is not denied")
}
