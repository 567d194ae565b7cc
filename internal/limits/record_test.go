package limits

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func randomRecord(random *rand.Rand) *record {
	r := &record{}
	now := int64(1_800_000_000_000)
	for range random.IntN(200) {
		r.count(entry{now + random.Int64N(62_000), random.Int64N(100), random.Int64N(1 << 40)})
	}
	for i := range random.IntN(maxHolders) {
		h := holder{process: uint64(i) << 40, change: random.Uint64(), end: now, hand: random.Int64N(2) * now, gauges: gauges{random.Int64N(10), random.Int64N(10), random.Int64(), 0}}
		if h.calls = random.Int64N(h.concurrent + 1); h.calls > 0 {
			h.busy = now + random.Int64N(120_000)
		}
		r.holders = append(r.holders, h)
	}
	for w := range r.spent {
		r.spent[w] = spent{windowStart(w, now), random.Int64()}
	}
	return r
}

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 60 {
		r := randomRecord(random)
		data := r.encode()
		require.Less(t, len(data), 16<<10)
		got, err := decodeRecord(data)
		require.NoError(t, err)
		require.Equal(t, r.encode(), got.encode())
		require.Equal(t, r.total(), got.total())
		require.Equal(t, r.spent, got.spent)
		step := 64 // of the first records each cut is tried, of the others each near the beginning
		if i < 2 {
			step = len(data)
		}
		for n := 0; n < len(data); n += 1 + n/step {
			if _, err := decodeRecord(data[:n]); !errors.Is(err, errRecord) {
				require.ErrorIs(t, err, errRecord, "%d bytes of %d", n, len(data))
			}
		}
		_, err = decodeRecord(append(data, 0))
		require.ErrorIs(t, err, errRecord)
		data[0]++
		_, err = decodeRecord(data)
		require.ErrorIs(t, err, errRecord, "another version")
	}
}

func TestARecordWithImpossibleCallsIsMalformed(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]holder{
		"more than are concurrent": {process: 1, end: 1, busy: 1, gauges: gauges{concurrent: 1, calls: 2}},
		"that never end":           {process: 1, end: 1, gauges: gauges{concurrent: 1, calls: 1}},
		"none, until then":         {process: 1, end: 1, busy: 1, gauges: gauges{concurrent: 1}},
	} {
		_, err := decodeRecord((&record{holders: []holder{h}}).encode())
		require.ErrorIs(t, err, errRecord, name)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	random := rand.New(rand.NewPCG(2, 2))
	f.Add([]byte{})
	f.Add((&record{}).encode())
	for range 8 {
		f.Add(randomRecord(random).encode())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data)
		if err != nil {
			return
		}
		require.LessOrEqual(t, len(r.entries), maxEntries)
		require.LessOrEqual(t, len(r.holders), maxHolders)
		again, err := decodeRecord(r.encode())
		require.NoError(t, err)
		require.Equal(t, r, again)
		early := int64(1_800_000_000_000)
		c := change{process: 1, id: 1, now: instant{early, early + 1}, terms: terms{60_000, 150, 300, 15_000}, owed: []entry{{early + 5, -1, -1}, {early + 60_000, 1, 1}}}
		out, err := c.apply("fuzz", r)
		if err != nil {
			require.ErrorIs(t, err, errCrowded)
			return
		}
		require.Equal(t, again, r, "the old one stays as it is")
		kept, err := decodeRecord(out.rec.encode())
		require.NoError(t, err)
		require.Equal(t, out.rec.total(), kept.total())
		for _, h := range kept.holders {
			if h.end <= early {
				require.Equal(t, h.calls, h.concurrent, "of a process that is gone")
			}
		}
	})
}

func TestEntriesCountToTheirEndAndAreFew(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 3))
	for range 5 {
		r := &record{}
		now, random := int64(1_800_000_000_123), rand.New(rand.NewPCG(random.Uint64(), 1))
		var exact []entry
		for range 2000 {
			now += random.Int64N(200)
			e := entry{now + 60_000 + random.Int64N(300), 1, random.Int64N(10)}
			exact = append(exact, e)
			r.count(e)
			r.expire(now)
			var least total
			for _, e := range exact {
				if e.until > now {
					least.requests, least.tokens = least.requests+e.requests, least.tokens+e.tokens
				}
			}
			require.GreaterOrEqual(t, r.total().requests, least.requests)
			require.GreaterOrEqual(t, r.total().tokens, least.tokens)
			require.LessOrEqual(t, len(r.entries), maxEntries)
			exact = exact[max(0, len(exact)-800):]
		}
		r.expire(now + 60_301)
		require.True(t, r.empty())
	}
}

func TestWhatIsGivenBackGoesToItsEntryAlone(t *testing.T) {
	t.Parallel()
	r := &record{}
	r.count(entry{10_500, 2, 20})
	r.count(entry{10_700, 1, 10})
	r.count(entry{12_000, 1, 5})
	require.Equal(t, []entry{{10_700, 3, 30}, {12_000, 1, 5}}, r.entries)
	r.count(entry{10_999, -1, -15})
	r.count(entry{11_000, -1, -5})
	r.count(entry{12_000, -5, -50})
	require.Equal(t, []entry{{10_700, 2, 15}, {12_000, 0, 0}}, r.entries)
	r.expire(10_699)
	require.Equal(t, []entry{{10_700, 2, 15}}, r.entries)
	r.expire(10_700)
	require.True(t, r.empty())
	for i := range int64(maxEntries + 1) {
		r.count(entry{(i + 1) * 1000, 1, math.MaxInt64})
	}
	require.Len(t, r.entries, maxEntries)
	require.Equal(t, entry{2000, 2, math.MaxInt64}, r.entries[0], "the oldest counts for longer")
	var owed []entry
	for i := range int64(maxEntries + 1) {
		owed = owe(owed, entry{(i + 1) * 1000, -1, 1})
		owed = owe(owed, entry{(i + 1) * 1000, -1, 1})
	}
	require.Len(t, owed, maxEntries)
	require.Equal(t, entry{(maxEntries + 1) * 1000, -2, 2}, owed[0])
}

func TestCalendarWindows(t *testing.T) {
	t.Parallel()
	at := func(text string) int64 {
		v, err := time.Parse(time.DateTime, text)
		require.NoError(t, err)
		return v.UnixMilli()
	}
	for _, c := range []struct {
		now, day, dayEnd, week, weekEnd, month, monthEnd string
	}{
		{"2024-02-29 23:59:59", "2024-02-29 00:00:00", "2024-03-01 00:00:00", "2024-02-26 00:00:00", "2024-03-04 00:00:00", "2024-02-01 00:00:00", "2024-03-01 00:00:00"},
		{"2027-01-03 12:00:00", "2027-01-03 00:00:00", "2027-01-04 00:00:00", "2026-12-28 00:00:00", "2027-01-04 00:00:00", "2027-01-01 00:00:00", "2027-02-01 00:00:00"},
		{"2026-12-28 00:00:00", "2026-12-28 00:00:00", "2026-12-29 00:00:00", "2026-12-28 00:00:00", "2027-01-04 00:00:00", "2026-12-01 00:00:00", "2027-01-01 00:00:00"},
	} {
		require.Equal(t, at(c.day), windowStart(day, at(c.now)))
		require.Equal(t, at(c.week), windowStart(week, at(c.now)))
		require.Equal(t, at(c.month), windowStart(month, at(c.now)))
		require.Equal(t, at(c.dayEnd), windowEnd(day, at(c.now)))
		require.Equal(t, at(c.weekEnd), windowEnd(week, at(c.now)))
		require.Equal(t, at(c.monthEnd), windowEnd(month, at(c.now)))
	}
}
