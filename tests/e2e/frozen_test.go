package e2e_test

import (
	"net/http"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// TestFrozenWorkerComesBackTooLate stops a worker as a long pause of its machine
// would. Another one takes over; what the first says when it wakes counts for nothing.
func TestFrozenWorkerComesBackTooLate(t *testing.T) {
	t.Parallel()
	const calls = 6
	c := newCluster(t, clusterOptions{})
	in := c.ingress()
	frozen := c.worker(in, 1)
	gate := make(chan struct{})
	c.upstream.Handle(func(call *testkit.Call) {
		if call.Streamed() {
			call.Delta("begun")
		}
		if call.N <= calls+1 && !call.Wait(gate) {
			return
		}
		if call.Streamed() {
			call.Delta("too late")
			call.Done()
			return
		}
		call.Reply("call ", string(rune('0'+min((call.N-1)/(calls+1), 1))))
	})
	plain := askAll(t, []*ingress{in}, calls, "plain", false)
	s := in.openStream(t, clusterModel, "streamed", http.Header{"X-Request-Id": {"streamed"}})
	s.until("begun")
	c.upstream.AwaitCount(calls + 1)
	c.worker(in, 2)
	untilHeldKnown()
	frozen.signal(syscall.SIGSTOP)
	results := plain()
	frozen.signal(syscall.SIGCONT)
	close(gate)
	for _, r := range results {
		require.NoError(t, r.err, r.request)
		require.Equal(t, "call 1", r.text, "%s: the second call is the one that counts", r.request)
	}
	end := s.rest()
	require.Len(t, end, 1)
	require.Equal(t, "worker_lost", end[0].errorCode())
	frozen.signal(syscall.SIGTERM)
	require.Zero(t, frozen.wait(), "it knows that its calls are settled")
	for id, row := range c.requireOneRowEach(append(requests(results), "streamed")) {
		if id == "streamed" {
			require.Equal(t, inference.OutcomeFailed, row.Outcome)
			continue
		}
		require.Equal(t, 2, row.Attempts, id)
	}
	in.eventually("empty the queue", func() bool { return waiting(in) == 0 && running(in) == 0 })
}
