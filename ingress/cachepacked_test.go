package ingress

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

func TestAPackedAnswerComesBack(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string { return strings.Repeat("ü", random.IntN(4)*random.IntN(100)) }
	for range 100 {
		at := time.UnixMicro(random.Int64N(1e16) - 1e15).UTC()
		want := store.CachedAnswer{
			Key: [32]byte{byte(random.Int())}, Kind: text(), Tenant: text(), KeyID: text(), Model: text(), Provider: text(), Served: text(), Dropped: text(),
			Body: []byte(text()), Generation: random.Int64(), CreatedAt: at, FreshUntil: at.Add(time.Microsecond), StaleUntil: at.Add(time.Hour),
		}
		p := pack(&want)
		require.Len(t, p, cap(p), "it takes what it needs")
		got := p.answer(want.Key)
		require.Equal(t, want, *got)
		require.Equal(t, want.StaleUntil, p.time(packedStale))
	}
}
