package ingress

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

var (
	t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

	epoch0run1 = queue.Run{Epoch: 0, Delivery: 1}
	epoch0run2 = queue.Run{Epoch: 0, Delivery: 2}
	epoch1run1 = queue.Run{Epoch: inference.EpochStride, Delivery: 1}
)

func testJob(stream bool) *inference.Job {
	return &inference.Job{
		ID: queue.NewJobID("ingressa", t0), RequestID: "req", Kind: inference.KindChat, Lane: inference.LaneInteractive,
		Tenant: "team", KeyID: "key", Model: "alias", Stream: stream, CreatedAt: t0, Deadline: t0.Add(time.Minute),
		Candidates: []inference.Candidate{{Provider: "acme", Model: "m"}},
	}
}

func newTestFlight() *flight {
	return &flight{job: testJob(true), accepted: t0, settings: new(Settings), done: make(chan struct{})}
}

func isDone(f *flight) bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

func eventsOf(run queue.Run) *queue.Events {
	return &queue.Events{Run: run, FirstSeq: 1, Elapsed: time.Second, Attempts: 2, Chunks: [][]byte{[]byte("x")}}
}

func TestFlightTakesEventsOfTheRunThatCounts(t *testing.T) {
	t.Parallel()
	f := newTestFlight()
	f.holds(epoch0run2, t0)
	require.False(t, f.events(eventsOf(epoch0run1), t0), "an earlier run is fenced")
	require.True(t, f.events(eventsOf(epoch0run2), t0.Add(3*time.Second)))
	require.Equal(t, firstChunk{after: 3 * time.Second, elapsed: time.Second, provider: "acme", attempts: 2}, f.first)
	require.True(t, f.events(eventsOf(epoch0run2), t0.Add(9*time.Second)))
	require.Equal(t, 3*time.Second, f.first.after, "the first chunk is the first one")
	require.False(t, f.events(eventsOf(epoch1run1), t0), "a begun answer is continued by nobody else")
	require.Equal(t, t0.Add(9*time.Second), f.heardAt)

	f.ended = true
	require.False(t, f.events(eventsOf(epoch0run2), t0))
}

func TestFlightHolds(t *testing.T) {
	t.Parallel()
	f := newTestFlight()
	f.holds(epoch0run2, t0)
	require.Equal(t, epoch0run2, f.run)
	f.holds(epoch0run1, t0.Add(time.Second))
	require.Equal(t, t0, f.heardAt, "an earlier run says nothing about this one")
	f.holds(epoch1run1, t0.Add(time.Second))
	require.Equal(t, epoch0run2, f.run, "a later one has to claim the job first: this one may be alive")
	require.Equal(t, t0, f.heardAt)
	judged, _ := f.claim(queue.Claim{Run: epoch1run1}, t0.Add(time.Minute))
	require.Equal(t, queue.VerdictRun, judged.Verdict)
	f.holds(epoch1run1, t0.Add(2*time.Minute))
	require.Equal(t, t0.Add(2*time.Minute), f.heardAt)
}

func TestFlightClaims(t *testing.T) {
	t.Parallel()
	alive, silent := t0.Add(aliveFor-time.Millisecond), t0.Add(aliveFor)
	for name, c := range map[string]struct {
		before  func(f *flight)
		run     queue.Run
		at      time.Time
		want    queue.Verdict
		lost    bool
		lostNow int // runs counted as lost afterwards
	}{
		"nobody had it":           {func(*flight) {}, epoch0run1, t0, queue.VerdictRun, false, 0},
		"the last one is alive":   {func(f *flight) { f.holds(epoch0run1, t0) }, epoch0run2, alive, queue.VerdictWait, false, 0},
		"the last one is silent":  {func(f *flight) { f.holds(epoch0run1, t0) }, epoch0run2, silent, queue.VerdictRun, false, 1},
		"a later epoch has it":    {func(f *flight) { f.holds(epoch1run1, t0) }, epoch0run2, silent, queue.VerdictDrop, false, 0},
		"a later delivery has it": {func(f *flight) { f.holds(epoch0run2, t0) }, epoch0run1, silent, queue.VerdictWait, false, 0},
		"the same run again":      {func(f *flight) { f.holds(epoch0run2, t0) }, epoch0run2, silent, queue.VerdictRun, false, 0},
		"the same run, begun":     {func(f *flight) { f.events(eventsOf(epoch0run2), t0) }, epoch0run2, silent, queue.VerdictRun, false, 0},
		"a run that never began":  {func(*flight) {}, queue.Run{}, silent, queue.VerdictWait, false, 0},
		"its answer began":        {func(f *flight) { f.events(eventsOf(epoch0run1), t0) }, epoch0run2, silent, queue.VerdictWait, true, 0},
		"its answer goes on":      {func(f *flight) { f.events(eventsOf(epoch0run1), t0) }, epoch0run2, alive, queue.VerdictWait, false, 0},
		"too many were lost": {func(f *flight) {
			f.holds(epoch0run1, t0)
			f.lostRuns = maxLostRuns
		}, epoch0run2, silent, queue.VerdictWait, true, maxLostRuns},
		"its row is not safe yet": {func(f *flight) { f.finish(&queue.End{Run: epoch0run1}, inference.OutcomeSucceeded) }, epoch0run2, silent, queue.VerdictWait, false, 0},
		"its client is gone":      {func(f *flight) { f.leave(inference.OutcomeCancelled, errClientGone(), t0) }, epoch0run2, silent, queue.VerdictWait, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTestFlight()
			c.before(f)
			judged, lost := f.claim(queue.Claim{Run: c.run}, c.at)
			verdict := judged.Verdict
			require.Equal(t, c.want, verdict)
			require.Equal(t, c.lost, lost != nil)
			require.Equal(t, c.lostNow, f.lostRuns)
			if verdict == queue.VerdictRun {
				require.Equal(t, c.run, f.run)
				require.True(t, f.held)
			}
		})
	}
}

func TestFlightEndsOnce(t *testing.T) {
	t.Parallel()
	failed := &inference.Error{Code: inference.CodeUpstreamError}
	for name, c := range map[string]struct {
		before func(f *flight)
		end    *queue.End
		counts bool
	}{
		"the run that counts":       {func(f *flight) { f.holds(epoch0run1, t0) }, &queue.End{Run: epoch0run1}, true},
		"a run not heard of":        {func(*flight) {}, &queue.End{Run: epoch0run2, Err: failed}, true},
		"an earlier run's failure":  {func(f *flight) { f.holds(epoch0run2, t0) }, &queue.End{Run: epoch0run1, Err: failed}, false},
		"an earlier run's answer":   {func(f *flight) { f.holds(epoch0run2, t0) }, &queue.End{Run: epoch0run1}, true},
		"another run after a chunk": {func(f *flight) { f.events(eventsOf(epoch0run2), t0) }, &queue.End{Run: epoch0run1}, false},
		"the ingress's own":         {func(f *flight) { f.events(eventsOf(epoch0run2), t0) }, &queue.End{Err: failed}, true},
		"a second one":              {func(f *flight) { f.finish(&queue.End{Run: epoch0run1}, inference.OutcomeSucceeded) }, &queue.End{Run: epoch0run1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTestFlight()
			c.before(f)
			wasDone := isDone(f)
			require.Equal(t, c.counts, f.finish(c.end, outcomeOf(c.end.Err)))
			require.Equal(t, c.counts || wasDone, isDone(f))
			if c.counts {
				require.Same(t, c.end, f.end)
				require.Equal(t, outcomeOf(c.end.Err), f.outcome)
			}
		})
	}
}

func TestFlightCountsLostRunsAsAttempts(t *testing.T) {
	t.Parallel()
	f := newTestFlight()
	f.holds(epoch0run1, t0)
	judged, _ := f.claim(queue.Claim{Run: epoch0run2}, t0.Add(time.Minute))
	v := judged.Verdict
	require.Equal(t, queue.VerdictRun, v)
	e := &queue.End{Run: epoch0run2, Attempts: 2}
	require.True(t, f.finish(e, inference.OutcomeSucceeded))
	require.Equal(t, 3, e.Attempts)
}

func TestFlightOfAClientThatLeft(t *testing.T) {
	t.Parallel()
	f := newTestFlight()
	f.holds(epoch0run1, t0)
	require.True(t, f.leave(inference.OutcomeCancelled, errClientGone(), t0.Add(4*time.Second)))
	require.True(t, isDone(f))
	require.False(t, f.leave(inference.OutcomeExpired, errDeadline(f.job), t0), "the first reason counts")
	require.Equal(t, 1, f.end.Attempts)

	// The worker's word about the usage still comes; the reason stays.
	e := &queue.End{Run: epoch0run1, Worker: "w", Model: "m-1", Attempts: 1, Usage: inference.Usage{PromptTokens: 7, Known: true}, Elapsed: 2 * time.Second}
	require.True(t, f.finish(e, inference.OutcomeSucceeded))
	require.Equal(t, inference.OutcomeCancelled, f.outcome)
	require.Equal(t, inference.CodeCancelled, f.end.Err.Code)
	r := f.record(e, t0.Add(5*time.Second))
	require.Equal(t, inference.OutcomeCancelled, r.Outcome)
	require.Equal(t, inference.CodeCancelled, r.ErrorCode)
	require.Equal(t, statusClientClosed, r.Status)
	require.EqualValues(t, 7, r.Usage.PromptTokens)
	require.Equal(t, 3*time.Second, r.Queue)
	require.Equal(t, 4*time.Second, r.Total, "the wait for the worker's word is not the request's")
	require.False(t, f.leave(inference.OutcomeExpired, nil, t0), "an ended flight is not left")
}

func TestFlightRecord(t *testing.T) {
	t.Parallel()
	f := newTestFlight()
	f.events(eventsOf(epoch0run1), t0.Add(2*time.Second))
	usage := inference.Usage{PromptTokens: 1, CompletionTokens: 2, Known: true}
	e := &queue.End{Run: epoch0run1, Worker: "w", Provider: "other", Model: "m-1", Attempts: 1, Usage: usage, Elapsed: 4 * time.Second}
	require.True(t, f.finish(e, inference.OutcomeSucceeded))
	require.Equal(t, inference.Record{
		JobID: f.job.ID, RequestID: "req", Kind: inference.KindChat, Tenant: "team", KeyID: "key", ModelAsked: "alias",
		Provider: "other", ModelServed: "m-1", Stream: true, Usage: usage, Attempts: 1, Outcome: inference.OutcomeSucceeded,
		Status: 200, CreatedAt: t0, FirstToken: 2 * time.Second, Queue: time.Second, Total: 5 * time.Second,
	}, f.record(e, t0.Add(5*time.Second)))

	f = newTestFlight()
	own := &queue.End{Err: &inference.Error{Code: inference.CodeWorkerLost}}
	require.True(t, f.finish(own, outcomeOf(own.Err)))
	r := f.record(own, t0.Add(time.Second))
	require.Equal(t, "acme", r.Provider)
	require.Equal(t, inference.OutcomeFailed, r.Outcome)
	require.Equal(t, time.Second, r.Queue, "no worker had it")
	require.Equal(t, 502, r.Status)
}

// However a worker was first heard of, the time since then is not the queue's.
func TestTheTimeOfAWorkerIsNotTheQueues(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func(f *flight){
		"a beat":  func(f *flight) { f.holds(epoch0run1, t0.Add(time.Second)) },
		"a claim": func(f *flight) { _, _ = f.claim(queue.Claim{Run: epoch0run2}, t0.Add(time.Second)) },
		"a chunk": func(f *flight) { f.events(eventsOf(epoch0run1), t0.Add(time.Second)) },
	} {
		f := newTestFlight()
		first(f)
		require.True(t, f.leave(inference.OutcomeExpired, errClientGone(), t0.Add(5*time.Second)))
		require.Equal(t, 4*time.Second, f.end.Elapsed, name)
	}
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	require.Equal(t, inference.OutcomeSucceeded, outcomeOf(nil))
	require.Equal(t, inference.OutcomeExpired, outcomeOf(&inference.Error{Code: inference.CodeDeadlineExceeded}))
	require.Equal(t, inference.OutcomeCancelled, outcomeOf(&inference.Error{Code: inference.CodeCancelled}))
	require.Equal(t, inference.OutcomeFailed, outcomeOf(&inference.Error{Code: inference.CodeUpstreamRejected}))
}

func TestWhatAFlightNeeds(t *testing.T) {
	t.Parallel()
	confirmed := func(f *flight) { f.place.seq = 1 }
	for name, c := range map[string]struct {
		before    func(f *flight)
		after     time.Duration
		connected time.Duration
		want      need
	}{
		"just sent":                    {func(*flight) {}, confirmWait, 0, needNothing},
		"not confirmed":                {func(*flight) {}, confirmWait + 1, 0, needRepeat},
		"never confirmed":              {func(*flight) {}, publishMost + 1, 0, needRefusal},
		"never confirmed, later epoch": {func(f *flight) { f.job.Epoch, f.place.known = inference.EpochStride, true }, publishMost + 1, 0, needRepeat},
		"not confirmed but worked on":  {func(f *flight) { f.holds(epoch0run1, t0.Add(publishMost)) }, publishMost + silentFor, 0, needNothing},
		"not confirmed, worker lost":   {func(f *flight) { f.holds(epoch0run1, t0) }, silentFor + 1, 0, needNewEpoch},
		"not confirmed, begun":         {func(f *flight) { f.events(eventsOf(epoch0run1), t0) }, silentFor, 0, needNothing},
		"queued for long":              {confirmed, time.Hour, 0, needNothing},
		"worked on, silent":            {func(f *flight) { confirmed(f); f.holds(epoch0run1, t0) }, time.Hour, 0, needNothing},
		"begun":                        {func(f *flight) { confirmed(f); f.events(eventsOf(epoch0run1), t0) }, silentFor, 0, needNothing},
		"begun, silent":                {func(f *flight) { confirmed(f); f.events(eventsOf(epoch0run1), t0) }, silentFor + 1, 0, needLostError},
		"begun, silent, disconnected":  {func(f *flight) { confirmed(f); f.events(eventsOf(epoch0run1), t0) }, time.Minute, time.Minute - time.Second, needNothing},
		"stream lost just now":         {func(f *flight) { confirmed(f); f.place.lostAt = t0 }, lostGrace, 0, needNothing},
		"stream lost":                  {func(f *flight) { confirmed(f); f.place.lostAt = t0 }, lostGrace + 1, 0, needNewEpoch},
		"stream lost, worker there":    {func(f *flight) { confirmed(f); f.place.lostAt = t0; f.holds(epoch0run1, t0.Add(9*time.Second)) }, 10 * time.Second, 0, needNothing},
		"lost again and again":         {func(f *flight) { confirmed(f); f.place.lostAt = t0; f.job.Epoch = maxLostRuns * inference.EpochStride }, lostGrace + 1, 0, needQueueError},
		"stream lost, begun":           {func(f *flight) { confirmed(f); f.place.lostAt = t0; f.events(eventsOf(epoch0run1), t0) }, 5 * time.Second, 0, needNothing},
		"stream lost, just connected":  {func(f *flight) { confirmed(f); f.place.lostAt = t0 }, 10 * time.Second, 8 * time.Second, needNothing},
		"left, worker may speak":       {func(f *flight) { f.leave(inference.OutcomeCancelled, errClientGone(), t0) }, closingWait, 0, needNothing},
		"left, worker silent":          {func(f *flight) { f.leave(inference.OutcomeCancelled, errClientGone(), t0) }, closingWait + 1, 0, needUsageRow},
		"left, just connected":         {func(f *flight) { f.leave(inference.OutcomeCancelled, errClientGone(), t0) }, time.Minute, time.Minute - closingWait, needNothing},
		"client may come back":         {func(f *flight) { confirmed(f); f.clientGone, f.goneUntil = true, t0.Add(30*time.Second) }, 30 * time.Second, 0, needNothing},
		"client did not come back":     {func(f *flight) { confirmed(f); f.clientGone, f.goneUntil = true, t0.Add(30*time.Second) }, 31 * time.Second, 0, needCancel},
		"client away, deadline":        {func(f *flight) { confirmed(f); f.clientGone, f.goneUntil = true, t0.Add(time.Hour) }, time.Minute + 1, 0, needExpiry},
		"ended":                        {func(f *flight) { f.finish(&queue.End{}, inference.OutcomeFailed); f.clientGone = true }, time.Hour, 0, needNothing},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTestFlight()
			f.place.sent, f.place.firstSent = t0, t0
			c.before(f)
			require.Equal(t, c.want, f.needs(t0.Add(c.after), t0.Add(c.connected)))
		})
	}
}

func TestStreamAges(t *testing.T) {
	t.Parallel()
	var s streamAges
	require.False(t, s.note("a", t0), "the first time tells nothing")
	require.False(t, s.note("a", t0))
	require.False(t, s.note("b", t0.Add(1)))
	require.True(t, s.note("a", t0.Add(1)), "another stream of the same name")
	require.False(t, s.note("a", t0.Add(1)))
	require.Zero(t, s.since())
	s.reconnected(t0)
	require.Equal(t, t0, s.since())
}

// Silence from before a new connection is none of a worker's.
func TestAConnectionIsNotOlderThanItIs(t *testing.T) {
	t.Parallel()
	var s streamAges
	since, there := s.sinceIf(func() bool {
		s.reconnected(t0)
		return true
	})
	require.True(t, there)
	require.Equal(t, t0, since)
}

// A worker may stop waiting for a breaker at any time, and say so to nobody.
func TestTheWordThatNoCallIsMadeHoldsForAMoment(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after time.Duration
		want  int
	}{"just said": {aliveFor - 1, 0}, "said a while ago": {aliveFor, 1}} {
		f := newTestFlight()
		f.holds(epoch0run1, t0)
		f.idles(epoch0run1, true, t0)
		require.True(t, f.leave(inference.OutcomeCancelled, errClientGone(), t0.Add(c.after)), name)
		require.Equal(t, c.want, f.end.Attempts, name)
	}
}
