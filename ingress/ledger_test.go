package ingress

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// usageStream is where a ledger appends, with faults on demand.
type usageStream struct {
	mu      sync.Mutex
	fails   int           // appends to refuse
	takes   time.Duration // of each append
	rows    []string
	sizes   []int
	safe    []string
	settled map[string][]string
}

func (u *usageStream) append(ctx context.Context, records []inference.Record) error {
	u.mu.Lock()
	takes := u.takes
	u.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(takes):
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.fails > 0 {
		u.fails--
		return errors.New("no room")
	}
	u.sizes = append(u.sizes, len(records))
	for _, r := range records {
		u.rows = append(u.rows, r.JobID)
	}
	return nil
}

func (u *usageStream) settle(worker string, ids []string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range ids {
		if !slices.Contains(u.safe, id) || !slices.Contains(u.rows, id) {
			return fmt.Errorf("%s settled before its row was safe", id)
		}
	}
	u.settled[worker] = append(u.settled[worker], ids...)
	return nil
}

func (u *usageStream) remove(ids []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.safe = append(u.safe, ids...)
}

func testLedger(u *usageStream) *ledger {
	u.settled = make(map[string][]string)
	return &ledger{append: u.append, settle: u.settle, safe: u.remove, log: discard(), wake: make(chan struct{}, 1)}
}

func row(i int, worker string) entry {
	return entry{record: inference.Record{JobID: fmt.Sprint("job-", i)}, worker: worker}
}

func startLedger(t *testing.T, l *ledger) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func ids(n int) []string {
	list := make([]string, 0, n)
	for i := range n {
		list = append(list, fmt.Sprint("job-", i))
	}
	return list
}

func TestLedgerCommitsInGroups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := &usageStream{takes: 10 * time.Millisecond}
		l := testLedger(u)
		stop := startLedger(t, l)
		n := 3 * queue.RecordsPerMessage
		for i := range n {
			l.add(row(i, []string{"w1", "w2", ""}[i%3]))
			if i == 0 {
				synctest.Wait() // the first one is on its way alone
			}
		}
		require.False(t, l.empty())
		time.Sleep(time.Second)
		synctest.Wait()
		require.True(t, l.empty())
		require.Equal(t, ids(n), u.rows)
		require.Equal(t, []int{1, queue.RecordsPerMessage, queue.RecordsPerMessage, queue.RecordsPerMessage - 1}, u.sizes)
		require.ElementsMatch(t, ids(n), u.safe)
		require.Len(t, u.settled["w1"], n/3)
		require.Len(t, u.settled["w2"], n/3)
		require.NotContains(t, u.settled, "")
		stop()
	})
}

// While the stream takes nothing, nothing is lost, nobody is settled with, and the
// order stays.
func TestLedgerOutlastsAStreamThatTakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := &usageStream{fails: 20, takes: ledgerRetry / 2}
		l := testLedger(u)
		stop := startLedger(t, l)
		for i := range 10 {
			l.add(row(i, "w1"))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.Empty(t, u.safe)
		require.Empty(t, u.settled)
		for i := 10; i < 20; i++ {
			l.add(row(i, "w1"))
			time.Sleep(ledgerRetry / 7) // some come while an append is on its way
		}
		time.Sleep(40 * ledgerRetry)
		synctest.Wait()
		require.Equal(t, ids(20), u.rows)
		require.Equal(t, ids(20), u.settled["w1"])
		stop()
	})
}

func TestLedgerWritesTheRestWhenItStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		u := &usageStream{fails: 3}
		l := testLedger(u)
		stop := startLedger(t, l)
		for i := range 5 {
			l.add(row(i, "w1"))
		}
		synctest.Wait()
		stop()
		require.Equal(t, ids(5), u.rows)
		require.Equal(t, ids(5), u.settled["w1"])
	})
	synctest.Test(t, func(t *testing.T) {
		u := &usageStream{takes: time.Hour}
		l := testLedger(u)
		stop := startLedger(t, l)
		l.add(row(0, "w1"))
		before := time.Now()
		stop()
		require.LessOrEqual(t, time.Since(before), 10*time.Second, "a stop is not held up for ever")
		require.Empty(t, u.settled, "the worker accounts for what could not be written")
	})
}
