package ingress

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// fickle is a database that is away when it is told to be.
type fickle struct {
	store.Store
	away  atomic.Bool
	tried chan string
}

var errAway = errors.New("the database is away")

func (f *fickle) is(what string) error {
	if !f.away.Load() {
		return nil
	}
	select {
	case f.tried <- what:
	default:
	}
	return errAway
}

func (f *fickle) FinishJobs(ctx context.Context, ends []store.JobEnd) ([]store.Job, error) {
	if err := f.is("finish"); err != nil {
		return nil, err
	}
	return f.Store.FinishJobs(ctx, ends)
}

func (f *fickle) MarkDispatched(ctx context.Context, sent []store.Dispatch, at time.Time) ([]string, error) {
	if err := f.is("mark"); err != nil {
		return nil, err
	}
	return f.Store.MarkDispatched(ctx, sent, at)
}

func (f *fickle) ClaimJob(ctx context.Context, id string, epoch int, at time.Time) (store.Claimed, error) {
	if err := f.is("claim"); err != nil {
		return store.Claimed{}, err
	}
	return f.Store.ClaimJob(ctx, id, epoch, at)
}

func setupFickle(t *testing.T) (*jobRig, *fickle) {
	t.Helper()
	f := &fickle{tried: make(chan string, 100)}
	r := setupJobs(t, func(o *Options) {
		db, ok := o.Jobs.Store.(store.Store)
		require.True(t, ok)
		f.Store = db
		o.Jobs.Store = f
	})
	return r, f
}

// A result is kept for as long as the database is away, and so is the place of a message.
func TestResultsOutliveTheDatabase(t *testing.T) {
	t.Parallel()
	r, f := setupFickle(t)
	r.work()
	id := r.later(plainRequest)
	k := r.take()
	f.away.Store(true)
	_, err := r.answer.ClaimStored(t.Context(), k.job.Lane, queue.Claim{JobID: k.job.ID, Run: k.run, Worker: "worker01"})
	require.Error(t, err, "nobody can tell whether it is wanted")
	require.NotErrorIs(t, err, queue.ErrNoIngress)
	k.done(`{"id":"x"}`)
	for next(t, f.tried) != "finish" {
	}
	require.NotEqual(t, "completed", r.show(id, "").Status)
	f.away.Store(false)
	require.Equal(t, "completed", r.show(id, "?wait=20").Status)
	rows, err := r.db.Usage(t.Context(), store.UsageFilter{})
	require.NoError(t, err)
	require.Len(t, rows, 1)
}

func TestPlacesOfMessagesOutliveTheDatabase(t *testing.T) {
	t.Parallel()
	r, f := setupFickle(t)
	r.work()
	f.away.Store(true)
	id := r.later(plainRequest)
	k := r.take()
	for next(t, f.tried) != "mark" {
	}
	require.Zero(t, r.stored(id).Seq)
	f.away.Store(false)
	require.Eventually(t, func() bool { return r.stored(id).Seq > 0 }, soon, 5*time.Millisecond)
	require.Equal(t, "acme", r.stored(id).Provider)
	require.Equal(t, queue.VerdictRun, k.claim().Verdict)
}

func TestJobsAreAcceptedWithoutAQueue(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	r.ingress.conn.Close()
	id := r.later(plainRequest)
	require.Equal(t, "queued", r.show(id, "").Status)
	_, server := r.startIngress(withJobs(r.db)) // one that has a queue finds it
	r.server = server
	k := r.take()
	require.Equal(t, id, store.JobPrefix+k.job.ID)
	k.done(`{}`)
	require.Equal(t, "completed", r.show(id, "?wait=20").Status)
}

// A queue that is full is asked again after a pause, and the jobs wait where they are.
func TestFullQueueOfJobs(t *testing.T) {
	t.Parallel()
	r := &jobRig{setup(t), openJobs(t)}
	limits := testLimits()
	limits.StoredJobs = 1
	conn, err := queue.Connect(queue.Options{Name: t.Name(), Embedded: r.embedded, Limits: limits, Logger: discard()})
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	r.ingress, r.server = r.startIngress(withJobs(r.db), func(o *Options) {
		o.Conn.Close()
		o.Conn = conn
	})
	r.conn = conn
	first, second := r.later(plainRequest), r.later(plainRequest)
	refused := func() store.Job { return r.stored(second) }
	require.Eventually(t, func() bool { return !refused().NotBefore.IsZero() }, soon, time.Millisecond)
	require.Positive(t, r.stored(first).Seq)
	require.True(t, refused().DispatchedAt.IsZero())
	require.Zero(t, refused().Epoch, "what was never sent has no round behind it")
	closed, _ := r.ingress.stored.pauses.of("acme", time.Now())
	require.False(t, closed.IsZero())
	r.work()
	for range 2 {
		r.take().done(`{}`)
	}
	require.Equal(t, "completed", r.show(second, "?wait=20").Status)
}

func TestLargeJobsAndAnswers(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	long := strings.Repeat("x", 600<<10)
	id := r.later(`{"model":"m","messages":[{"role":"user","content":"` + long + `"}]}`)
	k := r.take()
	require.NotEmpty(t, k.ref)
	body, err := r.answer.Body(t.Context(), k.job, k.ref, 4<<20)
	require.NoError(t, err)
	require.Contains(t, string(body), long)
	answer := `{"text":"` + strings.Repeat("y", 2<<20) + `"}`
	var ref string
	k.result(func(res *queue.Result) {
		res.End.Body = []byte(answer)
		require.NoError(t, r.answer.StoreAnswer(t.Context(), res.End))
		ref = res.End.BodyRef
		require.NotEmpty(t, ref)
	})
	resp, text := r.get("/v1/jobs/" + id + "/result?wait=20").whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, answer, text)
	require.Eventually(t, func() bool {
		_, err := r.conn.FetchBlob(t.Context(), ref, 4<<20)
		return errors.Is(err, queue.ErrNoBlob)
	}, soon, 5*time.Millisecond, "the database has it now")
	require.NoError(t, r.ingress.stored.sweepBodies(t.Context()))
	_, err = r.conn.FetchBlob(t.Context(), k.ref, 4<<20)
	require.ErrorIs(t, err, queue.ErrNoBlob)
}

// What a worker could not do for want of the body, or was told to drop though nobody
// cancelled it, is dispatched again, and its message of before is of no use.
func TestJobsThatAreLostOnTheWay(t *testing.T) {
	t.Parallel()
	cases := map[string]func(*queue.Result){
		"the body was gone": func(res *queue.Result) {
			res.Lost, res.End.Err = true, inference.Errorf(inference.CodeInternal, "gone")
		},
		"the answer was gone": func(res *queue.Result) { res.End.BodyRef = "no-such-blob" },
		"its worker stopped":  func(res *queue.Result) { res.End.Err = answerLost("stopped") },
		"dropped":             func(res *queue.Result) { res.End.Err = errClientGone() },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setupJobs(t)
			r.work()
			id := r.later(plainRequest)
			first := r.take()
			require.Equal(t, queue.VerdictRun, first.claim().Verdict)
			first.result(change)
			second := r.take()
			require.Equal(t, []any{first.job.ID, inference.EpochStride, 1}, []any{second.job.ID, second.job.Epoch, second.job.Attempts})
			require.Equal(t, queue.VerdictDrop, first.claim().Verdict)
			require.Equal(t, queue.VerdictRun, second.claim().Verdict)
			second.done(`{}`)
			require.Equal(t, 2, r.show(id, "?wait=20").Attempts)
		})
	}
}

func TestJobThatAWorkerPassedOn(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	id := r.later(plainRequest)
	k := r.take()
	require.Equal(t, queue.VerdictRun, k.claim().Verdict)
	tries := []inference.Try{{Provider: "acme", Model: "m", Code: inference.CodeUpstreamError, Status: 500}}
	k.result(func(res *queue.Result) {
		res.End = nil
		res.Passed = &queue.Passed{
			JobID: k.job.ID, Run: k.run, Worker: "worker01", Attempts: 1, Tries: tries,
			Next: queue.Place{Candidates: []inference.Candidate{{Provider: "other", Model: "m"}}, Seq: 77},
		}
	})
	require.Eventually(t, func() bool { return r.stored(id).Provider == "other" }, soon, 5*time.Millisecond)
	job := r.stored(id)
	require.Equal(t, []any{uint64(77), 1, 1}, []any{job.Seq, job.Epoch, job.Attempts})
	require.Equal(t, tries, job.Tries)
	next := *k
	next.run.Epoch = 1
	j := next.claim()
	require.Equal(t, []any{queue.VerdictRun, 1}, []any{j.Verdict, j.Attempts})
	require.Equal(t, queue.VerdictDrop, k.claim().Verdict)
}

// A message that is gone is believed to be lost when it was missed twice.
func TestLostMessagesAreFound(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	id := r.later(plainRequest)
	k := r.take()
	require.Eventually(t, func() bool { return r.stored(id).Seq > 0 }, soon, time.Millisecond)
	d, now := r.ingress.stored, time.Now()
	later := func(after time.Duration) time.Time { return now.Add(unheardFor + after) }
	require.NoError(t, d.reconcileAt(t.Context(), later(time.Second)))
	require.Equal(t, later(time.Second).UnixMicro(), r.stored(id).DispatchedAt.UnixMicro(), "it is there")

	k.d.Ack() // and never a word about it
	require.Eventually(t, func() bool {
		queued, err := r.conn.StoredQueued(t.Context(), "acme", []queue.StoredPlace{{JobID: k.job.ID, Seq: r.stored(id).Seq}})
		return err == nil && !queued[0]
	}, soon, time.Millisecond)
	gone := unheardFor + 2*time.Second
	require.NoError(t, d.reconcileAt(t.Context(), later(gone)))
	require.NoError(t, d.reconcileAt(t.Context(), later(gone+missingFor-time.Second)))
	require.Zero(t, r.stored(id).Epoch, "its end may be on its way")
	require.NoError(t, d.reconcileAt(t.Context(), later(gone+missingFor)))
	again := r.take()
	require.Equal(t, []any{k.job.ID, inference.EpochStride}, []any{again.job.ID, again.job.Epoch})
	again.done(`{}`)
	require.Equal(t, "completed", r.show(id, "?wait=20").Status)
}

// A message of no use goes, and nobody is told to drop its job: a later one may stand for
// it, and run.
func TestAMessageOfNoUseGoesAlone(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	id := r.later(plainRequest)
	require.Eventually(t, func() bool { return r.stored(id).Seq > 0 }, soon, time.Millisecond)
	job := r.stored(id)
	sent := []store.Dispatch{{ID: job.ID, Provider: "acme", Seq: job.Seq}, {ID: "another", Provider: "acme", Seq: 99}}
	r.ingress.stored.removeUseless(t.Context(), sent, []string{job.ID})
	queued, err := r.conn.StoredQueued(t.Context(), "acme", []queue.StoredPlace{{JobID: job.ID, Seq: job.Seq}})
	require.NoError(t, err)
	require.Equal(t, []bool{false}, queued)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.NoError(t, r.conn.Flush(ctx))
	require.Empty(t, r.cancelled)
}

// When the server lost its files, all messages are lost at once, and nobody waits for them.
func TestMessagesOfAQueueMadeAnewAreLost(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	before, id := time.Now().Add(-time.Hour), queue.NewJobID("ingressa", time.Now())
	require.NoError(t, r.db.CreateJob(t.Context(), store.Job{
		ID: id, Tenant: "team", Kind: inference.KindChat, Lane: inference.LaneBackground, Model: "m", Body: []byte(plainRequest),
		Candidates: []inference.Candidate{{Provider: "acme", Model: "m"}}, CreatedAt: before, Deadline: time.Now().Add(time.Hour), LeasedUntil: time.Now().Add(time.Hour),
	}))
	_, err := r.db.MarkDispatched(t.Context(), []store.Dispatch{{ID: id, Provider: "acme", Seq: 1}}, before)
	require.NoError(t, err)
	require.NoError(t, r.ingress.stored.reconcileAt(t.Context(), time.Now()))
	r.work()
	again := r.take()
	require.Equal(t, []any{id, inference.EpochStride}, []any{again.job.ID, again.job.Epoch})
	again.done(`{}`)
	require.Equal(t, "completed", r.show(store.JobPrefix+id, "?wait=20").Status)
}

func TestNoMessageIsMissedWhileResultsWait(t *testing.T) {
	t.Parallel()
	m := missing{since: make(map[string]missed)}
	job, now := store.Job{ID: "a"}, time.Now()
	none := time.Time{}
	require.False(t, m.longEnough(job, now, none))
	require.False(t, m.longEnough(job, now.Add(missingFor-time.Second), none))
	require.False(t, m.longEnough(job, now.Add(missingFor), now.Add(-time.Second)), "a result of before waits")
	require.False(t, m.longEnough(job, now.Add(missingFor), now.Add(clocksApart)), "it may be of before")
	require.True(t, m.longEnough(job, now.Add(missingFor), now.Add(clocksApart+time.Second)), "those that wait came later")
	require.True(t, m.longEnough(job, now.Add(missingMost), now.Add(-time.Second)), "one that is never taken")
	job.Epoch++
	require.False(t, m.longEnough(job, now.Add(missingMost), none), "another message")
	m.forget(now.Add(missingMost + 2*missingFor))
	require.Empty(t, m.since)
}

func TestJobsExpireAndGo(t *testing.T) {
	t.Parallel()
	r := setupJobs(t, func(o *Options) { o.Jobs.Retention = time.Second })
	r.work()
	id := r.later(plainRequest, "X-Sluice-Timeout", "1s")
	k := r.take()
	r.get("/v1/jobs/"+id+"/result?wait=20").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	job := r.show(id, "")
	require.Equal(t, []string{"expired", "deadline_exceeded"}, []string{job.Status, job.Error.Code})
	reports, err := r.db.Deliveries(t.Context(), store.DeliveryFilter{Tenant: "team"})
	require.NoError(t, err)
	require.Empty(t, reports, "nobody listens")
	require.Eventually(t, func() bool {
		require.NoError(t, r.ingress.stored.purge(t.Context()))
		_, err := r.db.Job(t.Context(), "team", k.job.ID)
		return errors.Is(err, store.ErrNotFound)
	}, soon, 50*time.Millisecond)
}

func TestRoundsOfAJob(t *testing.T) {
	t.Parallel()
	upstream := func(code inference.ErrorCode, status int) *inference.Error {
		return &inference.Error{Code: code, Status: status, Retryable: true}
	}
	fault, away := upstream(inference.CodeUpstreamError, 500), upstream(inference.CodeUpstreamUnavailable, 0)
	const late = 40 * inference.EpochStride
	cases := []struct {
		name  string
		lane  inference.Lane
		epoch int
		err   *inference.Error
		pause time.Duration
	}{
		{"succeeded", inference.LaneBatch, 0, nil, 0},
		{"of no use to try again", inference.LaneBatch, 0, &inference.Error{Code: inference.CodeUpstreamError}, 0},
		{"our own deadline", inference.LaneBatch, 0, &inference.Error{Code: inference.CodeDeadlineExceeded, Retryable: true}, 0},
		{"the first fault", inference.LaneBatch, 3, fault, 30 * time.Second},
		{"of a job of its own", inference.LaneBackground, 0, fault, 30 * time.Second},
		{"the second fault", inference.LaneBatch, inference.EpochStride, fault, 2 * time.Minute},
		{"the last fault", inference.LaneBatch, 2 * inference.EpochStride, fault, 0},
		{"not to be reached", inference.LaneBackground, 2 * inference.EpochStride, away, 5 * time.Minute},
		{"not to be reached for long", inference.LaneBatch, late, away, 10 * time.Minute},
		{"a balancer without servers", inference.LaneBatch, late, upstream(inference.CodeUpstreamError, 503), 10 * time.Minute},
		{"no room", inference.LaneBatch, late, upstream(inference.CodeUpstreamRateLimited, 429), 10 * time.Minute},
		{"the provider says when", inference.LaneBatch, 0, &inference.Error{Code: inference.CodeUpstreamRateLimited, Retryable: true, RetryAfter: time.Minute}, time.Minute},
		{"in a year", inference.LaneBatch, 0, &inference.Error{Code: inference.CodeUpstreamRateLimited, Retryable: true, RetryAfter: 9000 * time.Hour}, longestPause},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			res := &queue.Result{Lane: c.lane, End: &queue.End{Run: queue.Run{Epoch: c.epoch}, Err: c.err}}
			require.Equal(t, c.pause > 0, anotherRound(res))
			if c.pause > 0 {
				require.Equal(t, c.pause, roundPause(res.End))
			}
		})
	}
}

func TestPausesGrow(t *testing.T) {
	t.Parallel()
	p, now := pauses{byProvider: make(map[string]providerPause)}, time.Now()
	until, ensured := p.of("acme", now)
	require.True(t, until.IsZero())
	require.False(t, ensured)
	p.ensured("acme")
	for _, seconds := range []float64{1, 2, 4, 8, 16, 30, 30} {
		until := p.begin("acme", now)
		require.InDelta(t, seconds, until.Sub(now).Seconds(), 0)
		closed, ensured := p.of("acme", until.Add(-1))
		require.Equal(t, until, closed)
		require.False(t, ensured)
		p.ensured("acme")
		closed, ensured = p.of("acme", until)
		require.True(t, closed.IsZero() && ensured)
		now = until
	}
	p.end("acme")
	require.Equal(t, pauseLeast, p.begin("acme", now).Sub(now))
}

// The clocks of workers are not believed beyond reason.
func TestTimesOfAnEnd(t *testing.T) {
	t.Parallel()
	d := &stored{opt: JobOptions{Retention: time.Hour}}
	created := time.Unix(1_700_000_000, 0).UTC()
	now := created.Add(time.Minute)
	end := func(lane inference.Lane, taken time.Time) store.JobEnd {
		return d.endOf(&queue.Result{Lane: lane, Taken: taken, CreatedAt: created, End: &queue.End{JobID: "a", Elapsed: 10 * time.Second}}, []byte("{}"), now)
	}
	e := end(inference.LaneBackground, created.Add(20*time.Second))
	require.Equal(t, []any{created.Add(20 * time.Second), created.Add(30 * time.Second), now.Add(time.Hour)}, []any{e.StartedAt, e.FinishedAt, e.ExpiresAt})
	require.Equal(t, []time.Duration{20 * time.Second, 30 * time.Second}, []time.Duration{e.Record.Queue, e.Record.Total})
	for _, taken := range []time.Time{created.Add(-time.Hour), created.Add(time.Hour), {}} {
		e = end(inference.LaneBatch, taken)
		require.Equal(t, []any{now.Add(-10 * time.Second), now, time.Minute}, []any{e.StartedAt, e.FinishedAt, e.Record.Total})
		require.True(t, e.ExpiresAt.IsZero(), "a line goes with its batch")
	}
}
