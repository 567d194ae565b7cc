package storetest

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// BenchmarkBatches measures what a batch of 50,000 lines costs a database, step by step:
// to add a thousand lines, to lease a hundred out of all of them, to ask for the backlogs,
// to read a thousand that are finished, to give up a thousand and to drop them.
func BenchmarkBatches(b *testing.B, s store.Store) {
	const lines = 50_000
	require.NoError(b, s.Migrate(b.Context()))
	batches := 0
	fill := func(b *testing.B, lines int) string {
		b.Helper()
		id := fmt.Sprintf("batch_%06d", batches)
		batches++
		require.NoError(b, s.CreateBatch(b.Context(), newBatch(id)))
		for from := 1; from <= lines; from += store.MaxLines {
			chunk := newLines(id, from, from+store.MaxLines-1)
			for i := range chunk {
				chunk[i].ID, chunk[i].Body = fmt.Sprintf("%s-%06d", id, from+i), bytes.Repeat([]byte{'x'}, 300)
			}
			require.NoError(b, s.AddLines(b.Context(), owner, id, chunk, int64(from), nil))
		}
		require.NoError(b, s.BeginBatch(b.Context(), owner, id, noon))
		return id
	}
	b.Run("AddLines50000", func(b *testing.B) {
		for b.Loop() {
			fill(b, lines)
		}
	})
	id := fill(b, lines)
	b.Run("LeaseLines100", func(b *testing.B) {
		now := noon
		for b.Loop() {
			now = now.Add(lease)
			got, err := s.LeaseLines(b.Context(), id, now, lease, 100)
			require.NoError(b, err)
			require.Len(b, got, 100)
		}
	})
	b.Run("Backlogs", func(b *testing.B) {
		for b.Loop() {
			_, err := s.Backlogs(b.Context())
			require.NoError(b, err)
		}
	})
	b.Run("EndLines1000", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			id := fill(b, store.MaxLines)
			b.StartTimer()
			ended, err := s.EndLines(b.Context(), id, store.JobExpired, noon, store.MaxLines)
			require.NoError(b, err)
			require.Len(b, ended, store.MaxLines)
		}
	})
	for range lines / store.MaxLines {
		_, err := s.EndLines(b.Context(), id, store.JobExpired, noon, store.MaxLines)
		require.NoError(b, err)
	}
	b.Run("FinishedLines1000", func(b *testing.B) {
		failed := true
		for b.Loop() {
			got, err := s.FinishedLines(b.Context(), id, store.LineFilter{Failed: &failed, After: lines / 2})
			require.NoError(b, err)
			require.Len(b, got, store.MaxLines)
		}
	})
	b.Run("DropLines1000", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			id := fill(b, store.MaxLines)
			_, err := s.EndLines(b.Context(), id, store.JobExpired, noon, store.MaxLines)
			require.NoError(b, err)
			require.NoError(b, s.FinalizeBatch(b.Context(), owner, id, noon))
			end := endOf(store.BatchExpired)
			end.Purge = noon.Add(time.Hour)
			require.NoError(b, s.CompleteBatch(b.Context(), owner, id, end))
			b.StartTimer()
			n, err := s.DropLines(b.Context(), end.At.Add(time.Second), store.MaxLines)
			require.NoError(b, err)
			require.Equal(b, store.MaxLines, n)
		}
	})
}
