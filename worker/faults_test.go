package worker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

// logbook is a logger's memory.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// lines returns what was logged, one string for each record.
func (l *logbook) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSuffix(l.text.String(), "\n"), "\n")
}

func TestOneBadProviderDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	// A stream cannot change where it is stored: this one stays as it is.
	other, err := queue.Connect(queue.Options{Name: "t", Embedded: r.embedded, Logger: discard(), Limits: queue.Limits{Storage: "file", Replicas: 1}})
	require.NoError(t, err)
	t.Cleanup(other.Close)
	_, err = other.EnsureQueue(t.Context(), "bad", 100)
	require.NoError(t, err)

	var log logbook
	w, _ := r.start("worker01", func(o *Options) {
		bad := o.Members[0]
		bad.Name = "bad"
		o.Members = []Member{bad, o.Members[0]}
		o.Logger = log.logger()
	})
	require.Equal(t, []string{testName}, w.Serves())
	r.publish(newJob(false))
	r.settle(next(t, r.ends))
	r.empty()

	// It is tried again, before the other one when that has to be made again as well.
	for range 3 {
		w.pools[1].lost()
		require.Eventually(t, func() bool { return !w.pools[1].stale.Load() }, soon, time.Millisecond)
	}
	require.Eventually(t, w.pools[0].stale.Load, soon, time.Millisecond)
	told := 0
	for _, line := range log.lines() {
		if strings.Contains(line, "queue is not ready") {
			told++
			require.Contains(t, line, "provider bad: ")
		}
	}
	require.Equal(t, 1, told, "the same fault is told once")
}

// fickle is a provider whose models are known at some times and not at others.
type fickle struct {
	script
	mu    sync.Mutex
	err   error
	asked []time.Time
}

func (f *fickle) Capabilities(context.Context) (providers.Capabilities, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, time.Now())
	return providers.Capabilities{Models: []string{"m"}}, f.err
}

func (f *fickle) turn(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// pauses returns the times between the questions, and forgets all but the last.
func (f *fickle) pauses() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []time.Duration
	for i := 1; i < len(f.asked); i++ {
		list = append(list, f.asked[i].Sub(f.asked[i-1]))
	}
	f.asked = f.asked[len(f.asked)-1:]
	return list
}

func TestAnUnreachableProviderIsToldOfOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		unreachable := &inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "acme could not be reached", Err: syscall.ECONNREFUSED}
		f := &fickle{err: unreachable}
		w := New(Options{ID: "w", Metrics: NewMetrics(prometheus.NewRegistry()), Logger: log.logger(), Members: []Member{{Name: testName, Provider: f}}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.pools[0].watchModels(ctx)
		}()
		time.Sleep(4 * time.Minute)
		require.Equal(t, []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute, time.Minute}, f.pauses())
		require.Len(t, log.lines(), 1)
		require.Contains(t, log.lines()[0], "level=WARN")
		require.Contains(t, log.lines()[0], "connection refused")

		// The upstream's words are not the log's, and a change of them alone is no news.
		f.turn(&inference.Error{Code: inference.CodeUpstreamError, Status: 500, Message: "acme answered with status 500: secret one"})
		time.Sleep(time.Minute)
		f.turn(&inference.Error{Code: inference.CodeUpstreamError, Status: 500, Message: "acme answered with status 500: secret two", Err: errPassing})
		time.Sleep(2 * time.Minute)
		require.Len(t, log.lines(), 2)
		require.Contains(t, log.lines()[1], "upstream_status=500")
		require.NotContains(t, strings.Join(log.lines(), "\n"), "secret")

		f.turn(nil)
		time.Sleep(3 * time.Minute)
		require.Len(t, log.lines(), 3)
		require.Contains(t, log.lines()[2], "level=INFO")
		f.pauses()

		f.turn(unreachable)
		time.Sleep(70 * time.Second)
		require.Len(t, log.lines(), 4, "it is news again")
		require.Equal(t, []time.Duration{time.Minute, 5 * time.Second}, f.pauses()[:2])
		require.Equal(t, []string{"m"}, *w.pools[0].models.Load(), "what was known last")
		cancel()
		<-done
		require.Len(t, log.lines(), 4, "a stop is no failure")
	})
}

func TestAMissedPulse(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	wall := now
	p := pulse{limit: 10 * time.Second, at: now, wall: wall}
	beat := func(ran, told time.Duration, connected bool) bool {
		now, wall = now.Add(ran), wall.Add(told)
		return p.missed(now, wall, connected)
	}
	const second = time.Second
	require.False(t, beat(second, second, true))
	require.False(t, beat(10*second, 10*second, true))
	require.True(t, beat(11*second, 11*second, true), "frozen")
	require.False(t, beat(second, second, true))
	for range 20 {
		require.False(t, beat(second, second, false), "nobody can be asked while the queue is out of reach")
	}
	require.True(t, beat(second, second, true), "cut off")
	require.True(t, beat(second, time.Hour, true), "the machine slept")
	require.True(t, beat(11*second, -time.Hour, true), "frozen, and the clock was set back")
	require.False(t, beat(second, second, true))
}

// A worker that was away for so long that its jobs may be in other hands asks before
// it reports progress, and gives up what is not its own any more.
func TestAJobInDoubtIsAskedAbout(t *testing.T) {
	t.Parallel()
	for name, verdict := range map[string]queue.Verdict{"another has it": queue.VerdictWait, "nobody needs it": queue.VerdictDrop} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, hang)
			w, _ := r.start("worker01", func(o *Options) { o.AckWait = 3 * time.Second })
			j := newJob(false)
			r.publish(j)
			require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
			r.verdicts = []queue.Verdict{queue.VerdictRun, verdict}
			w.hold.doubt()
			want := queue.Claim{JobID: j.ID, Run: queue.Run{Delivery: 1}, Worker: "worker01"}
			require.Equal(t, want, next(t, r.claims))
			doubted := func() bool {
				w.hold.mu.Lock()
				defer w.hold.mu.Unlock()
				return w.hold.jobs[j.ID].doubted
			}
			require.Eventually(t, func() bool { return !doubted() }, soon, time.Millisecond)
			require.Empty(t, r.ends, "the call goes on")

			w.hold.doubt()
			require.Equal(t, want, next(t, r.claims))
			e := next(t, r.ends)
			require.Equal(t, inference.CodeCancelled, e.Err.Code)
			r.settle(e)
			r.empty()
		})
	}
}

// The provider counts a call until its connection is closed, so its place must not go
// to another job before that.
func TestACancelledCallKeepsItsPlaceUntilItHasReturned(t *testing.T) {
	t.Parallel()
	gate, cancelled := make(chan struct{}), make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	var returned atomic.Bool
	r := setup(t, func(ctx context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		if n > 1 {
			return answer(`{}`)
		}
		<-ctx.Done()
		close(cancelled)
		<-gate
		returned.Store(true)
		return nil, ctx.Err()
	})
	w, _ := r.start("worker01", func(o *Options) { o.Members[0].Slots, o.Members[0].Concurrency = 1, 1 })
	t.Cleanup(open) // also where the test fails: a stop waits for the call
	j, queued := newJob(false), newJob(false)
	r.publish(j)
	r.publish(queued)
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	require.NoError(t, r.dispatch.Cancel(t.Context(), j.ID, testName, 0))
	next(t, cancelled)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.NoError(t, w.conn.Flush(ctx), "the queue has heard all that the worker said")
	require.Equal(t, queue.Depth{Waiting: 1, Running: 1}, r.depth())
	require.Empty(t, r.ends)
	open()
	for range 2 {
		e := next(t, r.ends)
		require.True(t, returned.Load())
		r.settle(e)
	}
	r.empty()
}

// An answer too large for a message would lie in the object store for hours when its
// job was answered by another run.
func TestALargeAnswerThatNobodyNeedsIsNotStored(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		verdict queue.Verdict
		stored  bool
	}{
		"not needed": {queue.VerdictDrop, false},
		"needed":     {queue.VerdictWait, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
				return answer(`{"large":"` + strings.Repeat("x", 1<<19) + `"}`)
			})
			r.verdicts = []queue.Verdict{c.verdict}
			r.start("worker01")
			j := newJob(false)
			r.publish(j)
			require.Equal(t, queue.Claim{JobID: j.ID, Run: queue.Run{Delivery: 1}, Worker: "worker01"}, next(t, r.claims))
			if c.stored {
				r.settle(next(t, r.ends))
			}
			r.empty()
			_, err := r.conn.FetchBlob(t.Context(), j.ID+".0.1.answer", 1<<20)
			require.Equal(t, c.stored, err == nil)
		})
	}
}

// What an upstream says of a failure may hold the client's prompt. The client may read
// it; the log must not.
func TestNoWordOfTheUpstreamIsLogged(t *testing.T) {
	t.Parallel()
	const prompt = "tell nobody of this"
	said := &inference.Error{Code: inference.CodeUpstreamError, Status: 500, Message: "acme answered with status 500: " + prompt}
	r := setup(t, func(ctx context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		if n == 1 {
			return nil, said
		}
		<-ctx.Done()
		return nil, said
	})
	r.script.caps = said
	var log logbook
	_, stop := r.start("worker01", func(o *Options) { o.Logger = log.logger() })
	failed, cancelled := newJob(false), newJob(true)
	r.publish(failed)
	e := next(t, r.ends)
	require.Contains(t, e.Err.Message, prompt)
	r.settle(e)
	r.empty()
	r.publish(cancelled)
	require.Eventually(t, func() bool { return r.script.count() == 2 }, soon, time.Millisecond)
	require.NoError(t, r.dispatch.Cancel(t.Context(), cancelled.ID, testName, 0))
	for e = next(t, r.ends); e.JobID != cancelled.ID; e = next(t, r.ends) {
	}
	r.settle(e)
	stop()
	all := strings.Join(log.lines(), "\n")
	require.Contains(t, all, "models of provider not known")
	require.NotContains(t, all, prompt)
}

func TestWhatALogMaySayOfAnError(t *testing.T) {
	t.Parallel()
	const secret = "said by the upstream"
	worded := &inference.Error{Code: inference.CodeUpstreamError, Status: 502, Message: secret}
	require.Equal(t, []any{"code", "upstream_error", "upstream_status", 502}, loggable(worded))
	require.Equal(t, []any{"code", "deadline_exceeded"}, loggable(&inference.Error{Code: inference.CodeDeadlineExceeded, Err: worded}))
	cause := errors.New("cause")
	require.Equal(t, []any{"code", "upstream_cut", "error", cause}, loggable(&inference.Error{Code: inference.CodeUpstreamCut, Err: cause}))
}

// A key that the provider refuses is for the operator of the worker to mend; nobody
// else's log says more than that it is so.
func TestARefusedKeyIsTold(t *testing.T) {
	t.Parallel()
	var log logbook
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return nil, &inference.Error{Code: inference.CodeUpstreamAuth, Message: "a prompt", Status: 401}
	})
	r.start("worker01", func(o *Options) { o.Logger = log.logger() })
	j := newJob(false)
	r.publish(j)
	r.settle(next(t, r.ends))
	said := slices.DeleteFunc(log.lines(), func(line string) bool { return !strings.Contains(line, "call failed") })
	require.Len(t, said, 1)
	require.Contains(t, said[0], "level=WARN")
	require.Contains(t, said[0], j.ID)
	require.Contains(t, said[0], testName)
	require.Contains(t, said[0], "upstream_status=401")
	require.NotContains(t, said[0], "a prompt")
}
