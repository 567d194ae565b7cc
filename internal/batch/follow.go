package batch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/store"
)

// follow keeps leases on batches and begins what is to be done about them.
func (e *Engine) follow(ctx context.Context) {
	for ctx.Err() == nil {
		e.pass(ctx)
		wait(ctx, e.lease.every, e.look)
	}
}

// pass renews the leases. If that has not come off for too long, another ingress may have
// the batches already, and all work on them stops.
func (e *Engine) pass(ctx context.Context) {
	now := time.Now()
	limited, cancel := context.WithTimeout(ctx, e.lease.safe-e.lease.every)
	defer cancel()
	batches, err := e.opt.Store.LeaseBatches(limited, e.opt.Owner, now, e.lease.length, ownMost)
	if err != nil {
		e.trouble(ctx, "", fmt.Errorf("lease batches: %w", err))
		e.mu.Lock()
		defer e.mu.Unlock()
		if time.Since(e.renewed) > e.lease.safe {
			e.keep(nil)
		}
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.renewed = now
	delete(e.troubles, "") // the database answers
	e.keep(batches)
	for b := e.next(batches, now); b != nil; b = e.next(batches, now) {
		e.begin(ctx, *b)
	}
}

// keep forgets what is not ours any more and stops work that has become pointless. The
// caller holds mu.
func (e *Engine) keep(batches []store.Batch) {
	ours := make(map[string]*store.Batch, len(batches))
	for i := range batches {
		ours[batches[i].ID] = &batches[i]
	}
	for id, t := range e.running {
		if b := ours[id]; b == nil || b.Status == store.BatchCancelling && t.status != store.BatchCancelling {
			t.cancel()
		}
	}
	for id := range e.feeding {
		if b := ours[id]; b == nil || b.Status != store.BatchInProgress {
			delete(e.feeding, id)
		}
	}
	for id := range e.troubles {
		if ours[id] == nil && id != "" {
			delete(e.troubles, id)
		}
	}
	for _, b := range ours {
		if b.Status == store.BatchInProgress && e.feeding[b.ID] == nil {
			e.feeding[b.ID] = newFeeding(*b)
			e.Wake()
		}
	}
}

// next returns the batch whose work is to begin, if there is room: of the tenant for whom
// the least is being done, the oldest. The caller holds mu.
func (e *Engine) next(batches []store.Batch, now time.Time) *store.Batch {
	var reading, ending int
	of := make(map[string]int)
	for _, t := range e.running {
		of[t.tenant]++
		if t.status == store.BatchValidating {
			reading++
		} else {
			ending++
		}
	}
	var found *store.Batch
	for i := range batches {
		b := &batches[i]
		full := ending >= enders
		if b.Status == store.BatchValidating {
			full = reading >= validators
		}
		waits := b.Status != store.BatchInProgress || !now.Before(b.ExpiresAt)
		if full || !waits || e.running[b.ID] != nil {
			continue
		}
		if found == nil || of[b.Tenant] < of[found.Tenant] {
			found = b
		}
	}
	return found
}

// begin begins the work on a batch. The caller holds mu.
func (e *Engine) begin(ctx context.Context, b store.Batch) {
	ctx, cancel := context.WithCancel(ctx)
	e.running[b.ID] = &task{b.Tenant, b.Status, cancel}
	delete(e.feeding, b.ID)
	e.tasks.Go(func() {
		defer cancel()
		err := e.work(ctx, b)
		e.mu.Lock()
		delete(e.running, b.ID)
		e.mu.Unlock()
		switch {
		case err == nil, errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrLeaseLost), ctx.Err() != nil:
			e.Look() // it stands elsewhere now
		default:
			e.trouble(ctx, b.ID, err)
		}
	})
}

// work brings a batch as far as it can come without waiting for lines.
func (e *Engine) work(ctx context.Context, b store.Batch) error {
	var err error
	switch b.Status {
	case store.BatchValidating:
		return e.validate(ctx, &b)
	case store.BatchCancelling:
		err = e.endLines(ctx, &b, store.JobCancelled)
	case store.BatchInProgress:
		if !time.Now().Before(b.ExpiresAt) {
			err = e.endLines(ctx, &b, store.JobExpired)
		}
	case store.BatchFinalizing:
		return e.finish(ctx, &b)
	default:
		return fmt.Errorf("batch %s: nothing is to be done for one that is %s", b.ID, b.Status)
	}
	if err != nil {
		return err
	}
	b.FinalizingAt = time.Now()
	if err := e.opt.Store.FinalizeBatch(ctx, e.opt.Owner, b.ID, b.FinalizingAt); err != nil {
		return fmt.Errorf("finalize batch %s: %w", b.ID, err)
	}
	return e.finish(ctx, &b)
}
