package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
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

// JobEpochs implements store.JobWatch.
func (s *Store) JobEpochs(ctx context.Context, ids []string) (map[string]int, error) {
	if err := store.CheckWatched(ids); err != nil {
		return nil, err
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	epochs, err := query(ctx, s.reader, scanEpoch, `SELECT id, epoch FROM jobs
		WHERE id IN (SELECT value FROM json_each($1)) AND finished_at IS NULL`, string(list))
	if err != nil {
		return nil, fmt.Errorf("look up the epochs of %d jobs: %w", len(ids), err)
	}
	return store.ByID(epochs), nil
}

func scanEpoch(rows *sql.Rows) (e store.JobEpoch, err error) {
	err = rows.Scan(&e.ID, &e.Epoch)
	return e, err
}

// JobsByID implements store.JobWatch.
func (s *Store) JobsByID(ctx context.Context, ids []string) ([]store.Job, error) {
	if err := store.CheckWatched(ids); err != nil {
		return nil, err
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	jobs, err := query(ctx, s.reader, scanJob, jobsByID, string(list))
	if err != nil {
		return nil, fmt.Errorf("read %d jobs: %w", len(ids), err)
	}
	return jobs, nil
}

// JobBody implements store.JobWatch.
func (s *Store) JobBody(ctx context.Context, id string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	id = store.CleanText(id)
	var body []byte
	err := s.reader.QueryRowContext(ctx, statement.JobBody, id).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read the body of job %s: %w", id, err)
	}
	return body, nil
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
