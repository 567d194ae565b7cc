package integration

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers/registry"
	"sluice/store"
	"sluice/tests/integration/conformance"
	"sluice/worker"
)

// batchAdapter is a kind of upstream that batches are run against.
type batchAdapter struct {
	kind         string
	chat, embed  string // models; embed is empty where there are no embeddings
	answer       func(c *testkit.Call, text string)
	refuse       func(c *testkit.Call)
	refusedLines string // what a line says in its body that is to be refused
}

func batchAdapters() []batchAdapter {
	return []batchAdapter{
		{
			kind: registry.TypeOpenAI, chat: "m", embed: "text-embedding-m",
			answer: func(c *testkit.Call, text string) {
				if strings.HasSuffix(c.Path, "/embeddings") {
					c.JSON(http.StatusOK, `{"object":"list","model":"text-embedding-m","data":[{"object":"embedding","index":0,"embedding":[0.5,0.25]}],"usage":{"prompt_tokens":4,"total_tokens":4}}`)
					return
				}
				c.JSON(http.StatusOK, testkit.Completion("m", text, 7, 3))
			},
			refuse: func(c *testkit.Call) { c.Fail(http.StatusBadRequest, "no") },
		},
		{
			kind: registry.TypeGemini, chat: "gemini-x", embed: "embed-g",
			answer: func(c *testkit.Call, text string) {
				if strings.HasSuffix(c.Path, "mbedContents") {
					c.JSON(http.StatusOK, `{"embeddings":[{"values":[0.5,0.25]}]}`)
					return
				}
				c.JSON(http.StatusOK, `{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"`+text+`"}]},"finishReason":"STOP"}],`+
					`"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":3,"totalTokenCount":10},"modelVersion":"gemini-x-1"}`)
			},
			refuse: func(c *testkit.Call) {
				c.JSON(http.StatusBadRequest, `{"error":{"code":400,"message":"no","status":"INVALID_ARGUMENT"}}`)
			},
		},
		{
			kind: registry.TypeAnthropic, chat: "claude-x",
			answer: func(c *testkit.Call, text string) {
				c.JSON(http.StatusOK, `{"id":"msg_1","type":"message","role":"assistant","model":"claude-x-1","content":[{"type":"text","text":"`+text+`"}],`+
					`"stop_reason":"end_turn","usage":{"input_tokens":7,"output_tokens":3}}`)
			},
			refuse: func(c *testkit.Call) {
				c.JSON(http.StatusBadRequest, `{"type":"error","error":{"type":"invalid_request_error","message":"no"}}`)
			},
		},
		{kind: registry.TypeSim, chat: "sim-x", embed: "sim-e", refusedLines: `,"sim":{"status":400}`},
	}
}

// promptOf is what the tests' prompts look like, in whatever format they arrive.
var promptOf = regexp.MustCompile(`(ask|refuse) line-\d+`)

// startBatches runs a stack whose one worker speaks to this kind of upstream.
func startBatches(t *testing.T, a batchAdapter) *stack {
	t.Helper()
	s := start(t, func(o *options) {
		o.workers, o.models = 0, []string{a.chat}
		if a.embed != "" {
			o.models = append(o.models, a.embed)
		}
		if a.kind == registry.TypeOpenAI { // the other database is as good, and two ingresses are
			o.database, o.ingresses = testkit.Postgres(t), 2
		}
	})
	settings := registry.Settings{Type: a.kind, Models: s.opt.models, Timeout: s.opt.callTimeout, IdleTimeout: s.opt.callTimeout, MaxResponseBytes: 1 << 20}
	if a.answer != nil {
		settings.BaseURL, settings.Keys = s.up.URL(), []registry.Key{{Secret: upstreamKey}}
		s.up.Handle(func(c *testkit.Call) {
			if prompt := promptOf.FindString(string(c.Body)); strings.HasPrefix(prompt, "ask") {
				a.answer(c, "heard "+prompt)
			} else {
				a.refuse(c)
			}
		})
	}
	adapter, err := registry.Build(provider, settings)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, adapter.Close()) })
	s.addWorkerOf(provider, s.up, "", func(m *worker.Member) { m.Provider = adapter })
	s.awaitWorkers(1)
	return s
}

// Upload, create, poll, download with the official client, against every kind of upstream.
func TestBatchesWithTheOfficialClient(t *testing.T) {
	t.Parallel()
	for _, a := range batchAdapters() {
		t.Run(a.kind, func(t *testing.T) {
			t.Parallel()
			s := startBatches(t, a)
			runBatch(s, a, openai.BatchNewParamsEndpointV1ChatCompletions)
			if a.embed != "" {
				runBatch(s, a, openai.BatchNewParamsEndpointV1Embeddings)
			}
		})
	}
}

// runBatch has a batch of which every tenth line is refused, and looks at all of it.
func runBatch(s *stack, a batchAdapter, endpoint openai.BatchNewParamsEndpoint) {
	t := s.t
	t.Helper()
	const size, refusedEvery = 40, 10
	before, err := s.db.Usage(t.Context(), store.UsageFilter{Limit: store.MaxPage})
	require.NoError(t, err)
	u := s.batchUser()
	line, model, object := chatLine, a.chat, conformance.ChatCompletion
	if endpoint == openai.BatchNewParamsEndpointV1Embeddings {
		line, model, object = embeddingLine, a.embed, conformance.EmbeddingList
	}
	ids, lines := make([]string, size), make([]string, size)
	for i := range size {
		ids[i] = fmt.Sprintf("line-%d", i)
		if i%refusedEvery == 0 {
			lines[i] = line(ids[i], model, "refuse "+ids[i], a.refusedLines)
		} else {
			lines[i] = line(ids[i], model, "ask "+ids[i], "")
		}
	}
	made := u.create(endpoint, lines...)
	require.Equal(t, openai.BatchStatusValidating, made.Status)
	require.Equal(t, "24h", made.CompletionWindow)
	b := u.awaitStatus(made.ID, openai.BatchStatusCompleted)
	require.Equal(t, string(endpoint), b.Endpoint)
	require.Equal(t, made.InputFileID, b.InputFileID)
	require.EqualValues(t, map[string]string{"purpose": "nightly", "empty": ""}, b.Metadata)
	require.Equal(t, made.CreatedAt+int64((24*time.Hour).Seconds()), b.ExpiresAt)

	output, errors := u.requireOneEach(b, ids)
	require.Len(t, errors, size/refusedEvery)
	requests := make(map[string]bool)
	var prompt, completion int64
	for id, l := range output {
		body := string(l.Response.Body)
		u.conforms(object, body)
		if object == conformance.ChatCompletion && a.kind != registry.TypeSim {
			require.Equal(t, "heard ask "+id, gjson.Get(body, "choices.0.message.content").Str, "each line has its own answer")
		}
		prompt += gjson.Get(body, "usage.prompt_tokens").Int()
		completion += gjson.Get(body, "usage.completion_tokens").Int()
		requests[l.Response.RequestID] = true
	}
	for id, l := range errors {
		require.NotNil(t, l.Response, id)
		require.Equal(t, http.StatusBadRequest, l.Response.StatusCode, id)
		u.conforms(conformance.Error, string(l.Response.Body))
		requests[l.Response.RequestID] = true
	}
	require.Len(t, requests, size, "each line is a request of its own")
	require.Positive(t, prompt)
	require.Equal(t, []int64{prompt, completion, prompt + completion}, []int64{b.Usage.InputTokens, b.Usage.OutputTokens, b.Usage.TotalTokens})
	jobs := make(map[string]bool)
	for _, r := range s.rows(len(before) + size)[len(before):] {
		jobs[r.JobID] = true
		require.Equal(t, tenant, r.Tenant)
		require.Equal(t, s.key.ID, r.KeyID)
		if r.Outcome == inference.OutcomeSucceeded {
			prompt, completion = prompt-r.Usage.PromptTokens, completion-r.Usage.CompletionTokens
		}
	}
	require.Len(t, jobs, size, "one row a line")
	require.Zero(t, prompt, "the ledger counts what the batch does")
	require.Zero(t, completion)
}

// TestBatchCancelled keeps what is finished and lists the rest.
func TestBatchCancelled(t *testing.T) {
	t.Parallel()
	const size, answered = 60, 10
	s := start(t, nil)
	s.up.Handle(func(c *testkit.Call) {
		if c.N > answered {
			c.Hang()
			return
		}
		c.Reply("a")
	})
	u := s.batchUser()
	ids, lines := make([]string, size), make([]string, size)
	for i := range size {
		ids[i] = fmt.Sprintf("line-%d", i)
		lines[i] = chatLine(ids[i], "m", canary, "")
	}
	made := u.create(openai.BatchNewParamsEndpointV1ChatCompletions, lines...)
	u.await(made.ID, "held", func(b *openai.Batch) bool { return b.RequestCounts.Completed == answered })
	b, err := u.api.Batches.Cancel(t.Context(), made.ID)
	require.NoError(t, err)
	u.conforms(conformance.Batch, b.RawJSON())
	require.Equal(t, openai.BatchStatusCancelling, b.Status)
	b = u.awaitStatus(made.ID, openai.BatchStatusCancelled)
	output, errors := u.requireOneEach(b, ids)
	require.Len(t, output, answered)
	for id, l := range errors {
		require.Nil(t, l.Response, id)
		require.NotNil(t, l.Error, id)
		require.Equal(t, "batch_cancelled", l.Error.Code, id)
	}
	s.up.AwaitIdle() // calls under way are given up
	s.rows(size)
	again, err := u.api.Batches.Cancel(t.Context(), made.ID)
	require.NoError(t, err)
	require.Equal(t, b.RawJSON(), again.RawJSON(), "it may be repeated")
}

// requireAPIError requires an error in OpenAI's shape with one of the statuses.
func requireAPIError(u *batchUser, err error, statuses ...int) {
	u.s.t.Helper()
	var refused *openai.Error
	require.ErrorAs(u.s.t, err, &refused)
	require.Contains(u.s.t, statuses, refused.StatusCode)
	u.conforms(conformance.Error, `{"error":`+refused.RawJSON()+`}`)
}

func TestBatchesArePagedAndBelongToATenant(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	u := s.batchUser()
	var made []string
	for i := range 5 {
		b := u.create(openai.BatchNewParamsEndpointV1ChatCompletions, chatLine(fmt.Sprintf("line-%d", i), "m", canary, ""))
		made = append([]string{b.ID}, made...) // newest first
	}
	var listed []string
	pages := u.api.Batches.ListAutoPaging(t.Context(), openai.BatchListParams{Limit: openai.Int(2)})
	for pages.Next() {
		listed = append(listed, pages.Current().ID)
	}
	require.NoError(t, pages.Err())
	require.Equal(t, made, listed)
	page, err := u.api.Batches.List(t.Context(), openai.BatchListParams{After: openai.String(made[1]), Limit: openai.Int(2)})
	require.NoError(t, err)
	u.conforms(conformance.BatchList, page.RawJSON())
	require.Equal(t, []string{made[2], made[3]}, []string{page.Data[0].ID, page.Data[1].ID})
	require.True(t, page.HasMore)
	var output string
	for _, id := range made {
		output = u.awaitStatus(id, openai.BatchStatusCompleted).OutputFileID
	}

	secret, _ := s.mint("green", func(k *store.Key) { k.Tenant = "green" })
	other := s.batchUser(secret)
	page, err = other.api.Batches.List(t.Context(), openai.BatchListParams{})
	require.NoError(t, err)
	other.conforms(conformance.BatchList, page.RawJSON())
	require.Empty(t, page.Data)
	require.False(t, page.HasMore)
	for _, err := range []error{
		errorOf(other.api.Batches.Get(t.Context(), made[0])),
		errorOf(other.api.Batches.Cancel(t.Context(), made[0])),
		errorOf(other.api.Files.Get(t.Context(), output)),
		errorOf(other.api.Files.Content(t.Context(), output)),
	} {
		requireAPIError(other, err, http.StatusNotFound)
	}
	requireAPIError(other, errorOf(other.api.Batches.List(t.Context(), openai.BatchListParams{After: openai.String(made[0])})), http.StatusBadRequest)
	input := u.get(made[0]).InputFileID
	_, err = other.api.Batches.New(t.Context(), openai.BatchNewParams{
		InputFileID: input, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions, CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	})
	requireAPIError(other, err, http.StatusNotFound)
}

func errorOf[T any](_ T, err error) error { return err }
