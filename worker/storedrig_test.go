package worker

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// desk is an ingress's side of the stored jobs: it judges claims and takes results.
type desk struct {
	places sync.Map // the ids of stored jobs by their messages' numbers
	*rig
	claimed chan queue.Claim
	results chan *queue.Result

	mu       sync.Mutex
	said     []queue.Verdict // to the claims to come; run it, after the last
	attempts int             // that the judgements tell of
}

func (r *rig) desk() *desk {
	r.t.Helper()
	d := &desk{rig: r, claimed: make(chan queue.Claim, 1000), results: make(chan *queue.Result, 1000)}
	_, err := r.conn.EnsureStored(r.t.Context(), testName)
	require.NoError(r.t, err)
	d.take(inference.LaneBackground)
	d.take(inference.LaneBatch)
	return d
}

// hear has the desk judge claims.
func (d *desk) hear(said ...queue.Verdict) {
	d.t.Helper()
	d.said = said
	for _, lane := range lanes[1:] {
		h, err := d.conn.HearClaims(lane, d.judgeStored)
		require.NoError(d.t, err)
		d.t.Cleanup(h.Close)
	}
}

func (d *desk) judgeStored(_ context.Context, c queue.Claim) (queue.Judgement, error) {
	d.claimed <- c
	d.mu.Lock()
	defer d.mu.Unlock()
	j := queue.Judgement{Verdict: queue.VerdictRun, Attempts: d.attempts}
	if len(d.said) > 0 {
		j.Verdict, d.said = d.said[0], d.said[1:]
	}
	return j, nil
}

func (d *desk) take(lane inference.Lane) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.conn.ConsumeResults(ctx, lane, 10, func(_ context.Context, results []*queue.Result) error {
			for _, r := range results {
				d.results <- r
			}
			return nil
		})
	}()
	d.t.Cleanup(func() { cancel(); <-done })
}

func newStored(lane inference.Lane) *inference.Job {
	j := newJob(false)
	j.Lane, j.IncludeUsage = lane, false
	return j
}

// model marks a job for the script.
func model(j *inference.Job, name string) *inference.Job {
	j.Candidates[0].Model = name
	return j
}

// store publishes stored jobs and returns where they stand.
func (d *desk) store(jobs ...*inference.Job) (seqs []uint64) {
	d.t.Helper()
	for i, p := range d.conn.PublishStored(d.t.Context(), jobs) {
		require.NoError(d.t, p.Err)
		d.places.Store(p.Place.Seq, jobs[i].ID)
		seqs = append(seqs, p.Place.Seq)
	}
	return seqs
}

// queued reports whether the message that store has sent is there.
func (d *desk) queued(seq uint64) (bool, error) {
	id, _ := d.places.Load(seq)
	there, err := d.conn.StoredQueued(d.t.Context(), testName, []queue.StoredPlace{{JobID: id.(string), Seq: seq}})
	return err == nil && there[0], err
}

// gone waits until the message is acknowledged.
func (d *desk) gone(seq uint64) {
	d.t.Helper()
	require.Eventually(d.t, func() bool {
		there, err := d.queued(seq)
		return err == nil && !there
	}, soon, 5*time.Millisecond, "acknowledged")
}

func (d *desk) stays(seq uint64) {
	d.t.Helper()
	there, err := d.queued(seq)
	require.NoError(d.t, err)
	require.True(d.t, there, "its message stays")
}

// unsaid checks that nothing was said to the ingress of the job's id.
func (d *desk) unsaid() {
	d.t.Helper()
	require.Empty(d.t, d.held)
	require.Empty(d.t, d.ends)
	require.Empty(d.t, d.events)
	require.Empty(d.t, d.passed)
	require.Empty(d.t, d.claims)
}

// models lists the models of the calls so far, in order.
func (s *script) models() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		names = append(names, c.Model)
	}
	return names
}

func slots(n int) func(*Options) { return func(o *Options) { o.Members[0].Slots = n } }

// waits returns once so many jobs of the lane wait at the worker's gate.
func waits(t *testing.T, w *Worker, lane, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, waiting := w.pools[0].gate.count(lane)
		return waiting == n
	}, soon, time.Millisecond, "%d wait", n)
}

// takeAll takes the results of n jobs, one of each.
func (d *desk) takeAll(n int) {
	d.t.Helper()
	seen := make(map[string]bool)
	for range n {
		id := next(d.t, d.results).JobID()
		require.False(d.t, seen[id], "each once")
		seen[id] = true
	}
}
