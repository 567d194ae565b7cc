package worker

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server" //nolint:depguard // the bound is the server's to tell
	"github.com/nats-io/nats.go"               //nolint:depguard // as above
	"github.com/nats-io/nats.go/jetstream"     //nolint:depguard // as above
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// listening is the rig of a server that the test asks for itself, too.
func listening(t *testing.T, fn func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error)) (*rig, jetstream.JetStream) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true})
	require.NoError(t, err)
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	require.True(t, srv.ReadyForConnections(soon))
	nc, err := nats.Connect(srv.ClientURL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	return setupAt(t, nil, srv.ClientURL(), fn), js
}

// unheard is a subject whose messages reach somebody who never answers.
func unheard(t *testing.T, js jetstream.JetStream, subject string) {
	t.Helper()
	sub, err := js.Conn().Subscribe(subject, func(*nats.Msg) {})
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Unsubscribe() })
}

// bound is how many jobs the server lets the provider's workers have in hand.
func bound(t *testing.T, js jetstream.JetStream) int {
	t.Helper()
	c, err := js.Consumer(t.Context(), "SLUICE_JOB_"+testName, string(inference.LaneInteractive))
	if err != nil {
		return -1
	}
	return c.CachedInfo().Config.MaxAckPending
}

func isBound(t *testing.T, js jetstream.JetStream, want int) {
	t.Helper()
	got := 0
	require.Eventually(t, func() bool { got = bound(t, js); return got == want }, soon, 20*time.Millisecond, "want %d", want)
}

// staysBound looks for some ticks of the governors.
func staysBound(t *testing.T, js jetstream.JetStream, want int) {
	t.Helper()
	require.Never(t, func() bool { return bound(t, js) != want }, 5*governEvery+firstBeat, 10*time.Millisecond)
}

// adaptive lets the limit fall.
func adaptive(o *Options) { o.Members[0].MinConcurrency = 1 }

// meter counts calls at once.
type meter struct {
	now, most atomic.Int64
}

func (m *meter) enter() {
	n := m.now.Add(1)
	for most := m.most.Load(); n > most && !m.most.CompareAndSwap(most, n); most = m.most.Load() {
	}
}

func (m *meter) leave() { m.now.Add(-1) }

// settleAll takes the ends of n jobs, whatever they are.
func (r *rig) settleAll(n int) (ends []*queue.End) {
	r.t.Helper()
	seen := make(map[string]bool)
	for len(seen) < n {
		e := next(r.t, r.ends)
		r.settle(e)
		if !seen[e.JobID] {
			ends = append(ends, e)
		}
		seen[e.JobID] = true
	}
	return ends
}

func TestTheLimitFallsAfterA429AndClimbsAgain(t *testing.T) {
	t.Parallel()
	var m meter
	var angry atomic.Bool
	angry.Store(true)
	r, js := listening(t, func(ctx context.Context, _ int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		m.enter()
		defer m.leave()
		if angry.Load() && m.now.Load() > 3 {
			return nil, &inference.Error{Code: inference.CodeUpstreamRateLimited, Status: 429, Retryable: true, RetryAfter: 300 * time.Millisecond}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
		return answer(`{}`)
	})
	few := func(o *Options) { adaptive(o); o.Members[0].Concurrency = 8 }
	a, _ := r.start("a", few)
	b, _ := r.start("b", few)
	isBound(t, js, 8)
	stop := make(chan struct{})
	var feeding sync.WaitGroup
	feeding.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-r.published:
			case e := <-r.ends:
				_ = r.dispatch.Settle(e.Worker, []string{e.JobID})
			}
		}
	})
	feeding.Go(func() {
		for {
			if d, err := r.conn.Depth(t.Context(), testName); err == nil && d.Waiting < 30 {
				for range 10 {
					_ = r.dispatch.Publish(newJob(false), "")
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() { close(stop); feeding.Wait() })
	require.Eventually(t, func() bool { return a.pools[0].limit.Load() <= 5 }, soon, 5*time.Millisecond, "it falls")
	require.Eventually(t, func() bool { return b.pools[0].limit.Load() <= 5 }, soon, 5*time.Millisecond, "the others follow")
	angry.Store(false)
	require.Eventually(t, func() bool { return a.pools[0].limit.Load() == 8 && b.pools[0].limit.Load() == 8 }, soon, 5*time.Millisecond, "it climbs while it is used")
}

// The concurrency is that of all workers together, however many slots they have.
func TestNoMoreCallsThanTheLimit(t *testing.T) {
	t.Parallel()
	var m meter
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		m.enter()
		defer m.leave()
		<-time.After(5 * time.Millisecond)
		return answer(`{}`)
	})
	few := func(o *Options) { o.Members[0].Concurrency = 3 }
	r.start("a", few)
	r.start("b", few)
	for range 60 {
		r.publish(newJob(false))
	}
	r.settleAll(60)
	r.empty()
	require.EqualValues(t, 3, m.most.Load())
}

// Of several workers the first one governs; when it leaves, the next one goes on from
// where it was.
func TestTheLeaderGovernsAlone(t *testing.T) {
	t.Parallel()
	r, js := listening(t, hang)
	b := r.idle("b", adaptive)
	require.NoError(t, b.conn.EnsureConsumer(t.Context(), testName, 16))
	// The leader has learned that the provider bears five.
	g := newGovernor(b.pools[0])
	g.limit.now = 5
	own := func() queue.ProviderPresence { p := b.pools[0].presence(); p.Limit = 5; return p }
	require.Equal(t, 5, g.govern(t.Context(), own(), time.Now()))
	require.Equal(t, 5, bound(t, js))

	w := r.idle("c", adaptive)
	follower := newGovernor(w.pools[0])
	at := time.Now()
	w.peers.heard(says("b", queue.ProviderPresence{Name: testName, Limit: 5, Held: 2}))
	require.Equal(t, 5, follower.govern(t.Context(), queue.ProviderPresence{Name: testName, Held: 1}, at))
	require.Equal(t, 5, bound(t, js), "the follower sets nothing")
	w.peers.heard(says("b", queue.ProviderPresence{Name: testName, Limit: 99}))
	require.Equal(t, 16, follower.govern(t.Context(), queue.ProviderPresence{Name: testName}, at), "no more than it was told itself")
	w.peers.heard(says("b", queue.ProviderPresence{Name: testName, Limit: 4}))
	require.Equal(t, 4, follower.govern(t.Context(), queue.ProviderPresence{Name: testName}, at))
	w.peers.heard(queue.Presence{Worker: "b", Leaving: true})
	w.peers.heard(says("d", queue.ProviderPresence{Name: testName, Limit: 9, Held: 3}))
	require.Equal(t, 4, follower.govern(t.Context(), queue.ProviderPresence{Name: testName, Held: 2}, at))
	require.Equal(t, 4+2+3, bound(t, js), "it governs now, and what is held comes on top")
	require.Equal(t, 4, follower.govern(t.Context(), queue.ProviderPresence{Name: testName}, at.Add(time.Millisecond)))
	require.Equal(t, 4+3, bound(t, js))
	require.NoError(t, w.conn.SetConcurrency(t.Context(), testName, 1))
	require.Equal(t, 4, follower.govern(t.Context(), queue.ProviderPresence{Name: testName, Held: 1}, at.Add(2*time.Millisecond)))
	require.Equal(t, 4+1+3, bound(t, js))

	// What was set is not known any more after another one has governed.
	w.peers.heard(says("b", queue.ProviderPresence{Name: testName, Limit: 4}))
	follower.govern(t.Context(), queue.ProviderPresence{Name: testName}, at.Add(3*time.Millisecond))
	require.NoError(t, w.conn.SetConcurrency(t.Context(), testName, 2))
	w.peers.heard(queue.Presence{Worker: "b", Leaving: true})
	follower.govern(t.Context(), queue.ProviderPresence{Name: testName, Held: 1}, at.Add(4*time.Millisecond))
	require.Equal(t, 4+1+3, bound(t, js))
}

// idle is a worker that does not run: the test asks its parts.
func (r *rig) idle(id string, change func(*Options)) *Worker {
	r.t.Helper()
	o := Options{
		ID: id, Conn: r.connect(), AckWait: soon, DrainTimeout: soon, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(),
		Members: []Member{{Name: testName, Provider: r.script, Slots: 4, Concurrency: 16, MaxQueued: 100, MaxBody: 1 << 20}},
	}
	change(&o)
	w := New(o)
	w.peers.begin(time.Now().Add(-peersHeard)) // it has heard of all there are
	return w
}

// What could not be set is tried again.
func TestALimitThatCouldNotBeSetIsTriedAgain(t *testing.T) {
	t.Parallel()
	r, js := listening(t, hang)
	w := r.idle("a", adaptive)
	g := newGovernor(w.pools[0])
	g.limit.now = 7
	now := time.Now()
	g.at = now
	require.Equal(t, 7, g.govern(t.Context(), queue.ProviderPresence{}, now)) // there is no consumer yet
	require.NoError(t, w.conn.EnsureConsumer(t.Context(), testName, 16))
	require.Equal(t, 16, bound(t, js))
	g.govern(t.Context(), queue.ProviderPresence{}, now)
	require.Equal(t, 7, bound(t, js))
}

// A period counts with the most calls of itself and the one before: the first moment
// after a burst of short calls shows none.
func TestGovernAdjustsOncePerPeriod(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	w := r.idle("a", adaptive)
	g := newGovernor(w.pools[0])
	now := time.Now()
	at := func(after time.Duration, inUse int, limited int64) int {
		return g.govern(t.Context(), queue.ProviderPresence{InFlight: inUse, Limited: limited}, now.Add(after))
	}
	require.Equal(t, 16, at(0, 10, 0))
	require.Equal(t, 16, at(adjustEvery/2, 10, 3), "too early")
	require.Equal(t, 11, at(adjustEvery, 0, 3))
	require.Equal(t, 11, at(adjustEvery+1, 0, 9))
	require.Equal(t, 7, at(2*adjustEvery, 0, 9))
	require.Equal(t, 7, at(3*adjustEvery, 0, 9), "each 429 counts once")
	require.Equal(t, 8, at(4*adjustEvery, 8, 9))
	require.Equal(t, 9, at(5*adjustEvery, 0, 9), "it was in use a moment ago")
	require.Equal(t, 9, at(6*adjustEvery, 0, 9))
}
