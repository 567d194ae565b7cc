package ingress

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/webhook"
	"sluice/store"
)

func TestJobFromRequestToAnswer(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	request := `{"model":"m","metadata":{"a":"b"},"messages":[{"role":"user","content":"hi"}]}`
	resp, text := r.chat(request, "Prefer", "return=minimal, Respond-Async", "X-Request-Id", "req-1").whole()
	require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
	fresh := parseJob(t, text)
	require.Equal(t, "respond-async", resp.Header.Get("Preference-Applied"))
	require.Equal(t, "/v1/jobs/"+fresh.ID, resp.Header.Get("Location"))
	require.Equal(t, fresh.ID, resp.Header.Get("X-Sluice-Job-Id"))
	require.Equal(t, "1", resp.Header.Get("Retry-After"))
	require.Equal(t, []any{"job", "queued", "m", "/v1/chat/completions", map[string]string{"a": "b"}}, []any{fresh.Object, fresh.Status, fresh.Model, fresh.Endpoint, fresh.Metadata})
	require.InDelta(t, time.Now().Unix(), fresh.CreatedAt, 10)

	k := r.take()
	require.Equal(t, store.JobPrefix+k.job.ID, fresh.ID)
	require.Equal(t, []any{inference.LaneBackground, request, soon, false}, []any{k.job.Lane, string(k.job.Body), k.job.RunFor, k.job.Stream})
	require.WithinDuration(t, time.Now().Add(time.Hour), k.job.Deadline, time.Minute)
	require.Equal(t, queue.VerdictRun, k.claim().Verdict)
	running := r.show(fresh.ID, "")
	require.Equal(t, "in_progress", running.Status)
	require.Nil(t, running.Response)
	resp, text = r.get("/v1/jobs/" + fresh.ID + "/result").whole()
	require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
	require.Equal(t, fresh.ID, parseJob(t, text).ID)

	waiting := r.get("/v1/jobs/" + fresh.ID + "?wait=20s")
	answer := `{"id":"chatcmpl-1",  "text":"<b>"}`
	k.done(answer)
	resp, text = waiting.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode, text)
	require.Empty(t, resp.Header.Get("Retry-After"))
	done := parseJob(t, text)
	require.Equal(t, []any{"completed", "acme", 1, int64(7)}, []any{done.Status, *done.Provider, done.Attempts, done.Usage.TotalTokens})
	require.Equal(t, []any{200, "req-1"}, []any{done.Response.StatusCode, done.Response.RequestID})
	require.JSONEq(t, answer, string(done.Response.Body))
	require.Nil(t, done.Error)
	require.InDelta(t, time.Now().Add(time.Hour).Unix(), *done.ExpiresAt, 60)
	require.LessOrEqual(t, *done.StartedAt, *done.FinishedAt)

	resp, text = r.get("/v1/jobs/" + fresh.ID + "/result").whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, answer, text, "byte for byte what the call would have given")
	require.Equal(t, []string{"acme", "1", fresh.ID, "application/json"}, []string{
		resp.Header.Get("X-Sluice-Provider"), resp.Header.Get("X-Sluice-Attempts"), resp.Header.Get("X-Sluice-Job-Id"), resp.Header.Get("Content-Type"),
	})
	require.NotEmpty(t, resp.Header.Get("X-Sluice-Queue-Ms"))
	rows, err := r.db.Usage(t.Context(), store.UsageFilter{RequestID: "req-1"})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, []any{"team", "key", "m", "m-served", "acme", 200, inference.OutcomeSucceeded}, []any{
		rows[0].Tenant, rows[0].KeyID, rows[0].ModelAsked, rows[0].ModelServed, rows[0].Provider, rows[0].Status, rows[0].Outcome,
	})
	require.Equal(t, queue.VerdictDrop, k.claim().Verdict, "it has ended")
}

func TestJobThatFails(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	id := r.later(plainRequest)
	said := `{"error":{"message":"no such voice","type":"invalid_request_error","param":"voice"}}`
	r.take().fail(&inference.Error{Code: inference.CodeUpstreamRejected, Status: 422, Body: []byte(said)})
	job := r.show(id, "?wait=20")
	require.Equal(t, "failed", job.Status)
	require.Equal(t, []string{"no such voice", "invalid_request_error", "upstream_rejected"}, []string{job.Error.Message, job.Error.Type, job.Error.Code})
	require.Equal(t, 422, job.Response.StatusCode)
	resp, text := r.get("/v1/jobs/" + id + "/result").whole()
	require.Equal(t, []any{422, said, "false"}, []any{resp.StatusCode, text, resp.Header.Get("X-Should-Retry")})

	for body, want := range map[string][4]string{
		`{"error":{"message":"too long","type":"t","code":"context_length_exceeded","param":"messages"}}`: {"too long", "t", "context_length_exceeded", "messages"},
		`{"error":{"message":"x","code":"y"}}`:                     {"x", "invalid_request_error", "y", ""},
		`{"error":{"code":"y"}}`:                                   {"The job ended with the error upstream_rejected.", "invalid_request_error", "y", ""},
		`{"detail":[{"loc":["body","input"],"msg":"is missing"}]}`: {"is missing", "invalid_request_error", "upstream_rejected", "input"},
	} {
		id = r.later(plainRequest)
		r.take().fail(&inference.Error{Code: inference.CodeUpstreamRejected, Status: 400, Body: []byte(body)})
		e := r.show(id, "?wait=20").Error
		param := ""
		if e.Param != nil {
			param = *e.Param
		}
		require.Equal(t, want, [4]string{e.Message, e.Type, e.Code, param})
	}

	id = r.later(plainRequest)
	r.take().fail(&inference.Error{Code: inference.CodeUpstreamInvalid, Message: "The provider sent nonsense."})
	require.Equal(t, "failed", r.show(id, "?wait=20").Status)
	r.get("/v1/jobs/"+id+"/result").fails(http.StatusBadGateway, inference.CodeUpstreamInvalid)
	_, text = r.get("/v1/jobs/" + id + "/result").whole()
	require.Contains(t, text, `"job_id":"`+id+`"`, "the id that the API takes")

	id = r.later(plainRequest)
	r.take().fail(&inference.Error{Code: inference.CodeUpstreamUnavailable, Message: "The provider cannot be reached.", Retryable: true})
	require.Eventually(t, func() bool { return r.stored(id).NotBefore.After(time.Now().Add(20 * time.Second)) }, soon, time.Millisecond)
	require.Equal(t, "queued", r.show(id, "").Status, "it waits for its provider")
}

func TestPostWaitsForTheJob(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	call := r.chat(plainRequest, "Prefer", "respond-async, wait=20")
	r.take().done(`{"id":"x"}`)
	resp, text := call.whole()
	require.Equal(t, []any{http.StatusOK, `{"id":"x"}`, "respond-async, wait=20"}, []any{resp.StatusCode, text, resp.Header.Get("Preference-Applied")})
	require.Equal(t, "acme", resp.Header.Get("X-Sluice-Provider"))
	require.True(t, strings.HasPrefix(resp.Header.Get("Location"), "/v1/jobs/job_"))

	resp, text = r.chat(plainRequest, "Prefer", "wait=1, respond-async").whole()
	require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
	r.take()
}

func TestJobsAreAdmittedAsCallsAre(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	async := []string{"Prefer", "respond-async"}
	r.chat(`{"model":"m"`, async...).fails(http.StatusBadRequest, inference.CodeInvalidJSON)
	r.chat(`{"model":"unheard-of","messages":[{"role":"user","content":"hi"}]}`, async...).fails(http.StatusNotFound, inference.CodeModelNotFound)
	r.chat(plainRequest, "Prefer", "respond-async", "X-Sluice-Timeout", "soon").fails(http.StatusBadRequest, inference.CodeInvalidRequest)
	r.chat(plainRequest, "Prefer", "respond-async", "Authorization", "Bearer nobody").fails(http.StatusUnauthorized, inference.CodeUnauthenticated)
	r.chat(plainRequest, "Prefer", "respond-async", "Authorization", "Bearer a-key-of-others").fails(http.StatusForbidden, inference.CodeModelNotAllowed)
	jobs, err := r.db.ListJobs(t.Context(), store.JobFilter{Tenant: "team"})
	require.NoError(t, err)
	require.Empty(t, jobs)

	id := r.later(plainRequest, "X-Sluice-Timeout", "90s")
	job := r.stored(id)
	require.Equal(t, 90*time.Second, job.Deadline.Sub(job.CreatedAt))
	resp, text := r.send(r.request(http.MethodPost, r.server.URL+"/v1/embeddings", `{"model":"m","input":"hi"}`, async...)).whole()
	require.Equal(t, http.StatusAccepted, resp.StatusCode, text)
	require.Equal(t, "/v1/embeddings", parseJob(t, text).Endpoint)
}

func TestWebhookOfAJob(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	with := func(metadata string) string {
		return `{"model":"m","metadata":{"a":"b","webhook":` + metadata + `},"messages":[{"role":"user","content":"hi"}]}`
	}
	good := `{"url":"https://example.com/in?token=t","events":["job.failed"]}`
	quoted, err := json.Marshal(good)
	require.NoError(t, err)
	for _, body := range []string{with(good), with(string(quoted))} {
		job := r.stored(r.later(body))
		require.JSONEq(t, good, string(job.Webhook))
		require.Equal(t, map[string]string{"a": "b"}, job.Metadata)
		k := r.take()
		require.JSONEq(t, `{"model":"m","metadata":{"a":"b"},"messages":[{"role":"user","content":"hi"}]}`, string(k.job.Body), "no provider learns of it")
		k.done(`{}`)
	}
	id := r.later(plainRequest, "X-Sluice-Webhook", good)
	r.take().fail(inference.Errorf(inference.CodeUpstreamRejected, "no"))
	require.Equal(t, "failed", r.show(id, "?wait=20").Status)
	reports, err := r.db.Deliveries(t.Context(), store.DeliveryFilter{Tenant: "team"})
	require.NoError(t, err)
	require.Len(t, reports, 1, "the filter takes the failure alone")
	require.Equal(t, []string{webhook.JobFailed, id}, []string{reports[0].Type, reports[0].ObjectID})

	cases := []struct{ name, header, body, param string }{
		{"no JSON", "https://example.com", plainRequest, "X-Sluice-Webhook"},
		{"no object", `["https://example.com"]`, plainRequest, "X-Sluice-Webhook"},
		{"something more", `{"url":"https://example.com","secret":"x"}`, plainRequest, "X-Sluice-Webhook"},
		{"two", `{"url":"https://example.com"} {}`, plainRequest, "X-Sluice-Webhook"},
		{"no address", `{"events":[]}`, plainRequest, "X-Sluice-Webhook.url"},
		{"not https", `{"url":"http://example.com"}`, plainRequest, "X-Sluice-Webhook.url"},
		{"a private address", `{"url":"https://[::ffff:10.0.0.1]/"}`, plainRequest, "X-Sluice-Webhook.url"},
		{"an unknown event", `{"url":"https://example.com","events":["job.begun"]}`, plainRequest, "X-Sluice-Webhook.events"},
		{"a batch's event", `{"url":"https://example.com","events":["batch.completed"]}`, plainRequest, "X-Sluice-Webhook.events"},
		{"in both places", good, with(good), "X-Sluice-Webhook"},
		{"too long", `{"url":"` + strings.Repeat("x", store.MaxWebhookBytes) + `"}`, plainRequest, "X-Sluice-Webhook"},
		{"in metadata", "", with(`"nonsense"`), "metadata.webhook"},
		{"in metadata, an address", "", with(`{"url":"https://127.0.0.1"}`), "metadata.webhook.url"},
		{"in metadata, twice", "", with(good + `,"webhook":1`), "metadata.webhook"},
	}
	for _, c := range cases {
		headers := []string{"Prefer", "respond-async"}
		if c.header != "" {
			headers = append(headers, "X-Sluice-Webhook", c.header)
		}
		resp, text := r.chat(c.body, headers...).whole()
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, c.name)
		var e struct {
			Error struct{ Param, Message string }
		}
		require.NoError(t, json.Unmarshal([]byte(text), &e))
		require.Equal(t, c.param, e.Error.Param, c.name)
		require.NotContains(t, e.Error.Message, "token=")
	}
}

func TestPrivateWebhooksByConfiguration(t *testing.T) {
	t.Parallel()
	r := setupJobs(t, func(o *Options) { o.Webhooks.AllowPrivate = true })
	id := r.later(plainRequest, "X-Sluice-Webhook", `{"url":"http://127.0.0.1:9000/"}`)
	require.JSONEq(t, `{"url":"http://127.0.0.1:9000/"}`, string(r.stored(id).Webhook))
}

func TestListOfJobs(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	var ids []string
	for i := range 5 {
		ids = append(ids, r.later(fmt.Sprintf(`{"model":"m-%d","messages":[{"role":"user","content":"hi"}]}`, i%2)))
	}
	foreign, _ := r.chat(`{"model":"m-1","messages":[{"role":"user","content":"hi"}]}`, "Prefer", "respond-async", "Authorization", "Bearer a-key-of-others").whole()
	require.Equal(t, http.StatusAccepted, foreign.StatusCode)
	resp, _ := r.send(r.request(http.MethodDelete, r.server.URL+"/v1/jobs/"+ids[1], "")).whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)

	list := func(query string) (found []string, more bool) {
		resp, text := r.get("/v1/jobs" + query).whole()
		require.Equal(t, http.StatusOK, resp.StatusCode, text)
		var page struct {
			Object  string
			Data    []jobAnswer
			HasMore bool `json:"has_more"`
		}
		require.NoError(t, json.Unmarshal([]byte(text), &page))
		require.Equal(t, "list", page.Object)
		for _, j := range page.Data {
			found = append(found, j.ID)
			require.Nil(t, j.Response)
		}
		return found, page.HasMore
	}
	cases := []struct {
		query string
		want  []string
		more  bool
	}{
		{"", []string{ids[4], ids[3], ids[2], ids[1], ids[0]}, false},
		{"?limit=2", []string{ids[4], ids[3]}, true},
		{"?limit=2&order=desc&after=" + ids[3], []string{ids[2], ids[1]}, true},
		{"?limit=2&after=" + ids[1], []string{ids[0]}, false},
		{"?status=cancelled", []string{ids[1]}, false},
		{"?model=m-1", []string{ids[3], ids[1]}, false},
		{"?model=m-1&status=completed", nil, false},
	}
	for _, c := range cases {
		found, more := list(c.query)
		require.Equal(t, c.want, found, c.query)
		require.Equal(t, c.more, more, c.query)
	}
	for _, query := range []string{"?limit=0", "?limit=101", "?limit=x", "?order=asc", "?status=done", "?after=job_nobodys", "?after=x", "?model=" + strings.Repeat("m", 257)} {
		r.get("/v1/jobs"+query).fails(http.StatusBadRequest, inference.CodeInvalidRequest)
	}
}

func TestCancelAJob(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	r.work()
	id := r.later(plainRequest, "X-Request-Id", "req-c")
	k := r.take()
	require.Equal(t, queue.VerdictRun, k.claim().Verdict)
	require.Eventually(t, func() bool { return r.stored(id).Seq > 0 }, soon, time.Millisecond)
	remove := func() (int, jobAnswer) {
		resp, text := r.send(r.request(http.MethodDelete, r.server.URL+"/v1/jobs/"+id, "")).whole()
		return resp.StatusCode, parseJob(t, text)
	}
	waiting := r.get("/v1/jobs/" + id + "/result?wait=20s")
	status, job := remove()
	require.Equal(t, []any{200, "cancelled", "cancelled"}, []any{status, job.Status, job.Error.Code})
	require.Equal(t, k.job.ID, next(t, r.cancelled), "its worker drops it")
	waiting.fails(statusClientClosed, inference.CodeCancelled)
	queued, err := r.conn.StoredQueued(t.Context(), "acme", []queue.StoredPlace{{JobID: k.job.ID, Seq: r.stored(id).Seq}})
	require.NoError(t, err)
	require.Equal(t, []bool{false}, queued)
	rows, err := r.db.Usage(t.Context(), store.UsageFilter{RequestID: "req-c"})
	require.NoError(t, err)
	require.Len(t, rows, 1)
	require.Equal(t, []any{inference.OutcomeCancelled, 499}, []any{rows[0].Outcome, rows[0].Status})

	k.done(`{"id":"too late"}`)
	status, again := remove()
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, job, again)
	require.Equal(t, "cancelled", r.show(id, "").Status)
	require.Nil(t, r.show(id, "").Response)
}

func TestAnotherTenantsJobIsNotThere(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	id := r.later(plainRequest)
	for _, path := range []string{id, id + "/result", "job_nobodys", "job_", strings.TrimPrefix(id, "job_")} {
		r.send(r.request(http.MethodGet, r.server.URL+"/v1/jobs/"+path, "", "Authorization", "Bearer a-key-of-others")).fails(http.StatusNotFound, inference.CodeNotFound)
	}
	r.send(r.request(http.MethodDelete, r.server.URL+"/v1/jobs/"+id, "", "Authorization", "Bearer a-key-of-others")).fails(http.StatusNotFound, inference.CodeNotFound)
	require.Equal(t, "queued", r.show(id, "").Status)
	r.get("/v1/jobs/"+id+"?wait=soon").fails(http.StatusBadRequest, inference.CodeInvalidRequest)
	r.get("/v1/jobs/"+id+"?wait=-1s").fails(http.StatusBadRequest, inference.CodeInvalidRequest)
}

func TestRoomForJobsOfATenant(t *testing.T) {
	t.Parallel()
	r := setupJobs(t, func(o *Options) { o.Jobs.MaxPerTenant = 2 })
	r.later(plainRequest)
	id := r.later(plainRequest)
	resp := r.chat(plainRequest, "Prefer", "respond-async").fails(http.StatusTooManyRequests, inference.CodeQueueFull)
	require.Equal(t, "1", resp.Header.Get("Retry-After"))
	r.send(r.request(http.MethodDelete, r.server.URL+"/v1/jobs/"+id, "")).whole()
	require.Eventually(t, func() bool {
		resp, _ := r.chat(plainRequest, "Prefer", "respond-async").whole()
		return resp.StatusCode == http.StatusAccepted
	}, soon, 50*time.Millisecond, "there is room again")
}

// What ends at one ingress wakes who waits at another.
func TestWaitForAJobOfAnotherIngress(t *testing.T) {
	t.Parallel()
	r := setupJobs(t)
	id := r.later(plainRequest)
	waiting := r.get("/v1/jobs/"+id, "Prefer", "wait=20")
	require.Eventually(t, func() bool { return len(r.ingress.stored.waiters.ids()) == 1 }, soon, time.Millisecond)
	now := time.Now()
	_, news, err := r.db.CancelJob(t.Context(), "team", strings.TrimPrefix(id, "job_"), now, now.Add(time.Hour), inference.Record{})
	require.NoError(t, err)
	require.True(t, news)
	began := time.Now()
	_, text := waiting.whole()
	require.Equal(t, "cancelled", parseJob(t, text).Status)
	require.Less(t, time.Since(began), soon/2)
	require.Empty(t, r.ingress.stored.waiters.ids())
	require.Zero(t, r.ingress.stored.waiters.count)
}

// What ends at this ingress is known at once, without a look into the database.
func TestEndsWakeAtOnce(t *testing.T) {
	t.Parallel()
	d := newStored(&Ingress{
		opt: Options{Jobs: JobOptions{Store: openJobs(t)}}, hooks: &hooks{wake: make(chan struct{}, 1)},
		metrics: NewMetrics(prometheus.NewRegistry()), log: discard(),
	})
	ended, ok := d.waiters.add("job")
	require.True(t, ok)
	d.ended([]store.Job{{ID: "job", Lane: inference.LaneBackground, Status: store.JobCompleted}})
	select {
	case <-ended:
	default:
		require.Fail(t, "nobody was woken")
	}
}

func TestWaitersAreBounded(t *testing.T) {
	t.Parallel()
	w := waiters{byID: make(map[string]map[chan struct{}]bool)}
	var last chan struct{}
	for range waitersMost {
		var ok bool
		last, ok = w.add("job")
		require.True(t, ok)
	}
	_, ok := w.add("another")
	require.False(t, ok)
	w.remove("job", last)
	w.remove("job", last)
	other, ok := w.add("another")
	require.True(t, ok)
	w.wake("job")
	require.Equal(t, 1, w.count)
	w.wake("another")
	<-other
	w.remove("another", other)
	require.Zero(t, w.count)
	require.Empty(t, w.byID)
}

// Without a database for jobs the preference is ignored.
func TestNoJobsWithoutADatabase(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	call := r.chat(plainRequest, "Prefer", "respond-async")
	r.take().succeed(`{"id":"x"}`)
	resp, _ := call.whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Empty(t, resp.Header.Get("Preference-Applied"))
	r.get("/v1/jobs").fails(http.StatusNotFound, inference.CodeNotFound)
}
