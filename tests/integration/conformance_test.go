package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"sluice/internal/testkit"
	"sluice/internal/webhook"
	"sluice/store"
	"sluice/tests/integration/conformance"
)

// stagedStore stops batches where a state would pass too quickly to be looked at, and
// gives them a window shorter than anybody may ask for.
type stagedStore struct {
	store.Store
	window   time.Duration // zero: as it is
	begin    chan struct{} // holds back the end of the validation until it is closed
	complete chan struct{} // holds back the end
}

func newStagedStore() *stagedStore {
	return &stagedStore{begin: make(chan struct{}), complete: make(chan struct{})}
}

func (s *stagedStore) wrap(db store.Store) store.Store {
	s.Store = db
	return s
}

func hold(ctx context.Context, gate chan struct{}) error {
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *stagedStore) CreateBatch(ctx context.Context, b store.Batch) error {
	if s.window > 0 {
		b.ExpiresAt = b.CreatedAt.Add(s.window)
	}
	return s.Store.CreateBatch(ctx, b)
}

func (s *stagedStore) BeginBatch(ctx context.Context, owner, id string, at time.Time) error {
	if err := hold(ctx, s.begin); err != nil {
		return err
	}
	return s.Store.BeginBatch(ctx, owner, id, at)
}

func (s *stagedStore) CompleteBatch(ctx context.Context, owner, id string, end store.BatchEnd) error {
	if err := hold(ctx, s.complete); err != nil {
		return err
	}
	return s.Store.CompleteBatch(ctx, owner, id, end)
}

// delivery is an event as it was received.
type delivery struct {
	body   []byte
	header http.Header
}

// mailbox is a tenant's server that keeps what it is sent.
type mailbox struct {
	*httptest.Server
	secret webhook.Secret

	mu   sync.Mutex
	mail []delivery
}

func (s *stack) mailbox() *mailbox {
	s.t.Helper()
	m := &mailbox{secret: webhook.NewSecret()}
	m.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // it comes again
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mail = append(m.mail, delivery{body, r.Header})
	}))
	s.t.Cleanup(m.Close)
	s.logs.forbid(m.secret.Reveal())
	_, err := s.db.CreateWebhook(s.t.Context(), store.Webhook{ID: webhook.NewEndpointID(), Tenant: tenant, URL: m.URL}, m.secret, 100)
	require.NoError(s.t, err)
	return m
}

// await returns the first event of the batch.
func (m *mailbox) await(s *stack, batch string) (found delivery) {
	s.t.Helper()
	s.eventually(func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, d := range m.mail {
			if gjson.GetBytes(d.body, "data.id").Str == batch {
				found = d
				return true
			}
		}
		return false
	}, "an event of batch %s", batch)
	return found
}

// requireEvent requires the event of the batch, in OpenAI's shape, as OpenAI's client
// verifies it, and that the same client refuses it in every wrong form.
func (m *mailbox) requireEvent(u *batchUser, batch, kind string) {
	t := u.s.t
	t.Helper()
	d := m.await(u.s, batch)
	u.conforms(kind, string(d.body))
	hooks := func(secret webhook.Secret) openai.Client {
		return openai.NewClient(option.WithAPIKey("unused"), option.WithWebhookSecret(secret.Reveal()))
	}
	right, wrong := hooks(m.secret), hooks(webhook.NewSecret())
	event, err := right.Webhooks.Unwrap(d.body, d.header)
	require.NoError(t, err)
	require.Equal(t, kind, event.Type)
	require.Equal(t, batch, event.Data.ID)
	require.Equal(t, d.header.Get("webhook-id"), event.ID)

	_, err = wrong.Webhooks.Unwrap(d.body, d.header)
	require.Error(t, err, "another secret")
	_, err = right.Webhooks.UnwrapWithToleranceAndTime(d.body, d.header, 5*time.Minute, time.Now().Add(6*time.Minute))
	require.Error(t, err, "an old message")
	altered := append([]byte(nil), d.body...)
	altered[len(altered)-3] ^= 1
	_, err = right.Webhooks.Unwrap(altered, d.header)
	require.Error(t, err, "an altered body")
	for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
		header := d.header.Clone()
		header.Set(name, "1"+header.Get(name)[1:])
		if header.Get(name) == d.header.Get(name) {
			header.Set(name, "2"+header.Get(name)[1:])
		}
		_, err = right.Webhooks.UnwrapWithToleranceAndTime(d.body, header, 50*365*24*time.Hour, time.Now())
		require.Error(t, err, "an altered %s", name)
	}
}

// requireTimes requires that the batch has these times, in their order, and beside them
// none that says how it ended.
func requireTimes(t testing.TB, b *openai.Batch, names ...string) {
	t.Helper()
	has := make(map[string]bool)
	last := int64(0)
	for _, name := range append([]string{"created_at"}, names...) {
		at := gjson.Get(b.RawJSON(), name)
		require.Equal(t, gjson.Number, at.Type, "%s of %s", name, b.RawJSON())
		require.GreaterOrEqual(t, at.Int(), last, name)
		has[name], last = true, at.Int()
	}
	for _, name := range []string{"in_progress_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"} {
		if !has[name] {
			require.False(t, gjson.Get(b.RawJSON(), name).Bool(), "%s of %s", name, b.RawJSON())
			require.NotEqual(t, gjson.Number, gjson.Get(b.RawJSON(), name).Type, "%s of %s", name, b.RawJSON())
		}
	}
	require.Positive(t, b.ExpiresAt)
}

// heldBatch makes a batch of which the upstream answers ten lines, refuses two, and
// holds the others back.
func heldBatch(s *stack, u *batchUser) (made *openai.Batch, ids []string, gate chan struct{}) {
	s.t.Helper()
	const size, answered = 20, 10
	gate = make(chan struct{})
	s.up.Handle(func(c *testkit.Call) {
		switch {
		case c.N <= answered:
			c.Reply("a")
		case c.N <= answered+2:
			c.Fail(http.StatusBadRequest, "no")
		case c.Wait(gate):
			c.Reply("b")
		}
	})
	lines := make([]string, size)
	for i := range size {
		ids = append(ids, fmt.Sprintf("line-%d", i))
		lines[i] = chatLine(ids[i], "m", canary, "")
	}
	return u.create(openai.BatchNewParamsEndpointV1ChatCompletions, lines...), ids, gate
}

func awaitHeld(u *batchUser, id string) *openai.Batch {
	u.s.t.Helper()
	return u.await(id, "held", func(b *openai.Batch) bool {
		return b.RequestCounts.Completed == 10 && b.RequestCounts.Failed == 2
	})
}

// startStaged runs a stack whose webhooks go to this machine.
func startStaged(t *testing.T, staged *stagedStore) *stack {
	t.Helper()
	return start(t, func(o *options) { o.private, o.wrap = true, staged.wrap })
}

// Every state that ends well is shown as OpenAI shows it.
func TestACompletedBatchConforms(t *testing.T) {
	t.Parallel()
	staged := newStagedStore()
	s := startStaged(t, staged)
	u, box := s.batchUser(), s.mailbox()
	made, ids, gate := heldBatch(s, u)
	require.Equal(t, openai.BatchStatusValidating, made.Status)
	requireTimes(t, u.get(made.ID))
	require.Equal(t, openai.BatchStatusValidating, u.get(made.ID).Status)
	close(staged.begin)

	b := awaitHeld(u, made.ID)
	require.Equal(t, openai.BatchStatusInProgress, b.Status)
	requireTimes(t, b, "in_progress_at")
	require.EqualValues(t, len(ids), b.RequestCounts.Total)
	early := s.do(0, http.MethodGet, "/v1/batches/"+made.ID+"/output", "")
	require.Equal(t, http.StatusOK, early.status, early.body)
	soFar, _ := u.readLines(strings.NewReader(early.body))
	require.Len(t, soFar, 10, "what is finished can be read before the end")
	close(gate)

	b = u.awaitStatus(made.ID, openai.BatchStatusFinalizing)
	requireTimes(t, b, "in_progress_at", "finalizing_at")
	close(staged.complete)
	b = u.awaitStatus(made.ID, openai.BatchStatusCompleted)
	requireTimes(t, b, "in_progress_at", "finalizing_at", "completed_at")
	require.Equal(t, gjson.Null, gjson.Get(b.RawJSON(), "errors").Type)
	_, errors := u.requireOneEach(b, ids)
	require.Len(t, errors, 2)
	box.requireEvent(u, made.ID, conformance.BatchCompleted)
	requireAPIError(u, errorOf(u.api.Batches.Cancel(t.Context(), made.ID)), http.StatusConflict)

	filesConform(u, made.InputFileID, b.OutputFileID, b.ErrorFileID)
	page, err := u.api.Batches.List(t.Context(), openai.BatchListParams{})
	require.NoError(t, err)
	u.conforms(conformance.BatchList, page.RawJSON())
	require.Len(t, page.Data, 1)
}

// filesConform looks at the files of a batch in every way that there is.
func filesConform(u *batchUser, ids ...string) {
	t := u.s.t
	t.Helper()
	page, err := u.api.Files.List(t.Context(), openai.FileListParams{})
	require.NoError(t, err)
	u.conforms(conformance.FileList, page.RawJSON())
	require.Len(t, page.Data, len(ids))
	page, err = u.api.Files.List(t.Context(), openai.FileListParams{Purpose: openai.String("batch_output")})
	require.NoError(t, err)
	require.Len(t, page.Data, len(ids)-1)
	for _, id := range ids {
		f, err := u.api.Files.Get(t.Context(), id)
		require.NoError(t, err)
		u.conforms(conformance.File, f.RawJSON())
		gone, err := u.api.Files.Delete(t.Context(), id)
		require.NoError(t, err)
		u.conforms(conformance.FileDeleted, gone.RawJSON())
		requireAPIError(u, errorOf(u.api.Files.Get(t.Context(), id)), http.StatusNotFound)
	}
	page, err = u.api.Files.List(t.Context(), openai.FileListParams{})
	require.NoError(t, err)
	u.conforms(conformance.FileList, page.RawJSON())
	require.Empty(t, page.Data)
}

func TestAFailedBatchConforms(t *testing.T) {
	t.Parallel()
	s := startStaged(t, newStagedStore())
	u, box := s.batchUser(), s.mailbox()
	good := chatLine("a", "m", canary, "")
	made := u.create(openai.BatchNewParamsEndpointV1ChatCompletions, good, `{"custom_id":`, good, embeddingLine("b", "m", canary, ""))
	b := u.awaitStatus(made.ID, openai.BatchStatusFailed)
	requireTimes(t, b, "failed_at")
	var lines []int64
	for _, fault := range b.Errors.Data {
		lines = append(lines, fault.Line)
		require.NotContains(t, fault.Message, canary)
	}
	require.Equal(t, []int64{2, 3, 4}, lines, b.RawJSON())
	require.Empty(t, b.OutputFileID+b.ErrorFileID)
	require.Zero(t, s.up.Count(), "nothing of it is called")
	box.requireEvent(u, made.ID, conformance.BatchFailed)

	_, err := u.api.Batches.Cancel(t.Context(), made.ID)
	requireAPIError(u, err, http.StatusConflict)
	requireAPIError(u, errorOf(u.api.Batches.Get(t.Context(), "batch_none")), http.StatusNotFound)
	for name, change := range map[string]func(*openai.BatchNewParams){
		"file":     func(p *openai.BatchNewParams) { p.InputFileID = "file-none" },
		"endpoint": func(p *openai.BatchNewParams) { p.Endpoint = openai.BatchNewParamsEndpointV1Videos },
		"window":   func(p *openai.BatchNewParams) { p.CompletionWindow = "9m" },
		"expiry":   func(p *openai.BatchNewParams) { p.OutputExpiresAfter.Seconds = 60 },
	} {
		p := openai.BatchNewParams{
			InputFileID: made.InputFileID, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions, CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
		}
		change(&p)
		_, err := u.api.Batches.New(t.Context(), p)
		require.Error(t, err, name)
		requireAPIError(u, err, http.StatusBadRequest, http.StatusNotFound)
	}
}

func TestACancelledBatchConforms(t *testing.T) {
	t.Parallel()
	staged := newStagedStore()
	close(staged.begin)
	s := startStaged(t, staged)
	u, box := s.batchUser(), s.mailbox()
	made, ids, _ := heldBatch(s, u)
	awaitHeld(u, made.ID)
	b, err := u.api.Batches.Cancel(t.Context(), made.ID)
	require.NoError(t, err)
	u.conforms(conformance.Batch, b.RawJSON())
	require.Equal(t, openai.BatchStatusCancelling, b.Status)
	requireTimes(t, b, "in_progress_at", "cancelling_at")
	close(staged.complete)
	b = u.awaitStatus(made.ID, openai.BatchStatusCancelled)
	requireTimes(t, b, "in_progress_at", "cancelling_at", "cancelled_at")
	requireEnded(u, b, ids, "batch_cancelled")
	box.requireEvent(u, made.ID, conformance.BatchCancelled)
}

func TestAnExpiredBatchConforms(t *testing.T) {
	t.Parallel()
	staged := newStagedStore()
	staged.window = 4 * time.Second
	close(staged.begin)
	close(staged.complete)
	s := startStaged(t, staged)
	u, box := s.batchUser(), s.mailbox()
	made, ids, _ := heldBatch(s, u)
	b := u.awaitStatus(made.ID, openai.BatchStatusExpired)
	requireTimes(t, b, "in_progress_at", "expired_at")
	require.GreaterOrEqual(t, b.ExpiredAt, b.ExpiresAt)
	requireEnded(u, b, ids, "batch_expired")
	box.requireEvent(u, made.ID, conformance.BatchExpired)
}

// requireEnded requires that ten lines kept their answers and two their errors, and
// that the rest says why there is none.
func requireEnded(u *batchUser, b *openai.Batch, ids []string, code string) {
	t := u.s.t
	t.Helper()
	output, errors := u.requireOneEach(b, ids)
	require.Len(t, output, 10)
	answered := 0
	for id, l := range errors {
		if l.Response != nil {
			require.Equal(t, http.StatusBadRequest, l.Response.StatusCode, id)
			u.conforms(conformance.Error, string(l.Response.Body))
			answered++
			continue
		}
		require.Equal(t, code, l.Error.Code, id)
	}
	require.Equal(t, 2, answered)
}
