package integration

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// TestCancelClosesTheUpstream measures how long after a client's leaving the
// upstream's socket closes.
func TestCancelClosesTheUpstream(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.up.Handle(func(c *testkit.Call) {
		if c.Streamed() {
			c.Delta("a")
		}
		c.Hang()
	})
	const n, promised = 100, 250 * time.Millisecond
	var took []time.Duration
	for i := range n {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var left time.Time
		if i%2 == 0 {
			go func() {
				_, err := s.try(ctx, 0, http.MethodPost, chatPath, plainBody)
				done <- err
			}()
			s.up.AwaitCount(i + 1)
			left = time.Now()
			cancel()
			require.ErrorIs(t, <-done, context.Canceled)
		} else {
			st := s.stream(streamBody)
			st.event()
			left = time.Now()
			st.drop()
			cancel()
		}
		took = append(took, s.up.AwaitDisconnects(i + 1)[i].Sub(left))
	}
	slices.Sort(took)
	require.Less(t, took[n*99/100-1], promised, "p50 %s, most %s", took[n/2], took[n-1])
	for _, r := range s.rows(n) {
		require.Equal(t, inference.OutcomeCancelled, r.Outcome)
		require.Equal(t, 499, r.Status)
		require.Equal(t, inference.CodeCancelled, r.ErrorCode)
		require.Equal(t, 1, r.Attempts)
		require.Equal(t, r.Stream, r.Usage.Known)
		if r.Stream {
			require.True(t, r.Usage.Estimated)
			require.EqualValues(t, 1, r.Usage.CompletionTokens)
		}
	}
}

// TestCancelInTheQueue has clients leave whose jobs wait: no call is made for them.
func TestCancelInTheQueue(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.concurrency, o.slots = 1, 1 })
	gate := make(chan struct{})
	s.up.Handle(func(c *testkit.Call) { c.Wait(gate); c.Reply("x") })
	answers := make(chan answer, 2)
	post := func() {
		a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
		if err != nil {
			t.Error(err)
		}
		answers <- a
	}
	go post()
	s.up.AwaitCount(1)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 2)
	for _, body := range []string{plainBody, streamBody} {
		go func() {
			_, err := s.try(ctx, 0, http.MethodPost, chatPath, body, "X-Request-Id", "r-gone")
			gone <- err
		}()
	}
	const depth = `sluice_queue_depth{provider="acme",state="waiting"}`
	s.eventually(func() bool { return s.metric(depth) == 2 }, "two jobs wait")
	cancel()
	for range 2 {
		require.ErrorIs(t, <-gone, context.Canceled)
	}
	s.eventually(func() bool { return s.metric(depth) == 0 }, "the queue is empty")
	go post()
	s.eventually(func() bool { return s.metric(depth) == 1 }, "one job waits")
	close(gate)
	for range 2 {
		require.Equal(t, http.StatusOK, (<-answers).status)
	}
	require.Equal(t, 2, s.up.Count())
	cancelled := 0
	for _, r := range s.rows(4) {
		if r.Outcome == inference.OutcomeCancelled {
			cancelled++
			require.Equal(t, "r-gone", r.RequestID)
			require.Zero(t, r.Attempts)
			require.Equal(t, 499, r.Status)
		}
	}
	require.Equal(t, 2, cancelled)
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) {
		o.concurrency, o.slots, o.timeout, o.keepalive = 1, 1, 600*time.Millisecond, 50*time.Millisecond
	})
	s.up.Handle((*testkit.Call).Hang)
	expired := func(a answer, err error) {
		t.Helper()
		require.NoError(t, err)
		require.Equal(t, http.StatusGatewayTimeout, a.status)
		require.Equal(t, "deadline_exceeded", s.fault(a.body).Code)
	}
	began := time.Now()
	expired(s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody, "X-Sluice-Timeout", "0.1"))
	expired(s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody, "X-Sluice-Timeout", "10h"))
	require.Less(t, time.Since(began), patience, "the server's own timeout is the most")
	s.up.AwaitDisconnects(2)
	s.up.AwaitIdle()

	// One job takes the slot, so that the others' deadlines pass in the queue.
	busy := make(chan error, 1)
	go func() {
		_, err := s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
		busy <- err
	}()
	s.up.AwaitCount(3)
	expired(s.try(t.Context(), 0, http.MethodPost, chatPath, plainBody, "X-Sluice-Timeout", "100ms"))
	require.NoError(t, <-busy)
	s.up.AwaitDisconnects(3)

	s.up.Handle(func(c *testkit.Call) { c.Delta("a"); c.Hang() })
	events := s.stream(streamBody, "X-Sluice-Timeout", "300ms").rest()
	require.Len(t, events, 2)
	require.Equal(t, "deadline_exceeded", s.fault(events[1].data).Code)
	s.up.AwaitDisconnects(4)
	require.Equal(t, 4, s.up.Count())
	for _, r := range s.rows(5) {
		require.Equal(t, inference.OutcomeExpired, r.Outcome)
		require.Equal(t, http.StatusGatewayTimeout, r.Status)
	}
}

// TestBrokenUploads has clients that promise a body and leave in the middle of it.
func TestBrokenUploads(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.doors[0].url+chatPath, &halfBody{text: strings.NewReader(plainBody[:20]), cancel: cancel})
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+s.secret)
	req.ContentLength = int64(len(plainBody))
	resp, err := s.http.Do(req)
	if err == nil {
		resp.Body.Close()
	}
	require.Error(t, err)
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	s.rows(1)
	require.Equal(t, 1, s.up.Count())
}

// halfBody ends its request's context once the text is read.
type halfBody struct {
	text   *strings.Reader
	cancel context.CancelFunc
}

func (h *halfBody) Read(p []byte) (int, error) {
	if h.text.Len() == 0 {
		h.cancel()
		return 0, errors.New("no more")
	}
	return h.text.Read(p)
}
