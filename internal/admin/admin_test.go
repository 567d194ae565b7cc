package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/internal/adminapi"
	"sluice/internal/adminapi/adminapitest"
	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
	"sluice/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is the API on a real database.
type rig struct {
	t   *testing.T
	db  *sqlite.Store
	api http.Handler
}

func setup(t *testing.T) *rig {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "sluice.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	return &rig{t: t, db: db, api: adminapitest.Part(t).Handler(serve(db))}
}

func serve(db Store) http.Handler {
	r := mux.NewRouter().SkipClean(true)
	fail := func(w http.ResponseWriter, _ *http.Request, err error) {
		e, ok := errors.AsType[*inference.Error](err)
		if !ok {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Header().Set("Code", string(e.Code))
		w.Header().Set("Param", e.Param)
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(e.Message))
	}
	r.Use(Guard(fail))
	New(Options{Store: db, Actor: func(r *http.Request) string { return r.Header.Get("Actor") }, Fail: fail}).Register(r)
	return r
}

func (r *rig) ask(method, path, body string) *httptest.ResponseRecorder {
	r.t.Helper()
	req := httptest.NewRequest(method, "/admin/v1"+path, strings.NewReader(body))
	req.Header.Set("Actor", "on-call")
	req.Header.Set(RequestIDHeader, "req_1")
	w := httptest.NewRecorder()
	r.api.ServeHTTP(w, req)
	return w
}

// tell asks and reads the answer into a value, if there is one.
func (r *rig) tell(method, path, body string, into any) int {
	r.t.Helper()
	w := r.ask(method, path, body)
	require.Less(r.t, w.Code, 300, "%s %s: %s", method, path, w.Body)
	if into != nil {
		require.NoError(r.t, json.Unmarshal(w.Body.Bytes(), into), w.Body.String())
		require.Equal(r.t, "no-store", w.Header().Get("Cache-Control"))
	}
	return w.Code
}

func TestAKeysLife(t *testing.T) {
	t.Parallel()
	r := setup(t)
	var made, got adminapi.Key
	require.Equal(t, http.StatusCreated, r.tell("POST", "/keys", `{"name":"a/b c","tenant":"acme","models":["m*"],"expires_in":"1h","limits":{"queued":3}}`, &made))
	require.True(t, apikey.WellFormed(made.Secret))
	require.Equal(t, apikey.Display(made.Secret), made.Display)
	require.Equal(t, "active", made.State)
	require.WithinDuration(t, time.Now().Add(time.Hour), *made.ExpiresAt, time.Minute)
	for _, name := range []string{made.ID, "a%2Fb%20c"} {
		r.tell("GET", "/keys/"+name, "", &got)
		want := made
		want.Secret = ""
		require.Equal(t, want, got, "the secret is shown once")
		got = adminapi.Key{}
	}

	r.tell("PATCH", "/keys/"+made.ID, `{"limits":null,"expires_at":null}`, &got)
	require.Nil(t, got.Limits)
	require.Nil(t, got.ExpiresAt)
	require.Equal(t, []string{"m*"}, got.Models, "what is not given stays")
	seen := got.UpdatedAt.Format(time.RFC3339Nano)
	r.tell("PATCH", "/keys/"+made.ID, `{"limits":{"budget":{"day":1.5},"on_limit":"queue"},"models":null,"updated_at":"`+seen+`"}`, &got)
	require.Equal(t, &limits.Limits{Budget: limits.Budget{Day: 1_500_000_000}, OnLimit: limits.Queue}, got.Limits)
	require.Empty(t, got.Models)
	w := r.ask("PATCH", "/keys/"+made.ID, `{"models":["x"],"updated_at":"`+seen+`"}`)
	require.Equal(t, string(inference.CodeConflict), w.Header().Get("Code"), "somebody else was first")

	var rotated adminapi.Key
	r.tell("POST", "/keys/a%2Fb%20c/rotate", `{"overlap":"90m"}`, &rotated)
	require.Equal(t, made.ID, rotated.ID)
	require.NotEqual(t, made.Secret, rotated.Secret)
	require.Len(t, rotated.Replaced, 1)
	require.Equal(t, made.Display, rotated.Replaced[0].Display)
	require.WithinDuration(t, time.Now().Add(90*time.Minute), rotated.Replaced[0].ValidUntil, time.Minute)
	r.tell("POST", "/keys/"+made.ID+"/rotate", "", &rotated)
	require.Len(t, rotated.Replaced, 2)
	require.WithinDuration(t, time.Now().Add(overlapUsual), rotated.Replaced[0].ValidUntil, time.Minute)

	r.tell("DELETE", "/keys/"+made.ID, "", &got)
	require.Equal(t, "revoked", got.State)
	for _, path := range []string{"", "/rotate"} {
		w = r.ask(map[string]string{"": "PATCH", "/rotate": "POST"}[path], "/keys/"+made.ID+path, "{}")
		require.Equal(t, string(inference.CodeConflict), w.Header().Get("Code"), path)
	}

	var audit adminapi.AuditList
	r.tell("GET", "/audit?target=key:"+made.ID, "", &audit)
	require.Len(t, audit.Entries, 6)
	require.Equal(t, []string{"on-call", "req_1", "key.revoke"}, []string{audit.Entries[0].Actor, audit.Entries[0].RequestID, audit.Entries[0].Action})
	text, err := json.Marshal(audit)
	require.NoError(t, err)
	for _, secret := range []string{made.Secret, rotated.Secret} {
		require.NotContains(t, string(text), secret)
	}
}

func TestWhatAnOperatorCannotDo(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.tell("POST", "/keys", `{"name":"taken"}`, nil)
	r.tell("POST", "/keys", `{"name":"other"}`, nil)
	r.tell("PUT", "/tenants/acme", `{}`, nil)
	long, wide := strings.Repeat("x", store.MaxTextBytes+1), strings.Repeat("ä", adminapi.MaxName)
	for _, c := range []struct {
		method, path, body string
		code               inference.ErrorCode
		param              string
	}{
		{"POST", "/keys", `{`, inference.CodeInvalidJSON, ""},
		{"POST", "/keys", `[]`, inference.CodeInvalidRequest, ""},
		{"POST", "/keys", ``, inference.CodeInvalidRequest, "name"},
		{"POST", "/keys", `{"name":"` + strings.Repeat("x", maxBody) + `"}`, inference.CodeRequestTooLarge, ""},
		{"POST", "/keys", `{"name":"` + long + `"}`, inference.CodeInvalidRequest, "name"},
		{"POST", "/keys", `{"name":"x","secret":"mine"}`, inference.CodeInvalidRequest, "secret"},
		{"POST", "/keys", `{"name":"x","models":["gpt-["]}`, inference.CodeInvalidRequest, "models"},
		{"POST", "/keys", `{"name":"x","expires_in":"soon"}`, inference.CodeInvalidRequest, "expires_in"},
		{"POST", "/keys", `{"name":"x","expires_in":"-1h"}`, inference.CodeInvalidRequest, "expires_in"},
		{"POST", "/keys", `{"name":"x","expires_in":"1h","expires_at":"2050-01-01T00:00:00Z"}`, inference.CodeInvalidRequest, "expires_in"},
		{"POST", "/keys", `{"name":"x","expires_at":"2020-01-01T00:00:00Z"}`, inference.CodeInvalidRequest, "expires_at"},
		{"POST", "/keys", `{"name":"x","limits":{"queued":-1}}`, inference.CodeInvalidRequest, "limits"},
		{"POST", "/keys", `{"name":"x","limits":{"on_limit":"wait"}}`, inference.CodeInvalidRequest, "limits"},
		{"POST", "/keys", `{"name":"x","limits":{"models":[{"models":["a["],"queued":1}]}}`, inference.CodeInvalidRequest, "limits"},
		{"POST", "/keys", `{"name":"x","limits":{"que":1}}`, inference.CodeInvalidRequest, "limits.que"},
		{"POST", "/keys", `{"name":"taken"}`, inference.CodeConflict, "name"},
		{"GET", "/keys/nobody", ``, inference.CodeNotFound, ""},
		{"DELETE", "/keys/nobody", ``, inference.CodeNotFound, ""},
		{"PATCH", "/keys/nobody", `{}`, inference.CodeNotFound, ""},
		{"PATCH", "/keys/other", `{"name":null}`, inference.CodeInvalidRequest, "name"},
		{"PATCH", "/keys/other", `{"name":"taken"}`, inference.CodeConflict, "name"},
		{"PATCH", "/keys/other", `{"tenant":"x"}`, inference.CodeInvalidRequest, "tenant"},
		{"PATCH", "/keys/other", `{"expires_at":"2020-01-01T00:00:00Z"}`, inference.CodeInvalidRequest, "expires_at"},
		{"POST", "/keys/nobody/rotate", ``, inference.CodeNotFound, ""},
		{"POST", "/keys/other/rotate", `{"overlap":"-1s"}`, inference.CodeInvalidRequest, "overlap"},
		{"POST", "/keys/other/rotate", `{"overlap":"721h"}`, inference.CodeInvalidRequest, "overlap"},
		{"GET", "/keys?limit=0", ``, inference.CodeInvalidRequest, "limit"},
		{"GET", "/keys?limit=1000", ``, inference.CodeInvalidRequest, "limit"},
		{"GET", "/keys?state=happy", ``, inference.CodeInvalidRequest, "state"},
		{"GET", "/keys?tennant=acme", ``, inference.CodeInvalidRequest, "tennant"},
		{"GET", "/keys?%zz", ``, inference.CodeInvalidRequest, ""},
		{"GET", "/keys?after=nobody", ``, inference.CodeInvalidRequest, "after"},
		{"GET", "/tenants/nobody", ``, inference.CodeNotFound, ""},
		{"PATCH", "/tenants/nobody", `{}`, inference.CodeNotFound, ""},
		{"DELETE", "/tenants/nobody", ``, inference.CodeNotFound, ""},
		{"PUT", "/tenants/x%00", `{}`, inference.CodeInvalidRequest, "tenant"},
		{"PUT", "/tenants/" + long, `{}`, inference.CodeInvalidRequest, "tenant"},
		{"PUT", "/tenants/" + wide + "x", `{}`, inference.CodeInvalidRequest, "tenant"},
		{"PUT", "/tenants/%20", `{}`, inference.CodeInvalidRequest, "tenant"},
		{"PUT", "/tenants/x%20", `{}`, inference.CodeInvalidRequest, "tenant"},
		{"PUT", "/tenants/..%2F", `{}`, inference.CodeInvalidRequest, "tenant"},
		{"PUT", "/tenants/x%2F..%2Fy", `{}`, inference.CodeInvalidRequest, "tenant"},
		{"PUT", "/tenants/x%07y", `{}`, inference.CodeInvalidRequest, "tenant"},
		{"POST", "/keys", `{"name":"` + wide + `x"}`, inference.CodeInvalidRequest, "name"},
		{"POST", "/keys", `{"name":" x"}`, inference.CodeInvalidRequest, "name"},
		{"POST", "/keys", `{"name":"x\u0007"}`, inference.CodeInvalidRequest, "name"},
		{"POST", "/keys", `{"name":"x","tenant":"y "}`, inference.CodeInvalidRequest, "tenant"},
		{"PATCH", "/keys/other", `{"name":"other "}`, inference.CodeInvalidRequest, "name"},
		{"POST", "/keys", `{"name":"x","name":"y"}`, inference.CodeInvalidRequest, "name"},
		{"POST", "/keys", `{"name":"x","limits":{"models":[{},{"queued":1,"queued":2}]}}`, inference.CodeInvalidRequest, "limits.models[1].queued"},
		{"DELETE", "/keys/other?x=1", ``, inference.CodeInvalidRequest, "x"},
		{"DELETE", "/keys/other", `{}`, inference.CodeInvalidRequest, ""},
		{"GET", "/keys?limit=1&limit=2", ``, inference.CodeInvalidRequest, "limit"},
		{"GET", "/audit?from=2026-02-02&to=2026-01-01", ``, inference.CodeInvalidRequest, "from"},
		{"PUT", "/tenants/x", `{"name":"y"}`, inference.CodeInvalidRequest, "name"},
		{"PUT", "/tenants/x", `{"limits":{"concurrent":-1}}`, inference.CodeInvalidRequest, "limits"},
		{"PUT", "/tenants/x", `{"updated_at":"2026-01-01T00:00:00Z"}`, inference.CodeConflict, ""},
		{"PATCH", "/tenants/acme", `{"updated_at":"2026-01-01T00:00:00Z"}`, inference.CodeConflict, ""},
		{"PATCH", "/tenants/acme", `{"disabled":null}`, inference.CodeInvalidRequest, "disabled"},
		{"PATCH", "/tenants/acme", `{"updated_at":null}`, inference.CodeInvalidRequest, "updated_at"},
		{"PUT", "/tenants/acme", `{"limits":{"queued":null}}`, inference.CodeInvalidRequest, "limits.queued"},
		{"PATCH", "/keys/other", `{"updated_at":null}`, inference.CodeInvalidRequest, "updated_at"},
		{"POST", "/keys", `{"name":"x","expires_at":null}`, inference.CodeInvalidRequest, "expires_at"},
		{"POST", "/keys/other/rotate", `{"overlap":null}`, inference.CodeInvalidRequest, "overlap"},
		{"GET", "/audit?from=yesterday", ``, inference.CodeInvalidRequest, "from"},
		{"GET", "/audit?after=aud_x", ``, inference.CodeInvalidRequest, "after"},
		{"GET", "/audit?who=on-call", ``, inference.CodeInvalidRequest, "who"},
	} {
		w := r.ask(c.method, c.path, c.body)
		require.Equal(t, string(c.code), w.Header().Get("Code"), "%v: %s", c, w.Body)
		require.Equal(t, c.param, w.Header().Get("Param"), "%v: %s", c, w.Body)
		require.NotEmpty(t, w.Body.String())
	}
	var audit adminapi.AuditList
	r.tell("GET", "/audit", "", &audit)
	require.Len(t, audit.Entries, 3, "nothing was changed")
	day := func(days int) string { return time.Now().UTC().AddDate(0, 0, days).Format(time.DateOnly) }
	for query, want := range map[string]int{
		"from=" + day(-1): 3, "from=" + day(2): 0, "from=" + day(-1) + "&to=" + day(0): 3, "to=" + day(1): 3, "to=" + day(-2): 0,
		"to=" + day(-1) + "T00:00:00Z": 0, "from=" + day(-1) + "T00:00:00%2B02:00": 3,
	} {
		r.tell("GET", "/audit?"+query, "", &audit)
		require.Len(t, audit.Entries, want, query)
	}
}

func TestTenants(t *testing.T) {
	t.Parallel()
	r := setup(t)
	var got adminapi.Tenant
	r.tell("PUT", "/tenants/a%2Fb", `{"limits":{"concurrent":2},"disabled":true}`, &got)
	require.Equal(t, "a/b", got.Name)
	require.True(t, got.Disabled)
	r.tell("PATCH", "/tenants/a%2Fb", `{"disabled":false,"updated_at":"`+got.UpdatedAt.Format(time.RFC3339Nano)+`"}`, &got)
	require.False(t, got.Disabled)
	require.Equal(t, int64(2), got.Limits.Concurrent, "what is not given stays")
	r.tell("PUT", "/tenants/a%2Fb", `{}`, &got)
	require.Nil(t, got.Limits, "to put is to replace")
	for _, name := range []string{"c", "b"} {
		r.tell("PUT", "/tenants/"+name, ``, nil)
	}
	require.Equal(t, http.StatusNoContent, r.tell("DELETE", "/tenants/c", "", nil))
	var names []string
	for after := ""; ; {
		var list adminapi.TenantList
		r.tell("GET", "/tenants?limit=1&after="+url.QueryEscape(after), "", &list)
		require.Len(t, list.Tenants, 1)
		names = append(names, list.Tenants[0].Name)
		if !list.HasMore {
			break
		}
		after = list.Next
	}
	require.Equal(t, []string{"a/b", "b"}, names)
	r.tell("PUT", "/tenants/default", `{"disabled":true}`, nil)
	w := r.ask("DELETE", "/tenants/default", "")
	require.Equal(t, string(inference.CodeConflict), w.Header().Get("Code"))
	require.Contains(t, w.Body.String(), "enable it first")
	r.tell("GET", "/tenants/default", "", &got)
	require.True(t, got.Disabled, "no key of it has to be known for it to stay")
}

// What was stored when names could be anything can still be seen to.
func TestOddNamesOfBeforeStayValid(t *testing.T) {
	t.Parallel()
	r := setup(t)
	odd := strings.Repeat("o", 300) + " "
	by := store.Change{Actor: "before"}
	_, err := r.db.PutTenant(t.Context(), store.Tenant{Name: odd}, by)
	require.NoError(t, err)
	require.NoError(t, r.db.CreateKey(t.Context(), store.Key{ID: "key_odd", Name: odd, Tenant: odd, Display: "d", Hash: [32]byte{1}}, by))
	r.tell("PUT", "/tenants/"+url.PathEscape(odd), `{"disabled":true}`, nil)
	r.tell("PATCH", "/tenants/"+url.PathEscape(odd), `{"disabled":false}`, nil)
	r.tell("PATCH", "/keys/"+url.PathEscape(odd), `{"limits":{"queued":1},"name":"`+odd+`"}`, nil)
	r.tell("DELETE", "/keys/"+url.PathEscape(odd), "", nil)
	r.tell("DELETE", "/tenants/"+url.PathEscape(odd), "", nil)
	r.tell("PUT", "/tenants/"+url.PathEscape(strings.Repeat("ä", adminapi.MaxName)), "", nil)
}

func TestListsGoPageByPage(t *testing.T) {
	t.Parallel()
	r := setup(t)
	for _, name := range []string{"a", "b", "c"} {
		r.tell("POST", "/keys", `{"name":"`+name+`","tenant":"t-`+name+`"}`, nil)
	}
	var list adminapi.KeyList
	r.tell("GET", "/keys?limit=2", "", &list)
	require.True(t, list.HasMore)
	require.Equal(t, []string{"a", "b"}, []string{list.Keys[0].Name, list.Keys[1].Name})
	next := list.Next
	list = adminapi.KeyList{}
	r.tell("GET", "/keys?limit=2&after="+next, "", &list)
	require.False(t, list.HasMore)
	require.Len(t, list.Keys, 1)
	r.tell("GET", "/keys?tenant=t-b&state=active", "", &list)
	require.Len(t, list.Keys, 1)
	r.tell("GET", "/keys?state=revoked", "", &list)
	require.Empty(t, list.Keys)

	// What entries say may be much: a page ends where its answer would grow too large.
	large := json.RawMessage(`{"x":"` + strings.Repeat("x", store.MaxAuditBytes-len(`{"x":""}`)) + `"}`)
	for range 3 {
		require.NoError(t, r.db.AppendAudit(t.Context(), store.AuditEntry{Actor: "second", Action: "a", Target: "t", After: large}))
	}
	var audit adminapi.AuditList
	r.tell("GET", "/audit?actor=second", "", &audit)
	require.Len(t, audit.Entries, 2)
	require.True(t, audit.HasMore)
	var rest adminapi.AuditList
	r.tell("GET", "/audit?actor=second&after="+audit.Next, "", &rest)
	require.Len(t, rest.Entries, 1)
	require.NotContains(t, []string{audit.Entries[0].ID, audit.Entries[1].ID}, rest.Entries[0].ID)
}

// contended is a database in which somebody else changes the key before each update.
type contended struct {
	Store
	t     *testing.T
	times int
}

func (c *contended) UpdateKey(ctx context.Context, key store.Key, by store.Change) (store.Key, error) {
	if c.times--; c.times >= 0 {
		between, err := c.Key(ctx, key.ID)
		require.NoError(c.t, err)
		between.Models = append(between.Models, "more")
		_, err = c.Store.UpdateKey(ctx, between, by)
		require.NoError(c.t, err)
	}
	return c.Store.UpdateKey(ctx, key, by)
}

func TestAChangeOfWhateverThereIsIsMadeAgain(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.tell("POST", "/keys", `{"name":"busy"}`, nil)
	r.api = adminapitest.Part(t).Handler(serve(&contended{r.db, t, updateTries - 1}))
	var got adminapi.Key
	r.tell("PATCH", "/keys/busy", `{"limits":{"queued":1}}`, &got)
	require.Len(t, got.Models, updateTries-1, "nothing that the others did is undone")
	r.api = serve(&contended{r.db, t, updateTries})
	require.Equal(t, string(inference.CodeConflict), r.ask("PATCH", "/keys/busy", `{"limits":null}`).Header().Get("Code"), "but not for ever")
}
