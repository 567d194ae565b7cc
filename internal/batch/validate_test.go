package batch

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

func TestFaultsFailABatch(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	many, _ := input(110, false)
	r.opt.MaxLines, r.opt.MaxLineBytes = 110, 1000
	good := func(n int) string { c, _ := input(n, false); return c }
	cases := map[string]struct {
		content string
		want    []string // code:line:param
	}{
		"empty":       {"\n\n", []string{"empty_file:0:input_file_id"}},
		"one fault":   {many + "{\n", []string{"invalid_json_line:111:"}},
		"three":       {chatLine("a", "m") + "\n\n" + chatLine("a", "m") + "\n" + chatLine("b", "none") + "\n{}", []string{"duplicate_custom_id:3:custom_id", "model_not_found:4:body.model", "missing_required_parameter:5:custom_id"}},
		"long":        {chatLine("a", "m") + "\n" + strings.Repeat("x", 5000) + "\n[]", []string{"line_too_large:2:", "invalid_json_line:3:"}},
		"too many":    {good(112), []string{"too_many_tasks:111:"}},
		"just enough": {good(110), nil},
	}
	batches := make(map[string]store.Batch)
	for name, c := range cases {
		batches[name] = r.create("team", c.content)
	}
	hundreds := r.create("team", strings.Repeat("{\n", 300))
	r.start()
	for name, c := range cases {
		if c.want == nil {
			r.await(batches[name], store.BatchCompleted)
			continue
		}
		b := r.await(batches[name], store.BatchFailed)
		var got []string
		for _, f := range b.Faults {
			got = append(got, fmt.Sprintf("%s:%d:%s", f.Code, f.Line, f.Param))
			require.NotEmpty(t, f.Message)
		}
		require.Equal(t, c.want, got, name)
		require.False(t, b.FailedAt.IsZero())
		require.Empty(t, b.OutputFile)
	}
	hundreds = r.await(hundreds, store.BatchFailed)
	require.Len(t, hundreds.Faults, 100)
	require.Equal(t, 100, hundreds.Faults[99].Line)
}

// flaky is a database whose calls fail as the hooks say, after they were done or before.
type flaky struct {
	store.Store
	add      func(lines []store.Job) (before, after error)
	finalize func()
	complete func() (before, after error)
}

func (f *flaky) AddLines(ctx context.Context, owner, id string, lines []store.Job, read int64, faults []store.BatchFault) error {
	if f.add == nil {
		return f.Store.AddLines(ctx, owner, id, lines, read, faults)
	}
	before, after := f.add(lines)
	if before != nil {
		return before
	}
	if err := f.Store.AddLines(ctx, owner, id, lines, read, faults); err != nil {
		return err
	}
	return after
}

func (f *flaky) CompleteBatch(ctx context.Context, owner, id string, end store.BatchEnd) error {
	if f.complete == nil {
		return f.Store.CompleteBatch(ctx, owner, id, end)
	}
	before, after := f.complete()
	if before != nil {
		return before
	}
	if err := f.Store.CompleteBatch(ctx, owner, id, end); err != nil {
		return err
	}
	return after
}

func (f *flaky) FinalizeBatch(ctx context.Context, owner, id string, at time.Time) error {
	if f.finalize != nil {
		f.finalize()
	}
	return f.Store.FinalizeBatch(ctx, owner, id, at)
}

// offsets notes where files are read from.
type offsets struct {
	Contents
	seen chan int64
}

func (o *offsets) OpenFile(ctx context.Context, id string, offset int64) (*queue.FileReader, error) {
	o.seen <- offset
	return o.Contents.OpenFile(ctx, id, offset)
}

func TestValidationGoesOnWhereItWasBrokenOff(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		content, ids := input(260, true)
		content += chatLine("line-1", "m") + "\n" // known from the first chunk alone
		faulty := r.create("team", content)
		var calls, added atomic.Int64
		db := &flaky{Store: r.db}
		db.add = func(lines []store.Job) (before, after error) {
			added.Add(int64(len(lines)))
			switch calls.Add(1) {
			case 2:
				return nil, errBroken // and yet they are stored
			case 4:
				return errBroken, nil
			}
			return nil, nil
		}
		read := &offsets{r.conn, make(chan int64, 100)}
		change := func(o *Options) { o.Store, o.Contents = db, read }
		_, stop := r.start(change)
		faulty = r.await(faulty, store.BatchFailed)
		stop()
		require.Equal(t, []store.BatchFault{{Code: FaultDuplicate, Param: "custom_id", Line: 261, Message: faulty.Faults[0].Message}}, faulty.Faults)
		close(read.seen)
		last, opened := int64(-1), 0
		for at := range read.seen {
			require.Greater(t, at, last, "it goes on behind what is stored")
			last, opened = at, opened+1
		}
		require.Equal(t, 3, opened)
		require.EqualValues(t, 250+50, added.Load(), "only what was not stored is stored again")

		calls.Store(0)
		b := r.create("team", strings.Join(strings.SplitAfter(content, "\n")[:260], ""))
		r.start(func(o *Options) { o.Store = db })
		r.settled(r.await(b, store.BatchCompleted), ids)
	})
}

func TestAnInputThatGoes(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	b := r.create("team", chatLine("a", "m"))
	require.NoError(t, r.db.DeleteFile(t.Context(), "team", b.InputFile, time.Now()))
	half := r.create("team", chatLine("a", "m"))
	require.NoError(t, r.conn.RemoveFile(t.Context(), half.InputFile))
	revoked := r.create("team", chatLine("a", "m"), func(b *store.Batch) { b.KeyID = "revoked" })
	var large strings.Builder
	for i := range 1000 {
		large.WriteString(chatLine(fmt.Sprint(i), "m") + strings.Repeat(" ", 4000) + "\n")
	}
	middle := r.create("team", large.String())
	db := &flaky{Store: r.db, add: func(lines []store.Job) (before, after error) {
		if lines != nil && lines[0].BatchID == middle.ID {
			require.NoError(t, r.conn.RemoveFile(t.Context(), middle.InputFile))
		}
		return nil, nil
	}}
	r.start(func(o *Options) {
		o.Store = db
		o.Routes = func(ctx context.Context, b *store.Batch) (Router, error) {
			if b.KeyID == "revoked" {
				return nil, inference.Errorf(inference.CodeUnauthenticated, "it was revoked")
			}
			return everywhere(ctx, b)
		}
	})
	for _, b := range []store.Batch{b, half, middle} {
		b = r.await(b, store.BatchFailed)
		require.Len(t, b.Faults, 1)
		require.Equal(t, FaultFileGone, b.Faults[0].Code)
		require.Equal(t, "input_file_id", b.Faults[0].Param)
	}
	require.Equal(t, string(inference.CodeUnauthenticated), r.await(revoked, store.BatchFailed).Faults[0].Code)
}

func TestAfterValidationTheInputMayGo(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, ids := input(10, false)
	r.hold = func(*store.Job) bool { return true }
	b := r.create("team", content)
	e, _ := r.start()
	r.await(b, store.BatchInProgress)
	require.NoError(t, r.db.DeleteFile(t.Context(), "team", b.InputFile, time.Now()))
	require.NoError(t, r.conn.RemoveFile(t.Context(), b.InputFile))
	require.Eventually(t, func() bool { return r.heldNow() == 10 }, soon, 10*time.Millisecond)
	r.release(e)
	r.settled(r.await(b, store.BatchCompleted), ids)
}

func TestCancelWhileValidating(t *testing.T) {
	t.Parallel()
	r := setup(t, openSQLite)
	content, _ := input(160, false)
	b := r.create("team", content)
	reached, goOn := make(chan struct{}), make(chan struct{})
	calls := 0
	db := &flaky{Store: r.db, add: func([]store.Job) (before, after error) {
		if calls++; calls == 2 {
			close(reached)
			<-goOn
		}
		return nil, nil
	}}
	e, _ := r.start(func(o *Options) { o.Store = db })
	<-reached
	_, err := r.db.CancelBatch(t.Context(), "team", b.ID, time.Now())
	require.NoError(t, err)
	e.Look()
	close(goOn)
	b = r.await(b, store.BatchCancelled)
	require.Empty(t, b.OutputFile)
	require.Empty(t, b.ErrorFile, "how far the reading had come is nobody's business")
	require.Empty(t, r.sent)
}
