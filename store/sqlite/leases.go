package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"sluice/store/internal/statement"
)

// VoidLeases implements store.Store.
func (s *Store) VoidLeases(ctx context.Context, now time.Time) error {
	err := s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := execTx(ctx, tx, `UPDATE jobs SET `+statement.VoidJob+` WHERE id IN (`+statement.LeasedJobs+`)`, stamp(now)); err != nil {
			return err
		}
		_, err := execTx(ctx, tx, statement.VoidBatches)
		return err
	})
	if err != nil {
		return fmt.Errorf("void leases: %w", err)
	}
	return nil
}
