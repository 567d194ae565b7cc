package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"sluice/store"
	"sluice/store/internal/statement"
)

// EndedJobs implements store.JobWatch.
func (s *Store) EndedJobs(ctx context.Context, ids []string) ([]string, error) {
	if err := store.CheckWatched(ids); err != nil {
		return nil, err
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	unfinished, err := query(ctx, s.reader, scanID, `SELECT id FROM jobs
		WHERE id IN (SELECT value FROM json_each($1)) AND finished_at IS NULL`, string(list))
	if err != nil {
		return nil, fmt.Errorf("look up %d jobs: %w", len(ids), err)
	}
	return store.Without(ids, unfinished), nil
}

// UnfinishedJobs implements store.JobWatch.
func (s *Store) UnfinishedJobs(ctx context.Context, tenant string, most int) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.reader.QueryRowContext(ctx, statement.UnfinishedJobs, store.CleanText(tenant), most).Scan(&n); err != nil {
		return 0, fmt.Errorf("count unfinished jobs: %w", err)
	}
	return n, nil
}

// OldestWaiting implements store.JobWatch.
func (s *Store) OldestWaiting(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var at *int64
	if err := s.reader.QueryRowContext(ctx, statement.OldestWaiting).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("look for the oldest waiting job: %w", err)
	}
	return timeOrZero(at), nil
}
