package storetest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// BenchmarkCache measures what answers cost a database that has a hundred thousand of them:
// to keep one or a hundred more, and to look for one that is there, and one that is not.
func BenchmarkCache(b *testing.B, s store.Store) {
	require.NoError(b, s.Migrate(b.Context()))
	const rows = 100_000
	body := []byte(`{"choices":[{"message":{"content":"` + strings.Repeat("It is so. ", 40) + `"}}]}`)
	made := uint64(0)
	key := func(n uint64) [32]byte { return sha256.Sum256(binary.BigEndian.AppendUint64(nil, n)) }
	put := func(n int) {
		answers := make([]store.CachedAnswer, n)
		for i := range answers {
			made++
			at := noon.Add(time.Duration(made) * time.Millisecond)
			answers[i] = store.CachedAnswer{
				Key: key(made), Kind: "chat", Tenant: "tenant", KeyID: "key", Model: "model", Provider: "acme", Served: "model", Body: body,
				CreatedAt: at, FreshUntil: at.Add(time.Hour), StaleUntil: at.Add(2 * time.Hour),
			}
		}
		require.NoError(b, s.PutCached(b.Context(), answers))
	}
	for made < rows {
		put(store.MaxCachePut)
	}
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("PutCached%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				put(n)
			}
		})
	}
	look := func(name string, from uint64, want error) {
		b.Run("Cached/"+name, func(b *testing.B) {
			b.ReportAllocs()
			n := uint64(0)
			for b.Loop() {
				n++
				_, err := s.Cached(b.Context(), key(from+1+n%rows), noon)
				require.ErrorIs(b, err, want)
			}
		})
	}
	b.Run("CachedKeys", func(b *testing.B) {
		for b.Loop() {
			keys, err := s.CachedKeys(b.Context(), [32]byte{}, store.MaxPage)
			require.NoError(b, err)
			require.Len(b, keys, store.MaxPage)
		}
	})
	look("there", 0, nil)
	look("not there", 1<<40, store.ErrNotFound)
}
