package ingress

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/store"
)

// batchRig is a rig with files and batches. Nobody takes lines from the queue: the test
// itself says how they end.
type batchRig struct {
	*fileRig
	db store.Store
}

func setupBatches(t *testing.T, change ...func(*Options)) *batchRig {
	t.Helper()
	db := openJobs(t)
	r := setup(t, append([]func(*Options){withJobs(db), func(o *Options) {
		o.Files = FileOptions{Rows: db, MaxBytes: 2 << 20, MaxBatchBytes: 1 << 20, MaxTransfers: 4}
		o.Batches = BatchOptions{Store: db, MaxLines: 100, MaxLineBytes: 64 << 10, Window: 50, Retention: time.Hour}
	}}, change...)...)
	return &batchRig{&fileRig{r, db}, db}
}

type batchAnswer struct {
	ID, Object, Status string
	Model              *string
	Window             string  `json:"completion_window"`
	Output             *string `json:"output_file_id"`
	Errors             *struct {
		Object string
		Data   []struct {
			Code, Message string
			Param         *string
			Line          *int
		}
	}
	ErrorFile   *string                                `json:"error_file_id"`
	CreatedAt   int64                                  `json:"created_at"`
	ExpiresAt   int64                                  `json:"expires_at"`
	CompletedAt *int64                                 `json:"completed_at"`
	Counts      struct{ Total, Completed, Failed int } `json:"request_counts"`
	Usage       struct {
		Input int64 `json:"input_tokens"`
		Total int64 `json:"total_tokens"`
	}
	Metadata map[string]string
}

// lines is a file of calls with the custom_ids, of the model "m".
func lines(customIDs ...string) string {
	var b strings.Builder
	for _, id := range customIDs {
		fmt.Fprintf(&b, `{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":%s}`+"\n", id, plainRequest)
	}
	return b.String()
}

func (r *batchRig) input(content string) string {
	r.t.Helper()
	return r.upload(part{"purpose", "", "batch"}, part{"file", "in.jsonl", content}).ID
}

func (r *batchRig) post(path, body string, headers ...string) *call {
	r.t.Helper()
	return r.send(r.request(http.MethodPost, r.server.URL+path, body, headers...))
}

func (r *batchRig) read(c *call) (batchAnswer, *http.Response) {
	r.t.Helper()
	resp, body := c.whole()
	require.Equal(r.t, http.StatusOK, resp.StatusCode, body)
	var b batchAnswer
	require.NoError(r.t, json.Unmarshal([]byte(body), &b))
	require.Equal(r.t, "batch", b.Object)
	return b, resp
}

func (r *batchRig) create(content, more string) batchAnswer {
	r.t.Helper()
	b, _ := r.read(r.post("/v1/batches", fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions"%s}`, r.input(content), more)))
	return b
}

const day = `,"completion_window":"24h"`

func (r *batchRig) await(id, status string) (b batchAnswer, resp *http.Response) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		b, resp = r.read(r.get("/v1/batches/" + id))
		return b.Status == status
	}, soon, 10*time.Millisecond, "batch is not %s", status)
	return b, resp
}

// answer ends the lines of these custom_ids as soon as they are in the queue: those that
// begin with "bad" in a refusal.
func (r *batchRig) answer(customIDs ...string) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		sent, err := r.db.Dispatched(r.t.Context(), time.Now().Add(time.Hour), 100)
		require.NoError(r.t, err)
		var ends []store.JobEnd
		for _, l := range sent {
			i := slices.Index(customIDs, l.CustomID)
			if i < 0 {
				continue
			}
			customIDs = slices.Delete(customIDs, i, i+1)
			end := store.JobEnd{Status: store.JobCompleted, FinishedAt: time.Now(), Response: []byte(`{"ok":true}`), Record: inference.Record{
				JobID: l.ID, Status: 200, Outcome: inference.OutcomeSucceeded, Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4, Known: true},
			}}
			if strings.HasPrefix(l.CustomID, "bad") {
				end.Status, end.Record = store.JobFailed, inference.Record{JobID: l.ID, Status: 400, Outcome: inference.OutcomeFailed}
			}
			ends = append(ends, end)
		}
		_, err = r.db.FinishJobs(r.t.Context(), ends)
		require.NoError(r.t, err)
		return len(customIDs) == 0
	}, soon, 10*time.Millisecond, "lines in the queue")
}

func TestABatch(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	b := r.create(lines("a", "b", "bad", "c"), day+`,"metadata":{"k":"v"}`)
	require.Regexp(t, `^batch_[a-z2-7]{24}$`, b.ID)
	require.Equal(t, "validating", b.Status)
	require.Equal(t, "24h", b.Window)
	require.Equal(t, map[string]string{"k": "v"}, b.Metadata)
	require.EqualValues(t, 24*60*60, b.ExpiresAt-b.CreatedAt)
	require.Nil(t, b.Output)
	require.Nil(t, b.Errors)

	r.await(b.ID, "in_progress")
	r.answer("a", "b", "bad")
	require.Eventually(t, func() bool { b, _ = r.read(r.get("/v1/batches/" + b.ID)); return b.Counts.Completed == 2 }, soon, 10*time.Millisecond)
	resp, body := r.get("/v1/batches/" + b.ID + "/output").whole()
	require.Equal(t, "application/jsonl", resp.Header.Get("Content-Type"))
	require.Equal(t, []string{"a", "b"}, customIDs(t, body), "what is finished so far")
	_, body = r.get("/v1/batches/" + b.ID + "/errors").whole()
	require.Equal(t, []string{"bad"}, customIDs(t, body))

	r.answer("c")
	b, _ = r.await(b.ID, "completed")
	require.Equal(t, struct{ Total, Completed, Failed int }{4, 3, 1}, b.Counts)
	require.EqualValues(t, 9, b.Usage.Input)
	require.EqualValues(t, 21, b.Usage.Total)
	require.NotNil(t, b.CompletedAt)
	_, content := r.get("/v1/files/" + *b.Output + "/content").whole()
	require.Equal(t, []string{"a", "b", "c"}, customIDs(t, content))
	_, body = r.get("/v1/batches/" + b.ID + "/output").whole()
	require.Equal(t, content, body)
	_, body = r.get("/v1/files/" + *b.ErrorFile).whole()
	require.Contains(t, body, `"purpose":"batch_output"`)
	_, body = r.get("/v1/batches/" + b.ID + "/errors").whole()
	require.Equal(t, []string{"bad"}, customIDs(t, body))
}

func customIDs(t *testing.T, jsonl string) (ids []string) {
	t.Helper()
	for line := range strings.Lines(jsonl) {
		var l struct {
			CustomID string `json:"custom_id"`
		}
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		ids = append(ids, l.CustomID)
	}
	return ids
}

func TestABatchThatFails(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	b := r.create(lines("a", "a")+"{\n", day)
	b, _ = r.await(b.ID, "failed")
	require.Equal(t, "list", b.Errors.Object)
	require.Len(t, b.Errors.Data, 2)
	require.Equal(t, "duplicate_custom_id", b.Errors.Data[0].Code)
	require.Equal(t, 2, *b.Errors.Data[0].Line)
	require.Equal(t, "custom_id", *b.Errors.Data[0].Param)
	require.Nil(t, b.Errors.Data[1].Param)
	resp, body := r.get("/v1/batches/" + b.ID + "/output").whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Empty(t, body)
}

func TestAKeysModelsHoldForItsBatches(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	r.ingress.workers.began = time.Now().Add(-time.Hour)
	theirs := []string{"Authorization", "Bearer a-key-of-others"} // for "m-1" alone
	resp, body := r.send(func() *http.Request {
		form, kind := form(part{"purpose", "", "batch"}, part{"file", "in.jsonl", lines("a") + strings.ReplaceAll(lines("b"), `"m"`, `"m-1"`)})
		return r.request(http.MethodPost, r.server.URL+"/v1/files", string(form), append(theirs, "Content-Type", kind)...)
	}()).whole()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	var f fileAnswer
	require.NoError(t, json.Unmarshal([]byte(body), &f))
	request := fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions"%s}`, f.ID, day)
	b, _ := r.read(r.post("/v1/batches", request, theirs...))
	require.Eventually(t, func() bool {
		b, _ = r.read(r.get("/v1/batches/"+b.ID, theirs...))
		return b.Status == "failed"
	}, soon, 10*time.Millisecond)
	require.Len(t, b.Errors.Data, 1)
	require.Equal(t, "model_not_allowed", b.Errors.Data[0].Code)
	require.Equal(t, 1, *b.Errors.Data[0].Line)
	require.Equal(t, "body.model", *b.Errors.Data[0].Param)

	// To everyone else there is neither the batch nor its file.
	for _, path := range []string{"", "/output", "/errors"} {
		r.get("/v1/batches/"+b.ID+path).fails(404, inference.CodeNotFound)
	}
	r.post("/v1/batches/"+b.ID+"/cancel", "").fails(404, inference.CodeNotFound)
	r.post("/v1/batches", request).fails(404, inference.CodeNotFound)
	_, body = r.get("/v1/batches").whole()
	require.JSONEq(t, `{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}`, body)
	_, body = r.get("/v1/batches?after=" + b.ID).whole()
	require.Contains(t, body, `"param":"after"`)
}

func TestCancellingABatch(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	b := r.create(lines("a", "b", "c"), `,"completion_window":"36h"`)
	require.Equal(t, "36h", b.Window)
	r.await(b.ID, "in_progress")
	r.answer("b")
	cancelled, _ := r.read(r.post("/v1/batches/"+b.ID+"/cancel", ""))
	require.Equal(t, "cancelling", cancelled.Status)
	b, _ = r.await(b.ID, "cancelled")
	require.Equal(t, struct{ Total, Completed, Failed int }{3, 1, 2}, b.Counts)
	_, body := r.get("/v1/files/" + *b.ErrorFile + "/content").whole()
	require.Equal(t, 2, strings.Count(body, `"code":"batch_cancelled"`))
	again, _ := r.read(r.post("/v1/batches/"+b.ID+"/cancel", ""))
	require.Equal(t, "cancelled", again.Status)
}

func TestCancellingComesTooLate(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	owner, now := "another", time.Now()
	for status, reach := range map[store.BatchStatus]func(id string) error{
		store.BatchFailed:     func(id string) error { return r.db.FailBatch(t.Context(), owner, id, now, now.Add(time.Hour)) },
		store.BatchFinalizing: func(string) error { return nil },
		store.BatchCompleted: func(id string) error {
			return r.db.CompleteBatch(t.Context(), owner, id, store.BatchEnd{Status: store.BatchCompleted, At: now})
		},
		store.BatchExpired: func(id string) error {
			return r.db.CompleteBatch(t.Context(), owner, id, store.BatchEnd{Status: store.BatchExpired, At: now})
		},
	} {
		id := "batch_" + string(status)
		require.NoError(t, r.db.CreateBatch(t.Context(), store.Batch{
			ID: id, Tenant: "team", CreatedAt: now, ExpiresAt: now.Add(time.Hour), Owner: owner, LeasedUntil: now.Add(time.Hour),
		}))
		if status != store.BatchFailed {
			require.NoError(t, r.db.BeginBatch(t.Context(), owner, id, now))
			require.NoError(t, r.db.FinalizeBatch(t.Context(), owner, id, now))
		}
		require.NoError(t, reach(id))
		resp := r.post("/v1/batches/"+id+"/cancel", "").fails(409, inference.CodeConflict)
		require.Equal(t, "false", resp.Header.Get("X-Should-Retry"))
		b, _ := r.read(r.get("/v1/batches/" + id))
		require.Equal(t, string(status), b.Status)
	}
}

func TestListingBatches(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	input := r.input(lines("a"))
	var ids []string // newest first
	for range 4 {
		b, _ := r.read(r.post("/v1/batches", fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions"%s}`, input, day)))
		ids = append([]string{b.ID}, ids...)
	}
	list := func(query string) (got []string, more bool) {
		_, body := r.get("/v1/batches" + query).whole()
		var page struct {
			Data    []batchAnswer
			FirstID string `json:"first_id"`
			LastID  string `json:"last_id"`
			HasMore bool   `json:"has_more"`
		}
		require.NoError(t, json.Unmarshal([]byte(body), &page))
		for _, b := range page.Data {
			got = append(got, b.ID)
		}
		require.Equal(t, []string{got[0], got[len(got)-1]}, []string{page.FirstID, page.LastID})
		return got, page.HasMore
	}
	got, more := list("")
	require.Equal(t, ids, got)
	require.False(t, more)
	got, more = list("?limit=2&after=" + ids[0])
	require.Equal(t, ids[1:3], got)
	require.True(t, more)
	got, more = list("?limit=1&after=" + ids[2])
	require.Equal(t, ids[3:], got)
	require.False(t, more)
	for _, query := range []string{"?limit=0", "?limit=101", "?limit=x", "?after=batch_none"} {
		r.get("/v1/batches"+query).fails(400, inference.CodeInvalidRequest)
	}
}

func TestABatchThatCannotBeMade(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	vision := r.upload(part{"purpose", "", "vision"}, part{"file", "f", "x"}).ID
	brief := r.upload(part{"purpose", "", "batch"}, part{"expires_after[anchor]", "", "created_at"}, part{"expires_after[seconds]", "", "3600"}, part{"file", "f", "x"})
	expired, err := r.db.File(t.Context(), "team", brief.ID, time.Now())
	require.NoError(t, err)
	expired.ID, expired.ExpiresAt = "file-expired", time.Now().Add(-time.Second)
	require.NoError(t, r.db.CreateFile(t.Context(), expired))
	for body, want := range map[string]struct {
		status int
		code   inference.ErrorCode
		param  string
	}{
		`{"input_file_id":"file-none","endpoint":"/v1/embeddings","completion_window":"24h"}`:    {404, inference.CodeNotFound, "input_file_id"},
		`{"input_file_id":"file-expired","endpoint":"/v1/embeddings","completion_window":"24h"}`: {404, inference.CodeNotFound, "input_file_id"},
		`{"input_file_id":"` + vision + `","endpoint":"/v1/embeddings"` + day + `}`:              {400, inference.CodeInvalidRequest, "input_file_id"},
		`{"input_file_id":"` + vision + `","endpoint":"/v1/responses"` + day + `}`:               {400, inference.CodeInvalidRequest, "endpoint"},
		`{"input_file_id":"` + vision + `","endpoint":"/v1/embeddings"}`:                         {400, inference.CodeInvalidRequest, "completion_window"},
		`{`: {400, inference.CodeInvalidJSON, ""},
		`{"a":"` + strings.Repeat("x", batchBody) + `"}`: {413, inference.CodeRequestTooLarge, ""},
	} {
		c := r.post("/v1/batches", body)
		resp, text := c.whole()
		require.Equal(t, want.status, resp.StatusCode, text)
		require.Contains(t, text, fmt.Sprintf(`"code":%q`, want.code))
		if want.param != "" {
			require.Contains(t, text, fmt.Sprintf(`"param":%q`, want.param))
		}
	}
	r.post("/v1/batches", "{}", "Authorization", "x").fails(401, inference.CodeUnauthenticated)
	r.post("/v1/batches", "{}", "Content-Encoding", "gzip").fails(400, inference.CodeInvalidRequest)
}

func TestTheETA(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	b := r.create(lines("a", "b"), day)
	_, resp := r.await(b.ID, "in_progress")
	require.Empty(t, resp.Header.Get("X-Sluice-Eta"), "nobody knows yet")
	require.NoError(t, r.db.NoteRate(t.Context(), r.ingress.opt.ID, b.ID, 0.01))
	_, resp = r.read(r.get("/v1/batches/" + b.ID))
	at, err := time.Parse(time.RFC3339, resp.Header.Get("X-Sluice-Eta"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(200*time.Second), at, 15*time.Second)
	r.answer("a", "b")
	_, resp = r.await(b.ID, "completed")
	require.Empty(t, resp.Header.Get("X-Sluice-Eta"))
}

func TestAModelIsNotRefusedBeforeWorkersAreHeard(t *testing.T) {
	t.Parallel()
	r := setupBatches(t)
	b := &store.Batch{Tenant: "team", KeyID: "key", Kind: inference.KindChat}
	route, err := r.ingress.batchRouter(t.Context(), b)
	require.NoError(t, err)
	unknown := &openaiapi.ChatRequest{Features: openaiapi.Features{Model: "nobody-has-it"}}
	_, err = route(unknown)
	require.Error(t, err)
	require.Equal(t, inference.CodeInternal, inference.AsError(err).Code, "it is no fault of the line")
	r.ingress.workers.began = time.Now().Add(-workersHeard)
	_, err = route(unknown)
	require.Equal(t, inference.CodeModelNotFound, inference.AsError(err).Code)

	for _, b := range []*store.Batch{{Tenant: "team", KeyID: "gone"}, {Tenant: "others", KeyID: "key"}} {
		_, err = r.ingress.batchRouter(t.Context(), b)
		require.Equal(t, inference.CodeUnauthenticated, inference.AsError(err).Code)
	}
}

func TestWithoutAStoreThereAreNoBatches(t *testing.T) {
	t.Parallel()
	setup(t).get("/v1/batches").fails(404, inference.CodeNotFound)
}
