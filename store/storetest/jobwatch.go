package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/store"
)

var watchTests = map[string]func(*testing.T, Open){
	"which of these jobs have ended": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon), jobAt("job-2", "acme", noon), jobAt("job-3", "blue", noon))
		_, _, err := s.CancelJob(t.Context(), "acme", "job-2", noon, noon.Add(time.Hour), inference.Record{})
		require.NoError(t, err)
		ended, err := s.EndedJobs(t.Context(), []string{"job-3", "nobody's", "job-2", "job-1"})
		require.NoError(t, err)
		require.Equal(t, []string{"nobody's", "job-2"}, ended)
		none, err := s.EndedJobs(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, none)
		_, err = s.EndedJobs(t.Context(), make([]string, store.MaxPage+1))
		require.ErrorIs(t, err, store.ErrInvalid)
	},

	"which epochs unfinished jobs have": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon), jobAt("job-2", "acme", noon), jobAt("job-3", "blue", noon))
		_, _, err := s.CancelJob(t.Context(), "acme", "job-2", noon, noon.Add(time.Hour), inference.Record{})
		require.NoError(t, err)
		require.Equal(t, []string{"job-3"}, requeue(t, s, store.Requeue{ID: "job-3"}, store.Requeue{ID: "job-2"}))
		epochs, err := s.JobEpochs(t.Context(), []string{"job-3", "nobody's", "job-2", "job-1"})
		require.NoError(t, err)
		require.Equal(t, map[string]int{"job-1": 0, "job-3": inference.EpochStride}, epochs)
		none, err := s.JobEpochs(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, none)
		_, err = s.JobEpochs(t.Context(), make([]string, store.MaxPage+1))
		require.ErrorIs(t, err, store.ErrInvalid)
	},

	"how these jobs stand": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, jobAt("job-1", "acme", noon), jobAt("job-2", "blue", noon), jobAt("job-3", "acme", noon))
		dispatch(t, s, "job-2", 0, noon)
		_, _, err := s.CancelJob(t.Context(), "blue", "job-2", noon, noon.Add(time.Hour), inference.Record{ErrorCode: inference.CodeCancelled})
		require.NoError(t, err)
		jobs, err := s.JobsByID(t.Context(), []string{"job-2", "nobody's", "job-1"})
		require.NoError(t, err)
		require.Len(t, jobs, 2)
		require.Equal(t, "job-1", jobs[0].ID)
		require.Equal(t, store.JobQueued, jobs[0].Status)
		require.Nil(t, jobs[0].Body)
		require.Equal(t, store.JobCancelled, jobs[1].Status)
		require.Equal(t, inference.CodeCancelled, jobs[1].ErrorCode)
		require.Equal(t, noon, jobs[1].DispatchedAt, "an end leaves it as it was")
		none, err := s.JobsByID(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, none)
		_, err = s.JobsByID(t.Context(), make([]string, store.MaxPage+1))
		require.ErrorIs(t, err, store.ErrInvalid)
	},

	"what a job asks for": func(t *testing.T, open Open) {
		s := migrated(t, open)
		job := jobAt("job-1", "acme", noon)
		createJobs(t, s, job)
		body, err := s.JobBody(t.Context(), "job-1")
		require.NoError(t, err)
		require.Equal(t, job.Body, body)
		_, err = s.JobBody(t.Context(), "nobody's")
		require.ErrorIs(t, err, store.ErrNotFound)
	},

	"how many unfinished jobs a tenant has": func(t *testing.T, open Open) {
		s := migrated(t, open)
		for i := range 5 {
			createJobs(t, s, jobAt(fmt.Sprintf("job-%d", i), "acme", noon))
		}
		createJobs(t, s, jobAt("other", "blue", noon))
		_, _, err := s.CancelJob(t.Context(), "acme", "job-2", noon, noon.Add(time.Hour), inference.Record{})
		require.NoError(t, err)
		for most, want := range map[int]int{100: 4, 4: 4, 3: 3} {
			n, err := s.UnfinishedJobs(t.Context(), "acme", most)
			require.NoError(t, err)
			require.Equal(t, want, n)
		}
		n, err := s.UnfinishedJobs(t.Context(), "nobody", 100)
		require.NoError(t, err)
		require.Zero(t, n)
	},

	"since when the oldest job waits for its message": func(t *testing.T, open Open) {
		s := migrated(t, open)
		oldest, err := s.OldestWaiting(t.Context())
		require.NoError(t, err)
		require.True(t, oldest.IsZero())
		createJobs(t, s, jobAt("old", "acme", noon), jobAt("young", "blue", noon.Add(time.Minute)))
		oldest, err = s.OldestWaiting(t.Context())
		require.NoError(t, err)
		require.Equal(t, noon, oldest)
		_, err = s.MarkDispatched(t.Context(), []store.Dispatch{{ID: "old", Provider: "openai", Seq: 7}}, noon)
		require.NoError(t, err)
		oldest, err = s.OldestWaiting(t.Context())
		require.NoError(t, err)
		require.Equal(t, noon.Add(time.Minute), oldest)
	},
}
