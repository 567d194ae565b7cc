package worker

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

func says(worker string, pp ...queue.ProviderPresence) queue.Presence {
	return queue.Presence{Worker: worker, Providers: pp}
}

func withState(state string) queue.ProviderPresence {
	return queue.ProviderPresence{Name: testName, States: []inference.ModelState{{Model: "m", Breaker: state}}}
}

func TestPeers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ps := newPeers("self")
		well := func(model string) int { return ps.well(testName, model, time.Now()) }
		ps.heard(says("self", queue.ProviderPresence{Name: testName}))
		require.Zero(t, well("m"), "oneself is no peer")
		ps.heard(says("a", queue.ProviderPresence{Name: testName, Limit: 3}))
		ps.heard(says("b", withState(inference.BreakerOpen)))
		ps.heard(says("c", withState(inference.BreakerHalfOpen)))
		ps.heard(says("d", withState(inference.BreakerClosed)))
		ps.heard(says("e", queue.ProviderPresence{Name: "other"}))
		require.Equal(t, 2, well("m"))
		require.Equal(t, 4, well("another model"))
		require.Len(t, ps.of(testName, time.Now()), 4)
		require.Equal(t, 3, ps.of(testName, time.Now())["a"].Limit)

		ps.heard(says("b", withState(inference.BreakerClosed)))
		require.Equal(t, 3, well("m"), "the last word counts")
		ps.heard(queue.Presence{Worker: "d", Leaving: true})
		require.Equal(t, 2, well("m"), "it has left")
		require.NotContains(t, ps.all, "d")

		time.Sleep(peerGone - time.Second)
		ps.heard(says("a", queue.ProviderPresence{Name: testName}))
		time.Sleep(time.Second)
		require.Equal(t, 2, well("m"))
		time.Sleep(time.Nanosecond)
		require.Equal(t, 1, well("m"), "the others are silent")
		require.Len(t, ps.all, 1, "and forgotten")
	})
}

func TestPeersAreBounded(t *testing.T) {
	t.Parallel()
	ps := newPeers("self")
	for i := range maxPeers + 10 {
		ps.heard(says(fmt.Sprint(i), queue.ProviderPresence{Name: testName}))
	}
	require.Len(t, ps.all, maxPeers)
	ps.heard(says("1", withState(inference.BreakerOpen)))
	require.Equal(t, maxPeers-1, ps.well(testName, "m", time.Now()), "those that are known are heard")
}

func TestWhichCandidatesAreAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := New(Options{ID: "self", Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(), Members: []Member{
			{Name: testName, Provider: &script{}, Breaker: testBreaker},
		}})
		p := w.pools[0]
		w.peers.begin(time.Now())
		at := inference.Candidate{Provider: testName, Model: "m"}
		require.True(t, w.alive(inference.Candidate{Provider: "nobody's"}), "not all have been heard yet")
		time.Sleep(peersHeard)
		require.False(t, w.alive(inference.Candidate{Provider: "nobody's"}))
		require.False(t, w.alive(at), "this worker does not take its jobs yet")
		p.lanes[0].puller = &queue.Puller{}
		require.True(t, w.alive(at))
		for range 3 {
			done, _, err := p.admit("m")
			require.NoError(t, err)
			done(errPassing)
		}
		require.False(t, w.alive(at), "its breaker is open")
		require.True(t, w.alive(inference.Candidate{Provider: testName, Model: "other"}))
		w.peers.heard(says("peer", withState(inference.BreakerHalfOpen)))
		require.False(t, w.alive(at))
		w.peers.heard(says("peer2", queue.ProviderPresence{Name: testName}))
		require.True(t, w.alive(at))
		w.peers.heard(queue.Presence{Worker: "peer2", Leaving: true})
		p.stopped = true
		require.False(t, w.alive(inference.Candidate{Provider: testName, Model: "blind"}) && w.peers.well(testName, "blind", time.Now()) == 0)
	})
}

func TestCongestionOfAllWorkers(t *testing.T) {
	t.Parallel()
	own := queue.ProviderPresence{InFlight: 2, Waiting: 1}
	c, leader := congestionOf(own, nil, "b")
	require.Equal(t, congestion{inUse: 2, waiting: 1}, c)
	require.Equal(t, "b", leader)

	own.Slowdown = 1
	others := map[string]queue.ProviderPresence{"a": {InFlight: 6, Waiting: 7, Slowdown: 5}, "c": {InFlight: 10, Waiting: 3}}
	c, leader = congestionOf(own, others, "b")
	require.Equal(t, "a", leader)
	require.Equal(t, 18, c.inUse)
	require.Equal(t, 7, c.waiting, "all look at the same queue")
	require.InDelta(t, 4, c.slowdown, 1e-9, "by their calls; one that does not know is not counted")
	_, leader = congestionOf(own, map[string]queue.ProviderPresence{"c": {}}, "b")
	require.Equal(t, "b", leader)
}

// Each 429 counts once, whoever met it, and those from before are nobody's concern.
func TestLimitedCallsCountOnce(t *testing.T) {
	t.Parallel()
	w := New(Options{ID: "b", Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(), Members: []Member{{Name: testName, Provider: &script{}, Concurrency: 4}}})
	g := newGovernor(w.pools[0])
	at := func(own int64, others map[string]int64) int64 {
		said := make(map[string]queue.ProviderPresence)
		for id, n := range others {
			said[id] = queue.ProviderPresence{Limited: n}
		}
		g.unseen = 0
		g.countLimited(queue.ProviderPresence{Limited: own}, said)
		return g.unseen
	}
	require.EqualValues(t, 1, at(1, map[string]int64{"c": 50}))
	require.EqualValues(t, 0, at(1, map[string]int64{"c": 50}))
	require.EqualValues(t, 4, at(3, map[string]int64{"c": 52, "d": 9}))
	require.EqualValues(t, 1, at(3, map[string]int64{"c": 0, "d": 10}), "one was started again")
	require.EqualValues(t, 0, at(3, nil))
}

func TestAGovernorsBounds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ least, most, want int }{
		"fixed":        {0, 7, 7},
		"from one":     {1, 7, 1},
		"equal":        {7, 7, 7},
		"more than it": {9, 7, 7},
	} {
		w := New(Options{ID: "b", Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(), Members: []Member{{Name: testName, Provider: &script{}, MinConcurrency: c.least, Concurrency: c.most}}})
		g := newGovernor(w.pools[0])
		require.Equal(t, c.want, g.limit.least, name)
		require.Equal(t, c.most, g.limit.most, name)
		for range 20 {
			g.limit.adjust(congestion{limited: 1, inUse: 1})
		}
		require.InDelta(t, c.want, g.limit.now, 1e-9, name)
	}
}
