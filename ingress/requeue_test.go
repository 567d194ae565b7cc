package ingress

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/store"
)

// bury keeps the job in the script's hands among the dead letters, and returns its letter.
func (r *jobRig) bury(k *taken) adminapi.DeadLetter {
	r.t.Helper()
	require.NoError(r.t, k.d.Bury(r.t.Context(), "acme", "header Sluice-New: unknown value"))
	var list adminapi.DeadLetterList
	r.operate(http.MethodGet, adminapi.DeadLettersPath+"?limit=1", "", &list)
	require.Len(r.t, list.DeadLetters, 1)
	require.Equal(r.t, k.job.ID, list.DeadLetters[0].JobID)
	return list.DeadLetters[0]
}

func (r *jobRig) noLetters() {
	r.t.Helper()
	counts, err := r.conn.CountLetters(r.t.Context())
	require.NoError(r.t, err)
	require.Empty(r.t, counts)
}

func requeuePath(l adminapi.DeadLetter) string {
	return adminapi.DeadLettersPath + "/" + l.ID + adminapi.RequeuePath
}

func TestADeadInteractiveJobBecomesABackgroundJobOnce(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	l := r.bury(k)
	require.Equal(t, []string{"job", "acme", "interactive", "team", "key", "m"}, []string{l.Kind, l.Provider, l.Lane, l.Tenant, l.KeyID, l.Model})
	require.EqualValues(t, len(streamRequest), l.Bytes)
	require.Empty(t, l.Unread)
	require.Empty(t, l.Body)
	var shown adminapi.DeadLetter
	r.operate(http.MethodGet, adminapi.DeadLettersPath+"/"+l.ID, "", &shown)
	require.Equal(t, l, shown)
	r.operate(http.MethodGet, adminapi.DeadLettersPath+"/"+l.ID+"?body=true", "", &shown)
	require.Equal(t, streamRequest, string(shown.Body))
	c.cancel() // its client is gone

	answers := make([]adminapi.LetterRequeued, 8)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			letter, err := r.conn.DeadLetter(t.Context(), 1)
			if err == nil { // somebody was faster
				answers[i], _ = r.ingress.requeue(t.Context(), letter)
			}
		})
	}
	all.Wait()
	r.noLetters()
	require.Equal(t, http.StatusNotFound, r.operate(http.MethodPost, requeuePath(l), "", nil).Code)
	id := ""
	for _, a := range answers {
		if a.JobID != "" {
			if id == "" {
				id = a.JobID
			}
			require.Equal(t, adminapi.LetterRequeued{ID: l.ID, JobID: id, As: "job"}, a)
		}
	}
	again := r.take()
	require.Equal(t, id, store.JobPrefix+again.job.ID)
	require.Equal(t, inference.LaneBackground, again.job.Lane)
	require.False(t, again.job.Stream)
	require.NotContains(t, string(again.job.Body), `"stream":true`)
	again.done(`{"late":true}`)
	done := r.show(id, "?wait=20s")
	require.Equal(t, "completed", done.Status)
	jobs, err := r.db.ListJobs(t.Context(), store.JobFilter{Tenant: "team"})
	require.NoError(t, err)
	require.Len(t, jobs, 1, "one job of one letter")
	require.Equal(t, "key", jobs[0].KeyID)
}

func TestADeadStoredJobRunsAgainUnderANewEpoch(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	id := r.later(plainRequest)
	k := r.take()
	l := r.bury(k)
	require.Equal(t, "background", l.Lane)
	var done adminapi.LetterRequeued
	r.operate(http.MethodPost, requeuePath(l), "", &done)
	require.Equal(t, adminapi.LetterRequeued{ID: l.ID, JobID: id, As: "job"}, done)
	r.noLetters()
	again := r.take()
	require.Equal(t, k.job.ID, again.job.ID)
	require.Equal(t, inference.EpochStride, again.job.Epoch)
	again.done(`{}`)
	require.Equal(t, "completed", r.show(id, "?wait=20s").Status)
	rows, err := r.db.Usage(t.Context(), store.UsageFilter{})
	require.NoError(t, err)
	require.Len(t, rows, 1)
}

func TestADeadLetterOfAJobThatHasEnded(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	id := r.later(plainRequest)
	l := r.bury(r.take())
	_, err := r.ingress.endJob(t.Context(), r.stored(id))
	require.NoError(t, err)
	w := r.operate(http.MethodPost, requeuePath(l), "", nil)
	require.Equal(t, http.StatusConflict, w.Code, w.Body)
	require.Contains(t, refusal(t, w).Error.Message, "cancelled")
	var many adminapi.LettersDone
	r.operate(http.MethodPost, adminapi.DeadLettersPath+"/requeue", `{"provider":"acme","limit":10}`, &many)
	require.Empty(t, many.Requeued)
	require.Len(t, many.Failed, 1)
	require.Equal(t, string(inference.CodeConflict), many.Failed[0].Code)
	require.Equal(t, http.StatusNoContent, r.operate(http.MethodDelete, adminapi.DeadLettersPath+"/"+l.ID, "", nil).Code)
	r.noLetters()
	require.Equal(t, http.StatusNotFound, r.operate(http.MethodDelete, adminapi.DeadLettersPath+"/"+l.ID, "", nil).Code)
}

// A job that expired among the dead letters has its end; its request can still be answered,
// as another job.
func TestADeadJobThatExpiredRunsAsAnother(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	id := r.later(plainRequest)
	l := r.bury(r.take())
	expired, err := r.db.ExpireJobs(t.Context(), time.Now().Add(2*time.Hour), time.Hour, 10)
	require.NoError(t, err)
	require.Len(t, expired, 1)
	var done adminapi.LetterRequeued
	r.operate(http.MethodPost, requeuePath(l), "", &done)
	require.NotEqual(t, id, done.JobID)
	require.Nil(t, r.stored(done.JobID).Limits)
	k := r.take()
	require.Equal(t, plainRequest, string(k.job.Body))
	k.done(`{}`)
	require.Equal(t, "completed", r.show(done.JobID, "?wait=20s").Status)
}

// What a token lets its caller take holds for the other job, too.
func TestADeadJobThatRunsAsAnotherKeepsItsLimits(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	own := &limits.Limits{RequestsPerMinute: 3}
	now := time.Now()
	require.NoError(t, r.db.CreateJob(t.Context(), store.Job{
		ID: queue.NewJobID("ingressa", now), RequestID: "request", Tenant: "team", KeyID: "user", Limits: own, Kind: inference.KindChat, Model: "m", Lane: inference.LaneBackground,
		Body: []byte(plainRequest), Candidates: []inference.Candidate{{Provider: "acme", Model: "m"}}, CreatedAt: now, Deadline: now.Add(time.Hour), Status: store.JobQueued,
	}))
	l := r.bury(r.take())
	expired, err := r.db.ExpireJobs(t.Context(), now.Add(2*time.Hour), time.Hour, 10)
	require.NoError(t, err)
	require.Len(t, expired, 1)
	var done adminapi.LetterRequeued
	r.operate(http.MethodPost, requeuePath(l), "", &done)
	require.Equal(t, own, r.stored(done.JobID).Limits)
}

func TestManyDeadLetters(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	var ids []string
	for range 3 {
		ids = append(ids, r.later(plainRequest))
		require.NoError(t, r.take().d.Bury(t.Context(), "acme", "odd"))
	}
	var list adminapi.DeadLetterList
	r.operate(http.MethodGet, adminapi.DeadLettersPath+"?limit=2", "", &list)
	require.Len(t, list.DeadLetters, 2)
	before := list.Before
	list = adminapi.DeadLetterList{}
	r.operate(http.MethodGet, adminapi.DeadLettersPath+"?limit=2&before="+before, "", &list)
	require.Len(t, list.DeadLetters, 1)
	require.Empty(t, list.Before)
	var done adminapi.LettersDone
	r.operate(http.MethodPost, adminapi.DeadLettersPath+"/drop", `{"limit":10,"reason":"even"}`, &done)
	require.Equal(t, adminapi.LettersDone{}, done)
	r.operate(http.MethodPost, adminapi.DeadLettersPath+"/requeue", `{"limit":2}`, &done)
	require.True(t, done.More)
	require.Equal(t, []string{ids[1], ids[2]}, []string{done.Requeued[0].JobID, done.Requeued[1].JobID}, "the newest ones, in their order")
	for range 2 {
		r.take().done(`{}`)
	}
	done = adminapi.LettersDone{}
	r.operate(http.MethodPost, adminapi.DeadLettersPath+"/drop", `{"limit":10}`, &done)
	require.Equal(t, adminapi.LettersDone{Dropped: 1}, done)
	r.noLetters()
	_, metrics := r.get("/metrics").whole()
	require.Contains(t, metrics, `sluice_dead_letters{provider="acme"} 0`)
}

// A letter that stays does not stand before those behind it.
func TestLettersThatStayArePassedBy(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	good := r.later(plainRequest)
	require.NoError(t, r.take().d.Bury(t.Context(), "acme", "odd"))
	id := r.later(plainRequest)
	newest := r.bury(r.take())
	_, err := r.ingress.endJob(t.Context(), r.stored(id))
	require.NoError(t, err)
	many := adminapi.DeadLettersPath + "/requeue"
	var stayed, done adminapi.LettersDone
	r.operate(http.MethodPost, many, `{"limit":1}`, &stayed)
	require.Len(t, stayed.Failed, 1)
	require.Equal(t, newest.ID, stayed.Failed[0].ID)
	require.True(t, stayed.More)
	r.operate(http.MethodPost, many, `{"limit":1,"before":"`+stayed.Next+`"}`, &done)
	require.Equal(t, good, done.Requeued[0].JobID)
	require.Empty(t, done.Next)
	require.False(t, done.More)
	r.take().done(`{}`)
	w := r.operate(http.MethodPost, many, `{"limit":1,"before":"4"}`, nil)
	require.Equal(t, "before", refusal(t, w).Error.Param)
}
