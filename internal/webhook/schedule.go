package webhook

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// schedule is the specification's: how long after each failed attempt the next one
// comes. The first attempt comes at once.
var schedule = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	// DisableAfter is how long an endpoint may do nothing but fail before it is disabled.
	DisableAfter = 5 * 24 * time.Hour

	// maxRetryAfter bounds how long a receiver can put its next delivery off.
	maxRetryAfter = 24 * time.Hour

	// spread is the share by which a wait is longer than the schedule says, at most, so
	// that the deliveries of an outage do not all come back at one moment.
	spread = 0.2
)

// Wait returns how long to wait after so many failed attempts, and whether there is a
// next one at all. chance, from 0 to 1, says how much of the spread is added; a receiver
// that asked for more time with retryAfter gets it, within bounds.
func Wait(failed int, chance float64, retryAfter time.Duration) (time.Duration, bool) {
	if failed < 1 || failed > len(schedule) {
		return 0, false
	}
	base := schedule[failed-1]
	wait := base + time.Duration(float64(base)*spread*chance)
	return max(wait, retryAfter), true
}

// retryAfter reads the header of that name (RFC 9110, 10.2.3), in seconds or as a date,
// bounded to a day; zero when there is none that can be understood.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if text == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(text, 10, 64); err == nil {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}
