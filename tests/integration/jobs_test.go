package integration

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/store"
)

// shownJob is what these tests read of a job.
type shownJob struct {
	ID, Status string
	Response   *struct {
		StatusCode int `json:"status_code"`
		Body       json.RawMessage
	}
}

func (s *stack) job(door int, method, path, body string, headers ...string) (j shownJob, a answer) {
	s.t.Helper()
	a = s.do(door, method, path, body, headers...)
	require.NoError(s.t, json.Unmarshal([]byte(a.body), &j), a.body)
	return j, a
}

// What is asked for at one ingress is waited for at another, on both databases: its answer
// is the call's own, and one call is made and written down for each job.
func TestAnswersThatCanWait(t *testing.T) {
	t.Parallel()
	for name, database := range map[string]func(testing.TB) string{"sqlite": func(testing.TB) string { return "" }, "postgres": testkit.Postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, func(o *options) { o.ingresses, o.database = 2, database(t) })
			s.up.Handle(func(c *testkit.Call) {
				if c.Path == "/v1/embeddings" {
					c.JSON(http.StatusOK, `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}],"model":"m","usage":{"prompt_tokens":1,"total_tokens":1}}`)
					return
				}
				c.Reply("hello")
			})
			const n = 20
			var ids []string
			for i := range n {
				path, body := chatPath, plainBody
				if i%2 == 1 {
					path, body = "/v1/embeddings", `{"model":"m","input":"`+canary+`"}`
				}
				j, a := s.job(i%2, http.MethodPost, path, body, "Prefer", "respond-async")
				require.Equal(t, http.StatusAccepted, a.status, a.body)
				require.Equal(t, "/v1/jobs/"+j.ID, a.header.Get("Location"))
				ids = append(ids, j.ID)
			}
			for i, id := range ids {
				j, a := s.job((i+1)%2, http.MethodGet, "/v1/jobs/"+id+"?wait=30s", "")
				require.Equal(t, "completed", j.Status, a.body)
				result := s.do(i%2, http.MethodGet, "/v1/jobs/"+id+"/result", "")
				require.Equal(t, http.StatusOK, result.status)
				require.Equal(t, provider, result.header.Get("X-Sluice-Provider"))
				require.JSONEq(t, result.body, string(j.Response.Body))
			}
			require.Equal(t, n, s.up.Count())
			for _, r := range s.rows(n) {
				require.Equal(t, inference.OutcomeSucceeded, r.Outcome)
				require.Equal(t, tenant, r.Tenant)
			}
		})
	}
}

// A job goes to the next provider as a call does.
func TestJobFailsOver(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.others = []string{"second"} })
	second := testkit.NewUpstream(t)
	s.addWorkerOf("second", second, "", nil)
	s.eventually(func() bool { return s.ready(0).Providers["second"].Workers == 1 }, "the second provider")
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusServiceUnavailable, "down") })
	a := s.chat(plainBody, "Prefer", "respond-async, wait=30")
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Equal(t, "second", a.header.Get("X-Sluice-Provider"))
	require.Equal(t, 1, second.Count())
	require.Equal(t, "second", s.rows(1)[0].Provider)
}

// A job that is cancelled while it runs closes its call.
func TestCancelledJobClosesTheUpstream(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.up.Handle(func(c *testkit.Call) { c.Hang() })
	j, _ := s.job(0, http.MethodPost, chatPath, plainBody, "Prefer", "respond-async")
	s.up.AwaitCount(1)
	j, a := s.job(0, http.MethodDelete, "/v1/jobs/"+j.ID, "")
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, string(store.JobCancelled), j.Status)
	s.up.AwaitDisconnects(1)
	require.Equal(t, inference.OutcomeCancelled, s.rows(1)[0].Outcome)
}

// Work that was accepted while no worker was there is done by the first that comes.
func TestJobsWaitForAWorker(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.workers = 0 })
	j, a := s.job(0, http.MethodPost, chatPath, plainBody, "Prefer", "respond-async")
	require.Equal(t, http.StatusAccepted, a.status, a.body)
	s.addWorker(s.up)
	j, _ = s.job(0, http.MethodGet, "/v1/jobs/"+j.ID+"?wait=30s", "")
	require.Equal(t, "completed", j.Status)
}
