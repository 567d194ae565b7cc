package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Numbers runs a statement by which the conformance suite looks behind the store, and
// returns the numbers of the rows.
func (s *Store) Numbers(ctx context.Context, sql string, args ...any) ([]int64, error) {
	return query(ctx, s, pgx.RowTo[int64], sql, args...)
}
