package ingress

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"sluice/internal/apikey"
	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// soon is how long a test waits for what must happen; nothing takes nearly as long.
const soon = 20 * time.Second

// rig is an ingress with a real queue, and a script in the place of its workers.
type rig struct {
	t        *testing.T
	embedded *queue.Embedded
	conn     *queue.Conn // the workers' side
	answer   *queue.Answerer
	ingress  *Ingress
	server   *httptest.Server
	key      string

	jobs      chan *taken
	settled   chan string
	cancelled chan string
	puller    *queue.Puller

	mu      sync.Mutex
	rows    []inference.Record
	pingErr error
}

// taken is a job in the script's hands.
type taken struct {
	rig *rig
	d   *queue.Delivery
	job *inference.Job
	ref string
	run queue.Run
}

func (r *rig) Settled(ids []string) { sendAll(r.settled, ids) }

func (r *rig) Cancelled(ids []string) { sendAll(r.cancelled, ids) }

func sendAll(ch chan string, ids []string) {
	for _, id := range ids {
		ch <- id
	}
}

func testLimits() queue.Limits {
	return queue.Limits{
		Storage: "memory", Replicas: 1, AckWait: 30 * time.Second, EventsBytes: 64 << 20, EventsAge: time.Minute,
		BlobsBytes: 256 << 20, BlobsAge: time.Hour, UsageBytes: 64 << 20, DeadLetterAge: time.Hour,
	}
}

func (r *rig) connect() *queue.Conn {
	r.t.Helper()
	c, err := queue.Connect(queue.Options{Name: r.t.Name(), Embedded: r.embedded, Limits: testLimits(), Logger: discard()})
	require.NoError(r.t, err)
	r.t.Cleanup(c.Close)
	return c
}

// setup starts an ingress whose provider "acme" serves the models "m" and "m-*" and
// has room for four jobs.
func setup(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	embedded, err := queue.StartEmbedded(queue.EmbeddedOptions{Dir: t.TempDir(), MemoryBytes: 512 << 20, Logger: discard()})
	require.NoError(t, err)
	t.Cleanup(embedded.Close)
	r := &rig{
		t: t, embedded: embedded, jobs: make(chan *taken, 100), settled: make(chan string, 100), cancelled: make(chan string, 100),
	}
	r.conn = r.connect()
	r.ingress, r.server = r.startIngress(change...)
	return r
}

// startIngress starts one more ingress on the same queue.
func (r *rig) startIngress(change ...func(*Options)) (*Ingress, *httptest.Server) {
	t := r.t
	t.Helper()
	var key, other store.Key
	if r.key == "" {
		r.key = apikey.Mint()
	}
	key = store.Key{ID: "key", Tenant: "team", Hash: apikey.Hash(r.key)}
	other = store.Key{ID: "other", Tenant: "others", Hash: apikey.Hash("a-key-of-others"), Models: []string{"m-1"}}
	reg := prometheus.NewRegistry()
	o := Options{
		ID: queue.NewProcessID(), Conn: r.connect(), Keys: &keyTable{}, Append: r.store,
		Ping:     func(context.Context) error { r.mu.Lock(); defer r.mu.Unlock(); return r.pingErr },
		Settings: Settings{StaticKeys: []store.Key{key, other}, Providers: map[string]ProviderInfo{"acme": {Models: []string{"m", "m-*"}, MaxQueued: 4}}},
		Timeout:  soon, Keepalive: 50 * time.Millisecond, MaxBodyBytes: 4 << 20, MaxInFlight: 100, BodyMemory: 64 << 20,
		Metrics: NewMetrics(reg), MetricsHandler: promhttp.HandlerFor(reg, promhttp.HandlerOpts{}), Logger: discard(),
	}
	for _, c := range change {
		c(&o)
	}
	in := New(o)
	stop, err := in.Start()
	require.NoError(t, err)
	srv := httptest.NewServer(in.Handler())
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		stop()
	})
	return in, srv
}

func (r *rig) store(_ context.Context, records []inference.Record) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, records...)
	return len(records), nil
}

// row waits for the job's row and checks that it has one.
func (r *rig) row(jobID string) inference.Record {
	r.t.Helper()
	var rows []inference.Record
	require.Eventually(r.t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		rows = nil
		for _, rec := range r.rows {
			if rec.JobID == jobID {
				rows = append(rows, rec)
			}
		}
		return len(rows) > 0
	}, soon, 5*time.Millisecond, "the job's row")
	require.Len(r.t, rows, 1)
	return rows[0]
}

// work makes the script take jobs.
func (r *rig) work() {
	r.t.Helper()
	require.NoError(r.t, r.conn.EnsureShared(r.t.Context()))
	require.NoError(r.t, r.conn.EnsureConsumer(r.t.Context(), "acme", 64))
	var err error
	r.answer, err = r.conn.NewAnswerer("worker01", []string{"acme"}, r)
	require.NoError(r.t, err)
	r.t.Cleanup(r.answer.Close)
	r.puller, err = r.conn.NewPuller("acme", inference.LaneInteractive, 64, func(d *queue.Delivery) {
		job, ref, err := d.Job()
		if err == nil {
			r.jobs <- &taken{r, d, job, ref, queue.Run{Epoch: job.Epoch, Delivery: d.Delivery}}
		}
	}, func() {})
	require.NoError(r.t, err)
	r.t.Cleanup(r.puller.Stop)
	require.NoError(r.t, r.conn.Announce(queue.Presence{Worker: "worker01", Providers: []queue.ProviderPresence{{Name: "acme", MaxQueued: 4, Slots: 64, Rate: 0.2}}}))
	require.Eventually(r.t, func() bool { return r.ingress.workers.states()["acme"].Workers == 1 }, soon, time.Millisecond)
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

func (r *rig) take() *taken { r.t.Helper(); return next(r.t, r.jobs) }

func (k *taken) events(first uint64, chunks ...string) {
	k.rig.t.Helper()
	e := &queue.Events{JobID: k.job.ID, Run: k.run, Worker: "worker01", FirstSeq: first, Attempts: 1}
	for _, c := range chunks {
		e.Chunks = append(e.Chunks, []byte(c))
	}
	require.NoError(k.rig.t, k.rig.answer.Events(e))
}

// end says how the job ended until it is settled, and acknowledges it.
func (k *taken) end(e *queue.End) {
	t := k.rig.t
	t.Helper()
	e.JobID, e.Run, e.Worker, e.Provider, e.Attempts = k.job.ID, k.run, "worker01", "acme", 1
	require.NoError(t, k.rig.answer.StoreAnswer(t.Context(), e))
	require.NoError(t, k.rig.answer.End(e))
	for next(t, k.rig.settled) != k.job.ID {
	}
	k.d.Ack()
	k.rig.puller.Free()
}

func (k *taken) succeed(body string) {
	k.rig.t.Helper()
	k.end(&queue.End{Body: []byte(body), Model: "m-served", Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true}})
}

// call is one request to the ingress, under way.
type call struct {
	t      *testing.T
	cancel context.CancelFunc
	resp   chan *http.Response
}

func (r *rig) request(method, url, body string, headers ...string) *http.Request {
	r.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, url, reader)
	require.NoError(r.t, err)
	req.Header.Set("Authorization", "Bearer "+r.key)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func (r *rig) send(req *http.Request) *call {
	r.t.Helper()
	return r.sendIn(r.t, req)
}

// sendIn sends a request for a subtest of the rig's test.
func (r *rig) sendIn(t *testing.T, req *http.Request) *call {
	t.Helper()
	ctx, cancel := context.WithCancel(req.Context())
	c := &call{t: t, cancel: cancel, resp: make(chan *http.Response, 1)}
	t.Cleanup(cancel)
	go func() {
		resp, err := r.server.Client().Do(req.WithContext(ctx))
		if err != nil {
			close(c.resp)
			return
		}
		c.resp <- resp
	}()
	return c
}

const (
	plainRequest  = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	streamRequest = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

func (r *rig) chat(body string, headers ...string) *call {
	r.t.Helper()
	return r.send(r.request(http.MethodPost, r.server.URL+"/v1/chat/completions", body, headers...))
}

func (c *call) response() *http.Response {
	c.t.Helper()
	resp := next(c.t, c.resp)
	require.NotNil(c.t, resp, "a response")
	c.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func (c *call) whole() (*http.Response, string) {
	c.t.Helper()
	resp := c.response()
	body, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	return resp, string(body)
}

// fails checks the status and the code of an error, and returns its response.
func (c *call) fails(status int, code inference.ErrorCode) *http.Response {
	c.t.Helper()
	resp, body := c.whole()
	require.Equal(c.t, status, resp.StatusCode, body)
	var e struct {
		Error struct{ Message, Type, Code string }
	}
	require.NoError(c.t, json.Unmarshal([]byte(body), &e), body)
	require.Equal(c.t, string(code), e.Error.Code)
	require.NotEmpty(c.t, e.Error.Message)
	require.NotEmpty(c.t, resp.Header.Get("X-Request-Id"))
	return resp
}

func (r *rig) get(path string, headers ...string) *call {
	r.t.Helper()
	return r.send(r.request(http.MethodGet, r.server.URL+path, "", headers...))
}

func (r *rig) allRows() []inference.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rows
}

// frame is one SSE event.
type frame struct{ id, data string }

// frames reads events until the stream ends or one fn is satisfied with.
func frames(t *testing.T, r io.Reader, until func(frame) bool) (list []frame) {
	t.Helper()
	var f frame
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "id: "):
			f.id = line[4:]
		case strings.HasPrefix(line, "data: "):
			f.data = line[6:]
		case line == "" && f.data != "":
			list = append(list, f)
			if until != nil && until(f) {
				return list
			}
			f = frame{}
		}
	}
	return list
}
