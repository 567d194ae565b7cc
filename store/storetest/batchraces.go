package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"sluice/internal/webhook"
	"sluice/store"
)

// send says that a line has got its message.
func send(t *testing.T, s store.Store, id string) {
	t.Helper()
	dispatch(t, s, id, 0, noon)
}

var batchRaceTests = map[string]func(*testing.T, Open){
	"of all who want a batch at one time one gets it":                      leaseRace,
	"of all who add the same lines each adds the rest":                     addRace,
	"a batch that everybody works on at one time ends with each line once": courseRace,
	"whoever was told that a batch is being cancelled finds it cancelled":  cancelRace,
}

// together runs the calls at one time, in three processes that share them.
func together(t *testing.T, open Open, calls ...func(context.Context, store.Store) error) error {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	start := make(chan struct{})
	var processes [3]store.Store
	for i := range processes {
		processes[i] = open()
		require.NoError(t, processes[i].Ping(t.Context()))
	}
	for i, call := range calls {
		group.Go(func() error {
			<-start
			return call(ctx, processes[i%len(processes)])
		})
	}
	close(start)
	return group.Wait()
}

func leaseRace(t *testing.T, open Open) {
	const batches, leasers = 30, 4
	s := migrated(t, open)
	for i := range batches {
		freeBatch(t, s, fmt.Sprintf("batch_%02d", i), noon.Add(time.Duration(i)*time.Second))
	}
	taken := make(chan string, leasers*batches)
	var calls []func(context.Context, store.Store) error
	for i := range leasers {
		calls = append(calls, func(ctx context.Context, s store.Store) error {
			me := fmt.Sprintf("ingress-%d", i)
			mine := map[string]bool{}
			for limit := 3; len(taken) < batches && ctx.Err() == nil; limit += 3 {
				got, err := s.LeaseBatches(ctx, me, noon, lease, limit)
				if err != nil {
					return err
				}
				for _, b := range got {
					if !mine[b.ID] {
						mine[b.ID] = true
						taken <- b.ID
					}
				}
			}
			return nil
		})
	}
	require.NoError(t, together(t, open, calls...))
	close(taken)
	seen := map[string]bool{}
	for id := range taken {
		require.False(t, seen[id], "%s has two owners", id)
		seen[id] = true
	}
	require.Len(t, seen, batches)
}

// addRace has two that take themselves for the same owner, as one does whose first call
// has not been answered yet, store the lines of one file under ids of their own.
func addRace(t *testing.T, open Open) {
	const lines, step = 200, 20
	s := migrated(t, open)
	createBatch(t, s, "batch_1")
	add := func(name string) func(context.Context, store.Store) error {
		return func(ctx context.Context, s store.Store) error {
			for from := 1; from <= lines; from += step {
				chunk := newLines("batch_1", from, from+step-1)
				for i := range chunk {
					chunk[i].ID = name + chunk[i].ID
				}
				if err := s.AddLines(ctx, owner, "batch_1", chunk, int64(from), nil); err != nil {
					return err
				}
			}
			return nil
		}
	}
	require.NoError(t, together(t, open, add("a"), add("b"), add("c")))
	require.Equal(t, lines, batch(t, s, "batch_1").Total)
	require.Len(t, lineIDs(t, s, "batch_1"), lines)
}

// courseRace leases, finishes, ends, finalizes and completes the same two batches from all
// sides. While that goes on no count may decrease.
func courseRace(t *testing.T, open Open) {
	const lines = 120
	s := migrated(t, open)
	addWebhook(t, s, newWebhook())
	ids := []string{"batch_1", "batch_2"}
	for _, id := range ids {
		running(t, s, id, lines)
	}
	var calls []func(context.Context, store.Store) error
	for _, backwards := range []bool{false, true} { // ends come in any order
		calls = append(calls,
			func(ctx context.Context, s store.Store) error { return leaseSome(ctx, s, ids, lines) },
			func(ctx context.Context, s store.Store) error { return finishSome(ctx, s, ids, lines, backwards) })
	}
	var won atomic.Int32
	over := make(chan struct{})
	for _, id := range append(ids, ids...) {
		calls = append(calls, func(ctx context.Context, s store.Store) error {
			mine, err := endAndComplete(ctx, s, id)
			if mine && won.Add(1) == int32(len(ids)) {
				close(over)
			}
			return err
		})
	}
	calls = append(calls, func(ctx context.Context, s store.Store) error { return watch(ctx, s, ids, over) })
	require.NoError(t, together(t, open, calls...))
	require.EqualValues(t, len(ids), won.Load())
	requireEvents(t, s, webhook.BatchCompleted+" batch_1", webhook.BatchCompleted+" batch_2")

	for _, id := range ids {
		b := batch(t, s, id)
		require.Equal(t, store.BatchCompleted, b.Status)
		require.Equal(t, lines, b.Completed+b.Failed)
		failed, completed := true, false
		require.Len(t, finishedLines(t, s, id, store.LineFilter{Failed: &completed}), b.Completed)
		require.Len(t, finishedLines(t, s, id, store.LineFilter{Failed: &failed}), b.Failed)
	}
	rows, _ := usage(t, s, store.UsageFilter{Limit: store.MaxPage})
	require.Len(t, rows, len(ids)*lines, "one row a line")
}

// finishSome ends every second line of both batches, each time some of one and some of the
// other.
func finishSome(ctx context.Context, s store.Store, ids []string, lines int, backwards bool) error {
	for from := 1; from <= lines; from += 20 {
		var ends []store.JobEnd
		for line := from; line < from+20; line += 2 {
			for _, id := range ids {
				number := line
				if backwards {
					number = lines + 1 - line
				}
				end := newEnd(newLine(id, number).ID)
				end.Record.Status = 200 + 200*(number%2)
				ends = append(ends, end)
			}
		}
		if _, err := s.FinishJobs(ctx, ends); err != nil {
			return fmt.Errorf("finish: %w", err)
		}
	}
	return nil
}

// leaseSome leases lines again and again, each time when the last lease has run out, and
// the batches with them.
func leaseSome(ctx context.Context, s store.Store, ids []string, lines int) error {
	for round := range lines / 10 {
		now := noon.Add(time.Duration(round) * lease)
		if _, err := s.LeaseBatches(ctx, owner, now, lease, 10); err != nil {
			return fmt.Errorf("lease: %w", err)
		}
		for _, id := range ids {
			if _, err := s.LeaseLines(ctx, id, now, lease, 10); err != nil {
				return fmt.Errorf("lease lines: %w", err)
			}
		}
	}
	return nil
}

// endAndComplete ends what is unfinished and then the batch. It reports whether it was the
// one that did.
func endAndComplete(ctx context.Context, s store.Store, id string) (bool, error) {
	for {
		ended, err := s.EndLines(ctx, id, store.JobExpired, noon, 10)
		if err != nil {
			return false, fmt.Errorf("end: %w", err)
		}
		if len(ended) == 0 {
			break
		}
	}
	err := s.FinalizeBatch(ctx, owner, id, noon)
	if err == nil || errors.Is(err, store.ErrConflict) {
		err = s.CompleteBatch(ctx, owner, id, endOf(store.BatchCompleted))
	}
	if errors.Is(err, store.ErrLeaseLost) {
		return false, nil // another one completed it
	}
	return err == nil, err
}

// watch reads both batches until they are over.
func watch(ctx context.Context, s store.Store, ids []string, over <-chan struct{}) error {
	last := map[string]store.Batch{}
	for {
		select {
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if _, err := s.Backlogs(ctx); err != nil {
			return err
		}
		for _, id := range ids {
			b, err := s.Batch(ctx, "acme", id)
			if err != nil {
				return err
			}
			if was := last[id]; b.Completed < was.Completed || b.Failed < was.Failed || b.Completed+b.Failed > b.Total {
				return fmt.Errorf("counts of %s went from %d, %d to %d, %d", id, was.Completed, was.Failed, b.Completed, b.Failed)
			}
			last[id] = b
		}
	}
}

// cancelRace cancels batches while their owner, who has read them before, brings them to
// their end.
func cancelRace(t *testing.T, open Open) {
	const batches = 40
	s := migrated(t, open)
	var told [batches]store.Batch
	id := func(i int) string { return fmt.Sprintf("batch_%02d", i) }
	for i := range batches {
		createBatch(t, s, id(i))
		require.NoError(t, s.BeginBatch(t.Context(), owner, id(i), noon))
	}
	cancel := func(ctx context.Context, s store.Store) (err error) {
		for i := 0; i < batches && err == nil; i++ {
			told[i], err = s.CancelBatch(ctx, "acme", id(i), noon)
		}
		return err
	}
	complete := func(ctx context.Context, s store.Store) error {
		for i := range batches {
			if err := s.FinalizeBatch(ctx, owner, id(i), noon); err != nil {
				return err
			}
			if err := s.CompleteBatch(ctx, owner, id(i), endOf(store.BatchCompleted)); err != nil {
				return err
			}
		}
		return nil
	}
	require.NoError(t, together(t, open, cancel, complete))
	for i := range batches {
		want := store.BatchCompleted
		if told[i].Status == store.BatchCancelling {
			want = store.BatchCancelled
		}
		require.Equal(t, want, batch(t, s, id(i)).Status)
	}
}
