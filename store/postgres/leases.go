package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/store/internal/statement"
)

// voidJobs takes the time. What it chose may have got its message or its end by the time it
// is locked.
const voidJobs = `WITH held AS (
		SELECT id AS held_id FROM jobs WHERE id = ANY (ARRAY(` + statement.LeasedJobs + `))
			AND dispatched_at IS NULL AND leased_until > $1 ORDER BY id FOR UPDATE)
	UPDATE jobs SET ` + statement.VoidJob + ` FROM held WHERE id = held_id`

// VoidLeases implements store.Store. It locks jobs first and then batches, each in the order
// of their ids, as whoever ends lines does.
func (s *Store) VoidLeases(ctx context.Context, now time.Time) error {
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, voidJobs, stamp(now)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, statement.OwnedByAnybody+` FOR UPDATE`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, statement.VoidBatches)
		return err
	})
	if err != nil {
		return fmt.Errorf("void leases: %w", err)
	}
	return nil
}
