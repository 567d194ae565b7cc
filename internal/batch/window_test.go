package batch

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// backlog is of a batch of a day, begun just now.
func backlog(id, tenant string, waiting, out int) store.Backlog {
	return store.Backlog{BatchID: id, Tenant: tenant, Waiting: waiting, Out: out, CreatedAt: noon, ExpiresAt: noon.Add(24 * time.Hour)}
}

func TestWindows(t *testing.T) {
	t.Parallel()
	hurried := backlog("h", "b", 5000, 0)
	hurried.CreatedAt, hurried.ExpiresAt = noon.Add(-24*time.Hour), noon
	small := hurried
	small.Waiting = 1
	soon := backlog("soon", "a", 1000, 0)
	soon.ExpiresAt = noon.Add(8 * time.Hour)
	for name, c := range map[string]struct {
		backlogs []store.Backlog
		total    int
		want     map[string]int
	}{
		"nobody":              {nil, 100, map[string]int{}},
		"nothing to do":       {[]store.Backlog{backlog("x", "a", 0, 0)}, 100, map[string]int{}},
		"one alone":           {[]store.Backlog{backlog("x", "a", 5000, 0)}, 100, map[string]int{"x": 100}},
		"what is out counts":  {[]store.Backlog{backlog("x", "a", 5000, 30)}, 100, map[string]int{"x": 70}},
		"more is out":         {[]store.Backlog{backlog("x", "a", 5000, 130)}, 100, map[string]int{"x": 0}},
		"few lines":           {[]store.Backlog{backlog("x", "a", 7, 0)}, 100, map[string]int{"x": 7}},
		"tenants alike":       {[]store.Backlog{backlog("x", "a", 900_000, 0), backlog("y", "b", 5000, 0)}, 100, map[string]int{"x": 50, "y": 50}},
		"batches do not help": {[]store.Backlog{backlog("x", "a", 5000, 0), backlog("x2", "a", 5000, 0), backlog("x3", "a", 5000, 0), backlog("y", "b", 5000, 0)}, 120, map[string]int{"x": 20, "x2": 20, "x3": 20, "y": 60}},
		"others use the rest": {[]store.Backlog{backlog("x", "a", 5000, 0), backlog("y", "b", 10, 0)}, 100, map[string]int{"x": 90, "y": 10}},
		"one line at least":   {[]store.Backlog{backlog("x", "a", 9, 0), backlog("y", "b", 9, 0), backlog("z", "c", 9, 0)}, 2, map[string]int{"x": 1, "y": 1, "z": 1}},
		"the last one goes":   {[]store.Backlog{backlog("x", "a", 1_000_000, 0), backlog("x2", "a", 3, 0)}, 10, map[string]int{"x": 8, "x2": 2}},
		"a small one in time": {[]store.Backlog{backlog("x", "a", 1_000_000, 0), backlog("x2", "a", 20, 0)}, 1000, map[string]int{"x": 980, "x2": 20}},
		"the end comes near":  {[]store.Backlog{backlog("x", "a", 5000, 0), hurried}, 100, map[string]int{"x": 25, "h": 75}},
		"within a tenant":     {[]store.Backlog{backlog("x", "a", 1000, 0), soon}, 100, map[string]int{"x": 37, "soon": 63}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, Windows(c.backlogs, c.total, noon))
		})
	}
	// A batch that needs little pulls none along that has time.
	pulled := small
	pulled.BatchID, pulled.ExpiresAt = "pulled", noon.Add(time.Hour)
	calm := backlog("calm", "b", 1_000_000, 0)
	got := Windows([]store.Backlog{backlog("x", "a", 1_000_000, 0), pulled, calm}, 1000, noon)
	require.InDelta(t, 500, got["x"], 5)
}

func TestWindowsOfAnyone(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var backlogs []store.Backlog
		batches, wanted := 1+random.IntN(12), 0
		for i := range batches {
			b := backlog(fmt.Sprint(i), fmt.Sprint(random.IntN(4)), random.IntN(2000), 0)
			b.CreatedAt = noon.Add(-time.Duration(random.IntN(48)) * time.Hour)
			b.ExpiresAt = b.CreatedAt.Add(time.Duration(random.IntN(48)) * time.Hour) // perhaps over, or no window at all
			backlogs, wanted = append(backlogs, b), wanted+b.Waiting
		}
		total := batches + random.IntN(3000)
		windows, sum := Windows(backlogs, total, noon), 0
		for _, b := range backlogs {
			n := windows[b.BatchID]
			require.LessOrEqual(t, n, b.Waiting)
			if b.Waiting > 0 {
				require.Positive(t, n)
			}
			sum += n
		}
		require.GreaterOrEqual(t, sum, min(total, wanted), "nothing is left unused")
		require.LessOrEqual(t, sum, total+2*batches)
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	r := NewRate(0, 0, noon)
	require.Zero(t, r.PerSecond())
	for s := 1; s <= 20; s++ {
		r.Add(10*s, noon.Add(time.Duration(s)*time.Second))
	}
	require.InDelta(t, 10, r.PerSecond(), 0.01, "at first it is the mean")
	for s := 21; s <= 320; s++ {
		r.Add(200+50*(s-20), noon.Add(time.Duration(s)*time.Second))
	}
	require.InDelta(t, 50, r.PerSecond(), 1, "it moves to what is true now")
	before := r.PerSecond()
	r.Add(10, noon.Add(400*time.Second)) // counts of another's view
	r.Add(20_000, noon)                  // a clock that was put back
	require.InDelta(t, before, r.PerSecond(), 0)

	known := NewRate(50, 1000, noon)
	known.Add(1000, noon.Add(time.Second))
	require.InDelta(t, 50, known.PerSecond(), 1, "one second without a line is no standstill")
	known.Add(1000, noon.Add(10*time.Minute))
	require.Less(t, known.PerSecond(), 0.1)
}

func TestETA(t *testing.T) {
	t.Parallel()
	at, ok := ETA(500, 50, noon)
	require.True(t, ok)
	require.Equal(t, noon.Add(10*time.Second), at)
	at, ok = ETA(0, 0, noon)
	require.True(t, ok)
	require.Equal(t, noon, at)
	_, ok = ETA(1, 0, noon)
	require.False(t, ok)
	at, ok = ETA(1_000_000, 1e-5, noon)
	require.True(t, ok)
	require.True(t, at.After(noon.Add(100*365*24*time.Hour)))
}
