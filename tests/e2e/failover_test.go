package e2e_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

const spare = "spare" // the provider behind the first

// pair is a cluster with two providers of one model: the first one's upstream is the
// cluster's own.
func pair(t *testing.T) (*cluster, *testkit.Upstream) {
	t.Helper()
	c := newCluster(t, clusterOptions{})
	other := testkit.NewUpstream(t)
	c.write("ingress.yaml", `server: {address: 127.0.0.1:0, keepalive: 200ms, timeout: 1m}
queue: {url: %q}
store: {url: %q}
auth: {keys: [{name: e2e, key: %s, tenant: e2e}]}
providers: {%s: {models: [%s]}, %s: {models: [%s]}}
routing: {order: [%s, %s]}
`, c.nats.URL(), c.database, clusterKey, provider, clusterModel, spare, clusterModel, provider, spare)
	c.write("worker.yaml", `queue: {url: %q}
providers:
  %s: {type: openai, base_url: %q, models: [%s], breaker: {open_for: 1s}}
  %s: {type: openai, base_url: %q, models: [%s]}
observability: {address: "127.0.0.1:0"}
`, c.nats.URL(), provider, c.upstream.URL(), clusterModel, spare, other.URL(), clusterModel)
	return c, other
}

func (c *cluster) workerOf(in *ingress, name string, n int) *process {
	c.t.Helper()
	p := start(c.t, command{args: []string{"worker", "--provider", name, "--config", c.file("worker.yaml")}})
	p.eventually("take work", func() bool { return in.workersOf(name) == n })
	return p
}

// arrivals sends requests at a steady rate, whatever becomes of them, and collects what
// clients saw.
type arrivals struct {
	load
	began time.Time
}

const (
	perSecond = 200
	drillTime = 10 * time.Second
)

// keep sends requests until the drill is over.
func (a *arrivals) keep(t *testing.T, target client) {
	t.Helper()
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	for i := range perSecond * int(drillTime/time.Second) {
		<-tick.C
		a.finished.Go(func() { a.call(t.Context(), fmt.Sprintf("drill-%d", i), i, []client{target}) })
	}
}

// at waits for a time of the drill.
func (a *arrivals) at(d time.Duration) { <-time.After(time.Until(a.began.Add(d))) }

// Under load a provider dies and comes back, and a worker of the other one is killed in
// between. No client sees an error but one whose answer was just coming from that worker,
// which is not begun anew, and each request is accounted for once.
func TestAProvidersBadDayIsNotTheClients(t *testing.T) {
	t.Parallel()
	c, other := pair(t)
	c.upstream.Handle(echo)
	other.Handle(echo)
	in := c.ingress()
	c.workerOf(in, provider, 1)
	c.workerOf(in, provider, 2)
	c.workerOf(in, spare, 1)
	victim := c.workerOf(in, spare, 2)

	a := &arrivals{began: time.Now()}
	var sending sync.WaitGroup
	sending.Go(func() { a.keep(t, in.client) })
	a.at(2 * time.Second)
	c.upstream.Die()
	a.at(4 * time.Second)
	require.NotZero(t, other.Count())
	victim.kill()
	killed := time.Now()
	a.at(6 * time.Second)
	before := c.upstream.Count()
	c.upstream.Revive()
	sending.Wait()
	a.finished.Wait()
	cut := 0
	for _, err := range a.failures {
		require.ErrorIs(t, err, errBegun, "no client sees an error while a candidate lives")
		require.ErrorContains(t, err, "worker_lost")
		cut++
	}
	require.Len(t, a.requests, perSecond*int(drillTime/time.Second))
	require.Greater(t, c.upstream.Count(), before, "the provider is used again once it is back")

	rows := c.requireOneRowEach(a.requests)
	failedOver := 0
	for _, r := range rows {
		if r.ErrorCode == inference.CodeWorkerLost {
			require.Equal(t, spare, r.Provider, "whose worker was killed")
			require.True(t, r.CreatedAt.Before(killed), "its answer was coming at that moment")
			cut--
			continue
		}
		require.Equal(t, inference.OutcomeSucceeded, r.Outcome)
		require.Equal(t, http.StatusOK, r.Status)
		if len(r.Tries) > 0 {
			failedOver++
		}
	}
	require.Zero(t, cut, "a row for each answer that was cut")
	require.NotZero(t, failedOver, "some requests met the dead provider first")
}

// The only worker of the preferred provider is killed with calls in its hands and others
// in its queue. The other provider answers them all, long before their deadline.
func TestTheLastWorkerOfAProviderIsKilled(t *testing.T) {
	t.Parallel()
	c, other := pair(t)
	c.upstream.Handle(func(call *testkit.Call) { call.Hang() })
	other.Handle(echo)
	in := c.ingress()
	only := c.workerOf(in, provider, 1)
	c.workerOf(in, spare, 1)
	wait := askAll(t, []*ingress{in}, 10, "orphan", false)
	c.upstream.AwaitCount(10)
	untilHeldKnown()
	only.kill()
	results := wait()
	for _, r := range results {
		require.NoError(t, r.err)
	}
	for _, r := range c.requireOneRowEach(requests(results)) {
		require.Equal(t, inference.OutcomeSucceeded, r.Outcome)
		require.Equal(t, spare, r.Provider)
		require.Equal(t, 2, r.Attempts, "the lost call is counted")
	}
}
