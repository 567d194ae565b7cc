package ingress

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

func TestStreamedAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	resp := c.response() // the head goes out while the job still waits
	require.Equal(t, "text/event-stream; charset=utf-8", resp.Header.Get("Content-Type"))
	require.Equal(t, k.job.ID, resp.Header.Get("X-Sluice-Job-Id"))
	k.events(1, `{"n":1}`)
	k.events(2, `{"n":2}`, `{"n":3}`)
	k.end(&queue.End{LastSeq: 3, Usage: inference.Usage{CompletionTokens: 3, Known: true}})
	require.Equal(t, []frame{
		{"0-1-1", `{"n":1}`}, {"0-1-2", `{"n":2}`}, {"0-1-3", `{"n":3}`}, {"0-1-4", "[DONE]"},
	}, frames(t, resp.Body, nil))
	require.Equal(t, "1", resp.Trailer.Get("X-Sluice-Attempts"), "what the head could not tell follows at the end")
	row := r.row(k.job.ID)
	require.True(t, row.Stream)
	require.NotZero(t, row.FirstToken)
}

func TestAStreamThatFailsNeverLooksWhole(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	resp := c.response()
	k.end(&queue.End{LastSeq: 1, Err: &inference.Error{Code: inference.CodeUpstreamCut, Message: "Cut."}})
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), `"code":"upstream_cut"`)
	require.NotContains(t, string(body), "[DONE]")
}

func TestResumeOnAnotherIngress(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	_, second := r.startIngress()
	first := r.chat(streamRequest, "X-Sluice-Resume-Window", "20s")
	k := r.take()
	rec := r.conn.NewRecorder(k.job, k.run, 1)
	chunk := func(n uint64, s string) {
		k.events(n, s)
		rec.Add([][]byte{[]byte(s)})
	}
	chunk(1, `{"n":1}`)
	chunk(2, `{"n":2}`)
	resp := first.response()
	frames(t, resp.Body, func(f frame) bool { return f.id == "0-1-1" })
	first.cancel()

	events := second.URL + "/v1/chat/completions/" + k.job.ID + "/events"
	r.send(r.request(http.MethodGet, events, "", "Authorization", "Bearer a-key-of-others")).fails(404, inference.CodeNotFound)
	again := r.send(r.request(http.MethodGet, events, "", "Last-Event-ID", "0-1-1")).response()
	chunk(3, `{"n":3}`)
	end := &queue.End{JobID: k.job.ID, Run: k.run, LastSeq: 3}
	got := make(chan []frame, 1)
	go func() { got <- frames(t, again.Body, nil) }()
	require.NoError(t, rec.Finish(t.Context(), end))
	k.end(end)
	require.Equal(t, []frame{{"0-1-2", `{"n":2}`}, {"0-1-3", `{"n":3}`}, {"0-1-4", "[DONE]"}}, next(t, got))

	whole := r.send(r.request(http.MethodGet, events, "")).response()
	require.Len(t, frames(t, whole.Body, nil), 4, "from the beginning without an id")
	done, _ := r.send(r.request(http.MethodGet, events, "", "Last-Event-ID", "0-1-4")).whole()
	require.Equal(t, http.StatusNoContent, done.StatusCode, "the client has it all")
	for _, id := range []string{"0-1-5", "0-2-1", "7-1-1"} {
		r.send(r.request(http.MethodGet, events, "", "Last-Event-ID", id)).fails(http.StatusBadRequest, inference.CodeInvalidRequest)
	}
	require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome, "the job went on without its client")
}

func TestResumeOfAFailedStream(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	rec := r.conn.NewRecorder(k.job, k.run, 1)
	k.events(1, `{"n":1}`)
	rec.Add([][]byte{[]byte(`{"n":1}`)})
	end := &queue.End{JobID: k.job.ID, Run: k.run, LastSeq: 1, Err: &inference.Error{Code: inference.CodeUpstreamCut, Message: "Cut."}}
	require.NoError(t, rec.Finish(t.Context(), end))
	k.end(end)
	_, _ = c.whole()
	path := "/v1/chat/completions/" + k.job.ID + "/events"
	_, body := r.get(path).whole()
	require.Contains(t, body, `{"n":1}`)
	require.Contains(t, body, "upstream_cut")
	r.get(path, "Last-Event-ID", "0-1-1").fails(http.StatusBadGateway, inference.CodeUpstreamCut)
}

func TestAClientMayBeBackBeforeTheEndIsKept(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.Keepalive = 50 * time.Millisecond })
	r.work()
	c := r.chat(streamRequest, "X-Sluice-Resume-Window", "20s")
	k := r.take()
	rec := r.conn.NewRecorder(k.job, k.run, 1)
	k.events(1, `{"n":1}`)
	frames(t, c.response().Body, func(f frame) bool { return f.id == "0-1-1" })
	path := "/v1/chat/completions/" + k.job.ID + "/events"

	late := r.get(path, "Last-Event-ID", "0-1-2").response() // its head is out before the end is kept
	require.Equal(t, http.StatusOK, late.StatusCode)
	c.cancel()
	early := r.get(path, "Last-Event-ID", "0-1-2")
	rec.Add([][]byte{[]byte(`{"n":1}`)})
	end := &queue.End{JobID: k.job.ID, Run: k.run, LastSeq: 1, Err: &inference.Error{Code: inference.CodeUpstreamCut, Message: "Cut."}}
	require.NoError(t, rec.Finish(t.Context(), end))
	resp, _ := early.whole()
	require.Equal(t, http.StatusNoContent, resp.StatusCode)
	require.Empty(t, frames(t, late.Body, nil), "what the client has is not repeated")
	k.end(end)
}

func TestAJobWhoseWorkerIsLostGoesToAnother(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	v, err := r.answer.Claim(t.Context(), queue.Claim{JobID: k.job.ID, Run: queue.Run{Delivery: 2}, Worker: "worker02"})
	require.NoError(t, err)
	require.Equal(t, queue.VerdictRun, v.Verdict)
	require.NoError(t, r.answer.Hold([]queue.HeldJob{{JobID: k.job.ID, Run: queue.Run{Delivery: 2}}, {JobID: queue.NewJobID(r.ingress.opt.ID, time.Now())}}))

	// The first worker was only slow. Its failure is no answer, and it is told nothing
	// that would remove the message from under the second one.
	late := &queue.End{JobID: k.job.ID, Run: k.run, Worker: "worker01", Err: &inference.Error{Code: inference.CodeUpstreamError}}
	require.NoError(t, r.answer.End(late))
	k.run.Delivery = 2
	k.succeed("{}")
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Empty(t, r.settled)
	require.NoError(t, r.answer.End(late))
	require.Equal(t, k.job.ID, next(t, r.settled), "once all is accounted for, it is settled")
	v, err = r.answer.Claim(t.Context(), queue.Claim{JobID: k.job.ID, Run: queue.Run{Delivery: 3}, Worker: "worker02"})
	require.NoError(t, err)
	require.Equal(t, queue.VerdictDrop, v.Verdict)
}

// The first worker was only slow and has the whole answer after all. The second one's
// call is not paid for any longer.
func TestALateAnswerEndsTheRunThatReplacedIt(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	v, err := r.answer.Claim(t.Context(), queue.Claim{JobID: k.job.ID, Run: queue.Run{Delivery: 2}, Worker: "worker02"})
	require.NoError(t, err)
	require.Equal(t, queue.VerdictRun, v.Verdict)
	k.succeed("{}")
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, k.job.ID, next(t, r.cancelled))
}

func TestAStreamWhoseWorkerIsLostEndsWithAnError(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	resp := c.response()
	f := r.ingress.flights.find(k.job.ID)
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.heardAt = time.Now().Add(-time.Minute)
		return f.begun
	}, soon, time.Millisecond)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), `"code":"worker_lost"`)
	require.NotContains(t, string(body), "[DONE]")
	require.Equal(t, inference.CodeWorkerLost, r.row(k.job.ID).ErrorCode)
	require.Equal(t, k.job.ID, next(t, r.cancelled), "whoever still has it may stop")
}

func TestAJobThatTheQueueLostIsPublishedAgain(t *testing.T) {
	t.Parallel()
	r := setup(t)
	c := r.chat(plainRequest)
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "acme")
		return err == nil && d.Waiting == 1
	}, soon, 5*time.Millisecond)
	var f *flight
	for _, one := range r.ingress.flights.all() {
		f = one
	}
	require.Eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.place.seq != 0 }, soon, time.Millisecond)
	r.ingress.flights.streamLost("nobody")
	r.ingress.flights.streamLost("acme")
	f.mu.Lock()
	require.False(t, f.place.lostAt.IsZero())
	f.place.lostAt = f.place.lostAt.Add(-time.Minute)
	f.mu.Unlock()
	r.work()
	k := r.take()
	for k.job.Epoch == 0 {
		k = r.take()
	}
	require.Equal(t, inference.EpochStride, k.job.Epoch)
	k.succeed("{}")
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestACallThatNoQueueTakesIsRefusedInTheEnd(t *testing.T) {
	t.Parallel()
	r := setup(t)
	f := newTestFlight()
	f.feed = newFeed(&shelfReader{shelf: &shelf{}}, queue.Run{}, 1)
	f.place.firstSent = time.Now().Add(-time.Hour)
	f.accepted = time.Now()
	fs := r.ingress.flights
	fs.byID[f.job.ID] = f
	fs.lookAfter(f, time.Now(), time.Time{})
	require.True(t, isDone(f))
	require.Equal(t, inference.CodeQueueUnavailable, f.end.Err.Code)
	row := r.row(f.job.ID)
	require.Equal(t, inference.OutcomeFailed, row.Outcome, "the queue may have had it after all")
	require.Zero(t, row.Attempts)
	require.Eventually(t, func() bool { return fs.count() == 0 }, soon, time.Millisecond)
	fs.lookAfter(f, time.Now(), time.Time{})

	g := newTestFlight()
	g.place.sent = time.Now().Add(-time.Hour)
	g.place.firstSent = time.Now()
	fs.lookAfter(g, time.Now(), time.Time{})
	require.WithinDuration(t, time.Now(), g.place.sent, soon, "published again")
}

// A job that has left its queue without a word is published again, long before its
// deadline.
func TestAJobThatVanishedIsPublishedAgain(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	require.NoError(t, k.d.Bury(t.Context(), "acme", "test"))
	r.puller.Free()
	again := r.take()
	require.Equal(t, k.job.ID, again.job.ID)
	require.Equal(t, inference.EpochStride, again.job.Epoch)
	v, err := r.answer.Claim(t.Context(), queue.Claim{JobID: again.job.ID, Run: again.run, Worker: "worker01"})
	require.NoError(t, err)
	require.Equal(t, queue.VerdictRun, v.Verdict)
	again.succeed("{}")
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

// Nobody reads on once a part of the answer is lost, so nobody pays for the rest.
func TestAStreamWithAHoleEndsItsJob(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	resp := c.response()
	rec := r.conn.NewRecorder(k.job, k.run, 5)
	rec.Add([][]byte{[]byte(`{"n":5}`)})
	require.NoError(t, rec.Finish(t.Context(), &queue.End{JobID: k.job.ID, Run: k.run, LastSeq: 5}))
	k.events(5, `{"n":5}`) // 2 to 4 are nowhere
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "events_lost")
	require.NotContains(t, string(body), "[DONE]")
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeCancelled}, LastSeq: 5})
	row := r.row(k.job.ID)
	require.Equal(t, inference.OutcomeFailed, row.Outcome)
	require.Equal(t, inference.CodeEventsLost, row.ErrorCode)
}

// The job of a client that may come back waits for it, and a client that reads the
// events elsewhere keeps it alive; without both it is cancelled.
func TestAClientThatDoesNotComeBackCancels(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest, "X-Sluice-Resume-Window", "20s")
	k := r.take()
	k.events(1, `{"n":1}`)
	c.response()
	c.cancel()
	f := r.ingress.flights.find(k.job.ID)
	gone := func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.clientGone }
	require.Eventually(t, gone, soon, time.Millisecond)
	f.mu.Lock()
	f.goneUntil = time.Now().Add(time.Hour)
	attached := f.goneUntil
	f.mu.Unlock()
	require.NoError(t, r.conn.Attach(k.job.ID))
	require.NoError(t, r.conn.Attach(queue.NewJobID(r.ingress.opt.ID, time.Now())))
	f.mu.Lock()
	require.False(t, f.goneUntil.Before(attached), "a shorter promise takes nothing back")
	f.goneUntil = time.Now().Add(-time.Second)
	f.mu.Unlock()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	k.end(&queue.End{LastSeq: 1, Err: &inference.Error{Code: inference.CodeCancelled}})
	require.Equal(t, inference.OutcomeCancelled, r.row(k.job.ID).Outcome)
}

// A worker that says nothing about a job that was given up does not keep its row away.
func TestTheRowOfAnUnheardJob(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	c.response()
	c.cancel()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	f := r.ingress.flights.find(k.job.ID)
	f.mu.Lock()
	f.closing = time.Now().Add(-time.Second)
	f.mu.Unlock()
	row := r.row(k.job.ID)
	require.Equal(t, inference.OutcomeCancelled, row.Outcome)
	require.Equal(t, 1, row.Attempts)
}

func TestADrainingIngressLetsItsStreamsGoOn(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	c.response()
	r.ingress.Drain()
	c.cancel()
	f := r.ingress.flights.find(k.job.ID)
	require.Eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.clientGone }, soon, time.Millisecond)
	require.Empty(t, r.cancelled)
	k.end(&queue.End{LastSeq: 1})
	require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome)
}
