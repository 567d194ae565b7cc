package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func keyOf(n int) Key { return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n))) }

func TestFilterHasWhatWasAdded(t *testing.T) {
	t.Parallel()
	const many = 20_000
	f := NewFilter(many)
	require.False(t, f.Has(keyOf(0)))
	var adding sync.WaitGroup
	for part := range 4 {
		adding.Go(func() {
			for n := part; n < many; n += 4 {
				f.Add(keyOf(n))
			}
		})
	}
	adding.Wait()
	for n := range many {
		require.True(t, f.Has(keyOf(n)))
	}
	taken := 0
	for n := many; n < 6*many; n++ {
		if f.Has(keyOf(n)) {
			taken++
		}
	}
	require.Less(t, taken, 5*many/500, "of 100,000 that were not added")
	require.InDelta(t, many, f.Added(), many/100)
	f.Add(keyOf(0))
	require.False(t, f.Full(), "it has that one")
	for n := many; n < many+many/100; n++ {
		f.Add(keyOf(n))
	}
	require.True(t, f.Full())
}

func TestFiltersAreBounded(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int{-1, 0, 1, 3} {
		f := NewFilter(capacity)
		f.Add(keyOf(1))
		require.True(t, f.Has(keyOf(1)))
	}
	var last Key
	for i := range last {
		last[i] = 0xff
	}
	f := NewFilter(MaxFilter * 2)
	require.Len(t, f.words, 32<<20/8)
	f.Add(last)
	require.True(t, f.Has(last))
}

func BenchmarkFilter(b *testing.B) {
	f := NewFilter(1 << 20)
	for n := range 1 << 20 {
		f.Add(keyOf(n))
	}
	k := keyOf(-1)
	for b.Loop() {
		f.Has(k)
	}
}
