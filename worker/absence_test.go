package worker

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// slowJudge is an ingress that does not judge claims before its gate is open.
type slowJudge struct {
	*rig
	gate chan struct{}
}

func (s slowJudge) Claimed(c queue.Claim) queue.Judgement {
	v := s.rig.Claimed(c)
	<-s.gate
	return v
}

// slow puts a slow ingress in the place of the rig's.
func (r *rig) slow() (open func()) {
	r.t.Helper()
	r.dispatch.Close()
	s := slowJudge{rig: r, gate: make(chan struct{})}
	d, err := r.conn.NewDispatcher(testIngress, s)
	require.NoError(r.t, err)
	r.dispatch = d
	r.t.Cleanup(d.Close)
	open = sync.OnceFunc(func() { close(s.gate) })
	r.t.Cleanup(open) // also where the test fails: the dispatcher waits for it
	return open
}

func (t *tally) of(jobID string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.counts[0][jobID], t.counts[1][jobID])
}

// An ingress takes what is listed for the living run. A job that is only asked about
// must not be: the real run would be fenced, and the provider called a second time.
func TestAJobIsListedOnlyOnceItMayRun(t *testing.T) {
	t.Parallel()
	listed := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(listed) })
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		<-listed
		return answer(`{}`)
	})
	r.verdicts = []queue.Verdict{queue.VerdictWait}
	j := newJob(false)
	r.redeliver(j, 1)
	open := r.slow()
	r.start("worker01")
	t.Cleanup(goOn) // also where the test fails: a stop waits for the call
	beats := make(chan struct{}, 100)
	l, err := r.conn.Watch(func(queue.Presence) { beats <- struct{}{} })
	require.NoError(t, err)
	defer l.Close()
	require.Equal(t, 2, next(t, r.claims).Run.Delivery)
	next(t, beats) // the first may have been on its way before the claim
	next(t, beats)
	open()
	var runs []queue.Run
	for range 2 {
		h := next(t, r.held)
		require.Equal(t, j.ID, h.Jobs[0].JobID)
		runs = append(runs, h.Jobs[0].Run)
	}
	goOn()
	e := next(t, r.ends)
	require.Equal(t, []queue.Run{e.Run, e.Run}, runs)
	require.Greater(t, e.Run.Delivery, 2)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count())
}

// A short gap of the ingress does no harm to a job, however often it was delivered
// before; nor does an ingress that is there and slow.
func TestAShortAbsenceOfTheIngressDoesNotEndAJob(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	j := newJob(false)
	r.redeliver(j, 2*maxAbsences)
	r.dispatch.Close()
	w, _ := r.start("worker01")
	require.Eventually(t, func() bool { return w.absent.of(j.ID) == 2 }, soon, time.Millisecond)
	open := r.slow()
	require.Eventually(t, func() bool { return w.absent.of(j.ID) == 0 }, soon, time.Millisecond, "it is there")
	open()
	e := next(t, r.ends)
	require.Equal(t, j.ID, e.JobID)
	require.Nil(t, e.Err)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count())
}

// Only an ingress that is missed two times in a row is thought gone.
func TestAnIngressThatIsMissedNowAndThenGetsItsAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.consumeRecords()
	j := newJob(false)
	r.dispatch.Close()
	require.NoError(t, r.dispatch.Publish(j, ""))
	r.start("worker01")
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	const missed = settleAsk*settleRepeat + settleRepeat/2
	<-time.After(missed)
	open := r.slow()
	open()
	next(t, r.asked)
	r.dispatch.Close()
	<-time.After(missed)
	for len(r.ends) > 0 {
		<-r.ends
	}
	open = r.slow()
	open()
	e := next(t, r.ends)
	require.Equal(t, j.ID, e.JobID)
	r.settle(e)
	r.empty()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Empty(t, r.records, "it was not thought gone")
}

// withoutBlobs runs a pool that has no object store yet: whatever travels as a blob is
// out of its reach.
func (r *rig) withoutBlobs() *Worker {
	r.t.Helper()
	w := New(Options{
		ID: "worker01", Conn: r.connect(), AckWait: soon, DrainTimeout: soon, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(),
		Members: []Member{{Name: testName, Provider: r.script, Slots: 4, Concurrency: 16, MaxQueued: 100, MaxBody: 1 << 20}},
	})
	var err error
	w.answer, err = w.conn.NewAnswerer(w.opt.ID, []string{testName}, w.hold)
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(r.t.Context())
	require.NoError(r.t, w.pools[0].ensure(ctx, ctx))
	r.t.Cleanup(func() {
		w.pools[0].stop()
		cancel()
		w.pools[0].jobs.Wait()
		w.answer.Close()
	})
	return w
}

func (r *rig) publishLarge(j *inference.Job, size int) {
	r.t.Helper()
	j.Body = []byte(`{"x":"` + strings.Repeat("y", size) + `"}`)
	ref, err := r.dispatch.StoreBody(r.t.Context(), j)
	require.NoError(r.t, err)
	require.NotEmpty(r.t, ref)
	require.NoError(r.t, r.dispatch.Publish(j, ref))
	next(r.t, r.published)
}

func TestAJobWhoseBodyIsOutOfReachGoesBack(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	w := r.withoutBlobs()
	j := newJob(false)
	r.publishLarge(j, 1<<19)
	require.Eventually(t, func() bool { return w.unread.of(j.ID) == 1 }, soon, time.Millisecond)
	require.NoError(t, w.conn.EnsureShared(t.Context()))
	require.Equal(t, 2, next(t, r.claims).Run.Delivery)
	e := next(t, r.ends)
	require.Nil(t, e.Err)
	require.Zero(t, w.unread.of(j.ID), "forgotten")
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count())
}

func TestAJobWhoseBodyStaysOutOfReachEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		left time.Duration
		runs int
	}{
		"after a few tries":    {soon, bodyTries},
		"before its deadline":  {bodyPause, 1},
		"after what time lets": {2*bodyPause - time.Second, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, hang)
			r.withoutBlobs()
			j := newJob(false)
			j.Deadline = time.Now().Add(c.left)
			r.publishLarge(j, 1<<19)
			e := next(t, r.ends)
			require.Equal(t, inference.CodeQueueUnavailable, e.Err.Code)
			require.True(t, e.Err.Retryable)
			require.Equal(t, c.runs, e.Run.Delivery)
			r.settle(e)
			r.empty()
			require.Zero(t, r.script.count())
		})
	}
}

func TestABodyThatIsTooLargeForTheWorkerIsToldOf(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	r.start("worker01")
	r.publishLarge(newJob(false), 2<<20)
	e := next(t, r.ends)
	require.Equal(t, inference.CodeRequestTooLarge, e.Err.Code)
	require.False(t, e.Err.Retryable)
	require.Contains(t, e.Err.Message, "1048576")
	r.settle(e)
	r.empty()
	require.Zero(t, r.script.count())
}
