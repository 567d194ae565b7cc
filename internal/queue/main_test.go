package queue

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	testIngress  = "ingressa"
	testProvider = "acme"

	// soon is how long a test waits for what must happen; nothing takes nearly as long.
	soon = 20 * time.Second
)

func testLimits() Limits {
	return Limits{
		Storage: "memory", Replicas: 1, AckWait: 30 * time.Second, EventsBytes: 64 << 20, EventsAge: time.Minute,
		BlobsBytes: 64 << 20, BlobsAge: time.Hour, UsageBytes: 64 << 20, StoredJobs: 1000, ResultsBytes: 64 << 20, DeadLetterAge: time.Hour,
	}
}

// startServer starts an embedded server for one test.
func startServer(t *testing.T) *Embedded {
	t.Helper()
	srv, err := StartEmbedded(EmbeddedOptions{Dir: t.TempDir(), MemoryBytes: 512 << 20, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(srv.Close)
	return srv
}

func connectTo(t *testing.T, srv *Embedded) *Conn {
	t.Helper()
	c, err := Connect(Options{Name: t.Name(), Embedded: srv, Limits: testLimits(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// setup returns a connection to a server of the test's own, with all streams and a
// queue for eight jobs of which two may run at once.
func setup(t *testing.T) *Conn {
	t.Helper()
	c := connectTo(t, startServer(t))
	require.NoError(t, c.EnsureShared(t.Context()))
	_, err := c.EnsureQueue(t.Context(), testProvider, 8)
	require.NoError(t, err)
	require.NoError(t, c.EnsureConsumer(t.Context(), testProvider, 64))
	return c
}

func testJob(body string) *inference.Job {
	now := time.UnixMilli(1_700_000_000_000)
	return &inference.Job{
		ID: NewJobID(testIngress, time.Now()), RequestID: "req-1", Kind: inference.KindChat, Lane: inference.LaneInteractive,
		Tenant: "default", KeyID: "key_1", Model: "m-1", CreatedAt: now, Deadline: now.Add(time.Minute),
		Candidates: []inference.Candidate{{Provider: testProvider, Model: "m-1"}}, Body: []byte(body),
	}
}

type published struct {
	jobID string
	epoch int
	seq   uint64
	err   error
}

// ear implements Replies and Word and keeps what it hears.
type ear struct {
	verdict Verdict

	published chan published
	events    chan *Events
	ends      chan *End
	claims    chan Claim
	passed    chan *Passed
	held      chan *Held
	attached  chan string
	settled   chan string
	cancelled chan string
}

func newEar() *ear {
	return &ear{
		verdict:   VerdictRun,
		published: make(chan published, 1000), events: make(chan *Events, 1000), ends: make(chan *End, 1000),
		claims: make(chan Claim, 1000), passed: make(chan *Passed, 1000), held: make(chan *Held, 1000), attached: make(chan string, 1000),
		settled: make(chan string, 1000), cancelled: make(chan string, 1000),
	}
}

func (e *ear) Published(id string, epoch int, seq uint64, err error) {
	e.published <- published{id, epoch, seq, err}
}
func (e *ear) Events(v *Events) { e.events <- v }
func (e *ear) Ended(v *End)     { e.ends <- v }
func (e *ear) Claimed(c Claim) Judgement {
	e.claims <- c
	return Judgement{Verdict: e.verdict, Attempts: 2}
}

func (e *ear) Passed(p *Passed)       { e.passed <- p }
func (e *ear) Held(h *Held)           { e.held <- h }
func (e *ear) Attached(id string)     { e.attached <- id }
func (e *ear) Settled(ids []string)   { send(e.settled, ids) }
func (e *ear) Cancelled(ids []string) { send(e.cancelled, ids) }
func send(ch chan string, ids []string) {
	for _, id := range ids {
		ch <- id
	}
}

// receive returns what comes next, or fails the test.
func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(soon):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

func dispatcher(t *testing.T, c *Conn) (*Dispatcher, *ear) {
	t.Helper()
	e := newEar()
	d, err := c.NewDispatcher(testIngress, e)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d, e
}

// publish sends a job and waits until the server has it.
func publish(t *testing.T, d *Dispatcher, e *ear, j *inference.Job) published {
	t.Helper()
	require.NoError(t, d.Publish(j, ""))
	p := receive(t, e.published)
	require.Equal(t, j.ID, p.jobID)
	require.Equal(t, j.Epoch, p.epoch)
	return p
}

// taker collects deliveries.
type taker struct {
	ch   chan *Delivery
	lost chan struct{}
	once sync.Once
}

func pull(t *testing.T, c *Conn, slots int) (*Puller, *taker) {
	t.Helper()
	k := &taker{ch: make(chan *Delivery, 100), lost: make(chan struct{})}
	p, err := c.NewPuller(testProvider, inference.LaneInteractive, slots, func(d *Delivery) { k.ch <- d }, func() { k.once.Do(func() { close(k.lost) }) })
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return p, k
}

// eventually waits for a condition that no signal tells of.
func eventually(t *testing.T, ok func() bool, what string) {
	t.Helper()
	require.Eventually(t, ok, soon, 5*time.Millisecond, what)
}

// hasDepth waits for the depth: the server counts a moment after it has stored.
func hasDepth(t *testing.T, c *Conn, want Depth) {
	t.Helper()
	require.EventuallyWithT(t, func(ct *assert.CollectT) {
		got, err := c.Depth(t.Context(), testProvider)
		assert.NoError(ct, err)
		assert.Equal(ct, want, got)
	}, soon, 5*time.Millisecond)
}

func depth(t *testing.T, c *Conn) Depth {
	t.Helper()
	d, err := c.Depth(t.Context(), testProvider)
	require.NoError(t, err)
	return d
}

func flush(t *testing.T, c *Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.NoError(t, c.Flush(ctx))
}

func rawPublish(t *testing.T, c *Conn, m *nats.Msg) {
	t.Helper()
	_, err := c.js.PublishMsg(t.Context(), m)
	require.NoError(t, err)
}
