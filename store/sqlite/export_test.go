package sqlite

import "context"

// Durability returns the writer's settings.
func (s *Store) Durability(ctx context.Context) (journal string, synchronous int, err error) {
	if err := s.writer.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return "", 0, err
	}
	err = s.writer.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&synchronous)
	return journal, synchronous, err
}
