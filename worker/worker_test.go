package worker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/providers"
)

const (
	testIngress = "ingressa"
	testName    = "acme"

	// soon is how long a test waits for what must happen; nothing takes nearly as long.
	soon = 30 * time.Second
)

// script is a provider whose every call is answered by a function.
type script struct {
	mu    sync.Mutex
	calls []providers.Call
	fn    func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error)
	caps  error
}

func (s *script) begin(call providers.Call) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	call.Body = bytes.Clone(call.Body)
	s.calls = append(s.calls, call)
	return len(s.calls)
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func (s *script) Generate(ctx context.Context, call providers.Call) (*providers.Response, error) {
	return s.fn(ctx, s.begin(call), call, nil)
}

func (s *script) StreamGenerate(ctx context.Context, call providers.Call, emit providers.Emit) (providers.Summary, error) {
	resp, err := s.fn(ctx, s.begin(call), call, emit)
	if resp == nil {
		return providers.Summary{}, err
	}
	return providers.Summary{Model: resp.Model, Usage: resp.Usage}, err
}

func (s *script) Capabilities(context.Context) (providers.Capabilities, error) {
	return providers.Capabilities{Models: []string{"m"}}, s.caps
}

func (s *script) Close() error { return nil }

// rig is a queue with an ingress's side for the test, and workers on demand.
type rig struct {
	t        *testing.T
	embedded *queue.Embedded
	conn     *queue.Conn
	dispatch *queue.Dispatcher
	script   *script

	published chan uint64
	events    chan *queue.Events
	ends      chan *queue.End
	held      chan *queue.Held
	claims    chan queue.Claim

	mu       sync.Mutex
	verdicts []queue.Verdict // for the claims to come; run it, after the last
	records  []inference.Record
}

func (r *rig) Published(_ string, _ int, seq uint64, err error) {
	if err == nil {
		r.published <- seq
	}
}
func (r *rig) Events(e *queue.Events) { r.events <- e }
func (r *rig) Ended(e *queue.End)     { r.ends <- e }
func (r *rig) Attached(string)        {}
func (r *rig) Held(h *queue.Held) {
	select {
	case r.held <- h:
	default:
	}
}

func (r *rig) Claimed(c queue.Claim) queue.Verdict {
	if c.Run == (queue.Run{}) {
		return queue.VerdictDrop // only asked whether anybody is here
	}
	r.claims <- c
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.verdicts) == 0 {
		return queue.VerdictRun
	}
	v := r.verdicts[0]
	r.verdicts = r.verdicts[1:]
	return v
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (r *rig) connect() *queue.Conn {
	r.t.Helper()
	c, err := queue.Connect(queue.Options{Name: "t", Embedded: r.embedded, Logger: discard(), Limits: queue.Limits{
		Storage: "memory", Replicas: 1, AckWait: soon, EventsBytes: 64 << 20, EventsAge: time.Minute,
		BlobsBytes: 64 << 20, BlobsAge: time.Hour, UsageBytes: 64 << 20, DeadLetterAge: time.Hour,
	}})
	require.NoError(r.t, err)
	r.t.Cleanup(c.Close)
	return c
}

func setup(t *testing.T, fn func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error)) *rig {
	t.Helper()
	embedded, err := queue.StartEmbedded(queue.EmbeddedOptions{Dir: t.TempDir(), MemoryBytes: 256 << 20, Logger: discard()})
	require.NoError(t, err)
	t.Cleanup(embedded.Close)
	r := &rig{
		t: t, embedded: embedded, script: &script{fn: fn}, published: make(chan uint64, 100), events: make(chan *queue.Events, 1000),
		ends: make(chan *queue.End, 1000), held: make(chan *queue.Held, 1000), claims: make(chan queue.Claim, 100),
	}
	r.conn = r.connect()
	require.NoError(t, r.conn.EnsureShared(t.Context()))
	_, err = r.conn.EnsureQueue(t.Context(), testName, 100)
	require.NoError(t, err)
	r.dispatch, err = r.conn.NewDispatcher(testIngress, r)
	require.NoError(t, err)
	t.Cleanup(r.dispatch.Close)
	return r
}

func (r *rig) consumeRecords() {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.conn.ConsumeRecords(ctx, func(_ context.Context, records []inference.Record) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.records = append(r.records, records...)
			return nil
		})
	}()
	r.t.Cleanup(func() { cancel(); <-done })
}

// start runs a worker until the test or stop ends it.
func (r *rig) start(id string, change ...func(*Options)) (w *Worker, stop func()) {
	r.t.Helper()
	o := Options{
		ID: id, Conn: r.connect(), AckWait: 5 * time.Second, DrainTimeout: soon, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(),
		Members: []Member{{Name: testName, Provider: r.script, Slots: 4, Concurrency: 16, MaxQueued: 100, MaxRetries: 2, MaxBody: 1 << 20}},
	}
	for _, c := range change {
		c(&o)
	}
	w = New(o)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(r.t, <-done)
	})
	r.t.Cleanup(stop)
	next(r.t, w.Ready())
	return w, stop
}

func next[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(soon):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

func newJob(stream bool) *inference.Job {
	now := time.UnixMilli(time.Now().UnixMilli())
	return &inference.Job{
		ID: queue.NewJobID(testIngress, now), RequestID: "req", Kind: inference.KindChat, Lane: inference.LaneInteractive,
		Tenant: "team", KeyID: "key", Model: "alias", Stream: stream, IncludeUsage: true, CreatedAt: now, Deadline: now.Add(soon),
		Candidates: []inference.Candidate{{Provider: testName, Model: "m"}}, Body: []byte(`{"model":"alias"}`),
	}
}

func (r *rig) publish(j *inference.Job) {
	r.t.Helper()
	require.NoError(r.t, r.dispatch.Publish(j, ""))
	next(r.t, r.published)
}

func (r *rig) settle(e *queue.End) {
	r.t.Helper()
	require.NoError(r.t, r.dispatch.Settle(e.Worker, []string{e.JobID}))
}

// empty waits until the queue holds nothing: every job is acknowledged.
func (r *rig) empty() {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		d, err := r.conn.Depth(r.t.Context(), testName)
		return err == nil && d == queue.Depth{}
	}, soon, 5*time.Millisecond, "an empty queue")
}

func (r *rig) depth() queue.Depth {
	r.t.Helper()
	d, err := r.conn.Depth(r.t.Context(), testName)
	require.NoError(r.t, err)
	return d
}

// row waits for the record that a worker made of a job.
func (r *rig) row(jobID string) (rec inference.Record) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.IndexFunc(r.records, func(rec inference.Record) bool { return rec.JobID == jobID })
		if i >= 0 {
			rec = r.records[i]
		}
		return i >= 0
	}, soon, 5*time.Millisecond, "a row")
	return rec
}

func answer(body string) (*providers.Response, error) {
	return &providers.Response{Body: []byte(body), Model: "m-served", Usage: inference.Usage{PromptTokens: 2, CompletionTokens: 3, Known: true}}, nil
}

var errPassing = &inference.Error{Code: inference.CodeUpstreamError, Message: "failed", Retryable: true, RetryAfter: time.Millisecond}

func TestAJobIsAcknowledgedOnlyWhenItIsSettled(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{"a":1}`)
	})
	w, _ := r.start("worker01")
	require.Equal(t, []string{testName}, w.Serves())
	require.True(t, w.Connected())
	j := newJob(false)
	r.publish(j)
	e := next(t, r.ends)
	require.Equal(t, j.ID, e.JobID)
	require.Equal(t, queue.Run{Epoch: 0, Delivery: 1}, e.Run)
	require.Equal(t, `{"a":1}`, string(e.Body))
	require.Equal(t, "m-served", e.Model)
	require.Equal(t, 1, e.Attempts)
	require.Nil(t, e.Err)
	require.Equal(t, inference.Usage{PromptTokens: 2, CompletionTokens: 3, Known: true}, e.Usage)
	require.Equal(t, providers.Call{Kind: inference.KindChat, Model: "m", Body: j.Body, RequestID: "req"}, r.script.calls[0])

	require.Equal(t, e.JobID, next(t, r.ends).JobID, "said again until it is taken")
	require.Equal(t, queue.Depth{Running: 1}, r.depth())
	r.settle(e)
	r.empty()
}

func TestRetries(t *testing.T) {
	t.Parallel()
	r := setup(t, func(_ context.Context, n int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
		if n < 3 {
			return nil, errPassing
		}
		return answer(`{}`)
	})
	r.start("worker01")
	j := newJob(false)
	j.Attempts = 4
	r.publish(j)
	e := next(t, r.ends)
	require.Nil(t, e.Err)
	require.Equal(t, 4+3, e.Attempts)
	r.settle(e)
	r.empty()
	require.Equal(t, 3, r.script.count())
}

func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	r := setup(t, func(_ context.Context, _ int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
		if emit == nil {
			return nil, errPassing
		}
		if err := emit([][]byte{[]byte("1"), []byte("2")}); err != nil {
			return nil, err
		}
		_ = emit(nil)
		return &providers.Response{Model: call.Model, Usage: inference.Usage{PromptTokens: 5, Known: true}}, errPassing
	})
	r.start("worker01")
	plain := newJob(false)
	r.publish(plain)
	e := next(t, r.ends)
	require.Equal(t, inference.CodeUpstreamError, e.Err.Code)
	require.Equal(t, 3, e.Attempts, "as often as allowed")
	r.settle(e)
	r.empty()

	// After the first chunk a call is never made again.
	streamed := newJob(true)
	r.publish(streamed)
	events := next(t, r.events)
	require.Equal(t, [][]byte{[]byte("1"), []byte("2")}, events.Chunks)
	require.EqualValues(t, 1, events.FirstSeq)
	for e = next(t, r.ends); e.JobID != streamed.ID; e = next(t, r.ends) {
	}
	require.Equal(t, inference.CodeUpstreamError, e.Err.Code)
	require.Equal(t, 1, e.Attempts)
	require.EqualValues(t, 2, e.LastSeq)
	require.EqualValues(t, 5, e.Usage.PromptTokens, "what was used is told also of a failure")
	r.settle(e)
	r.empty()
	require.Equal(t, 4, r.script.count())
}

func TestAStreamIsSentAndKept(t *testing.T) {
	t.Parallel()
	r := setup(t, func(_ context.Context, _ int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
		reused := []byte("chunk 0")
		for i := range 5 {
			reused[6] = byte('1' + i) // the slices are valid only during the call
			if err := emit([][]byte{reused}); err != nil {
				return nil, err
			}
		}
		return &providers.Response{Model: call.Model}, nil
	})
	r.start("worker01")
	j := newJob(true)
	r.publish(j)
	e := next(t, r.ends)
	require.EqualValues(t, 5, e.LastSeq)
	for seq := uint64(1); seq <= 5; seq++ {
		ev := next(t, r.events)
		require.Equal(t, seq, ev.FirstSeq)
		require.Equal(t, "chunk "+string(rune('0'+seq)), string(ev.Chunks[0]))
	}
	r.settle(e)
	r.empty()
	kept := r.conn.NewKeptReader(j.ID)
	var all []string
	var end *queue.End
	for {
		blocks, err := kept.Next(t.Context())
		require.NoError(t, err)
		if len(blocks) == 0 {
			break
		}
		for _, b := range blocks {
			for _, c := range b.Chunks {
				all = append(all, string(c))
			}
			end = b.End
		}
	}
	require.Equal(t, []string{"chunk 1", "chunk 2", "chunk 3", "chunk 4", "chunk 5"}, all)
	require.NotNil(t, end)
	tenant, _ := kept.Found()
	require.Equal(t, "team", tenant)
}

func hang(ctx context.Context, _ int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestCancelStopsARunningCall(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	r.start("worker01")
	j := newJob(false)
	r.publish(j)
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	require.Equal(t, j.ID, next(t, r.held).Jobs[0].JobID, "the ingress is told soon who has the job")
	require.NoError(t, r.dispatch.Cancel(t.Context(), j.ID, testName, 0))
	e := next(t, r.ends)
	require.Equal(t, inference.CodeCancelled, e.Err.Code)
	r.settle(e)
	r.empty()
}

func TestDeadlineStopsARunningCall(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	r.start("worker01")
	j := newJob(false)
	j.Deadline = time.Now().Add(200 * time.Millisecond)
	r.publish(j)
	e := next(t, r.ends)
	require.Equal(t, inference.CodeDeadlineExceeded, e.Err.Code)
	r.settle(e)

	late := newJob(false)
	late.Deadline = time.Now().Add(-time.Second)
	r.publish(late)
	for e = next(t, r.ends); e.JobID != late.ID; e = next(t, r.ends) {
	}
	require.Equal(t, inference.CodeDeadlineExceeded, e.Err.Code)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count(), "a job that comes too late costs no call")
}

func TestDrainFinishesWhatIsInHand(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		<-gate
		return answer(`{}`)
	})
	_, stop := r.start("worker01")
	leaving := make(chan queue.Presence, 100)
	l, err := r.conn.Watch(func(p queue.Presence) {
		if p.Leaving {
			leaving <- p
		}
	})
	require.NoError(t, err)
	defer l.Close()
	in, queued := newJob(false), newJob(false)
	r.publish(in)
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	require.Equal(t, "worker01", next(t, leaving).Worker)
	r.publish(queued)
	close(gate)
	e := next(t, r.ends)
	require.Equal(t, in.ID, e.JobID)
	require.Nil(t, e.Err)
	r.settle(e)
	next(t, stopped)
	require.Eventually(t, func() bool { return r.depth() == queue.Depth{Waiting: 1} }, soon, 5*time.Millisecond)
	require.Equal(t, 1, r.script.count(), "new work goes elsewhere")
}

func TestADrainOutOfTimeGivesTheJobToAnother(t *testing.T) {
	t.Parallel()
	started := make(chan struct{}, 10)
	r := setup(t, func(ctx context.Context, n int, _ providers.Call, emit providers.Emit) (*providers.Response, error) {
		if n <= 2 {
			if emit != nil {
				_ = emit([][]byte{[]byte("begun")})
			}
			started <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return answer(`{}`)
	})
	_, stop := r.start("worker01", func(o *Options) { o.DrainTimeout = 10 * time.Millisecond })
	plain, streamed := newJob(false), newJob(true)
	r.publish(plain)
	r.publish(streamed)
	next(t, started)
	next(t, started)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	e := next(t, r.ends)
	require.Equal(t, streamed.ID, e.JobID, "a begun stream cannot be given to another: it ends with an error")
	require.Equal(t, inference.CodeWorkerLost, e.Err.Code)
	r.settle(e)
	next(t, stopped)

	r.start("worker02")
	require.Equal(t, plain.ID, next(t, r.claims).JobID)
	for e = next(t, r.ends); e.JobID != plain.ID; e = next(t, r.ends) {
	}
	require.Nil(t, e.Err)
	require.Equal(t, queue.Run{Epoch: 0, Delivery: 2}, e.Run)
	r.settle(e)
	r.empty()
}

// redeliver makes the next delivery of the job its second one.
func (r *rig) redeliver(j *inference.Job, deliveries int) {
	r.t.Helper()
	require.NoError(r.t, r.conn.EnsureConsumer(r.t.Context(), testName, 16))
	got := make(chan *queue.Delivery, 10)
	p, err := r.conn.NewPuller(testName, inference.LaneInteractive, deliveries, func(d *queue.Delivery) { got <- d }, func() {})
	require.NoError(r.t, err)
	r.publish(j)
	for n := range deliveries {
		d := next(r.t, got)
		if n == deliveries-1 {
			p.Stop()
		}
		d.Nak(0)
	}
}

func TestARedeliveredJobAsksItsIngress(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.verdicts = []queue.Verdict{queue.VerdictWait, queue.VerdictRun}
	j := newJob(false)
	r.redeliver(j, 1)
	r.start("worker01")
	first, second := next(t, r.claims), next(t, r.claims)
	require.Equal(t, queue.Claim{JobID: j.ID, Run: queue.Run{Delivery: 2}, Worker: "worker01"}, first)
	require.Equal(t, 3, second.Run.Delivery)
	e := next(t, r.ends)
	require.Equal(t, second.Run, e.Run)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count())
}

func TestAJobThatIsNotWantedIsDropped(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.verdicts = []queue.Verdict{queue.VerdictDrop}
	r.redeliver(newJob(false), 1)
	r.start("worker01")
	next(t, r.claims)
	r.empty()
	require.Zero(t, r.script.count())
	require.Empty(t, r.ends)
}

func orphan(stream bool) *inference.Job {
	j := newJob(stream)
	j.ID = queue.NewJobID("gonegone", time.Now())
	return j
}

// publishOrphan publishes a job of an ingress that nobody is.
func (r *rig) publishOrphan(j *inference.Job) {
	r.t.Helper()
	require.NoError(r.t, r.dispatch.Publish(j, ""))
	require.Eventually(r.t, func() bool { d := r.depth(); return d.Waiting+d.Running == 1 }, soon, time.Millisecond)
}

func TestAnAnswerWhoseIngressIsGoneIsAccountedFor(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{"large":"` + strings.Repeat("x", 1<<20) + `"}`)
	})
	r.consumeRecords()
	j := orphan(false)
	r.publishOrphan(j)
	r.start("worker01")
	row := r.row(j.ID)
	require.Equal(t, inference.OutcomeAbandoned, row.Outcome)
	require.Equal(t, "m-served", row.ModelServed)
	require.EqualValues(t, 3, row.Usage.CompletionTokens)
	require.Equal(t, "team", row.Tenant)
	r.empty()
	_, err := r.conn.FetchBlob(t.Context(), j.ID+".0.1.answer", 4<<20)
	require.Error(t, err, "nobody will fetch the answer")
}

// The ingress may only be away for a moment: one question without an answer is not
// enough to throw an answer away.
func TestAnIngressThatComesBackGetsItsAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.dispatch.Close()
	j := newJob(false)
	require.NoError(t, r.dispatch.Publish(j, ""))
	r.start("worker01")
	require.Eventually(t, func() bool { return r.script.count() == 1 }, soon, time.Millisecond)
	<-time.After(settleAsk*settleRepeat + settleRepeat/2)
	back, err := r.conn.NewDispatcher(testIngress, r)
	require.NoError(t, err)
	defer back.Close()
	e := next(t, r.ends)
	require.Equal(t, j.ID, e.JobID)
	r.settle(e)
	r.empty()
}

func TestOrphansThatWereLostAlready(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stream bool
		kept   int  // chunks that are kept, each in a block of its own
		ended  bool // and their end is kept, too
		want   inference.ErrorCode
	}{
		"plain":                        {false, 0, false, inference.CodeWorkerLost},
		"stream that had begun":        {true, 20, false, inference.CodeWorkerLost},
		"stream that was sent wholly":  {true, 20, true, ""},
		"stream that nobody has begun": {true, 0, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := setup(t, func(_ context.Context, _ int, call providers.Call, emit providers.Emit) (*providers.Response, error) {
				if err := emit([][]byte{[]byte("x")}); err != nil {
					return nil, err
				}
				return answer("")
			})
			r.consumeRecords()
			j := orphan(c.stream)
			rec := r.conn.NewRecorder(j, queue.Run{Delivery: 1}, 1)
			for i := range c.kept {
				rec.Add([][]byte{[]byte("chunk")})
				if i < c.kept-1 {
					require.NoError(t, rec.Finish(t.Context(), nil))
				}
			}
			if c.ended {
				require.NoError(t, rec.Finish(t.Context(), &queue.End{JobID: j.ID, Run: queue.Run{Delivery: 1}, LastSeq: uint64(c.kept), Model: "m-kept", Attempts: 1, Usage: inference.Usage{PromptTokens: 77, Known: true}}))
			} else {
				require.NoError(t, rec.Finish(t.Context(), nil))
			}
			r.redeliverOrphan(j, maxOrphanDeliveries-1)
			r.start("worker01")
			row := r.row(j.ID)
			require.Equal(t, inference.OutcomeAbandoned, row.Outcome)
			require.Equal(t, c.want, row.ErrorCode)
			r.empty()
			switch {
			case c.ended:
				require.EqualValues(t, 77, row.Usage.PromptTokens, "what the lost worker had told")
				require.Zero(t, r.script.count())
			case c.stream && c.kept == 0:
				require.Equal(t, 1, r.script.count(), "it may still be read through another ingress")
			default:
				require.Zero(t, r.script.count())
			}
			if c.stream && c.kept > 0 {
				end := lastEnd(t, r.conn, j.ID)
				require.EqualValues(t, c.kept, end.LastSeq, "readers come to an end, after all that is kept")
				require.Equal(t, c.want != "", end.Err != nil)
			}
		})
	}
}

func lastEnd(t *testing.T, c *queue.Conn, jobID string) *queue.End {
	t.Helper()
	var end *queue.End
	for kept := c.NewKeptReader(jobID); ; {
		blocks, err := kept.Next(t.Context())
		require.NoError(t, err)
		if len(blocks) == 0 {
			require.NotNil(t, end)
			return end
		}
		for _, b := range blocks {
			if b.End != nil {
				require.Nil(t, end, "one end")
				end = b.End
			}
		}
	}
}

// redeliverOrphan publishes the orphan and hands it out some times in vain.
func (r *rig) redeliverOrphan(j *inference.Job, deliveries int) {
	r.t.Helper()
	require.NoError(r.t, r.conn.EnsureConsumer(r.t.Context(), testName, 16))
	got := make(chan *queue.Delivery, 10)
	p, err := r.conn.NewPuller(testName, inference.LaneInteractive, deliveries, func(d *queue.Delivery) { got <- d }, func() {})
	require.NoError(r.t, err)
	require.NoError(r.t, r.dispatch.Publish(j, ""))
	for n := range deliveries {
		d := next(r.t, got)
		if n == deliveries-1 {
			p.Stop()
		}
		d.Nak(0)
	}
}

func TestLargeBodies(t *testing.T) {
	t.Parallel()
	large := `{"x":"` + strings.Repeat("y", 1<<19) + `"}`
	r := setup(t, func(_ context.Context, _ int, call providers.Call, _ providers.Emit) (*providers.Response, error) {
		return answer(string(call.Body))
	})
	r.start("worker01")
	j := newJob(false)
	j.Body = []byte(large)
	ref, err := r.dispatch.StoreBody(t.Context(), j)
	require.NoError(t, err)
	require.NoError(t, r.dispatch.Publish(j, ref))
	e := next(t, r.ends)
	require.Nil(t, e.Err)
	body, err := r.conn.FetchBlob(t.Context(), e.BodyRef, 1<<20)
	require.NoError(t, err)
	require.Equal(t, large, string(body))
	r.settle(e)
	r.empty()

	// A body that is not there any more is an error of ours, not a call without it.
	lost := newJob(false)
	require.NoError(t, r.dispatch.Publish(lost, "nowhere"))
	for e = next(t, r.ends); e.JobID != lost.ID; e = next(t, r.ends) {
	}
	require.Equal(t, inference.CodeInternal, e.Err.Code)
	r.settle(e)
	r.empty()
	require.Equal(t, 1, r.script.count())
}

func TestAMessageThatIsNoJobIsBuried(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	bad := newJob(false)
	bad.Model = "m"
	bad.Candidates = append(bad.Candidates, inference.Candidate{}) // no provider: it cannot be read back
	require.NoError(t, r.dispatch.Publish(bad, ""))
	r.start("worker01", func(o *Options) { o.Members[0].Slots = 1 })
	r.empty()
	good := newJob(false)
	r.publish(good)
	e := next(t, r.ends)
	require.Equal(t, good.ID, e.JobID, "the slot is free again")
	r.settle(e)
	r.empty()
}

func TestSlotsBoundTheCalls(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	running, most := 0, 0
	gate := make(chan struct{})
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		<-gate
		mu.Lock()
		running--
		mu.Unlock()
		return answer(`{}`)
	})
	r.start("worker01", func(o *Options) { o.Members[0].Slots = 2 })
	const jobs = 12
	for range jobs {
		r.publish(newJob(false))
	}
	require.Eventually(t, func() bool { return r.script.count() == 2 }, soon, time.Millisecond)
	close(gate)
	for seen := map[string]bool{}; len(seen) < jobs; {
		e := next(t, r.ends)
		seen[e.JobID] = true
		r.settle(e)
	}
	r.empty()
	require.Equal(t, 2, most)
}

func TestPresenceTellsTheModels(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	heard := make(chan queue.Presence, 1000)
	l, err := r.conn.Watch(func(p queue.Presence) { heard <- p })
	require.NoError(t, err)
	defer l.Close()
	r.start("worker01")
	for p := next(t, heard); ; p = next(t, heard) {
		if len(p.Providers) == 1 && slices.Equal(p.Providers[0].Models, []string{"m"}) {
			require.Equal(t, queue.ProviderPresence{Name: testName, Models: []string{"m"}, MaxQueued: 100, Concurrency: 16, Slots: 4}, p.Providers[0])
			return
		}
	}
}

func TestAWorkerWithoutModelsServesAllTheSame(t *testing.T) {
	t.Parallel()
	r := setup(t, func(context.Context, int, providers.Call, providers.Emit) (*providers.Response, error) {
		return answer(`{}`)
	})
	r.script.caps = errors.New("not reachable")
	r.start("worker01")
	r.publish(newJob(false))
	r.settle(next(t, r.ends))
	r.empty()
}

func TestAWorkerThatCannotBegin(t *testing.T) {
	t.Parallel()
	r := setup(t, hang)
	c := r.connect()
	c.Close()
	w := New(Options{ID: "w", Conn: c, Metrics: NewMetrics(prometheus.NewRegistry()), Logger: discard(), Members: []Member{{Name: testName, Provider: r.script}}})
	require.Error(t, w.Run(t.Context()))
	require.Empty(t, w.Serves())
}
