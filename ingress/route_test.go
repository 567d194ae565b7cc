package ingress

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/internal/routing"
	"sluice/store"
)

// ingressOf is an ingress that has nothing but its directory.
func ingressOf(configured map[string]ProviderInfo, policy routing.Policy) *Ingress {
	s := &Ingress{workers: directoryOf(configured, policy)}
	s.settings.Store(&Settings{layout: s.workers.layout.Load()})
	return s
}

func chatFor(model string) routing.Request {
	return routing.Request{Model: model, Kind: inference.KindChat}
}

func TestModelsThatAKeyMaySee(t *testing.T) {
	t.Parallel()
	s := ingressOf(map[string]ProviderInfo{
		"b": {Models: []string{"m2", "shared", "glob-*"}}, "a": {Models: []string{"m1", "shared", "[odd"}},
	}, routing.Policy{Aliases: map[string]string{"fast": "m2", "here": "b/shared", "m1": "glob-1", "lost": "nothing"}})
	ids := func(key store.Key) (list []string) {
		for _, m := range s.modelsOf(s.current(), key) {
			list = append(list, m.ID+"@"+m.OwnedBy)
		}
		return list
	}
	require.Equal(t, []string{"[odd@a", "fast@b", "here@b", "m1@b", "m2@b", "shared@a"}, ids(store.Key{}))
	require.Equal(t, []string{"fast@b", "m1@b", "m2@b"}, ids(store.Key{Models: []string{"m?"}}))
	require.Equal(t, []string{"glob-9@b", "m1@b"}, ids(store.Key{Models: []string{"m1", "glob-9", "glob-x*", "unknown"}}))
	require.Equal(t, []string{"here@b", "shared@a"}, ids(store.Key{Models: []string{"shared"}}), "also at a named provider")
	require.Equal(t, []string{"fast@b"}, ids(store.Key{Models: []string{"fast"}}))
	require.Empty(t, ids(store.Key{Models: []string{"nothing"}}))
}

func TestRouteErrors(t *testing.T) {
	t.Parallel()
	s := ingressOf(map[string]ProviderInfo{"a": {Models: []string{"m1"}}}, routing.Policy{})
	_, err := s.route(s.current(), store.Key{Models: []string{"other"}}, chatFor("m1"))
	require.Equal(t, inference.CodeModelNotAllowed, inference.AsError(err).Code)
	require.Equal(t, `This API key or token may not use the model "m1".`, inference.AsError(err).Message, "the caller may have either")
	_, err = s.route(s.current(), store.Key{}, chatFor("m2"))
	require.Equal(t, inference.CodeModelNotFound, inference.AsError(err).Code)
	require.Equal(t, "model", inference.AsError(err).Param)
	candidates, err := s.route(s.current(), store.Key{}, chatFor("m1"))
	require.NoError(t, err)
	require.Len(t, candidates, 1)
}

func TestAKeyForAModelCoversItAtANamedProvider(t *testing.T) {
	t.Parallel()
	s := ingressOf(map[string]ProviderInfo{"a": {Models: []string{"m1", "a/m1x", "b/m1"}}, "b": {Models: []string{"m1", "m2"}}}, routing.Policy{})
	key := store.Key{Models: []string{"m1"}}
	candidates, err := s.route(s.current(), key, chatFor("b/m1"))
	require.NoError(t, err)
	require.Equal(t, []inference.Candidate{{Provider: "b", Model: "m1"}}, candidates, "not a's model of that name")
	candidates, err = s.serves(s.current(), key, "b/m1")
	require.NoError(t, err)
	require.Equal(t, []inference.Candidate{{Provider: "b", Model: "m1"}}, candidates)
	for _, model := range []string{"b/m2", "m2", "a/m1x", "b/", "nobody/m1"} {
		_, err = s.route(s.current(), key, chatFor(model))
		require.Equal(t, inference.CodeModelNotAllowed, inference.AsError(err).Code, model)
		_, err = s.serves(s.current(), key, model)
		require.Equal(t, inference.CodeModelNotAllowed, inference.AsError(err).Code, model)
	}
}

func TestAKeysPermissionHoldsForAliases(t *testing.T) {
	t.Parallel()
	s := ingressOf(map[string]ProviderInfo{"a": {Models: []string{"m1", "m2"}}, "b": {Models: []string{"m1"}}}, routing.Policy{
		Aliases: map[string]string{"fast": "m1", "near": "b/m1", "other": "m2"},
	})
	for _, c := range []struct {
		models []string // that the key may use
		asked  string
		want   string // the first candidate; empty: not allowed
	}{
		{[]string{"fast"}, "fast", "a/m1"},
		{[]string{"m1"}, "fast", "a/m1"},
		{[]string{"m1"}, "near", "b/m1"},
		{[]string{"near"}, "near", "b/m1"},
		{[]string{"fast"}, "m1", ""},
		{[]string{"m1"}, "other", ""},
		{[]string{"f*"}, "near", ""},
	} {
		candidates, err := s.route(s.current(), store.Key{Models: c.models}, chatFor(c.asked))
		if c.want == "" {
			require.Equal(t, inference.CodeModelNotAllowed, inference.AsError(err).Code, "%+v", c)
			continue
		}
		require.NoError(t, err, "%+v", c)
		require.Equal(t, c.want, candidates[0].Provider+"/"+candidates[0].Model, "%+v", c)
	}
}

func TestARulesTargetNeedsNoPermission(t *testing.T) {
	t.Parallel()
	s := ingressOf(map[string]ProviderInfo{"a": {Models: []string{"m1"}}, "b": {Models: []string{"big"}}}, routing.Policy{
		Rules: []routing.Rule{{Name: "r", When: routing.When{Any: []routing.Match{{Models: []string{"m1"}}, {Models: []string{"a/m1"}}}}, Targets: []routing.Target{{Provider: "b", Model: "big", Weight: 1}}}},
	})
	key := store.Key{Models: []string{"m1"}}
	for _, asked := range []string{"m1", "a/m1"} {
		candidates, err := s.route(s.current(), key, chatFor(asked))
		require.NoError(t, err, asked)
		require.Equal(t, []inference.Candidate{{Provider: "b", Model: "big"}}, candidates, asked)
	}
	_, err := s.route(s.current(), key, chatFor("big"))
	require.Equal(t, inference.CodeModelNotAllowed, inference.AsError(err).Code)
}

func TestWishesThatNobodyCanFulfilAreNamed(t *testing.T) {
	t.Parallel()
	s := ingressOf(map[string]ProviderInfo{"a": {Models: []string{"m", "e"}}}, routing.Policy{})
	s.workers.heard(presence("w", queue.ProviderPresence{Name: "a", Traits: []inference.ModelTraits{
		{Models: []string{"m"}, Traits: inference.Traits{Chat: true, ContextTokens: 100, OutputTokens: 10}},
		{Models: []string{"e"}, Traits: inference.Traits{Embeddings: true, ContextTokens: 100}},
	}}))
	for name, c := range map[string]struct {
		change      func(*routing.Request)
		param, text string
	}{
		"images":     {func(q *routing.Request) { q.Images = true }, "messages", `No provider of the model "m" supports images here.`},
		"tools":      {func(q *routing.Request) { q.Tools = true }, "tools", "supports tools here."},
		"stream":     {func(q *routing.Request) { q.Stream = true }, "stream", "supports streaming here."},
		"structured": {func(q *routing.Request) { q.StructuredOutput = true }, "response_format", "supports structured output here."},
		"answer":     {func(q *routing.Request) { q.OutputTokens = 11 }, "max_tokens", "supports an answer of this length here."},
		"prompt":     {func(q *routing.Request) { q.PromptTokens = 1000 }, "messages", "supports a prompt of this length here."},
		"input":      {func(q *routing.Request) { q.Model, q.Kind, q.PromptTokens = "e", inference.KindEmbeddings, 1000 }, "input", "supports a prompt of this length here."},
		"embeddings": {func(q *routing.Request) { q.Kind = inference.KindEmbeddings }, "model", "supports embeddings here."},
		"chat":       {func(q *routing.Request) { q.Model = "e" }, "model", "supports chat here."},
		"several":    {func(q *routing.Request) { q.Images, q.Tools = true, true }, "tools", "all that the request needs: tools, images."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := chatFor("m")
			c.change(&q)
			_, err := s.route(s.current(), store.Key{}, q)
			e := inference.AsError(err)
			require.Equal(t, inference.CodeInvalidRequest, e.Code)
			require.Equal(t, c.param, e.Param)
			require.Contains(t, e.Message, c.text)
		})
	}
	_, err := s.route(s.current(), store.Key{}, chatFor("m"))
	require.NoError(t, err)
}

func TestRoutingIsAskedWithAllThatARequestSays(t *testing.T) {
	t.Parallel()
	s := ingressOf(nil, routing.Policy{Rules: []routing.Rule{{Name: "r"}}})
	s.load = func(string) int { return 7 }
	req, err := openaiapi.ParseChat([]byte(`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"12345678"},{"type":"image_url"}]}],
		"stream":true,"functions":[1],"response_format":{"type":"json_schema"},"max_tokens":9,"user":"u","metadata":{"k":"v"}}`))
	require.NoError(t, err)
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.Header.Set("X-Team", "ml")
	q := s.question(s.current(), r, store.Key{ID: "id", Name: "name", Tenant: "tenant"}, inference.KindChat, &req)
	require.Equal(t, "ml", q.Header("x-team"))
	require.Equal(t, 7, q.Load("p"))
	require.EqualValues(t, 0, q.Turn("r"))
	require.EqualValues(t, 1, q.Turn("r"))
	require.NotZero(t, q.Random)
	require.NotEqual(t, q.Random, s.question(s.current(), r, store.Key{}, inference.KindChat, &req).Random, "drawn anew")
	q.Header, q.Load, q.Turn, q.Random = nil, nil, nil, 0
	require.Equal(t, routing.Request{
		Model: "m", Kind: inference.KindChat, Tenant: "tenant", KeyID: "id", KeyName: "name", User: "u", Metadata: map[string]string{"k": "v"},
		Stream: true, Tools: true, Images: true, StructuredOutput: true, PromptTokens: 2 + 1 + 765, OutputTokens: 9,
	}, q)
}
