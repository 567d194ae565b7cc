package storetest

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

func endLines(t *testing.T, s store.Store, id string, status store.JobStatus, limit int) []store.Job {
	t.Helper()
	ended, err := s.EndLines(t.Context(), id, status, noon.Add(time.Hour), limit)
	require.NoError(t, err)
	return ended
}

func finishedLines(t *testing.T, s store.Store, id string, f store.LineFilter) []store.Job {
	t.Helper()
	lines, err := s.FinishedLines(t.Context(), id, f)
	require.NoError(t, err)
	return lines
}

var batchEndTests = map[string]func(*testing.T, Open){
	"finished lines are counted in their batch": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 4)
		finishLine(t, s, "batch_1-0001", 200)
		finishLine(t, s, "batch_1-0003", 400)
		finishLine(t, s, "batch_1-0002", 299)
		b, usage := batch(t, s, "batch_1"), newRecord("").Usage
		require.Equal(t, []int{4, 2, 1}, []int{b.Total, b.Completed, b.Failed})
		require.Equal(t, inference.Usage{
			PromptTokens: 3 * usage.PromptTokens, CompletionTokens: 3 * usage.CompletionTokens,
			CachedTokens: 3 * usage.CachedTokens, ReasoningTokens: 3 * usage.ReasoningTokens, Known: true,
		}, b.Usage)
		news, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("batch_1-0001")})
		require.NoError(t, err)
		require.Empty(t, news)
		require.Equal(t, b, batch(t, s, "batch_1"), "none is counted twice")
	},

	"unfinished lines end as expired or cancelled, with their rows": func(t *testing.T, open Open) {
		for _, c := range []struct {
			status  store.JobStatus
			outcome inference.Outcome
			code    inference.ErrorCode
			http    int
		}{
			{store.JobExpired, inference.OutcomeExpired, inference.CodeDeadlineExceeded, 504},
			{store.JobCancelled, inference.OutcomeCancelled, inference.CodeCancelled, 499},
		} {
			id := "batch_" + string(c.status)
			s := migrated(t, open)
			running(t, s, id, 5)
			leaseLines(t, s, id, noon, 3)
			send(t, s, id+"-0002")
			tries := newRecord("").Tries
			require.NoError(t, s.MoveJob(t.Context(), id+"-0002", 1, "azure", 8, 2, tries, noon))
			finishLine(t, s, id+"-0001", 200)
			at := noon.Add(time.Hour)

			first := endLines(t, s, id, c.status, 3)
			require.Len(t, first, 3)
			ended := append(first, endLines(t, s, id, c.status, 3)...)
			require.Empty(t, endLines(t, s, id, c.status, 3))
			store.InLines(ended)
			require.Equal(t, []int{2, 3, 4, 5}, lineNumbers(ended))
			require.EqualValues(t, 8, ended[0].Seq, "where its message is")
			for _, j := range ended {
				require.Equal(t, c.status, j.Status)
				require.Equal(t, at, j.FinishedAt)
				require.Equal(t, c.http, j.ResponseStatus)
				require.Equal(t, c.code, j.ErrorCode)
				require.True(t, j.LeasedUntil.IsZero())
				require.True(t, j.ExpiresAt.IsZero(), "a line goes with its batch")
				require.Nil(t, j.Body)
				rows, _ := usage(t, s, store.UsageFilter{JobID: j.ID})
				waited := at.Sub(j.CreatedAt)
				want := store.RecordOf(newLine(id, j.Line), inference.Record{
					Outcome: c.outcome, Status: c.http, ErrorCode: c.code, Queue: waited, Total: waited,
				})
				if j.Line == 2 {
					want.Attempts, want.Tries = 2, tries
				}
				require.Equal(t, []inference.Record{want}, rows)
			}
			b := batch(t, s, id)
			require.Equal(t, []int{5, 1, 4}, []int{b.Total, b.Completed, b.Failed})
			news, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd(id + "-0002")})
			require.NoError(t, err)
			require.Empty(t, news, "a late result finds the line ended")
			require.Equal(t, b, batch(t, s, id))
			require.Empty(t, leaseLines(t, s, id, noon.Add(time.Hour), 10))
		}
	},

	"lines end in no other way, and not when their batch has ended": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 1)
		for _, status := range []store.JobStatus{"", store.JobCompleted, store.JobFailed, store.JobInProgress} {
			_, err := s.EndLines(t.Context(), "batch_1", status, noon, 10)
			require.ErrorIs(t, err, store.ErrInvalid)
		}
		require.Empty(t, endLines(t, s, "batch_1", store.JobExpired, 0))
		require.Empty(t, endLines(t, s, "nobody's", store.JobExpired, 10))
		createBatch(t, s, "failed")
		addLines(t, s, "failed", newLine("failed", 1))
		require.NoError(t, s.FailBatch(t.Context(), owner, "failed", noon, noon))
		require.Empty(t, endLines(t, s, "failed", store.JobExpired, 10))
		_, ids := usage(t, s, store.UsageFilter{})
		require.Empty(t, ids, "what was never called costs nothing")
	},

	"a batch is final when its lines are": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 3)
		finalize := func() error { return s.FinalizeBatch(t.Context(), owner, "batch_1", noon) }
		require.ErrorIs(t, finalize(), store.ErrConflict, "lines wait")
		leaseLines(t, s, "batch_1", noon, 10)
		for _, id := range []string{"batch_1-0001", "batch_1-0002"} {
			send(t, s, id)
			finishLine(t, s, id, 200)
		}
		send(t, s, "batch_1-0003")
		require.ErrorIs(t, finalize(), store.ErrConflict, "one is out")
		finishLine(t, s, "batch_1-0003", 500)
		require.NoError(t, finalize())
		require.Equal(t, store.BatchFinalizing, batch(t, s, "batch_1").Status)
	},

	"finished lines are read in order, by how they ended": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 8)
		running(t, s, "batch_2", 1)
		finishLine(t, s, "batch_2-0001", 200)
		for i, status := range []int{200, 400, 299, 300, 201} {
			finishLine(t, s, newLine("batch_1", 5-i).ID, status)
		}
		endLines(t, s, "batch_1", store.JobExpired, 1)
		failed, completed := true, false
		for _, c := range []struct {
			filter store.LineFilter
			want   []int
		}{
			{store.LineFilter{}, []int{1, 2, 3, 4, 5, 6}},
			{store.LineFilter{Failed: &completed}, []int{1, 3, 5}},
			{store.LineFilter{Failed: &failed}, []int{2, 4, 6}},
			{store.LineFilter{After: 2}, []int{3, 4, 5, 6}},
			{store.LineFilter{Failed: &completed, After: 1}, []int{3, 5}},
			{store.LineFilter{Failed: &failed, After: 4}, []int{6}},
			{store.LineFilter{After: 6}, []int{}},
		} {
			require.Equal(t, c.want, lineNumbers(finishedLines(t, s, "batch_1", c.filter)), "%+v", c.filter)
		}
		got := finishedLines(t, s, "batch_1", store.LineFilter{})[0]
		require.Equal(t, newEnd("").Response, got.Response)
		require.Equal(t, "row-1", got.CustomID)
		require.Equal(t, 201, got.ResponseStatus)
		require.Equal(t, newRecord("").Usage, got.Usage)
		require.Nil(t, got.Body, "what was asked is of no use any more")
	},

	"finished lines are bounded in bytes and number, but never none": func(t *testing.T, open Open) {
		s := migrated(t, open)
		running(t, s, "batch_1", 5)
		sizes := []int{10, 20, 31, 5, 0}
		for i, size := range sizes {
			end := newEnd(newLine("batch_1", i+1).ID)
			end.Response, end.Record.Status = bytes.Repeat([]byte{'x'}, size), 200
			_, err := s.FinishJobs(t.Context(), []store.JobEnd{end})
			require.NoError(t, err)
		}
		after := 0
		for _, want := range [][]int{{1, 2}, {3}, {4, 5}, {}} {
			got := finishedLines(t, s, "batch_1", store.LineFilter{After: after, Bytes: 30})
			require.Equal(t, want, lineNumbers(got))
			if len(got) > 0 {
				after = got[len(got)-1].Line
				require.Len(t, got[0].Response, sizes[got[0].Line-1])
			}
		}
	},

	"lines of batches that ended are dropped step by step, and then the batches": drops,
}

func drops(t *testing.T, open Open) {
	s := migrated(t, open)
	running(t, s, "running", 2)
	running(t, s, "completed", 5)
	endLines(t, s, "completed", store.JobCancelled, 10)
	require.NoError(t, s.FinalizeBatch(t.Context(), owner, "completed", noon))
	createBatch(t, s, "failed")
	addLines(t, s, "failed", newLines("failed", 1, 3)...)
	createBatch(t, s, "kept")
	require.NoError(t, s.FailBatch(t.Context(), owner, "kept", noon, time.Time{}))
	createJobs(t, s, newJob("of its own"))
	before := noon.Add(24 * time.Hour)
	drop := func(limit int) int {
		n, err := s.DropLines(t.Context(), before, limit)
		require.NoError(t, err)
		return n
	}
	purge := func(at time.Time) int {
		n, err := s.PurgeBatches(t.Context(), at, 10)
		require.NoError(t, err)
		return n
	}
	require.Zero(t, drop(10), "no batch with lines has ended")
	end := endOf(store.BatchCancelled)
	require.NoError(t, s.CompleteBatch(t.Context(), owner, "completed", end))
	require.NoError(t, s.FailBatch(t.Context(), owner, "failed", noon, end.Purge))
	require.Zero(t, purge(end.Purge), "lines first")
	require.Zero(t, drop(0))
	before = noon
	require.Zero(t, drop(10), "they have only just ended")
	before = noon.Add(24 * time.Hour)
	require.Equal(t, []int{3, 4, 1, 0}, []int{drop(3), drop(4), drop(10), drop(10)})
	require.Empty(t, lineIDs(t, s, "completed"))
	require.Empty(t, lineIDs(t, s, "failed"))
	require.Len(t, lineIDs(t, s, "running"), 2)
	job(t, s, "of its own")
	require.Equal(t, 5, batch(t, s, "completed").Failed, "the counts stay")

	require.Zero(t, purge(end.Purge.Add(-time.Microsecond)))
	require.Equal(t, 2, purge(end.Purge))
	list, err := s.ListBatches(t.Context(), store.BatchFilter{Tenant: "acme"})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"running", "kept"}, batchIDs(list))
	_, ids := usage(t, s, store.UsageFilter{})
	require.Len(t, ids, 5, "the ledger keeps its rows")
}
