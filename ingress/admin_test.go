package ingress

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/adminapi/adminapitest"
	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/routing"
)

const adminToken = "an-admin-token-of-24-chars"

// admin is the admin API of an ingress without a queue.
func admin(t *testing.T, s *Ingress, token string) http.Handler {
	t.Helper()
	s.log = discard()
	return checked(t, s.AdminHandler(token))
}

// checked has all that is said held against the API's document.
func checked(t *testing.T, h http.Handler) http.Handler {
	t.Helper()
	return adminapitest.New(t).Handler(h)
}

func ask(h http.Handler, method, path, authorization, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", authorization)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

type errorReply struct {
	Error struct{ Message, Type, Code, Param string }
}

func refusal(t *testing.T, w *httptest.ResponseRecorder) (e errorReply) {
	t.Helper()
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &e), w.Body.String())
	require.NotEmpty(t, e.Error.Message)
	require.NotEmpty(t, w.Header().Get(requestIDHeader))
	return e
}

func TestAdminTakesItsTokenAlone(t *testing.T) {
	t.Parallel()
	h := admin(t, ingressOf(nil, routing.Policy{}), adminToken)
	for authorization, want := range map[string]int{
		"Bearer " + adminToken: 200, "bearer " + adminToken: 200, "Bearer  " + adminToken + " ": 200,
		"": 401, "Bearer": 401, "Bearer ": 401, adminToken: 401, "Basic " + adminToken: 401, "Bearer " + adminToken[1:]: 401,
		"Bearer " + adminToken + "x": 401, "Bearer " + strings.ToUpper(adminToken): 401, "Bearer " + adminToken + "," + adminToken: 401,
		"Bearer " + adminToken + "\x00": 401, "Bearer " + strings.Repeat("x", 100_000): 401, " " + adminToken: 401,
	} {
		for _, path := range []string{adminapi.DocumentPath, "/admin/v1/nothing"} {
			w := ask(h, http.MethodGet, path, authorization, "")
			if want == 200 && path == adminapi.DocumentPath {
				require.Equal(t, http.StatusOK, w.Code, authorization)
				continue
			}
			if want == 200 {
				require.Equal(t, http.StatusNotFound, w.Code)
				continue
			}
			require.Equal(t, want, w.Code, authorization)
			require.Equal(t, `Bearer realm="sluice"`, w.Header().Get("Www-Authenticate"))
			require.Equal(t, string(inference.CodeUnauthenticated), refusal(t, w).Error.Code)
			require.NotContains(t, w.Body.String(), adminToken)
		}
	}
	nobody := admin(t, ingressOf(nil, routing.Policy{}), "")
	for _, authorization := range []string{"", "Bearer", "Bearer ", "Bearer  "} {
		require.Equal(t, http.StatusUnauthorized, ask(nobody, http.MethodGet, adminapi.DocumentPath, authorization, "").Code, "no token admits nobody")
	}
}

func TestAdminRefusals(t *testing.T) {
	t.Parallel()
	h := admin(t, ingressOf(nil, routing.Policy{}), adminToken)
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               inference.ErrorCode
		param              string
	}{
		"path":           {"GET", "/admin/v1", "", 404, inference.CodeNotFound, ""},
		"public path":    {"GET", "/v1/models", "", 404, inference.CodeNotFound, ""},
		"method":         {"GET", adminapi.ExplainPath, "", 405, inference.CodeMethodNotAllowed, ""},
		"other method":   {"POST", providersPath, "{}", 405, inference.CodeMethodNotAllowed, ""},
		"empty":          {"POST", adminapi.ExplainPath, "", 400, inference.CodeInvalidRequest, "model"},
		"no json":        {"POST", adminapi.ExplainPath, `{"model":`, 400, inference.CodeInvalidJSON, ""},
		"two values":     {"POST", adminapi.ExplainPath, `{"model":"m"}{}`, 400, inference.CodeInvalidJSON, ""},
		"array":          {"POST", adminapi.ExplainPath, `[]`, 400, inference.CodeInvalidRequest, ""},
		"null":           {"POST", adminapi.ExplainPath, `null`, 400, inference.CodeInvalidRequest, ""},
		"no model":       {"POST", adminapi.ExplainPath, `{}`, 400, inference.CodeInvalidRequest, "model"},
		"long model":     {"POST", adminapi.ExplainPath, `{"model":"` + strings.Repeat("m", 257) + `"}`, 400, inference.CodeInvalidRequest, "model"},
		"control":        {"POST", adminapi.ExplainPath, `{"model":"m\u0007"}`, 400, inference.CodeInvalidRequest, "model"},
		"model number":   {"POST", adminapi.ExplainPath, `{"model":7}`, 400, inference.CodeInvalidRequest, "model"},
		"unknown":        {"POST", adminapi.ExplainPath, `{"model":"m","modle":"x"}`, 400, inference.CodeInvalidRequest, "modle"},
		"case":           {"POST", adminapi.ExplainPath, `{"model":"m","Tools":true}`, 400, inference.CodeInvalidRequest, "Tools"},
		"endpoint":       {"POST", adminapi.ExplainPath, `{"model":"m","endpoint":"images"}`, 400, inference.CodeInvalidRequest, "endpoint"},
		"tools":          {"POST", adminapi.ExplainPath, `{"model":"m","tools":"yes"}`, 400, inference.CodeInvalidRequest, "tools"},
		"null tools":     {"POST", adminapi.ExplainPath, `{"model":"m","tools":null}`, 400, inference.CodeInvalidRequest, "tools"},
		"headers":        {"POST", adminapi.ExplainPath, `{"model":"m","headers":{"a":1}}`, 400, inference.CodeInvalidRequest, "headers.a"},
		"fraction":       {"POST", adminapi.ExplainPath, `{"model":"m","prompt_tokens":1.5}`, 400, inference.CodeInvalidRequest, "prompt_tokens"},
		"negative":       {"POST", adminapi.ExplainPath, `{"model":"m","prompt_tokens":-1}`, 400, inference.CodeInvalidRequest, "prompt_tokens"},
		"negative other": {"POST", adminapi.ExplainPath, `{"model":"m","output_tokens":-1}`, 400, inference.CodeInvalidRequest, "output_tokens"},
		"large":          {"POST", adminapi.ExplainPath, `{"model":"m","user":"` + strings.Repeat("u", 64<<10) + `"}`, 413, inference.CodeRequestTooLarge, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ask(h, c.method, c.path, "Bearer "+adminToken, c.body)
			require.Equal(t, c.status, w.Code, w.Body.String())
			e := refusal(t, w)
			require.Equal(t, string(c.code), e.Error.Code)
			require.Equal(t, c.param, e.Error.Param)
			if c.status == http.StatusMethodNotAllowed {
				require.NotEmpty(t, w.Header().Get("Allow"))
			}
		})
	}
}

// TestExplainReadsEveryField fills all fields that the request has, so that a new one
// cannot be forgotten.
func TestExplainReadsEveryField(t *testing.T) {
	t.Parallel()
	want := new(adminapi.ExplainRequest)
	v := reflect.ValueOf(want).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(adminapi.EndpointEmbeddings)
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int:
			f.SetInt(int64(i + 1))
		case reflect.Map:
			f.Set(reflect.ValueOf(map[string]string{"k": v.Type().Field(i).Name}))
		default:
			require.Fail(t, "a field of a new kind")
		}
	}
	body, err := json.Marshal(want)
	require.NoError(t, err)
	got := new(adminapi.ExplainRequest)
	require.NoError(t, adminapi.Decode(body, got))
	require.Equal(t, want, got)

	q := got.Question()
	require.Equal(t, "Headers", q.Header("K"))
	q.Header, q.Turn = nil, nil
	require.Equal(t, routing.Request{
		Model: got.Model, Kind: inference.KindEmbeddings, Tenant: got.Tenant, KeyID: got.Key, KeyName: got.Key, Metadata: got.Metadata, User: got.User,
		Stream: true, Tools: true, Images: true, StructuredOutput: true, PromptTokens: got.PromptTokens, OutputTokens: got.OutputTokens,
	}, q)
}

func TestExplain(t *testing.T) {
	t.Parallel()
	images := true
	s := ingressOf(map[string]ProviderInfo{"a": {Models: []string{"m"}}, "b": {Models: []string{"m", "v"}}}, routing.Policy{
		Aliases: map[string]string{"fast": "m"},
		Rules: []routing.Rule{
			{
				Name: "pictures", When: routing.When{All: []routing.Match{{Images: &images}}}, Targets: []routing.Target{{Provider: "b", Model: "v", Weight: 1}},
				Fallback: []routing.Fallback{{On: inference.ReasonContentRefused, Targets: []routing.Target{{Provider: "a", Model: "m"}}}},
			},
			{
				Name: "turns", When: routing.When{All: []routing.Match{{Tenants: []string{"acme"}}}}, Strategy: routing.StrategyRoundRobin,
				Targets: []routing.Target{{Provider: "a", Weight: 1}, {Provider: "b", Weight: 1}},
			},
		},
	})
	traits := []inference.ModelTraits{{Models: []string{"m"}, Traits: inference.Traits{Chat: true}}}
	s.workers.heard(presence("w", queue.ProviderPresence{Name: "a", Traits: traits}, queue.ProviderPresence{Name: "b", Traits: traits}))
	h := admin(t, s, adminToken)
	explain := func(body string) (resp adminapi.ExplainResponse) {
		w := ask(h, http.MethodPost, adminapi.ExplainPath, "Bearer "+adminToken, body)
		require.Equal(t, http.StatusOK, w.Code, w.Body.String())
		require.NotContains(t, w.Body.String(), "null")
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &resp))
		for _, c := range resp.Candidates {
			require.NotEmpty(t, c.Why)
		}
		for _, x := range resp.Excluded {
			require.NotEmpty(t, x.Why)
		}
		return resp
	}
	resp := explain(`{"model":"fast"}`)
	require.Equal(t, "m", resp.Model)
	require.Empty(t, resp.Rule)
	require.Len(t, resp.Candidates, 2)

	resp = explain(`{"model":"fast","images":true}`)
	require.Equal(t, "pictures", resp.Rule)
	require.Len(t, resp.Candidates, 1)
	require.Equal(t, "v", resp.Candidates[0].Model)
	require.Len(t, resp.Excluded, 1)
	require.Equal(t, "a", resp.Excluded[0].Provider)

	resp = explain(`{"model":"m","tools":true}`)
	require.Empty(t, resp.Candidates)
	require.Equal(t, []string{"tools"}, resp.Lacking)
	require.Len(t, resp.Excluded, 2)

	resp = explain(`{"model":"nothing"}`)
	require.Empty(t, resp.Candidates)
	require.Empty(t, resp.Lacking)

	acme := `{"model":"m","tenant":"acme"}`
	first := explain(acme)
	require.Equal(t, "turns", first.Rule)
	require.Equal(t, first, explain(acme), "no turn is taken")
	require.EqualValues(t, 0, s.current().layout.turn("turns"))
	require.NotEqual(t, first.Candidates[0].Provider, explain(acme).Candidates[0].Provider, "a request takes its turn")
}

func TestProvidersAreListed(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) {
		o.Settings.Providers = map[string]ProviderInfo{"idle": {MaxQueued: 5}, "acme": {Models: []string{"m"}}}
	})
	r.ingress.workers.heard(presence("w", queue.ProviderPresence{
		Name: "acme", MaxQueued: 9, Limit: 4, Slots: 6, InFlight: 3, Held: 2, Waiting: 1, Rate: 0.5,
		States: []inference.ModelState{{Model: "m", Breaker: inference.BreakerHalfOpen}, {Model: "n", Breaker: inference.BreakerClosed}},
	}))
	_, err := r.conn.EnsureQueue(t.Context(), "acme", 9)
	require.NoError(t, err)
	_, err = r.conn.EnsureQueue(t.Context(), "idle", 5)
	require.NoError(t, err)
	w := ask(checked(t, r.ingress.AdminHandler(adminToken)), http.MethodGet, providersPath, "Bearer "+adminToken, "")
	require.Equal(t, http.StatusOK, w.Code)
	body, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	lanes := func(bound int) string {
		lane := func(name string, bound int) string {
			return fmt.Sprintf(`{"lane":%q,"waiting":0,"running":0,"oldest":null,"oldest_seconds":0,"bound":%d,"bytes":0}`, name, bound)
		}
		return "[" + lane("interactive", bound) + "," + lane("background", 0) + "," + lane("batch", 0) + "]"
	}
	require.JSONEq(t, `{"providers":[
		{"name":"acme","state":"active","since":null,"until":null,"workers":1,"slots":6,"refused":false,"limit":4,"in_flight":3,"held":2,"waiting":1,"max_queued":9,"rate":0.5,"models":["m"],"breakers":{"m":"half_open","n":"closed"},"queue":`+lanes(9)+`},
		{"name":"idle","state":"active","since":null,"until":null,"workers":0,"slots":0,"refused":false,"limit":0,"in_flight":0,"held":0,"waiting":0,"max_queued":5,"rate":0,"models":[],"breakers":{},"queue":`+lanes(5)+`}]}`, string(body))
}
