package ingress

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
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

// handOut has a worker take so many of the lane's jobs and no more.
func (r *rig) handOut(lane inference.Lane, many int) {
	r.t.Helper()
	_, err := r.conn.EnsureStored(r.t.Context(), "acme")
	require.NoError(r.t, err)
	require.NoError(r.t, r.conn.EnsureLane(r.t.Context(), "acme", lane, many))
	p, err := r.conn.NewPuller("acme", lane, many, func(d *queue.Delivery) {
		if job, ref, err := d.Job(); err == nil {
			r.jobs <- &taken{r, d, job, ref, queue.Run{Epoch: job.Epoch, Delivery: d.Delivery}}
		}
	}, func() {})
	require.NoError(r.t, err)
	r.t.Cleanup(p.Stop)
}

func (r *rig) delete(id string) {
	r.t.Helper()
	resp, text := r.send(r.request(http.MethodDelete, r.server.URL+"/v1/jobs/"+id, "")).whole()
	require.Equal(r.t, http.StatusOK, resp.StatusCode, text)
}

// putOff waits until a limit has put a job off.
func (r *rig) putOff() {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		_, metrics := r.get("/metrics").whole()
		return !strings.Contains(metrics, "sluice_limit_put_off_total 0\n")
	}, soon, 10*time.Millisecond)
}

// settled waits for the ends of so many reservations and returns how they ended.
func (c *counters) settled(many int) (ends []string) {
	c.t.Helper()
	for range many {
		ends = append(ends, next(c.t, c.ended))
	}
	slices.Sort(ends)
	return ends
}

// Nobody is asked about a new line before it runs, so nothing marks its start.
func TestWhatACancelledBatchHadAtAWorkerCounts(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupBatches(t, withLimits(c, limits.Limits{RequestsPerMinute: 1}))
	r.handOut(inference.LaneBatch, 64)
	b := r.create(lines("a"), day)
	require.Equal(t, inference.LaneBatch, r.take().job.Lane)
	resp, _ := r.post("/v1/batches/"+b.ID+"/cancel", "").whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "settle 1", next(t, c.ended))
	r.await(b.ID, "cancelled")

	r.create(lines("b"), day) // the minute has no room for it
	r.putOff()
	require.Empty(t, r.jobs)
	c.quiet("settle 1")
}

// Of the lines of a batch that ends early those count that a worker was given.
func TestLinesThatNoWorkerHadAreGivenBack(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(r *batchRig, id string){
		"cancelled": func(r *batchRig, id string) { r.post("/v1/batches/"+id+"/cancel", "").whole() },
		"expired": func(r *batchRig, id string) {
			ended, err := r.db.EndLines(r.t.Context(), id, store.JobExpired, time.Now(), 10)
			require.NoError(r.t, err)
			require.Len(r.t, ended, 4)
			r.ingress.batches.engine.Wake()
			r.ingress.stored.recall(r.t.Context(), ended)
		},
		"expired, by one that is killed": func(r *batchRig, id string) {
			_, err := r.db.EndLines(r.t.Context(), id, store.JobExpired, time.Now(), 10)
			require.NoError(r.t, err)
			require.NoError(r.t, r.ingress.stored.limits.sweepHolds(r.t.Context()))
		},
		"purged": func(r *batchRig, _ string) {
			var done adminapi.PurgedQueue
			r.operate(http.MethodPost, adminapi.QueuesPath+"/acme/purge", `{"lane":"batch"}`, &done)
			require.Equal(r.t, 3, done.Ended)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setupBatches(t, withLimits(c, limits.Limits{TokensPerMinute: 1000}))
			r.handOut(inference.LaneBatch, 1)
			b := r.create(lines("a", "b", "c", "d"), day)
			r.take()
			(&jobRig{r.rig, r.db}).dispatched(4)
			end(r, b.ID)
			if name == "purged" {
				require.Equal(t, []string{"release", "release", "release"}, c.settled(3))
				return
			}
			require.Equal(t, []string{"release", "release", "release", "settle 1"}, c.settled(4))
			d, err := r.conn.Depths(t.Context(), "acme")
			require.NoError(t, err)
			require.Zero(t, d[2].Waiting, "nobody gets their messages any more")
		})
	}
}

// dispatched waits until so many jobs have messages of which the database knows.
func (r *jobRig) dispatched(many int) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		jobs, err := r.db.Dispatched(r.t.Context(), time.Now().Add(time.Hour), 100)
		require.NoError(r.t, err)
		return len(jobs) == many
	}, soon, time.Millisecond)
}

func TestACancelledJobThatNoWorkerHadGivesBack(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(r *jobRig){
		"without a worker yet": func(*jobRig) {},
		"behind another":       func(r *jobRig) { r.handOut(inference.LaneBackground, 1); r.later(capped); r.take() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCounters(t)
			r := setupJobs(t, withLimits(c, limits.Limits{TokensPerMinute: 1000}))
			prepare(r)
			id := r.later(capped)
			require.Eventually(t, func() bool { return !r.stored(id).DispatchedAt.IsZero() }, soon, time.Millisecond)
			r.delete(id)
			require.Equal(t, "release", next(t, c.ended))
		})
	}
}

// A worker that gets no answer to its question runs a job that is new, so that what it was
// given may have reached the provider, whatever becomes of it.
func TestAJobCutShortAtAWorkerCounts(t *testing.T) {
	t.Parallel()
	ends := map[string]func(r *jobRig, id string){
		"cancelled": (*jobRig).deleteJob,
		"expired":   func(r *jobRig, id string) { require.Equal(r.t, "expired", r.show(id, "?wait=10s").Status) },
	}
	for name, cut := range ends {
		for _, asks := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", which asked", false: ""}[asks], func(t *testing.T) {
				t.Parallel()
				c := newCounters(t)
				r := setupJobs(t, withLimits(c, limits.Limits{RequestsPerMinute: 2}), func(o *Options) {
					if name == "expired" {
						o.Jobs.Deadline = time.Second
					}
				})
				r.work()
				id := r.later(capped)
				job := r.take()
				if asks {
					require.Equal(t, queue.VerdictRun, job.claim().Verdict)
				}
				cut(r, id)
				c.quiet("settle 1")
			})
		}
	}
}

func (r *jobRig) deleteJob(id string) { r.delete(id) }

// An ingress that ends another one's job leaves it to that one to count it.
func TestAJobCutShortElsewhereIsCountedByWhoeverReserved(t *testing.T) {
	t.Parallel()
	cancel := func(r *elsewhere) {
		ended, news, err := r.db.CancelJob(r.t.Context(), "team", r.job.job.ID, time.Now(), time.Now().Add(time.Hour), inference.Record{})
		require.NoError(r.t, err)
		require.True(r.t, news)
		require.NoError(r.t, r.other.limits.cutShort(r.t.Context(), []store.Job{ended}))
	}
	for name, c := range map[string]struct {
		does func(r *elsewhere)
		want string
	}{
		"at a worker":                              {cancel, "settle 1"},
		"passed on by a worker":                    {func(r *elsewhere) { r.pass(); cancel(r) }, "settle 1"},
		"which another message stood for since":    {func(r *elsewhere) { r.requeue(false); cancel(r) }, "release"},
		"of whose message the database never knew": {func(r *elsewhere) { r.requeue(true); cancel(r) }, "settle 1"},
		"whose place nobody knows": {func(r *elsewhere) {
			r.ingress.stored.limits.note(r.job.job.ID, func(h *jobHold) { h.seq, h.at, h.doubtful = 0, time.Time{}, true })
			cancel(r)
		}, "settle 1"},
		"whose message is found to be doubtful": {func(r *elsewhere) {
			r.ingress.stored.limits.doubt(r.job.job.ID)
			r.requeue(false)
		}, "settle 1"},
		"whose stream was made anew": {func(r *elsewhere) {
			r.ingress.stored.limits.note(r.job.job.ID, func(h *jobHold) { h.seq, h.at = 1<<40, time.Now().Add(-time.Hour) })
			cancel(r)
		}, "settle 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setupElsewhere(t, counters)
			c.does(r)
			require.NoError(t, r.ingress.stored.limits.sweepHolds(t.Context()))
			counters.quiet(c.want)
		})
	}
}

// A message that is still being sent has no place yet: what becomes of it is seen later.
func TestAJobThatEndsWhileItIsSentStaysInHand(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupElsewhere(t, c)
	ours := r.ingress.stored.limits
	ours.note(r.job.job.ID, func(h *jobHold) { h.seq, h.at = 0, time.Time{} })
	r.delete(store.JobPrefix + r.job.job.ID)
	require.NoError(t, ours.sweepHolds(t.Context()))
	r.reserved(ours)
	ours.sent(r.job.job, 1)
	require.NoError(t, ours.sweepHolds(t.Context()))
	c.quiet("settle 1")
}

// A queue that is gone tells nothing of its messages, and those that cannot be asked keep
// nobody else's waiting.
func TestWhatNoQueueTellsOfCounts(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupElsewhere(t, c)
	ours := r.ingress.stored.limits
	cancelledAt := func(provider, id string) {
		ours.note(id, func(h *jobHold) { h.provider = provider })
		_, _, err := r.db.CancelJob(t.Context(), "team", id, time.Now(), time.Now().Add(time.Hour), inference.Record{})
		require.NoError(t, err)
	}
	var silent []string
	for n := range 5 {
		id := r.later(capped)
		r.take()
		require.Eventually(t, func() bool { return !r.stored(id).DispatchedAt.IsZero() }, soon, time.Millisecond)
		silent = append(silent, r.stored(id).ID)
		cancelledAt(fmt.Sprintf("not a name %d", n), silent[n])
	}
	cancelledAt("nobody", r.job.job.ID)
	require.Error(t, ours.sweepHolds(t.Context()))
	_, held := ours.holdOf(r.job.job.ID)
	require.False(t, held, "at the first look")
	require.Equal(t, "settle 1", next(t, c.ended))

	ours.mu.Lock()
	for n := range 4 * store.MaxPage { // of jobs that are not there any more, and count elsewhere
		gone := ours.unreserved(&limited{settings: &r.ingress.current().Limits, job: r.job.job})
		gone.over.Store(true)
		ours.holds[fmt.Sprint(n)] = &jobHold{hold: gone}
	}
	ours.mu.Unlock()

	require.Error(t, ours.sweepHolds(t.Context()))
	ours.mu.Lock()
	left := slices.Sorted(maps.Keys(ours.holds))
	ours.mu.Unlock()
	require.ElementsMatch(t, silent, left, "they are asked again")
	require.Empty(t, c.ended)
}

// Whoever has reserved for a job asks for its place at once when another ingress cancels it,
// not when the queue has moved on.
func TestAJobCancelledElsewhereThatNoWorkerHadGivesBack(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{TokensPerMinute: 1000}))
	r.handOut(inference.LaneBackground, 1)
	ahead := r.elsewhere(r.later(capped))
	id := r.later(capped)
	r.dispatched(2)
	here, other := r.ingress.stored.limits, ahead.other.limits
	job := r.stored(id).ID
	here.mu.Lock()
	other.holds[job] = here.holds[job]
	delete(here.holds, job)
	here.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	var loop sync.WaitGroup
	loop.Go(func() { other.reviewRecalled(ctx) })
	t.Cleanup(loop.Wait)
	t.Cleanup(cancel)
	unhear, err := r.conn.HearCancels(other.recalled)
	require.NoError(t, err)
	t.Cleanup(unhear)
	r.delete(id)
	require.Equal(t, "release", next(t, c.ended))
}
