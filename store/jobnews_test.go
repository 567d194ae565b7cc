package store_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// Two calls that counted in different orders would wait for each other's batches.
func TestLinesAreCountedInTheOrderOfTheirBatches(t *testing.T) {
	t.Parallel()
	var ended []store.Job
	for i := range 50 {
		ended = append(ended, store.Job{BatchID: fmt.Sprintf("batch_%02d", 49-i), ResponseStatus: 200})
	}
	counts := store.CountLines(append(ended, ended...))
	require.Len(t, counts, 50)
	require.True(t, slices.IsSortedFunc(counts, func(a, b store.LineCount) int {
		require.Equal(t, 2, a.Completed)
		if a.BatchID < b.BatchID {
			return -1
		}
		return 1
	}))
}
