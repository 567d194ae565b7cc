package worker

import (
	"math/rand/v2"
	"time"

	"sluice/internal/inference"
)

// Bounds of the wait before a call is made again.
const (
	retryBase     = 200 * time.Millisecond
	retryMost     = 10 * time.Second
	limitedBase   = 50 * time.Millisecond
	retryPatience = 30 * time.Second // a provider that asks for a longer wait is taken at its word: no retry here
)

// retryState is what the decision about another try depends on.
type retryState struct {
	err        *inference.Error
	tries      int // made so far
	maxRetries int
	started    bool          // chunks have been sent
	left       time.Duration // until the deadline
}

// retryAfter decides whether to make the call again, and after how long: as long as
// the provider asked for, or else exponential backoff with full jitter. A call whose
// first chunk has been sent is never made again.
func retryAfter(s retryState) (time.Duration, bool) {
	if s.started || !s.err.Retryable || s.tries > s.maxRetries {
		return 0, false
	}
	wait := s.err.RetryAfter
	if wait <= 0 {
		ceiling := min(retryMost, retryBase<<min(max(s.tries-1, 0), 10))
		wait = time.Duration(rand.Int64N(int64(ceiling)))
	}
	if wait > retryPatience || wait >= s.left {
		return 0, false
	}
	return wait, true
}

// limitedWait is the least that a job waits whose provider has asked for a wait so many
// times: the wait asked for may be next to nothing.
func limitedWait(times int) time.Duration {
	return min(retryMost, limitedBase<<min(max(times-1, 0), 10))
}
