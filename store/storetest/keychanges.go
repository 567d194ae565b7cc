package storetest

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/store"
)

// by is who changes something where it does not matter who.
var by = store.Change{Actor: "test"}

// byAt is by at a certain time.
func byAt(at time.Time) store.Change { return store.Change{Actor: "test", At: at} }

// someLimits returns limits in which every field is set.
func someLimits() *limits.Limits {
	budget := limits.Budget{Day: 1_500_000_000, Week: inference.Cost(9_007_199_254_740_993), Month: 1}
	return &limits.Limits{
		RequestsPerMinute: 60, TokensPerMinute: 1_000_000_000_000, Concurrent: 3, Queued: 4, Budget: budget, OnLimit: limits.Queue,
		Models: []limits.ModelLimits{{Models: []string{"gpt-4o*", "北京"}, RequestsPerMinute: 1, TokensPerMinute: 2, Concurrent: 3, Queued: 4, Budget: budget}},
	}
}

func rotation(secret string, overlap time.Duration) store.Rotation {
	return store.Rotation{Hash: sha256.Sum256([]byte(secret)), Display: "sk-" + secret, Overlap: overlap}
}

// created stores a key and returns it as it is stored.
func created(t *testing.T, s store.Store, key store.Key) store.Key {
	t.Helper()
	require.NoError(t, s.CreateKey(t.Context(), key, by))
	got, err := s.Key(t.Context(), key.ID)
	require.NoError(t, err)
	return got
}

var keyChangeTests = map[string]func(*testing.T, Open){
	"limits are kept": func(t *testing.T, open Open) {
		s := migrated(t, open)
		key := newKey("limited")
		key.Limits = someLimits()
		require.Equal(t, someLimits(), created(t, s, key).Limits)
		unbounded := newKey("unbounded")
		unbounded.Limits = &limits.Limits{}
		require.Equal(t, &limits.Limits{}, created(t, s, unbounded).Limits, "no bound is not the same as no limits of its own")
		require.Nil(t, created(t, s, newKey("without")).Limits)
		for _, wrong := range []limits.Limits{{Queued: -1}, {OnLimit: "wait"}, {Models: []limits.ModelLimits{{Models: []string{"gpt-["}}}}, {Models: []limits.ModelLimits{{}}}} {
			bad := newKey("wrong")
			bad.Limits = &wrong
			require.ErrorIs(t, s.CreateKey(t.Context(), bad, by), store.ErrInvalid)
		}
	},

	"an update is of what was seen": func(t *testing.T, open Open) {
		s := migrated(t, open)
		old := created(t, s, newKey("old"))
		to := old
		to.Name, to.Models, to.ExpiresAt, to.Limits = "new", []string{"m*"}, time.Date(2031, 1, 2, 3, 4, 5, 678901234, time.UTC), someLimits()
		to.Tenant, to.Display = "others", "what an update leaves"
		got, err := s.UpdateKey(t.Context(), to, by)
		require.NoError(t, err)
		require.True(t, got.UpdatedAt.After(old.UpdatedAt))
		want := to
		want.Tenant, want.Display, want.UpdatedAt, want.ExpiresAt = old.Tenant, old.Display, got.UpdatedAt, time.Date(2031, 1, 2, 3, 4, 5, 678901000, time.UTC)
		require.Equal(t, want, got)
		for _, name := range []string{"new", old.ID} {
			found, err := s.Key(t.Context(), name)
			require.NoError(t, err)
			require.Equal(t, want, found)
		}
		_, err = s.Key(t.Context(), "old")
		require.ErrorIs(t, err, store.ErrNotFound)
		changed, _, err := s.KeysChangedSince(t.Context(), got.UpdatedAt)
		require.NoError(t, err)
		require.Equal(t, []store.Key{want}, changed, "ingresses hear of it")

		_, err = s.UpdateKey(t.Context(), to, by)
		require.ErrorIs(t, err, store.ErrConflict, "it is of a state that is over")
		got.Limits, got.Models, got.ExpiresAt = nil, []string{}, time.Time{}
		bare, err := s.UpdateKey(t.Context(), got, by)
		require.NoError(t, err)
		require.Nil(t, bare.Limits)
		require.Nil(t, bare.Models)
		require.True(t, bare.ExpiresAt.IsZero())
	},

	"what an update cannot do": func(t *testing.T, open Open) {
		s := migrated(t, open)
		key, other := created(t, s, newKey("one")), created(t, s, newKey("two"))
		for want, change := range map[error]func(*store.Key){
			store.ErrNameTaken: func(k *store.Key) { k.Name = other.Name },
			store.ErrInvalid:   func(k *store.Key) { k.Models = []string{"gpt-["} },
			store.ErrNotFound:  func(k *store.Key) { k.ID = "nobody" },
			store.ErrConflict:  func(k *store.Key) { k.UpdatedAt = time.Time{} },
		} {
			to := key
			change(&to)
			_, err := s.UpdateKey(t.Context(), to, by)
			require.ErrorIs(t, err, want)
		}
		byName := key
		byName.ID = key.Name
		_, err := s.UpdateKey(t.Context(), byName, by)
		require.ErrorIs(t, err, store.ErrNotFound, "an update is of an id")
		revoked, err := s.RevokeKey(t.Context(), key.ID, by)
		require.NoError(t, err)
		_, err = s.UpdateKey(t.Context(), revoked, by)
		require.ErrorIs(t, err, store.ErrConflict)
		_, err = s.RotateKey(t.Context(), key.ID, rotation("x", 0), by)
		require.ErrorIs(t, err, store.ErrConflict)
		_, err = s.UpdateKey(t.Context(), other, store.Change{})
		require.ErrorIs(t, err, store.ErrInvalid, "nobody changes nothing")
		entries, err := s.ListAudit(t.Context(), store.AuditFilter{})
		require.NoError(t, err)
		require.Len(t, entries, 3, "what was not done is not in the audit")
	},

	"a rotated key opens with both secrets": func(t *testing.T, open Open) {
		s := migrated(t, open)
		key := newKey("spins")
		key.Limits = someLimits()
		old := created(t, s, key)
		got, err := s.RotateKey(t.Context(), "spins", rotation("second", time.Hour), by)
		require.NoError(t, err)
		next := rotation("second", 0)
		require.Equal(t, old.ID, got.ID, "what counts for the key goes on counting for it")
		require.Equal(t, next.Hash, got.Hash)
		require.Equal(t, next.Display, got.Display)
		require.Equal(t, someLimits(), got.Limits)
		require.Len(t, got.Replaced, 1)
		require.Equal(t, old.Display, got.Replaced[0].Display)
		require.WithinDuration(t, time.Now().Add(time.Hour), got.Replaced[0].Until, clockSlack)
		for _, hash := range [][32]byte{old.Hash, next.Hash} {
			found, err := s.KeyByHash(t.Context(), hash)
			require.NoError(t, err)
			require.Equal(t, got, found)
			require.True(t, found.OpensWith(hash, time.Now()))
		}
		require.False(t, got.OpensWith(old.Hash, got.Replaced[0].Until))
		changed, _, err := s.KeysChangedSince(t.Context(), got.UpdatedAt)
		require.NoError(t, err)
		require.Equal(t, []store.Key{got}, changed)

		third, err := s.RotateKey(t.Context(), got.ID, rotation("third", 2*time.Hour), by)
		require.NoError(t, err)
		require.Len(t, third.Replaced, 2)
		require.Equal(t, got.Replaced[0], third.Replaced[1], "the one before keeps its end")
		require.True(t, third.OpensWith(old.Hash, time.Now()))
		shorter, err := s.RotateKey(t.Context(), got.ID, rotation("fourth", time.Second), by)
		require.NoError(t, err)
		require.Len(t, shorter.Replaced, 3)
		require.Equal(t, third.Replaced, shorter.Replaced[:2], "a shorter overlap cuts none that was promised")
		none, err := s.RotateKey(t.Context(), got.ID, rotation("fifth", 0), by)
		require.NoError(t, err)
		require.Len(t, none.Replaced, 4)
		for _, r := range none.Replaced {
			require.False(t, none.OpensWith(r.Hash, none.UpdatedAt), "without an overlap all of them end")
			found, err := s.KeyByHash(t.Context(), r.Hash)
			require.NoError(t, err)
			require.Equal(t, none.ID, found.ID, "they are known for what they were")
		}
	},

	"replaced secrets are bounded": func(t *testing.T, open Open) {
		s := migrated(t, open)
		first := created(t, s, newKey("spins"))
		for i := range store.MaxReplaced {
			_, err := s.RotateKey(t.Context(), "spins", rotation(fmt.Sprint(i), time.Hour), by)
			require.NoError(t, err)
		}
		_, err := s.RotateKey(t.Context(), "spins", rotation("one more", time.Hour), by)
		require.ErrorIs(t, err, store.ErrTooMany, "a secret that was promised an overlap has it")
		got, err := s.RotateKey(t.Context(), "spins", rotation("now", 0), by)
		require.NoError(t, err)
		require.Len(t, got.Replaced, store.MaxReplaced)
		_, err = s.KeyByHash(t.Context(), first.Hash)
		require.ErrorIs(t, err, store.ErrNotFound)
	},

	"what a rotation cannot do": func(t *testing.T, open Open) {
		s := migrated(t, open)
		one, other := created(t, s, newKey("one")), created(t, s, newKey("two"))
		for want, r := range map[error]store.Rotation{
			store.ErrInvalid:   rotation("x", -time.Second),
			store.ErrDuplicate: {Hash: other.Hash},
		} {
			_, err := s.RotateKey(t.Context(), "one", r, by)
			require.ErrorIs(t, err, want)
		}
		_, err := s.RotateKey(t.Context(), "one", rotation("x", store.MaxOverlap+1), by)
		require.ErrorIs(t, err, store.ErrInvalid)
		_, err = s.RotateKey(t.Context(), "one", store.Rotation{Hash: one.Hash}, by)
		require.ErrorIs(t, err, store.ErrDuplicate, "the same secret again is none")
		_, err = s.RotateKey(t.Context(), "nobody", rotation("x", 0), by)
		require.ErrorIs(t, err, store.ErrNotFound)
		_, err = s.RotateKey(t.Context(), "one", rotation("x", time.Hour), by)
		require.NoError(t, err)
		replaced := newKey("three")
		replaced.Hash = one.Hash
		require.ErrorIs(t, s.CreateKey(t.Context(), replaced, by), store.ErrDuplicate, "a replaced secret is a key's too")
	},

	"of two updates at once one is done": func(t *testing.T, open Open) {
		s := migrated(t, open)
		other := open()
		key := created(t, s, newKey("wanted"))
		done, failed := atOnce(func(i int) error {
			to := key
			to.Models = []string{fmt.Sprint("m", i)}
			_, err := []store.Store{s, other}[i%2].UpdateKey(t.Context(), to, by)
			return err
		})
		require.Len(t, done, 1)
		for _, err := range failed {
			require.ErrorIs(t, err, store.ErrConflict)
		}
		got, err := s.Key(t.Context(), key.ID)
		require.NoError(t, err)
		require.Equal(t, []string{fmt.Sprint("m", done[0])}, got.Models)
		requireActions(t, s, store.KeyTarget(key.ID), "key.update", "key.create")
	},

	"of rotations at once each is done": func(t *testing.T, open Open) {
		s := migrated(t, open)
		other := open()
		key := created(t, s, newKey("spins"))
		done, failed := atOnce(func(i int) error {
			_, err := []store.Store{s, other}[i%2].RotateKey(t.Context(), key.ID, rotation(fmt.Sprint(i), time.Hour), by)
			return err
		})
		require.Empty(t, failed)
		got, err := s.Key(t.Context(), key.ID)
		require.NoError(t, err)
		require.Len(t, got.Replaced, len(done))
		for i := range done {
			hash := rotation(fmt.Sprint(i), 0).Hash
			require.True(t, got.OpensWith(hash, time.Now()), "whoever was given a secret can use it")
			found, err := s.KeyByHash(t.Context(), hash)
			require.NoError(t, err)
			require.Equal(t, got, found)
		}
		require.True(t, got.OpensWith(key.Hash, time.Now()))
	},

	"of updates and a revocation at once none undoes it": func(t *testing.T, open Open) {
		s := migrated(t, open)
		key := created(t, s, newKey("gone"))
		_, failed := atOnce(func(i int) error {
			if i == 0 {
				_, err := s.RevokeKey(t.Context(), key.ID, by)
				return err
			}
			_, err := s.UpdateKey(t.Context(), key, by)
			return err
		})
		for _, err := range failed {
			require.ErrorIs(t, err, store.ErrConflict)
		}
		got, err := s.Key(t.Context(), key.ID)
		require.NoError(t, err)
		require.False(t, got.RevokedAt.IsZero())
	},

	"keys are found by tenant and state, page by page": func(t *testing.T, open Open) {
		s := migrated(t, open)
		now := time.Now()
		var all []string
		for i := range 7 {
			key := newKey(fmt.Sprint("k", i))
			if i%2 == 1 {
				key.Tenant = "others"
			}
			if i == 2 || i == 3 {
				key.ExpiresAt = now.Add(time.Hour)
			}
			created(t, s, key)
			all = append(all, key.Name)
		}
		_, err := s.RevokeKey(t.Context(), "k4", by)
		require.NoError(t, err)
		find := func(f store.KeyFilter) []string {
			keys, err := s.FindKeys(t.Context(), f)
			require.NoError(t, err)
			return names(keys)
		}
		later := now.Add(2 * time.Hour)
		require.Equal(t, all, find(store.KeyFilter{}))
		require.Equal(t, []string{"k1", "k3", "k5"}, find(store.KeyFilter{Tenant: "others"}))
		require.Equal(t, []string{"k0", "k1", "k2", "k3", "k5", "k6"}, find(store.KeyFilter{State: store.KeyActive, Now: now}))
		require.Equal(t, []string{"k2", "k3"}, find(store.KeyFilter{State: store.KeyExpired, Now: later}))
		require.Equal(t, []string{"k4"}, find(store.KeyFilter{State: store.KeyRevoked, Now: later}))
		var paged []string
		for after := ""; ; {
			keys, err := s.FindKeys(t.Context(), store.KeyFilter{Limit: 3, After: after})
			require.NoError(t, err)
			paged = append(paged, names(keys)...)
			if len(keys) < 3 {
				break
			}
			after = keys[2].ID
		}
		require.Equal(t, all, paged)
		_, err = s.FindKeys(t.Context(), store.KeyFilter{After: "nobody"})
		require.ErrorIs(t, err, store.ErrNotFound)
	},
}

// racers is how many calls atOnce makes: few enough for a key to remember.
const racers = 8

// atOnce makes calls at once and returns which succeeded, and what the others came to.
func atOnce(call func(i int) error) (done []int, failed []error) {
	var (
		callers sync.WaitGroup
		mu      sync.Mutex
	)
	start := make(chan struct{})
	for i := range racers {
		callers.Go(func() {
			<-start
			err := call(i)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				done = append(done, i)
				return
			}
			failed = append(failed, err)
		})
	}
	close(start)
	callers.Wait()
	return done, failed
}

// requireActions requires the audit of the target to have these actions, newest first.
func requireActions(t *testing.T, s store.Store, target string, actions ...string) []store.AuditEntry {
	t.Helper()
	entries, err := s.ListAudit(t.Context(), store.AuditFilter{Target: target})
	require.NoError(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Action)
	}
	require.Equal(t, actions, got)
	return entries
}
