package batch

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/store"
)

// A batch whose lines no limit lets in waits, and no more lines are leased for it
// meanwhile; those of another batch go on.
func TestABatchThatALimitHoldsWaits(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, r *rig) {
		t.Helper()
		var held atomic.Bool
		tried := make(chan time.Time, 1000)
		held.Store(true)
		var engine *Engine
		publish := func(ctx context.Context, lines []store.Job) error {
			if !held.Load() || lines[0].Tenant != "acme" {
				return r.publish(ctx, engine, lines)
			}
			now := time.Now()
			select {
			case tried <- now:
			default:
			}
			until := now.Add(time.Second)
			var back []store.Requeue
			for _, l := range lines {
				back = append(back, store.Requeue{ID: l.ID, Epoch: l.Epoch, NotBefore: until, Unsent: true})
			}
			if _, err := r.db.Requeue(ctx, back); err != nil {
				return err
			}
			return &Held{Until: until}
		}
		engine, _ = r.start(func(o *Options) { o.Publish = publish })
		content, _ := input(300, false)
		limited := r.create("acme", content)
		r.await(r.create("other", content), store.BatchCompleted)
		first := <-tried
		require.GreaterOrEqual(t, (<-tried).Sub(first), time.Second, "the batch waits")
		held.Store(false)
		r.await(limited, store.BatchCompleted)
	})
}
