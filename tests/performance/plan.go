package main

import "time"

// The scenarios.
const (
	scenarioCalls    = "calls"    // added latency, most requests a second, CPU
	scenarioStreams  = "streams"  // first token, gaps, memory
	scenarioOverload = "overload" // more than the upstream can take
	scenarioFleet    = "fleet"    // several upstreams that share one queue
	scenarioBatch    = "batch"    // lines a second, memory
	scenarioBeside   = "beside"   // calls beside a batch that has all slots
	scenarioCache    = "cache"    // answers that are given again
)

func allScenarios() []string {
	return []string{scenarioCalls, scenarioStreams, scenarioOverload, scenarioFleet, scenarioBatch, scenarioBeside, scenarioCache}
}

// The sizes that the aims are stated for.
const (
	lowRate             = 200   // requests a second
	highRate            = 1_000 // the same
	closedConnections   = 64
	callConcurrency     = 256
	streamCount         = 500
	overloadConcurrency = 64
	overloadRate        = 4_000 // three times what 64 calls of 50 ms allow
)

// Patience is what a client waits for before it gives up.
const (
	callPatience     = 10 * time.Second
	overloadPatience = 5 * time.Second
	streamPatience   = 20 * time.Second // beside the stream's own length
)

// plan is how long a run takes its time for each part.
type plan struct {
	rounds         int
	overloadRounds int // of the overload, the fleet and batches
	warmup         time.Duration
	low            time.Duration // at 200 requests a second
	high           time.Duration // at 1,000
	most           time.Duration // closed loop
	ramp           time.Duration // until all streams are open
	open           time.Duration // how long they are all open
	overload       time.Duration
	fleetWarmup    time.Duration
	fleetLoaded    time.Duration // at 90% of what the fleet can do
	fleetBurst     time.Duration // at five times as much, which takes five times as long to serve
	batchLines     int
	largeLines     int // of a file of 200 MB, or less
	besideTime     time.Duration
	even           bool
}

// fullPlan takes about ten minutes for the five systems, quickPlan about two: of
// these the fleet's burst takes six times its own length.
func fullPlan() plan {
	return plan{
		rounds: 3, overloadRounds: 1, warmup: 500 * time.Millisecond,
		low: 5 * time.Second, high: 4 * time.Second, most: 3 * time.Second,
		ramp: 2 * time.Second, open: 4 * time.Second, overload: 10 * time.Second,
		fleetWarmup: 2 * time.Second, fleetLoaded: 20 * time.Second, fleetBurst: 10 * time.Second,
		batchLines: 50_000, largeLines: 10_000, besideTime: 10 * time.Second,
	}
}

func quickPlan() plan {
	return plan{
		rounds: 1, overloadRounds: 1, warmup: 300 * time.Millisecond,
		low: 2 * time.Second, high: 2 * time.Second, most: 1500 * time.Millisecond,
		ramp: time.Second, open: 2 * time.Second, overload: 4 * time.Second,
		fleetWarmup: time.Second, fleetLoaded: 6 * time.Second, fleetBurst: 2 * time.Second,
		batchLines: 5_000, largeLines: 1_000, besideTime: 4 * time.Second,
	}
}

// streamTokens is how long a stream must be for all to be open together for the
// planned time.
func (p plan) streamTokens() int { return int((p.ramp + p.open) / tokenGap) }
