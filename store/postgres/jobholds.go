package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"sluice/store"
	"sluice/store/internal/statement"
)

// adoptJobs passes over jobs that somebody changes at the moment: they are there next time.
const adoptJobs = `WITH chosen AS (` + statement.HeldJobs + ` FOR UPDATE SKIP LOCKED)
	UPDATE jobs SET ` + statement.AdoptJob + ` WHERE id = ANY (ARRAY(SELECT id FROM chosen)) RETURNING ` + statement.JobColumns

// HeldBy implements store.JobHolds.
func (s *Store) HeldBy(ctx context.Context) ([]string, error) {
	ids, err := query(ctx, s, pgx.RowTo[string], statement.HeldBy)
	if err != nil {
		return nil, fmt.Errorf("list who holds for jobs: %w", err)
	}
	return ids, nil
}

// AdoptedJobs implements store.JobHolds.
func (s *Store) AdoptedJobs(ctx context.Context, from string, ids []string) ([]string, error) {
	if err := store.CheckWatched(ids); err != nil {
		return nil, err
	}
	adopted, err := query(ctx, s, pgx.RowTo[string], `SELECT id FROM jobs
		WHERE id = ANY($1) AND held_by <> '' AND held_by <> $2 AND `+statement.Held+` ORDER BY id`, ids, store.CleanText(from))
	if err != nil {
		return nil, fmt.Errorf("look who holds for %d jobs: %w", len(ids), err)
	}
	return adopted, nil
}

// AdoptJobs implements store.JobHolds.
func (s *Store) AdoptJobs(ctx context.Context, from, by string, limit int) ([]store.Job, error) {
	from, by = store.CleanText(from), store.CleanText(by)
	jobs, err := query(ctx, s, scanJob, adoptJobs, from, by, store.MarkLimit(limit))
	if err != nil {
		return nil, fmt.Errorf("adopt jobs of %s: %w", from, err)
	}
	slices.SortFunc(jobs, func(a, b store.Job) int { return cmp.Compare(a.ID, b.ID) })
	return jobs, nil
}
