package ingress

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/apikey"
	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/routing"
	"sluice/store"
)

// A key is named as everywhere else, and what one has left can be forgotten that is not
// here any more.
func TestAKeysAnswersAreForgottenByItsNameOrItsID(t *testing.T) {
	t.Parallel()
	s := ingressOf(nil, routing.Policy{})
	db := openJobs(t)
	by := store.Change{Actor: "test", RequestID: "req_1"}
	for _, name := range []string{"ci", "gone"} {
		require.NoError(t, db.CreateKey(t.Context(), store.Key{ID: "key_" + name, Name: name, Tenant: "t", Hash: apikey.Hash(name)}, by))
	}
	_, err := db.RevokeKey(t.Context(), "gone", by)
	require.NoError(t, err)
	now := *s.current()
	now.StaticKeys = []store.Key{{ID: "config:lim1", Name: "lim1"}}
	s.settings.Store(&now)
	s.opt.Admin, s.cache = db, newLevels(t, nil, &cache.Policy{MemoryBytes: 1 << 20})
	h := admin(t, s, adminToken)
	purge := func(key string) *httptest.ResponseRecorder {
		return tell(t, h, http.MethodDelete, adminapi.CachePath+"?key="+url.QueryEscape(key), "", nil)
	}
	for name, id := range map[string]string{
		"ci": "key_ci", "key_ci": "key_ci", "gone": "key_gone", "key_gone": "key_gone", "lim1": "config:lim1", "config:lim1": "config:lim1",
		"config:earlier": "config:earlier", "jwt:login.example.com-0123456789ab:ada": "jwt:login.example.com-0123456789ab:ada",
	} {
		for n, keyID := range []string{id, "key_other"} {
			a := keptAnswer(byte(n+1), 10)
			a.KeyID, a.Generation = keyID, s.cache.purges.generation()
			s.cache.keep(a)
		}
		require.JSONEq(t, `{"deleted":1}`, purge(name).Body.String(), name)
	}
	kept := s.cache.memory.EstimatedSize()
	for _, nobody := range []string{"nobody", "key_nobody"} {
		w := purge(nobody)
		require.Equal(t, http.StatusNotFound, w.Code)
		e := refusal(t, w).Error
		require.Equal(t, string(inference.CodeNotFound), e.Code)
		require.Equal(t, "key", e.Param)
	}
	require.Equal(t, kept, s.cache.memory.EstimatedSize())
	entries, _ := told(t, db)
	require.Len(t, entries, 3+2*8, "the keys', two of each purge, and none about nobody")
}

func TestTheAuditSaysWhatWasPurgedOfTheCache(t *testing.T) {
	t.Parallel()
	s := ingressOf(nil, routing.Policy{})
	db := openJobs(t)
	s.opt.Admin, s.cache = db, newLevels(t, nil, &cache.Policy{})
	h := admin(t, s, adminToken)
	for query, want := range map[string]string{"all=true": `{"all":true}`, "tenant=t&model=m": `{"tenant":"t","model":"m"}`} {
		tell(t, h, http.MethodDelete, adminapi.CachePath+"?"+query, "", new(adminapi.CachePurged))
		entries, actions := told(t, db)
		require.Equal(t, []string{"cache.purge", "cache.purge.done"}, actions[len(actions)-2:])
		require.JSONEq(t, want, string(entries[len(entries)-2].After))
	}
}
