package worker

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLimitAdjust(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		now  float64
		c    congestion
		want float64
	}{
		"idle":                         {10, congestion{}, 10},
		"used a little":                {10, congestion{inUse: 7}, 10},
		"used nearly":                  {10, congestion{inUse: 8}, 12},
		"jobs wait":                    {10, congestion{inUse: 1, waiting: 1}, 12},
		"429":                          {10, congestion{inUse: 10, limited: 1}, 7},
		"429, used a little":           {10, congestion{inUse: 5, limited: 9, waiting: 9}, 7},
		"429, more in use than limit":  {10, congestion{inUse: 30, limited: 1}, 7},
		"429, nothing in use":          {10, congestion{limited: 1}, 7},
		"slow":                         {10, congestion{inUse: 10, slowdown: 3.1, waiting: 9}, 9},
		"slow, half used":              {10, congestion{inUse: 5, slowdown: 3.1}, 4.5},
		"slow, but not from the calls": {10, congestion{inUse: 4, slowdown: 9}, 10},
		"as slow as it may be":         {10, congestion{inUse: 10, slowdown: 3}, 12},
		"at the most":                  {40, congestion{inUse: 40, waiting: 1}, 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := limit{least: 2, most: 40, maxSlowdown: 3, now: c.now}
			l.adjust(c.c)
			require.InDelta(t, c.want, l.now, 1e-9)
		})
	}
	deaf := limit{least: 2, most: 40, now: 10}
	deaf.adjust(congestion{inUse: 10, slowdown: 100})
	require.Greater(t, deaf.now, 10.0, "slowness does not count")
}

func TestLimitProperties(t *testing.T) {
	t.Parallel()
	for range 2000 {
		most := 1 + rand.IntN(200)
		l := limit{least: 1 + rand.IntN(most), most: most, maxSlowdown: float64(rand.IntN(3) * 2), now: float64(most)}
		for range 100 {
			before := l.now
			c := congestion{limited: int64(max(rand.IntN(6)-4, 0)), slowdown: rand.Float64() * 6, inUse: rand.IntN(2 * most), waiting: max(rand.IntN(20)-10, 0)}
			l.adjust(c)
			require.GreaterOrEqual(t, l.now, float64(l.least))
			require.LessOrEqual(t, l.now, float64(l.most))
			switch {
			case c.limited > 0:
				require.LessOrEqual(t, l.now, max(before*onLimited, float64(l.least)))
			case c.waiting == 0 && float64(c.inUse) < fullFrom*before:
				require.LessOrEqual(t, l.now, before, "it climbs only while it is used")
			}
		}
		for range 21 {
			l.adjust(congestion{inUse: int(l.now), waiting: 1})
		}
		require.InDelta(t, float64(most), l.now, 1e-9, "it recovers in a bounded time")
	}
}

// Answers that are slow for other reasons than too many calls do not take the limit to
// the least.
func TestSlownessThatFallingDoesNotHelp(t *testing.T) {
	t.Parallel()
	l := limit{least: 1, most: 32, maxSlowdown: 3, now: 32}
	lowest := l.now
	for range slowFalls + slowIgnored {
		l.adjust(congestion{inUse: int(l.now), slowdown: 40, waiting: 5})
		lowest = min(lowest, l.now)
	}
	require.Greater(t, lowest, 15.0)
	require.InDelta(t, 32, l.now, 1e-9, "it climbs again meanwhile")

	l = limit{least: 1, most: 32, maxSlowdown: 3, now: 32}
	for range 40 {
		l.adjust(congestion{inUse: int(l.now), slowdown: l.now / 2}) // it has to do with the calls
	}
	require.InDelta(t, 6, l.now, 2.5, "where answers are as fast as they should be")
}
