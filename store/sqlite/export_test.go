package sqlite

import (
	"context"
	"database/sql"
)

// Durability returns the writer's settings.
func (s *Store) Durability(ctx context.Context) (journal string, synchronous int, err error) {
	if err := s.writer.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return "", 0, err
	}
	err = s.writer.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&synchronous)
	return journal, synchronous, err
}

// Numbers runs a statement by which the conformance suite looks behind the store, and
// returns the numbers of the rows.
func (s *Store) Numbers(ctx context.Context, text string, args ...any) ([]int64, error) {
	return query(ctx, s.writer, func(rows *sql.Rows) (n int64, err error) { return n, rows.Scan(&n) }, text, args...)
}
