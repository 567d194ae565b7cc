package worker

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"slices"
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

// allTraits can do everything.
var allTraits = inference.Traits{Chat: true, Embeddings: true, Streaming: true, Tools: true, Images: true, StructuredOutput: true}

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
	call.Body, call.Dropped = bytes.Clone(call.Body), nil // functions cannot be compared
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
	return providers.Capabilities{
		Traits:  allTraits,
		Special: []inference.ModelTraits{{Models: []string{"blind"}, Traits: inference.Traits{Chat: true}}},
		Models:  []string{"m"},
	}, s.caps
}

func (s *script) Close() error { return nil }

// rig is a queue with an ingress's side for the test, and workers on demand.
type rig struct {
	t        *testing.T
	embedded *queue.Embedded
	url      string // of a server outside of the process, in place of the embedded one
	conn     *queue.Conn
	dispatch *queue.Dispatcher
	script   *script
	ackWait  time.Duration // of the connections to come

	published chan uint64
	events    chan *queue.Events
	ends      chan *queue.End
	held      chan *queue.Held
	claims    chan queue.Claim
	passed    chan *queue.Passed
	asked     chan struct{} // whether anybody is here

	mu       sync.Mutex
	verdicts []queue.Verdict // for the claims to come; run it, after the last
	records  []inference.Record
	told     map[string]*queue.Passed
}

func (r *rig) Published(_ string, _ int, seq uint64, err error) {
	if err == nil {
		r.published <- seq
	}
}

func (r *rig) Events(e *queue.Events) { r.events <- e }

func (r *rig) Ended(e *queue.End) { r.ends <- e }

func (r *rig) Attached(string) {}

func (r *rig) Held(h *queue.Held) {
	select {
	case r.held <- h:
	default:
	}
}

func (r *rig) Passed(p *queue.Passed) {
	r.mu.Lock()
	r.told[p.JobID] = p
	r.mu.Unlock()
	r.passed <- p
}

// Claimed tells of the tries that the one who passed the job on had told of.
func (r *rig) Claimed(c queue.Claim) queue.Judgement {
	j := queue.Judgement{Verdict: r.judge(c)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.told[c.JobID]; p != nil {
		j.Attempts, j.Tries = p.Attempts, p.Tries
	}
	return j
}

func (r *rig) judge(c queue.Claim) queue.Verdict {
	if c.Run == (queue.Run{}) {
		select {
		case r.asked <- struct{}{}:
		default:
		}
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
	c, err := queue.Connect(queue.Options{Name: "t", Embedded: r.embedded, URL: r.url, Logger: discard(), Limits: queue.Limits{
		Storage: "memory", Replicas: 1, AckWait: cmp.Or(r.ackWait, soon), EventsBytes: 64 << 20, EventsAge: time.Minute,
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
	return setupAt(t, embedded, "", fn)
}

// setupAt is the rig of a server that is there.
func setupAt(t *testing.T, embedded *queue.Embedded, url string, fn func(ctx context.Context, n int, call providers.Call, emit providers.Emit) (*providers.Response, error)) *rig {
	t.Helper()
	r := &rig{
		t: t, embedded: embedded, url: url, script: &script{fn: fn}, published: make(chan uint64, 100), events: make(chan *queue.Events, 1000),
		ends: make(chan *queue.End, 1000), held: make(chan *queue.Held, 1000), claims: make(chan queue.Claim, 10_000), passed: make(chan *queue.Passed, 1000), asked: make(chan struct{}, 1), told: make(map[string]*queue.Passed),
	}
	r.conn = r.connect()
	require.Eventually(t, r.conn.Connected, soon, time.Millisecond)
	require.NoError(t, r.conn.EnsureShared(t.Context()))
	_, err := r.conn.EnsureQueue(t.Context(), testName, 100)
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

func hang(ctx context.Context, _ int, _ providers.Call, _ providers.Emit) (*providers.Response, error) {
	<-ctx.Done()
	return nil, ctx.Err()
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
