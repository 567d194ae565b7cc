package store_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

func TestJoinSum(t *testing.T) {
	t.Parallel()
	const unit, most = store.SumUnit, math.MaxInt64 / store.SumUnit
	for _, c := range []struct{ quotients, remainders, want int64 }{
		{0, 0, 0},
		{0, unit - 1, unit - 1},
		{2, 3, 2*unit + 3},
		{2, 5*unit + 7, 7*unit + 7}, // the remainders of many rows
		{-2, -3, -2*unit - 3},
		{most - 2, unit, (most - 1) * unit},
		{most - 2, 3 * unit, math.MaxInt64},
		{1 << 62, 1 << 62, math.MaxInt64},
		{-1 << 62, -1 << 62, math.MinInt64},
	} {
		require.Equal(t, c.want, store.JoinSum(c.quotients, c.remainders), "%d and %d", c.quotients, c.remainders)
	}
}
