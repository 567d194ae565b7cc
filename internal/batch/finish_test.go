package batch

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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
	_, err := r.conn.OpenFile(t.Context(), FileID(bad.ID, "output"), 0)
	require.ErrorIs(t, err, queue.ErrNoFile)
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
	_, stop := r.start(func(o *Options) {
		o.Store = &flaky{Store: r.db, complete: func() error { return errBroken }}
	})
	b = r.await(b, store.BatchFinalizing)
	stop()
	// Every line was done, and only then the time was over.
	b.ExpiresAt = b.FinalizingAt.Add(-time.Second)
	owner := r.opt.Owner
	leased, err := r.db.LeaseBatches(t.Context(), owner, time.Now(), time.Minute, 1)
	require.NoError(t, err)
	require.Len(t, leased, 1)
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

func TestACrashWhileTheFilesAreWritten(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		content, ids := input(50, true)
		b := r.create("team", content)
		var files, completes atomic.Int64
		db := &flaky{Store: r.db}
		db.file = func() error {
			if n := files.Add(1); n == 1 || n == 3 {
				return errBroken // the content is there, its row is not
			}
			return nil
		}
		db.complete = func() error {
			if completes.Add(1) == 1 {
				return errBroken
			}
			return nil
		}
		r.start(func(o *Options) { o.Store, o.Files = db, db })
		b = r.await(b, store.BatchCompleted)
		r.settled(b, ids)
		require.EqualValues(t, 4, files.Load())
		entries, err := r.conn.NewEntryReader().Next(t.Context())
		require.NoError(t, err)
		require.Len(t, entries, 3, "the input and the two files, no stray")
	})
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
