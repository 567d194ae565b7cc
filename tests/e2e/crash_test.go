package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// result is what one client got for one request.
type result struct {
	request string
	stream  bool
	text    string
	err     error
	after   time.Duration
}

// askAll sends n requests at once, spread over the ingresses, and returns the place
// where their results will be.
func askAll(t *testing.T, ins []*ingress, n int, name string, stream bool, header ...string) (wait func() []result) {
	t.Helper()
	results := make([]result, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			r := result{request: fmt.Sprintf("%s-%d", name, i), stream: stream}
			in, began := ins[i%len(ins)], time.Now()
			call := in.ask
			if stream {
				call = in.askStream
			}
			r.text, r.err = call(t.Context(), r.request, headerOptions(r.request, header)...)
			r.after = time.Since(began)
			results[i] = r
		})
	}
	return func() []result {
		all.Wait()
		return results
	}
}

func requests(results []result) []string {
	ids := make([]string, len(results))
	for i, r := range results {
		ids[i] = r.request
	}
	return ids
}

func TestKilledWorkersCallsAreAnsweredByAnother(t *testing.T) {
	t.Parallel()
	const calls = 20
	c := newCluster(t, clusterOptions{})
	a, b := c.ingress(), c.ingress()
	doomed := c.worker(a, 1)
	c.upstream.Handle(func(call *testkit.Call) {
		if call.N <= calls {
			call.Hang()
			return
		}
		call.Reply("echo of ", prompt(call))
	})
	wait := askAll(t, []*ingress{a, b}, calls, "held", false)
	c.upstream.AwaitCount(calls)
	c.worker(a, 2)
	untilHeldKnown()
	doomed.kill()

	results := wait()
	for _, r := range results {
		require.NoError(t, r.err, r.request)
		require.Equal(t, "echo of "+r.request, r.text, "each client gets its own answer")
	}
	require.Equal(t, 2*calls, c.upstream.Count(), "each call is made twice and no more")
	for id, row := range c.requireOneRowEach(requests(results)) {
		require.Equal(t, inference.OutcomeSucceeded, row.Outcome, id)
		require.Equal(t, 2, row.Attempts, "%s: the lost run counts as an attempt", id)
		require.Equal(t, int64(7), row.Usage.PromptTokens, id)
	}
}

// TestKilledNATS takes the queue away while calls run, stream and wait. What the
// upstream says meanwhile, it says into the outage.
func TestKilledNATS(t *testing.T) {
	t.Parallel()
	const each, deadline = 6, 60 * time.Second
	c := newCluster(t, clusterOptions{concurrency: 2 * each})
	a, b := c.ingress(), c.ingress()
	c.worker(a, 1)
	c.worker(a, 2)
	first, second := make(chan struct{}), make(chan struct{})
	c.upstream.Handle(func(call *testkit.Call) {
		gate := first
		if strings.HasSuffix(prompt(call), "1") || strings.HasSuffix(prompt(call), "3") {
			gate = second
		}
		if !call.Streamed() {
			if call.Wait(gate) {
				call.Reply("whole ", prompt(call))
			}
			return
		}
		call.Delta("be")
		call.Delta("gun ")
		if call.Wait(gate) {
			call.Delta(prompt(call))
			call.Finish("stop")
			call.Done()
		}
	})
	both := []*ingress{a, b}
	timeout := deadline.String()
	running := askAll(t, both, each, "running", false, "X-Sluice-Timeout", timeout)
	streaming := askAll(t, both, each, "streaming", true, "X-Sluice-Timeout", timeout)
	c.upstream.AwaitCount(2 * each)
	queued := askAll(t, both, each, "queued", false, "X-Sluice-Timeout", timeout)
	queuedStreams := askAll(t, both, each, "queued-stream", true, "X-Sluice-Timeout", timeout)
	a.eventually("queue the rest", func() bool { return waiting(a) == 2*each })

	require.NoError(t, c.nats.Kill())
	close(first) // answers come while there is no queue to bring them back
	require.NoError(t, c.nats.Start())
	close(second)

	var all []result
	for _, wait := range []func() []result{running, streaming, queued, queuedStreams} {
		all = append(all, wait()...)
	}
	answered := 0
	for _, r := range all {
		require.Less(t, r.after, deadline+5*time.Second, "%s hung", r.request)
		if r.err != nil {
			require.True(t, strings.HasPrefix(r.request, "streaming-"), "%s: what has not begun is never lost: %v", r.request, r.err)
			requireClearError(t, r.err)
			continue
		}
		answered++
		want := "whole " + r.request
		if r.stream {
			want = "begun " + r.request
		}
		require.Equal(t, want, r.text, r.request)
	}
	t.Logf("%d of %d answered, the rest failed with an error", answered, len(all))
	c.requireOneRowEach(requests(all))

	// The queue is whole again.
	text, err := a.ask(t.Context(), "afterwards")
	require.NoError(t, err)
	require.Equal(t, "whole afterwards", text)
}

// requireClearError requires an error that tells the client what happened: an error
// response of ours, or an error event in a stream that had begun.
func requireClearError(t *testing.T, err error) {
	t.Helper()
	if statusOf(err) == 0 {
		require.ErrorContains(t, err, "error while streaming")
		return
	}
	require.Contains(t, []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, statusOf(err), "%v", err)
}

// TestLoadOverAnOutageOfNATS keeps clients calling while the queue goes down for a
// while, and once more.
func TestLoadOverAnOutageOfNATS(t *testing.T) {
	t.Parallel()
	const down = 4 * time.Second // longer than any word of a worker is taken for a sign of life
	c := newCluster(t, clusterOptions{})
	a, b := c.ingress(), c.ingress()
	c.upstream.Handle(echo)
	c.worker(a, 1)
	c.worker(a, 2)
	l := startLoad(t, "load", 8, a.client, b.client)
	for range 2 {
		l.more(t, 40)
		require.NoError(t, c.nats.Kill())
		up := time.NewTimer(down)
		<-up.C
		require.NoError(t, c.nats.Start())
	}
	l.more(t, 40)
	l.stop()
	l.finished.Wait()
	for _, err := range l.failures {
		requireClearError(t, err)
	}
	t.Logf("%d requests, %d failed", len(l.requests), len(l.failures))
	c.requireOneRowEach(l.requests)
}

// TestRequestsMadeDuringALongOutageOfNATS has an outage longer than an ingress tries
// to publish for, so that only what it does after the reconnect can save a request.
func TestRequestsMadeDuringALongOutageOfNATS(t *testing.T) {
	t.Parallel()
	const down = 17 * time.Second
	for _, storage := range []string{"memory", "file"} {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{storage: storage})
			in := c.ingress()
			c.upstream.Handle(echo)
			c.worker(in, 1)
			require.NoError(t, c.nats.Kill())
			in.eventually("notice", func() bool { return strings.Contains(in.stderr.String(), "disconnected from nats") })
			plain := askAll(t, []*ingress{in}, 4, "plain", false)
			streamed := askAll(t, []*ingress{in}, 4, "streamed", true)
			up := time.NewTimer(down)
			<-up.C
			require.NoError(t, c.nats.Start())
			all := append(plain(), streamed()...)
			for _, r := range all {
				require.NoError(t, r.err, r.request)
				require.Equal(t, "echo "+r.request, r.text)
			}
			c.requireOneRowEach(requests(all))
			require.Equal(t, len(all), c.upstream.Count())
		})
	}
}

func TestKilledIngresssCallsAreAccountedFor(t *testing.T) {
	t.Parallel()
	const calls = 6
	c := newCluster(t, clusterOptions{concurrency: calls})
	doomed, other := c.ingress(), c.ingress()
	c.worker(doomed, 1)
	gate := make(chan struct{})
	c.upstream.Handle(func(call *testkit.Call) {
		if call.Wait(gate) {
			call.Reply("for ", prompt(call))
		}
	})
	lost := askAll(t, []*ingress{doomed}, calls, "running", false)
	c.upstream.AwaitCount(calls)
	queued := askAll(t, []*ingress{doomed}, calls, "queued", false)
	doomed.eventually("queue the rest", func() bool { return waiting(doomed) == calls })
	doomed.kill()
	close(gate)
	sent := append(requests(lost()), requests(queued())...)
	for _, r := range append(lost(), queued()...) {
		require.Error(t, r.err, "its connection broke")
	}
	for id, row := range c.requireOneRowEach(sent) {
		require.Equal(t, inference.OutcomeAbandoned, row.Outcome, id)
		require.Equal(t, 1, row.Attempts, id)
	}
	require.Equal(t, 2*calls, c.upstream.Count())
	text, err := other.ask(t.Context(), "the living")
	require.NoError(t, err)
	require.Equal(t, "for the living", text)
}

func TestWorkerKilledBeforeTheFirstTokenIsReplacedUnseen(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	in := c.ingress()
	doomed := c.worker(in, 1)
	c.upstream.Handle(func(call *testkit.Call) {
		if call.N == 1 {
			call.Stream()
			call.Hang()
			return
		}
		call.Reply("as ", "if ", "nothing")
	})
	type answer struct {
		resp *http.Response
		err  error
	}
	begun := make(chan answer, 1)
	go func() {
		resp, err := in.post(t.Context(), chatBody(clusterModel, true, "unseen"), nil)
		begun <- answer{resp, err}
	}()
	c.upstream.AwaitCount(1)
	c.worker(in, 2)
	doomed.kill()
	a := <-begun
	require.NoError(t, a.err)
	s := newStream(t, a.resp)
	events := s.rest()
	require.Equal(t, "as if nothing", texts(events))
	require.True(t, events[len(events)-1].done())
	require.Positive(t, s.comments, "comments keep the connection open meanwhile")
}

func TestWorkerKilledAfterTheFirstTokenEndsTheStreamWithAnError(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	in := c.ingress()
	doomed := c.worker(in, 1)
	c.upstream.Handle(func(call *testkit.Call) {
		call.Delta("first")
		call.Hang()
	})
	s := in.openStream(t, clusterModel, "seen", http.Header{"X-Request-Id": {"seen"}})
	seen := s.until("first")
	reader := in.resume(t, s.job(), "")
	reader.until("first") // the token is kept by now, not only shown
	c.worker(in, 2)
	doomed.kill()
	rest := s.rest()
	require.Len(t, rest, 1, "one frame follows: the error")
	require.Equal(t, "worker_lost", rest[0].errorCode())
	require.Equal(t, 1, c.upstream.Count(), "an answer that has begun is not begun anew")
	row := c.requireOneRowEach([]string{"seen"})["seen"]
	require.Equal(t, inference.OutcomeFailed, row.Outcome)

	// Whoever reads the kept events finds the same end, before and after it.
	rest = reader.rest()
	require.Len(t, rest, 1)
	require.Equal(t, "worker_lost", rest[0].errorCode())
	kept := in.resume(t, s.job(), "").rest()
	require.Equal(t, "first", texts(kept))
	require.Equal(t, "worker_lost", kept[len(kept)-1].errorCode())
	resp := in.resumeRaw(t, s.job(), seen[len(seen)-1].id)
	require.Equal(t, http.StatusBadGateway, drop(resp), "nothing but the error is left to tell")
}
