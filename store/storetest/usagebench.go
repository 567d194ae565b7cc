package storetest

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/store"
)

// BenchmarkUsage measures what the ledger costs a database: to append one record or a batch
// of 500, from one writer or from four at one time, and to say what was spent in a month.
func BenchmarkUsage(b *testing.B, s store.Store) {
	require.NoError(b, s.Migrate(b.Context()))
	const writers, month = 4, 100_000
	var ids atomic.Int64
	records := func(n int) []inference.Record {
		made := make([]inference.Record, n)
		for i := range made {
			id := ids.Add(1)
			made[i] = newRecord(fmt.Sprintf("job-%09d", id))
			made[i].Tenant, made[i].KeyID = fmt.Sprintf("tenant-%d", id%3), fmt.Sprintf("key-%d", id%12)
			made[i].ModelAsked = fmt.Sprintf("model-%d", id/12%4)
			made[i].CreatedAt = noon.Add(time.Duration(id) * time.Millisecond)
		}
		return made
	}
	appendRows := func(n int) error {
		_, err := s.AppendUsage(b.Context(), records(n))
		return err
	}
	for _, n := range []int{1, 500} {
		b.Run(fmt.Sprintf("AppendUsage%d", n), func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, appendRows(n))
			}
		})
	}
	b.Run("AppendUsage500By4", func(b *testing.B) {
		for b.Loop() {
			var group errgroup.Group
			for range writers {
				group.Go(func() error { return appendRows(500) })
			}
			require.NoError(b, group.Wait())
		}
	})
	for ids.Load() < month {
		require.NoError(b, appendRows(store.MaxBatch))
	}
	for name, scope := range map[string]store.SpendScope{
		"key": {KeyID: "key-1"}, "tenant": {Tenant: "tenant-1"}, "model": {Models: []string{"model-1"}},
	} {
		b.Run("SpentSince/"+name, func(b *testing.B) {
			for b.Loop() {
				_, err := s.SpentSince(b.Context(), scope, noon.Truncate(24*time.Hour))
				require.NoError(b, err)
			}
		})
	}
}
