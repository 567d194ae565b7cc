package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/store"
)

// lease is how long these tests lease.
const lease = 10 * time.Second

func leaseAt(t *testing.T, s store.Store, now time.Time, limit int) []store.Job {
	t.Helper()
	jobs, err := s.LeaseJobs(t.Context(), now, lease, limit)
	require.NoError(t, err)
	return jobs
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
		require.Equal(t, stride, got[0].Epoch, "it may have been published")
	},

	"an epoch rises behind a lease that ran out, and not behind none": func(t *testing.T, open Open) {
		s := migrated(t, open)
		passed := jobAt("passed", "acme", noon)
		passed.Epoch, passed.LeasedUntil = 2*stride-1, noon
		createJobs(t, s, jobAt("job-1", "acme", noon))
		for i := range 3 {
			got := leaseAt(t, s, noon.Add(time.Duration(i)*lease), 10)
			require.Len(t, got, 1)
			require.Equal(t, i*stride, got[0].Epoch)
		}
		createJobs(t, s, passed)
		got := leaseAt(t, s, noon.Add(2*lease), 10)
		require.Len(t, got, 1)
		require.Equal(t, 2*stride, got[0].Epoch, "to the next family, whatever workers made of the last one")
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

	"a started job without a message shares the rounds": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i, id := range []string{"old-0", "old-1", "new-2", "new-3"} {
			createJobs(t, s, jobAt(id, "acme", noon.Add(time.Duration(i)*time.Second)))
		}
		createJobs(t, s, jobAt("theirs", "other", noon.Add(time.Minute)))
		start(t, s, "old-1", 0, noon)
		dispatch(t, s, "new-2", 0, noon)
		later := noon.Add(time.Hour)
		require.Equal(t, []string{"old-0", "theirs", "old-1"}, jobIDs(leaseAt(t, s, later, 3)))
		require.Equal(t, []string{"new-3"}, jobIDs(leaseAt(t, s, later, 3)))
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
		for i, size := range []int{store.MaxLeaseBytes + 1, store.MaxLeaseBytes / 2, store.MaxLeaseBytes / 2, 1} {
			j := jobAt(fmt.Sprintf("job-%d", i), "acme", noon)
			j.Body = make([]byte, size)
			createJobs(t, s, j)
		}
		require.Equal(t, []string{"job-0"}, jobIDs(leaseAt(t, s, noon, 10)), "one at least")
		require.Equal(t, []string{"job-1", "job-2"}, jobIDs(leaseAt(t, s, noon, 10)))
		require.Equal(t, []string{"job-3"}, jobIDs(leaseAt(t, s, noon, 10)))
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
				leased, err := mine.LeaseJobs(ctx, noon.Add(time.Hour), lease, 20)
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
