package batch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/store"
)

// Rhythm and bounds of the feeding.
const (
	feedBusy  = 100 * time.Millisecond // while lines wait
	feedQuiet = 500 * time.Millisecond // while lines are only waited for
	feedIdle  = 2 * time.Second
	feedLeast = 20 * time.Millisecond // between two passes, so that few lines at once cost no pass each
	feedMost  = 20 * time.Second      // for one batch in one pass
	lineLease = 2 * time.Minute
	linesStep = 100
	noteEvery = 5 * time.Second
)

// feeding is what is known of a batch in progress.
type feeding struct {
	batch store.Batch
	rate  Rate
	noted time.Time
	held  time.Time // until when no line of it is let in
}

// Held is Publish's word that a limit let none of the lines in, and when the first of them
// may be tried again. It is no trouble: the batch waits.
type Held struct{ Until time.Time }

func (h *Held) Error() string { return "a limit is reached" }

// heldMost is how long a batch waits at most for a limit before it tries its next lines:
// they may be for another model.
const heldMost = 5 * time.Second

func newFeeding(b store.Batch) *feeding {
	return &feeding{batch: b, rate: NewRate(b.Rate, b.Completed+b.Failed, time.Now()), noted: time.Now()}
}

// feed lets lines into the queue until ctx ends.
func (e *Engine) feed(ctx context.Context) {
	for ctx.Err() == nil {
		begun := time.Now()
		pause, err := e.feedPass(ctx, begun)
		if err != nil {
			e.trouble(ctx, "", err)
			pause = feedIdle
		}
		wait(ctx, pause, e.wake)
		if rest := feedLeast - time.Since(begun); rest > 0 {
			wait(ctx, rest, nil)
		}
	}
}

// feedPass sends what may be sent now, and says how long nothing more is to be done.
func (e *Engine) feedPass(ctx context.Context, now time.Time) (time.Duration, error) {
	ours := e.fed()
	if len(ours) == 0 {
		return feedIdle, nil
	}
	backlogs, err := e.opt.Store.Backlogs(ctx)
	if err != nil {
		return 0, fmt.Errorf("look at backlogs: %w", err)
	}
	of := make(map[string]store.Backlog, len(backlogs))
	for _, b := range backlogs {
		of[b.BatchID] = b
	}
	windows := Windows(backlogs, e.opt.Window, now)
	pause := feedQuiet
	for _, f := range ours {
		backlog := of[f.batch.ID]
		left := backlog.Waiting + backlog.Out
		e.note(ctx, f, f.batch.Total-left, now)
		if left == 0 || !now.Before(f.batch.ExpiresAt) {
			e.close(ctx, f.batch)
			continue
		}
		if now.Before(f.held) {
			continue
		}
		if backlog.Waiting > 0 {
			pause = feedBusy
		}
		err := e.send(ctx, f.batch.ID, windows[f.batch.ID])
		if held, ok := errors.AsType[*Held](err); ok {
			f.held = now.Add(min(held.Until.Sub(now), heldMost))
			continue
		}
		if err != nil {
			e.trouble(ctx, f.batch.ID, err)
		}
	}
	return pause, nil
}

// fed returns the batches of ours that are in progress.
func (e *Engine) fed() []*feeding {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.renewed) > e.lease.safe {
		return nil // they may be another's by now
	}
	ours := make([]*feeding, 0, len(e.feeding))
	for _, f := range e.feeding {
		ours = append(ours, f)
	}
	return ours
}

// send lets up to n lines of the batch into the queue.
func (e *Engine) send(ctx context.Context, id string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, feedMost)
	defer cancel()
	for n > 0 && e.opt.Ready() {
		lines, err := e.opt.Store.LeaseLines(ctx, id, time.Now(), lineLease, min(n, linesStep))
		if err != nil {
			return fmt.Errorf("lease lines: %w", err)
		}
		if len(lines) == 0 {
			return nil
		}
		if err := e.opt.Publish(ctx, lines); err != nil {
			return fmt.Errorf("publish lines: %w", err)
		}
		n -= len(lines)
	}
	return nil
}

// close has a batch brought to its end. When there is no room for that work it is met
// again in the next pass.
func (e *Engine) close(ctx context.Context, b store.Batch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ending := 0
	for _, t := range e.running {
		if t.status != store.BatchValidating {
			ending++
		}
	}
	if ending < enders && e.running[b.ID] == nil && e.feeding[b.ID] != nil {
		e.begin(ctx, b)
	}
}

// note reckons how fast the batch gets on, and stores it now and then.
func (e *Engine) note(ctx context.Context, f *feeding, done int, now time.Time) {
	f.rate.Add(done, now)
	if now.Sub(f.noted) < noteEvery {
		return
	}
	f.noted = now
	if err := e.opt.Store.NoteRate(ctx, e.opt.Owner, f.batch.ID, f.rate.PerSecond()); err != nil {
		e.trouble(ctx, f.batch.ID, fmt.Errorf("note rate: %w", err))
	}
}
