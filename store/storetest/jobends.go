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

// cancelRow is what the ledger is to keep of a cancelled job.
var cancelRow = inference.Record{
	Tenant: "a stranger", Attempts: 1, Outcome: inference.OutcomeCancelled, Status: 499,
	ErrorCode: inference.CodeCancelled, Total: time.Second,
}

var endTests = map[string]func(*testing.T, Open){
	"an end comes with its row in the ledger, on the account of the job's own tenant": func(t *testing.T, open Open) {
		s := migrated(t, open)
		j, end := newJob("job-1"), newEnd("job-1")
		createJobs(t, s, j)
		want := end.Record
		want.RequestID, want.Kind, want.Tenant, want.KeyID = j.RequestID, j.Kind, j.Tenant, j.KeyID
		want.ModelAsked, want.CreatedAt, want.Stream = j.Model, j.CreatedAt, false
		end.Record.RequestID, end.Record.Kind, end.Record.Tenant = "other", "other", "other"
		end.Record.KeyID, end.Record.ModelAsked, end.Record.CreatedAt = "other", "other", noon.Add(time.Hour)

		news, err := s.FinishJobs(t.Context(), []store.JobEnd{end})
		require.NoError(t, err)
		require.Equal(t, []store.Job{withoutBodies(job(t, s, "job-1"))}, news)
		rows, _ := usage(t, s, store.UsageFilter{})
		require.Equal(t, []inference.Record{want}, rows)
	},

	"a second end changes nothing": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("a"), newJob("b"))
		second := newEnd("b")
		second.Status, second.Response, second.Record.Attempts = store.JobFailed, []byte("{}"), 9
		news, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("b"), newEnd("nobody's"), newEnd("a"), second})
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b"}, jobIDs(news), "each once, ordered, and none that is not there")
		finished := job(t, s, "b")
		require.Equal(t, store.JobCompleted, finished.Status, "the first end of a job is the one that counts")

		news, err = s.FinishJobs(t.Context(), []store.JobEnd{second})
		require.NoError(t, err)
		require.Empty(t, news)
		require.Equal(t, finished, job(t, s, "b"))
		rows, ids := usage(t, s, store.UsageFilter{})
		require.ElementsMatch(t, []string{"a", "b"}, ids)
		require.Equal(t, 2, rows[0].Attempts)
	},

	"a start that was told stays, one that was not is learnt from the end": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("told"), newJob("untold"))
		start(t, s, "told", 3, noon)
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("told"), newEnd("untold")})
		require.NoError(t, err)
		require.Equal(t, noon, job(t, s, "told").StartedAt)
		require.Equal(t, newEnd("").StartedAt, job(t, s, "untold").StartedAt)
	},

	"a job whose row is in the ledger already ends all the same": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("job-1"))
		appendAll(t, s, newRecord("job-1"))
		news, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("job-1")})
		require.NoError(t, err)
		require.Equal(t, []string{"job-1"}, jobIDs(news))
		rows, _ := usage(t, s, store.UsageFilter{})
		require.Equal(t, []inference.Record{newRecord("job-1")}, rows)
	},

	"ends are stored whole or not at all": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("a"), newJob("b"))
		for name, change := range map[string]func(*store.JobEnd){
			"no job":         func(e *store.JobEnd) { e.Record.JobID = "" },
			"job not text":   func(e *store.JobEnd) { e.Record.JobID = "b\x00" },
			"no end":         func(e *store.JobEnd) { e.Status = store.JobInProgress },
			"no status":      func(e *store.JobEnd) { e.Status = "" },
			"no time":        func(e *store.JobEnd) { e.FinishedAt = time.Time{} },
			"too long":       func(e *store.JobEnd) { e.Response = make([]byte, store.MaxInlineBytes+1) },
			"a thing unsaid": func(e *store.JobEnd) { *e = store.JobEnd{} },
		} {
			wrong := newEnd("b")
			change(&wrong)
			_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("a"), wrong})
			require.ErrorIs(t, err, store.ErrInvalid, name)
		}
		_, err := s.FinishJobs(t.Context(), make([]store.JobEnd, store.MaxJobs+1))
		require.ErrorIs(t, err, store.ErrInvalid)
		news, err := s.FinishJobs(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, news)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = s.FinishJobs(ctx, []store.JobEnd{newEnd("a")})
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, newJob("a"), job(t, s, "a"))
		_, ids := usage(t, s, store.UsageFilter{})
		require.Empty(t, ids)
	},

	"an unfinished job is cancelled, with its row": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("queued"), newJob("started"))
		dispatch(t, s, "started", 3, noon)
		start(t, s, "started", 3, noon)
		for _, id := range []string{"queued", "started"} {
			got, news, err := s.CancelJob(t.Context(), "acme", id, noon.Add(time.Minute), noon.Add(time.Hour), cancelRow)
			require.NoError(t, err)
			require.True(t, news)
			require.Equal(t, store.JobCancelled, got.Status)
			require.Equal(t, noon.Add(time.Minute), got.FinishedAt)
			require.Equal(t, noon.Add(time.Hour), got.ExpiresAt)
			require.Equal(t, 499, got.ResponseStatus)
			require.Equal(t, inference.CodeCancelled, got.ErrorCode)
			require.Equal(t, withoutBodies(job(t, s, id)), got)
			require.Equal(t, id == "started", got.Seq == 7, "where its message is")
			rows, _ := usage(t, s, store.UsageFilter{JobID: id})
			require.Equal(t, []inference.Record{store.RecordOf(newJob(id), cancelRow)}, rows)

			again, news, err := s.CancelJob(t.Context(), "acme", id, noon.Add(time.Hour), noon, cancelRow)
			require.NoError(t, err)
			require.False(t, news)
			require.Equal(t, got, again)
		}
		require.Empty(t, leaseAt(t, s, noon.Add(time.Hour), 10))
		news, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("started")})
		require.NoError(t, err)
		require.Empty(t, news, "a late result finds the job ended")
	},

	"a finished job cannot be cancelled": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("job-1"))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("job-1")})
		require.NoError(t, err)
		finished := job(t, s, "job-1")
		got, news, err := s.CancelJob(t.Context(), "acme", "job-1", noon.Add(time.Hour), noon, cancelRow)
		require.NoError(t, err)
		require.False(t, news)
		require.Equal(t, withoutBodies(finished), got)
		require.Equal(t, finished, job(t, s, "job-1"))
	},

	"an unfinished job whose deadline has passed expires": expiry,

	"what is kept no longer is removed": purge,

	"a call for many jobs handles a bounded number": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i := range store.MaxJobs + 3 {
			createJobs(t, s, newJob(fmt.Sprintf("job-%03d", i)))
		}
		late := noon.Add(2 * time.Hour)
		for _, want := range []struct{ limit, expired int }{{0, 0}, {-1, 0}, {2, 2}, {9999, store.MaxJobs}, {9999, 1}, {9999, 0}} {
			jobs, err := s.ExpireJobs(t.Context(), late, 0, want.limit)
			require.NoError(t, err)
			require.Len(t, jobs, want.expired)
		}
		for _, want := range []struct{ limit, purged int }{{0, 0}, {-1, 0}, {2, 2}, {9999, store.MaxJobs}, {9999, 1}, {9999, 0}} {
			purged, err := s.PurgeJobs(t.Context(), late, want.limit)
			require.NoError(t, err)
			require.Equal(t, want.purged, purged)
		}
	},

	"of all who would end a job at one time one does": endsRace,
}

func expiry(t *testing.T, open Open) {
	s := migrated(t, open)
	endless, finished := newJob("endless"), newJob("finished")
	endless.Deadline = time.Time{}
	createJobs(t, s, newJob("queued"), newJob("started"), endless, finished)
	start(t, s, "started", 3, noon.Add(2*time.Second))
	_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("finished")})
	require.NoError(t, err)

	deadline := noon.Add(time.Hour)
	jobs, err := s.ExpireJobs(t.Context(), deadline.Add(-time.Microsecond), time.Minute, 10)
	require.NoError(t, err)
	require.Empty(t, jobs)
	jobs, err = s.ExpireJobs(t.Context(), deadline, time.Minute, 10)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"queued", "started"}, jobIDs(jobs))
	for _, got := range jobs {
		require.Equal(t, store.JobExpired, got.Status)
		require.Equal(t, deadline, got.FinishedAt)
		require.Equal(t, deadline.Add(time.Minute), got.ExpiresAt)
		require.Equal(t, 504, got.ResponseStatus)
		require.Equal(t, inference.CodeDeadlineExceeded, got.ErrorCode)
		require.Equal(t, withoutBodies(job(t, s, got.ID)), got)

		rows, _ := usage(t, s, store.UsageFilter{JobID: got.ID})
		want := store.RecordOf(newJob(got.ID), inference.Record{
			Outcome: inference.OutcomeExpired, Status: 504, ErrorCode: inference.CodeDeadlineExceeded,
			Total: deadline.Sub(got.CreatedAt), Queue: deadline.Sub(got.CreatedAt),
		})
		if got.ID == "started" {
			want.Queue = noon.Add(2 * time.Second).Sub(got.CreatedAt)
		}
		require.Equal(t, []inference.Record{want}, rows)
	}
	jobs, err = s.ExpireJobs(t.Context(), deadline.Add(time.Hour), time.Minute, 10)
	require.NoError(t, err)
	require.Empty(t, jobs)
	require.Equal(t, store.JobQueued, job(t, s, "endless").Status)
}

func purge(t *testing.T, open Open) {
	s := migrated(t, open)
	createJobs(t, s, newJob("gone"), newJob("kept"), newJob("unfinished"), newJob("later"))
	end, kept, later := newEnd("gone"), newEnd("kept"), newEnd("later")
	kept.ExpiresAt = time.Time{}
	later.ExpiresAt = later.ExpiresAt.Add(time.Microsecond)
	_, err := s.FinishJobs(t.Context(), []store.JobEnd{end, kept, later})
	require.NoError(t, err)

	purged, err := s.PurgeJobs(t.Context(), end.ExpiresAt.Add(-time.Microsecond), 10)
	require.NoError(t, err)
	require.Zero(t, purged)
	purged, err = s.PurgeJobs(t.Context(), end.ExpiresAt, 10)
	require.NoError(t, err)
	require.Equal(t, 1, purged)
	_, err = s.Job(t.Context(), "acme", "gone")
	require.ErrorIs(t, err, store.ErrNotFound)
	list, err := s.ListJobs(t.Context(), store.JobFilter{Tenant: "acme"})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"kept", "unfinished", "later"}, jobIDs(list))
	_, ids := usage(t, s, store.UsageFilter{JobID: "gone"})
	require.Equal(t, []string{"gone"}, ids, "the ledger keeps its row")
}

// endsRace has two results, a cancellation and the deadline come for the same jobs at one
// time, from processes of their own, in batches that overlap in different orders.
func endsRace(t *testing.T, open Open) {
	const jobs = 40
	s := migrated(t, open)
	var ids []string
	for i := range jobs {
		ids = append(ids, fmt.Sprintf("job-%02d", i))
		createJobs(t, s, newJob(ids[i]))
	}
	news := make(chan string, 5*jobs)
	start := make(chan struct{})
	group, ctx := errgroup.WithContext(t.Context())
	compete := func(end func(s store.Store) ([]string, error)) {
		mine := open()
		require.NoError(t, mine.Ping(ctx))
		group.Go(func() error {
			<-start
			ended, err := end(mine)
			for _, id := range ended {
				news <- id
			}
			return err
		})
	}
	backwards := slices.Clone(ids)
	slices.Reverse(backwards)
	for _, order := range [][]string{ids, backwards} {
		compete(func(s store.Store) ([]string, error) {
			var ends []store.JobEnd
			for _, id := range order {
				ends = append(ends, newEnd(id))
			}
			news, err := s.FinishJobs(ctx, ends)
			return jobIDs(news), err
		})
	}
	compete(func(s store.Store) (ended []string, err error) {
		for _, id := range ids {
			_, won, err := s.CancelJob(ctx, "acme", id, noon, noon, cancelRow)
			if err != nil {
				return nil, err
			}
			if won {
				ended = append(ended, id)
			}
		}
		return ended, nil
	})
	compete(func(s store.Store) ([]string, error) {
		expired, err := s.ExpireJobs(ctx, noon.Add(time.Hour), 0, jobs/2)
		return jobIDs(expired), err
	})
	close(start)
	require.NoError(t, group.Wait())
	close(news)
	var won []string
	for id := range news {
		won = append(won, id)
	}
	require.ElementsMatch(t, ids, won, "each job ended once")
	rows, _ := usage(t, s, store.UsageFilter{})
	require.Len(t, rows, jobs, "with one row")
	outcomes := map[inference.Outcome]store.JobStatus{
		inference.OutcomeFailed: store.JobCompleted, inference.OutcomeCancelled: store.JobCancelled, inference.OutcomeExpired: store.JobExpired,
	}
	for _, row := range rows {
		require.Equal(t, outcomes[row.Outcome], job(t, s, row.JobID).Status, "the winner's row")
	}
}
