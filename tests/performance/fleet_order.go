package main

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"time"
)

// began is one request's arrival in a slot of an upstream.
type began struct {
	Number int           `json:"number"`
	At     time.Duration `json:"at"` // since the upstream's start
}

// disorder is how far a fleet strayed from serving its requests by age.
type disorder struct {
	passed  int           // the most younger requests that began before one that is older
	late    time.Duration // the longest that an older one began after the first such younger one
	repeats int           // requests that began once more than once
}

// byAge numbers requests by when the ingress accepted them, the oldest one first, and
// leaves out what it never accepted. It is there that an order begins: of requests that
// stand in a machine's sockets together the runtime reads any one first.
func byAge(all []began, accepted map[int]time.Time) []began {
	numbers := slices.SortedFunc(maps.Keys(accepted), func(a, b int) int {
		return cmp.Or(accepted[a].Compare(accepted[b]), cmp.Compare(a, b))
	})
	age := make(map[int]int, len(numbers))
	for i, n := range numbers {
		age[n] = i
	}
	var aged []began
	for _, b := range all {
		if n, known := age[b.Number]; known {
			aged = append(aged, began{Number: n, At: b.At})
		}
	}
	return aged
}

// disorderOf takes the first begin of each request. The older one has the lower number.
func disorderOf(all []began) disorder {
	inTime := slices.SortedStableFunc(slices.Values(all), func(a, b began) int { return cmp.Compare(a.At, b.At) })
	var d disorder
	var numbers []int   // of those that began so far, sorted
	var highest []began // each that was younger than all before it
	for _, b := range inTime {
		place, again := slices.BinarySearch(numbers, b.Number)
		if again {
			d.repeats++
			continue
		}
		d.passed = max(d.passed, len(numbers)-place)
		first := sort.Search(len(highest), func(i int) bool { return highest[i].Number > b.Number })
		if first < len(highest) {
			d.late = max(d.late, b.At-highest[first].At)
		} else {
			highest = append(highest, b)
		}
		numbers = slices.Insert(numbers, place, b.Number)
	}
	return d
}
