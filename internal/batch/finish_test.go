package batch

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

func TestNoFileWhereThereIsNoLine(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, ids := input(3, false)
	good := r.create("team", content)
	bad := r.create("team", chatLine("bad", "m"))
	r.start()
	good, bad = r.await(good, store.BatchCompleted), r.await(bad, store.BatchCompleted)
	r.settled(good, ids)
	require.Empty(t, good.ErrorFile)
	r.settled(bad, []string{"bad"})
	require.Empty(t, bad.OutputFile)
	require.Equal(t, 4, r.contents(), "two inputs, an output and a file of errors")
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		content, ids := input(120, true)
		r.opt.Window = 80
		r.hold = func(l *store.Job) bool { return l.Line > 60 }
		b := r.create("team", content, func(b *store.Batch) { b.ExpiresAt = b.CreatedAt.Add(8 * time.Second) })
		r.start()
		b = r.await(b, store.BatchExpired)
		output, failed := r.settled(b, ids)
		require.NotEmpty(t, output)
		require.Len(t, output, r.good, "what was finished is kept")
		expired := 0
		for _, o := range failed {
			if o.Error != nil {
				require.Equal(t, "batch_expired", o.Error.Code)
				require.Nil(t, o.Response)
				expired++
			}
		}
		require.Equal(t, 120-r.good-r.bad, expired)
		require.False(t, b.ExpiredAt.IsZero())
		require.Len(t, r.recalled, len(r.held), "their messages are taken back")
		require.NotEmpty(t, r.held)
	})
}

func TestALateEndIsNoExpiry(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, ids := input(5, false)
	b := r.create("team", content)
	b = r.finalizing(b)
	// Every line was done, and only then the time was over.
	b.ExpiresAt = b.FinalizingAt.Add(-time.Second)
	r.leased(r.opt.Owner, time.Now())
	r.opt.Publish = func(context.Context, []store.Job) error { return nil }
	require.NoError(t, New(r.opt).finish(t.Context(), &b))
	r.settled(r.await(b, store.BatchCompleted), ids)
}

func TestCancel(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		content, ids := input(100, false)
		r.hold = func(l *store.Job) bool { return l.Line%2 == 0 }
		b := r.create("team", content)
		e, _ := r.start()
		require.Eventually(t, func() bool { return r.heldNow() == 50 && r.goodNow() == 50 }, soon, 10*time.Millisecond)
		_, err := r.db.CancelBatch(t.Context(), "team", b.ID, time.Now())
		require.NoError(t, err)
		e.Look()
		b = r.await(b, store.BatchCancelled)
		output, failed := r.settled(b, ids)
		require.Len(t, output, 50)
		require.Equal(t, "batch_cancelled", failed[0].Error.Code)
		require.Len(t, r.recalled, 50)
		require.False(t, b.CancelledAt.IsZero())
	})
}

func TestCancellingIsNotForgotten(t *testing.T) {
	t.Parallel()
	for name, window := range map[string]time.Duration{"completed": time.Hour, "expired": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, r *rig) {
				t.Helper()
				content, ids := input(10, false)
				r.hold = func(*store.Job) bool { return name == "expired" }
				b := r.create("team", content, func(b *store.Batch) { b.ExpiresAt = b.CreatedAt.Add(window) })
				var told store.Batch
				db := &flaky{Store: r.db, finalize: sync.OnceFunc(func() { // the owner has read the batch before that
					var err error
					told, err = r.db.CancelBatch(t.Context(), "team", b.ID, time.Now())
					assert.NoError(t, err)
				})}
				r.start(func(o *Options) { o.Store = db })
				b = r.await(b, store.BatchCancelled)
				require.Equal(t, store.BatchCancelling, told.Status)
				r.settled(b, ids)
			})
		})
	}
}

// badContents is a place for files where some calls fail.
type badContents struct {
	Contents
	put func(from io.Reader) (io.Reader, error)
}

func (c *badContents) PutFile(ctx context.Context, id string, from io.Reader) (queue.FileContent, error) {
	from, err := c.put(from)
	if err != nil {
		return queue.FileContent{}, err
	}
	return c.Contents.PutFile(ctx, id, from)
}

func TestACrashWhileTheFilesAreWritten(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		content, ids := input(50, true)
		b := r.create("team", content)
		var files atomic.Int64
		contents := &badContents{r.conn, func(from io.Reader) (io.Reader, error) {
			switch n := files.Add(1); n {
			case 1:
				return nil, errBroken
			case 3: // the second one, when the first is whole
				return io.MultiReader(io.LimitReader(from, 100), iotest.ErrReader(errBroken)), nil
			}
			return from, nil
		}}
		r.start(func(o *Options) { o.Contents = contents })
		r.settled(r.await(b, store.BatchCompleted), ids)
		require.EqualValues(t, 5, files.Load())
		require.Equal(t, 3, r.contents(), "the input and the two files, no stray")
	})
}

func TestAnEndOfWhichNobodyKnows(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string][2]error{"it was stored": {nil, errBroken}, "it was not": {errBroken, nil}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, r *rig) {
				t.Helper()
				content, ids := input(50, true)
				b := r.finalizing(r.create("team", content))
				r.leased(r.opt.Owner, time.Now())
				completes := 0
				r.opt.Store = &flaky{Store: r.db, complete: func() (before, after error) {
					if completes++; completes == 1 {
						return answers[0], answers[1]
					}
					return nil, nil
				}}
				e := New(r.opt)
				e.lease.every = 0
				require.NoError(t, e.finish(t.Context(), &b))
				require.Equal(t, []int{2, 1}, []int{completes, r.ended})
				r.settled(r.await(b, store.BatchCompleted), ids)
				require.Equal(t, 3, r.contents(), "nothing is written twice, and what has become a file stays")
			})
		})
	}
}

// TestTwoOwners has an owner write a batch's files that has lost the batch meanwhile.
func TestTwoOwners(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rest func(from io.Reader) io.Reader // behind what it had read by then
		err  error
	}{
		"one breaks off":         {func(io.Reader) io.Reader { return iotest.ErrReader(errBroken) }, errBroken},
		"one comes to its end":   {func(from io.Reader) io.Reader { return from }, store.ErrLeaseLost},
		"one writes other lines": {func(io.Reader) io.Reader { return strings.NewReader("{}\n") }, store.ErrLeaseLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBoth(t, func(t *testing.T, r *rig) {
				t.Helper()
				content, ids := input(50, true)
				b := r.finalizing(r.create("team", content))
				reached, goOn := make(chan struct{}), make(chan struct{})
				frozen := sync.OnceFunc(func() { close(reached); <-goOn })
				slow := &badContents{r.conn, func(from io.Reader) (io.Reader, error) {
					pause := reader(func([]byte) (int, error) { frozen(); return 0, io.EOF })
					return io.MultiReader(io.LimitReader(from, 100), pause, c.rest(from)), nil
				}}
				finish := func(owner string, contents Contents) error {
					o := r.opt
					o.Owner, o.Contents, o.Publish = owner, contents, func(context.Context, []store.Job) error { return nil }
					return New(o).finish(t.Context(), &b)
				}
				r.leased("stale", time.Now())
				lost := make(chan error, 1)
				go func() { lost <- finish("stale", slow) }()
				<-reached
				r.leased("new", time.Now().Add(time.Hour))
				require.NoError(t, finish("new", r.conn))
				close(goOn)
				require.ErrorIs(t, <-lost, c.err)
				b = r.await(b, store.BatchCompleted)
				r.settled(b, ids)
				require.Equal(t, 3, r.contents(), "the loser removes what is its own")
				files, _, err := r.db.ListFiles(t.Context(), store.FileFilter{Tenant: "team", Purpose: openaiapi.PurposeBatchOutput, Now: time.Now()})
				require.NoError(t, err)
				require.Len(t, files, 2)
			})
		})
	}
}

func TestTheSameLinesGiveTheSameBytes(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, _ := input(100, true)
	b := r.create("team", content)
	r.start()
	b = r.await(b, store.BatchCompleted)
	before := r.content(b.OutputFile)
	pages := Pages(r.db, b.ID, false)
	again, err := io.ReadAll(lineText(t.Context(), nil, pages))
	require.NoError(t, err)
	if len(again) > 0 { // unless the lines are gone by now
		require.Equal(t, string(before), string(again))
	}
}
