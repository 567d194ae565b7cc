package storetest

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

var reportTests = map[string]func(*testing.T, Open){
	"a report sums up what the rows say": reportSums,

	"a report agrees with the sums of its rows, however it is grouped": reportsAgree,

	"a span of time is one of UTC": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i, at := range []time.Time{
			time.Date(2025, 12, 31, 23, 59, 59, 999_999_000, time.UTC), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
			time.Date(2026, 1, 1, 0, 59, 0, 0, time.UTC), time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC),
			time.Date(2026, 2, 2, 0, 30, 0, 0, time.FixedZone("east", 3600)), // the day before in UTC
		} {
			r := newRecord(fmt.Sprint("job-", i))
			r.CreatedAt = at
			appendAll(t, s, r)
		}
		for group, want := range map[store.UsageGroup][]string{
			store.ByHour:  {"2025-12-31T23:00:00Z 1", "2026-01-01T00:00:00Z 2", "2026-01-01T01:00:00Z 1", "2026-02-01T23:00:00Z 1"},
			store.ByDay:   {"2025-12-31 1", "2026-01-01 3", "2026-02-01 1"},
			store.ByMonth: {"2025-12 1", "2026-01 3", "2026-02 1"},
		} {
			require.Equal(t, want, reportLines(t, s, store.UsageQuery{GroupBy: []store.UsageGroup{group}}))
			for limit := range 4 { // pages find their way from the text back to the time
				require.Equal(t, want, reportLines(t, s, store.UsageQuery{GroupBy: []store.UsageGroup{group}, Limit: limit + 1}))
			}
		}
	},

	"a range has its beginning and not its end": func(t *testing.T, open Open) {
		s := migrated(t, open)
		noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
		for i := range 5 {
			r := newRecord(fmt.Sprint("job-", i))
			r.CreatedAt = noon.Add(time.Duration(i) * time.Microsecond)
			appendAll(t, s, r)
		}
		page, err := s.UsageReport(t.Context(), store.UsageQuery{From: noon.Add(1000), To: noon.Add(3000).In(time.FixedZone("far", -8*3600))})
		require.NoError(t, err)
		require.EqualValues(t, 2, page.Rows[0].Requests)
		require.Equal(t, noon.Add(1000), page.From)
		require.Equal(t, noon.Add(3000), page.To)
	},

	"an empty report has no group, and a total of nothing": func(t *testing.T, open Open) {
		s := migrated(t, open)
		page, err := s.UsageReport(t.Context(), store.UsageQuery{GroupBy: []store.UsageGroup{store.ByDay}})
		require.NoError(t, err)
		require.Empty(t, page.Rows)
		require.Empty(t, page.Next)
		page, err = s.UsageReport(t.Context(), store.UsageQuery{})
		require.NoError(t, err)
		require.Equal(t, []store.UsageRow{{Group: []string{}}}, page.Rows)
	},

	"pages of a report follow each other while rows are added": reportPages,

	"a report never overflows": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i := range 3 {
			r := newRecord(fmt.Sprint("job-", i))
			r.Usage = inference.Usage{PromptTokens: math.MaxInt64, CompletionTokens: 1<<62 + int64(i), Known: true}
			r.Cost = math.MaxInt64
			appendAll(t, s, r)
		}
		page, err := s.UsageReport(t.Context(), store.UsageQuery{})
		require.NoError(t, err)
		require.EqualValues(t, math.MaxInt64, page.Rows[0].PromptTokens)
		require.EqualValues(t, math.MaxInt64, page.Rows[0].CompletionTokens)
		require.EqualValues(t, math.MaxInt64, page.Rows[0].Cost)
		spent, err := s.SpentSince(t.Context(), store.SpendScope{}, time.Time{})
		require.NoError(t, err)
		require.EqualValues(t, math.MaxInt64, spent)
	},

	"what cannot be meant is refused": func(t *testing.T, open Open) {
		s := migrated(t, open)
		by := func(groups ...store.UsageGroup) store.UsageQuery { return store.UsageQuery{GroupBy: groups} }
		after := func(text string) store.UsageQuery {
			q := by(store.ByDay)
			q.After = text
			return q
		}
		for name, q := range map[string]store.UsageQuery{
			"unknown group": by("color"), "group twice": by(store.ByKey, store.ByTenant, store.ByKey), "two times": by(store.ByDay, store.ByHour),
			"no cursor": after("?"), "no json": after(base64.RawURLEncoding.EncodeToString([]byte("{"))),
			"another report's": after(base64.RawURLEncoding.EncodeToString([]byte(`{"g":["key"],"b":["x"]}`))),
			"too short":        after(base64.RawURLEncoding.EncodeToString([]byte(`{"g":["day"],"b":[]}`))),
			"long":             after(strings.Repeat("A", 1<<20)),
		} {
			_, err := s.UsageReport(t.Context(), q)
			require.ErrorIs(t, err, store.ErrInvalid, name)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.UsageReport(ctx, store.UsageQuery{})
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.SpentSince(ctx, store.SpendScope{}, time.Time{})
		require.ErrorIs(t, err, context.Canceled)
	},

	"a place that was made up is answered": func(t *testing.T, open Open) {
		s := migrated(t, open)
		appendAll(t, s, newRecord("job"))
		for _, behind := range []string{"", "zzz", "9999", "2025-03-30", `'; --`, "\x00", "\xff"} {
			text, err := json.Marshal(map[string]any{"g": []string{"day"}, "b": []string{behind}})
			require.NoError(t, err)
			_, err = s.UsageReport(t.Context(), store.UsageQuery{GroupBy: []store.UsageGroup{store.ByDay}, After: base64.RawURLEncoding.EncodeToString(text)})
			require.NoError(t, err, "%q", behind)
		}
	},

	"the price of a job's end is found when its row is whole": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("job-1"), newJob("job-2"))
		end := newEnd("job-1")
		end.Record.Cost, end.Record.Priced = 0, false
		end.Price = func(r *inference.Record) {
			require.Equal(t, newJob("").Model, r.ModelAsked)
			require.Equal(t, newJob("").CreatedAt, r.CreatedAt)
			r.Cost, r.Priced = 77, true
		}
		news, err := s.FinishJobs(t.Context(), []store.JobEnd{end})
		require.NoError(t, err)
		require.Len(t, news, 1)
		rows, _ := usage(t, s, store.UsageFilter{JobID: "job-1"})
		require.EqualValues(t, 77, rows[0].Cost)
		require.True(t, rows[0].Priced)
	},
}

func reportSums(t *testing.T, open Open) {
	s := migrated(t, open)
	row := func(i int, change func(*inference.Record)) inference.Record {
		r := newRecord(fmt.Sprint("job-", i))
		r.Outcome, r.Cache = inference.OutcomeSucceeded, ""
		r.Usage = inference.Usage{PromptTokens: 10, CompletionTokens: 20, CachedTokens: 3, ReasoningTokens: 4, Known: true}
		r.Cost, r.Priced = 100, true
		change(&r)
		return r
	}
	outcome := func(o inference.Outcome) func(*inference.Record) { return func(r *inference.Record) { r.Outcome = o } }
	for i, change := range []func(*inference.Record){
		func(*inference.Record) {},
		outcome(inference.OutcomeFailed), outcome(inference.OutcomeExpired), outcome(inference.OutcomeRejected),
		outcome(inference.OutcomeCancelled), outcome(inference.OutcomeAbandoned),
		func(r *inference.Record) { r.Cache, r.Cost = inference.CacheHit, 0 },
		func(r *inference.Record) { r.Cache, r.Cost, r.Usage.Known = inference.CacheStale, 0, false },
		func(r *inference.Record) { r.Priced, r.Cost = false, 0 },
		func(r *inference.Record) { r.Priced, r.Cost, r.Usage.Known = false, 0, false },
		func(r *inference.Record) { r.Priced, r.Cost, r.Usage.Known, r.Attempts = false, 0, false, 0 },
	} {
		appendAll(t, s, row(i, change))
	}
	page, err := s.UsageReport(t.Context(), store.UsageQuery{})
	require.NoError(t, err)
	require.Equal(t, []store.UsageRow{{
		Group: []string{}, Requests: 11, Succeeded: 6, Failed: 3, CacheHits: 2,
		PromptTokens: 80, CompletionTokens: 160, CachedTokens: 24, ReasoningTokens: 32,
		Cost: 600, Unpriced: 1, UnknownUsage: 1,
	}}, page.Rows)
}

// ledgerOf fills the ledger with rows of all kinds, and returns them.
func ledgerOf(t *testing.T, s store.Store, n int) []inference.Record {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(n), 3))
	pick := func(texts ...string) string { return texts[random.IntN(len(texts))] }
	rows := make([]inference.Record, 0, n)
	for i := range n {
		r := newRecord(fmt.Sprintf("%s-%d", t.Name()[:1], i))
		r.CreatedAt = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(random.Int64N(int64(90 * 24 * time.Hour)))).Truncate(time.Microsecond)
		r.Tenant, r.KeyID = pick("acme", "Acme", "zeta", "ömega", ""), pick("key_a", "key_b", "config:ci")
		r.ModelAsked, r.Provider = pick("gpt-4o", "gpt-4o-mini", "Claude", "м"), pick("openai", "eu", "")
		r.Outcome = inference.Outcome(pick("succeeded", "failed", "cancelled"))
		r.Usage.PromptTokens, r.Cost = random.Int64N(1e12), inference.Cost(random.Int64N(1e12))
		rows = append(rows, r)
	}
	for batch := range slices.Chunk(rows, store.MaxBatch) {
		appendAll(t, s, batch...)
	}
	return rows
}

func groupOf(r *inference.Record, g store.UsageGroup) string {
	switch g {
	case store.ByHour:
		return r.CreatedAt.Format("2006-01-02T15") + ":00:00Z"
	case store.ByDay:
		return r.CreatedAt.Format("2006-01-02")
	case store.ByMonth:
		return r.CreatedAt.Format("2006-01")
	case store.ByTenant:
		return r.Tenant
	case store.ByKey:
		return r.KeyID
	case store.ByModel:
		return r.ModelAsked
	}
	return r.Provider
}

func reportsAgree(t *testing.T, open Open) {
	s := migrated(t, open)
	rows := ledgerOf(t, s, 600)
	from, to := rows[0].CreatedAt, rows[1].CreatedAt
	if to.Before(from) {
		from, to = to, from
	}
	for _, groups := range [][]store.UsageGroup{
		{store.ByDay},
		{store.ByTenant},
		{store.ByKey},
		{store.ByModel},
		{store.ByProvider},
		{store.ByMonth, store.ByTenant, store.ByKey, store.ByModel, store.ByProvider},
		{store.ByHour, store.ByProvider},
		{store.ByTenant, store.ByModel},
	} {
		for name, q := range map[string]store.UsageQuery{
			"all": {}, "range": {From: from, To: to}, "tenant": {Tenant: "Acme"}, "key": {KeyID: "key_a"}, "model": {Model: "gpt-4o"},
			"provider": {Provider: "eu"}, "several": {Tenant: "acme", Model: "м", From: from}, "nobody": {Tenant: "nobody"},
		} {
			want := make(map[string]*store.UsageRow)
			for i := range rows {
				r := &rows[i]
				if !q.From.IsZero() && r.CreatedAt.Before(q.From) || !q.To.IsZero() && !r.CreatedAt.Before(q.To) ||
					q.Tenant != "" && r.Tenant != q.Tenant || q.KeyID != "" && r.KeyID != q.KeyID ||
					q.Model != "" && r.ModelAsked != q.Model || q.Provider != "" && r.Provider != q.Provider {
					continue
				}
				group := make([]string, len(groups))
				for n, g := range groups {
					group[n] = groupOf(r, g)
				}
				id := strings.Join(group, "\x00")
				if want[id] == nil {
					want[id] = &store.UsageRow{Group: group}
				}
				w := want[id]
				w.Requests++
				w.PromptTokens += r.Usage.PromptTokens
				w.Cost += r.Cost
			}
			ordered := slices.SortedFunc(maps.Values(want), func(a, b *store.UsageRow) int { return slices.Compare(a.Group, b.Group) })
			q.GroupBy, q.Limit = slices.Clone(groups), 17
			slices.Reverse(q.GroupBy) // the order is the report's own
			got := allPages(t, s, q)
			require.Len(t, got, len(ordered), "%s by %v", name, groups)
			for i, w := range ordered {
				require.Equal(t, w.Group, got[i].Group)
				require.Equal(t, w.Requests, got[i].Requests)
				require.Equal(t, w.PromptTokens, got[i].PromptTokens)
				require.Equal(t, w.Cost, got[i].Cost)
			}
		}
	}
}

// allPages reads a report to its end.
func allPages(t *testing.T, s store.Store, q store.UsageQuery) []store.UsageRow {
	t.Helper()
	var rows []store.UsageRow
	for {
		page, err := s.UsageReport(t.Context(), q)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page.Rows), cmp.Or(q.Limit, store.DefaultPage))
		rows = append(rows, page.Rows...)
		if page.Next == "" {
			return rows
		}
		require.Len(t, page.Rows, cmp.Or(q.Limit, store.DefaultPage), "only the last page is short")
		q.After = page.Next
	}
}

func reportLines(t *testing.T, s store.Store, q store.UsageQuery) []string {
	t.Helper()
	var lines []string
	for _, r := range allPages(t, s, q) {
		lines = append(lines, fmt.Sprint(strings.Join(r.Group, " "), " ", r.Requests))
	}
	return lines
}

// reportPages adds rows to groups that were handed out, to some that were not, and to new
// ones, between the pages, and rows that lie behind the end of the range.
func reportPages(t *testing.T, open Open) {
	s := migrated(t, open)
	day := func(d int) time.Time { return time.Date(2026, 3, d, 12, 0, 0, 0, time.UTC) }
	add := func(id string, at time.Time, tenant string) {
		r := newRecord(id)
		r.CreatedAt, r.Tenant = at, tenant
		appendAll(t, s, r)
	}
	for d := 1; d <= 20; d += 2 {
		add(fmt.Sprint("first-", d), day(d), "a")
		add(fmt.Sprint("second-", d), day(d), "c")
	}
	q := store.UsageQuery{GroupBy: []store.UsageGroup{store.ByDay, store.ByTenant}, To: day(25), Limit: 3}
	seen := make(map[string]bool)
	last := ""
	for n := 0; ; n++ {
		page, err := s.UsageReport(t.Context(), q)
		require.NoError(t, err)
		require.Equal(t, day(25), page.To)
		for _, r := range page.Rows {
			id := strings.Join(r.Group, " ")
			require.Greater(t, id, last, "in order, and none twice")
			last, seen[id] = id, true
		}
		if page.Next == "" {
			break
		}
		q.After, q.To = page.Next, time.Time{} // the range is the first page's
		for d := 1; d <= 20; d += 3 {
			add(fmt.Sprintf("more-%d-%d", n, d), day(d), "b")
		}
		add(fmt.Sprint("later-", n), day(26), "a")
	}
	for d := 1; d <= 20; d += 2 {
		for _, tenant := range []string{"a", "c"} {
			require.True(t, seen[fmt.Sprintf("2026-03-%02d %s", d, tenant)], "day %d of %s", d, tenant)
		}
	}
	require.False(t, seen["2026-03-26 a"])
}
