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

func atOnce(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
	return answer(`{"done":true}`)
}

func TestAStoredJobEndsAsAResult(t *testing.T) {
	t.Parallel()
	for _, lane := range lanes[1:] {
		t.Run(string(lane), func(t *testing.T) {
			t.Parallel()
			goOn := make(chan struct{})
			d := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
				<-goOn
				return answer(`{"done":true}`)
			}).desk()
			d.hear()
			j := newStored(lane)
			seq := d.store(j)[0]
			w, _ := d.start("worker01")
			require.Eventually(t, func() bool { return d.script.count() == 1 }, soon, time.Millisecond)
			<-time.After(3 * firstBeat) // an ingress would have been told that it is held
			require.EqualValues(t, 1, w.pools[0].inFlight.Load())
			close(goOn)
			got := next(t, d.results)
			require.Equal(t, j.ID, got.JobID())
			require.Equal(t, lane, got.Lane)
			require.Equal(t, j.Tenant, got.Tenant)
			require.True(t, j.CreatedAt.Equal(got.CreatedAt))
			require.WithinRange(t, got.Taken, j.CreatedAt.Add(-time.Second), time.Now())
			require.False(t, got.Lost)
			require.Nil(t, got.End.Err)
			require.JSONEq(t, `{"done":true}`, string(got.End.Body))
			require.Equal(t, 1, got.End.Attempts)
			require.EqualValues(t, 3, got.End.Usage.CompletionTokens)
			d.gone(seq)
			d.unsaid()
			require.Empty(t, d.results)
			asked := 0
			if lane == inference.LaneBackground {
				asked = 1
				c := next(t, d.claimed)
				require.Equal(t, queue.Claim{JobID: j.ID, Run: queue.Run{Delivery: 1}, Worker: "worker01", Place: queue.Place{Candidates: j.Candidates, Seq: seq}}, c)
			}
			require.Empty(t, d.claimed, "asked about %d times", asked)
		})
	}
}

func TestWhetherToAskAboutAStoredJob(t *testing.T) {
	t.Parallel()
	require.True(t, asks(inference.LaneBackground, false, 0))
	require.False(t, asks(inference.LaneBatch, false, 10*time.Second))
	require.True(t, asks(inference.LaneBatch, true, 0))
	require.True(t, asks(inference.LaneBatch, false, 10*time.Second+1))
}

// A line that was published again is asked about, and goes on counting.
func TestALineThatWasPublishedAgainIsAskedAbout(t *testing.T) {
	t.Parallel()
	d := setup(t, atOnce).desk()
	d.attempts = 3
	d.hear(queue.VerdictWait)
	j := newStored(inference.LaneBatch)
	j.Epoch = inference.EpochStride
	d.store(j)
	d.start("worker01")
	require.Equal(t, queue.Run{Epoch: j.Epoch, Delivery: 1}, next(t, d.claimed).Run)
	require.Equal(t, queue.Run{Epoch: j.Epoch, Delivery: 2}, next(t, d.claimed).Run, "it was to wait")
	require.Equal(t, 4, next(t, d.results).End.Attempts)
	require.Equal(t, 1, d.script.count())
}

func TestAStoredJobThatIsNotWantedIsDropped(t *testing.T) {
	t.Parallel()
	d := setup(t, atOnce).desk()
	d.hear(queue.VerdictDrop)
	seq := d.store(newStored(inference.LaneBackground))[0]
	d.start("worker01")
	next(t, d.claimed)
	d.gone(seq)
	require.Zero(t, d.script.count())
	require.Empty(t, d.results)
}

// Nobody hears: what is handed out for the first time runs, what comes again waits first.
func TestAStoredJobThatNobodyJudges(t *testing.T) {
	t.Parallel()
	d := setup(t, atOnce).desk()
	w, _ := d.start("worker01")
	first := newStored(inference.LaneBackground)
	d.store(first)
	require.Equal(t, first.ID, next(t, d.results).JobID())
	again := newStored(inference.LaneBackground)
	d.store(again)
	next(t, d.results)
	require.Zero(t, w.absent.count(again.ID))
}

func TestAStoredJobThatComesAgainWaitsForAWordAFewTimes(t *testing.T) {
	t.Parallel()
	d := setup(t, atOnce).desk()
	require.NoError(t, d.conn.EnsureLane(t.Context(), testName, inference.LaneBatch, 16))
	got := make(chan *queue.Delivery, 1)
	p, err := d.conn.NewPuller(testName, inference.LaneBatch, 1, func(d *queue.Delivery) { got <- d }, nil)
	require.NoError(t, err)
	j := newStored(inference.LaneBatch)
	d.store(j)
	dead := next(t, got)
	p.Stop()
	dead.Nak(0)
	d.start("worker01")
	r := next(t, d.results)
	require.Equal(t, 1+maxAbsences, r.End.Run.Delivery)
	require.Equal(t, 1, d.script.count())
}

func TestOneSlotServesTheLanesInOrder(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	d := setup(t, func(ctx context.Context, _ int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		select {
		case <-goOn:
		case <-ctx.Done():
		}
		return answer(`{}`)
	}).desk()
	d.hear()
	w, _ := d.start("worker01", slots(1))
	d.store(model(newStored(inference.LaneBatch), "first"))
	require.Eventually(t, func() bool { return d.script.count() == 1 }, soon, time.Millisecond)
	d.store(model(newStored(inference.LaneBatch), "batch"))
	waits(t, w, batch, 1)
	d.store(model(newStored(inference.LaneBackground), "background"))
	waits(t, w, background, 1)
	d.publish(model(newJob(false), "interactive"))
	waits(t, w, interactive, 1)
	for range 4 {
		goOn <- struct{}{}
	}
	d.takeAll(3)
	d.settleAll(1)
	require.Equal(t, []string{"first", "interactive", "background", "batch"}, d.script.models())
}

// One slot, and interactive jobs that never end: the others have their share.
func TestOneSlotIsShared(t *testing.T) {
	t.Parallel()
	d := setup(t, atOnce).desk()
	d.hear()
	d.start("worker01", slots(1), func(o *Options) {
		o.Members[0].BackgroundShare, o.Members[0].BatchShare, o.DrainTimeout = 0.2, 0.1, 10*time.Millisecond
	})
	stop := make(chan struct{})
	var feeding sync.WaitGroup
	feeding.Go(func() {
		for {
			select {
			case e := <-d.ends:
				d.settle(e)
				d.publish(newJob(false))
			case <-stop:
				return
			}
		}
	})
	for range 20 {
		d.publish(newJob(false))
	}
	for range 10 {
		d.store(newStored(inference.LaneBackground), newStored(inference.LaneBatch))
	}
	d.takeAll(20)
	close(stop)
	feeding.Wait()
	d.settleAll(20)
	require.Greater(t, d.script.count(), 60, "interactive jobs had the most of it")
}

func TestNeverMoreCallsThanSlots(t *testing.T) {
	t.Parallel()
	var m meter
	d := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		m.enter()
		defer m.leave()
		<-time.After(2 * time.Millisecond)
		return answer(`{}`)
	}).desk()
	d.hear()
	w, _ := d.start("worker01", slots(3))
	for range 60 {
		d.store(newStored(inference.LaneBackground), newStored(inference.LaneBatch))
		d.publish(newJob(false))
	}
	d.settleAll(60)
	d.takeAll(120)
	require.EqualValues(t, 3, m.most.Load(), "all of them are used, and no more")
	for _, l := range w.pools[0].lanes {
		require.Zero(t, l.held.Load())
	}
	require.Eventually(t, func() bool { return w.pools[0].lanes[1].settling.Load()+w.pools[0].lanes[2].settling.Load() == 0 }, soon, time.Millisecond)
}

// While stored jobs have all the slots that they may have, a call finds one free.
func TestACallFindsASlotAmongStoredJobs(t *testing.T) {
	t.Parallel()
	d := setup(t, func(ctx context.Context, _ int, c providers.Call, _ providers.Emit) (*providers.Response, error) {
		if c.Model == "long" {
			<-ctx.Done()
		}
		return answer(`{}`)
	}).desk()
	for range 20 {
		d.store(model(newStored(inference.LaneBatch), "long"))
	}
	w, _ := d.start("worker01", slots(4), func(o *Options) { o.DrainTimeout = 10 * time.Millisecond })
	require.Eventually(t, func() bool { return d.script.count() == 3 }, soon, time.Millisecond)
	waits(t, w, batch, 1)
	d.publish(newJob(false))
	d.settle(next(t, d.ends))
	require.Equal(t, 4, d.script.count(), "and no stored job took its place")
}

func TestARunOfAStoredJobIsBounded(t *testing.T) {
	t.Parallel()
	d := setup(t, hang).desk()
	j := newStored(inference.LaneBatch)
	j.RunFor = 50 * time.Millisecond
	d.store(j)
	w, _ := d.start("worker01", tripping(1, time.Hour))
	e := next(t, d.results).End
	require.Equal(t, inference.CodeUpstreamTimeout, e.Err.Code)
	require.True(t, e.Err.Retryable)
	require.Equal(t, inference.ReasonTimeout, e.Err.Reason())
	require.Less(t, e.Elapsed, soon/2)
	require.Len(t, e.Tries, 1)
	require.Equal(t, inference.CodeUpstreamTimeout, e.Tries[0].Code)
	require.Equal(t, inference.BreakerOpen, w.pools[0].breakers.states(time.Now())[0].Breaker, "it speaks against the provider")
}

func TestALostBodyIsToldOf(t *testing.T) {
	t.Parallel()
	d := setup(t, atOnce).desk()
	j := newStored(inference.LaneBatch)
	j.Body = []byte(`{"x":"` + strings.Repeat("y", 1<<19) + `"}`)
	seq := d.store(j)[0]
	require.NoError(t, d.conn.DropStoredBody(t.Context(), j.ID))
	d.start("worker01")
	r := next(t, d.results)
	require.True(t, r.Lost)
	require.NotNil(t, r.End.Err)
	d.gone(seq)
	require.Zero(t, d.script.count())
}

func TestALargeAnswerOfAStoredJob(t *testing.T) {
	t.Parallel()
	d := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{"large":"` + strings.Repeat("x", 1<<20) + `"}`)
	}).desk()
	d.store(newStored(inference.LaneBatch))
	d.start("worker01")
	r := next(t, d.results)
	body, err := d.conn.FetchBlob(t.Context(), r.End.BodyRef, 2<<20)
	require.NoError(t, err)
	require.Len(t, body, 1<<20+len(`{"large":""}`))
}

func TestAStoredJobFailsOverInItsLane(t *testing.T) {
	t.Parallel()
	d := setup(t, down).desk()
	_, err := d.conn.EnsureStored(t.Context(), "b")
	require.NoError(t, err)
	require.NoError(t, d.conn.EnsureLane(t.Context(), "b", inference.LaneBackground, 10))
	came := make(chan *queue.Delivery, 10)
	p, err := d.conn.NewPuller("b", inference.LaneBackground, 10, func(d *queue.Delivery) { came <- d }, nil)
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	d.announced(elsewhere("b"))
	w, _ := d.start("worker01", once)
	hears(t, w, "b")
	j := newStored(inference.LaneBackground)
	j.Candidates = at(testName, "b")
	seq := d.store(j)[0]
	r := next(t, d.results)
	require.Nil(t, r.End)
	require.Equal(t, inference.LaneBackground, r.Lane)
	require.Equal(t, j.ID, r.Passed.JobID)
	require.Equal(t, 1, r.Passed.Attempts)
	require.Len(t, r.Passed.Tries, 1)
	require.Equal(t, at("b"), r.Passed.Next.Candidates)
	got := next(t, came)
	require.Equal(t, got.Seq, r.Passed.Next.Seq)
	job, _, err := got.Job()
	require.NoError(t, err)
	require.Equal(t, 1, job.Epoch)
	require.Equal(t, inference.LaneBackground, job.Lane)
	d.gone(seq)
	d.unsaid()
}

func TestACancelledStoredJobSaysNothing(t *testing.T) {
	t.Parallel()
	d := setup(t, hang).desk()
	d.hear()
	running, waiting := newStored(inference.LaneBackground), newStored(inference.LaneBatch)
	w, _ := d.start("worker01", slots(1))
	seqs := d.store(running)
	require.Eventually(t, func() bool { return d.script.count() == 1 }, soon, time.Millisecond)
	seqs = append(seqs, d.store(waiting)...)
	waits(t, w, batch, 1)
	require.NoError(t, d.conn.CancelStored(t.Context(), testName, []queue.StoredPlace{{JobID: waiting.ID}}))
	waits(t, w, batch, 0)
	d.gone(seqs[1])
	require.NoError(t, d.conn.CancelStored(t.Context(), testName, []queue.StoredPlace{{JobID: running.ID}}))
	d.gone(seqs[0])
	require.Eventually(t, func() bool { return w.hold.count() == 0 }, soon, time.Millisecond)
	require.Equal(t, 1, d.script.count())
	require.Empty(t, d.results)
	d.unsaid()
}

func TestAStoppingWorkerFinishesWhatRunsAndGivesBackWhatWaits(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	d := setup(t, func(_ context.Context, _ int, c providers.Call, _ providers.Emit) (*providers.Response, error) {
		if c.Model == "running" {
			<-goOn
		}
		return answer(`{}`)
	}).desk()
	w, stop := d.start("worker01", slots(1))
	running, waiting := model(newStored(inference.LaneBatch), "running"), newStored(inference.LaneBatch)
	d.store(running)
	require.Eventually(t, func() bool { return d.script.count() == 1 }, soon, time.Millisecond)
	d.store(waiting)
	waits(t, w, batch, 1)
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	d.start("worker02")
	require.Equal(t, waiting.ID, next(t, d.results).JobID(), "while the first worker still runs the other one")
	close(goOn)
	require.Equal(t, running.ID, next(t, d.results).JobID())
	next(t, stopped)
	require.Equal(t, 2, d.script.count())
}

// A worker that falls silent loses its job to another. There is one result for it.
func TestAStoredJobOfALostWorkerRunsAgain(t *testing.T) {
	t.Parallel()
	r := setup(t, func(ctx context.Context, n int, c providers.Call, e providers.Emit) (*providers.Response, error) {
		if n == 1 {
			return hang(ctx, n, c, e)
		}
		return answer(`{}`)
	})
	r.ackWait = 2 * time.Second
	d := r.desk()
	d.hear()
	j := newStored(inference.LaneBatch)
	seq := d.store(j)[0]
	var conn *queue.Conn
	d.start("worker01", func(o *Options) { conn, o.DrainTimeout = o.Conn, 10*time.Millisecond })
	require.Eventually(t, func() bool { return d.script.count() == 1 }, soon, time.Millisecond)
	require.Empty(t, d.claimed)
	conn.Close() // as if it were killed
	d.start("worker02")
	c := next(t, d.claimed)
	require.Equal(t, "worker02", c.Worker)
	require.Equal(t, 2, c.Run.Delivery)
	got := next(t, d.results)
	require.Equal(t, queue.Run{Delivery: 2}, got.End.Run)
	d.gone(seq)
	require.Empty(t, d.results)
	require.Equal(t, 2, d.script.count())
}

func TestAResultThatCannotBeKeptWaits(t *testing.T) {
	t.Parallel()
	r, js := listening(t, atOnce)
	d := &desk{rig: r, claimed: make(chan queue.Claim, 1000), results: make(chan *queue.Result, 1000)}
	w, _ := d.start("worker01", slots(2))
	require.Eventually(t, func() bool { return w.pools[0].lanes[2].taker() != nil }, soon, time.Millisecond)
	require.NoError(t, js.DeleteStream(t.Context(), "SLUICE_RESULTS"))
	jobs := make([]*inference.Job, 20)
	for i := range jobs {
		jobs[i] = newStored(inference.LaneBatch)
	}
	seqs := d.store(jobs...)
	lane := w.pools[0].lanes[2]
	require.Eventually(t, func() bool { return lane.settling.Load() >= 3 }, soon, time.Millisecond)
	<-time.After(2 * reportPause)
	require.LessOrEqual(t, d.script.count(), 4, "a worker that cannot hand over its ends makes no more")
	d.stays(seqs[0])
	require.NoError(t, d.conn.EnsureShared(t.Context()))
	d.take(inference.LaneBatch)
	d.takeAll(len(jobs))
	require.Equal(t, len(jobs), d.script.count(), "one call for each")
	for _, seq := range seqs {
		d.gone(seq)
	}
}

func TestAStoppingWorkerGivesBackWhatItCannotHandOver(t *testing.T) {
	t.Parallel()
	r, js := listening(t, atOnce)
	d := &desk{rig: r, claimed: make(chan queue.Claim, 1000), results: make(chan *queue.Result, 1000)}
	w, stop := d.start("worker01")
	require.Eventually(t, func() bool { return w.pools[0].lanes[2].taker() != nil }, soon, time.Millisecond)
	require.NoError(t, js.DeleteStream(t.Context(), "SLUICE_RESULTS"))
	seq := d.store(newStored(inference.LaneBatch))[0]
	require.Eventually(t, func() bool { return w.pools[0].lanes[2].settling.Load() == 1 }, soon, time.Millisecond)
	began := time.Now()
	stop()
	require.Less(t, time.Since(began), soon/2)
	d.stays(seq)
	require.NoError(t, d.conn.EnsureShared(t.Context()))
	d.take(inference.LaneBatch)
	d.hear()
	d.start("worker02")
	require.Equal(t, 2, next(t, d.claimed).Run.Delivery)
	next(t, d.results)
	d.gone(seq)
}

// A stored job waits for a provider that cannot be called, without a slot, as others do.
func TestAStoredJobIsHeld(t *testing.T) {
	t.Parallel()
	d := setup(t, func(_ context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		if n == 1 {
			return nil, &inference.Error{Code: inference.CodeUpstreamRateLimited, Status: 429, Retryable: true, RetryAfter: 1500 * time.Millisecond}
		}
		return answer(`{}`)
	}).desk()
	reg := prometheus.NewRegistry()
	w, _ := d.start("worker01", slots(1), func(o *Options) { o.Metrics = NewMetrics(reg) })
	d.store(newStored(inference.LaneBatch))
	require.Eventually(t, func() bool { return w.pools[0].lanes[2].held.Load() == 1 }, soon, time.Millisecond)
	require.Zero(t, w.pools[0].presence().Held, "it is none of the interactive ones, for which more are asked for")
	require.InDelta(t, 1, storedJobs(t, reg, "batch", "held"), 0)
	d.publish(model(newJob(false), "other"))
	d.settle(next(t, d.ends))
	require.Empty(t, d.results, "the slot was free")
	require.Nil(t, next(t, d.results).End.Err)
}

// storedJobs reads the gauge of that name.
func storedJobs(t *testing.T, reg *prometheus.Registry, lane, state string) float64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if l := m.GetLabel(); f.GetName() == "sluice_worker_stored_jobs" && l[0].GetValue() == lane && l[2].GetValue() == state {
				return m.GetGauge().GetValue()
			}
		}
	}
	require.FailNow(t, "no such gauge")
	return 0
}

// On a slow link a large answer takes longer than a small one.
func TestTimeForAResultGrowsWithItsAnswer(t *testing.T) {
	t.Parallel()
	o := storeOwned{&pool{worker: &Worker{opt: Options{AckWait: 4 * time.Second}}}}
	for size, want := range map[int]time.Duration{
		0: reportTimeout, 1: reportTimeout + time.Second, 1 << 20: reportTimeout + time.Second, 1<<20 + 1: reportTimeout + 2*time.Second,
		64 << 20: reportTimeout + 64*time.Second,
	} {
		require.Equal(t, want, o.reportTime(&queue.Result{End: &queue.End{Body: make([]byte, size)}}), "%d bytes", size)
	}
	require.Equal(t, 2*time.Second, o.reportTime(&queue.Result{Passed: &queue.Passed{}}), "less than the queue waits for a word of progress")
}
