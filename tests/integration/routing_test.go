package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/adminapi/adminapitest"
	"sluice/internal/routing"
	"sluice/store"
)

// servedAs returns the model that the upstream was asked for last.
func (s *stack) servedAs() string {
	s.t.Helper()
	var body struct{ Model string }
	require.NoError(s.t, json.Unmarshal(s.up.Last().Body, &body))
	return body.Model
}

// explained returns where the first ingress says that such a request would go.
func (s *stack) explained(body string) adminapi.ExplainResponse {
	s.t.Helper()
	const token = "an-operators-token-of-this-test"
	r := httptest.NewRequest(http.MethodPost, adminapi.ExplainPath, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	adminapitest.New(s.t).Handler(s.doors[0].ingress.AdminHandler(token)).ServeHTTP(w, r)
	require.Equal(s.t, http.StatusOK, w.Code, w.Body.String())
	var resp adminapi.ExplainResponse
	require.NoError(s.t, json.Unmarshal(w.Body.Bytes(), &resp))
	return resp
}

const pictureBody = `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"` + canary + `"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}]}`

func TestARuleSendsPicturesElsewhere(t *testing.T) {
	t.Parallel()
	yes := true
	s := start(t, func(o *options) {
		o.policy.Rules = []routing.Rule{{
			Name: "pictures", When: routing.When{All: []routing.Match{{Models: []string{"m"}, Images: &yes}}, Not: []routing.Match{{Stream: &yes}}},
			Targets: []routing.Target{{Provider: provider, Model: "glob-vision", Weight: 1}},
		}}
	})
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	require.Equal(t, "m", s.servedAs())
	require.Equal(t, http.StatusOK, s.chat(pictureBody).status)
	require.Equal(t, "glob-vision", s.servedAs())
	require.Equal(t, "m", s.rows(2)[1].ModelAsked, "the ledger has what the client asked for")
	s.stream(strings.Replace(pictureBody, "{", `{"stream":true,`, 1)).rest()
	require.Equal(t, "m", s.servedAs())

	require.Equal(t, "glob-vision", s.explained(`{"model":"m","images":true}`).Candidates[0].Model)
	require.Empty(t, s.explained(`{"model":"m","images":true,"stream":true}`).Rule)
}

func TestAliases(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.policy.Aliases = map[string]string{"fast": "glob-mini", "here": provider + "/m"} })
	named := func(model string) string { return strings.Replace(plainBody, `"m"`, `"`+model+`"`, 1) }
	for alias, model := range map[string]string{"fast": "glob-mini", "here": "m"} {
		require.Equal(t, http.StatusOK, s.chat(named(alias)).status)
		require.Equal(t, model, s.servedAs())
		a := s.do(0, http.MethodGet, "/v1/models/"+alias, "")
		require.Equal(t, http.StatusOK, a.status)
		require.Contains(t, a.body, `"owned_by":"`+provider+`"`)
		require.Contains(t, s.do(0, http.MethodGet, "/v1/models", "").body, `"id":"`+alias+`"`)
	}
	secret, _ := s.mint("mini", func(k *store.Key) { k.Models = []string{"glob-mini"} })
	require.Equal(t, http.StatusOK, s.status(0, secret, "fast"), "a key for the model is one for its other names")
	require.Equal(t, http.StatusForbidden, s.status(0, secret, "here"))
}

func TestStickyByHeader(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) {
		o.policy.Rules = []routing.Rule{{
			Name: "sessions", When: routing.When{All: []routing.Match{{Headers: map[string]string{"x-session": "*"}}}},
			Strategy: routing.StrategySticky, StickyHeader: "x-session",
			Targets: []routing.Target{{Provider: provider, Model: "glob-1", Weight: 1}, {Provider: provider, Model: "glob-2", Weight: 1}},
		}}
	})
	sessions := make(map[string]int)
	for i := range 16 {
		session := fmt.Sprint("session-", i)
		require.Equal(t, http.StatusOK, s.chat(plainBody, "X-Session", session).status)
		first := s.servedAs()
		require.Equal(t, http.StatusOK, s.chat(plainBody, "X-Session", session).status)
		require.Equal(t, first, s.servedAs())
		require.Equal(t, first, s.explained(`{"model":"m","headers":{"x-session":"` + session + `"}}`).Candidates[0].Model)
		sessions[first]++
	}
	require.Len(t, sessions, 2, "not all at one")
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	require.Equal(t, "m", s.servedAs(), "without the header no rule applies")
}
