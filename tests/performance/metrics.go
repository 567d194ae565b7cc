package main

import (
	"math"
	"slices"
)

// metric is one line of the report.
type metric struct {
	name     string
	label    string
	decimals int
	higher   bool // more is better

	// over names the measured metric whose excess over direct's this is, taken within
	// each round.
	over string

	// grain is the least that counts as a figure when one is divided by another: below
	// it there is only noise.
	grain float64

	// compared says how a run is held against the baseline, with the tolerance that
	// the figure's own noise asks for.
	compared  basis
	tolerance float64
}

// basis is what a figure is divided by before two runs are compared.
type basis int

const (
	notCompared basis = iota
	byFloor           // by the same run's floor, so that the machine's speed cancels out
	asIs              // not at all: it is a share already, or the floor has none
)

// metrics are all lines of the report, in its order.
func metrics() []metric {
	return []metric{
		{name: "p50_200", label: "latency p50 at 200/s, ms", decimals: 2},
		{name: "p99_200", label: "latency p99 at 200/s, ms", decimals: 2},
		{name: "added_p50_200", label: "added p50 at 200/s, ms", decimals: 2, over: "p50_200", grain: 0.05, compared: byFloor, tolerance: 0.3},
		{name: "added_p99_200", label: "added p99 at 200/s, ms", decimals: 2, over: "p99_200", grain: 0.2, compared: byFloor, tolerance: 0.8},
		{name: "p50_1000", label: "latency p50 at 1,000/s, ms", decimals: 2},
		{name: "p99_1000", label: "latency p99 at 1,000/s, ms", decimals: 2},
		{name: "added_p50_1000", label: "added p50 at 1,000/s, ms", decimals: 2, over: "p50_1000", grain: 0.05, compared: byFloor, tolerance: 0.3},
		{name: "added_p99_1000", label: "added p99 at 1,000/s, ms", decimals: 2, over: "p99_1000", grain: 0.2, compared: byFloor, tolerance: 0.8},
		{name: "most", label: "most requests/s, 64 connections", higher: true, grain: 1, compared: byFloor, tolerance: 0.2},
		{name: "cpu", label: "CPU per 1,000 requests at 1,000/s, ms", grain: 1, compared: byFloor, tolerance: 0.25},
		{name: "cpu_most", label: "CPU per 1,000 requests at most, ms", grain: 1, compared: byFloor, tolerance: 0.25},
		{name: "rss", label: "memory after that, MB", decimals: 1, grain: 1, compared: byFloor, tolerance: 0.4},
		{name: "hit_p50", label: "answer from the cache at 1,000/s, p50, ms", decimals: 2, grain: 0.05, compared: asIs, tolerance: 0.6},
		{name: "hit_p99", label: "– p99, ms", decimals: 2},
		{name: "hit_most", label: "– most a second, 64 connections", higher: true, grain: 1, compared: asIs, tolerance: 0.4},
		{name: "hit_cpu", label: "– CPU per 1,000, ms", grain: 1, compared: asIs, tolerance: 0.4},
		{name: "first_p50", label: "first token p50, 500 streams, ms", decimals: 2},
		{name: "first_p99", label: "first token p99, ms", decimals: 2},
		{name: "added_first_p50", label: "added first token p50, ms", decimals: 2, over: "first_p50", grain: 0.1, compared: byFloor, tolerance: 0.4},
		{name: "added_first_p99", label: "added first token p99, ms", decimals: 2, over: "first_p99", grain: 1, compared: byFloor, tolerance: 1},
		{name: "gap_p50", label: "gap between tokens p50, ms", decimals: 2},
		{name: "gap_p99", label: "gap between tokens p99, ms", decimals: 2},
		{name: "gap_excess", label: "gap p99 over the nominal 20 ms", decimals: 2, grain: 0.5, compared: byFloor, tolerance: 0.8},
		{name: "gap_added", label: "gap p99 over direct's, ms", decimals: 2, over: "gap_p99", grain: 0.5},
		{name: "stream_memory", label: "memory per open stream, KB", decimals: 1, grain: 1, compared: byFloor, tolerance: 0.3},
		{name: "token_cpu", label: "CPU per 1,000 tokens, ms", decimals: 1, grain: 1, compared: byFloor, tolerance: 0.25},
		{name: "closed", label: "overload: closed loop alone, requests/s", higher: true},
		{name: "goodput", label: "goodput at 4,000/s offered, requests/s", higher: true},
		{name: "goodput_share", label: "goodput as a share of it, %", decimals: 1, higher: true, grain: 1, compared: asIs, tolerance: 0.05},
		{name: "refused_share", label: "refused with 429, %", decimals: 1},
		{name: "refused_p50", label: "latency p50 of a 429, ms", decimals: 2, grain: 2, compared: asIs, tolerance: 1},
		{name: "no_retry_after", label: "429 without Retry-After", grain: 1, compared: asIs},
		{name: "accepted_p50", label: "latency p50 of a 200, ms"},
		{name: "peak", label: "memory at its highest, MB", decimals: 1, grain: 1, compared: byFloor, tolerance: 0.4},
		{name: "fleet_p50", label: "fleet at 90% load, latency p50, ms"},
		{name: "fleet_p99", label: "fleet at 90% load, latency p99, ms", grain: 1, compared: byFloor, tolerance: 1},
		{name: "burst_requests", label: "burst of 5 times the fleet's capacity, requests"},
		{name: "burst_lost", label: "– of them not answered with 200", grain: 1, compared: asIs},
		{name: "burst_unrecorded", label: "– of them without a row in the ledger", grain: 1, compared: asIs},
		{name: "burst_repeats", label: "– of them called more than once", grain: 1, compared: asIs},
		{name: "burst_passed", label: "– younger ones begun before an older one, at most", grain: 20, compared: asIs, tolerance: 1},
		{name: "burst_late", label: "– longest that an older one began after a younger, ms", decimals: 1},
		{name: "batch_rate", label: "batch, upload to output, lines/s", higher: true, grain: 1, compared: asIs, tolerance: 0.4},
		{name: "batch_cpu", label: "CPU per 1,000 lines, ms", grain: 1, compared: asIs, tolerance: 0.4},
		{name: "batch_memory_tenth", label: "memory above idle, a batch of 20 MB, MB", decimals: 1},
		{name: "batch_memory", label: "memory above idle, a batch of 200 MB, MB", decimals: 1, grain: 20, compared: asIs, tolerance: 0.4},
		{name: "beside_alone", label: "50 calls/s of 50 ms, latency p99, ms", decimals: 2},
		{name: "beside_p50", label: "– beside a batch in all slots, p50, ms", decimals: 2},
		{name: "beside_p99", label: "– beside a batch in all slots, p99, ms", decimals: 2},
		{name: "beside_ratio", label: "– times what it is alone", decimals: 2, grain: 0.5, compared: asIs, tolerance: 0.3},
		{name: "failures", label: "failures, all scenarios", grain: 1, compared: asIs},
	}
}

// addOverDirect completes one round: what a system adds to calling the upstream
// directly.
func addOverDirect(round map[string]figures) {
	direct := round[systemDirect]
	for name, f := range round {
		for _, m := range metrics() {
			own, measured := f[m.over]
			base, known := direct[m.over]
			if measured && known && name != systemDirect {
				f[m.name] = own - base
			}
		}
		for metric, value := range f {
			f[metric] = rounded(value)
		}
	}
}

// medians are a system's figures over the rounds that have them. Failures are no
// matter of luck: they add up.
func medians(rounds []map[string]figures, system string) figures {
	values := map[string][]float64{}
	for _, round := range rounds {
		for name, value := range round[system] {
			values[name] = append(values[name], value)
		}
	}
	result := figures{}
	for name, all := range values {
		result[name] = rounded(median(all))
	}
	return result
}

// rounded keeps four decimals, which is more than any figure is worth.
func rounded(value float64) float64 { return math.Round(value*1e4) / 1e4 }

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// ratio divides two figures of this metric. Figures below the grain count as the
// grain, so that noise around zero gives neither wonders nor disasters.
func (m metric) ratio(value, by float64) float64 {
	return math.Max(value, m.grain) / math.Max(by, math.Max(m.grain, math.SmallestNonzeroFloat64))
}
