package statement

import (
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/store"
)

// What is said of the messages of single jobs.
const (
	// MarkDispatched takes the values of DispatchArgs. It finds the job as long as its epoch
	// is of the message's family, and changes where it is only if it is the message's own.
	MarkDispatched = `UPDATE jobs SET leased_until = NULL, held_by = $7,
		provider = CASE WHEN epoch = $2 THEN $4 ELSE provider END,
		seq = CASE WHEN epoch = $2 THEN $5 ELSE seq END,
		dispatched_at = CASE WHEN epoch = $2 THEN $6 ELSE dispatched_at END
		WHERE id = $1 AND epoch >= $2 AND epoch < $3 AND ` + unfinished

	// ClaimJob takes the values of ClaimArgs. A worker that passes a job on gives it an
	// epoch a little higher than the row has.
	ClaimJob = `UPDATE jobs SET status = 'in_progress', started_at = coalesce(started_at, $4)
		WHERE id = $1 AND epoch <= $2 AND epoch >= $3 AND ` + unfinished + ` RETURNING attempts, tries`

	// MoveJob takes the values of MoveArgs.
	MoveJob = `UPDATE jobs SET epoch = $2, provider = $3, seq = $4, attempts = $5, tries = $6,
		dispatched_at = $7, leased_until = NULL
		WHERE id = $1 AND epoch <= $2 AND ` + unfinished

	// ConfirmJob takes id and time.
	ConfirmJob = `UPDATE jobs SET dispatched_at = $2 WHERE id = $1 AND dispatched_at < $2 AND ` + unfinished

	// RequeueJob takes the values of RequeueArgs.
	RequeueJob = `UPDATE jobs SET epoch = $3, not_before = $4, attempts = $5, tries = $6,
		dispatched_at = NULL, leased_until = NULL, held_by = ''
		WHERE id = $1 AND epoch <= $2 AND ` + unfinished

	// DispatchedJobs takes the time and a limit.
	DispatchedJobs = `SELECT ` + JobColumns + ` FROM jobs
		WHERE dispatched_at IS NOT NULL AND dispatched_at < $1 AND ` + unfinished + `
		ORDER BY dispatched_at, id LIMIT $2`
)

// DispatchArgs returns the values of a clean Dispatch for MarkDispatched.
func DispatchArgs(d store.Dispatch, at any) []any {
	return []any{d.ID, int64(d.Epoch), int64(store.NextEpoch(d.Epoch)), d.Provider, int64(d.Seq), at, d.HeldBy}
}

// ClaimArgs returns the values for ClaimJob.
func ClaimArgs(id string, epoch int, at any) []any {
	return []any{store.CleanText(id), int64(epoch), int64(store.NextEpoch(epoch) - inference.EpochStride), at}
}

// MoveArgs returns the values for MoveJob.
func MoveArgs(
	id string, epoch int, provider string, seq uint64, attempts int, tries []inference.Try, at any,
) ([]any, error) {
	text, err := EncodeTries(store.CleanTries(tries))
	if err != nil {
		return nil, err
	}
	return []any{store.CleanText(id), int64(epoch), store.CleanText(provider), int64(seq), int64(attempts), text, at}, nil
}

// RequeueArgs returns the values of a clean Requeue for RequeueJob.
func RequeueArgs(r store.Requeue, stamp func(time.Time) any) ([]any, error) {
	tries, err := EncodeTries(r.Tries)
	if err != nil {
		return nil, fmt.Errorf("job %s: %w", r.ID, err)
	}
	next := store.NextEpoch(r.Epoch)
	if r.Unsent {
		next = r.Epoch
	}
	return []any{r.ID, int64(r.Epoch), int64(next), stamp(r.NotBefore), int64(r.Attempts), tries}, nil
}

// CountArgs returns the values for CountLines.
func CountArgs(c store.LineCount) []any {
	return []any{
		c.BatchID, int64(c.Completed), int64(c.Failed), c.Usage.PromptTokens,
		c.Usage.CompletionTokens, c.Usage.CachedTokens, c.Usage.ReasoningTokens,
	}
}
