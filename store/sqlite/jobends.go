package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/internal/statement"
)

// jobsByID takes a JSON array of ids.
const jobsByID = `SELECT ` + statement.JobColumns + ` FROM jobs
	WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id`

// FinishJobs implements store.Jobs.
func (s *Store) FinishJobs(ctx context.Context, ends []store.JobEnd) (news []store.Job, err error) {
	ends, err = store.CleanJobEnds(ends)
	if err != nil || len(ends) == 0 {
		return nil, err
	}
	timeout := timeout + store.BodyTime(store.BodiesOf(ends))
	err = s.inTxWithin(ctx, timeout, func(ctx context.Context, tx *sql.Tx) error {
		news, err = endJobs(ctx, tx, ends)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("finish jobs: %w", err)
	}
	return news, nil
}

// CancelJob implements store.Jobs.
func (s *Store) CancelJob(
	ctx context.Context, tenant, id string, at, expires time.Time, row inference.Record,
) (job store.Job, news bool, err error) {
	id = store.CleanText(id)
	ends, err := store.CleanJobEnds([]store.JobEnd{store.CancelledEnd(id, at, expires, row)})
	if err != nil {
		return store.Job{}, false, err
	}
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		found, err := queryTx(ctx, tx, scanJob, statement.JobWithoutBodies, store.CleanText(tenant), id)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return store.ErrNotFound
		}
		if job = found[0]; job.Status.Finished() {
			return nil
		}
		ended, err := endJobs(ctx, tx, ends)
		for _, job = range ended {
			news = true
		}
		return err
	})
	if err != nil {
		return store.Job{}, false, fmt.Errorf("cancel job %s: %w", id, err)
	}
	return job, news, nil
}

// ExpireJobs implements store.Jobs.
func (s *Store) ExpireJobs(
	ctx context.Context, now time.Time, retention time.Duration, limit int,
) (expired []store.Job, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx *sql.Tx) error {
		overdue, err := queryTx(ctx, tx, scanJob, statement.OverdueJobs, stamp(now), store.JobLimit(limit))
		if err != nil {
			return err
		}
		ends := make([]store.JobEnd, len(overdue))
		for i, job := range overdue {
			ends[i] = store.ExpiredEnd(job, now, retention)
		}
		if ends, err = store.CleanJobEnds(ends); err != nil {
			return err
		}
		expired, err = endJobs(ctx, tx, ends)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("expire jobs: %w", err)
	}
	return expired, nil
}

// endJobs gives jobs that are not finished yet their ends and all that goes along with an
// end, and returns them as they are then, without bodies. Every end of a job comes through
// here. The ends are clean and in order.
func endJobs(ctx context.Context, tx *sql.Tx, ends []store.JobEnd) ([]store.Job, error) {
	byID := make(map[string]store.JobEnd, len(ends))
	for _, e := range ends {
		byID[e.Record.JobID] = e
	}
	ids, err := endRows(ctx, tx, ends)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	// Read together, which takes a fifth less than to have each statement return its row.
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	ended, err := queryTx(ctx, tx, scanJob, jobsByID, string(list))
	if err != nil {
		return nil, err
	}
	records := make([]inference.Record, len(ended))
	for i, job := range ended {
		records[i] = byID[job.ID].Row(job)
	}
	if _, err := insertUsage(ctx, tx, records); err != nil {
		return nil, err
	}
	for _, c := range store.CountLines(ended) {
		if _, err := execTx(ctx, tx, statement.CountLines, statement.CountArgs(c)...); err != nil {
			return nil, fmt.Errorf("batch %s: %w", c.BatchID, err)
		}
	}
	_, err = appendEvents(ctx, tx, store.JobEvents(ended))
	return ended, err
}

// endRows writes the ends, and returns the ids of the jobs that were neither finished nor
// missing.
func endRows(ctx context.Context, tx *sql.Tx, ends []store.JobEnd) ([]string, error) {
	rows, ids := make([][]any, len(ends)), []string{}
	for i, e := range ends {
		var err error
		if rows[i], err = statement.EndJobArgs(e, stamp); err != nil {
			return nil, fmt.Errorf("job %s: %w", e.Record.JobID, err)
		}
	}
	changed, err := execEach(ctx, tx, statement.EndJob, rows)
	if err != nil {
		return nil, err
	}
	for i, e := range ends {
		if changed[i] {
			ids = append(ids, e.Record.JobID)
		}
	}
	return ids, nil
}
