package worker

import (
	"sync"
	"time"
)

// retryBudget bounds retries to a share of the calls, so that a provider in trouble is
// not given several times its load. Some are free, or a quiet provider could never be
// called again.
type retryBudget struct {
	share float64

	mu   sync.Mutex
	left float64
	at   time.Time
}

const (
	retriesFree      = 10  // at any time, after a pause
	retriesPerSecond = 1   // that come back by themselves, up to the free ones
	retriesMost      = 100 // that calls can save up
)

func newRetryBudget(share float64) *retryBudget {
	return &retryBudget{share: share, left: retriesFree}
}

// called notes a first call of a job.
func (b *retryBudget) called() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.left+b.share, max(retriesMost, b.left))
}

// take reports whether there may be one more retry, and counts it.
func (b *retryBudget) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < retriesFree && !b.at.IsZero() {
		b.left = min(b.left+now.Sub(b.at).Seconds()*retriesPerSecond, retriesFree)
	}
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
