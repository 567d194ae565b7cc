package batch

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// Leases is what an engine needs of the database to have batches to itself.
type Leases interface {
	LeaseBatches(ctx context.Context, owner string, now time.Time, lease time.Duration, limit int) ([]store.Batch, error)
	ReleaseBatches(ctx context.Context, owner string) error
}

// Intake is what it needs to take a file's lines in.
type Intake interface {
	AddLines(ctx context.Context, owner, id string, lines []store.Job, readBytes int64, faults []store.BatchFault) error
	LineIDs(ctx context.Context, id string, after, limit int) ([]store.LineID, error)
	BeginBatch(ctx context.Context, owner, id string, at time.Time) error
	FailBatch(ctx context.Context, owner, id string, at, purge time.Time) error
}

// Feeding is what it needs to let lines into the queue.
type Feeding interface {
	Backlogs(ctx context.Context) ([]store.Backlog, error)
	LeaseLines(ctx context.Context, id string, now time.Time, lease time.Duration, limit int) ([]store.Job, error)
	NoteRate(ctx context.Context, owner, id string, perSecond float64) error
}

// Ending is what it needs to bring a batch to its end.
type Ending interface {
	EndLines(ctx context.Context, id string, status store.JobStatus, at time.Time, limit int) ([]store.Job, error)
	FinalizeBatch(ctx context.Context, owner, id string, at time.Time) error
	FinishedLines(ctx context.Context, id string, f store.LineFilter) ([]store.Job, error)
	CompleteBatch(ctx context.Context, owner, id string, end store.BatchEnd) error
}

// Cleaning is what it needs to remove what is over.
type Cleaning interface {
	DropLines(ctx context.Context, before time.Time, limit int) (int, error)
	PurgeBatches(ctx context.Context, now time.Time, limit int) (int, error)
}

// Store is all that an engine needs of the database about batches.
type Store interface {
	Leases
	Intake
	Feeding
	Ending
	Cleaning
}

// Files are the rows of files. Those of the files that a batch makes come with its end.
type Files interface {
	File(ctx context.Context, tenant, id string, now time.Time) (store.File, error)
	KnownFiles(ctx context.Context, ids []string) (known []string, err error)
}

// Contents are the contents of files.
type Contents interface {
	OpenFile(ctx context.Context, id string, offset int64) (*queue.FileReader, error)
	PutFile(ctx context.Context, id string, from io.Reader) (queue.FileContent, error)
	RemoveFile(ctx context.Context, id string) error
}

// Router says who can serve a request of one batch. Its error is an *inference.Error when
// that would be the answer to the call; any other one means that nobody can say now.
type Router func(req *openaiapi.ChatRequest) ([]inference.Candidate, error)

// Options are what an engine is made of.
type Options struct {
	Owner    string // the ingress's id
	Store    Store
	Files    Files
	Contents Contents

	// Routes returns the router of a batch: that of the key which made it. An
	// *inference.Error means that the key is not in force any more.
	Routes func(ctx context.Context, b *store.Batch) (Router, error)
	// Ready reports whether the queue can be reached. While it cannot, no line is leased.
	Ready func() bool
	// Publish brings leased lines to the queue and notes where they are. What it could
	// not bring there comes again when its lease is over, or when Publish has said so. The
	// error is a *Held when that is because of a limit.
	Publish func(ctx context.Context, lines []store.Job) error
	// Recall takes back what it can of the messages of lines that have ended.
	Recall func(ctx context.Context, lines []store.Job)
	// Ended is called after a batch has come to an end.
	Ended func()

	MaxLines      int
	MaxLineBytes  int
	SingleModel   bool
	Window        int           // lines of all batches in the queue
	Retention     time.Duration // of a batch that has ended
	OutputExpires time.Duration // for batches that do not say it; zero: never

	Logger *slog.Logger
}

// Rhythm and bounds of an engine.
const (
	ownMost    = store.MaxLeased // batches
	cleanEvery = time.Minute
	linesKept  = time.Minute // after their batch, for whoever published them and counts what they took
	cleanStep  = 1000
	validators = 2 // files read at once
	enders     = 4 // batches brought to their end at once
	stopWait   = 5 * time.Second
)

// leasing is the rhythm of an engine's leases. They are short, because the batches of an
// ingress that was killed stand still until they are over. One renewal may be lost.
type leasing struct {
	every  time.Duration
	length time.Duration
	safe   time.Duration // since the last renewal; afterwards nothing is ours any more
}

// usualLeasing leaves a renewal that gets no answer the time from every to safe.
var usualLeasing = leasing{every: 3 * time.Second, length: 10 * time.Second, safe: 7 * time.Second}

// Engine follows batches from their file to their results. New makes it, Run runs it.
type Engine struct {
	opt   Options
	log   *slog.Logger
	lease leasing
	chunk int           // lines that are stored at once
	look  chan struct{} // a batch may have changed
	wake  chan struct{} // lines may be sent

	tasks sync.WaitGroup

	mu       sync.Mutex
	renewed  time.Time
	running  map[string]*task    // by batch
	feeding  map[string]*feeding // batches of ours that are in progress
	troubles map[string]string   // what was logged last of each batch
}

// task is work on one batch that takes a while.
type task struct {
	tenant string
	status store.BatchStatus // as it was when the work began
	cancel context.CancelFunc
}

// New returns an engine that does nothing before Run.
func New(o Options) *Engine {
	return &Engine{
		opt: o, log: o.Logger, chunk: chunkLines, lease: usualLeasing, look: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		running: make(map[string]*task), feeding: make(map[string]*feeding), troubles: make(map[string]string),
	}
}

// Look has the engine look at its batches now: one was made or cancelled.
func (e *Engine) Look() { poke(e.look) }

// Wake has the engine send lines now: some were finished.
func (e *Engine) Wake() { poke(e.wake) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run follows batches until ctx ends. Then it lets go of them, so that another ingress
// goes on at once.
func (e *Engine) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { e.follow(ctx) })
	loops.Go(func() { e.feed(ctx) })
	loops.Go(func() { e.clean(ctx) })
	loops.Wait()
	e.tasks.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
	defer cancel()
	if err := e.opt.Store.ReleaseBatches(last, e.opt.Owner); err != nil {
		e.log.Warn("batches not released; others take them when the lease is over", "error", err)
	}
}

// clean removes lines of batches that have ended, and batches whose time is over.
func (e *Engine) clean(ctx context.Context) {
	steps := []func() (int, error){
		func() (int, error) { return e.opt.Store.DropLines(ctx, time.Now().Add(-linesKept), cleanStep) },
		func() (int, error) { return e.opt.Store.PurgeBatches(ctx, time.Now(), cleanStep) },
	}
	for ctx.Err() == nil {
		for _, step := range steps {
			for n := 1; n > 0; {
				var err error
				if n, err = step(); err != nil {
					n = 0
					e.trouble(ctx, "", err)
				}
			}
		}
		wait(ctx, cleanEvery, nil)
	}
}

// trouble logs an error that is not the one logged last of the batch. No batch is named
// by "".
func (e *Engine) trouble(ctx context.Context, id string, err error) {
	if ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	again := e.troubles[id] == err.Error()
	e.troubles[id] = err.Error()
	e.mu.Unlock()
	if !again {
		e.log.Warn("batch does not get on; it will be tried again", "batch_id", id, "error", err)
	}
}

// wait waits for the time to pass, for a word, or for the end.
func wait(ctx context.Context, d time.Duration, word <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-word:
	}
}
