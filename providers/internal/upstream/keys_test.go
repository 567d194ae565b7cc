package upstream

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T, keys ...Key) (*Client, *testkit.Upstream) {
	t.Helper()
	up := testkit.NewUpstream(t)
	c, err := New(Options{Name: "acme", BaseURL: up.URL(), Keys: keys})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c, up
}

// call makes one call and returns the key that it was made with.
func call(t *testing.T, c *Client, up *testkit.Upstream) (key string, err error) {
	t.Helper()
	resp, err := c.Do(t.Context(), Request{URL: c.At("x"), Body: []byte("{}")})
	if err == nil {
		_, err = resp.ReadAll()
		resp.Close()
	}
	return up.Last().Header.Get("Authorization"), err
}

func TestKeysShareCallsByTheirWeights(t *testing.T) {
	t.Parallel()
	r, err := newRing([]Key{{Secret: "a", Weight: 3}, {Secret: "b"}, {Secret: ""}}, "")
	require.NoError(t, err)
	counts := map[string]int{}
	const n = 20_000
	for range n {
		k, err := r.pick(time.Now())
		require.NoError(t, err)
		counts[k.secret]++
	}
	require.InDelta(t, 0.75, float64(counts["a"])/n, 0.03)
	require.Len(t, counts, 2)
}

func TestAKeyThatIsToldToWaitDoes(t *testing.T) {
	t.Parallel()
	c, up := client(t, Key{Secret: "key-a"}, Key{Secret: "key-b"})
	limited := ""
	up.Handle(func(call *testkit.Call) {
		if limited == "" {
			limited = call.Header.Get("Authorization")
		}
		if call.Header.Get("Authorization") == limited {
			call.SetHeader("Retry-After", "60")
			call.Fail(429, "slow down")
			return
		}
		call.JSON(200, "{}")
	})
	_, err := call(t, c, up)
	e := inference.AsError(err)
	require.Equal(t, inference.CodeUpstreamRateLimited, e.Code)
	require.True(t, e.Retryable)
	require.Zero(t, e.RetryAfter, "the other key may be used at once")
	for range 20 {
		used, err := call(t, c, up)
		require.NoError(t, err)
		require.NotEqual(t, limited, used)
	}
	states := map[string]int{}
	for _, s := range c.Keys() {
		states[s.State]++
		require.NotContains(t, s.Display, "key-")
	}
	require.Equal(t, map[string]int{providers.KeyOK: 1, providers.KeyCooling: 1}, states)
}

func TestWithAllKeysCoolingNothingIsCalled(t *testing.T) {
	t.Parallel()
	c, up := client(t, Key{Secret: "only"})
	up.Handle(func(call *testkit.Call) {
		call.SetHeader("Retry-After", "60")
		call.Fail(429, "slow down")
	})
	for range 3 {
		_, err := call(t, c, up)
		e := inference.AsError(err)
		require.Equal(t, inference.CodeUpstreamRateLimited, e.Code)
		require.True(t, e.Retryable)
		require.InDelta(t, 60, e.RetryAfter.Seconds(), 5)
	}
	require.Equal(t, 1, up.Count())
}

func TestARefusedKeyIsSetAside(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 402, 403} {
		c, up := client(t, Key{Secret: "bad"}, Key{Secret: "good"})
		up.Handle(func(call *testkit.Call) {
			if call.Header.Get("Authorization") == "Bearer bad" {
				call.Fail(status, "your key bad is unknown")
				return
			}
			call.JSON(200, "{}")
		})
		refusals := 0
		for range 40 {
			if _, err := call(t, c, up); err != nil {
				e := inference.AsError(err)
				require.Equal(t, inference.CodeUpstreamAuth, e.Code)
				require.True(t, e.Retryable, "with the other key")
				require.NotContains(t, e.Message, "your key")
				refusals++
			}
		}
		require.Equal(t, 1, refusals)
		require.Equal(t, providers.KeyRefused, c.Keys()[0].State)
	}
}

func TestTheLifeOfAKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, err := newRing([]Key{{Secret: "a"}, {Secret: "b"}}, "")
		require.NoError(t, err)
		a, b := r.entries[0], r.entries[1]
		require.True(t, r.refuse(a, time.Now()))
		require.False(t, r.cool(b, time.Minute, time.Now()))
		_, err = r.pick(time.Now())
		require.ErrorIs(t, err, errAllCooling)
		require.Equal(t, time.Minute, r.next(time.Now()))
		time.Sleep(time.Minute)
		k, err := r.pick(time.Now())
		require.NoError(t, err)
		require.Same(t, b, k)

		require.False(t, r.refuse(b, time.Now()))
		_, err = r.pick(time.Now())
		require.ErrorIs(t, err, errAllRefused)
		time.Sleep(refusedFor)
		k, err = r.pick(time.Now())
		require.NoError(t, err, "its account may have been filled up")
		r.served(k)
		require.Equal(t, providers.KeyOK, r.states(time.Now())[0].State)

		single, err := newRing([]Key{{Secret: "s"}}, "")
		require.NoError(t, err)
		require.False(t, single.refuse(single.entries[0], time.Now()))
		k, err = single.pick(time.Now())
		require.NoError(t, err, "there is no other")
		require.Equal(t, "s", k.secret)
		require.True(t, single.cool(k, 0, time.Now().Add(time.Hour)), "a sole key that was not told for how long goes on")
	})
	for _, bad := range []string{"a\nb", "ü"} {
		_, err := newRing([]Key{{Secret: bad}}, "")
		require.Error(t, err)
		require.NotContains(t, err.Error(), bad)
	}
	require.Equal(t, "#2 …wxyz", display(1, "abcdefghijklmnopqrstuvwxyz"))
	require.Equal(t, "#1", display(0, "short"))
}
