package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHistogramKeepsDurationsWithinOnePercent(t *testing.T) {
	t.Parallel()
	for d := time.Duration(1); d < 2*time.Minute; d = d*17/16 + 1 {
		bucket := bucketOf(d)
		require.Less(t, bucket, bucketCount)
		require.InEpsilon(t, float64(d), float64(bucketMiddle(bucket)), 0.008, "%s", d)
	}
	require.Equal(t, bucketCount-1, bucketOf(time.Hour), "too long is counted as the longest")
	require.Zero(t, bucketOf(-time.Second), "a clock that went back counts as no time")
}

func TestHistogramQuantiles(t *testing.T) {
	t.Parallel()
	var h histogram
	require.Zero(t, h.quantile(0.5), "nothing recorded")
	for i := 1; i <= 1000; i++ {
		h.record(time.Duration(i) * time.Millisecond)
	}
	require.EqualValues(t, 1000, h.count())
	for q, want := range map[float64]float64{0: 1, 0.001: 1, 0.5: 500, 0.99: 990, 1: 1000} {
		require.InEpsilon(t, want, milliseconds(h.quantile(q)), 0.008, "quantile %v", q)
	}
}
