package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// load is a number of clients that call without a pause, half of them streaming. A
// client that gets no connection goes to the next address, as behind any load
// balancer; every other failure is kept.
type load struct {
	stop     context.CancelFunc
	finished sync.WaitGroup
	answered atomic.Int64

	mu       sync.Mutex
	requests []string
	failures []error
}

func startLoad(t *testing.T, name string, clients int, targets ...client) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel}
	t.Cleanup(l.finished.Wait)
	t.Cleanup(cancel)
	for n := range clients {
		l.finished.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				l.call(t.Context(), fmt.Sprintf("%s-%d-%d", name, n, i), n+i, targets)
			}
		})
	}
	return l
}

// errBegun marks the failure of a stream of which the client had seen a part.
var errBegun = errors.New("its answer had begun")

// call makes one request, which is never given up: the load stops between two.
func (l *load) call(ctx context.Context, id string, turn int, targets []client) {
	var text string
	var err error
	for try := range targets {
		target := targets[(turn+try)%len(targets)]
		if turn%2 == 0 {
			text, err = target.ask(ctx, id, requestID(id))
		} else {
			text, err = target.askStream(ctx, id, requestID(id))
		}
		if !noConnection(err) {
			break
		}
	}
	if err == nil && text != "echo "+id {
		err = fmt.Errorf("answer %q", text)
	} else if err != nil && text != "" {
		err = fmt.Errorf("%w: %w", errBegun, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, id)
	if err != nil {
		l.failures = append(l.failures, fmt.Errorf("%s: %w", id, err))
		return
	}
	l.answered.Add(1)
}

// noConnection reports whether the server never had the connection: it refused, or
// the system reset what stood in a closed socket's queue, not yet accepted. That such a
// request was really not taken shows in the ledger and at the upstream.
func noConnection(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}

// more waits until so many further requests have been answered.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	want := l.answered.Load() + n
	require.Eventually(t, func() bool { return l.answered.Load() >= want }, patience, pollEvery, "the load does not go on")
}

// end stops the load and returns the ids of its requests, all of which were answered.
func (l *load) end(t *testing.T) []string {
	t.Helper()
	l.stop()
	l.finished.Wait()
	require.Empty(t, l.failures, "no client sees an error")
	return l.requests
}

func echo(call *testkit.Call) {
	if call.Pause(30 * time.Millisecond) {
		call.Reply("echo ", prompt(call))
	}
}

// fresh is a client that takes a new connection for each request, as the clients of
// a load balancer do.
func (i *ingress) fresh() client {
	return clientOver(&http.Transport{DisableKeepAlives: true}, i.base[len("http://"):], i.key)
}

func TestWorkerDrainsUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	a, b := c.ingress(), c.ingress()
	c.upstream.Handle(echo)
	first := c.worker(a, 1)
	c.worker(a, 2)
	l := startLoad(t, "load", 12, a.client, b.client)
	l.more(t, 40)
	first.signal(syscall.SIGTERM)
	require.Zero(t, first.wait(), "exit code after SIGTERM")
	l.more(t, 40)
	require.Equal(t, 1, a.workers(), "it said that it leaves")
	requests := l.end(t)
	rows := c.requireOneRowEach(requests)
	for id, row := range rows {
		require.Equal(t, 1, row.Attempts, "%s: no call of a draining worker is made twice", id)
	}
	require.Equal(t, len(requests), c.upstream.Count())
}

func TestIngressDrainsUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	a, b := c.ingress(), c.ingress()
	c.upstream.Handle(echo)
	c.worker(a, 1)
	loads := []*load{
		startLoad(t, "fresh", 6, a.fresh(), b.fresh()),
		startLoad(t, "kept", 6, a.client, b.client), // connections are kept from request to request
	}
	for _, l := range loads {
		l.more(t, 20)
	}
	a.signal(syscall.SIGTERM)
	require.Zero(t, a.wait(), "exit code after SIGTERM")
	var requests []string
	for _, l := range loads {
		l.more(t, 20)
		requests = append(requests, l.end(t)...)
	}
	c.requireOneRowEach(requests)
	require.Equal(t, len(requests), c.upstream.Count())
}

// TestDrainFinishesTheWorkInHand stops every process while it holds calls that take
// a while.
func TestDrainFinishesTheWorkInHand(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{})
	in := c.ingress()
	w := c.worker(in, 1)
	gate := make(chan struct{})
	c.upstream.Handle(func(call *testkit.Call) {
		if call.Streamed() {
			call.Delta("late ")
		}
		if call.Wait(gate) {
			if call.Streamed() {
				call.Delta(prompt(call))
				call.Finish("stop")
				call.Done()
				return
			}
			call.Reply("late ", prompt(call))
		}
	})
	plain := askAll(t, []*ingress{in}, 4, "plain", false)
	streamed := askAll(t, []*ingress{in}, 4, "streamed", true)
	c.upstream.AwaitCount(8)
	w.signal(syscall.SIGTERM)
	in.signal(syscall.SIGTERM)
	in.eventually("refuse connections", func() bool {
		resp, err := in.fresh().http.Get(in.base + "/livez")
		if err == nil {
			drop(resp)
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	close(gate)
	for _, r := range append(plain(), streamed()...) {
		require.NoError(t, r.err, r.request)
		require.Equal(t, "late "+r.request, r.text)
	}
	require.Zero(t, in.wait())
	require.Zero(t, w.wait())
}

// impatient is a drain timeout that work in hand outlasts.
const impatient = "  drain_timeout: 500ms\n"

func TestWorkerThatCannotFinishInTimeHandsItsCallsOver(t *testing.T) {
	t.Parallel()
	const calls = 5
	c := newCluster(t, clusterOptions{server: impatient})
	in := c.ingress()
	leaving := c.worker(in, 1)
	c.upstream.Handle(func(call *testkit.Call) {
		if call.Streamed() {
			call.Delta("begun")
			call.Hang()
		} else if call.N <= calls+1 {
			call.Hang()
		}
		call.Reply("handed over ", prompt(call))
	})
	plain := askAll(t, []*ingress{in}, calls, "plain", false)
	s := in.openStream(t, clusterModel, "streamed", http.Header{"X-Request-Id": {"streamed"}})
	s.until("begun")
	c.upstream.AwaitCount(calls + 1)
	c.worker(in, 2)
	untilHeldKnown()
	leaving.signal(syscall.SIGTERM)
	require.Zero(t, leaving.wait())
	for _, r := range plain() {
		require.NoError(t, r.err, r.request)
		require.Equal(t, "handed over "+r.request, r.text)
		require.Less(t, r.after, patience)
	}
	end := s.rest()
	require.Len(t, end, 1)
	require.Equal(t, "worker_lost", end[0].errorCode(), "an answer that has begun is not begun anew")
	rows := c.requireOneRowEach(append(requests(plain()), "streamed"))
	for _, r := range plain() {
		require.Equal(t, 2, rows[r.request].Attempts, "the run that was given up is counted")
	}
}

func TestStreamCutByADrainGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{server: impatient})
	leaving, other := c.ingress(), c.ingress()
	c.worker(leaving, 1)
	answer := drip(c.upstream)
	s := leaving.openStream(t, clusterModel, "cut", http.Header{"X-Request-Id": {"cut"}})
	whole := answer.say(0, 10)
	got := s.until("w9 ")
	leaving.signal(syscall.SIGTERM)
	got = append(got, s.rest()...)
	require.NotEqual(t, "[DONE]", got[len(got)-1].data)
	whole += answer.say(10, 20)
	resumed := other.resume(t, s.job(), got[len(got)-1].id)
	got = append(got, resumed.until("w19 ")...)
	require.Zero(t, leaving.wait())
	whole += answer.say(20, 30)
	close(answer.words)
	got = append(got, resumed.rest()...)
	require.Equal(t, whole, texts(got))
	require.True(t, got[len(got)-1].done())
	c.requireOneRowEach([]string{"cut"})
}

// A load balancer that asks /readyz learns that an ingress is stopping while new
// connections are still served.
func TestAStoppingIngressGivesItsLoadBalancerTime(t *testing.T) {
	t.Parallel()
	p := serving(t, t.TempDir(), "SLUICE_SERVER_DRAIN_DELAY=6s")
	key := firstKey(t, p)
	p.signal(syscall.SIGTERM)
	p.eventually("say that it is stopping", func() bool {
		fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.address()+"/readyz", nil)
		require.NoError(t, err)
		resp, err := fresh.Do(req)
		return err == nil && drop(resp) == http.StatusServiceUnavailable
	})
	say(t, p, key, "late-but-in-time")
	require.Zero(t, p.wait())
}
