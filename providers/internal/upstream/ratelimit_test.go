package upstream

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
)

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

func TestWhatRemains(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	const soon, past = "2026-05-01T12:00:30Z", "2026-05-01T11:59:00Z"
	for name, c := range map[string]struct {
		header      http.Header
		rest, after time.Duration // after any answer, and after a 429
	}{
		"nothing said":      {headers("content-type", "application/json"), 0, 0},
		"something remains": {headers("x-ratelimit-remaining-requests", "3", "x-ratelimit-reset-requests", "9s"), 0, 9 * time.Second},
		"requests":          {headers("x-ratelimit-remaining-requests", "0", "x-ratelimit-reset-requests", "6m0s"), 6 * time.Minute, 6 * time.Minute},
		"milliseconds":      {headers("x-ratelimit-remaining-requests", "0", "x-ratelimit-reset-requests", "20ms"), 20 * time.Millisecond, 20 * time.Millisecond},
		"tokens":            {headers("x-ratelimit-remaining-requests", "9", "x-ratelimit-reset-requests", "1s", "x-ratelimit-remaining-tokens", "0", "x-ratelimit-reset-tokens", "4.5s"), 4500 * time.Millisecond, 4500 * time.Millisecond},
		"both":              {headers("x-ratelimit-remaining-requests", "0", "x-ratelimit-reset-requests", "1s", "x-ratelimit-remaining-tokens", "0", "x-ratelimit-reset-tokens", "4s"), 4 * time.Second, 4 * time.Second},
		"too little":        {headers("x-ratelimit-remaining-requests", "9", "x-ratelimit-reset-requests", "8s", "x-ratelimit-remaining-tokens", "5", "x-ratelimit-reset-tokens", "3s"), 0, 3 * time.Second},
		"anthropic":         {headers("anthropic-ratelimit-requests-remaining", "0", "anthropic-ratelimit-requests-reset", soon), 30 * time.Second, 30 * time.Second},
		"anthropic tokens":  {headers("anthropic-ratelimit-tokens-remaining", "0", "anthropic-ratelimit-tokens-reset", soon), 30 * time.Second, 30 * time.Second},
		"anthropic input":   {headers("anthropic-ratelimit-input-tokens-remaining", "0", "anthropic-ratelimit-input-tokens-reset", soon), 30 * time.Second, 30 * time.Second},
		"anthropic output":  {headers("anthropic-ratelimit-output-tokens-remaining", "0", "anthropic-ratelimit-output-tokens-reset", soon), 30 * time.Second, 30 * time.Second},
		"the draft":         {headers("ratelimit-remaining", " 0 ", "ratelimit-reset", " 12 "), 12 * time.Second, 12 * time.Second},
		"past":              {headers("anthropic-ratelimit-requests-remaining", "0", "anthropic-ratelimit-requests-reset", past), 0, 0},
		"far":               {headers("x-ratelimit-remaining-requests", "0", "x-ratelimit-reset-requests", "7h0m0s"), 10 * time.Minute, 10 * time.Minute},
		"a time of day":     {headers("ratelimit-remaining", "0", "ratelimit-reset", "1777636800"), 0, 0},
		"no reset":          {headers("x-ratelimit-remaining-requests", "0"), 0, 0},
		"negative":          {headers("ratelimit-remaining", "0", "ratelimit-reset", "-5"), 0, 0},
		"infinite":          {headers("ratelimit-remaining", "0", "ratelimit-reset", "Inf"), 0, 0},
		"no number":         {headers("ratelimit-remaining", "0", "ratelimit-reset", "NaN"), 0, 0},
		"garbage":           {headers("x-ratelimit-remaining-requests", "none", "x-ratelimit-reset-requests", "soon"), 0, 0},
	} {
		require.Equal(t, c.rest, exhausted(c.header, now), name)
		require.Equal(t, c.after, resetAfter(c.header, now), name)
	}
}

func TestReadingWhatRemainsCostsNothing(t *testing.T) { //nolint:paralleltest // what other tests allocate would count
	now := time.Now()
	plain := headers("content-type", "application/json", "x-request-id", "1", "x-ratelimit-remaining-requests", "5", "x-ratelimit-reset-requests", "1s")
	require.Zero(t, testing.AllocsPerRun(100, func() { exhausted(plain, now) }))
}

func TestAKeyWithNothingLeftRests(t *testing.T) {
	t.Parallel()
	c, up := client(t, Key{Secret: "only"})
	up.Handle(func(call *testkit.Call) {
		call.SetHeader("x-ratelimit-remaining-tokens", "0")
		call.SetHeader("x-ratelimit-reset-tokens", "40s")
		call.JSON(200, "{}")
	})
	require.Zero(t, c.OpenAt(time.Now()))
	_, err := call(t, c, up)
	require.NoError(t, err, "this call was served")
	require.WithinDuration(t, time.Now().Add(40*time.Second), c.OpenAt(time.Now()), 5*time.Second)
	require.Zero(t, c.OpenAt(time.Now().Add(time.Minute)))
	require.Equal(t, providers.KeyCooling, c.Keys()[0].State)
	_, err = call(t, c, up)
	e := inference.AsError(err)
	require.Equal(t, inference.CodeUpstreamRateLimited, e.Code)
	require.InDelta(t, 40, e.RetryAfter.Seconds(), 5)
	require.Equal(t, 1, up.Count())
}

func TestA429SaysWhen(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		header http.Header
		wait   time.Duration
	}{
		"reset":            {headers("x-ratelimit-remaining-requests", "0", "x-ratelimit-reset-requests", "30s"), 30 * time.Second},
		"retry-after wins": {headers("retry-after", "3", "x-ratelimit-remaining-requests", "0", "x-ratelimit-reset-requests", "30s"), 3 * time.Second},
		"neither":          {headers(), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limited, up := client(t, Key{Secret: "only"})
			status := 429
			up.Handle(func(call *testkit.Call) {
				for name := range c.header {
					call.SetHeader(name, c.header.Get(name))
				}
				call.Fail(status, "slow down")
			})
			_, err := call(t, limited, up)
			require.Equal(t, c.wait, inference.AsError(err).RetryAfter)
			open := limited.OpenAt(time.Now())
			require.Equal(t, c.wait == 0, open.IsZero())

			busy, other := client(t, Key{Secret: "only"})
			other.Handle(func(call *testkit.Call) {
				for name := range c.header {
					call.SetHeader(name, c.header.Get(name))
				}
				call.Fail(503, "busy")
			})
			_, err = call(t, busy, other)
			require.Equal(t, retryAfter(c.header, time.Now()), inference.AsError(err).RetryAfter, "the share has no part in other errors")
			require.Zero(t, busy.OpenAt(time.Now()))
		})
	}
}

func TestOpenAt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		r, err := newRing([]Key{{Secret: "a"}, {Secret: "b"}, {Secret: "c"}}, "")
		require.NoError(t, err)
		a, b, c := r.entries[0], r.entries[1], r.entries[2]
		require.Zero(t, r.openAt(now))
		r.refuse(a, now)
		r.rest(b, time.Hour, now)
		require.Zero(t, r.openAt(now), "one may be used")
		r.rest(c, time.Minute, now)
		require.Equal(t, now.Add(time.Minute), r.openAt(now))
		r.rest(c, time.Second, now)
		require.Equal(t, now.Add(time.Minute), r.openAt(now), "an answer that overtakes another does not shorten the wait")
		require.Zero(t, r.openAt(now.Add(time.Minute)))
		r.rest(nil, time.Minute, now)

		refused, err := newRing([]Key{{Secret: "a"}}, "")
		require.NoError(t, err)
		refused.refuse(refused.entries[0], now)
		require.Zero(t, refused.openAt(now), "a refused key is not waited for")
		none, err := newRing(nil, "")
		require.NoError(t, err)
		require.Zero(t, none.openAt(now))
	})
}

// TestTheKeyThatIsFreeFirstSaysWhen has the second of two keys told to wait for longer.
func TestTheKeyThatIsFreeFirstSaysWhen(t *testing.T) {
	t.Parallel()
	c, up := client(t, Key{Secret: "key-a"}, Key{Secret: "key-b"})
	up.Handle(func(call *testkit.Call) {
		call.SetHeader("Retry-After", []string{"", "10", "60"}[call.N])
		call.Fail(429, "slow down")
	})
	_, err := call(t, c, up)
	require.Zero(t, inference.AsError(err).RetryAfter)
	_, err = call(t, c, up)
	require.InDelta(t, 10, inference.AsError(err).RetryAfter.Seconds(), 2)
}
