package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/store"
)

// How these tests lease.
const (
	stale = time.Minute
	lease = 10 * time.Second
)

func leaseAt(t *testing.T, s store.Store, now time.Time, limit int) []store.Job {
	t.Helper()
	jobs, err := s.LeaseUndispatched(t.Context(), now, stale, lease, limit)
	require.NoError(t, err)
	return jobs
}

func dispatch(t *testing.T, s store.Store, id string, epoch int, at time.Time) {
	t.Helper()
	require.NoError(t, s.MarkDispatched(t.Context(), id, epoch, "openai", 7, at))
}

var dispatchTests = map[string]func(*testing.T, Open){
	"a lease returns the job whole and keeps it from others until it runs out": func(t *testing.T, open Open) {
		s := migrated(t, open)
		want := jobAt("job-1", "acme", noon)
		createJobs(t, s, want)
		want.LeasedUntil = noon.Add(lease)
		require.Equal(t, []store.Job{want}, leaseAt(t, s, noon, 10))
		require.Empty(t, leaseAt(t, open(), noon, 10))
		require.Empty(t, leaseAt(t, s, noon.Add(lease-time.Microsecond), 10))
		require.Len(t, leaseAt(t, s, noon.Add(lease), 10), 1)
	},

	"whoever creates a job can keep it to itself": func(t *testing.T, open Open) {
		s := migrated(t, open)
		mine := jobAt("job-1", "acme", noon)
		mine.LeasedUntil = noon.Add(time.Second)
		createJobs(t, s, mine)
		require.Empty(t, leaseAt(t, s, noon, 10))
		got := leaseAt(t, s, noon.Add(time.Second), 10)
		require.Len(t, got, 1)
		require.Equal(t, inference.EpochStride, got[0].Epoch, "it may have been published")
	},

	"a job with a message is left alone until that is stale": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		leaseAt(t, s, noon, 10)
		dispatch(t, s, "job-1", 0, noon)
		got := job(t, s, "job-1")
		require.Equal(t, "openai", got.Provider)
		require.EqualValues(t, 7, got.Seq)
		require.Equal(t, noon, got.DispatchedAt)
		require.True(t, got.LeasedUntil.IsZero())
		require.Empty(t, leaseAt(t, s, noon.Add(stale-time.Microsecond), 10))

		again := leaseAt(t, s, noon.Add(stale), 10)
		got.Epoch, got.LeasedUntil = inference.EpochStride, noon.Add(stale+lease)
		require.Equal(t, []store.Job{got}, again, "a higher epoch, and where the message was")
		require.Empty(t, leaseAt(t, s, noon.Add(stale), 10))
		_, epoch, err := s.JobStatus(t.Context(), "job-1")
		require.NoError(t, err)
		require.Equal(t, inference.EpochStride, epoch, "which the worker learns")
	},

	"an epoch rises behind a lease that ran out, and not behind none": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		for i := range 3 {
			got := leaseAt(t, s, noon.Add(time.Duration(i)*lease), 10)
			require.Len(t, got, 1)
			require.Equal(t, i*inference.EpochStride, got[0].Epoch)
		}
	},

	"a message of an epoch that is over is of no use": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon), jobAt("ended", "acme", noon))
		leaseAt(t, s, noon, 10)
		leaseAt(t, s, noon.Add(lease), 10)
		require.ErrorIs(t, s.MarkDispatched(t.Context(), "job-1", 0, "slow", 1, noon), store.ErrConflict)
		require.True(t, job(t, s, "job-1").DispatchedAt.IsZero())
		dispatch(t, s, "job-1", inference.EpochStride, noon)

		_, _, err := s.CancelJob(t.Context(), "acme", "ended", noon, noon, inference.Record{})
		require.NoError(t, err)
		require.ErrorIs(t, s.MarkDispatched(t.Context(), "ended", inference.EpochStride, "p", 1, noon), store.ErrConflict)
		require.ErrorIs(t, s.MarkDispatched(t.Context(), "nobody's", 0, "p", 1, noon), store.ErrConflict)
	},

	"a job starts once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		dispatch(t, s, "job-1", 0, noon)
		require.NoError(t, s.MarkStarted(t.Context(), "job-1", 1, noon.Add(time.Second)), "passed on by a worker")
		require.NoError(t, s.MarkStarted(t.Context(), "job-1", 1, noon.Add(time.Minute)))
		got := job(t, s, "job-1")
		require.Equal(t, store.JobInProgress, got.Status)
		require.Equal(t, noon.Add(time.Second), got.StartedAt)
		require.Zero(t, got.Epoch)
		require.Empty(t, leaseAt(t, s, noon.Add(time.Hour), 10), "what has started is not published again")
	},

	"a worker may begin before the publisher says where the message is": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		leaseAt(t, s, noon, 10)
		require.NoError(t, s.MarkStarted(t.Context(), "job-1", 0, noon))
		dispatch(t, s, "job-1", 0, noon.Add(time.Second))
		got := job(t, s, "job-1")
		require.Equal(t, store.JobInProgress, got.Status)
		require.Equal(t, "openai", got.Provider)
	},

	"a start of an epoch that is over, or after the end, or of nothing changes nothing": func(t *testing.T, open Open) {
		s := migrated(t, open)
		fenced := jobAt("fenced", "acme", noon)
		fenced.Epoch = inference.EpochStride
		createJobs(t, s, fenced, jobAt("ended", "acme", noon))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("ended")})
		require.NoError(t, err)
		ended := job(t, s, "ended")
		for _, id := range []string{"fenced", "ended", "nobody's"} {
			require.NoError(t, s.MarkStarted(t.Context(), id, inference.EpochStride-1, noon))
		}
		require.Equal(t, fenced, job(t, s, "fenced"))
		require.Equal(t, ended, job(t, s, "ended"))
	},

	"a tenant with a long backlog does not keep another one waiting": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i := range 120 {
			createJobs(t, s, jobAt(fmt.Sprintf("big-%03d", i), "big", noon.Add(time.Duration(i)*time.Second)))
		}
		late := noon.Add(time.Hour)
		createJobs(t, s, jobAt("small-1", "small", late), jobAt("small-0", "small", late), jobAt("tiny", "tiny", late.Add(-1*time.Second)))
		require.Equal(t, []string{"big-000", "tiny", "small-0", "big-001", "small-1", "big-002"}, jobIDs(leaseAt(t, s, late, 6)))
		require.Equal(t, []string{"big-003", "big-004"}, jobIDs(leaseAt(t, s, late, 2)))
	},

	"new and stale jobs share the rounds": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i, id := range []string{"old-0", "old-1", "new-2", "new-3"} {
			createJobs(t, s, jobAt(id, "acme", noon.Add(time.Duration(i)*time.Second)))
		}
		createJobs(t, s, jobAt("theirs", "other", noon.Add(time.Minute)))
		dispatch(t, s, "old-1", 0, noon)
		dispatch(t, s, "old-0", 0, noon)
		later := noon.Add(time.Hour)
		require.Equal(t, []string{"old-0", "theirs", "old-1"}, jobIDs(leaseAt(t, s, later, 3)))
		require.Equal(t, []string{"new-2", "new-3"}, jobIDs(leaseAt(t, s, later, 3)))
	},

	"a lease has a bound": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i := range store.MaxJobs + 5 {
			createJobs(t, s, jobAt(fmt.Sprintf("job-%03d", i), "acme", noon))
		}
		require.Empty(t, leaseAt(t, s, noon, 0))
		require.Empty(t, leaseAt(t, s, noon, -1))
		require.Len(t, leaseAt(t, s, noon, 10*store.MaxJobs), store.MaxJobs)
		require.Len(t, leaseAt(t, s, noon, 10*store.MaxJobs), 5)
	},

	"a lease is bounded in bytes": func(t *testing.T, open Open) {
		s := migrated(t, open)
		most := store.MaxLeaseBytes / store.MaxInlineBytes
		for i := range most + 2 {
			j := jobAt(fmt.Sprintf("job-%03d", i), "acme", noon)
			j.Body = make([]byte, store.MaxInlineBytes)
			createJobs(t, s, j)
		}
		require.Len(t, jobIDs(leaseAt(t, s, noon, store.MaxJobs)), most)
		require.Len(t, jobIDs(leaseAt(t, s, noon, store.MaxJobs)), 2)
	},

	"leasers at one time never get the same job, and get all of them": leasersRace,
}

// leasersRace has several processes empty a backlog together. Each asks until everything
// is leased: one that finds the others' locks alone may come back with nothing.
func leasersRace(t *testing.T, open Open) {
	const jobs, leasers, tenants = 240, 4, 5
	s := migrated(t, open)
	for i := range jobs {
		createJobs(t, s, jobAt(fmt.Sprintf("job-%03d", i), fmt.Sprintf("tenant-%d", i%tenants), noon.Add(time.Duration(i)*time.Second)))
	}
	taken := make(chan string, leasers*jobs)
	group, ctx := errgroup.WithContext(t.Context())
	start := make(chan struct{})
	for range leasers {
		mine := open()
		require.NoError(t, mine.Ping(ctx))
		group.Go(func() error {
			<-start
			for len(taken) < jobs && ctx.Err() == nil {
				leased, err := mine.LeaseUndispatched(ctx, noon.Add(time.Hour), stale, lease, 20)
				if err != nil {
					return err
				}
				for _, j := range leased {
					taken <- j.ID
				}
			}
			return nil
		})
	}
	close(start)
	require.NoError(t, group.Wait())
	close(taken)
	seen := map[string]bool{}
	for id := range taken {
		require.False(t, seen[id], "%s was leased twice", id)
		seen[id] = true
	}
	require.Len(t, seen, jobs)
}
