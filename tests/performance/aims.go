package main

import (
	"cmp"
	"fmt"
)

// aim is what Sluice is built to reach.
type aim struct {
	text   string
	metric string
	limit  float64
	least  bool   // the limit is a lower one
	ratio  bool   // of the floor's figure in the same run
	system string // whose figure it is; empty: Sluice with its embedded queue
	floor  string // whose figure a ratio is taken of; empty: the reverse proxy's
}

func aims() []aim {
	return []aim{
		{text: "added p50 at 200/s at most 1.5 times the floor's", metric: "added_p50_200", limit: 1.5, ratio: true},
		{text: "added p50 at 1,000/s at most 1.5 times the floor's", metric: "added_p50_1000", limit: 1.5, ratio: true},
		{text: "added p99 at 200/s at most twice the floor's", metric: "added_p99_200", limit: 2, ratio: true},
		{text: "added p99 at 1,000/s at most twice the floor's", metric: "added_p99_1000", limit: 2, ratio: true},
		{text: "most requests/s no less than the floor's", metric: "most", limit: 1, least: true, ratio: true},
		{text: "governed: p50 at 200/s at most 1.05 times what it is without", metric: "p50_200", limit: 1.05, ratio: true, system: systemGoverned, floor: systemSluice},
		{text: "governed: p50 at 1,000/s at most 1.05 times what it is without", metric: "p50_1000", limit: 1.05, ratio: true, system: systemGoverned, floor: systemSluice},
		{text: "governed: most requests/s at least 0.95 of what it is without", metric: "most", limit: 0.95, least: true, ratio: true, system: systemGoverned, floor: systemSluice},
		{text: "governed: CPU per request at 1,000/s at most 1.05 times what it is without", metric: "cpu", limit: 1.05, ratio: true, system: systemGoverned, floor: systemSluice},
		{text: "cached, without a hit: CPU per request at 1,000/s at most 1.05 times what it is without", metric: "cpu", limit: 1.05, ratio: true, system: systemCached, floor: systemSluice},
		{text: "cached, without a hit: most requests/s at least 0.95 of what it is without", metric: "most", limit: 0.95, least: true, ratio: true, system: systemCached, floor: systemSluice},
		{text: "gap p99 less than 2 ms over the nominal", metric: "gap_excess", limit: 2},
		{text: "memory per open stream under 40 KB", metric: "stream_memory", limit: 40},
		{text: "overload: goodput at least 90% of the closed loop's", metric: "goodput_share", limit: 90, least: true},
		{text: "overload: a 429 within 10 ms at the median", metric: "refused_p50", limit: 10},
		{text: "overload: each 429 with Retry-After", metric: "no_retry_after", limit: 0},
		{text: "overload: memory stays below 256 MB", metric: "peak", limit: 256},
		{text: "fleet at 90% load: p99 at most half of round robin's", metric: "fleet_p99", limit: 0.5, ratio: true, system: systemExternal},
		{text: "fleet under a burst: every request answered", metric: "burst_lost", limit: 0, system: systemExternal},
		{text: "fleet under a burst: every request in the ledger", metric: "burst_unrecorded", limit: 0, system: systemExternal},
		{text: "fleet under a burst: each called once", metric: "burst_repeats", limit: 0, system: systemExternal},
		{text: "fleet under a burst: passed by two younger ones for each slot at most", metric: "burst_passed", limit: 40, system: systemExternal},
		{text: "batch of 200 MB: memory less than 150 MB above idle", metric: "batch_memory", limit: 150},
		{text: "beside a batch in all slots: p99 at most 1.5 times what it is alone", metric: "beside_ratio", limit: 1.5},
		{text: "no request failed, hung or lost a token", metric: "failures", limit: 0},
	}
}

// aimResult is an aim held against a run.
type aimResult struct {
	Aim   string `json:"aim"`
	Found string `json:"found"`
	Met   bool   `json:"met"`
}

func (a aimResult) verdict() string {
	if a.Met {
		return "met"
	}
	return "MISSED"
}

// judge holds Sluice against the aims that the run measured.
func judge(all map[string]figures) []aimResult {
	byName := map[string]metric{}
	for _, m := range metrics() {
		byName[m.name] = m
	}
	var results []aimResult
	for _, a := range aims() {
		value, measured := all[cmp.Or(a.system, systemSluice)][a.metric]
		if !measured {
			continue
		}
		m := byName[a.metric]
		found := number(value, m.decimals)
		if a.ratio {
			by, known := all[cmp.Or(a.floor, systemFloor)][a.metric]
			if !known {
				continue
			}
			value = m.ratio(value, by)
			found = fmt.Sprintf("%s against %s, ×%.2f", found, number(by, m.decimals), value)
		}
		met := value <= a.limit
		if a.least {
			met = value >= a.limit
		}
		results = append(results, aimResult{Aim: a.text, Found: found, Met: met})
	}
	return results
}
