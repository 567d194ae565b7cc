package webhook

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The waits of the specification, written out: they are not to change unnoticed.
var waits = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

func TestWait(t *testing.T) {
	t.Parallel()
	for i, want := range waits {
		got, again := Wait(i+1, 0, 0)
		require.True(t, again)
		require.Equal(t, want, got)
		got, _ = Wait(i+1, 1, 0)
		require.Equal(t, want+want/5, got)
		got, _ = Wait(i+1, 0, 23*time.Hour)
		require.Equal(t, max(want, 23*time.Hour), got, "as long as was asked for")
	}
	for _, failed := range []int{-1, 0, len(waits) + 1, 1000} {
		_, again := Wait(failed, 0.5, time.Hour)
		require.False(t, again)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "86401": 24 * time.Hour, "18446744073709551615": 24 * time.Hour,
		"99999999999999999999": 0, "-1": 0, "soon": 0, "1.5": 0,
		"Thu, 02 Jan 2025 03:05:05 GMT": time.Minute, "Thu, 02 Jan 2025 03:04:00 GMT": 0, "Sun, 02 Jan 2030 03:05:05 GMT": 24 * time.Hour,
	} {
		require.Equal(t, want, retryAfter(http.Header{"Retry-After": {text}}, now), "%q", text)
	}
}
