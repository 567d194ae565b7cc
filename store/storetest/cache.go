package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/store"
)

// newCached returns an answer that can be kept, which n tells from others.
func newCached(n byte) store.CachedAnswer {
	return store.CachedAnswer{
		Key: [32]byte{n, 7}, Kind: "chat", Tenant: "acme", KeyID: "key-1", Model: "m", Provider: "openai", Served: "m-1",
		Dropped: "seed, logit_bias", Body: []byte("\x00\xff{}" + strings.Repeat("x", int(n))),
		CreatedAt: noon.Add(time.Duration(n) * time.Second), FreshUntil: noon.Add(time.Hour), StaleUntil: noon.Add(2 * time.Hour),
	}
}

func putCached(t *testing.T, s store.Store, answers ...store.CachedAnswer) {
	t.Helper()
	require.NoError(t, s.PutCached(t.Context(), answers))
}

// hasCached returns which of the answers are found.
func hasCached(t *testing.T, s store.Store, ns ...byte) (found []byte) {
	t.Helper()
	for _, n := range ns {
		_, err := s.Cached(t.Context(), newCached(n).Key, noon)
		if err == nil {
			found = append(found, n)
			continue
		}
		require.ErrorIs(t, err, store.ErrNotFound)
	}
	return found
}

func forget(t *testing.T, s store.Store, f store.CacheFilter) store.CachePurge {
	t.Helper()
	p, err := s.ForgetCached(t.Context(), f, noon)
	require.NoError(t, err)
	return p
}

func cacheSize(t *testing.T, s store.Store) (answers, bytes int64) {
	t.Helper()
	answers, bytes, err := s.CacheSize(t.Context())
	require.NoError(t, err)
	return answers, bytes
}

var cacheTests = map[string]func(*testing.T, Open){
	"keys are listed in their order, page by page": func(t *testing.T, open Open) {
		s := migrated(t, open)
		keys := func(after [32]byte, limit int) [][32]byte {
			keys, err := s.CachedKeys(t.Context(), after, limit)
			require.NoError(t, err)
			return keys
		}
		require.Empty(t, keys([32]byte{}, 10))
		one, two, three := newCached(1), newCached(2), newCached(200)
		putCached(t, s, three, one, two)
		require.Equal(t, [][32]byte{one.Key, two.Key, three.Key}, keys([32]byte{}, store.MaxPage+1))
		require.Equal(t, [][32]byte{one.Key, two.Key}, keys([32]byte{}, 2))
		require.Equal(t, [][32]byte{three.Key}, keys(two.Key, 2))
		require.Empty(t, keys(three.Key, 2))
		require.Empty(t, keys([32]byte{}, 0))
		require.Empty(t, keys([32]byte{}, -1))
	},
	"an answer comes back as it was kept, until it is gone": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := newCached(1)
		putCached(t, s, want)
		got, err := open().Cached(t.Context(), want.Key, want.StaleUntil.Add(-time.Microsecond))
		require.NoError(t, err)
		require.Equal(t, want, got)
		_, err = s.Cached(t.Context(), want.Key, want.StaleUntil)
		require.ErrorIs(t, err, store.ErrNotFound)
		require.Empty(t, hasCached(t, s, 2))
	},

	"a later answer takes an earlier one's place": func(t *testing.T, open Open) {
		s := migrated(t, open)
		putCached(t, s, newCached(1), newCached(2))
		later := newCached(9)
		later.Key, later.Model, later.Tenant, later.KeyID = newCached(1).Key, "n", "others", "key-2"
		putCached(t, s, later)
		got, err := s.Cached(t.Context(), later.Key, noon)
		require.NoError(t, err)
		require.Equal(t, later, got)
		answers, bytes := cacheSize(t, s)
		two := newCached(2)
		require.Equal(t, []int64{2, later.Size() + two.Size()}, []int64{answers, bytes})
	},

	"an earlier answer that comes late does not take a later one's place": func(t *testing.T, open Open) {
		s := migrated(t, open)
		later, earlier := newCached(9), newCached(1)
		earlier.Key = later.Key
		putCached(t, s, later, newCached(2))
		putCached(t, s, earlier, newCached(3))
		got, err := s.Cached(t.Context(), later.Key, noon)
		require.NoError(t, err)
		require.Equal(t, later, got)
		require.Equal(t, []byte{2, 3}, hasCached(t, s, 2, 3), "those beside it are kept")
		answers, bytes := cacheSize(t, s)
		two, three := newCached(2), newCached(3)
		require.Equal(t, []int64{3, later.Size() + two.Size() + three.Size()}, []int64{answers, bytes})
		same := later
		same.Body = []byte("{}")
		putCached(t, s, same)
		got, err = s.Cached(t.Context(), later.Key, noon)
		require.NoError(t, err)
		require.Equal(t, same, got, "of two of one time the last counts")
	},

	"what can never be kept is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for name, change := range map[string]func(*store.CachedAnswer){
			"no tenant": func(a *store.CachedAnswer) { a.Tenant = "" },
			"no kind":   func(a *store.CachedAnswer) { a.Kind = "" },
			"no body":   func(a *store.CachedAnswer) { a.Body = nil },
			"times":     func(a *store.CachedAnswer) { a.StaleUntil = a.FreshUntil.Add(-1) },
			"no time":   func(a *store.CachedAnswer) { a.CreatedAt = time.Time{} },
		} {
			a := newCached(1)
			change(&a)
			require.ErrorIs(t, s.PutCached(t.Context(), []store.CachedAnswer{newCached(2), a}), store.ErrInvalid, name)
		}
		require.ErrorIs(t, s.PutCached(t.Context(), make([]store.CachedAnswer, store.MaxCachePut+1)), store.ErrInvalid)
		require.Empty(t, hasCached(t, s, 1, 2), "all of them or none")
		require.NoError(t, s.PutCached(t.Context(), nil))
	},

	"what is forgotten is not found, and does not come back": func(t *testing.T, open Open) {
		for name, filter := range map[string]store.CacheFilter{
			"model": {Model: "n"}, "tenant": {Tenant: "others"}, "key": {KeyID: "key-2"}, "two": {Model: "n", Tenant: "others"},
		} {
			s := migrated(t, open)
			forget(t, s, store.CacheFilter{}) // an earlier subtest's answers
			generation, err := s.CacheGeneration(t.Context())
			require.NoError(t, err)
			other := newCached(2)
			other.Model, other.Tenant, other.KeyID, other.Generation = "n", "others", "key-2", generation
			mine := newCached(1)
			mine.Generation = generation
			putCached(t, s, mine, other)
			require.Equal(t, []byte{1, 2}, hasCached(t, s, 1, 2), name)

			purge := forget(t, open(), filter)
			require.Greater(t, purge.Generation, generation)
			require.Equal(t, []byte{1}, hasCached(t, s, 1, 2), name)
			putCached(t, s, other)
			require.Equal(t, []byte{1}, hasCached(t, s, 1, 2), "%s: its request came before", name)
			_, _, err = s.DropForgotten(t.Context(), purge, [32]byte{}, 10)
			require.NoError(t, err)
			putCached(t, s, other)
			answers, _ := cacheSize(t, s)
			require.Equal(t, int64(1), answers, "%s: it takes no room", name)
			other.Generation = purge.Generation
			putCached(t, s, other)
			require.Equal(t, []byte{1, 2}, hasCached(t, s, 1, 2), "%s: its request came after", name)
		}
	},

	"forgotten answers are removed a few at a time, and counted": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for n := range byte(7) {
			a := newCached(n)
			if n%2 == 1 {
				a.Model = "n"
			}
			putCached(t, s, a)
		}
		purge := forget(t, s, store.CacheFilter{Model: "m"})
		var after [32]byte
		var removed []int
		for n := 2; n == 2; {
			var err error
			n, after, err = s.DropForgotten(t.Context(), purge, after, 2)
			require.NoError(t, err)
			removed = append(removed, n)
		}
		require.Equal(t, []int{2, 2, 0}, removed[:3])
		answers, _ := cacheSize(t, s)
		require.Equal(t, int64(3), answers)
	},

	"purges are told in order, and go when nothing of them is left": func(t *testing.T, open Open) {
		s := migrated(t, open)
		putCached(t, s, newCached(1), newCached(2), newCached(3))
		first := forget(t, s, store.CacheFilter{Model: "m"})
		second := forget(t, s, store.CacheFilter{Tenant: "t", KeyID: "k"})
		told, err := open().CachePurges(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, []store.CachePurge{first, second}, told)
		told, err = s.CachePurges(t.Context(), first.Generation)
		require.NoError(t, err)
		require.Equal(t, []store.CachePurge{second}, told)
		last, err := s.CacheGeneration(t.Context())
		require.NoError(t, err)
		require.Equal(t, second.Generation, last)

		more, err := s.PruneCachePurges(t.Context(), noon, 2)
		require.NoError(t, err)
		require.False(t, more, "they are not old enough")
		for range 2 {
			more, err = s.PruneCachePurges(t.Context(), noon.Add(time.Hour), 2)
			require.NoError(t, err)
			require.True(t, more)
			told, err = s.CachePurges(t.Context(), 0)
			require.NoError(t, err)
			require.Len(t, told, 2, "there are answers that the first one covers")
		}
		answers, _ := cacheSize(t, s)
		require.Zero(t, answers)
		for more {
			more, err = s.PruneCachePurges(t.Context(), noon.Add(time.Hour), 2)
			require.NoError(t, err)
		}
		told, err = s.CachePurges(t.Context(), 0)
		require.NoError(t, err)
		require.Empty(t, told)
		require.Greater(t, forget(t, s, store.CacheFilter{}).Generation, second.Generation, "a generation is never used again")
	},

	"answers expire a few at a time": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for n := range byte(5) {
			a := newCached(n)
			a.StaleUntil = noon.Add(time.Hour + time.Duration(n)*time.Minute)
			putCached(t, s, a)
		}
		for _, want := range []int{2, 1, 0} {
			removed, err := s.ExpireCached(t.Context(), noon.Add(time.Hour+2*time.Minute), 2)
			require.NoError(t, err)
			require.Equal(t, want, removed)
		}
		require.Equal(t, []byte{3, 4}, hasCached(t, s, 0, 1, 2, 3, 4))
	},

	"the oldest go while there is too much": func(t *testing.T, open Open) {
		s := migrated(t, open)
		var sizes int64
		for n := range byte(6) {
			a := newCached(n)
			putCached(t, s, a)
			if n >= 3 {
				sizes += a.Size()
			}
		}
		removed, err := s.TrimCached(t.Context(), sizes, 2)
		require.NoError(t, err)
		require.Equal(t, 2, removed, "no more than it may")
		removed, err = s.TrimCached(t.Context(), sizes, 2)
		require.NoError(t, err)
		require.Equal(t, 1, removed, "no more than it must")
		removed, err = s.TrimCached(t.Context(), sizes, 2)
		require.NoError(t, err)
		require.Zero(t, removed)
		require.Equal(t, []byte{3, 4, 5}, hasCached(t, s, 0, 1, 2, 3, 4, 5))
		_, bytes := cacheSize(t, s)
		require.Equal(t, sizes, bytes)
	},

	"many at once put, forget and trim": func(t *testing.T, open Open) {
		s, other := migrated(t, open), open()
		var g errgroup.Group
		for i := range byte(4) {
			for _, db := range []store.Store{s, other} {
				g.Go(func() error {
					for n := range byte(10) {
						a, b := newCached(n+1), newCached(n+i)
						if err := db.PutCached(t.Context(), []store.CachedAnswer{b, a, newCached(40 - n)}); err != nil {
							return fmt.Errorf("put: %w", err)
						}
						if _, err := db.TrimCached(t.Context(), 4<<10, 5); err != nil {
							return fmt.Errorf("trim: %w", err)
						}
						if _, err := db.ForgetCached(t.Context(), store.CacheFilter{Model: "m"}, noon); err != nil {
							return fmt.Errorf("forget: %w", err)
						}
					}
					return nil
				})
			}
		}
		require.NoError(t, g.Wait())
		for n := range byte(50) {
			require.Empty(t, hasCached(t, s, n), "all of them are of requests that came before")
		}
		purges, err := s.CachePurges(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, purges, 80)
		for i := 1; i < len(purges); i++ {
			require.Greater(t, purges[i].Generation, purges[i-1].Generation)
		}
	},
}
