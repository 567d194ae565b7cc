package limits_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/limits"
	"sluice/internal/queue"
)

var quiet = slog.New(slog.DiscardHandler)

func startServer(tb testing.TB) *queue.Embedded {
	tb.Helper()
	srv, err := queue.StartEmbedded(queue.EmbeddedOptions{Dir: tb.TempDir(), MemoryBytes: 64 << 20, Logger: quiet})
	require.NoError(tb, err)
	tb.Cleanup(srv.Close)
	return srv
}

func counters(tb testing.TB, srv *queue.Embedded) (c limits.Counters, kill func()) {
	tb.Helper()
	conn, err := queue.Connect(queue.Options{Name: tb.Name(), Embedded: srv, Limits: queue.Limits{Replicas: 1}, Logger: quiet})
	require.NoError(tb, err)
	tb.Cleanup(conn.Close)
	return conn.NewCounters(), conn.Close
}

// serve starts a limiter with a window of its own length.
func serve(tb testing.TB, c limits.Counters, window time.Duration) *limits.Limiter {
	tb.Helper()
	// The test's machine is busier than any server: what it is slow at is not what is tested.
	l := limits.New(limits.Options{Counters: c, Logger: quiet, Patience: 2 * time.Second})
	if window > 0 {
		l.SetWindow(window)
	}
	ctx, cancel := context.WithCancel(tb.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	tb.Cleanup(func() {
		cancel()
		<-done
	})
	return l
}

// admissions are when a scope's requests were admitted.
type admissions struct {
	mu      sync.Mutex
	at      []time.Time
	running int
	broken  string
}

// TestFourProcessesOverNATS lets random requests on fifty keys of four limiters, which are
// cut off from the server without a goodbye again and again.
func TestFourProcessesOverNATS(t *testing.T) {
	t.Parallel()
	const (
		window     = 3 * time.Second
		most       = 40
		concurrent = 6
	)
	srv := startServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
	defer cancel()
	var scopes [50]admissions
	scope := func(i int) limits.Scope {
		return limits.Scope{ID: fmt.Sprintf("key:%d", i), Limits: limits.Limits{RequestsPerMinute: most, Concurrent: concurrent}}
	}
	admit := func(s *admissions) {
		s.mu.Lock()
		defer s.mu.Unlock()
		now := time.Now()
		s.at = append(s.at, now)
		s.running++
		if len(s.at) > most && now.Sub(s.at[len(s.at)-1-most]) < window {
			s.broken = fmt.Sprintf("%d in %s", most+1, now.Sub(s.at[len(s.at)-1-most]))
		}
		if s.running > concurrent {
			s.broken = fmt.Sprintf("%d at once", s.running)
		}
	}
	var loads sync.WaitGroup
	process := func(seed uint64) func() {
		c, kill := counters(t, srv)
		l := serve(t, c, window)
		dead := make(chan struct{})
		for w := range uint64(6) {
			random := rand.New(rand.NewPCG(seed, w))
			loads.Go(func() {
				for ctx.Err() == nil {
					i := min(random.IntN(50), random.IntN(50), random.IntN(50))
					select {
					case <-dead:
						return
					default:
					}
					r, err := l.Reserve(ctx, limits.Demand{Scopes: []limits.Scope{scope(i)}, Tokens: 10})
					if err != nil {
						continue
					}
					admit(&scopes[i])
					select {
					case <-time.After(time.Duration(random.Int64N(int64(30 * time.Millisecond)))):
					case <-dead:
					}
					scopes[i].mu.Lock()
					scopes[i].running--
					scopes[i].mu.Unlock()
					r.Settle(5, 0)
				}
			})
		}
		return func() {
			close(dead)
			kill()
		}
	}
	random := rand.New(rand.NewPCG(1, 1))
	var kills [4]func()
	for i := range kills {
		kills[i] = process(random.Uint64())
	}
	for ctx.Err() == nil {
		select {
		case <-time.After(2 * time.Second):
			i := random.IntN(len(kills))
			kills[i]()
			kills[i] = process(random.Uint64())
		case <-ctx.Done():
		}
	}
	loads.Wait()
	admitted := 0
	for i := range scopes {
		require.Empty(t, scopes[i].broken, "key:%d", i)
		admitted += len(scopes[i].at)
	}
	require.Greater(t, admitted, 500)
	t.Logf("%d requests admitted", admitted)

	// A last process meets what the killed ones left, and clears it away.
	c, _ := counters(t, srv)
	last := serve(t, c, window)
	require.Eventually(t, func() bool {
		left, idle := 0, last.Scopes() == 0
		for i := range scopes {
			if _, _, err := c.Load(t.Context(), scope(i).ID); err == nil {
				left++
				if idle {
					last.Charge(limits.Demand{Scopes: []limits.Scope{scope(i)}})
				}
			}
		}
		return left == 0
	}, 3*time.Minute, 100*time.Millisecond)
}

func demand() limits.Demand {
	return limits.Demand{Tokens: 1000, Cost: 1000, Queued: true, Scopes: []limits.Scope{{ID: "key:1", Limits: limits.Limits{
		RequestsPerMinute: 1_000_000_000, TokensPerMinute: 1_000_000_000_000, Concurrent: 1_000_000, Queued: 1_000_000, Budget: limits.Budget{Day: 1 << 60},
	}}}}
}

// BenchmarkInHand is a reservation from its beginning to its end out of what is in hand.
func BenchmarkInHand(b *testing.B) {
	c, _ := counters(b, startServer(b))
	l := serve(b, c, 0)
	d := demand()
	b.ReportAllocs()
	for b.Loop() {
		r, err := l.Reserve(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		r.Settle(900, 900)
	}
}

// BenchmarkSwap is a reservation that the record itself decides, with nobody else there.
func BenchmarkSwap(b *testing.B) {
	c, _ := counters(b, startServer(b))
	data := make([]byte, 300)
	revision := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if revision, err = c.Swap(b.Context(), "key:1", data, revision); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNearTheLimit is a reservation that the record decides, with its release.
func BenchmarkNearTheLimit(b *testing.B) {
	c, _ := counters(b, startServer(b))
	l := serve(b, c, 0)
	d := limits.Demand{Scopes: []limits.Scope{{ID: "key:1", Limits: limits.Limits{Concurrent: 1_000_000, RequestsPerMinute: 1_000_000, TokensPerMinute: 1_000_000}}}, Tokens: 600_000}
	b.ReportAllocs()
	for b.Loop() {
		r, err := l.Reserve(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		r.Release()
	}
}

// BenchmarkFourNearTheLimit is the same with four processes, 16 requests at once in each,
// that all want one scope: what a record under contention decides.
func BenchmarkFourNearTheLimit(b *testing.B) {
	srv := startServer(b)
	var four [4]*limits.Limiter
	for i := range four {
		c, _ := counters(b, srv)
		four[i] = serve(b, c, 0)
	}
	d := limits.Demand{Scopes: []limits.Scope{{ID: "key:1", Limits: limits.Limits{Concurrent: 100}}}}
	for range 51 { // half of it is used for good
		_, err := four[0].Reserve(b.Context(), d)
		require.NoError(b, err)
	}
	var next, failed atomic.Int64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		l := four[next.Add(1)%4]
		for pb.Next() {
			r, err := l.Reserve(b.Context(), d)
			if err != nil {
				failed.Add(1)
				continue
			}
			r.Release()
		}
	})
	b.ReportMetric(float64(failed.Load())/float64(b.N), "failed/op")
}
