package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
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

func (r *rig) Settled(ids []string)   { sendAll(r.settled, ids) }
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

func testSecret(tenant string) (string, store.Key) {
	secret := apikey.Mint()
	return secret, store.Key{ID: "key-" + tenant, Tenant: tenant, Hash: apikey.Hash(secret)}
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
		ID: queue.NewProcessID(), Conn: r.connect(), Keys: &keyTable{}, StaticKeys: []store.Key{key, other}, Append: r.store,
		Ping:      func(context.Context) error { r.mu.Lock(); defer r.mu.Unlock(); return r.pingErr },
		Providers: map[string]ProviderInfo{"acme": {Models: []string{"m", "m-*"}, MaxQueued: 4}},
		Timeout:   soon, Keepalive: 50 * time.Millisecond, MaxBodyBytes: 4 << 20, MaxInFlight: 100,
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
	ctx, cancel := context.WithCancel(req.Context())
	c := &call{t: r.t, cancel: cancel, resp: make(chan *http.Response, 1)}
	r.t.Cleanup(cancel)
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

func TestPlainAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest, "X-Request-Id", "mine", "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	k := r.take()
	require.Equal(t, plainRequest, string(k.job.Body), "the body travels as it came")
	require.Equal(t, "mine", k.job.RequestID)
	require.Equal(t, "team", k.job.Tenant)
	require.NotEmpty(t, k.job.TraceParent)
	require.WithinDuration(t, time.Now().Add(soon), k.job.Deadline, soon)
	k.succeed(`{"id":"x","unknown":1}`)
	resp, body := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, `{"id":"x","unknown":1}`, body)
	require.Equal(t, "mine", resp.Header.Get("X-Request-Id"))
	require.Equal(t, "acme", resp.Header.Get("X-Sluice-Provider"))
	require.Equal(t, "1", resp.Header.Get("X-Sluice-Attempts"))
	require.Equal(t, k.job.ID, resp.Header.Get("X-Sluice-Job-Id"))
	require.NotEmpty(t, resp.Header.Get("X-Sluice-Queue-Ms"))

	row := r.row(k.job.ID)
	require.Equal(t, inference.OutcomeSucceeded, row.Outcome)
	require.Equal(t, "m-served", row.ModelServed)
	require.EqualValues(t, 4, row.Usage.CompletionTokens)
	require.Zero(t, r.ingress.flights.count())

	_, metrics := r.get("/metrics").whole()
	for _, want := range []string{
		`sluice_requests_total{outcome="succeeded",provider="acme"} 1`, `sluice_tokens_total{provider="acme",type="prompt"} 3`,
		`sluice_workers{provider="acme"} 1`, `sluice_queue_depth{provider="acme",state="waiting"}`, `sluice_in_flight 0`,
		`sluice_ledger_rows_total 1`,
	} {
		require.Contains(t, metrics, want)
	}
}

func TestLargeBodiesBothWays(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	large := hex.EncodeToString(noise)
	request := strings.Replace(plainRequest, "hi", large, 1)
	c := r.chat(request)
	k := r.take()
	require.NotEmpty(t, k.ref)
	body, err := r.answer.Body(t.Context(), k.job, k.ref, 4<<20)
	require.NoError(t, err)
	require.Equal(t, request, string(body))
	k.succeed(`{"x":"` + large + `"}`)
	_, got := c.whole()
	require.Equal(t, `{"x":"`+large+`"}`, got)
	require.Eventually(t, func() bool {
		_, err := r.conn.FetchBlob(t.Context(), k.ref, 4<<20)
		return err != nil
	}, soon, 10*time.Millisecond, "the body is removed with its job")
}

func TestRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	r := setup(t)
	chat := r.server.URL + "/v1/chat/completions"
	chunked := r.request(http.MethodPost, chat, "x")
	chunked.Body, chunked.ContentLength = io.NopCloser(bytes.NewReader(make([]byte, 5<<20))), -1
	for name, c := range map[string]struct {
		req    *http.Request
		status int
		code   inference.ErrorCode
	}{
		"no key":            {r.request(http.MethodPost, chat, plainRequest, "Authorization", ""), 401, inference.CodeUnauthenticated},
		"no json":           {r.request(http.MethodPost, chat, `{"model":`), 400, inference.CodeInvalidJSON},
		"no model":          {r.request(http.MethodPost, chat, `{"messages":[]}`), 400, inference.CodeInvalidRequest},
		"no such model":     {r.request(http.MethodPost, chat, strings.Replace(plainRequest, `"m"`, `"x"`, 1)), 404, inference.CodeModelNotFound},
		"model not allowed": {r.request(http.MethodPost, chat, plainRequest, "Authorization", "Bearer a-key-of-others"), 403, inference.CodeModelNotAllowed},
		"too large":         {r.request(http.MethodPost, chat, strings.Repeat(" ", 4<<20+1)), 413, inference.CodeRequestTooLarge},
		"too large chunked": {chunked, 413, inference.CodeRequestTooLarge},
		"compressed":        {r.request(http.MethodPost, chat, plainRequest, "Content-Encoding", "gzip"), 400, inference.CodeInvalidRequest},
		"timeout":           {r.request(http.MethodPost, chat, plainRequest, "X-Sluice-Timeout", "soon"), 400, inference.CodeInvalidRequest},
		"window":            {r.request(http.MethodPost, chat, plainRequest, "X-Sluice-Resume-Window", "-1s"), 400, inference.CodeInvalidRequest},
		"path":              {r.request(http.MethodGet, r.server.URL+"/v2", ""), 404, inference.CodeNotFound},
		"method":            {r.request(http.MethodGet, chat, ""), 405, inference.CodeMethodNotAllowed},
		"models, no key":    {r.request(http.MethodGet, r.server.URL+"/v1/models", "", "Authorization", "x"), 401, inference.CodeUnauthenticated},
		"model, no key":     {r.request(http.MethodGet, r.server.URL+"/v1/models/m", "", "Authorization", "x"), 401, inference.CodeUnauthenticated},
		"unknown model":     {r.request(http.MethodGet, r.server.URL+"/v1/models/x", ""), 404, inference.CodeModelNotFound},
		"long model":        {r.request(http.MethodGet, r.server.URL+"/v1/models/"+strings.Repeat("m", 5000), ""), 404, inference.CodeModelNotFound},
		"events, no key":    {r.request(http.MethodGet, chat+"/x/events", "", "Authorization", "x"), 401, inference.CodeUnauthenticated},
		"events, odd job":   {r.request(http.MethodGet, chat+"/x/events", ""), 404, inference.CodeNotFound},
		"events, no job":    {r.request(http.MethodGet, chat+"/"+queue.NewJobID("ingressa", time.Now())+"/events", ""), 404, inference.CodeNotFound},
		"events, odd id":    {r.request(http.MethodGet, chat+"/x/events", "", "Last-Event-ID", "7"), 400, inference.CodeInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one := *r
			one.t = t
			c.req = c.req.WithContext(t.Context())
			one.send(c.req).fails(c.status, c.code)
		})
	}
}

func TestModelsEndpoint(t *testing.T) {
	t.Parallel()
	r := setup(t)
	resp, body := r.get("/v1/models").whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Contains(t, body, `"id":"m"`)
	require.NotContains(t, body, "m-*")
	_, body = r.get("/v1/models/m-x").whole()
	require.Contains(t, body, `"id":"m-x"`)
	require.Contains(t, body, `"owned_by":"acme"`)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	r := setup(t)
	resp, body := r.get("/livez").whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "ok\n", body)
	ready := func() (int, readiness) {
		resp, body := r.get("/readyz").whole()
		var v readiness
		require.NoError(t, json.Unmarshal([]byte(body), &v))
		return resp.StatusCode, v
	}
	status, v := ready()
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "no worker", v.Providers["acme"].Status)
	r.work()
	_, v = ready()
	require.Equal(t, providerHealth{Workers: 1, Status: "ok"}, v.Providers["acme"])

	r.mu.Lock()
	r.pingErr = errors.New("secret address refused")
	r.mu.Unlock()
	status, v = ready()
	require.Equal(t, http.StatusOK, status, "known keys are served without the database")
	require.Equal(t, "not reachable", v.Checks["database"])

	r.ingress.Drain()
	status, _ = ready()
	require.Equal(t, http.StatusServiceUnavailable, status)
}

func TestUpstreamErrorsReachTheClient(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamError, Message: "The provider failed.", Status: 503}})
	c.fails(http.StatusBadGateway, inference.CodeUpstreamError)
	require.Equal(t, inference.OutcomeFailed, r.row(k.job.ID).Outcome)

	c = r.chat(streamRequest)
	k = r.take()
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeUpstreamRejected, Status: 422, Body: []byte(`{"error":{"code":"theirs","message":"m"}}`)}})
	c.fails(422, "theirs")
}

func TestFullQueueIsRefused(t *testing.T) {
	t.Parallel()
	r := setup(t)
	require.NoError(t, r.conn.Announce(queue.Presence{Worker: "w", Providers: []queue.ProviderPresence{{Name: "acme", MaxQueued: 4, Rate: 0.2}}}))
	require.Eventually(t, func() bool { return r.ingress.workers.states()["acme"].Workers == 1 }, soon, time.Millisecond)
	for range 4 {
		r.chat(plainRequest)
	}
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "acme")
		return err == nil && d.Waiting == 4
	}, soon, 5*time.Millisecond)
	resp := r.chat(plainRequest).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	require.Equal(t, "10", resp.Header.Get("Retry-After"), "half of four jobs at one in five seconds")
	r.chat(streamRequest).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	require.Equal(t, 4, r.ingress.flights.count(), "what was refused is forgotten")
}

func TestTooManyInFlight(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.MaxInFlight = 1 })
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	r.chat(plainRequest).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	k.succeed("{}")
	c.whole()
}

func TestDeadlineHolds(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.chat(plainRequest, "X-Sluice-Timeout", "100ms").fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "acme")
		return err == nil && d == queue.Depth{}
	}, soon, 5*time.Millisecond, "the job is taken out of the queue")

	// A stream whose head is out ends with an event.
	c := r.chat(streamRequest, "X-Sluice-Timeout", "300ms")
	resp := c.response()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), ": waiting")
	require.Contains(t, string(body), `"code":"deadline_exceeded"`)
	require.NotContains(t, string(body), "[DONE]")
	require.Equal(t, inference.OutcomeExpired, r.row(resp.Header.Get("X-Sluice-Job-Id")).Outcome)
}

func TestAClientThatLeavesCancels(t *testing.T) {
	t.Parallel()
	r := setup(t)
	queued := r.chat(plainRequest)
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "acme")
		return err == nil && d.Waiting == 1
	}, soon, 5*time.Millisecond)
	queued.cancel()
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "acme")
		return err == nil && d.Waiting == 0
	}, soon, 5*time.Millisecond, "a queued job is removed")

	r.work()
	running := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"a":1}`)
	running.response()
	running.cancel()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeCancelled}, LastSeq: 1, Usage: inference.Usage{PromptTokens: 9, Known: true}})
	row := r.row(k.job.ID)
	require.Equal(t, inference.OutcomeCancelled, row.Outcome)
	require.EqualValues(t, 9, row.Usage.PromptTokens, "the worker's last word counts")
	require.Eventually(t, func() bool { return len(r.allRows()) == 2 }, soon, 5*time.Millisecond, "also the queued one has its row")
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

func TestStreamedAnswer(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	resp := c.response() // the head goes out while the job still waits
	require.Equal(t, "text/event-stream; charset=utf-8", resp.Header.Get("Content-Type"))
	require.Equal(t, k.job.ID, resp.Header.Get("X-Sluice-Job-Id"))
	k.events(1, `{"n":1}`)
	k.events(2, `{"n":2}`, `{"n":3}`)
	k.end(&queue.End{LastSeq: 3, Usage: inference.Usage{CompletionTokens: 3, Known: true}})
	require.Equal(t, []frame{
		{"0-1-1", `{"n":1}`}, {"0-1-2", `{"n":2}`}, {"0-1-3", `{"n":3}`}, {"0-1-4", "[DONE]"},
	}, frames(t, resp.Body, nil))
	require.Equal(t, "1", resp.Trailer.Get("X-Sluice-Attempts"), "what the head could not tell follows at the end")
	row := r.row(k.job.ID)
	require.True(t, row.Stream)
	require.NotZero(t, row.FirstToken)
}

func TestAStreamThatFailsNeverLooksWhole(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	resp := c.response()
	k.end(&queue.End{LastSeq: 1, Err: &inference.Error{Code: inference.CodeUpstreamCut, Message: "Cut."}})
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), `"code":"upstream_cut"`)
	require.NotContains(t, string(body), "[DONE]")
}

func TestResumeOnAnotherIngress(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	_, second := r.startIngress()
	first := r.chat(streamRequest, "X-Sluice-Resume-Window", "20s")
	k := r.take()
	rec := r.conn.NewRecorder(k.job, k.run, 1)
	chunk := func(n uint64, s string) {
		k.events(n, s)
		rec.Add([][]byte{[]byte(s)})
	}
	chunk(1, `{"n":1}`)
	chunk(2, `{"n":2}`)
	resp := first.response()
	frames(t, resp.Body, func(f frame) bool { return f.id == "0-1-1" })
	first.cancel()

	events := second.URL + "/v1/chat/completions/" + k.job.ID + "/events"
	r.send(r.request(http.MethodGet, events, "", "Authorization", "Bearer a-key-of-others")).fails(404, inference.CodeNotFound)
	again := r.send(r.request(http.MethodGet, events, "", "Last-Event-ID", "0-1-1")).response()
	chunk(3, `{"n":3}`)
	end := &queue.End{JobID: k.job.ID, Run: k.run, LastSeq: 3}
	got := make(chan []frame, 1)
	go func() { got <- frames(t, again.Body, nil) }()
	require.NoError(t, rec.Finish(t.Context(), end))
	k.end(end)
	require.Equal(t, []frame{{"0-1-2", `{"n":2}`}, {"0-1-3", `{"n":3}`}, {"0-1-4", "[DONE]"}}, next(t, got))

	whole := r.send(r.request(http.MethodGet, events, "")).response()
	require.Len(t, frames(t, whole.Body, nil), 4, "from the beginning without an id")
	done, _ := r.send(r.request(http.MethodGet, events, "", "Last-Event-ID", "0-1-4")).whole()
	require.Equal(t, http.StatusNoContent, done.StatusCode, "the client has it all")
	require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome, "the job went on without its client")
}

func TestResumeOfAFailedStream(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	rec := r.conn.NewRecorder(k.job, k.run, 1)
	k.events(1, `{"n":1}`)
	rec.Add([][]byte{[]byte(`{"n":1}`)})
	end := &queue.End{JobID: k.job.ID, Run: k.run, LastSeq: 1, Err: &inference.Error{Code: inference.CodeUpstreamCut, Message: "Cut."}}
	require.NoError(t, rec.Finish(t.Context(), end))
	k.end(end)
	_, _ = c.whole()
	path := "/v1/chat/completions/" + k.job.ID + "/events"
	_, body := r.get(path).whole()
	require.Contains(t, body, `{"n":1}`)
	require.Contains(t, body, "upstream_cut")
	r.get(path, "Last-Event-ID", "0-1-1").fails(http.StatusBadGateway, inference.CodeUpstreamCut)
}

func TestAJobWhoseWorkerIsLostGoesToAnother(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	v, err := r.answer.Claim(t.Context(), queue.Claim{JobID: k.job.ID, Run: queue.Run{Delivery: 2}, Worker: "worker02"})
	require.NoError(t, err)
	require.Equal(t, queue.VerdictRun, v)
	require.NoError(t, r.answer.Hold([]queue.HeldJob{{JobID: k.job.ID, Run: queue.Run{Delivery: 2}}, {JobID: queue.NewJobID(r.ingress.opt.ID, time.Now())}}))

	// The first worker was only slow. Its failure is no answer, and it is told nothing
	// that would remove the message from under the second one.
	late := &queue.End{JobID: k.job.ID, Run: k.run, Worker: "worker01", Err: &inference.Error{Code: inference.CodeUpstreamError}}
	require.NoError(t, r.answer.End(late))
	k.run.Delivery = 2
	k.succeed("{}")
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Empty(t, r.settled)
	require.NoError(t, r.answer.End(late))
	require.Equal(t, k.job.ID, next(t, r.settled), "once all is accounted for, it is settled")
	v, err = r.answer.Claim(t.Context(), queue.Claim{JobID: k.job.ID, Run: queue.Run{Delivery: 3}, Worker: "worker02"})
	require.NoError(t, err)
	require.Equal(t, queue.VerdictDrop, v)
}

func TestAStreamWhoseWorkerIsLostEndsWithAnError(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	resp := c.response()
	f := r.ingress.flights.find(k.job.ID)
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.heardAt = time.Now().Add(-time.Minute)
		return f.begun
	}, soon, time.Millisecond)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), `"code":"worker_lost"`)
	require.NotContains(t, string(body), "[DONE]")
	require.Equal(t, inference.CodeWorkerLost, r.row(k.job.ID).ErrorCode)
	require.Equal(t, k.job.ID, next(t, r.cancelled), "whoever still has it may stop")
}

func TestAJobThatTheQueueLostIsPublishedAgain(t *testing.T) {
	t.Parallel()
	r := setup(t)
	c := r.chat(plainRequest)
	require.Eventually(t, func() bool {
		d, err := r.conn.Depth(t.Context(), "acme")
		return err == nil && d.Waiting == 1
	}, soon, 5*time.Millisecond)
	var f *flight
	for _, one := range r.ingress.flights.all() {
		f = one
	}
	require.Eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.place.seq != 0 }, soon, time.Millisecond)
	r.ingress.flights.streamLost("nobody")
	r.ingress.flights.streamLost("acme")
	f.mu.Lock()
	require.False(t, f.place.lostAt.IsZero())
	f.place.lostAt = f.place.lostAt.Add(-time.Minute)
	f.mu.Unlock()
	r.work()
	k := r.take()
	for k.job.Epoch == 0 {
		k = r.take()
	}
	require.Equal(t, 1, k.job.Epoch)
	k.succeed("{}")
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestACallThatNoQueueTakesIsRefusedInTheEnd(t *testing.T) {
	t.Parallel()
	r := setup(t)
	f := newTestFlight()
	f.feed = newFeed(&shelfReader{shelf: &shelf{}}, queue.Run{}, 1)
	f.place.firstSent = time.Now().Add(-time.Hour)
	f.accepted = time.Now()
	fs := r.ingress.flights
	fs.byID[f.job.ID] = f
	fs.lookAfter(f, time.Now(), time.Time{})
	require.True(t, isDone(f))
	require.Equal(t, inference.CodeQueueUnavailable, f.end.Err.Code)
	require.Zero(t, fs.count())
	fs.lookAfter(f, time.Now(), time.Time{})

	g := newTestFlight()
	g.place.sent = time.Now().Add(-time.Hour)
	g.place.firstSent = time.Now()
	fs.lookAfter(g, time.Now(), time.Time{})
	require.WithinDuration(t, time.Now(), g.place.sent, soon, "published again")
}

// The job of a client that may come back waits for it, and a client that reads the
// events elsewhere keeps it alive; without both it is cancelled.
func TestAClientThatDoesNotComeBackCancels(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest, "X-Sluice-Resume-Window", "20s")
	k := r.take()
	k.events(1, `{"n":1}`)
	c.response()
	c.cancel()
	f := r.ingress.flights.find(k.job.ID)
	gone := func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.clientGone }
	require.Eventually(t, gone, soon, time.Millisecond)
	f.mu.Lock()
	f.goneUntil = time.Now().Add(time.Hour)
	attached := f.goneUntil
	f.mu.Unlock()
	require.NoError(t, r.conn.Attach(k.job.ID))
	require.NoError(t, r.conn.Attach(queue.NewJobID(r.ingress.opt.ID, time.Now())))
	f.mu.Lock()
	require.False(t, f.goneUntil.Before(attached), "a shorter promise takes nothing back")
	f.goneUntil = time.Now().Add(-time.Second)
	f.mu.Unlock()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	k.end(&queue.End{LastSeq: 1, Err: &inference.Error{Code: inference.CodeCancelled}})
	require.Equal(t, inference.OutcomeCancelled, r.row(k.job.ID).Outcome)
}

// A worker that says nothing about a job that was given up does not keep its row away.
func TestTheRowOfAnUnheardJob(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	c.response()
	c.cancel()
	require.Equal(t, k.job.ID, next(t, r.cancelled))
	f := r.ingress.flights.find(k.job.ID)
	f.mu.Lock()
	f.closing = time.Now().Add(-time.Second)
	f.mu.Unlock()
	row := r.row(k.job.ID)
	require.Equal(t, inference.OutcomeCancelled, row.Outcome)
	require.Equal(t, 1, row.Attempts)
}

func TestADrainingIngressLetsItsStreamsGoOn(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(streamRequest)
	k := r.take()
	k.events(1, `{"n":1}`)
	c.response()
	r.ingress.Drain()
	c.cancel()
	f := r.ingress.flights.find(k.job.ID)
	require.Eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.clientGone }, soon, time.Millisecond)
	require.Empty(t, r.cancelled)
	k.end(&queue.End{LastSeq: 1})
	require.Equal(t, inference.OutcomeSucceeded, r.row(k.job.ID).Outcome)
}
