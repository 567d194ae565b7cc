package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

func TestCancelClosesTheUpstreamSocketAtOnce(t *testing.T) {
	t.Parallel()
	const clients, each, bound = 4, 30, 250 * time.Millisecond
	c := newCluster(t, clusterOptions{})
	in := c.ingress()
	c.worker(in, 1)
	var gone sync.Map // prompt → channel that takes the time at which the upstream saw the client go
	c.upstream.Handle(func(call *testkit.Call) {
		ch, _ := gone.Load(prompt(call))
		call.Delta("first")
		<-call.Disconnected()
		if seen, ok := ch.(chan time.Time); ok {
			seen <- time.Now()
		}
	})

	var mu sync.Mutex
	var took []time.Duration
	var requests []string
	var all sync.WaitGroup
	for n := range clients {
		all.Go(func() {
			for i := range each {
				id := fmt.Sprintf("cancel-%d-%d", n, i)
				seen := make(chan time.Time, 1)
				gone.Store(id, seen)
				d, err := cancelAfterFirst(t.Context(), in.client, id, seen)
				if err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				mu.Lock()
				took, requests = append(took, d), append(requests, id)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	require.False(t, t.Failed())
	slices.Sort(took)
	p99 := took[(len(took)*99+99)/100-1]
	t.Logf("%d cancels: p50 %s, p99 %s, most %s", len(took), took[len(took)/2], p99, took[len(took)-1])
	require.Less(t, p99, bound)
	for id, row := range c.requireOneRowEach(requests) {
		require.Equal(t, inference.OutcomeCancelled, row.Outcome, id)
		require.Equal(t, 1, row.Attempts, id)
	}
}

// cancelAfterFirst begins a stream, drops it after the first frame, and returns how
// long it took until the upstream saw its own connection closed.
func cancelAfterFirst(ctx context.Context, c client, id string, seen <-chan time.Time) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.post(ctx, chatBody(clusterModel, true, id), http.Header{"X-Request-Id": {id}})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
		return 0, err
	}
	began := time.Now()
	cancel()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case at := <-seen:
		return at.Sub(began), nil
	case <-limit.C:
		return 0, fmt.Errorf("upstream's connection still open after %s", patience)
	}
}

func TestCancelOfAPlainCallClosesTheUpstreamSocket(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	in := c.ingress()
	c.worker(in, 1)
	c.upstream.Handle(func(call *testkit.Call) { call.Hang() })
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := in.ask(ctx, "plain", requestID("plain"))
		failed <- err
	}()
	c.upstream.AwaitCount(1)
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
	c.upstream.AwaitDisconnects(1)
	row := c.requireOneRowEach([]string{"plain"})["plain"]
	require.Equal(t, inference.OutcomeCancelled, row.Outcome)
}

func TestQueuedJobOfAGoneClientNeverReachesTheUpstream(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{concurrency: 1})
	in := c.ingress()
	c.worker(in, 1)
	gate := make(chan struct{})
	c.upstream.Handle(func(call *testkit.Call) {
		if call.Wait(gate) {
			call.Reply("served ", prompt(call))
		}
	})
	running := askAll(t, []*ingress{in}, 1, "running", false)
	c.upstream.AwaitCount(1)
	ctx, cancel := context.WithCancel(t.Context())
	var gone sync.WaitGroup
	for _, id := range []string{"gone-plain", "gone-stream"} {
		gone.Go(func() {
			call := in.ask
			if id == "gone-stream" {
				call = in.askStream
			}
			_, err := call(ctx, id, requestID(id))
			if err == nil {
				t.Errorf("%s was answered", id)
			}
		})
	}
	in.eventually("queue both", func() bool { return waiting(in) == 2 })
	cancel()
	gone.Wait()
	in.eventually("take both out of the queue", func() bool { return waiting(in) == 0 })
	close(gate)
	require.NoError(t, running()[0].err)
	text, err := in.ask(t.Context(), "last", requestID("last"))
	require.NoError(t, err)
	require.Equal(t, "served last", text)
	require.Equal(t, 2, c.upstream.Count(), "those who waited never reached the upstream")
	rows := c.requireOneRowEach([]string{"running-0", "gone-plain", "gone-stream", "last"})
	for _, id := range []string{"gone-plain", "gone-stream"} {
		require.Equal(t, inference.OutcomeCancelled, rows[id].Outcome, id)
		require.Zero(t, rows[id].Attempts, id)
	}
}

func TestDeadlineHoldsEndToEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{concurrency: 3})
	in := c.ingress()
	c.worker(in, 1)
	c.upstream.Handle(func(call *testkit.Call) {
		if prompt(call) == "begun" {
			call.Delta("begun")
		}
		call.Hang()
	})
	timeout := http.Header{"X-Sluice-Timeout": {"1s"}, "X-Request-Id": {"begun"}}
	began := time.Now()
	plain := askAll(t, []*ingress{in}, 1, "plain", false, "X-Sluice-Timeout", "1s")
	silent := askAll(t, []*ingress{in}, 1, "silent", true, "X-Sluice-Timeout", "1s")
	begun := in.openStream(t, clusterModel, "begun", timeout)
	c.upstream.AwaitCount(3)
	queued := askAll(t, []*ingress{in}, 1, "queued", false, "X-Sluice-Timeout", "300ms")

	require.Equal(t, http.StatusGatewayTimeout, statusOf(queued()[0].err), "while it waits in the queue")
	require.Equal(t, http.StatusGatewayTimeout, statusOf(plain()[0].err), "while the upstream works")
	require.Error(t, silent()[0].err)
	rest := begun.rest()
	require.Equal(t, "deadline_exceeded", rest[len(rest)-1].errorCode(), "in the middle of a stream")
	require.Less(t, time.Since(began), 20*time.Second)
	c.upstream.AwaitDisconnects(3)
	require.Equal(t, 3, c.upstream.Count(), "the queued one never reached the upstream")
	for id, row := range c.requireOneRowEach([]string{"plain-0", "silent-0", "begun", "queued-0"}) {
		require.Equal(t, inference.OutcomeExpired, row.Outcome, id)
	}
}
