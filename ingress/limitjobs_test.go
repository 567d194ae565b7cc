package ingress

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/store"
)

// reserved waits until a limited job of the ingress has its message, and returns its id
// as the API has it.
func (r *jobRig) reserved(l *jobLimits) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.holds) == 1
	}, soon, time.Millisecond)
}

func TestAJobThatDoesNotFitIsPutOffAndDoneLater(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	c.window = 500 * time.Millisecond
	r := setupJobs(t, withLimits(c, limits.Limits{RequestsPerMinute: 1, Queued: 1}))
	r.work()
	ids := []string{r.later(capped), r.later(capped), r.later(capped)}
	for range ids {
		r.take().done(`{"id":"x"}`)
	}
	for _, id := range ids {
		require.Equal(t, "completed", r.show(id, "?wait=10s").Status)
	}
	c.quiet("settle 7", "settle 7", "settle 7")
	_, metrics := r.get("/metrics").whole()
	require.NotContains(t, metrics, "sluice_limit_put_off_total 0\n")
	require.NotContains(t, metrics, "sluice_limited_total{", "nobody was refused")
}

func TestAJobThatCanNeverFitFails(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{TokensPerMinute: 20}))
	r.work()
	id := r.later(capped)
	job := r.show(id, "?wait=10s")
	require.Equal(t, "failed", job.Status)
	require.Equal(t, string(inference.CodeRateLimited), job.Error.Code)
	require.Contains(t, job.Error.Message, "tokens_per_minute")
	resp := r.get("/v1/jobs/"+id+"/result").fails(http.StatusTooManyRequests, inference.CodeRateLimited)
	require.Equal(t, "false", resp.Header.Get("X-Should-Retry"))
	require.False(t, r.stored(id).ExpiresAt.IsZero(), "it goes in time")
	r.counts(`sluice_limited_total{limit="tokens_per_minute"} 1`)
	c.quiet()
}

func TestTheAcceptanceOfAJobTellsHowItsCallerStands(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{RequestsPerMinute: 9}))
	resp := r.chat(capped, "Prefer", "respond-async").response()
	require.Equal(t, http.StatusAccepted, resp.StatusCode)
	require.Equal(t, "9", resp.Header.Get("x-ratelimit-limit-requests"))
}

func TestOneTenantsLimitHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{RequestsPerMinute: 1}))
	for range 30 {
		r.later(capped)
	}
	r.work()
	require.Equal(t, "team", r.take().job.Tenant)
	resp, text := r.chat(`{"model":"m-1","messages":[{"role":"user","content":"hi"}]}`, "Authorization", "Bearer a-key-of-others", "Prefer", "respond-async").whole()
	require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
	require.Equal(t, "others", r.take().job.Tenant)
}

// The ends that a job can come to elsewhere, and those of its message: what was taken is
// counted once, here or there, also if whoever saw the end never said a word of it.
func TestWhatEndsElsewhereIsCountedOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		does func(r *elsewhere)
		want []string
	}{
		"its result": {func(r *elsewhere) {
			r.finish()
			r.finish() // it came twice
		}, []string{"settle 7"}},
		"its result, at one that is killed": {func(r *elsewhere) {
			news, err := r.db.FinishJobs(r.t.Context(), []store.JobEnd{r.end()})
			require.NoError(r.t, err)
			require.Len(r.t, news, 1)
		}, []string{"settle 7"}},
		"its result, which does not say": {func(r *elsewhere) { r.finish(ofUnknown) }, []string{"settle 31"}},
		"a result of which nothing is left": {func(r *elsewhere) {
			r.finish(func(e *store.JobEnd) { e.ExpiresAt = time.Now() })
			n, err := r.db.PurgeJobs(r.t.Context(), time.Now().Add(time.Second), 10)
			require.NoError(r.t, err)
			require.Equal(r.t, 1, n)
		}, []string{"settle 1"}},
		"its failure":                {func(r *elsewhere) { r.finish(failed(inference.CodeUpstreamError)) }, []string{"release"}},
		"its failure under way":      {func(r *elsewhere) { r.finish(failed(inference.CodeUpstreamCut)) }, []string{"settle 1"}},
		"another round":              {func(r *elsewhere) { r.requeue(false) }, []string{"release"}},
		"another round, and its end": {func(r *elsewhere) { r.requeue(false); r.finish() }, []string{"charge key:key 7", "release"}},
		"another message":            {func(r *elsewhere) { r.requeue(false); r.dispatchAgain(); r.finish() }, []string{"release"}},
		"a result before its place":  {func(r *elsewhere) { r.requeue(true); r.finish() }, []string{"settle 7"}},
		"a result before its place, at one that is killed": {func(r *elsewhere) {
			r.requeue(true)
			_, err := r.db.FinishJobs(r.t.Context(), []store.JobEnd{r.end()})
			require.NoError(r.t, err)
		}, []string{"settle 7"}},
		"one that does not say":           {func(r *elsewhere) { r.requeue(true); r.finish(ofUnknown) }, []string{"settle 31"}},
		"a failure before its place":      {func(r *elsewhere) { r.requeue(true); r.finish(failed(inference.CodeUpstreamCut)) }, []string{"settle 1"}},
		"one that took nothing":           {func(r *elsewhere) { r.requeue(true); r.finish(failed(inference.CodeUpstreamError)) }, []string{"release"}},
		"nothing":                         {func(*elsewhere) {}, nil},
		"a worker that passed it on":      {func(r *elsewhere) { r.pass() }, nil},
		"one whose old run is found lost": {func(r *elsewhere) { r.pass(); r.lost() }, nil},
		"an end, and then a lost run":     {func(r *elsewhere) { r.finish(); r.lost() }, []string{"settle 7"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setupElsewhere(t, counters)
			ours := r.ingress.stored.limits
			c.does(r)
			require.NoError(t, ours.sweepHolds(t.Context()))
			if c.want == nil {
				r.reserved(ours)
				require.Empty(t, counters.ended)
				return
			}
			counters.quiet(c.want...)
		})
	}
}

// What passed while the counters were out of reach is counted, wherever its result comes in.
func TestWhatPassedUncountedAndEndsElsewhereCounts(t *testing.T) {
	t.Parallel()
	counters := newCounters(t)
	counters.goAway(true)
	r := setupElsewhere(t, counters, func(l *LimitSettings) { l.FailOpen = true })
	r.finish()
	require.NoError(t, r.ingress.stored.limits.sweepHolds(t.Context()))
	counters.quiet("charge key:key 7")
}

// An ingress that had the job's last message but one may take the result of the last. A
// message of which the database never knew counts by itself.
func TestAnOldHoldDoesNotCountForALaterMessage(t *testing.T) {
	t.Parallel()
	for _, doubtful := range []bool{false, true} {
		t.Run(map[bool]string{false: "known", true: "doubtful"}[doubtful], func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setupElsewhere(t, counters)
			if doubtful {
				r.ingress.stored.limits.doubt(r.job.job.ID)
			}
			r.requeue(false)
			r.dispatchAgain()
			require.NoError(t, r.ingress.stored.finish(t.Context(), []store.JobEnd{r.end()}, nil))
			counters.quiet(map[bool]string{false: "release", true: "settle 1"}[doubtful])
		})
	}
}

// A message of which the database never knew may have been the one that led to the result.
func TestALateResultOfADoubtfulMessageCountsOnce(t *testing.T) {
	t.Parallel()
	counters := newCounters(t)
	r := setupElsewhere(t, counters)
	r.ingress.stored.limits.doubt(r.job.job.ID)
	r.requeue(false)
	require.NoError(t, r.ingress.stored.finish(t.Context(), []store.JobEnd{r.end()}, r.ran()))
	counters.quiet("release", "charge key:key 7")
}

// What ends a job without a run has taken nothing.
func TestAnEndWithoutARunIsNoneOfALateOne(t *testing.T) {
	t.Parallel()
	counters := newCounters(t)
	r := setupElsewhere(t, counters)
	r.requeue(false)
	require.NoError(t, r.other.finish(t.Context(), []store.JobEnd{r.end(failed(inference.CodeUpstreamCut))}, nil))
	require.Empty(t, counters.ended)
}

// elsewhere is a job whose message is this ingress's, and another ingress.
type elsewhere struct {
	*jobRig
	other *stored
	job   *taken
}

func setupElsewhere(t *testing.T, c *counters, change ...func(*LimitSettings)) *elsewhere {
	t.Helper()
	r := setupJobs(t, withLimits(c, limits.Limits{TokensPerMinute: 1000}, change...))
	r.work()
	return r.elsewhere(r.later(capped))
}

// elsewhere is the job once its message is noted, and an ingress beside the one that sent it.
func (r *jobRig) elsewhere(id string) *elsewhere {
	r.t.Helper()
	job := r.take()
	here := r.ingress.stored
	r.reserved(here.limits)
	require.Eventually(r.t, func() bool { return !r.stored(id).DispatchedAt.IsZero() }, soon, time.Millisecond)
	other := &stored{ // it has none of our holds
		rows: r.db, events: func() {}, metrics: here.metrics, usage: here.usage, price: here.price, log: here.log,
		limits: newJobLimits(r.ingress, func() {}), waiters: waiters{byID: make(map[string]map[chan struct{}]bool)},
	}
	return &elsewhere{r, other, job}
}

// end is the end of a job that took seven tokens.
func (r *elsewhere) end(change ...func(*store.JobEnd)) store.JobEnd {
	e := store.JobEnd{Status: store.JobCompleted, StartedAt: time.Now(), FinishedAt: time.Now(), Response: []byte(`{}`), Record: inference.Record{
		JobID: r.job.job.ID, Provider: "acme", Outcome: inference.OutcomeSucceeded, Status: 200, Attempts: 1,
		Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true},
	}}
	for _, f := range change {
		f(&e)
	}
	return e
}

// finish has the other ingress take the job's result.
func (r *elsewhere) finish(change ...func(*store.JobEnd)) {
	r.t.Helper()
	require.NoError(r.t, r.other.finish(r.t.Context(), []store.JobEnd{r.end(change...)}, r.ran()))
}

// ran is the run that the job's first message led to.
func (r *elsewhere) ran() map[string]int {
	return map[string]int{r.job.job.ID: r.job.job.Epoch}
}

// ofUnknown says nothing of what was used.
func ofUnknown(e *store.JobEnd) { e.Record.Usage = inference.Usage{} }

// failed is another end.
func failed(code inference.ErrorCode) func(*store.JobEnd) {
	return func(e *store.JobEnd) {
		ofUnknown(e)
		e.Status, e.Record.Outcome, e.Record.ErrorCode = store.JobFailed, inference.OutcomeFailed, code
	}
}

// requeue takes the job's message away; unsent, as if its place had never been noted.
func (r *elsewhere) requeue(unsent bool) {
	r.t.Helper()
	_, err := r.other.rows.Requeue(r.t.Context(), []store.Requeue{
		{ID: r.job.job.ID, Epoch: r.job.job.Epoch, Unsent: unsent, NotBefore: time.Now().Add(time.Hour)},
	})
	require.NoError(r.t, err)
}

// dispatchAgain gives the job the message that follows, from the other ingress.
func (r *elsewhere) dispatchAgain() {
	r.t.Helper()
	useless, err := r.other.rows.MarkDispatched(r.t.Context(), []store.Dispatch{
		{ID: r.job.job.ID, Epoch: store.NextEpoch(r.job.job.Epoch), Provider: "acme", Seq: 98},
	}, time.Now())
	require.NoError(r.t, err)
	require.Empty(r.t, useless)
}

func (r *elsewhere) pass() {
	r.t.Helper()
	require.NoError(r.t, r.other.rows.MoveJob(r.t.Context(), r.job.job.ID, r.job.job.Epoch+1, "acme", 99, 1, nil, time.Now()))
}

// lost has this ingress hear that the job's first run is gone.
func (r *elsewhere) lost() {
	r.t.Helper()
	require.NoError(r.t, r.ingress.stored.take(r.t.Context(), []*queue.Result{{
		Lane: r.job.job.Lane, Lost: true, End: &queue.End{JobID: r.job.job.ID, Run: r.job.run},
	}}))
}

// A job whose message is gone reserves anew for its next one.
func TestAnotherMessageReservesAnew(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{Concurrent: 1}))
	r.work()
	id := r.later(capped)
	r.take().result(func(res *queue.Result) { res.Lost = true })
	next := r.take()
	require.Equal(t, inference.EpochStride, next.job.Epoch)
	next.done(`{}`)
	require.Equal(t, "completed", r.show(id, "?wait=10s").Status)
	c.quiet("release", "settle 7")
}

// Jobs that wait for a place among the concurrent ones follow each other closely.
func TestJobsFollowEachOtherClosely(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{Concurrent: 1}))
	r.work()
	const jobs = 12
	for range jobs {
		r.later(capped)
	}
	begun := time.Now()
	for range jobs {
		r.take().done(`{}`)
		require.LessOrEqual(t, len(r.jobs), 1)
	}
	require.Less(t, time.Since(begun), jobs*dispatchEvery/2)
	require.Eventually(t, func() bool { return len(c.ended) == jobs }, soon, time.Millisecond)
}

func TestJobsWaitForCountersThatAreOutOfReach(t *testing.T) {
	t.Parallel()
	t.Run("fail_closed", func(t *testing.T) {
		t.Parallel()
		c := newCounters(t)
		c.goAway(true)
		r := setupJobs(t, withLimits(c, limits.Limits{Concurrent: 5}))
		r.work()
		r.later(capped)
		r.later(capped)
		require.Eventually(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.tried > 0 }, soon, time.Millisecond)
		require.Empty(t, r.jobs)
		c.goAway(false)
		r.take().done(`{}`)
		r.take().done(`{}`)
		c.quiet("settle 7", "settle 7")
	})
	t.Run("fail_open", func(t *testing.T) {
		t.Parallel()
		c := newCounters(t)
		c.goAway(true)
		r := setupJobs(t, withLimits(c, limits.Limits{Concurrent: 5}, func(l *LimitSettings) { l.FailOpen = true }))
		r.work()
		r.later(capped)
		r.take().done(`{}`)
		c.quiet("charge key:key 7")
	})
}

// A stored job names its key by the id: what that may take is read from the database, and
// again when it has changed.
func TestLimitsOfAJobsKeyAreRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		keys := &keyTable{err: errAway}
		k := &limitKeys{store: keys, byID: make(map[string]*limits.Limits)}
		of := func(id string) (*limits.Limits, error) {
			return k.of(t.Context(), []store.Key{{ID: "static", Limits: &limits.Limits{Queued: 1}}}, id)
		}
		own, err := of("static")
		require.NoError(t, err)
		require.EqualValues(t, 1, own.Queued)
		_, err = of("key")
		require.ErrorIs(t, err, errAway, "nobody knows")
		keys.set(nil)
		keys.put("secret", store.Key{ID: "key", Limits: &limits.Limits{Queued: 2}})
		own, err = of("key")
		require.NoError(t, err)
		require.EqualValues(t, 2, own.Queued)
		polls := keys.polls
		own, err = of("unknown")
		require.NoError(t, err)
		require.Nil(t, own)
		require.Equal(t, polls, keys.polls, "asked just now")
		time.Sleep(limitKeysFor + 1)
		keys.set(errAway)
		own, err = of("key")
		require.NoError(t, err)
		require.EqualValues(t, 2, own.Queued, "what is known is better than nothing")
		keys.set(nil)
		keys.put("secret", store.Key{ID: "key"})
		time.Sleep(limitKeysFor + 1)
		own, err = of("key")
		require.NoError(t, err)
		require.Nil(t, own, "it has none any more")
	})
}
