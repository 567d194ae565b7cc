package storetest

import (
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// clockSlack is how far this machine's clock and the database's may differ here, and
// how far back the time lies with which changes are asked for again.
const clockSlack = time.Minute

var keyTests = map[string]func(*testing.T, Open){
	"a key comes back as it was stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		key := newKey("schlüssel 🔑 'quoted'; --")
		key.Tenant = "北京"
		key.Models = []string{"gpt-4o*", `weird "model", {with} \\ everything`, "?"}
		east := time.FixedZone("east", 5*3600+45*60)
		key.ExpiresAt = time.Date(2031, 1, 2, 3, 4, 5, 678901234, east)
		// The database sets these, whatever the key says.
		key.CreatedAt, key.UpdatedAt = time.Unix(1, 0), time.Unix(2, 0)
		require.NoError(t, s.CreateKey(t.Context(), key, by))

		got, err := s.KeyByHash(t.Context(), key.Hash)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), got.CreatedAt, clockSlack)
		require.WithinDuration(t, got.CreatedAt, got.UpdatedAt, time.Second)
		require.Equal(t, time.UTC, got.CreatedAt.Location())
		key.CreatedAt, key.UpdatedAt = got.CreatedAt, got.UpdatedAt
		key.ExpiresAt = time.Date(2031, 1, 1, 21, 19, 5, 678901000, time.UTC)
		require.Equal(t, key, got)
	},

	"a key without limits comes back without": func(t *testing.T, open Open) {
		s := migrated(t, open)
		key := newKey("free")
		key.Models = []string{}
		require.NoError(t, s.CreateKey(t.Context(), key, by))
		got, err := s.KeyByHash(t.Context(), key.Hash)
		require.NoError(t, err)
		require.Nil(t, got.Models)
		require.True(t, got.ExpiresAt.IsZero())
		require.True(t, got.RevokedAt.IsZero())
		require.True(t, got.Active(time.Now()))
	},

	"a key that cannot be stored is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, change := range []func(*store.Key){
			func(k *store.Key) { k.ID = "" },
			func(k *store.Key) { k.Name = "" },
			func(k *store.Key) { k.Name = "nul\x00" },
			func(k *store.Key) { k.Tenant = "\xff" },
			func(k *store.Key) { k.Tenant = "" },
			func(k *store.Key) { k.Models = []string{"gpt-[4"} },
			func(k *store.Key) { k.Models = []string{"gpt-4o", ""} },
			func(k *store.Key) { k.Models = []string{"a\nb"} },
			func(k *store.Key) { k.Models = make([]string, store.MaxModels+1) },
			func(k *store.Key) { k.Name = strings.Repeat("x", store.MaxTextBytes+1) },
		} {
			key := newKey("wrong")
			change(&key)
			require.ErrorIs(t, s.CreateKey(t.Context(), key, by), store.ErrInvalid)
		}
		keys, err := s.ListKeys(t.Context())
		require.NoError(t, err)
		require.Empty(t, keys)
	},

	"an unknown key is not found": func(t *testing.T, open Open) {
		s := migrated(t, open)
		_, err := s.KeyByHash(t.Context(), sha256.Sum256([]byte("never stored")))
		require.ErrorIs(t, err, store.ErrNotFound)
		for _, name := range []string{"", "nobody", "nul\x00", "\xff\xfe"} {
			_, err = s.RevokeKey(t.Context(), name, by)
			require.ErrorIs(t, err, store.ErrNotFound)
		}
	},

	"a name belongs to one key in force": func(t *testing.T, open Open) {
		s := migrated(t, open)
		require.NoError(t, s.CreateKey(t.Context(), newKey("ci"), by))
		second := newKey("other")
		second.Name = "ci"
		require.ErrorIs(t, s.CreateKey(t.Context(), second, by), store.ErrNameTaken)

		first, err := s.RevokeKey(t.Context(), "ci", by)
		require.NoError(t, err)
		require.Equal(t, newKey("ci").ID, first.ID)
		require.NoError(t, s.CreateKey(t.Context(), second, by), "a revoked key's name is free")

		got, err := s.RevokeKey(t.Context(), "ci", by)
		require.NoError(t, err)
		require.Equal(t, second.ID, got.ID, "the name means the key in force")
	},

	"an id and a secret are stored once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		require.NoError(t, s.CreateKey(t.Context(), newKey("one"), by))
		sameID, sameSecret := newKey("two"), newKey("three")
		sameID.ID = newKey("one").ID
		sameSecret.Hash = newKey("one").Hash
		for _, key := range []store.Key{sameID, sameSecret} {
			err := s.CreateKey(t.Context(), key, by)
			require.ErrorIs(t, err, store.ErrDuplicate)
			require.NotErrorIs(t, err, store.ErrNameTaken)
		}
	},

	"keys are listed oldest first": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, name := range []string{"b", "a", "c"} {
			require.NoError(t, s.CreateKey(t.Context(), newKey(name), by))
		}
		_, err := s.RevokeKey(t.Context(), "a", by)
		require.NoError(t, err)
		keys, err := s.ListKeys(t.Context())
		require.NoError(t, err)
		require.Equal(t, []string{"b", "a", "c"}, names(keys))
	},

	"a revocation is kept as it first was": func(t *testing.T, open Open) {
		s := migrated(t, open)
		require.NoError(t, s.CreateKey(t.Context(), newKey("gone"), by))
		at := time.Date(2025, 5, 6, 7, 8, 9, 123456789, time.FixedZone("west", -8*3600))
		first, err := s.RevokeKey(t.Context(), "gone", byAt(at))
		require.NoError(t, err)
		require.Equal(t, time.Date(2025, 5, 6, 15, 8, 9, 123456000, time.UTC), first.RevokedAt)
		require.False(t, first.Active(at.Add(-time.Hour)))

		for _, idOrName := range []string{"gone", newKey("gone").ID} {
			again, err := s.RevokeKey(t.Context(), idOrName, byAt(at.Add(time.Hour)))
			require.NoError(t, err)
			require.Equal(t, first, again)
		}
		got, err := s.KeyByHash(t.Context(), newKey("gone").Hash)
		require.NoError(t, err)
		require.Equal(t, first, got, "a revoked key is still found")
	},

	"an id goes before a name": func(t *testing.T, open Open) {
		s := migrated(t, open)
		byID, byName := newKey("by id"), newKey("by name")
		byName.Name = byID.ID
		require.NoError(t, s.CreateKey(t.Context(), byName, by))
		require.NoError(t, s.CreateKey(t.Context(), byID, by))
		for range 2 { // also when only the other one is in force
			got, err := s.RevokeKey(t.Context(), byID.ID, by)
			require.NoError(t, err)
			require.Equal(t, byID.Name, got.Name)
		}
	},

	"changes are found by the database's clock": func(t *testing.T, open Open) {
		s := migrated(t, open)
		keys, next, err := s.KeysChangedSince(t.Context(), time.Time{})
		require.NoError(t, err)
		require.Empty(t, keys)
		require.WithinDuration(t, time.Now(), next, clockSlack)
		require.Equal(t, time.UTC, next.Location())

		require.NoError(t, s.CreateKey(t.Context(), newKey("first"), by))
		require.NoError(t, s.CreateKey(t.Context(), newKey("second"), by))
		keys, following, err := s.KeysChangedSince(t.Context(), next)
		require.NoError(t, err)
		require.Equal(t, []string{"first", "second"}, names(keys))
		require.False(t, following.Before(next))
		require.False(t, following.After(keys[0].UpdatedAt), "late commits would be missed")

		revoked, err := s.RevokeKey(t.Context(), "first", byAt(time.Unix(0, 0)))
		require.NoError(t, err)
		require.True(t, revoked.UpdatedAt.After(keys[1].UpdatedAt), "a revocation is a change now")
		keys, _, err = s.KeysChangedSince(t.Context(), revoked.UpdatedAt)
		require.NoError(t, err)
		require.Equal(t, []store.Key{revoked}, keys, "at or after")
		keys, _, err = s.KeysChangedSince(t.Context(), revoked.UpdatedAt.Add(time.Microsecond))
		require.NoError(t, err)
		require.Empty(t, keys)
	},
}

func names(keys []store.Key) []string {
	var all []string
	for _, k := range keys {
		all = append(all, k.Name)
	}
	return all
}
