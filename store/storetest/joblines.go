package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/store"
)

// numbers runs a statement behind the store's back and returns the numbers of its rows.
func numbers(t testing.TB, s store.Store, sql string, args ...any) []int64 {
	t.Helper()
	behind, ok := s.(interface {
		Numbers(ctx context.Context, sql string, args ...any) ([]int64, error)
	})
	require.True(t, ok, "the store's tests let the suite look behind it")
	n, err := behind.Numbers(t.Context(), sql, args...)
	require.NoError(t, err)
	return n
}

// createLines stores jobs as the next lines of a batch.
func createLines(t *testing.T, s store.Store, batchID string, jobs ...store.Job) {
	t.Helper()
	createJobs(t, s, jobs...)
	toLines(t, s, batchID, jobIDs(jobs)...)
}

// toLines makes stored jobs the next lines of a batch, which the first ones begin.
func toLines(t testing.TB, s store.Store, batchID string, ids ...string) {
	t.Helper()
	lines := numbers(t, s, `SELECT count(*) FROM jobs WHERE batch_id = $1`, batchID)[0]
	if lines == 0 {
		require.NoError(t, s.CreateBatch(t.Context(), newBatch(batchID)))
	}
	for i, id := range ids {
		numbers(t, s, `UPDATE jobs SET batch_id = $1, line = $2, custom_id = $3, lane = 'batch' WHERE id = $4 RETURNING line`,
			batchID, lines+int64(i)+1, id, id)
	}
}

// requireCounts requires what a batch counts: completed, failed, and the tokens of prompts,
// of completions, of the cache and of reasoning.
func requireCounts(t *testing.T, s store.Store, batchID string, want ...int64) {
	t.Helper()
	var got []int64
	for _, column := range []string{"completed", "failed", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"} {
		got = append(got, numbers(t, s, `SELECT `+column+` FROM batches WHERE id = $1`, batchID)...)
	}
	require.Equal(t, want, got)
}

// lineEnd returns the end of a line with an answer of that status, of 10, 20, 3 and 4
// tokens.
func lineEnd(id string, status int) store.JobEnd {
	end := newEnd(id)
	end.ExpiresAt = time.Time{}
	end.Record.Status = status
	end.Record.Usage = inference.Usage{PromptTokens: 10, CompletionTokens: 20, CachedTokens: 3, ReasoningTokens: 4, Known: true}
	return end
}

var lineTests = map[string]func(*testing.T, Open){
	"a line of a batch is none of its tenant's jobs": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("own", "acme", noon))
		createLines(t, s, "batch_1", jobAt("line", "acme", noon))
		_, err := s.Job(t.Context(), "acme", "line")
		require.ErrorIs(t, err, store.ErrNotFound)
		_, _, err = s.CancelJob(t.Context(), "acme", "line", noon, noon, cancelRow)
		require.ErrorIs(t, err, store.ErrNotFound)
		list, err := s.ListJobs(t.Context(), store.JobFilter{Tenant: "acme"})
		require.NoError(t, err)
		require.Equal(t, []string{"own"}, jobIDs(list))
		require.Equal(t, []string{"own"}, jobIDs(leaseAt(t, s, noon, 10)))
		expired, err := s.ExpireJobs(t.Context(), noon.Add(time.Hour), time.Hour, 10)
		require.NoError(t, err)
		require.Equal(t, []string{"own"}, jobIDs(expired))

		end := lineEnd("line", 200)
		end.ExpiresAt = noon
		news, err := s.FinishJobs(t.Context(), []store.JobEnd{end})
		require.NoError(t, err)
		require.Len(t, news, 1)
		list, err = s.ListJobs(t.Context(), store.JobFilter{Tenant: "acme", Status: store.JobCompleted})
		require.NoError(t, err)
		require.Empty(t, list)
		purged, err := s.PurgeJobs(t.Context(), noon.Add(24*time.Hour), 10)
		require.NoError(t, err)
		require.Equal(t, 1, purged)
		require.Equal(t, []int64{1}, numbers(t, s, `SELECT count(*) FROM jobs WHERE id = 'line'`), "it goes with its batch")

		line := newJob("alone")
		line.BatchID, line.Line = "batch_1", 2
		require.ErrorIs(t, s.CreateJob(t.Context(), line), store.ErrInvalid)
	},

	"a line has its messages as any job has": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createLines(t, s, "batch_1", jobAt("line", "acme", noon))
		dispatch(t, s, "line", 0, noon)
		claimed, err := s.ClaimJob(t.Context(), "line", 0, noon)
		require.NoError(t, err)
		require.True(t, claimed.Wanted)
		jobs := dispatchedBefore(t, s, noon.Add(time.Second))
		require.Equal(t, []string{"line"}, jobIDs(jobs))
		require.Equal(t, "batch_1", jobs[0].BatchID)
		require.Equal(t, 1, jobs[0].Line)
		require.Equal(t, "line", jobs[0].CustomID)
		require.Equal(t, inference.LaneBatch, jobs[0].Lane)
		require.Equal(t, []string{"line"}, requeue(t, s, store.Requeue{ID: "line"}))
		require.Empty(t, requeue(t, s, store.Requeue{ID: "line"}), "a second time")
		require.Empty(t, dispatchedBefore(t, s, noon.Add(time.Hour)))
	},

	"the end of a line counts in its batch, once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("own", "acme", noon))
		createLines(t, s, "batch_2", jobAt("a", "acme", noon), jobAt("b", "acme", noon))
		createLines(t, s, "batch_1", jobAt("c", "other", noon), jobAt("d", "other", noon), jobAt("e", "other", noon), jobAt("f", "other", noon))
		unknown := lineEnd("e", 200)
		unknown.Record.Usage.Known = false
		refused := lineEnd("d", 400)
		refused.Status = store.JobFailed
		ends := []store.JobEnd{lineEnd("own", 200), lineEnd("b", 200), lineEnd("c", 204), refused, unknown, lineEnd("c", 500)}
		news, err := s.FinishJobs(t.Context(), ends)
		require.NoError(t, err)
		require.Equal(t, []string{"b", "c", "d", "e", "own"}, jobIDs(news))
		requireCounts(t, s, "batch_2", 1, 0, 10, 20, 3, 4)
		requireCounts(t, s, "batch_1", 2, 1, 20, 40, 6, 8)
		_, rows := usage(t, s, store.UsageFilter{})
		require.Len(t, rows, 5, "and each has its row")

		news, err = s.FinishJobs(t.Context(), append(ends, lineEnd("f", 300), lineEnd("a", 299)))
		require.NoError(t, err)
		require.Equal(t, []string{"a", "f"}, jobIDs(news))
		requireCounts(t, s, "batch_2", 2, 0, 20, 40, 6, 8)
		requireCounts(t, s, "batch_1", 2, 2, 30, 60, 9, 12)
	},

	"counts that cannot be kept leave the lines unfinished": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createLines(t, s, "batch_1", jobAt("a", "acme", noon))
		createLines(t, s, "batch_2", jobAt("b", "acme", noon))
		numbers(t, s, `UPDATE batches SET prompt_tokens = 9223372036854775807 WHERE id = 'batch_2' RETURNING 1`)
		ends := []store.JobEnd{lineEnd("a", 200), lineEnd("b", 200)}
		_, err := s.FinishJobs(t.Context(), ends)
		require.Error(t, err)
		requireCounts(t, s, "batch_1", 0, 0, 0, 0, 0, 0)
		_, rows := usage(t, s, store.UsageFilter{})
		require.Empty(t, rows)
	},

	"results of many ingresses for the same batches all count, each once": countRace,
}

// countRace has several processes finish the lines of several batches, each result twice
// and in different orders, while others say where the messages are.
func countRace(t *testing.T, open Open) {
	const lines, batches = 60, 3
	s := migrated(t, open)
	var ids []string
	for i := range lines {
		ids = append(ids, fmt.Sprintf("line-%03d", i))
		createLines(t, s, fmt.Sprintf("batch_%d", (lines-i)%batches), jobAt(ids[i], "acme", noon))
	}
	start := make(chan struct{})
	group, ctx := errgroup.WithContext(t.Context())
	compete := func(run func(s store.Store, part []string) error, backwards bool) {
		mine := open()
		require.NoError(t, mine.Ping(ctx))
		group.Go(func() error {
			<-start
			order := slices.Clone(ids)
			if backwards {
				slices.Reverse(order)
			}
			for part := range slices.Chunk(order, 25) {
				if err := run(mine, part); err != nil {
					return err
				}
			}
			return nil
		})
	}
	finish := func(s store.Store, part []string) error {
		var ends []store.JobEnd
		for _, id := range part {
			ends = append(ends, lineEnd(id, 200))
		}
		_, err := s.FinishJobs(ctx, ends)
		return err
	}
	mark := func(s store.Store, part []string) error {
		var sent []store.Dispatch
		for _, id := range part {
			sent = append(sent, store.Dispatch{ID: id, Provider: "openai", Seq: 1})
		}
		if _, err := s.MarkDispatched(ctx, sent, noon); err != nil {
			return err
		}
		return s.Confirm(ctx, part, noon.Add(time.Second))
	}
	for _, backwards := range []bool{false, true} {
		compete(finish, backwards)
		compete(mark, backwards)
	}
	close(start)
	require.NoError(t, group.Wait())
	for i := range batches {
		requireCounts(t, s, fmt.Sprintf("batch_%d", i), 20, 0, 200, 400, 60, 80)
	}
}
