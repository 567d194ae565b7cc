package batch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/internal/testkit"
	"sluice/store"
	"sluice/store/postgres"
	"sluice/store/sqlite"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// soon is how long a test waits for what must happen; nothing takes nearly as long.
const soon = time.Minute

// rig is an engine on a real database and a real object store. In the place of the queue
// and its workers stands a script that answers a line, or holds it.
type rig struct {
	t     *testing.T
	db    store.Store
	conn  *queue.Conn
	opt   Options
	away  atomic.Bool  // the queue
	asked atomic.Int32 // whether it is

	mu       sync.Mutex
	hold     func(line *store.Job) bool // nil: no line is held
	sent     map[string]int             // lines published, by custom_id
	held     map[string]store.Job
	recalled []string
	ended    int
	good     int // lines answered
	bad      int // lines refused
}

func openSQLite(t *testing.T) store.Store {
	t.Helper()
	db, err := sqlite.Open(t.Context(), t.TempDir()+"/sluice.db")
	require.NoError(t, err)
	return db
}

func openPostgres(t *testing.T) store.Store {
	t.Helper()
	db, err := postgres.Open(t.Context(), testkit.Postgres(t), postgres.Options{})
	require.NoError(t, err)
	return db
}

// onBoth runs a test on both databases.
func onBoth(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	for name, open := range map[string]func(*testing.T) store.Store{"sqlite": openSQLite, "postgres": openPostgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, setup(t, open))
		})
	}
}

func setup(t *testing.T, open func(*testing.T) store.Store) *rig {
	t.Helper()
	db := open(t)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	srv, err := queue.StartEmbedded(queue.EmbeddedOptions{Dir: t.TempDir(), MemoryBytes: 512 << 20, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(srv.Close)
	conn, err := queue.Connect(queue.Options{Name: t.Name(), Embedded: srv, Logger: slog.New(slog.DiscardHandler), Limits: queue.Limits{
		Storage: "memory", Replicas: 1, AckWait: 30 * time.Second, EventsBytes: 1 << 20, EventsAge: time.Minute,
		BlobsBytes: 1 << 20, BlobsAge: time.Hour, FilesBytes: 400 << 20, UsageBytes: 1 << 20, DeadLetterAge: time.Hour,
	}})
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	require.NoError(t, conn.EnsureFiles(t.Context()))
	r := &rig{t: t, db: db, conn: conn, sent: make(map[string]int), held: make(map[string]store.Job)}
	r.opt = Options{
		Owner: queue.NewProcessID(), Store: db, Files: db, Contents: conn, Routes: everywhere,
		Ready: func() bool { r.asked.Add(1); return !r.away.Load() }, Recall: r.recall, Ended: func() { r.mu.Lock(); r.ended++; r.mu.Unlock() },
		MaxLines: 5000, MaxLineBytes: 1 << 20, Window: 1000, Retention: time.Hour, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	return r
}

// everywhere routes every model but "none".
func everywhere(context.Context, *store.Batch) (Router, error) {
	return func(req *openaiapi.ChatRequest) ([]inference.Candidate, error) {
		if req.Model == "none" {
			return nil, &inference.Error{Code: inference.CodeModelNotFound, Param: "model", Message: "nobody serves it"}
		}
		return []inference.Candidate{{Provider: "acme", Model: req.Model}}, nil
	}, nil
}

// start runs an engine until stop.
func (r *rig) start(change ...func(*Options)) (e *Engine, stop func()) {
	r.t.Helper()
	o := r.opt
	for _, c := range change {
		c(&o)
	}
	var engine *Engine
	if o.Publish == nil {
		o.Publish = func(ctx context.Context, lines []store.Job) error { return r.publish(ctx, engine, lines) }
	}
	engine = New(o)
	engine.chunk = 50
	engine.lease.every = 250 * time.Millisecond
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	var running sync.WaitGroup
	running.Go(func() { engine.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	r.t.Cleanup(stop)
	return engine, stop
}

// publish marks lines as sent and answers those that are not held.
func (r *rig) publish(ctx context.Context, e *Engine, lines []store.Job) error {
	var sent []store.Dispatch
	for _, l := range lines {
		sent = append(sent, store.Dispatch{ID: l.ID, Epoch: l.Epoch, Provider: "acme", Seq: 7})
	}
	if _, err := r.db.MarkDispatched(ctx, sent, time.Now()); err != nil {
		return err
	}
	var ready []store.Job
	r.mu.Lock()
	for _, l := range lines {
		r.sent[l.CustomID]++
		if r.hold != nil && r.hold(&l) {
			r.held[l.CustomID] = l
		} else {
			ready = append(ready, l)
		}
	}
	r.mu.Unlock()
	return r.answer(ctx, e, ready)
}

// answer ends lines: those whose custom_id begins with "bad" in a refusal.
func (r *rig) answer(ctx context.Context, e *Engine, lines []store.Job) error {
	var ends []store.JobEnd
	for _, l := range lines {
		end := store.JobEnd{Status: store.JobCompleted, FinishedAt: time.Now(), Response: fmt.Appendf(nil, "{\"echo\":\n%q}", l.CustomID), Record: inference.Record{
			JobID: l.ID, Outcome: inference.OutcomeSucceeded, Status: http.StatusOK, Attempts: 1,
			Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 2, CachedTokens: 1, Known: true},
		}}
		if strings.HasPrefix(l.CustomID, "bad") {
			end.Status, end.Response = store.JobFailed, []byte(`{"error":{"message":"no"}}`)
			end.Record = inference.Record{JobID: l.ID, Outcome: inference.OutcomeFailed, Status: http.StatusBadRequest, ErrorCode: inference.CodeUpstreamRejected}
		}
		ends = append(ends, end)
	}
	if len(ends) == 0 {
		return nil
	}
	news, err := r.db.FinishJobs(ctx, ends)
	r.mu.Lock()
	for _, l := range news {
		if l.Status == store.JobCompleted {
			r.good++
		} else {
			r.bad++
		}
	}
	r.mu.Unlock()
	e.Wake()
	return err
}

// release answers what is held, and holds nothing any more.
func (r *rig) release(e *Engine) {
	r.t.Helper()
	r.mu.Lock()
	lines := make([]store.Job, 0, len(r.held))
	for _, l := range r.held {
		lines = append(lines, l)
	}
	r.hold, r.held = nil, make(map[string]store.Job)
	r.mu.Unlock()
	for len(lines) > 0 {
		n := min(len(lines), store.MaxJobs)
		require.NoError(r.t, r.answer(r.t.Context(), e, lines[:n]))
		lines = lines[n:]
	}
}

func (r *rig) recall(_ context.Context, lines []store.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range lines {
		if l.Provider != "" {
			r.recalled = append(r.recalled, l.CustomID)
		}
	}
}

func (r *rig) goodNow() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.good
}

func (r *rig) heldNow() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.held)
}

// upload stores an input file.
func (r *rig) upload(tenant, content string) string {
	r.t.Helper()
	id := store.NewFileID()
	_, err := r.conn.PutFile(r.t.Context(), id, strings.NewReader(content))
	require.NoError(r.t, err)
	require.NoError(r.t, r.db.CreateFile(r.t.Context(), store.File{
		ID: id, Tenant: tenant, Purpose: openaiapi.PurposeBatch, Filename: "in.jsonl", Bytes: int64(len(content)), Digest: "d", CreatedAt: time.Now(),
	}))
	return id
}

var numbers struct {
	sync.Mutex
	n int
}

// create makes a batch of a file's content.
func (r *rig) create(tenant, content string, change ...func(*store.Batch)) store.Batch {
	r.t.Helper()
	numbers.Lock()
	numbers.n++
	n := numbers.n
	numbers.Unlock()
	now := time.Now()
	b := store.Batch{
		ID: fmt.Sprintf("batch_%024d", n), Tenant: tenant, KeyID: "key", Endpoint: openaiapi.EndpointChat, Kind: inference.KindChat,
		InputFile: r.upload(tenant, content), CompletionWindow: 24 * time.Hour, CreatedAt: now, ExpiresAt: now.Add(24 * time.Hour),
	}
	for _, c := range change {
		c(&b)
	}
	require.NoError(r.t, r.db.CreateBatch(r.t.Context(), b))
	return b
}

// await waits until the batch has the status.
func (r *rig) await(b store.Batch, status store.BatchStatus) store.Batch {
	r.t.Helper()
	var now store.Batch
	require.Eventually(r.t, func() bool {
		var err error
		now, err = r.db.Batch(r.t.Context(), b.Tenant, b.ID)
		return err == nil && now.Status == status
	}, soon, 20*time.Millisecond, "batch is %v, not %s", &now.Status, status)
	return now
}

// finalizing brings a batch to where its files are to be written, and lets go of it.
func (r *rig) finalizing(b store.Batch) store.Batch {
	r.t.Helper()
	_, stop := r.start(func(o *Options) {
		o.Contents = &badContents{r.conn, func(io.Reader) (io.Reader, error) { return nil, errBroken }}
	})
	b = r.await(b, store.BatchFinalizing)
	stop()
	return b
}

// leased makes the one batch the owner's.
func (r *rig) leased(owner string, now time.Time) {
	r.t.Helper()
	batches, err := r.db.LeaseBatches(r.t.Context(), owner, now, time.Minute, 10)
	require.NoError(r.t, err)
	require.Len(r.t, batches, 1)
}

// contents counts the contents of files.
func (r *rig) contents() int {
	r.t.Helper()
	entries, err := r.conn.NewEntryReader().Next(r.t.Context())
	require.NoError(r.t, err)
	return len(entries)
}

// outcome is a line of an output or an error file.
type outcome struct {
	ID       string
	CustomID string `json:"custom_id"`
	Response *struct {
		StatusCode int    `json:"status_code"`
		RequestID  string `json:"request_id"`
		Body       json.RawMessage
	}
	Error *struct{ Code, Message string }
}

// content reads a file whole.
func (r *rig) content(id string) []byte {
	r.t.Helper()
	from, err := r.conn.OpenFile(r.t.Context(), id, 0)
	require.NoError(r.t, err)
	var all bytes.Buffer
	for {
		data, err := from.Next(r.t.Context())
		require.NoError(r.t, err)
		if len(data) == 0 {
			return all.Bytes()
		}
		all.Write(data)
	}
}

// outcomes reads one of a batch's files, and checks its row.
func (r *rig) outcomes(b store.Batch, id string) (lines []outcome) {
	r.t.Helper()
	if id == "" {
		return nil
	}
	file, err := r.db.File(r.t.Context(), b.Tenant, id, time.Now())
	require.NoError(r.t, err)
	content := r.content(id)
	require.Equal(r.t, openaiapi.PurposeBatchOutput, file.Purpose)
	require.EqualValues(r.t, len(content), file.Bytes)
	scan := bufio.NewScanner(bytes.NewReader(content))
	for scan.Scan() {
		var o outcome
		require.NoError(r.t, json.Unmarshal(scan.Bytes(), &o))
		lines = append(lines, o)
	}
	return lines
}

// settled checks that every custom_id of the first so many lines is in exactly one of the
// two files, in order, and that the counts say so.
func (r *rig) settled(b store.Batch, customIDs []string) (output, failed []outcome) {
	r.t.Helper()
	output, failed = r.outcomes(b, b.OutputFile), r.outcomes(b, b.ErrorFile)
	require.Equal(r.t, []int{len(customIDs), len(output), len(failed)}, []int{b.Total, b.Completed, b.Failed})
	place := make(map[string]int)
	for i, id := range customIDs {
		place[id] = i
	}
	for _, lines := range [][]outcome{output, failed} {
		last := -1
		for _, o := range lines {
			at, ok := place[o.CustomID]
			require.True(r.t, ok, "%s is there twice, or was never asked for", o.CustomID)
			require.Greater(r.t, at, last)
			last = at
			delete(place, o.CustomID)
		}
	}
	require.Empty(r.t, place)
	return output, failed
}

// input returns a file of n lines, each seventh of them bad if bad is set.
func input(n int, bad bool) (content string, customIDs []string) {
	var b strings.Builder
	for i := range n {
		id := fmt.Sprintf("line-%d", i)
		if bad && i%7 == 3 {
			id = "bad-" + id
		}
		customIDs = append(customIDs, id)
		b.WriteString(chatLine(id, "m") + "\n")
	}
	return b.String(), customIDs
}

var errBroken = errors.New("broken")
