package ingress

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// entry is a ledger row that is not yet safe, and the worker that waits for it.
type entry struct {
	record inference.Record
	worker string // empty when no worker is to be told
}

// ledger brings rows to the usage stream, as many at a time as came while the last
// ones were on their way, and then settles with the workers. It never refuses a row:
// there are no more of them than flights.
type ledger struct {
	append func(ctx context.Context, records []inference.Record) error
	settle func(worker string, jobIDs []string) error
	safe   func(jobIDs []string) // the rows of these jobs are in the stream
	log    *slog.Logger

	wake    chan struct{}
	mu      sync.Mutex
	waiting []entry
}

func (l *ledger) add(e entry) {
	l.mu.Lock()
	l.waiting = append(l.waiting, e)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ledgerRetry is the pause after a failed append.
const ledgerRetry = 200 * time.Millisecond

// run writes rows until ctx ends, and after that what is left, if the stream takes it
// at once.
func (l *ledger) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			for l.write(last) && last.Err() == nil {
			}
			return
		case <-l.wake:
		}
		for l.write(ctx) {
		}
	}
}

// write appends one message of rows and reports whether to go on at once.
func (l *ledger) write(ctx context.Context) bool {
	l.mu.Lock()
	n := min(len(l.waiting), queue.RecordsPerMessage)
	batch := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	if len(l.waiting) == 0 {
		l.waiting = nil
	}
	l.mu.Unlock()
	if n == 0 {
		return false
	}
	records := make([]inference.Record, n)
	for i, e := range batch {
		records[i] = e.record
	}
	try, cancel := context.WithTimeout(ctx, 5*time.Second)
	err := l.append(try, records)
	cancel()
	if err != nil {
		l.log.Warn("usage records wait for the queue", "records", n, "error", err)
		l.putBack(batch)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(ledgerRetry):
		}
		return true
	}
	l.told(batch)
	return true
}

func (l *ledger) putBack(batch []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(batch, l.waiting...)
}

// told lets go of the flights and tells their workers.
func (l *ledger) told(batch []entry) {
	ids := make([]string, len(batch))
	byWorker := make(map[string][]string)
	for i, e := range batch {
		ids[i] = e.record.JobID
		if e.worker != "" {
			byWorker[e.worker] = append(byWorker[e.worker], e.record.JobID)
		}
	}
	l.safe(ids)
	for worker, jobs := range byWorker {
		if err := l.settle(worker, jobs); err != nil {
			l.log.Warn("worker not told", "worker", worker, "error", err)
		}
	}
}

// ledgerMost bounds the rows that wait while requests are answered without a job, of which
// nothing else bounds the number.
const ledgerMost = 100_000

// crowded reports whether so many rows wait that no more are to be made.
func (l *ledger) crowded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) >= ledgerMost
}

// empty reports whether all rows are safe.
func (l *ledger) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) == 0
}
