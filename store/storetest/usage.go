package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/store"
)

var usageTests = map[string]func(*testing.T, Open){
	"every field of a record comes back": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := newRecord("job-1")
		requireNoZeroField(t, reflect.ValueOf(want))
		appendAll(t, s, want)
		got, _ := usage(t, s, store.UsageFilter{})
		require.Equal(t, []inference.Record{want}, got)
	},

	"an empty record comes back empty": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := inference.Record{JobID: "bare"}
		appendAll(t, s, want)
		got, _ := usage(t, s, store.UsageFilter{})
		require.Equal(t, []inference.Record{want}, got)
	},

	"counts that nobody knows are not stored": func(t *testing.T, open Open) {
		s := migrated(t, open)
		unknown, none := newRecord("unknown"), newRecord("none")
		unknown.Usage.Known = false
		none.Usage = inference.Usage{Known: true} // zero is a count too
		appendAll(t, s, unknown, none)
		got, _ := usage(t, s, store.UsageFilter{JobID: "unknown"})
		require.Equal(t, inference.Usage{Estimated: true}, got[0].Usage)
		got, _ = usage(t, s, store.UsageFilter{JobID: "none"})
		require.Equal(t, inference.Usage{Known: true}, got[0].Usage)
	},

	"times come back in UTC and whole microseconds": func(t *testing.T, open Open) {
		s := migrated(t, open)
		r := newRecord("far")
		r.CreatedAt = time.Date(2025, 12, 31, 23, 30, 0, 1999, time.FixedZone("far", 14*3600))
		r.Queue, r.FirstToken, r.Total = 1999, 2999, -3999
		r.Tries[0].Took = 4999
		appendAll(t, s, r)
		got, _ := usage(t, s, store.UsageFilter{})
		require.Equal(t, store.Clean(r), got[0])
		require.Equal(t, time.Date(2025, 12, 31, 9, 30, 0, 1000, time.UTC), got[0].CreatedAt)
		require.Equal(t, 1*time.Microsecond, got[0].Queue)
		require.Equal(t, 4*time.Microsecond, got[0].Tries[0].Took)
	},

	"no text is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		var records []inference.Record
		for i, text := range []string{
			"模型 🤖 ñ", "nul\x00inside", "not \xff UTF-8", strings.Repeat("é", 1<<19),
			"'; DROP TABLE usage_records; --", `\N`, "\\x00", "{a,\"b\"}", "\x00", "\u202e", "NULL",
		} {
			r := newRecord(fmt.Sprintf("job-%02d %s", i, text))
			r.CreatedAt = r.CreatedAt.Add(-time.Duration(i) * time.Second)
			r.RequestID, r.Tenant, r.KeyID, r.ModelAsked, r.ModelServed = text, text, text, text, text
			r.Provider, r.Outcome, r.ErrorCode = text, inference.Outcome(text), inference.ErrorCode(text)
			r.Tries = []inference.Try{{Provider: text, Model: text, Code: inference.ErrorCode(text)}}
			records = append(records, r)
		}
		appendAll(t, s, records...)
		got, _ := usage(t, s, store.UsageFilter{})
		require.Len(t, got, len(records))
		for i, r := range records {
			require.Equal(t, store.Clean(r), got[i])
			found, _ := usage(t, s, store.UsageFilter{JobID: r.JobID, RequestID: r.RequestID})
			require.Equal(t, got[i:i+1], found, "found by the text it came with")
		}
	},

	"the widest numbers fit": func(t *testing.T, open Open) {
		s := migrated(t, open)
		r := newRecord("wide")
		const most = 1<<63 - 1
		r.Usage.PromptTokens, r.Usage.CompletionTokens = most, -most
		r.Attempts, r.Status = 1<<31, -1<<31-1
		r.Total = time.Duration(most)
		r.Tries[0].Status, r.Tries[0].Took = -most-1, time.Duration(most)
		r.CreatedAt = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
		appendAll(t, s, r)
		got, _ := usage(t, s, store.UsageFilter{})
		require.Equal(t, store.Clean(r), got[0])
	},

	"tries come back in their order, and the last ones where there are too many": func(t *testing.T, open Open) {
		s := migrated(t, open)
		r := newRecord("tried")
		r.Tries = nil
		for i := range inference.MaxTries + 3 {
			r.Tries = append(r.Tries, inference.Try{
				Provider: fmt.Sprintf("p%d", i*7%10), Model: "m", Code: inference.CodeUpstreamError, Status: 500 + i, Took: time.Duration(i) * time.Second,
			})
		}
		appendAll(t, s, r)
		got, _ := usage(t, s, store.UsageFilter{})
		require.Equal(t, r.Tries[3:], got[0].Tries)
		require.Len(t, r.Tries, inference.MaxTries+3, "the caller's record stays as it was")
	},

	"no tries come back as none": func(t *testing.T, open Open) {
		s := migrated(t, open)
		r := newRecord("straight")
		r.Tries = []inference.Try{}
		appendAll(t, s, r)
		got, _ := usage(t, s, store.UsageFilter{})
		require.Nil(t, got[0].Tries)
	},

	"a job has one row": func(t *testing.T, open Open) {
		s := migrated(t, open)
		first, second := newRecord("job"), newRecord("job")
		second.Outcome = inference.OutcomeSucceeded
		inserted, err := s.AppendUsage(t.Context(), []inference.Record{first, newRecord("a"), second})
		require.NoError(t, err)
		require.Equal(t, 2, inserted, "the job's second record is left out")

		inserted, err = s.AppendUsage(t.Context(), []inference.Record{newRecord("b"), second})
		require.NoError(t, err)
		require.Equal(t, 1, inserted)
		got, _ := usage(t, s, store.UsageFilter{JobID: "job"})
		require.Equal(t, []inference.Record{first}, got, "the first one stays")
	},

	"batches that overlap at one time store each job once": overlappingBatches,

	"a batch has a bound": func(t *testing.T, open Open) {
		s := migrated(t, open)
		inserted, err := s.AppendUsage(t.Context(), nil)
		require.NoError(t, err)
		require.Zero(t, inserted)

		records := make([]inference.Record, 0, store.MaxBatch)
		for i := range store.MaxBatch {
			records = append(records, newRecord(fmt.Sprintf("job-%d", i)))
		}
		appendAll(t, s, records...)
		_, err = s.AppendUsage(t.Context(), append(records, newRecord("more")))
		require.ErrorIs(t, err, store.ErrInvalid)
		_, ids := usage(t, s, store.UsageFilter{Limit: store.MaxPage + 1})
		require.Len(t, ids, store.MaxPage)
	},

	"a batch is stored whole or not at all": func(t *testing.T, open Open) {
		s := migrated(t, open)
		_, err := s.AppendUsage(t.Context(), []inference.Record{newRecord("a"), newRecord("")})
		require.ErrorIs(t, err, store.ErrInvalid)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = s.AppendUsage(ctx, []inference.Record{newRecord("b")})
		require.ErrorIs(t, err, context.Canceled)
		_, ids := usage(t, s, store.UsageFilter{})
		require.Empty(t, ids)
		appendAll(t, s, newRecord("b"))
	},

	"a filter selects": filters,

	"pages follow each other without a gap or a repeat": pages,
}

// overlappingBatches has several writers store the same jobs, each in another order
// and cut into other batches.
func overlappingBatches(t *testing.T, open Open) {
	const jobs, writers = 1500, 4
	s := migrated(t, open)
	stores := []store.Store{s, open()}
	counts := make([]int, writers)
	group, ctx := errgroup.WithContext(t.Context())
	for w := range writers {
		random := rand.New(rand.NewPCG(uint64(w), 1))
		group.Go(func() error {
			records := make([]inference.Record, 0, jobs)
			for _, i := range random.Perm(jobs) {
				records = append(records, newRecord(fmt.Sprintf("job-%d", i)))
			}
			for len(records) > 0 {
				n := min(len(records), 100+random.IntN(200))
				inserted, err := stores[w%len(stores)].AppendUsage(ctx, records[:n])
				if err != nil {
					return err
				}
				counts[w] += inserted
				records = records[n:]
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	total := 0
	for _, n := range counts {
		total += n
	}
	require.Equal(t, jobs, total, "what was counted as new is what is there")

	seen := map[string]bool{}
	for filter := (store.UsageFilter{Limit: store.MaxPage}); ; {
		records, ids := usage(t, s, filter)
		if len(records) == 0 {
			break
		}
		for _, id := range ids {
			require.False(t, seen[id])
			seen[id] = true
		}
		filter.After = store.CursorOf(records[len(records)-1])
	}
	require.Len(t, seen, jobs)
}

func filters(t *testing.T, open Open) {
	s := migrated(t, open)
	noon := time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	for i, id := range []string{"a", "b", "c", "d"} {
		r := newRecord(id)
		r.CreatedAt = noon.Add(time.Duration(i) * time.Minute)
		r.RequestID = []string{"req-even", "req-odd"}[i%2]
		appendAll(t, s, r)
	}
	noonEast := noon.Add(time.Minute).In(time.FixedZone("east", 3*3600))
	cases := map[string]struct {
		filter store.UsageFilter
		want   []string
	}{
		"nothing":        {store.UsageFilter{}, []string{"d", "c", "b", "a"}},
		"request":        {store.UsageFilter{RequestID: "req-odd"}, []string{"d", "b"}},
		"job":            {store.UsageFilter{JobID: "d"}, []string{"d"}},
		"behind":         {store.UsageFilter{After: store.Cursor{CreatedAt: noonEast, JobID: "b"}}, []string{"a"}},
		"all that match": {store.UsageFilter{RequestID: "req-even", JobID: "c", Limit: 9}, []string{"c"}},
		"none":           {store.UsageFilter{RequestID: "req-even", JobID: "d"}, []string{}},
		"limit":          {store.UsageFilter{Limit: 2}, []string{"d", "c"}},
		"negative limit": {store.UsageFilter{Limit: -1}, []string{"d", "c", "b", "a"}},
	}
	for name, c := range cases {
		_, ids := usage(t, s, c.filter)
		require.Equal(t, c.want, ids, name)
	}
}

// pages reads a ledger in which many records have the same time, while newer ones
// are still coming in.
func pages(t *testing.T, open Open) {
	s := migrated(t, open)
	const records = 40
	want := map[string]bool{}
	for i := range records {
		r := newRecord(fmt.Sprintf("Job-%d ä", i))
		r.CreatedAt = r.CreatedAt.Add(time.Duration(i%4) * time.Microsecond)
		want[r.JobID] = true
		appendAll(t, s, r)
	}
	filter := store.UsageFilter{Limit: 7}
	var last inference.Record
	for page := 0; len(want) > 0; page++ {
		got, _ := usage(t, s, filter)
		require.NotEmpty(t, got, "%d records are missing", len(want))
		for _, r := range got {
			require.True(t, want[r.JobID], "%s came twice, or is none of these", r.JobID)
			delete(want, r.JobID)
			require.False(t, !last.CreatedAt.IsZero() && r.CreatedAt.After(last.CreatedAt), "newest first")
			last = r
		}
		filter.After = store.CursorOf(last)
		newer := newRecord(fmt.Sprintf("newer-%d", page))
		newer.CreatedAt = newer.CreatedAt.Add(time.Hour)
		appendAll(t, s, newer)
	}
	_, ids := usage(t, s, filter)
	require.Empty(t, ids)
}

// requireNoZeroField holds newRecord to its promise, so that a field which is added
// to a record later cannot be left out of a database unnoticed. What tells who finds out
// the cost is said on the way to the database alone.
func requireNoZeroField(t *testing.T, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		if v.Type().Field(i).Name == "Costed" {
			continue
		}
		require.False(t, v.Field(i).IsZero(), "set %s in newRecord", v.Type().Field(i).Name)
	}
	if nested := v.FieldByName("Usage"); nested.IsValid() {
		requireNoZeroField(t, nested)
	}
}
