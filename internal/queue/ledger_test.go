package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// book is a database that can be out of order.
type book struct {
	mu    sync.Mutex
	down  bool
	never string // the job whose record will never be taken
	tries int
	rows  []inference.Record
}

func (b *book) store(_ context.Context, records []inference.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries++
	if b.down {
		return errors.New("database is down")
	}
	if b.never != "" && slices.Contains(jobs(records), b.never) {
		return fmt.Errorf("not as it must be: %w", ErrNeverTaken)
	}
	b.rows = append(b.rows, records...)
	return nil
}

func (b *book) count() (tries, rows int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tries, len(b.rows)
}

func consume(t *testing.T, c *Conn, b *book) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.ConsumeRecords(ctx, b.store)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

func usageLeft(t *testing.T, c *Conn) uint64 {
	t.Helper()
	s, err := c.js.Stream(t.Context(), usageStream)
	require.NoError(t, err)
	return s.CachedInfo().State.Msgs
}

func records(from, n int) []inference.Record {
	rs := make([]inference.Record, n)
	for i := range rs {
		rs[i] = inference.Record{JobID: fmt.Sprintf("job-%d", from+i), Usage: inference.Usage{PromptTokens: 1, Known: true}, Outcome: inference.OutcomeSucceeded}
	}
	return rs
}

func jobs(rs []inference.Record) []string {
	ids := make([]string, len(rs))
	for i, r := range rs {
		ids[i] = r.JobID
	}
	return ids
}

func TestRecordsReachTheDatabaseOnceEach(t *testing.T) {
	t.Parallel()
	c := setup(t)
	b := &book{}
	stop := consume(t, c, b)
	for i := range 20 {
		rs := records(i*10, 10)
		rs[i%10].Tries = fullRecord().Tries
		require.NoError(t, c.AppendRecords(t.Context(), rs))
	}
	eventually(t, func() bool { return usageLeft(t, c) == 0 }, "an empty usage stream")
	stop()
	require.ElementsMatch(t, jobs(records(0, 200)), jobs(b.rows))
	tried := slices.DeleteFunc(b.rows, func(r inference.Record) bool { return r.Tries == nil })
	require.Len(t, tried, 20)
	for _, r := range tried {
		require.Equal(t, fullRecord().Tries, r.Tries)
	}
	tries, _ := b.count()
	require.LessOrEqual(t, tries, 20, "in bulk where they come together")
}

func TestRecordsWaitForADatabaseThatIsDown(t *testing.T) {
	t.Parallel()
	c := setup(t)
	b := &book{down: true}
	consume(t, c, b)
	require.NoError(t, c.AppendRecords(t.Context(), records(0, 5)))
	eventually(t, func() bool { n, _ := b.count(); return n >= 1 }, "a first try")
	require.NoError(t, c.AppendRecords(t.Context(), records(5, 5)))
	require.EqualValues(t, 2, usageLeft(t, c), "nothing leaves the stream")
	b.mu.Lock()
	b.down = false
	b.mu.Unlock()
	eventually(t, func() bool { return usageLeft(t, c) == 0 }, "all rows stored")
	b.mu.Lock()
	defer b.mu.Unlock()
	require.ElementsMatch(t, jobs(records(0, 10)), jobs(b.rows))
}

// A message that nobody can read is put aside, and those around it are neither lost
// nor stored again.
func TestAPoisonedUsageMessageIsBuried(t *testing.T) {
	t.Parallel()
	c := setup(t)
	require.NoError(t, c.AppendRecords(t.Context(), records(0, 1)))
	rawPublish(t, c, newRaw(usageSubject, []byte("{poison")))
	require.NoError(t, c.AppendRecords(t.Context(), records(1, 1)))
	b := &book{}
	stop := consume(t, c, b)
	eventually(t, func() bool { return usageLeft(t, c) == 0 }, "an empty usage stream")
	stop()
	require.ElementsMatch(t, jobs(records(0, 2)), jobs(b.rows))
	dead := deadLetters(t, c)
	require.Len(t, dead, 1)
	require.Equal(t, "{poison", string(dead[0].Data))
	require.Equal(t, errFrame.Error(), dead[0].Header.Get("Sluice-Reason"))
}

// A record that the database will never take is put aside, and keeps none of those
// around it from being stored.
func TestARecordThatIsNeverTakenIsBuried(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ never, reason string }{
		"refused":       {records(7, 1)[0].JobID, "not as it must be"},
		"without a job": {"", "record without a job id"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := setup(t)
			all := records(0, 20)
			all[7].JobID = c.never
			for from := 0; from < len(all); from += 5 {
				require.NoError(t, conn.AppendRecords(t.Context(), all[from:from+5]))
			}
			b := &book{never: c.never}
			stop := consume(t, conn, b)
			eventually(t, func() bool { return usageLeft(t, conn) == 0 }, "an empty usage stream")
			stop()
			require.ElementsMatch(t, jobs(slices.Concat(records(0, 7), records(8, 12))), jobs(b.rows))
			dead := deadLetters(t, conn)
			require.Len(t, dead, 1)
			require.Contains(t, dead[0].Header.Get("Sluice-Reason"), c.reason)
			kept, err := decodeRecords(dead[0].Data)
			require.NoError(t, err)
			require.Equal(t, []string{c.never}, jobs(kept))
		})
	}
}

// With no place to bury it the record stays in the stream, and the others are stored.
func TestARecordThatIsNeverTakenIsNeverDropped(t *testing.T) {
	t.Parallel()
	c := setup(t)
	require.NoError(t, c.js.DeleteStream(t.Context(), deadStream))
	all := records(0, 4)
	require.NoError(t, c.AppendRecords(t.Context(), all[:2]))
	require.NoError(t, c.AppendRecords(t.Context(), all[2:]))
	b := &book{never: all[1].JobID}
	consume(t, c, b)
	eventually(t, func() bool { _, rows := b.count(); return rows == 3 && usageLeft(t, c) == 1 }, "the good rows stored, the bad one's message kept")
}

// An outage in the middle is no verdict: all of the batch comes again.
func TestRecordsWaitForADatabaseThatGoesDownWhileTheyAreSorted(t *testing.T) {
	t.Parallel()
	c := setup(t)
	all := records(0, 4)
	b := &book{never: all[3].JobID}
	var once sync.Once
	l := ledger{conn: c, store: func(ctx context.Context, rs []inference.Record) error {
		err := b.store(ctx, rs)
		if len(rs) == 1 && err != nil {
			once.Do(func() { err = errors.New("database is down") })
		}
		return err
	}}
	refused := make(map[int]error)
	require.ErrorContains(t, l.take(t.Context(), all, 0, refused), "down")
	require.Empty(t, refused)
	require.NoError(t, l.take(t.Context(), all, 0, refused))
	require.Len(t, refused, 1)
	require.ErrorIs(t, refused[3], ErrNeverTaken)
}

// With no place to bury it the message stays where it is.
func TestAPoisonedUsageMessageIsNeverDropped(t *testing.T) {
	t.Parallel()
	c := setup(t)
	require.NoError(t, c.js.DeleteStream(t.Context(), deadStream))
	rawPublish(t, c, newRaw(usageSubject, []byte("{poison")))
	require.NoError(t, c.AppendRecords(t.Context(), records(0, 1)))
	b := &book{}
	consume(t, c, b)
	eventually(t, func() bool { _, rows := b.count(); return rows == 1 && usageLeft(t, c) == 1 }, "the good row stored, the bad message kept")
}

func TestRecordsAreNotAppendedWithoutAStream(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	require.Error(t, c.AppendRecords(t.Context(), records(0, 1)))

	// A consumer that starts before the stream is there begins when it is.
	b := &book{}
	consume(t, c, b)
	require.NoError(t, c.EnsureShared(t.Context()))
	require.NoError(t, c.AppendRecords(t.Context(), records(0, 1)))
	eventually(t, func() bool { _, rows := b.count(); return rows == 1 }, "the row")
}
