package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/internal/routing"
	"sluice/store"
)

var spendTests = map[string]func(*testing.T, Open){
	"what was spent is the sum of the rows": func(t *testing.T, open Open) {
		s := migrated(t, open)
		requireSpent(t, s, ledgerOf(t, s, 2500))
	},

	"what was spent counts for the day of UTC on which it was asked for": func(t *testing.T, open Open) {
		s := migrated(t, open)
		midnight := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
		var rows []inference.Record
		for i, at := range []time.Time{
			midnight.Add(-time.Microsecond), midnight, midnight.Add(24*time.Hour - time.Microsecond), midnight.Add(24 * time.Hour),
			midnight.Add(30 * time.Minute).In(time.FixedZone("west", -9*3600)), midnight.Add(-time.Hour).In(time.FixedZone("east", 14*3600)),
			time.Unix(-1, 0), time.Unix(0, 0), time.Unix(-86400, 0), time.Unix(-86401, 999_999_000),
			{},
		} {
			r := newRecord(fmt.Sprint("job-", i))
			r.CreatedAt, r.Cost, r.Total = at, 1<<i, 72*time.Hour // it ends days later
			rows = append(rows, r)
		}
		appendAll(t, s, rows...)
		requireSpent(t, s, rows)
		for since, want := range map[time.Time]inference.Cost{
			midnight: 2 + 4 + 8 + 16, midnight.Add(15 * time.Hour): 2 + 4 + 8 + 16, midnight.Add(24 * time.Hour): 8,
			midnight.Add(-1).In(time.FixedZone("east", 14*3600)): 1 + 2 + 4 + 8 + 16 + 32, {}: 1<<11 - 1,
			time.Unix(0, 0): 1<<11 - 1 - 64 - 256 - 512 - 1024, time.Unix(-1, 0): 1<<11 - 1 - 512 - 1024,
		} {
			got, err := s.SpentSince(t.Context(), store.SpendScope{}, since)
			require.NoError(t, err)
			require.Equal(t, want, got, "since %s", since)
		}
	},

	"what a job cost counts once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		rows := ledgerOf(t, s, 60)
		again := append([]inference.Record(nil), rows[:40]...)
		for i := range again { // the first one stays, whatever the later one says
			again[i].Cost, again[i].KeyID = again[i].Cost+1, "key_b"
			again[i].CreatedAt = again[i].CreatedAt.Add(24 * time.Hour)
		}
		fresh := newRecord("fresh")
		twice := fresh
		twice.Cost *= 2
		for range 2 {
			_, err := s.AppendUsage(t.Context(), append(again, fresh, twice))
			require.NoError(t, err)
		}
		requireSpent(t, s, append(rows, fresh))
	},

	"what was not stored was not spent": func(t *testing.T, open Open) {
		s := migrated(t, open)
		_, err := s.AppendUsage(t.Context(), []inference.Record{newRecord("a"), newRecord("")})
		require.ErrorIs(t, err, store.ErrInvalid)
		requireSpent(t, s, nil)
	},

	"what a background job cost counts when it ends": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("job-1"), newJob("job-2"))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("job-1"), newEnd("job-2"), newEnd("nobody's")})
		require.NoError(t, err)
		_, err = s.FinishJobs(t.Context(), []store.JobEnd{newEnd("job-2")})
		require.NoError(t, err)
		rows, _ := usage(t, s, store.UsageFilter{})
		require.Len(t, rows, 2)
		requireSpent(t, s, rows)
		_, err = s.AppendUsage(t.Context(), rows)
		require.NoError(t, err)
		requireSpent(t, s, rows)
	},

	"models are named as the ledger keeps their names": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i, model := range []string{"nul\x00inside", "not \xff UTF-8", strings.Repeat("é", 1000), "'; DROP TABLE spend; --", "vendor/model"} {
			r := newRecord(fmt.Sprint("job-", i))
			r.ModelAsked, r.KeyID, r.Tenant = model, model, model
			appendAll(t, s, r)
			for _, scope := range []store.SpendScope{{Models: []string{model}}, {KeyID: model}, {Tenant: model, Models: []string{"x", model}}} {
				got, err := s.SpentSince(t.Context(), scope, time.Time{})
				require.NoError(t, err)
				require.Equal(t, r.Cost, got, "%.40q", model)
			}
			got, err := s.SpentSince(t.Context(), store.SpendScope{KeyID: model, Except: []string{"x", model}}, time.Time{})
			require.NoError(t, err)
			require.Zero(t, got, "%.40q", model)
		}
	},

	"what is spent at one time is summed up whole": spentTogether,

	"writers of other rows never wait for each other's sums in a circle": func(t *testing.T, open Open) {
		const writers, batches, each = 4, 36, 100
		s := migrated(t, open)
		stores := []store.Store{s, open()}
		group, ctx := errgroup.WithContext(t.Context())
		for w := range writers {
			group.Go(func() error {
				for b := range batches {
					batch := make([]inference.Record, each)
					for i := range batch { // of all the holders, in an order that is the writer's own
						batch[i] = newRecord(fmt.Sprintf("%d-%d-%d", w, b, i))
						batch[i].KeyID, batch[i].Cost = fmt.Sprint("key-", (i*(2*w+1)+b)%100), 1
					}
					if err := appendInTime(ctx, stores[w%len(stores)], batch); err != nil {
						return err
					}
				}
				return nil
			})
		}
		require.NoError(t, group.Wait())
		got, err := s.SpentSince(t.Context(), store.SpendScope{Models: []string{newRecord("").ModelAsked}}, time.Time{})
		require.NoError(t, err)
		require.EqualValues(t, writers*batches*each, got)
	},
}

// appendInTime stores rows, however long others keep the database to themselves.
func appendInTime(ctx context.Context, s store.Store, rows []inference.Record) error {
	return inTime(ctx, func() error {
		_, err := s.AppendUsage(ctx, rows)
		return err
	})
}

// inTime calls do until the database can be asked, as a writer of the ledger would, for a
// minute. SQLite does not queue the writers of several stores: one of them may wait past its
// timeout.
func inTime(ctx context.Context, do func() error) error {
	for began := time.Now(); ; {
		err := do()
		if err == nil || ctx.Err() != nil || !store.Unreachable(err) || time.Since(began) > time.Minute {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// spentScopes are scopes of ledgerOf's rows of all the kinds that are asked for.
var spentScopes = map[string]store.SpendScope{
	"all": {}, "key": {KeyID: "key_a"}, "tenant": {Tenant: "acme"}, "nobody": {KeyID: "nobody"},
	"model": {Models: []string{"gpt-4o"}}, "models": {Models: []string{"м", "gpt-4o", "gpt-4o"}}, "globs": {Models: []string{"gpt-4o", "C?aude"}},
	"globs of a key": {KeyID: "key_b", Models: []string{"gpt-*", "м"}}, "models of a key": {KeyID: "key_b", Models: []string{"м", "Claude"}},
	"globs of a tenant": {Tenant: "ömega", Models: []string{"*"}}, "models of a tenant": {Tenant: "Acme", Models: []string{"gpt-4o"}},
	"key of a tenant": {KeyID: "config:ci", Tenant: "zeta"}, "no glob": {Models: []string{"[", "gpt-4o-mini"}},
	"all but a model": {Except: []string{"gpt-4o"}}, "globs of a key but a model": {KeyID: "key_b", Models: []string{"*"}, Except: []string{"gpt-4o", "м"}},
	"a model but globs": {Models: []string{"gpt-4o", "м"}, Except: []string{"gpt-*"}}, "nothing of a tenant": {Tenant: "acme", Models: []string{"gpt-*"}, Except: []string{"*"}},
}

// requireSpent requires that each scope has spent, in every window, what its rows cost.
func requireSpent(t *testing.T, s store.Store, rows []inference.Record) {
	t.Helper()
	windows := []time.Time{
		{},
		time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC),
		time.Date(2026, 3, 30, 0, 0, 0, 0, time.UTC), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	for name, scope := range spentScopes {
		for _, since := range windows {
			want := inference.Cost(0)
			for _, r := range rows {
				if !r.CreatedAt.Before(since) && (scope.KeyID == "" || r.KeyID == scope.KeyID) && (scope.Tenant == "" || r.Tenant == scope.Tenant) &&
					(len(scope.Models) == 0 || routing.MatchesAny(scope.Models, r.ModelAsked)) && !routing.MatchesAny(scope.Except, r.ModelAsked) {
					want += r.Cost
				}
			}
			got, err := s.SpentSince(t.Context(), scope, since)
			require.NoError(t, err)
			require.Equal(t, want, got, "%s since %s", name, since)
		}
	}
}

// spentTogether has several writers store the same rows of many holders, each in another
// order and cut into other batches, while background jobs of the same holders end.
func spentTogether(t *testing.T, open Open) {
	const jobs, writers, ends = 1200, 4, 60
	s := migrated(t, open)
	stores := []store.Store{s, open()}
	rows := make([]inference.Record, jobs)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range rows {
		rows[i] = newRecord(fmt.Sprint("row-", i))
		rows[i].KeyID, rows[i].ModelAsked = fmt.Sprint("key-", random.IntN(20)), fmt.Sprint("model-", random.IntN(3))
		rows[i].CreatedAt = time.Date(2026, 3, 29+random.IntN(3), 12, 0, 0, 0, time.UTC)
		rows[i].Cost = inference.Cost(random.Int64N(1e12))
	}
	for i := range ends {
		createJobs(t, s, newJob(fmt.Sprint("job-", i)))
	}
	group, ctx := errgroup.WithContext(t.Context())
	for w := range writers {
		random := rand.New(rand.NewPCG(uint64(w), 1))
		group.Go(func() error {
			var mine []inference.Record
			for _, i := range random.Perm(jobs) {
				mine = append(mine, rows[i])
			}
			for len(mine) > 0 {
				n := min(len(mine), 50+random.IntN(100))
				if err := appendInTime(ctx, stores[w%len(stores)], mine[:n]); err != nil {
					return err
				}
				mine = mine[n:]
			}
			return nil
		})
	}
	for w := range 2 {
		group.Go(func() error {
			for i := range ends {
				end := newEnd(fmt.Sprint("job-", i))
				end.Record.Cost = 1
				if err := inTime(ctx, func() error {
					_, err := stores[w].FinishJobs(ctx, []store.JobEnd{end})
					return err
				}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	all := slices.Clone(rows)
	for i := range ends {
		found, _ := usage(t, s, store.UsageFilter{JobID: fmt.Sprint("job-", i)})
		all = append(all, found...)
	}
	require.Len(t, all, jobs+ends)
	requireSpent(t, s, all)
}
