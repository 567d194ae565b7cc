package statement

import (
	"fmt"
	"time"

	"sluice/store"
)

// BatchColumns are the columns of a batch, in the order in which a BatchRow reads them.
const BatchColumns = `id, tenant, key_id, key_name, endpoint, kind, model, input_file, completion_window,
	output_expires, metadata, status, created_at, expires_at, in_progress_at, finalizing_at, completed_at,
	failed_at, expired_at, cancelling_at, cancelled_at, read_bytes, total, completed, failed, prompt_tokens,
	completion_tokens, cached_tokens, reasoning_tokens, output_file, error_file, faults, rate, owner,
	leased_until, purge_at, caller`

// The conditions of partial indexes, word for word.
const (
	batchUnfinished = `status IN ('validating', 'in_progress', 'finalizing', 'cancelling')`
	undropped       = `status IN ('failed', 'completed', 'expired', 'cancelled') AND NOT dropped`

	lineFinished  = IsLine + ` AND finished_at IS NOT NULL`
	lineCompleted = lineFinished + ` AND response_status BETWEEN 200 AND 299`
	lineFailed    = lineFinished + ` AND response_status NOT BETWEEN 200 AND 299`
)

// The writing and reading of single batches. A database that locks rows adds how to those
// that only read.
const (
	// InsertBatch takes the values of InsertBatchArgs.
	InsertBatch = `INSERT INTO batches (id, tenant, key_id, key_name, endpoint, kind, model, input_file,
		completion_window, output_expires, metadata, status, created_at, expires_at, owner, leased_until, caller)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
		ON CONFLICT (id) DO NOTHING`

	// BatchByID takes tenant and id, AnyBatch the id.
	BatchByID = `SELECT ` + BatchColumns + ` FROM batches WHERE tenant = $1 AND id = $2`
	AnyBatch  = `SELECT ` + BatchColumns + ` FROM batches WHERE id = $1`

	// ReleaseBatches takes the owner, as OwnedBatches does, which a database reads first that
	// locks rows.
	ReleaseBatches = `UPDATE batches SET owner = '', leased_until = NULL WHERE owner = $1 AND ` + batchUnfinished
	OwnedBatches   = `SELECT id FROM batches WHERE owner = $1 AND ` + batchUnfinished + ` ORDER BY id`

	// VoidBatches ends every lease, OwnedByAnybody selects the ids of those batches.
	VoidBatches    = `UPDATE batches SET owner = '', leased_until = NULL WHERE owner <> '' AND ` + batchUnfinished
	OwnedByAnybody = `SELECT id FROM batches WHERE owner <> '' AND ` + batchUnfinished + ` ORDER BY id`

	// FreeBatches selects the ids of unfinished batches that the owner $1 has or may have at
	// $2, $3 at most; FreeBatch is their condition.
	FreeBatches = `SELECT id FROM batches WHERE ` + FreeBatch + ` ORDER BY owner = $1 DESC, created_at, id LIMIT $3`
	FreeBatch   = batchUnfinished + ` AND (owner = $1 OR owner = '' OR leased_until <= $2)`

	// GrowBatch takes id, lines that were added, bytes read, the model and the faults.
	GrowBatch = `UPDATE batches SET total = total + $2, read_bytes = $3, model = $4, faults = $5 WHERE id = $1`

	NoteRate = `UPDATE batches SET rate = $2 WHERE id = $1`

	// Undropped selects a batch that ended before a time and may have lines yet. MarkDropped
	// takes its id.
	Undropped = `SELECT id FROM batches WHERE ` + undropped + `
		AND coalesce(completed_at, failed_at, expired_at, cancelled_at) < $1 ORDER BY id LIMIT 1`
	MarkDropped = `UPDATE batches SET dropped = true WHERE id = $1`

	// OutdatedBatches takes the time and a limit.
	OutdatedBatches = `SELECT id FROM batches WHERE dropped AND purge_at <= $1 ORDER BY purge_at LIMIT $2`
)

// MoveBatch gives the batch $1 the status at the time $2. Every status but the first has a
// time of its own.
func MoveBatch(to store.BatchStatus) string {
	return fmt.Sprintf(`UPDATE batches SET status = '%[1]s', %[1]s_at = $2 WHERE id = $1`, to)
}

// EndBatch is MoveBatch for a status that is an end. It also takes the names of the two
// files and until when the batch is kept.
func EndBatch(to store.BatchStatus) string {
	return fmt.Sprintf(`UPDATE batches SET status = '%[1]s', %[1]s_at = $2, output_file = $3, error_file = $4,
		purge_at = $5, owner = '', leased_until = NULL WHERE id = $1`, to)
}

// SelectBatches reads the batches that the clean filter selects. stamp encodes a time.
func SelectBatches(f store.BatchFilter, stamp func(time.Time) any) (query string, args []any) {
	args = []any{f.Tenant, f.Limit}
	behind := ""
	if !f.After.IsZero() {
		behind = ` AND (created_at, id) < ($3, $4)`
		args = append(args, stamp(f.After.CreatedAt), f.After.JobID)
	}
	return `SELECT ` + BatchColumns + ` FROM batches WHERE tenant = $1` + behind +
		` ORDER BY created_at DESC, id DESC LIMIT $2`, args
}

// The lines of a batch.
const (
	// LinesFrom selects which of a batch's lines are there from one line on.
	LinesFrom = `SELECT line FROM jobs WHERE batch_id = $1 AND ` + IsLine + ` AND line >= $2`

	// LineIDs takes the batch, the line to continue behind and a limit.
	LineIDs = `SELECT line, custom_id FROM jobs WHERE batch_id = $1 AND ` + IsLine + ` AND line > $2
		ORDER BY line LIMIT $3`

	// LeasableLines is the condition of lines of the batch $3 that may be leased at $1. A
	// batch that is not in progress has none.
	LeasableLines = `batch_id = $3 AND ` + LineWaiting + ` AND ` + MayLease + `
		AND EXISTS (SELECT 1 FROM batches WHERE batches.id = $3 AND batches.status = 'in_progress')`

	// UnfinishedLines selects the ids of unfinished lines of the batch $1, $2 at most, by the
	// two indexes that such lines are in: one of them has each.
	UnfinishedLines = `SELECT id FROM (SELECT id FROM jobs WHERE batch_id = $1 AND ` + LineWaiting + ` ORDER BY line LIMIT $2) AS waiting
		UNION SELECT id FROM (SELECT id FROM jobs WHERE batch_id = $1 AND ` + LineOut + ` ORDER BY line LIMIT $2) AS out
		LIMIT $2`

	// StillUnfinished is the condition of a job that may be given its end.
	StillUnfinished = unfinished

	// LinesOf selects the ids of lines of the batch $1, $2 at most.
	LinesOf = `SELECT id FROM jobs WHERE batch_id = $1 AND ` + IsLine + ` LIMIT $2`

	// Backlogs takes the time and a limit. Lines that wait may be very many and are not
	// counted: they are what the others leave over.
	Backlogs = `SELECT id, tenant, total - completed - failed - away, away, created_at, expires_at
		FROM (SELECT id, tenant, total, completed, failed, created_at, expires_at,
			(SELECT count(*) FROM jobs WHERE batch_id = batches.id AND ` + LineOut + `
				AND (dispatched_at IS NOT NULL OR leased_until > $1)) AS away
			FROM batches WHERE ` + batchUnfinished + ` AND status = 'in_progress'
			ORDER BY created_at, id LIMIT $2) AS running ORDER BY created_at, id`

	// AnsweredColumns are the columns of a job without the body of its request.
	AnsweredColumns = JobColumns + `, NULL, response`
)

// FinishedLines is the condition of finished lines of the batch $1 behind the line $2.
func FinishedLines(f store.LineFilter) string {
	condition := lineFinished
	switch {
	case f.Failed == nil:
	case *f.Failed:
		condition = lineFailed
	default:
		condition = lineCompleted
	}
	return `batch_id = $1 AND line > $2 AND ` + condition
}
