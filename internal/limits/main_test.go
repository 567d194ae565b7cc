package limits

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shelf keeps records in memory. Several processes share one.
type shelf struct {
	mu      sync.Mutex
	records map[string]shelved
	last    uint64
}

type shelved struct {
	data     []byte
	revision uint64
}

func newShelf() *shelf { return &shelf{records: map[string]shelved{}} }

func (s *shelf) record(t *testing.T, scope string) *record {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	has, ok := s.records[scope]
	if !ok {
		return nil
	}
	r, err := decodeRecord(has.data)
	require.NoError(t, err)
	return r
}

var errGone = errors.New("the shelf is out of reach")

// reach is one process's way to the shelf: it takes time, and may fail before or after
// what was asked was done.
type reach struct {
	*shelf

	delay time.Duration // at most, each way
	exact atomic.Int64  // instead, exactly: nanoseconds

	faults atomic.Int64 // how many of a hundred ways end in nowhere
	down   atomic.Bool  // nothing gets through now
	late   atomic.Bool  // the next swap is lost, and made when the one after it arrives
	lost   func()
	cut    chan struct{} // closed: nothing gets through any more
}

func newReach(s *shelf) *reach { return &reach{shelf: s, cut: make(chan struct{})} }

var errLost = errors.New("no answer")

// travel is one way.
func (r *reach) travel(ctx context.Context) error {
	if r.down.Load() {
		return errGone
	}
	if rand.Int64N(100) < r.faults.Load() {
		<-ctx.Done()
		return errLost
	}
	wait := time.Duration(0)
	if r.delay > 0 {
		wait = rand.N(r.delay)
	}
	if exact := time.Duration(r.exact.Load()); exact > 0 {
		wait = exact
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		select {
		case <-r.cut:
			return errGone
		default:
			return nil
		}
	case <-r.cut:
		return errGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

func call[T any](ctx context.Context, r *reach, do func() (T, error)) (T, error) {
	var none T
	if err := r.travel(ctx); err != nil {
		return none, err
	}
	r.mu.Lock()
	v, err := do()
	r.mu.Unlock()
	if err := r.travel(ctx); err != nil {
		return none, err
	}
	return v, err
}

func (r *reach) Load(ctx context.Context, scope string) ([]byte, uint64, error) {
	has, err := call(ctx, r, func() (shelved, error) {
		has, ok := r.records[scope]
		if !ok {
			return has, ErrNoRecord
		}
		return has, nil
	})
	return has.data, has.revision, err
}

func (r *reach) Swap(ctx context.Context, scope string, data []byte, revision uint64) (uint64, error) {
	if r.late.CompareAndSwap(true, false) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.lost = func() {
			if r.records[scope].revision == revision {
				r.last++
				r.records[scope] = shelved{data, r.last}
			}
		}
		return 0, errLost
	}
	return call(ctx, r, func() (uint64, error) {
		if r.lost != nil {
			r.lost()
			r.lost = nil
		}
		if r.records[scope].revision != revision {
			return 0, ErrConflict
		}
		r.last++
		r.records[scope] = shelved{data, r.last}
		return r.last, nil
	})
}

func (r *reach) Remove(ctx context.Context, scope string, revision uint64) error {
	_, err := call(ctx, r, func() (struct{}, error) {
		if r.records[scope].revision != revision {
			return struct{}{}, ErrConflict
		}
		delete(r.records, scope)
		return struct{}{}, nil
	})
	return err
}

func (r *reach) Time(ctx context.Context) (time.Time, error) {
	return call(ctx, r, func() (time.Time, error) { return time.Now(), nil })
}

// run starts a limiter, which ends with the test or by the function that is returned:
// with a goodbye, or, once its reach is cut, without.
func run(t *testing.T, o Options) (*Limiter, func()) {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return l, stop
}

func start(t *testing.T, s *shelf) *Limiter {
	t.Helper()
	l, _ := run(t, Options{Counters: newReach(s)})
	return l
}

// one is a scope of the name key:1.
func one(l Limits) []Scope { return []Scope{{ID: "key:1", Limits: l}} }

// admit reserves and requires that it fits.
func admit(t *testing.T, l *Limiter, d Demand) Reservation {
	t.Helper()
	r, err := l.Reserve(t.Context(), d)
	require.NoError(t, err)
	return r
}

// refuse reserves and requires that it does not fit.
func refuse(t *testing.T, l *Limiter, d Demand) *Refusal {
	t.Helper()
	_, err := l.Reserve(t.Context(), d)
	var refusal *Refusal
	require.ErrorAs(t, err, &refusal)
	return refusal
}
