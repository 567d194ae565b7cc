package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/store"
	"sluice/store/internal/statement"
)

// EndedJobs implements store.JobWatch.
func (s *Store) EndedJobs(ctx context.Context, ids []string) ([]string, error) {
	if err := store.CheckWatched(ids); err != nil {
		return nil, err
	}
	unfinished, err := query(ctx, s, pgx.RowTo[string], `SELECT id FROM jobs WHERE id = ANY($1) AND finished_at IS NULL`, ids)
	if err != nil {
		return nil, fmt.Errorf("look up %d jobs: %w", len(ids), err)
	}
	return store.Without(ids, unfinished), nil
}

// UnfinishedJobs implements store.JobWatch.
func (s *Store) UnfinishedJobs(ctx context.Context, tenant string, most int) (int, error) {
	counts, err := query(ctx, s, pgx.RowTo[int], statement.UnfinishedJobs, store.CleanText(tenant), most)
	if err != nil {
		return 0, fmt.Errorf("count unfinished jobs: %w", err)
	}
	return counts[0], nil
}

// OldestWaiting implements store.JobWatch.
func (s *Store) OldestWaiting(ctx context.Context) (time.Time, error) {
	oldest, err := query(ctx, s, pgx.RowTo[*time.Time], statement.OldestWaiting)
	if err != nil {
		return time.Time{}, fmt.Errorf("look for the oldest waiting job: %w", err)
	}
	return timeOrZero(oldest[0]), nil
}
