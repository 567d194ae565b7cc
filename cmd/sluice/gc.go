package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"go.uber.org/fx"
)

// A request leaves much short-lived memory behind while little lives long, so the
// collector's default would run it very often on a small heap. It is given about
// gcSlack bytes to fill between two runs instead: that is generous on a small heap and
// near the default on a large one.
const (
	gcSlack   = 48 << 20
	gcLeast   = 75
	gcMost    = 400
	gcRetune  = 250 * time.Millisecond
	liveBytes = "/gc/heap/live:bytes"
)

// tuneGC keeps the collector's percentage fit for the size of the heap. GOGC in the
// environment overrides it.
func tuneGC(lc fx.Lifecycle) {
	if os.Getenv("GOGC") != "" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	lc.Append(fx.StartStopHook(
		func() {
			go func() {
				defer close(done)
				keepGCTuned(ctx)
			}()
		},
		func() {
			cancel()
			<-done
		},
	))
}

func keepGCTuned(ctx context.Context) {
	sample := []metrics.Sample{{Name: liveBytes}}
	tick := time.NewTicker(gcRetune)
	defer tick.Stop()
	for current := 0; ; {
		metrics.Read(sample)
		if percent := gcPercent(sample[0].Value.Uint64()); percent != current {
			current = percent
			debug.SetGCPercent(percent)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// gcPercent is the percentage for a heap of so many live bytes, in steps of 25 so that
// it is not changed for nothing: each change stops the world for a moment.
func gcPercent(live uint64) int {
	percent := gcSlack * 100 / max(live, 1)
	return int(min(max(percent/25*25, gcLeast), gcMost))
}
