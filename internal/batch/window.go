package batch

import (
	"math"
	"slices"
	"time"

	"sluice/store"
)

// hurryMost is how much more than others a tenant gets at most because the end of its
// batches is near. Nobody can shut out others by a window that is short.
const hurryMost = 3

// Windows says how many more lines each batch may send to the queue now, so that of all
// batches together at most total lines are there. Tenants share it equally, however many
// lines and batches they have; one whose batches come near their end gets up to hurryMost
// times as much. Within a tenant batches share by what must be done an hour to be in time.
// What one cannot use the others get, and every batch has at least one line in the queue
// as long as it has any, so that the sum may be a little more than total.
func Windows(backlogs []store.Backlog, total int, now time.Time) map[string]int {
	tenants := make(map[string][]store.Backlog)
	for _, b := range backlogs {
		if b.Waiting+b.Out > 0 {
			tenants[b.Tenant] = append(tenants[b.Tenant], b)
		}
	}
	names := make([]string, 0, len(tenants))
	for name := range tenants {
		names = append(names, name)
	}
	slices.Sort(names) // so that the same backlogs give the same windows
	want, weight := make([]int, len(names)), make([]float64, len(names))
	for i, name := range names {
		for _, b := range tenants[name] {
			want[i] += b.Waiting + b.Out
		}
		weight[i] = hurry(tenants[name], now)
	}
	windows := make(map[string]int, len(backlogs))
	for i, most := range fill(total, want, weight) {
		within(windows, tenants[names[i]], most, now)
	}
	return windows
}

// within divides what a tenant may have in the queue among its batches: one half equally,
// so that a small one does not wait for a large one, the other by need.
func within(windows map[string]int, batches []store.Backlog, most int, now time.Time) {
	slices.SortFunc(batches, func(a, b store.Backlog) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	want, weight := make([]int, len(batches)), make([]float64, len(batches))
	var needs float64
	for _, b := range batches {
		needs += need(b, now)
	}
	for i, b := range batches {
		want[i], weight[i] = b.Waiting+b.Out, 1/float64(len(batches))+need(b, now)/max(needs, math.SmallestNonzeroFloat64)
	}
	for i, share := range fill(most, want, weight) {
		b := batches[i]
		windows[b.BatchID] = max(min(share-b.Out, b.Waiting), 0)
	}
}

// need is how many lines an hour must be done for the batch to be in time.
func need(b store.Backlog, now time.Time) float64 {
	left := max(b.ExpiresAt.Sub(now), time.Second)
	return float64(b.Waiting+b.Out) / left.Hours()
}

// hurry is a tenant's weight, from 1 to hurryMost. It grows over the second half of a
// batch's window; each batch counts as much as it needs, so that a small one that is
// about to end pulls no large one along.
func hurry(batches []store.Backlog, now time.Time) float64 {
	var needs, sum float64
	for _, b := range batches {
		passed := 1.0
		if window := b.ExpiresAt.Sub(b.CreatedAt); window > 0 {
			passed = min(max(float64(now.Sub(b.CreatedAt))/float64(window), 0), 1)
		}
		n := need(b, now)
		needs += n
		sum += n * (1 + (hurryMost-1)*max(2*passed-1, 0))
	}
	return sum / needs
}

// fill divides total among those who want something, by weight, and gives none more than
// it wants but each at least one. What is left over by rounding goes to the first ones.
func fill(total int, want []int, weight []float64) []int {
	got := make([]int, len(want))
	for left, open := total, len(want); left > 0 && open > 0; {
		var sum float64
		for i := range want {
			if got[i] < want[i] {
				sum += weight[i]
			}
		}
		open = 0
		given := 0
		for i := range want {
			if got[i] == want[i] {
				continue
			}
			n := min(int(float64(left)*weight[i]/sum+1e-9), want[i]-got[i])
			got[i], given = got[i]+n, given+n
			if got[i] < want[i] {
				open++
			}
		}
		left -= given
		if given > 0 {
			continue
		}
		for i := 0; i < len(want) && left > 0; i++ {
			if got[i] < want[i] {
				got[i], left = got[i]+1, left-1
			}
		}
	}
	for i := range got {
		if got[i] == 0 && want[i] > 0 {
			got[i] = 1
		}
	}
	return got
}
