package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/webhook"
	"sluice/store"
)

// told returns what waits to be delivered, as type, object and address, ordered.
func told(t *testing.T, s store.Store) []string {
	t.Helper()
	var events []string
	for _, d := range leaseAll(t, s) {
		require.NotEmpty(t, d.Event.ID)
		require.Equal(t, "acme", d.Event.Tenant)
		require.WithinDuration(t, time.Now(), d.Event.CreatedAt, time.Minute)
		events = append(events, d.Event.Type+" "+d.Event.ObjectID+" "+d.URL)
	}
	slices.Sort(events)
	return events
}

// calling returns a job that calls an address of its own for those events.
func calling(id, events string) store.Job {
	j := newJob(id)
	j.Webhook = []byte(`{"url":"https://own.example/` + id + `"` + events + `}`)
	return j
}

var jobNewsTests = map[string]func(*testing.T, Open){
	"each end of a job is told to who wants it, once": func(t *testing.T, open Open) {
		s := migrated(t, open)
		all, _ := addWebhook(t, s, newWebhook())
		theirs := newWebhook()
		theirs.Tenant = "other"
		addWebhook(t, s, theirs)
		silent := newJob("silent")
		silent.Webhook = nil
		createJobs(t, s, silent, calling("all", ""), calling("none", `,"events":["job.failed"]`),
			calling("failed", `,"events":["job.cancelled","job.failed"]`), calling("cancelled", ""), calling("expired", `,"events":[]`))
		failed := newEnd("failed")
		failed.Status = store.JobFailed
		ends := []store.JobEnd{newEnd("silent"), newEnd("all"), newEnd("none"), failed}
		_, err := s.FinishJobs(t.Context(), ends)
		require.NoError(t, err)
		require.Equal(t, []string{
			"job.completed job_all " + all.URL, "job.completed job_all https://own.example/all",
			"job.completed job_none " + all.URL, "job.completed job_silent " + all.URL,
			"job.failed job_failed " + all.URL, "job.failed job_failed https://own.example/failed",
		}, told(t, s))

		for range 2 {
			_, _, err = s.CancelJob(t.Context(), "acme", "cancelled", noon, noon, cancelRow)
			require.NoError(t, err)
		}
		require.Equal(t, []string{
			"job.cancelled job_cancelled " + all.URL, "job.cancelled job_cancelled https://own.example/cancelled",
		}, told(t, s))

		for range 2 {
			_, err = s.ExpireJobs(t.Context(), noon.Add(time.Hour), time.Hour, 10)
			require.NoError(t, err)
		}
		require.Equal(t, []string{
			"job.failed job_expired " + all.URL, "job.failed job_expired https://own.example/expired",
		}, told(t, s))

		_, err = s.FinishJobs(t.Context(), append(ends, newEnd("cancelled"), newEnd("nobody's")))
		require.NoError(t, err)
		require.Empty(t, told(t, s), "a second end is no news")
	},

	"an endpoint that wants other events is not told": func(t *testing.T, open Open) {
		s := migrated(t, open)
		batches, _ := addWebhook(t, s, newWebhook(webhook.BatchCompleted, webhook.JobFailed))
		failed := newEnd("b")
		failed.Status = store.JobFailed
		createJobs(t, s, calling("a", `,"events":["batch.completed"]`), calling("b", `,"events":["batch.failed"]`))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("a"), failed})
		require.NoError(t, err)
		require.Equal(t, []string{"job.failed job_b " + batches.URL}, told(t, s))
	},

	"the end of a line is not told": func(t *testing.T, open Open) {
		s := migrated(t, open)
		addWebhook(t, s, newWebhook())
		createLines(t, s, "batch_1", calling("line", ""))
		_, err := s.FinishJobs(t.Context(), []store.JobEnd{lineEnd("line", 200)})
		require.NoError(t, err)
		require.Empty(t, told(t, s))
	},

	"a webhook that cannot be called does not keep a job from its end": func(t *testing.T, open Open) {
		s := migrated(t, open)
		createJobs(t, s, newJob("a"), newJob("b"))
		numbers(t, s, `UPDATE jobs SET webhook = $1 WHERE id = 'a' RETURNING 1`, []byte(`{"url":"ftp://x"}`))
		numbers(t, s, `UPDATE jobs SET webhook = $1 WHERE id = 'b' RETURNING 1`, []byte(`nothing`))
		news, err := s.FinishJobs(t.Context(), []store.JobEnd{newEnd("a"), newEnd("b")})
		require.NoError(t, err)
		require.Len(t, news, 2)
		require.Empty(t, told(t, s))
	},
}
