package ingress

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/adminapi/adminapitest"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store/postgres"
)

// wholeAdmin is an ingress of whose admin API no part is missing.
func wholeAdmin(t *testing.T) *jobRig {
	t.Helper()
	db := openJobs(t)
	return &jobRig{setup(t, withJobs(db), caching(), func(o *Options) {
		o.Admin, o.Tenants, o.Cache.Rows = db, db, db
		o.Webhooks = WebhookOptions{Store: db, AllowPrivate: true, Timeout: soon, MaxEndpoints: 5, Keep: time.Hour}
		o.LimitCounts = counted{}
		o.Settings.Limits.Tenants = map[string]*limits.Limits{"team": {Concurrent: 2, Budget: limits.Budget{Week: 1}}}
		o.Config = &fileOf{state: adminapi.ConfigState{
			File: "/etc/sluice.yaml", Hash: "abc", LoadedAt: time.Now(), NeedsRestart: []string{},
			LastReload: &adminapi.ConfigReload{At: time.Now(), OK: true, Faults: []adminapi.ConfigFault{}},
			Config:     json.RawMessage(`{"data_dir":"d"}`), YAML: []byte("data_dir: d\n"),
		}}
	}), db}
}

// The pattern of a path's variable is the router's own matter.
var variable = regexp.MustCompile(`\{([a-z_]+):[^}]*\}`)

func TestEveryRouteIsDocumentedAndEveryOperationHasARoute(t *testing.T) {
	t.Parallel()
	var routes []string
	require.NoError(t, wholeAdmin(t).ingress.adminRoutes().Walk(func(route *mux.Route, _ *mux.Router, _ []*mux.Route) error {
		template, err := route.GetPathTemplate()
		if err != nil {
			return err
		}
		methods, err := route.GetMethods()
		for _, method := range methods {
			routes = append(routes, method+" "+variable.ReplaceAllString(template, "{$1}"))
		}
		return err
	}))
	require.NotEmpty(t, routes)
	require.ElementsMatch(t, routes, adminapitest.New(t).Operations())
}

// adminClient asks an admin API over a connection, with all that is said checked.
type adminClient struct {
	t      *testing.T
	base   string
	client *http.Client
}

// ask returns the answer's member of that name, or nothing for "".
func (a *adminClient) ask(method, path, body, member string) string {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.base+"/admin/v1"+path, strings.NewReader(body))
	require.NoError(a.t, err)
	req.Header.Set("Authorization", "Bearer "+adminToken)
	if strings.HasSuffix(path, "/config") && body == "yaml" {
		req.Header.Set("Accept", "application/yaml")
		req.Body, req.ContentLength = http.NoBody, 0
	}
	resp, err := a.client.Do(req)
	require.NoError(a.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(a.t, err)
	require.Less(a.t, resp.StatusCode, 300, "%s %s: %s", method, path, text)
	if member == "" {
		return ""
	}
	var all map[string]any
	require.NoError(a.t, json.Unmarshal(text, &all))
	value, ok := all[member].(string)
	require.True(a.t, ok, "%s: %s", member, text)
	return value
}

// Every operation of the document is asked for once at least, and answers as it says, in
// each form that it has.
func TestEveryOperationAnswersAsDocumented(t *testing.T) {
	t.Parallel()
	r := wholeAdmin(t)
	r.work()
	checker := adminapitest.New(t)
	srv := httptest.NewServer(r.ingress.AdminHandler(adminToken))
	t.Cleanup(srv.Close)
	client := srv.Client()
	client.Transport = checker.RoundTripper(client.Transport)
	a := &adminClient{t, srv.URL, client}

	a.ask("GET", "/openapi.json", "", "openapi")
	a.ask("POST", "/route/explain", `{"model":"m","endpoint":"chat","headers":{"x":"y"}}`, "model")
	a.ask("GET", "/cache", "", "")
	a.ask("DELETE", "/cache?model=m&tenant=team", "", "")
	a.ask("GET", "/config", "", "file")
	a.ask("GET", "/config", "yaml", "")
	a.ask("POST", "/config/reload", "", "hash")

	a.keysAndTenants()
	a.operations(r)
	a.webhooks()

	a.ask("GET", "/audit?limit=50", "", "")
	a.ask("GET", "/limits?tenant=team", "", "at")
	a.ask("GET", "/usage?group_by=day,model&from=2026-01-31", "", "")
	a.ask("GET", "/usage?format=csv&group_by=", "", "")
	require.Empty(t, checker.Unseen(), "successes that nobody has asked for")
}

// No route passes over what it does not know, and none does anything then.
func TestNoOperationTakesWhatItDoesNotHave(t *testing.T) {
	t.Parallel()
	r := wholeAdmin(t)
	all, err := adminapi.Operations()
	require.NoError(t, err)
	for name, op := range all {
		method, template, _ := strings.Cut(name, " ")
		path := variable.ReplaceAllString(strings.NewReplacer("{key}", "x", "{tenant}", "x", "{provider}", "acme", "{id}", "x").Replace(template), "")
		refused := func(query, body string, code inference.ErrorCode, param string) {
			t.Helper()
			w := r.operate(method, path+query, body, nil)
			require.Equal(t, http.StatusBadRequest, w.Code, "%s%s: %s", name, query, w.Body)
			require.Equal(t, []string{string(code), param}, []string{refusal(t, w).Error.Code, refusal(t, w).Error.Param}, "%s%s: %s", name, query, w.Body)
		}
		refused("?x=1", "", inference.CodeInvalidRequest, "x")
		refused("?%zz", "", inference.CodeInvalidRequest, "")
		for known := range op.Query {
			refused("?"+known+"=1&"+known+"=2", "", inference.CodeInvalidRequest, known)
		}
		if op.Query["from"] {
			refused("?from=2026-02-02&to=2026-01-01", "", inference.CodeInvalidRequest, "from")
		}
		if op.Body == adminapi.NoBody {
			refused("", "{}", inference.CodeInvalidRequest, "")
			continue
		}
		refused("", "garbage{", inference.CodeInvalidJSON, "")
		refused("", "[]", inference.CodeInvalidRequest, "")
		refused("", `{"twice":1,"twice":2}`, inference.CodeInvalidRequest, "twice")
		if !strings.Contains(path, "/x") && !strings.HasSuffix(path, "/acme") {
			refused("", `{"unknown":1}`, inference.CodeInvalidRequest, "unknown")
		}
	}
	_, actions := told(t, r.db)
	require.Empty(t, actions)
	w := r.operate(http.MethodPost, adminapi.DeadLettersPath+"/drop", `{"from":"2026-02-02","to":"2026-01-01","limit":1}`, nil)
	require.Equal(t, "from", refusal(t, w).Error.Param, w.Body)
}

// Whoever needs the database while it is down is told so.
func TestEveryOperationThatNeedsTheDatabaseSaysThatItIsOutOfReach(t *testing.T) {
	t.Parallel()
	r := wholeAdmin(t)
	r.work()
	r.later(plainRequest)
	letter := r.bury(r.take())
	down, err := postgres.Open(t.Context(), "postgres://127.0.0.1:1/sluice", postgres.Options{}) // nobody listens there
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, down.Close()) })
	s := r.ingress
	s.opt.Admin, s.opt.Webhooks.Store, s.cache.rows = down, down, down
	for asked, body := range map[string]string{
		"GET /keys": "", "POST /keys": `{"name":"n"}`, "GET /keys/n": "", "PATCH /keys/n": `{"limits":null}`, "DELETE /keys/n": "", "POST /keys/n/rotate": "",
		"GET /tenants": "", "GET /tenants/n": "", "PUT /tenants/n": "", "PATCH /tenants/n": "", "DELETE /tenants/n": "",
		"GET /audit": "", "GET /usage": "", "GET /limits?key=nobody": "",
		"POST /providers/acme/pause": "", "POST /providers/acme/drain": "", "POST /providers/acme/resume": "", "POST /providers/acme/breakers/reset": "",
		"POST /queues/acme/purge":                       `{"lane":"background"}`,
		"GET /dead-letters/" + letter.ID + "?body=true": "", "POST /dead-letters/" + letter.ID + "/requeue": "", "DELETE /dead-letters/" + letter.ID: "",
		"POST /dead-letters/requeue": `{"limit":1}`, "POST /dead-letters/drop": `{"limit":1}`,
		"GET /cache": "", "DELETE /cache?all=true": "", "POST /config/reload": "",
		"GET /webhooks": "", "POST /webhooks": `{"tenant":"acme","url":"https://example.com/"}`, "DELETE /webhooks/whk_1": "", "POST /webhooks/whk_1/enable": "",
		"POST /webhooks/whk_1/rotate": "", "POST /webhooks/whk_1/test": "", "GET /webhooks/deliveries": "",
		"POST /webhooks/redeliver": `{"event":"evt_1"}`, "POST /webhooks/secret": `{"tenant":"acme"}`,
	} {
		method, path, _ := strings.Cut(asked, " ")
		w := r.operate(method, "/admin/v1"+path, body, nil)
		require.Equal(t, http.StatusServiceUnavailable, w.Code, "%s: %s", asked, w.Body)
		require.Equal(t, string(inference.CodeStorageUnavailable), refusal(t, w).Error.Code, asked)
		require.Regexp(t, "^The database.* cannot be reached", refusal(t, w).Error.Message, asked)
	}
	require.Equal(t, http.StatusOK, r.operate(http.MethodGet, adminapi.ProvidersPath, "", nil).Code, "what needs no database needs none")
}

func (a *adminClient) keysAndTenants() {
	a.t.Helper()
	key := "/keys/" + a.ask("POST", "/keys", `{"name":"ci","tenant":"acme","models":["m"],"limits":{"budget":{"day":1.25},"models":[{"models":["m"],"queued":2}]}}`, "id")
	a.ask("GET", "/keys?tenant=acme&state=active&limit=1", "", "")
	a.ask("GET", key, "", "name")
	a.ask("PATCH", key, `{"models":null,"expires_at":"2100-01-01T00:00:00Z"}`, "expires_at")
	a.ask("POST", key+"/rotate", `{"overlap":"1h30m"}`, "secret")
	a.ask("DELETE", key, "", "revoked_at")
	a.ask("PUT", "/tenants/acme%2Fsub", `{"limits":{"concurrent":3,"on_limit":"queue"}}`, "name")
	a.ask("GET", "/tenants?limit=1", "", "")
	a.ask("GET", "/tenants/acme%2Fsub", "", "name")
	a.ask("PATCH", "/tenants/acme%2Fsub", `{"disabled":false}`, "name")
	a.ask("DELETE", "/tenants/acme%2Fsub", "", "")
}

// operations are those about providers, their queues and dead letters.
func (a *adminClient) operations(r *jobRig) {
	a.t.Helper()
	letter := func() string {
		r.later(plainRequest)
		return "/dead-letters/" + r.bury(r.take()).ID
	}
	a.ask("DELETE", letter(), "", "")
	one := letter()
	a.ask("GET", one+"?body=true", "", "body")
	require.Equal(a.t, "job", a.ask("POST", one+"/requeue", "{}", "as"))
	r.take().done(`{}`)
	letter()
	a.ask("GET", "/dead-letters?provider=acme&reason=UNKNOWN&limit=1", "", "")
	a.ask("POST", "/dead-letters/requeue", `{"provider":"acme","limit":10}`, "")
	r.take().done(`{}`)
	letter()
	a.ask("POST", "/dead-letters/drop", `{"limit":10}`, "")

	const acme = "/providers/acme"
	ear, err := r.conn.HearResets("acme", func(string) int { return 1 })
	require.NoError(a.t, err)
	a.t.Cleanup(ear.Close)
	a.ask("POST", acme+"/breakers/reset?model=m", "", "")
	a.ask("POST", acme+"/pause", `{"reason":"maintenance","for":"30m"}`, "until")
	a.ask("POST", acme+"/drain", `{"reason":"it is to be replaced"}`, "since")
	a.ask("GET", "/providers", "", "")
	a.ask("POST", acme+"/resume", "", "state")
	a.ask("GET", "/queues", "", "")
	a.ask("GET", "/queues/acme", "", "state")
	a.ask("POST", "/queues/acme/purge", `{"lane":"`+string(inference.LaneBackground)+`","older_than":"0s"}`, "")
}

func (a *adminClient) webhooks() {
	a.t.Helper()
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	a.t.Cleanup(receiver.Close)
	id := a.ask("POST", "/webhooks", `{"tenant":"acme","url":"`+receiver.URL+`","events":["job.failed"]}`, "id")
	hook := "/webhooks/" + id
	a.ask("GET", "/webhooks?tenant=acme", "", "")
	a.ask("POST", hook+"/rotate", `{"overlap":"0s"}`, "secret")
	a.ask("POST", hook+"/enable", "", "url")
	event := a.ask("POST", hook+"/test", "", "event")
	a.ask("POST", "/webhooks/redeliver", `{"event":"`+event+`","webhook":"`+id+`"}`, "")
	a.ask("GET", "/webhooks/deliveries?tenant=acme&webhook="+id, "", "")
	a.ask("POST", "/webhooks/secret", `{"tenant":"acme"}`, "secret")
	a.ask("DELETE", hook, "", "")
}
