package batch

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/queue"
	"sluice/store"
)

func TestABatchesLife(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		content, ids := input(203, true)
		b := r.create("team", content, func(b *store.Batch) { b.OutputExpires = time.Hour })
		e, _ := r.start()
		e.Look()
		b = r.await(b, store.BatchCompleted)
		output, failed := r.settled(b, ids)
		require.Len(t, failed, 29)
		require.NotNil(t, failed[0].Response)
		require.Equal(t, 400, failed[0].Response.StatusCode)
		require.Equal(t, 200, output[0].Response.StatusCode)
		require.JSONEq(t, `{"echo":"line-0"}`, string(output[0].Response.Body))
		require.Regexp(t, `^batch_req_[a-z2-7]+$`, output[0].ID)
		require.Equal(t, strings.Replace(output[0].ID, "batch_req_", "req_", 1), output[0].Response.RequestID)
		require.Equal(t, "m", b.Model)
		require.Equal(t, int64(3*len(output)), b.Usage.PromptTokens)
		require.Equal(t, int64(len(output)), b.Usage.CachedTokens)
		for _, at := range []time.Time{b.InProgressAt, b.FinalizingAt, b.CompletedAt} {
			require.WithinDuration(t, time.Now(), at, time.Minute)
		}
		file, err := r.db.File(t.Context(), "team", b.OutputFile, time.Now())
		require.NoError(t, err)
		require.Equal(t, b.ID+"_output.jsonl", file.Filename)
		require.Equal(t, time.Hour, file.ExpiresAt.Sub(file.CreatedAt))
		for id, n := range r.sent {
			require.Equal(t, 1, n, id)
		}
		require.Equal(t, 1, r.ended)
	})
}

func TestAnotherEngineGoesOn(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		content, ids := input(200, true)
		r.hold = func(l *store.Job) bool { return l.Line > 100 }
		r.opt.Window = 150
		b := r.create("team", content)
		_, stop := r.start()
		require.Eventually(t, func() bool { return r.heldNow() >= 100 }, soon, 10*time.Millisecond)
		stop() // it lets go of its batches
		other, _ := r.start(func(o *Options) { o.Owner = queue.NewProcessID() })
		r.release(other)
		r.settled(r.await(b, store.BatchCompleted), ids)
	})
}

// orphaned is a database that lets go of nothing.
type orphaned struct{ store.Store }

func (orphaned) ReleaseBatches(context.Context, string) error { return nil }

func TestALostLeaseStopsTheWork(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, ids := input(160, false)
	b := r.create("team", content)
	reached, goOn := make(chan struct{}), make(chan struct{})
	calls := 0
	slow := &flaky{Store: orphaned{r.db}, add: func([]store.Job) (before, after error) {
		if calls++; calls == 2 {
			close(reached)
			<-goOn
		}
		return nil, nil
	}}
	_, stop := r.start(func(o *Options) { o.Store = slow })
	<-reached
	later := time.Now().Add(time.Hour) // by its clock the lease is over
	taken, err := r.db.LeaseBatches(t.Context(), "other", later, time.Minute, 10)
	require.NoError(t, err)
	require.Len(t, taken, 1)
	close(goOn)
	stop()
	now, err := r.db.Batch(t.Context(), "team", b.ID)
	require.NoError(t, err)
	require.Equal(t, 50, now.Total, "who lost the lease adds nothing")
	require.NoError(t, r.db.ReleaseBatches(t.Context(), "other"))
	r.start(func(o *Options) { o.Owner = queue.NewProcessID() })
	r.settled(r.await(b, store.BatchCompleted), ids)
}

func TestAnEngineWithoutItsDatabaseStops(t *testing.T) {
	t.Parallel()
	e := New(Options{Logger: setup(t, openSQLite).opt.Logger, Store: deaf{}})
	e.lease.safe = 0
	stopped := make(chan struct{})
	e.running["x"] = &task{"team", store.BatchValidating, func() { close(stopped) }}
	e.feeding["y"] = &feeding{}
	e.pass(t.Context())
	<-stopped
	require.Empty(t, e.feeding)
}

// deaf is a database that does not answer.
type deaf struct{ Store }

func (deaf) LeaseBatches(context.Context, string, time.Time, time.Duration, int) ([]store.Batch, error) {
	return nil, errBroken
}

func TestTenantsShareTheWindow(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	large, _ := input(300, false)
	small, _ := input(30, false)
	r.hold = func(*store.Job) bool { return true }
	r.opt.Window = 40
	first := r.create("large", large)
	e, _ := r.start()
	require.Eventually(t, func() bool { return r.heldNow() == 40 }, soon, 10*time.Millisecond)
	r.create("small", strings.ReplaceAll(small, "line-", "small-"))
	e.Look()
	bySmall := func() (n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for id := range r.held {
			if strings.HasPrefix(id, "small-") {
				n++
			}
		}
		return n
	}
	require.Eventually(t, func() bool { return bySmall() == 20 }, soon, 10*time.Millisecond)
	require.Equal(t, 60, r.heldNow(), "nobody's message is taken back for another")
	now, err := r.db.Batch(t.Context(), "large", first.ID)
	require.NoError(t, err)
	require.Equal(t, store.BatchInProgress, now.Status)
}

func TestRoomIsFair(t *testing.T) {
	t.Parallel()
	e := New(Options{})
	var batches []store.Batch
	for i := range 6 {
		batches = append(batches, store.Batch{ID: fmt.Sprint(i), Tenant: "many", Status: store.BatchValidating})
	}
	batches = append(batches, store.Batch{ID: "other", Tenant: "few", Status: store.BatchValidating},
		store.Batch{ID: "end", Tenant: "many", Status: store.BatchFinalizing},
		store.Batch{ID: "calm", Tenant: "few", Status: store.BatchInProgress, ExpiresAt: noon.Add(time.Hour)},
		store.Batch{ID: "over", Tenant: "few", Status: store.BatchInProgress, ExpiresAt: noon})
	var order []string
	for b := e.next(batches, noon); b != nil; b = e.next(batches, noon) {
		order = append(order, b.ID)
		e.running[b.ID] = &task{tenant: b.Tenant, status: b.Status}
	}
	require.Equal(t, []string{"0", "other", "end", "over"}, order, "two files are read at once, one of each tenant")
}

func TestTheRateIsNoted(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, _ := input(10, false)
	r.hold = func(l *store.Job) bool { return l.Line > 5 }
	b := r.create("team", content)
	e, stop := r.start()
	require.Eventually(t, func() bool { return r.heldNow() == 5 }, soon, 10*time.Millisecond)
	stop()
	leased, err := r.db.LeaseBatches(t.Context(), r.opt.Owner, time.Now(), time.Minute, 1)
	require.NoError(t, err)
	require.Len(t, leased, 1)
	f := newFeeding(leased[0])
	f.rate = NewRate(0, 0, f.noted)
	e.note(t.Context(), f, 5, f.noted.Add(noteEvery))
	now, err := r.db.Batch(t.Context(), "team", b.ID)
	require.NoError(t, err)
	require.InDelta(t, 1, now.Rate, 0.01, "five lines in five seconds")
}

func TestALeaseIsShortAndOutlivesALostRenewal(t *testing.T) {
	t.Parallel()
	l := usualLeasing
	require.LessOrEqual(t, l.length, 10*time.Second, "so long the batches of a killed ingress stand still")
	require.Less(t, 2*l.every, l.safe)
	require.Less(t, l.safe, l.length)
}

// While the queue is away no line is leased for nothing: it would wait for the end of that.
func TestNoLineIsLeasedWithoutAQueue(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, ids := input(10, false)
	b := r.create("team", content)
	r.away.Store(true)
	e, _ := r.start()
	b = r.await(b, store.BatchInProgress)
	require.Eventually(t, func() bool { return r.asked.Load() >= 3 }, soon, time.Millisecond)
	backlogs, err := r.db.Backlogs(t.Context())
	require.NoError(t, err)
	require.Equal(t, []int{10, 0}, []int{backlogs[0].Waiting, backlogs[0].Out})
	require.Empty(t, r.sent)
	r.away.Store(false)
	e.Wake()
	r.settled(r.await(b, store.BatchCompleted), ids)
}
