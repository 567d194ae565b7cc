package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/internal/webhook"
	"sluice/store"
)

// doors are the ingresses that there are at the moment.
type doors struct {
	mu  sync.Mutex
	now [2]*ingress
}

func (d *doors) set(i int, in *ingress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now[i] = in
}

func (d *doors) at(i int) *ingress {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now[i]
}

// refusedEvery is how many lines there are for one that the upstream refuses.
const refusedEvery = 50

// batchRun is one batch under way. The upstream answers as many of its lines as the test
// allows and holds the others, so that the batch lasts as long as the test wants.
type batchRun struct {
	f    *fleet
	id   string
	name string // before the number in each custom_id
	size int
	rows int // in the ledger before
	made int // calls of the upstream before
	box  *inbox
	hook webhook.Secret

	mu      sync.Mutex
	heard   map[string]bool // lines that were answered
	allowed int
	more    chan struct{} // closed when more are allowed

	stop    chan struct{} // ends the polls
	polls   sync.WaitGroup
	polled  int
	wrong   []string // what polls saw and must not
	last    *openai.Batch
	ordered []openai.BatchStatus
}

// startBatch makes a batch of so many lines and polls it from now on. Nothing of it is
// answered yet.
func (f *fleet) startBatch(number, size int) *batchRun {
	f.t.Helper()
	r := &batchRun{
		f: f, size: size, name: fmt.Sprintf("line-%d-", number), box: &inbox{}, hook: webhook.NewSecret(),
		heard: make(map[string]bool), more: make(chan struct{}), stop: make(chan struct{}),
		ordered: []openai.BatchStatus{"validating", "in_progress", "finalizing", "completed"},
	}
	before, err := ledger(f.t.Context(), f.db)
	require.NoError(f.t, err)
	r.rows, r.made = len(before), f.upstream.Count()
	server := httptest.NewServer(r.box)
	f.t.Cleanup(server.Close)
	_, err = f.db.CreateWebhook(f.t.Context(), store.Webhook{ID: webhook.NewEndpointID(), Tenant: "e2e", URL: server.URL}, r.hook, 100)
	require.NoError(f.t, err)
	f.upstream.Handle(r.answer)

	var input strings.Builder
	for i := range size {
		id := r.name + strconv.Itoa(i)
		fmt.Fprintf(&input, `{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":%s}`+"\n", id, chatBody(clusterModel, false, id))
	}
	api := f.doors.at(0).api
	file, err := api.Files.New(f.t.Context(), openai.FileNewParams{
		File: openai.File(strings.NewReader(input.String()), "lines.jsonl", "application/jsonl"), Purpose: openai.FilePurposeBatch,
	})
	require.NoError(f.t, err)
	b, err := api.Batches.New(f.t.Context(), openai.BatchNewParams{
		InputFileID: file.ID, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions, CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	})
	require.NoError(f.t, err)
	r.id = b.ID
	r.polls.Go(r.poll)
	f.t.Cleanup(r.endPolls)
	return r
}

// refused reports whether the upstream refuses the line.
func (r *batchRun) refused(id string) bool {
	n, err := strconv.Atoi(strings.TrimPrefix(id, r.name))
	return err == nil && n%refusedEvery == 0
}

func (r *batchRun) answer(c *testkit.Call) {
	id := prompt(c)
	for {
		r.mu.Lock()
		ok, more := r.heard[id] || len(r.heard) < r.allowed, r.more
		if ok {
			r.heard[id] = true
		}
		r.mu.Unlock()
		switch {
		case !ok && !c.Wait(more):
			return
		case ok && r.refused(id):
			c.Fail(http.StatusBadRequest, "refused")
			return
		case ok:
			c.Reply("echo of ", id)
			return
		}
	}
}

// allow lets so many lines be answered in all.
func (r *batchRun) allow(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.allowed = n
	close(r.more)
	r.more = make(chan struct{})
}

func (r *batchRun) answered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.heard)
}

func (r *batchRun) awaitAnswered(n int) {
	r.f.t.Helper()
	require.Eventually(r.f.t, func() bool { return r.answered() >= n }, chaosPatience, pollEvery, "the batch stands still before line %d", n)
}

// awaitAnsweredFor is awaitAnswered that gives up after a while.
func (r *batchRun) awaitAnsweredFor(n int, most time.Duration) {
	limit := time.NewTimer(most)
	defer limit.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for r.answered() < n {
		select {
		case <-limit.C:
			return
		case <-tick.C:
		}
	}
}

// poll asks the ingresses for the batch in turn, as far as they answer. Its counts never
// decrease, and its states come in their order.
func (r *batchRun) poll() {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		b, err := r.f.doors.at(i%2).api.Batches.Get(r.f.t.Context(), r.id)
		r.mu.Lock()
		if err == nil {
			r.note(b)
		} else if status := statusOf(err); status != 0 && status < 500 {
			r.wrong = append(r.wrong, err.Error())
		}
		r.mu.Unlock()
		select {
		case <-r.stop:
			return
		case <-tick.C:
		}
	}
}

func (r *batchRun) note(b *openai.Batch) {
	r.polled++
	at := slices.Index(r.ordered, b.Status)
	if at < 0 {
		r.wrong = append(r.wrong, "it ended otherwise: "+b.RawJSON())
	}
	if r.last != nil {
		was, now := r.last.RequestCounts, b.RequestCounts
		if now.Total < was.Total || now.Completed < was.Completed || now.Failed < was.Failed || at < slices.Index(r.ordered, r.last.Status) {
			r.wrong = append(r.wrong, r.last.RawJSON()+" came before "+b.RawJSON())
		}
	}
	if now := b.RequestCounts; now.Completed+now.Failed > now.Total && b.Status != "validating" {
		r.wrong = append(r.wrong, "more than all: "+b.RawJSON())
	}
	r.last = b
}

// ended reports whether the batch has come to its end, or to none that is allowed.
func (r *batchRun) ended() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wrong) > 0 || r.last != nil && r.last.Status == openai.BatchStatusCompleted
}

func (r *batchRun) endPolls() {
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	r.polls.Wait()
}

// requireWhole lets the batch come to its end, and requires that nothing was lost and
// nothing counted twice.
func (r *batchRun) requireWhole() {
	t := r.f.t
	t.Helper()
	r.allow(r.size)
	require.Eventually(t, r.ended, 2*chaosPatience, pollEvery, "the batch does not end")
	r.endPolls()
	require.Empty(t, r.wrong)
	t.Logf("%d polls; the upstream was called %d times for %d lines", r.polled, r.f.upstream.Count()-r.made, r.size)
	refused := (r.size + refusedEvery - 1) / refusedEvery
	b := r.last
	require.EqualValues(t, r.size, b.RequestCounts.Total)
	require.EqualValues(t, r.size-refused, b.RequestCounts.Completed)
	require.EqualValues(t, refused, b.RequestCounts.Failed)

	output, errors := r.file(b.OutputFileID), r.file(b.ErrorFileID)
	require.Len(t, output, r.size-refused)
	require.Len(t, errors, refused)
	requests := make(map[string]string, r.size)
	for i := range r.size {
		id := r.name + strconv.Itoa(i)
		line, ok := output[id]
		if r.refused(id) {
			line, ok = errors[id]
			require.Equal(t, http.StatusBadRequest, int(line.Get("response.status_code").Int()), id)
		} else {
			require.Equal(t, "echo of "+id, line.Get("response.body.choices.0.message.content").Str, "each line has its own answer")
		}
		require.True(t, ok, id)
		requests[line.Get("response.request_id").Str] = id
	}
	require.Len(t, requests, r.size)
	r.requireLedger(b, requests)
	r.requireTold()
}

// file returns the lines of an output or error file by custom_id.
func (r *batchRun) file(id string) map[string]gjson.Result {
	t := r.f.t
	t.Helper()
	resp, err := r.f.doors.at(1).api.Files.Content(t.Context(), id)
	require.NoError(t, err)
	defer resp.Body.Close()
	lines := make(map[string]gjson.Result)
	scan := bufio.NewScanner(resp.Body)
	for scan.Scan() {
		require.True(t, json.Valid(scan.Bytes()), scan.Text())
		line := gjson.Parse(scan.Text())
		id := line.Get("custom_id").Str
		require.NotContains(t, lines, id, "a second line of one custom_id")
		lines[id] = line
	}
	require.NoError(t, scan.Err())
	return lines
}

// requireLedger requires exactly one row for each line, and the batch's usage to be
// their sum.
func (r *batchRun) requireLedger(b *openai.Batch, requests map[string]string) {
	t := r.f.t
	t.Helper()
	rows, err := ledger(t.Context(), r.f.db)
	require.NoError(t, err)
	require.Len(t, rows, r.rows+r.size, "one row a line")
	jobs := make(map[string]bool, r.size)
	var prompt, completion int64
	for _, row := range rows {
		if _, ok := requests[row.RequestID]; !ok {
			continue // of a batch before
		}
		require.False(t, jobs[row.JobID], "a second row of job %s", row.JobID)
		jobs[row.JobID] = true
		if row.Outcome == inference.OutcomeSucceeded {
			prompt, completion = prompt+row.Usage.PromptTokens, completion+row.Usage.CompletionTokens
		}
	}
	require.Len(t, jobs, r.size)
	require.Equal(t, []int64{prompt, completion, prompt + completion}, []int64{b.Usage.InputTokens, b.Usage.OutputTokens, b.Usage.TotalTokens})
	require.EqualValues(t, 7*int(b.RequestCounts.Completed), prompt)
}

// requireTold requires that the receiver was told of the end, under one id.
func (r *batchRun) requireTold() {
	t := r.f.t
	t.Helper()
	require.Eventually(t, func() bool { return r.box.count() > 0 }, chaosPatience, pollEvery, "no webhook")
	r.box.mu.Lock()
	defer r.box.mu.Unlock()
	client := openai.NewClient(option.WithAPIKey("unused"), option.WithWebhookSecret(r.hook.Reveal()))
	ids := make(map[string]bool)
	for i, body := range r.box.bodies {
		event, err := client.Webhooks.Unwrap(body, r.box.heads[i])
		require.NoError(t, err)
		require.Equal(t, webhook.BatchCompleted, event.Type)
		require.Equal(t, r.id, event.Data.ID)
		ids[r.box.heads[i].Get("webhook-id")] = true
	}
	require.Len(t, ids, 1, "every delivery has the event's one id")
}
