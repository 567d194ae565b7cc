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
