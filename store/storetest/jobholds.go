package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/inference"
	"sluice/store"
)

func heldBy(t *testing.T, s store.Store) []string {
	t.Helper()
	ids, err := s.HeldBy(t.Context())
	require.NoError(t, err)
	return ids
}

func adopt(t *testing.T, s store.Store, from, by string, limit int) []store.Job {
	t.Helper()
	jobs, err := s.AdoptJobs(t.Context(), from, by, limit)
	require.NoError(t, err)
	return jobs
}

// dispatchFor marks a job as dispatched by an ingress.
func dispatchFor(t *testing.T, s store.Store, ingress, id string, epoch int) {
	t.Helper()
	require.Empty(t, mark(t, s, noon, store.Dispatch{ID: id, Epoch: epoch, Provider: "openai", Seq: 7, HeldBy: ingress}))
}

var holdTests = map[string]func(*testing.T, Open){
	"who holds for a job with a message, until it ends or has none": func(t *testing.T, open Open) {
		s := migrated(t, open)
		require.Empty(t, heldBy(t, s))
		createJobs(t, s, jobAt("a", "acme", noon), jobAt("b", "acme", noon), jobAt("c", "blue", noon), jobAt("d", "blue", noon), jobAt("waits", "acme", noon))
		for id, ingress := range map[string]string{"a": "two\x00", "b": "one", "c": "two", "d": ""} {
			dispatchFor(t, s, ingress, id, 0)
		}
		require.Equal(t, []string{"one", "two"}, heldBy(t, s), "of one job nobody said")
		move(t, s, "b", 1, noon.Add(time.Second))
		require.Equal(t, []string{"one", "two"}, heldBy(t, s), "a worker passed it on")
		requeue(t, s, store.Requeue{ID: "b", Epoch: 1})
		require.Equal(t, []string{"two"}, heldBy(t, s))
		move(t, s, "b", stride, noon)
		require.Equal(t, []string{"two"}, heldBy(t, s), "another message, of which nobody spoke yet")
		dispatchFor(t, s, "three", "b", stride)
		require.Equal(t, []string{"three", "two"}, heldBy(t, s))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("b"), newEnd("a")})
		require.NoError(t, err)
		require.Equal(t, []string{"two"}, heldBy(t, s))
		_, _, err = s.CancelJob(t.Context(), "blue", "c", noon, noon.Add(time.Hour), inference.Record{})
		require.NoError(t, err)
		require.Empty(t, heldBy(t, s))
		require.Empty(t, adopt(t, s, "two", "four", 10))
	},

	"who passed a job on before its publisher spoke leaves the publisher to hold": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon))
		leaseAt(t, s, noon, 10)
		move(t, s, "job-1", 1, noon)
		require.Empty(t, heldBy(t, s))
		dispatchFor(t, s, "one", "job-1", 0)
		require.Equal(t, []string{"one"}, heldBy(t, s))
	},

	"another ingress takes jobs over, a page at a time": func(t *testing.T, open Open) {
		s := migrated(t, open)
		const line = "line"
		createLines(t, s, "batch_1", jobAt(line, "acme", noon))
		createJobs(t, s, jobAt("a", "acme", noon), jobAt("b", "acme", noon), jobAt("c", "blue", noon), jobAt("ended", "blue", noon), jobAt("theirs", "blue", noon))
		for _, id := range []string{"c", "b", "a", "ended", line} {
			dispatchFor(t, s, "gone", id, 0)
		}
		dispatchFor(t, s, "there", "theirs", 0)
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("ended")})
		require.NoError(t, err)
		want := []store.Job{withoutBodies(job(t, s, "a")), withoutBodies(job(t, s, "b"))}

		require.Empty(t, adopt(t, s, "gone", "here", 0))
		require.Equal(t, want, adopt(t, s, "gone\x00", "here", 2))
		require.Equal(t, []string{"gone", "here", "there"}, heldBy(t, s))
		adopted, err := s.AdoptedJobs(t.Context(), "gone", []string{"a", "b", "c", line, "nobody's", "ended", "theirs"})
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b", "theirs"}, adopted, "the others are its own, or no more")
		require.Equal(t, []string{"c", line}, jobIDs(adopt(t, s, "gone", "here", 1<<30)))
		require.Empty(t, adopt(t, s, "gone", "here", 10))
		require.Equal(t, []string{"here", "there"}, heldBy(t, s))
		adopted, err = s.AdoptedJobs(t.Context(), "here", []string{"a", line})
		require.NoError(t, err)
		require.Empty(t, adopted)
		_, err = s.AdoptedJobs(t.Context(), "here", make([]string, store.MaxPage+1))
		require.ErrorIs(t, err, store.ErrInvalid)
	},

	"of two who take jobs over at once each gets other ones": func(t *testing.T, open Open) {
		s := migrated(t, open)
		const jobs = 200
		var want []string
		var sent []store.Dispatch
		for i := range jobs {
			id := fmt.Sprintf("job-%03d", i)
			createJobs(t, s, jobAt(id, "acme", noon))
			want, sent = append(want, id), append(sent, store.Dispatch{ID: id, Provider: "openai", Seq: 7, HeldBy: "gone"})
		}
		require.Empty(t, mark(t, s, noon, sent...))
		group, ctx := errgroup.WithContext(t.Context())
		var mu sync.Mutex
		var got []string
		begin := make(chan struct{})
		for i := range 2 {
			mine := open()
			require.NoError(t, mine.Ping(t.Context()))
			group.Go(func() error {
				<-begin
				for {
					page, err := mine.AdoptJobs(ctx, "gone", fmt.Sprint("adopter", i), 7)
					if err != nil || len(page) == 0 {
						return err
					}
					mu.Lock()
					got = append(got, jobIDs(page)...)
					mu.Unlock()
				}
			})
		}
		close(begin)
		require.NoError(t, group.Wait())
		got = append(got, jobIDs(adopt(t, s, "gone", "adopter", jobs))...) // what one passed over that the other one had
		slices.Sort(got)
		require.Equal(t, want, got)
	},
}
