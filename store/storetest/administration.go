package storetest

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/limits"
	"sluice/store"
)

func put(t *testing.T, s store.Store, tenant store.Tenant) store.Tenant {
	t.Helper()
	got, err := s.PutTenant(t.Context(), tenant, by)
	require.NoError(t, err)
	return got
}

var tenantTests = map[string]func(*testing.T, Open){
	"a tenant comes back as it was stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		made := put(t, s, store.Tenant{Name: "北京 'quoted'; --", Limits: someLimits(), CreatedAt: time.Unix(1, 0), DeletedAt: time.Unix(2, 0)})
		require.WithinDuration(t, time.Now(), made.CreatedAt, clockSlack)
		require.Equal(t, made.CreatedAt, made.UpdatedAt)
		require.Equal(t, store.Tenant{Name: "北京 'quoted'; --", Limits: someLimits(), CreatedAt: made.CreatedAt, UpdatedAt: made.CreatedAt}, made)
		got, err := s.GetTenant(t.Context(), made.Name)
		require.NoError(t, err)
		require.Equal(t, made, got)

		next := put(t, s, store.Tenant{Name: made.Name, Disabled: true})
		require.Equal(t, made.CreatedAt, next.CreatedAt)
		require.True(t, next.UpdatedAt.After(made.UpdatedAt))
		require.Nil(t, next.Limits)
		got, err = s.GetTenant(t.Context(), made.Name)
		require.NoError(t, err)
		require.Equal(t, next, got)
		_, err = s.GetTenant(t.Context(), "nobody")
		require.ErrorIs(t, err, store.ErrNotFound)
	},

	"what a tenant cannot be": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, wrong := range []store.Tenant{
			{},
			{Name: "a\x00"},
			{Name: "\xff"},
			{Name: strings.Repeat("x", store.MaxTextBytes+1)},
			{Name: "a", Limits: &limits.Limits{Concurrent: -1}},
			{Name: "a", Limits: &limits.Limits{Models: []limits.ModelLimits{{Models: []string{""}}}}},
		} {
			_, err := s.PutTenant(t.Context(), wrong, by)
			require.ErrorIs(t, err, store.ErrInvalid, "%+v", wrong)
		}
		_, err := s.PutTenant(t.Context(), store.Tenant{Name: "a"}, store.Change{})
		require.ErrorIs(t, err, store.ErrInvalid, "nobody changes nothing")
		tenants, err := s.ListTenants(t.Context(), "", 10)
		require.NoError(t, err)
		require.Empty(t, tenants)
		entries, err := s.ListAudit(t.Context(), store.AuditFilter{})
		require.NoError(t, err)
		require.Empty(t, entries)
	},

	"a change is of what was seen": func(t *testing.T, open Open) {
		s := migrated(t, open)
		_, err := s.PutTenant(t.Context(), store.Tenant{Name: "a", UpdatedAt: time.Now()}, by)
		require.ErrorIs(t, err, store.ErrConflict, "there is none")
		made := put(t, s, store.Tenant{Name: "a"})
		other := open()
		done, failed := atOnce(func(i int) error {
			to := made
			to.Limits = &limits.Limits{Queued: int64(i + 1)}
			_, err := []store.Store{s, other}[i%2].PutTenant(t.Context(), to, by)
			return err
		})
		require.Len(t, done, 1)
		for _, err := range failed {
			require.ErrorIs(t, err, store.ErrConflict)
		}
		got, err := s.GetTenant(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, int64(done[0]+1), got.Limits.Queued)
		requireActions(t, s, "tenant:a", "tenant.update", "tenant.create")
	},

	"a tenant made at once by many is one": func(t *testing.T, open Open) {
		s := migrated(t, open)
		other := open()
		_, failed := atOnce(func(i int) error {
			_, err := []store.Store{s, other}[i%2].PutTenant(t.Context(), store.Tenant{Name: "a"}, by)
			return err
		})
		require.Empty(t, failed)
		entries, err := s.ListAudit(t.Context(), store.AuditFilter{Action: "tenant.create"})
		require.NoError(t, err)
		require.Len(t, entries, 1)
	},

	"tenants are listed by name, page by page": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for _, name := range []string{"b", "ä", "a", "B", "gone"} {
			put(t, s, store.Tenant{Name: name})
		}
		require.NoError(t, s.DeleteTenant(t.Context(), "gone", by))
		var got []string
		for after := ""; ; {
			page, err := s.ListTenants(t.Context(), after, 2)
			require.NoError(t, err)
			if len(page) == 0 {
				break
			}
			for _, tenant := range page {
				got = append(got, tenant.Name)
			}
			after = page[len(page)-1].Name
		}
		require.Equal(t, []string{"B", "a", "b", "ä"}, got)
	},

	"a deletion is heard of, and a tenant may come back": func(t *testing.T, open Open) {
		s := migrated(t, open)
		made := put(t, s, store.Tenant{Name: "a", Limits: someLimits()})
		tenants, next, err := s.TenantsChangedSince(t.Context(), time.Time{})
		require.NoError(t, err)
		require.Equal(t, []store.Tenant{made}, tenants)
		require.False(t, next.After(made.UpdatedAt), "late commits would be missed")

		require.NoError(t, s.DeleteTenant(t.Context(), "a", by))
		_, err = s.GetTenant(t.Context(), "a")
		require.ErrorIs(t, err, store.ErrNotFound)
		require.ErrorIs(t, s.DeleteTenant(t.Context(), "a", by), store.ErrNotFound)
		require.ErrorIs(t, s.DeleteTenant(t.Context(), "nobody", by), store.ErrNotFound)
		tenants, _, err = s.TenantsChangedSince(t.Context(), made.UpdatedAt.Add(time.Microsecond))
		require.NoError(t, err)
		require.Len(t, tenants, 1)
		require.False(t, tenants[0].DeletedAt.IsZero())
		require.Nil(t, tenants[0].Limits)

		back := put(t, s, store.Tenant{Name: "a"})
		require.True(t, back.CreatedAt.After(made.CreatedAt))
		require.True(t, back.DeletedAt.IsZero())
		entries := requireActions(t, s, "tenant:a", "tenant.create", "tenant.delete", "tenant.create")
		require.Nil(t, entries[0].Before)
		require.Nil(t, entries[1].After)
		require.JSONEq(t, string(entries[2].After), string(entries[1].Before))
	},

	"a disabled tenant is not forgotten": func(t *testing.T, open Open) {
		s := migrated(t, open)
		put(t, s, store.Tenant{Name: "acme", Disabled: true}) // its callers may have keys of the file, or tokens
		require.ErrorIs(t, s.DeleteTenant(t.Context(), "acme", by), store.ErrConflict)
		got, err := s.GetTenant(t.Context(), "acme")
		require.NoError(t, err)
		require.True(t, got.Disabled)
		requireActions(t, s, "tenant:acme", "tenant.create")
		put(t, s, store.Tenant{Name: "acme"})
		require.NoError(t, s.DeleteTenant(t.Context(), "acme", by))
	},
}

var auditTests = map[string]func(*testing.T, Open){
	"a change is told with who, what, before and after": func(t *testing.T, open Open) {
		s := migrated(t, open)
		key := newKey("told")
		key.Limits = &limits.Limits{RequestsPerMinute: 5}
		at := time.Date(2026, 2, 3, 4, 5, 6, 789012345, time.FixedZone("east", 3600))
		require.NoError(t, s.CreateKey(t.Context(), key, store.Change{Actor: "on-call", At: at, RequestID: "req_1"}))
		old, err := s.Key(t.Context(), key.ID)
		require.NoError(t, err)
		old.Limits = &limits.Limits{RequestsPerMinute: 7}
		_, err = s.UpdateKey(t.Context(), old, store.Change{Actor: "second", At: at.Add(1 * time.Second)})
		require.NoError(t, err)
		_, err = s.RotateKey(t.Context(), key.ID, rotation("next", time.Hour), store.Change{Actor: "third", At: at.Add(2 * time.Second)})
		require.NoError(t, err)
		for range 2 {
			_, err = s.RevokeKey(t.Context(), key.ID, store.Change{Actor: "fourth", At: at.Add(3 * time.Second)})
			require.NoError(t, err)
		}
		entries := requireActions(t, s, store.KeyTarget(key.ID), "key.revoke", "key.rotate", "key.update", "key.create")
		require.Equal(t, "on-call", entries[3].Actor)
		require.Equal(t, "req_1", entries[3].RequestID)
		require.Equal(t, time.Date(2026, 2, 3, 3, 5, 6, 789012000, time.UTC), entries[3].At)
		require.Nil(t, entries[3].Before)
		require.JSONEq(t, `{"name":"told","tenant":"acme","display":"`+key.Display+`","limits":{"requests_per_minute":5}}`, string(entries[3].After))
		require.JSONEq(t, `{"name":"told","tenant":"acme","display":"`+key.Display+`","limits":{"requests_per_minute":7}}`, string(entries[2].After))
		for i, e := range entries[:3] {
			require.JSONEq(t, string(entries[i+1].After), string(e.Before), "it begins where the one before ended")
		}
		require.Contains(t, string(entries[0].After), `"revoked_at":"2026-02-03T03:05:09.789012Z"`)
		all := fmt.Sprintf("%s", entries)
		for _, r := range []store.Rotation{rotation("next", 0), {Hash: key.Hash}} {
			require.NotContains(t, all, hex.EncodeToString(r.Hash[:]), "not even the hash of a secret")
		}
	},

	"entries are listed newest first, page by page": func(t *testing.T, open Open) {
		s := migrated(t, open)
		base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		for i := range 9 {
			require.NoError(t, s.AppendAudit(t.Context(), store.AuditEntry{
				ID: fmt.Sprint("e", i), At: base.Add(time.Duration(i/3) * time.Hour), Actor: []string{"on-call", "second"}[i%2],
				Action: "queue.purge", Target: fmt.Sprint("queue:", i%3), Before: json.RawMessage(`{"n": 1.50, "nul": "\u0000"}`),
			}))
		}
		list := func(f store.AuditFilter) (ids string) {
			entries, err := s.ListAudit(t.Context(), f)
			require.NoError(t, err)
			for _, e := range entries {
				ids += e.ID[1:]
			}
			return ids
		}
		for want, f := range map[string]store.AuditFilter{
			"876543210": {},
			"86420":     {Actor: "on-call"},
			"741":       {Target: "queue:1"},
			"41":        {Target: "queue:1", After: "e7"},
			"876543":    {From: base.Add(time.Hour)},
			"210":       {To: base.Add(time.Hour)},
			"8765":      {Limit: 4},
			"43":        {After: "e5", Limit: 2},
			"7":         {Actor: "second", Target: "queue:1", Action: "queue.purge", From: base.Add(2 * time.Hour)},
			"":          {Action: "queue.pause"},
		} {
			require.Equal(t, want, list(f), "%+v", f)
		}
		entries, err := s.ListAudit(t.Context(), store.AuditFilter{Limit: 1})
		require.NoError(t, err)
		require.JSONEq(t, `{"n": 1.50, "nul": "\u0000"}`, string(entries[0].Before))
		require.Nil(t, entries[0].After)
		_, err = s.ListAudit(t.Context(), store.AuditFilter{After: "nothing"})
		require.ErrorIs(t, err, store.ErrNotFound)
	},

	"what an entry must be": func(t *testing.T, open Open) {
		s := migrated(t, open)
		good := store.AuditEntry{Actor: "on-call", Action: "queue.purge", Target: "queue:a"}
		for _, change := range []func(*store.AuditEntry){
			func(e *store.AuditEntry) { e.Actor = "" },
			func(e *store.AuditEntry) { e.Action = "" },
			func(e *store.AuditEntry) { e.Target = "\x00" },
			func(e *store.AuditEntry) { e.Before = json.RawMessage(`{`) },
			func(e *store.AuditEntry) { e.After = json.RawMessage("\"\xff\"") },
			func(e *store.AuditEntry) {
				e.After = json.RawMessage(`"` + strings.Repeat("x", store.MaxAuditBytes) + `"`)
			},
		} {
			e := good
			change(&e)
			require.ErrorIs(t, s.AppendAudit(t.Context(), e), store.ErrInvalid)
		}
		require.NoError(t, s.AppendAudit(t.Context(), good))
		require.NoError(t, s.AppendAudit(t.Context(), good), "each has an id of its own")
		entries, err := s.ListAudit(t.Context(), store.AuditFilter{})
		require.NoError(t, err)
		require.Len(t, entries, 2)
		require.WithinDuration(t, time.Now(), entries[0].At, clockSlack)
		require.ErrorIs(t, s.AppendAudit(t.Context(), entries[0]), store.ErrDuplicate)
	},
}
