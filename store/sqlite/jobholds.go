package sqlite

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"sluice/store"
	"sluice/store/internal/statement"
)

// adoptedJobs takes who is not meant, and a JSON array of ids. The column stands behind the
// bodies: it is read in the index alone, where each job is looked for among those of each
// other ingress.
const adoptedJobs = `WITH RECURSIVE ` + statement.JobHolders + `
	SELECT id FROM jobs INDEXED BY jobs_held
	WHERE held_by IN (SELECT held_by FROM holders WHERE held_by <> $1)
		AND id IN (SELECT value FROM json_each($2)) AND ` + statement.Held + ` ORDER BY id`

// HeldBy implements store.JobHolds.
func (s *Store) HeldBy(ctx context.Context) ([]string, error) {
	ids, err := query(ctx, s.reader, scanID, statement.HeldBy)
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
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	adopted, err := query(ctx, s.reader, scanID, adoptedJobs, store.CleanText(from), string(list))
	if err != nil {
		return nil, fmt.Errorf("look who holds for %d jobs: %w", len(ids), err)
	}
	return adopted, nil
}

// AdoptJobs implements store.JobHolds.
func (s *Store) AdoptJobs(ctx context.Context, from, by string, limit int) ([]store.Job, error) {
	from, by = store.CleanText(from), store.CleanText(by)
	jobs, err := query(ctx, s.writer, scanJob, `UPDATE jobs SET `+statement.AdoptJob+`
		WHERE id IN (`+statement.HeldJobs+`) RETURNING `+statement.JobColumns, from, by, store.MarkLimit(limit))
	if err != nil {
		return nil, fmt.Errorf("adopt jobs of %s: %w", from, err)
	}
	slices.SortFunc(jobs, func(a, b store.Job) int { return cmp.Compare(a.ID, b.ID) })
	return jobs, nil
}
