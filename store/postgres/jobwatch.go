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

// JobEpochs implements store.JobWatch.
func (s *Store) JobEpochs(ctx context.Context, ids []string) (map[string]int, error) {
	if err := store.CheckWatched(ids); err != nil {
		return nil, err
	}
	epochs, err := query(ctx, s, pgx.RowToStructByPos[store.JobEpoch], `SELECT id, epoch FROM jobs WHERE id = ANY($1) AND finished_at IS NULL`, ids)
	if err != nil {
		return nil, fmt.Errorf("look up the epochs of %d jobs: %w", len(ids), err)
	}
	return store.ByID(epochs), nil
}

// JobsByID implements store.JobWatch.
func (s *Store) JobsByID(ctx context.Context, ids []string) ([]store.Job, error) {
	if err := store.CheckWatched(ids); err != nil {
		return nil, err
	}
	jobs, err := query(ctx, s, scanJob, `SELECT `+statement.JobColumns+` FROM jobs WHERE id = ANY($1) ORDER BY id`, ids)
	if err != nil {
		return nil, fmt.Errorf("read %d jobs: %w", len(ids), err)
	}
	return jobs, nil
}

// JobBody implements store.JobWatch.
func (s *Store) JobBody(ctx context.Context, id string) ([]byte, error) {
	id = store.CleanText(id)
	bodies, err := query(ctx, s, pgx.RowTo[[]byte], statement.JobBody, id)
	if err == nil && len(bodies) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read the body of job %s: %w", id, err)
	}
	return bodies[0], nil
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
