package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/store"
)

const (
	usageColumns = `job_id, request_id, kind, tenant, key_id, model_asked, provider, model_served,
	stream, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated,
	attempts, outcome, status, error_code, created_at, queue_us, first_token_us, total_us`
	usageColumnCount = 22

	// rowsPerInsert is how many rows one statement inserts. A batch of 500 takes 7.5 ms
	// so, 13.6 ms row by row, and no less with more rows in a statement.
	rowsPerInsert = 25
)

// AppendUsage implements store.Ledger.
func (s *Store) AppendUsage(ctx context.Context, records []inference.Record) (int, error) {
	batch, err := store.CleanBatch(records)
	if err != nil {
		return 0, err
	}
	if len(batch) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("append usage: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	inserted, err := insertUsage(ctx, tx, batch)
	if err != nil {
		return 0, fmt.Errorf("append usage: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return 0, fmt.Errorf("append usage: %w", err)
	}
	return inserted, nil
}

// insertUsage inserts the batch by statements of rowsPerInsert rows, and what is
// left over by one that is as long as the rest.
func insertUsage(ctx context.Context, tx *sql.Tx, batch []inference.Record) (inserted int, err error) {
	full := len(batch) / rowsPerInsert * rowsPerInsert
	if full > 0 {
		n, err := insertRows(ctx, tx, batch[:full], rowsPerInsert)
		if err != nil {
			return 0, err
		}
		inserted += n
	}
	if rest := batch[full:]; len(rest) > 0 {
		n, err := insertRows(ctx, tx, rest, len(rest))
		if err != nil {
			return 0, err
		}
		inserted += n
	}
	return inserted, nil
}

// insertRows inserts a batch whose length is a multiple of perStatement.
func insertRows(
	ctx context.Context, tx *sql.Tx, batch []inference.Record, perStatement int,
) (inserted int, err error) {
	stmt, err := tx.PrepareContext(ctx, insertStatement(perStatement))
	if err != nil {
		return 0, err
	}
	defer func() { _ = stmt.Close() }() // the transaction's end closes it in any case
	args := make([]any, 0, perStatement*usageColumnCount)
	for len(batch) > 0 {
		args = args[:0]
		for i := range batch[:perStatement] {
			args = appendArgs(args, &batch[i])
		}
		result, err := stmt.ExecContext(ctx, args...)
		if err != nil {
			return 0, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return 0, err
		}
		inserted += int(n)
		batch = batch[perStatement:]
	}
	return inserted, nil
}

// insertStatement returns the statement that inserts so many rows.
func insertStatement(rows int) string {
	row := "(" + strings.Repeat("?, ", usageColumnCount-1) + "?)"
	return "INSERT INTO usage_records (" + usageColumns + ") VALUES " +
		strings.Repeat(row+", ", rows-1) + row + " ON CONFLICT (job_id) DO NOTHING"
}

// appendArgs appends a record's values in the order of usageColumns.
func appendArgs(args []any, r *inference.Record) []any {
	tokens := func(n int64) any {
		if !r.Usage.Known {
			return nil
		}
		return n
	}
	var firstToken any
	if us := r.FirstToken.Microseconds(); us != 0 {
		firstToken = us
	}
	return append(args,
		r.JobID, r.RequestID, string(r.Kind), r.Tenant, r.KeyID, r.ModelAsked, r.Provider, r.ModelServed,
		r.Stream, tokens(r.Usage.PromptTokens), tokens(r.Usage.CompletionTokens),
		tokens(r.Usage.CachedTokens), tokens(r.Usage.ReasoningTokens), r.Usage.Estimated,
		int64(r.Attempts), string(r.Outcome), int64(r.Status), string(r.ErrorCode),
		micros(r.CreatedAt), r.Queue.Microseconds(), firstToken, r.Total.Microseconds())
}

// Usage implements store.Ledger.
func (s *Store) Usage(ctx context.Context, filter store.UsageFilter) ([]inference.Record, error) {
	statement, args := usageQuery(filter.Clean())
	records, err := query(ctx, s.reader, scanRecord, statement, args...)
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return records, nil
}

// usageQuery names only the conditions that the filter has, so that SQLite finds
// the index that serves them.
func usageQuery(f store.UsageFilter) (statement string, args []any) {
	conditions := []string{"true"}
	where := func(condition string, values ...any) {
		conditions = append(conditions, condition)
		args = append(args, values...)
	}
	if !f.Since.IsZero() {
		where("created_at >= ?", micros(f.Since))
	}
	if !f.Until.IsZero() {
		where("created_at < ?", micros(f.Until))
	}
	if f.Tenant != "" {
		where("tenant = ?", f.Tenant)
	}
	if f.KeyID != "" {
		where("key_id = ?", f.KeyID)
	}
	if f.RequestID != "" {
		where("request_id = ?", f.RequestID)
	}
	if f.JobID != "" {
		where("job_id = ?", f.JobID)
	}
	if !f.After.IsZero() {
		where("(created_at, job_id) < (?, ?)", micros(f.After.CreatedAt), f.After.JobID)
	}
	args = append(args, f.Limit)
	return "SELECT " + usageColumns + " FROM usage_records WHERE " + strings.Join(conditions, " AND ") +
		" ORDER BY created_at DESC, job_id DESC LIMIT ?", args
}

func scanRecord(rows *sql.Rows) (inference.Record, error) {
	var (
		r                                     inference.Record
		prompt, completion, cached, reasoning sql.NullInt64
		created, queue, total                 int64
		firstToken                            sql.NullInt64
	)
	err := rows.Scan(&r.JobID, &r.RequestID, &r.Kind, &r.Tenant, &r.KeyID, &r.ModelAsked, &r.Provider,
		&r.ModelServed, &r.Stream, &prompt, &completion, &cached, &reasoning, &r.Usage.Estimated,
		&r.Attempts, &r.Outcome, &r.Status, &r.ErrorCode, &created, &queue, &firstToken, &total)
	if err != nil {
		return inference.Record{}, err
	}
	r.Usage.Known = prompt.Valid
	r.Usage.PromptTokens, r.Usage.CompletionTokens = prompt.Int64, completion.Int64
	r.Usage.CachedTokens, r.Usage.ReasoningTokens = cached.Int64, reasoning.Int64
	r.CreatedAt = fromMicros(created)
	r.Queue = time.Duration(queue) * time.Microsecond
	r.FirstToken = time.Duration(firstToken.Int64) * time.Microsecond
	r.Total = time.Duration(total) * time.Microsecond
	return r, nil
}
