package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/store"
)

// mintUnknown returns a well-formed key that no database knows.
func mintUnknown() string { return apikey.Mint() }

func (s *stack) status(door int, secret, model string) int {
	s.t.Helper()
	body := strings.Replace(plainBody, `"m"`, `"`+model+`"`, 1)
	return s.do(door, http.MethodPost, chatPath, body, "Authorization", "Bearer "+secret).status
}

func TestKeyAllowsModels(t *testing.T) {
	t.Parallel()
	fixed := apikey.Mint()
	s := start(t, func(o *options) {
		o.static = []store.Key{{ID: "config:dev", Name: "dev", Tenant: "dev", Hash: apikey.Hash(fixed), Models: []string{"m"}}}
	})
	s.logs.forbid(fixed)
	globs, _ := s.mint("globs", func(k *store.Key) { k.Models = []string{"glob-[12]", "org/*"} })
	for _, c := range []struct {
		secret, model string
		status        int
	}{
		{s.secret, "m", 200},
		{globs, "glob-1", 200},
		{globs, "org/deep/m", 200},
		{globs, "m", 403},
		{globs, "glob-3", 403},
		{globs, "none", 403},
		{fixed, "m", 200},
		{fixed, "org/deep/m", 403},
	} {
		require.Equal(t, c.status, s.status(0, c.secret, c.model), "%+v", c)
	}
	a := s.do(0, http.MethodGet, "/v1/models", "", "Authorization", "Bearer "+globs)
	require.Contains(t, a.body, "org/deep/m")
	require.NotContains(t, a.body, `"id":"m"`)
	a = s.do(0, http.MethodGet, "/v1/models/m", "", "Authorization", "Bearer "+globs)
	require.Equal(t, http.StatusForbidden, a.status)
	rows := s.rows(4)
	require.Equal(t, "config:dev", rows[3].KeyID)
	require.Equal(t, "dev", rows[3].Tenant)
}

func TestKeyExpires(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	old, _ := s.mint("old", func(k *store.Key) { k.ExpiresAt = time.Now().Add(-time.Minute) })
	require.Equal(t, http.StatusUnauthorized, s.status(0, old, "m"))
	ends := time.Now().Add(3 * time.Second)
	soon, _ := s.mint("soon", func(k *store.Key) { k.ExpiresAt = ends })
	require.Equal(t, http.StatusOK, s.status(0, soon, "m"))
	s.eventually(func() bool { return s.status(0, soon, "m") == http.StatusUnauthorized }, "the key has expired")
	require.False(t, time.Now().Before(ends))
}

// TestRevocation has a key that two ingresses know revoked in the database, as
// another process would.
func TestRevocation(t *testing.T) {
	t.Parallel()
	const within = 5 * time.Second
	s := start(t, func(o *options) { o.ingresses, o.database = 2, "" })
	secret, key := s.mint("gone", nil)
	for door := range s.doors {
		require.Equal(t, http.StatusOK, s.status(door, secret, "m"))
	}
	_, err := s.db.RevokeKey(t.Context(), key.Name, store.Change{Actor: "test"})
	require.NoError(t, err)
	revoked := time.Now()
	for door := range s.doors {
		s.eventually(func() bool { return s.status(door, secret, "m") == http.StatusUnauthorized }, "ingress %d refuses the key", door)
	}
	require.Less(t, time.Since(revoked), within)
	require.Equal(t, http.StatusOK, s.status(0, s.secret, "m"), "others are not touched")
}

// TestNewKeyAfterRefusal has a key made after it was refused for being unknown.
func TestNewKeyAfterRefusal(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	secret := mintUnknown()
	s.logs.forbid(secret)
	require.Equal(t, http.StatusUnauthorized, s.status(0, secret, "m"))
	require.NoError(t, s.db.CreateKey(t.Context(), store.Key{ID: "k", Name: "late", Tenant: tenant, Display: "…", Hash: apikey.Hash(secret)}, store.Change{Actor: "test"}))
	s.eventually(func() bool { return s.status(0, secret, "m") == http.StatusOK }, "the key is known")
}
