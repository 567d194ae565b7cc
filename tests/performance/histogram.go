package main

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// A histogram's buckets are exact below 256 ns and afterwards 128 to each doubling,
// so that no figure is off by more than 0.8%. The last bucket is at about 137 s;
// anything longer is counted there.
const (
	subBuckets     = 7
	longestCounted = 1<<37 - 1
	bucketCount    = 3968
)

// histogram counts durations. It may be used by many goroutines at once.
type histogram struct {
	buckets [bucketCount]atomic.Uint64
}

func (h *histogram) record(d time.Duration) { h.buckets[bucketOf(d)].Add(1) }

func (h *histogram) count() uint64 {
	var n uint64
	for i := range h.buckets {
		n += h.buckets[i].Load()
	}
	return n
}

// quantile returns the duration which the share q of all stays at or below; zero
// when nothing was recorded.
func (h *histogram) quantile(q float64) time.Duration {
	total := h.count()
	if total == 0 {
		return 0
	}
	rank := max(1, uint64(math.Ceil(q*float64(total))))
	var seen uint64
	for i := range h.buckets {
		if seen += h.buckets[i].Load(); seen >= rank {
			return bucketMiddle(i)
		}
	}
	return bucketMiddle(bucketCount - 1)
}

func bucketOf(d time.Duration) int {
	v := uint64(min(max(d, 0), longestCounted))
	shift := max(0, bits.Len64(v)-(subBuckets+1))
	return shift<<subBuckets + int(v>>shift)
}

func bucketMiddle(i int) time.Duration {
	shift := max(0, i>>subBuckets-1)
	low := (i - shift<<subBuckets) << shift
	return time.Duration(low + 1<<shift/2)
}

// summary is what a load process reports of one histogram, in milliseconds.
type summary struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

func (h *histogram) summary() summary {
	return summary{
		Count: h.count(),
		P50:   milliseconds(h.quantile(0.50)),
		P99:   milliseconds(h.quantile(0.99)),
		Max:   milliseconds(h.quantile(1)),
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
