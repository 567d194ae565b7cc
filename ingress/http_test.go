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
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

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
			r.sendIn(t, c.req.WithContext(t.Context())).fails(c.status, c.code)
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
	require.NoError(t, r.conn.Announce(queue.Presence{Worker: "worker01", Providers: []queue.ProviderPresence{{
		Name: "acme", Limit: 3, Held: 2, States: []inference.ModelState{{Model: "m", Breaker: inference.BreakerOpen}, {Model: "m-1", Breaker: inference.BreakerClosed}},
	}}}))
	require.Eventually(t, func() bool { status, v = ready(); return v.Providers["acme"].Held == 2 }, soon, time.Millisecond)
	require.Equal(t, providerHealth{Workers: 1, Status: "ok", Limit: 3, Held: 2, Breakers: map[string]string{"m": "open"}}, v.Providers["acme"])
	require.Equal(t, http.StatusOK, status, "requests go elsewhere, or wait")

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

func TestTheWaitForAProviderIsNotTheQueues(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest, "X-Sluice-Timeout", "2s")
	k := r.take()
	require.NoError(t, r.answer.Hold([]queue.HeldJob{{JobID: k.job.ID, Run: k.run}}))
	resp := c.fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	ms, err := strconv.Atoi(resp.Header.Get("X-Sluice-Queue-Ms"))
	require.NoError(t, err)
	require.Less(t, ms, 1500)
	require.Equal(t, "1", resp.Header.Get("X-Sluice-Attempts"))
}

func TestEmbeddings(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	url := r.server.URL + "/v1/embeddings"
	c := r.send(r.request(http.MethodPost, url, `{"model":"m","input":["a","b"],"x":1}`))
	k := r.take()
	require.Equal(t, inference.KindEmbeddings, k.job.Kind)
	require.False(t, k.job.Stream)
	require.JSONEq(t, `{"model":"m","input":["a","b"],"x":1}`, string(k.job.Body))
	k.succeed(`{"object":"list","data":[]}`)
	resp, body := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.JSONEq(t, `{"object":"list","data":[]}`, body)
	require.Equal(t, inference.KindEmbeddings, r.row(k.job.ID).Kind)
	r.send(r.request(http.MethodPost, url, `{"model":"m","input":[]}`)).fails(http.StatusBadRequest, inference.CodeInvalidRequest)
	r.send(r.request(http.MethodGet, url, "")).fails(http.StatusMethodNotAllowed, inference.CodeMethodNotAllowed)
}

func TestDroppedFieldsAreNamed(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	r.take().end(&queue.End{Body: []byte("{}"), Dropped: []string{"logit_bias", "seed"}})
	resp, _ := c.whole()
	require.Equal(t, "logit_bias, seed", resp.Header.Get("X-Sluice-Dropped-Params"))

	early := r.chat(streamRequest)
	k := r.take()
	e := &queue.Events{JobID: k.job.ID, Run: k.run, Worker: "worker01", FirstSeq: 1, Attempts: 1, Chunks: [][]byte{[]byte(`{}`)}, Dropped: []string{"n"}}
	require.NoError(t, r.answer.Events(e))
	resp = early.response()
	require.Equal(t, "n", resp.Header.Get("X-Sluice-Dropped-Params"))
	k.end(&queue.End{LastSeq: 1})

	late := r.chat(streamRequest)
	k = r.take()
	resp = late.response() // the head does not wait for ever
	require.Empty(t, resp.Header.Get("X-Sluice-Dropped-Params"))
	e.JobID, e.Run = k.job.ID, k.run
	require.NoError(t, r.answer.Events(e))
	k.end(&queue.End{LastSeq: 1})
	_, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.Equal(t, "n", resp.Trailer.Get("X-Sluice-Dropped-Params"))
}

func TestMemoryOfRequestBodiesIsBounded(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.BodyMemory = 1 << 20 })
	r.work()
	held := func() int64 { return r.ingress.flights.bodies.held.Load() }
	padded := func(n int) string { return plainRequest + strings.Repeat(" ", n) }

	r.chat(padded(2<<20)).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	require.Zero(t, held(), "what was refused is not held")
	r.chat(`{"model":`).fails(http.StatusBadRequest, inference.CodeInvalidJSON)
	require.Zero(t, held())

	chunked := r.request(http.MethodPost, r.server.URL+"/v1/chat/completions", plainRequest)
	chunked.ContentLength = -1
	c := r.send(chunked)
	k := r.take()
	require.EqualValues(t, len(plainRequest), held(), "also of unknown length")
	k.succeed("{}")
	c.whole()

	small := r.chat(plainRequest)
	k = r.take()
	require.EqualValues(t, len(plainRequest), held(), "it may have to be published again")
	k.succeed("{}")
	small.whole()
	require.Zero(t, held())

	large := r.chat(padded(600 << 10))
	k = r.take()
	require.NotEmpty(t, k.ref)
	require.Zero(t, held(), "it is in the object store")
	k.succeed("{}")
	large.whole()

	// What a client announces and does not send costs next to nothing.
	body, sent := io.Pipe()
	slow := r.request(http.MethodPost, r.server.URL+"/v1/chat/completions", "")
	slow.Body, slow.ContentLength = body, 900<<10
	c = r.send(slow)
	_, err := io.WriteString(sent, "{")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return held() == firstRead }, soon, time.Millisecond)
	c.cancel()
	require.NoError(t, sent.Close())
	require.Eventually(t, func() bool { return held() == 0 }, soon, time.Millisecond, "it left")
}

func TestMemoryOfLargeAnswersIsBounded(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.BodyMemory = 1 << 20 })
	r.work()
	require.True(t, r.ingress.answers.TryAcquire(1<<20), "answers of others")
	c := r.chat(plainRequest)
	answer := `{"a":"` + strings.Repeat("x", 3<<20) + `"}`
	r.take().succeed(answer)
	select { // longer than the object store's client would wait by itself
	case <-c.resp:
		require.FailNow(t, "it had to wait")
	case <-time.After(6 * time.Second):
	}
	r.ingress.answers.Release(1 << 20)
	_, body := c.whole()
	require.Equal(t, answer, body)
	require.Eventually(t, func() bool { return r.ingress.answers.TryAcquire(1 << 20) }, soon, time.Millisecond, "it is given back")

	late := r.chat(plainRequest, "X-Sluice-Timeout", "500ms")
	r.take().succeed(answer)
	late.fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
}

// A client that takes its time to send its body, or leaves meanwhile, has its own part
// of the blame.
func TestTheTimeForABodyIsBounded(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.BodyTimeout = 200 * time.Millisecond })
	r.work()
	body, sent := io.Pipe()
	slow := r.request(http.MethodPost, r.server.URL+"/v1/chat/completions", "")
	slow.Body, slow.ContentLength = body, 100
	c := r.send(slow)
	_, err := io.WriteString(sent, "{")
	require.NoError(t, err)
	c.fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	require.NoError(t, sent.Close())

	c = r.chat(plainRequest)
	k := r.take()
	time.Sleep(300 * time.Millisecond) // longer than the body may take: the wait for the answer is another matter
	require.Empty(t, r.cancelled)
	k.succeed("{}")
	resp, _ := c.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestARequestsDeadlineHoldsForItsBody(t *testing.T) {
	t.Parallel()
	r := setup(t)
	body, sent := io.Pipe()
	slow := r.request(http.MethodPost, r.server.URL+"/v1/chat/completions", "", "X-Sluice-Timeout", "200ms")
	slow.Body, slow.ContentLength = body, 100
	c := r.send(slow)
	c.fails(http.StatusGatewayTimeout, inference.CodeDeadlineExceeded)
	require.NoError(t, sent.Close())
}

// Whoever announces a body that nobody will read is answered at once, and cannot hold
// the connection; whoever sends all of it before it reads gets to see the answer.
func TestBodiesThatNobodyReads(t *testing.T) {
	t.Parallel()
	r := setup(t)
	for name, c := range map[string]struct{ head, status string }{
		"no key":         {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{", "401"},
		"chunked":        {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "401"},
		"no path":        {"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", "404"},
		"path not clean": {"POST //v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", "404"},
		"no method":      {"PUT /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", "405"},
		"with a get":     {"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", "200"},
		"too large":      {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + r.key + "\r\nContent-Length: 10000000\r\n\r\n", "413"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dialServer(t, r)
			_, err := io.WriteString(conn, c.head)
			require.NoError(t, err)
			before := time.Now()
			line, err := bufio.NewReader(conn).ReadString('\n')
			require.NoError(t, err)
			require.Contains(t, line, " "+c.status+" ")
			require.Less(t, time.Since(before), lingerFor)
			_, err = io.Copy(io.Discard, conn)
			require.NoError(t, err)
			require.Less(t, time.Since(before), 10*lingerFor, "the connection is closed")
		})
	}

	conn := dialServer(t, r)
	const size = 10_000_000
	_, err := io.WriteString(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+r.key+"\r\nContent-Length: 10000000\r\n\r\n")
	require.NoError(t, err)
	_, err = conn.Write(make([]byte, size))
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, " 413 ")
}

func dialServer(t *testing.T, r *rig) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", r.server.Listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(2*soon)))
	return conn
}

func TestAClientThatLeavesWhileItsBodyIsStored(t *testing.T) {
	t.Parallel()
	r := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	job := newTestFlight().job
	job.Candidates, job.Deadline = []inference.Candidate{{Provider: "acme", Model: "m"}}, time.Now().Add(time.Minute)
	job.Body = make([]byte, 1<<20)
	_, err := r.ingress.flights.open(ctx, admission{settings: r.ingress.current(), job: job, memory: &share{of: &r.ingress.flights.bodies}})
	require.Equal(t, inference.CodeCancelled, inference.AsError(err).Code, "it is no fault of the queue")
}

func TestAPanicIsToldAndAnswered(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	r := setup(t, func(o *Options) {
		o.Ping = func(context.Context) error { panic("a secret") }
		o.Logger = slog.New(slog.NewJSONHandler(&log, nil))
	})
	r.get("/readyz", "X-Request-Id", "r-1").fails(http.StatusInternalServerError, inference.CodeInternal)
	require.Contains(t, log.String(), `"request_id":"r-1"`)
	require.Contains(t, log.String(), "readyz")
	require.NotContains(t, log.String(), "a secret")
}

func TestReadersOfEventsAreBounded(t *testing.T) {
	t.Parallel()
	r := setup(t, func(o *Options) { o.MaxInFlight = 1 })
	r.work()
	r.chat(streamRequest, "X-Sluice-Resume-Window", "20s")
	k := r.take()
	k.events(1, `{"n":1}`)
	path := "/v1/chat/completions/" + k.job.ID + "/events"
	reader := r.get(path)
	require.Equal(t, http.StatusOK, reader.response().StatusCode)
	r.get(path).fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	reader.cancel()
	require.Eventually(t, func() bool { return r.ingress.tails.Load() == 0 }, soon, time.Millisecond)
}

func TestWithoutAQueueRequestsAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.embedded.Close()
	require.Eventually(t, func() bool { return !r.ingress.conn.Connected() }, soon, time.Millisecond)
	before := time.Now()
	r.get("/v1/chat/completions/"+queue.NewJobID(r.ingress.opt.ID, time.Now())+"/events").fails(http.StatusServiceUnavailable, inference.CodeQueueUnavailable)
	require.Less(t, time.Since(before), 2*time.Second)

	require.Eventually(t, func() bool { return r.ingress.conn.DisconnectedFor() > queueGone }, soon, 10*time.Millisecond)
	for _, body := range []string{plainRequest, streamRequest} {
		resp := r.chat(body).fails(http.StatusServiceUnavailable, inference.CodeQueueUnavailable)
		require.NotEmpty(t, resp.Header.Get("Retry-After"))
	}
}

func TestAPathSaysWhichMethodsItTakes(t *testing.T) {
	t.Parallel()
	r := setup(t)
	for path, want := range map[string]string{
		"/v1/chat/completions": "POST", "/v1/models": "GET", "/v1/models/m": "GET", "/livez": "GET, HEAD",
	} {
		resp := r.send(r.request(http.MethodDelete, r.server.URL+path, "")).fails(http.StatusMethodNotAllowed, inference.CodeMethodNotAllowed)
		require.Equal(t, want, resp.Header.Get("Allow"), path)
	}
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
	r.ingress.flights.side.Wait()
	d, err := r.conn.Depth(t.Context(), "acme")
	require.NoError(t, err)
	require.Equal(t, 1, d.Running, "its place is taken until the worker is done with the call")
	k.end(&queue.End{Err: &inference.Error{Code: inference.CodeCancelled}, LastSeq: 1, Usage: inference.Usage{PromptTokens: 9, Known: true}})
	row := r.row(k.job.ID)
	require.Equal(t, inference.OutcomeCancelled, row.Outcome)
	require.EqualValues(t, 9, row.Usage.PromptTokens, "the worker's last word counts")
	require.Eventually(t, func() bool { return len(r.allRows()) == 2 }, soon, 5*time.Millisecond, "also the queued one has its row")
}
