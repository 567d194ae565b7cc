package ingress

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/queue"
	"sluice/store"
)

// A round that a provider worked in counts by itself, and its job's next one reserves anew.
func TestARoundOfAJobCounts(t *testing.T) {
	t.Parallel()
	used := inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}
	failed := func(code inference.ErrorCode, usage inference.Usage) func(*queue.Result) {
		return func(r *queue.Result) {
			r.End.Usage, r.End.Err = usage, &inference.Error{Code: code, Message: "it failed", Retryable: true}
		}
	}
	for name, c := range map[string]struct {
		result          func(*queue.Result)
		here, elsewhere string
	}{
		"cut off, with its usage":  {failed(inference.CodeUpstreamCut, used), "settle 7", "charge key:key 7"},
		"cut off":                  {failed(inference.CodeUpstreamCut, inference.Usage{}), "settle 1", "charge key:key 1"},
		"not in time":              {failed(inference.CodeUpstreamTimeout, inference.Usage{}), "settle 1", "charge key:key 1"},
		"failed":                   {failed(inference.CodeUpstreamError, inference.Usage{}), "release", ""},
		"at a worker that is lost": {failed(inference.CodeWorkerLost, inference.Usage{}), "settle 1", "charge key:key 1"},
		"at a worker that is lost before it called": {func(r *queue.Result) {
			failed(inference.CodeWorkerLost, inference.Usage{})(r)
			r.End.Attempts = 0
		}, "release", ""},
		"without its body":             {func(r *queue.Result) { r.Lost = true; failed(inference.CodeInternal, inference.Usage{})(r) }, "release", ""},
		"whose answer is lost":         {func(r *queue.Result) { r.End.BodyRef, r.End.Usage = "nowhere", used }, "settle 7", "charge key:key 7"},
		"whose answer is lost, untold": {func(r *queue.Result) { r.End.BodyRef = "nowhere" }, "settle 31", "charge key:key 31"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setupElsewhere(t, counters)
			res := r.job.told(c.result)
			require.NoError(t, r.ingress.stored.take(t.Context(), []*queue.Result{res, r.job.told(c.result)}))
			require.NoError(t, r.ingress.stored.take(t.Context(), []*queue.Result{res}), "it comes once more")
			require.Equal(t, c.here, next(t, counters.ended))
			require.Empty(t, counters.ended, "once")
			require.Equal(t, inference.EpochStride, r.stored(store.JobPrefix+r.job.job.ID).Epoch)
		})
		t.Run(name+", elsewhere", func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setupElsewhere(t, counters)
			r.other.conn = r.conn
			res := r.job.told(c.result)
			require.NoError(t, r.other.take(t.Context(), []*queue.Result{res}))
			require.NoError(t, r.other.take(t.Context(), []*queue.Result{res}), "it comes once more")
			require.NoError(t, r.ingress.stored.limits.sweepHolds(t.Context()))
			if c.elsewhere != "" {
				require.Equal(t, c.elsewhere, next(t, counters.ended))
			}
			require.Equal(t, "release", next(t, counters.ended))
			require.Empty(t, counters.ended, "once")
		})
	}
}

// told is a result of the job, which nobody has taken yet.
func (k *taken) told(change func(*queue.Result)) *queue.Result {
	res := &queue.Result{Lane: k.job.Lane, Tenant: k.job.Tenant, Taken: time.Now(), CreatedAt: k.job.CreatedAt}
	res.End = &queue.End{JobID: k.job.ID, Run: k.run, Worker: "worker01", Provider: "acme", Attempts: k.job.Attempts + 1}
	change(res)
	return res
}

func TestTheRoundAfterOneThatCountedReservesAnew(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupJobs(t, withLimits(c, limits.Limits{Concurrent: 1, RequestsPerMinute: 2}))
	r.work()
	id := r.later(capped)
	r.take().result(func(res *queue.Result) {
		res.End.BodyRef = "nowhere"
		res.End.Usage = inference.Usage{PromptTokens: 3, CompletionTokens: 5, Known: true}
	})
	next := r.take()
	require.Equal(t, inference.EpochStride, next.job.Epoch)
	next.done(`{}`)
	require.Equal(t, "completed", r.show(id, "?wait=10s").Status)
	c.quiet("settle 8", "settle 7")
	r.later(capped) // both counted as requests: the minute has no room for a third
	r.putOff()
	require.Empty(t, r.jobs)
}

// What is in hand for a message of before does not stand for the next one, also if whoever
// took that away has not been noticed yet.
func TestTheNextMessageReservesAnewBeforeTheSweep(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupElsewhere(t, c)
	_, err := r.db.Requeue(t.Context(), []store.Requeue{{ID: r.job.job.ID, Epoch: r.job.job.Epoch}})
	require.NoError(t, err)
	r.ingress.stored.nudge()
	again := r.take()
	require.Equal(t, "release", next(t, c.ended))
	again.done(`{}`)
	c.quiet("release", "settle 7")
}

// A late word of an earlier round leaves alone what is in hand for the later one.
func TestAnEarlierRoundDoesNotCountForALaterMessage(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupElsewhere(t, c)
	ours := r.ingress.stored.limits
	ours.note(r.job.job.ID, func(h *jobHold) { h.epoch = inference.EpochStride })
	took := inference.Record{JobID: r.job.job.ID, Outcome: inference.OutcomeSucceeded, Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}}
	require.NoError(t, ours.rounds(t.Context(), []jobRound{{back: store.Requeue{ID: r.job.job.ID}, took: took}}))
	require.Equal(t, "charge key:key 7", next(t, c.ended))
	r.reserved(ours)
}

// The same with a result that is taken before anybody has noted where the later message is.
func TestAResultOfALaterRoundBeforeItsPlaceCountsOnce(t *testing.T) {
	t.Parallel()
	c := newCounters(t)
	r := setupElsewhere(t, c)
	r.other.conn = r.conn
	r.requeue(false)
	ours := r.ingress.stored.limits
	ours.note(r.job.job.ID, func(h *jobHold) { h.epoch = inference.EpochStride })
	require.NoError(t, r.other.take(t.Context(), []*queue.Result{r.job.told(func(res *queue.Result) {
		res.End.Run.Epoch, res.End.Body = inference.EpochStride, []byte(`{}`)
		res.End.Usage = inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}
	})}))
	require.NoError(t, ours.sweepHolds(t.Context()))
	c.quiet("settle 7")
}

// A message that is gone without a result may have been a worker's.
func TestARoundWhoseMessageIsLostCounts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		workers int
		later   time.Duration // than the stream
		want    string
	}{
		"at a worker":       {1, clocksApart, "settle 1"},
		"before any had it": {0, clocksApart, "release"},
		"of whose stream nobody knows which was first": {0, 0, "settle 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			counters := newCounters(t)
			r := setupJobs(t, withLimits(counters, limits.Limits{TokensPerMinute: 1000}))
			if c.workers > 0 {
				r.handOut(inference.LaneBackground, c.workers)
			}
			id := r.later(capped)
			r.dispatched(1)
			if c.workers > 0 {
				r.take()
			}
			job := r.stored(id)
			require.NoError(t, r.conn.RemoveStored(t.Context(), "acme", []queue.StoredPlace{{JobID: job.ID, Seq: job.Seq}}))
			require.NoError(t, r.db.Confirm(t.Context(), []string{job.ID}, job.DispatchedAt.Add(c.later)))
			now := time.Now().Add(c.later + unheardFor + time.Second)
			require.NoError(t, r.ingress.stored.reconcileAt(t.Context(), now))
			require.NoError(t, r.ingress.stored.reconcileAt(t.Context(), now.Add(missingFor)))
			require.Equal(t, c.want, next(t, counters.ended))
		})
	}
}
