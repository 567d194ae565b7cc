package integration

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/internal/testkit"
	"sluice/store"
)

// TestLedger has one request of each kind and reads its row, from both databases.
func TestLedger(t *testing.T) {
	t.Parallel()
	for name, database := range map[string]func() string{
		"sqlite":   func() string { return "" },
		"postgres": func() string { return testkit.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ledger(start(t, func(o *options) { o.database, o.maxRetries = database(), 2 }))
		})
	}
}

const answerWithDetails = `{"id":"i","object":"chat.completion","created":1,"model":"m-2025","choices":[],"usage":{"prompt_tokens":30,"completion_tokens":40,"total_tokens":70,` +
	`"prompt_tokens_details":{"cached_tokens":10},"completion_tokens_details":{"reasoning_tokens":20}}}`

func ledger(s *stack) {
	t := s.t
	began := time.Now()
	reply := func(c *testkit.Call) { c.Reply("a", "b", "c") }
	call := func(id, body string, script func(*testkit.Call), headers ...string) answer {
		t.Helper()
		s.up.Handle(script)
		return s.chat(body, append(headers, "X-Request-Id", id)...)
	}
	jobs := make(map[string]string)
	call("success", strings.Replace(plainBody, `"m"`, `"org/deep/m"`, 1), func(c *testkit.Call) { c.JSON(http.StatusOK, answerWithDetails) })
	jobs["stream"] = call("stream", streamBody, reply).header.Get("X-Sluice-Job-Id")
	tries := s.up.Count()
	retried := call("retry", plainBody, func(c *testkit.Call) {
		if c.N < tries+3 {
			c.Fail(http.StatusServiceUnavailable, "busy")
			return
		}
		reply(c)
	})
	require.Equal(t, http.StatusOK, retried.status)
	require.Equal(t, "3", retried.header.Get("X-Sluice-Attempts"))
	call("rejected", plainBody, func(c *testkit.Call) { c.Fail(http.StatusTeapot, "no") })
	call("refused", plainBody, func(c *testkit.Call) { c.Fail(http.StatusNotFound, "no such model") })
	call("deadline", plainBody, (*testkit.Call).Hang, "X-Sluice-Timeout", "150ms")
	s.up.AwaitIdle()
	s.up.Handle(func(c *testkit.Call) { c.Delta("a"); c.Delta("b"); c.Hang() })
	st := s.stream(streamBody, "X-Request-Id", "cancel")
	st.events(2)
	st.drop()
	s.up.AwaitIdle()
	call("no usage", plainBody, func(c *testkit.Call) { c.JSON(http.StatusOK, `{"choices":[]}`) }, "X-Request-Id", "unused")

	known := func(p, c int64) inference.Usage {
		return inference.Usage{PromptTokens: p, CompletionTokens: c, Known: true}
	}
	estimated := known(0, 2)
	estimated.Estimated = true
	want := map[string]inference.Record{
		"success":  {ModelAsked: "org/deep/m", ModelServed: "m-2025", Usage: inference.Usage{PromptTokens: 30, CompletionTokens: 40, CachedTokens: 10, ReasoningTokens: 20, Known: true}, Attempts: 1, Outcome: inference.OutcomeSucceeded, Status: 200},
		"stream":   {ModelServed: "m", Stream: true, Usage: known(7, 3), Attempts: 1, Outcome: inference.OutcomeSucceeded, Status: 200},
		"retry":    {ModelServed: "m", Usage: known(7, 3), Attempts: 3, Outcome: inference.OutcomeSucceeded, Status: 200},
		"rejected": {Attempts: 1, Outcome: inference.OutcomeFailed, Status: 502, ErrorCode: inference.CodeUpstreamError},
		"refused":  {Attempts: 1, Outcome: inference.OutcomeFailed, Status: 404, ErrorCode: inference.CodeUpstreamRejected},
		"deadline": {Attempts: 1, Outcome: inference.OutcomeExpired, Status: 504, ErrorCode: inference.CodeDeadlineExceeded},
		"cancel":   {ModelServed: "m", Stream: true, Usage: estimated, Attempts: 1, Outcome: inference.OutcomeCancelled, Status: 499, ErrorCode: inference.CodeCancelled},
	}
	for _, got := range s.rows(len(want) + 1) {
		w, ok := want[got.RequestID]
		if !ok {
			require.False(t, got.Usage.Known, "nothing is known, and nothing is made up")
			continue
		}
		id := got.RequestID
		require.True(t, queue.ValidJobID(got.JobID), id)
		if jobs[id] != "" {
			require.Equal(t, jobs[id], got.JobID)
		}
		require.WithinRange(t, got.CreatedAt, began.Add(-time.Second), time.Now())
		require.Positive(t, got.Total, id)
		require.LessOrEqual(t, got.Queue, got.Total, id)
		require.LessOrEqual(t, got.FirstToken, got.Total, id)
		require.Equal(t, w.Stream, got.FirstToken > 0, id)
		if id == "cancel" {
			require.Positive(t, got.Usage.PromptTokens)
			w.Usage.PromptTokens = got.Usage.PromptTokens
		}
		if id == "deadline" {
			require.GreaterOrEqual(t, got.Total, 100*time.Millisecond)
		}
		w.JobID, w.RequestID, w.CreatedAt, w.Queue, w.FirstToken, w.Total = got.JobID, id, got.CreatedAt, got.Queue, got.FirstToken, got.Total
		w.Kind, w.Tenant, w.KeyID, w.Provider = inference.KindChat, tenant, s.key.ID, provider
		if w.ModelAsked == "" {
			w.ModelAsked = "m"
		}
		if w.Outcome == inference.OutcomeSucceeded {
			require.Len(t, got.Tries, w.Attempts-1, id)
		}
		got.Tries = nil
		require.Equal(t, w, got, id)
	}
}

// TestLedgerOutlivesTheDatabase stops the database under load: serving goes on, and
// afterwards there is one row for each request.
func TestLedgerOutlivesTheDatabase(t *testing.T) {
	t.Parallel()
	db := testkit.PostgresServer(t)
	s := start(t, func(o *options) { o.database, o.ingresses = db.URL(), 2 })
	s.up.Handle(func(c *testkit.Call) { c.Reply("a") })
	var mu sync.Mutex
	sent := make(map[string]bool)
	load := func(n int) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				a, err := s.try(t.Context(), i%2, http.MethodPost, chatPath, plainBody)
				if err != nil || a.status != http.StatusOK {
					t.Errorf("%d %v %s", a.status, err, a.body)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				sent[a.header.Get("X-Sluice-Job-Id")] = true
			})
		}
		wg.Wait()
	}
	load(20)
	db.Stop()
	load(100)
	s.eventually(func() bool { return strings.Contains(strings.Join(s.logs.lines(), ""), "usage records wait") }, "the database is missed")
	load(20)
	db.Start()
	load(20)
	for _, r := range s.rows(160) {
		require.True(t, sent[r.JobID])
		delete(sent, r.JobID)
	}
	require.Empty(t, sent)
}

// slowLedger is a database that stores a batch and then says that it did not, once.
type slowLedger struct {
	store.Store
	once sync.Once
}

func (l *slowLedger) AppendUsage(ctx context.Context, records []inference.Record) (int, error) {
	n, err := l.Store.AppendUsage(ctx, records)
	l.once.Do(func() { n, err = 0, context.DeadlineExceeded })
	return n, err
}

// TestLedgerCountsOnce has the database lose its answer: the batch comes again, and no
// row is there twice.
func TestLedgerCountsOnce(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.wrap = func(db store.Store) store.Store { return &slowLedger{Store: db} } })
	for range 5 {
		require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	}
	s.rows(5)
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	s.rows(6)
	s.eventually(func() bool { return s.metric("sluice_ledger_rows_total") >= 1 }, "rows are counted when they are new")
}
