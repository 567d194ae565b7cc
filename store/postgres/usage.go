package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/internal/statement"
)

// appendUsage inserts a whole batch given as one array for each column: one
// statement, one round trip, a transaction of its own. It measures faster at every
// size than COPY into a temporary table and an INSERT from there (1 row 0.4 ms
// against 1.9; 1,000 rows 19 ms against 30), and leaves no rubbish in the catalogue.
// A trigger adds the new rows' costs to the table spend, once for each statement.
const appendUsage = `INSERT INTO usage_records (` + statement.UsageColumns + `)
	SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
		$7::text[], $8::text[], $9::boolean[], $10::bigint[], $11::bigint[], $12::bigint[],
		$13::bigint[], $14::boolean[], $15::bigint[], $16::text[], $17::bigint[], $18::text[],
		$19::timestamptz[], $20::bigint[], $21::bigint[], $22::bigint[], $23::jsonb[],
		$24::bigint[], $25::boolean[], $26::text[])
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
	columns, err := columnsOf(batch)
	if err != nil {
		return 0, fmt.Errorf("append usage: %w", err)
	}
	tag, err := s.pool.Exec(ctx, appendUsage, columns...)
	if err != nil {
		return 0, fmt.Errorf("append usage: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// columnsOf turns records into arrays, in the order of statement.UsageColumns.
func columnsOf(batch []inference.Record) ([]any, error) {
	tries := make([]*string, len(batch))
	for i := range batch {
		var err error
		if tries[i], err = statement.EncodeTries(batch[i].Tries); err != nil {
			return nil, fmt.Errorf("job %s: %w", batch[i].JobID, err)
		}
	}
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
		tries,
		column(batch, func(r *inference.Record) int64 { return int64(r.Cost) }),
		column(batch, func(r *inference.Record) bool { return r.Priced }),
		column(batch, func(r *inference.Record) string { return string(r.Cache) }),
	}, nil
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
	sql, args := statement.SelectUsage(filter, func(t time.Time) any { return t })
	records, err := query(ctx, s, scanRecord, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return records, nil
}

func scanRecord(row pgx.CollectableRow) (inference.Record, error) {
	var (
		r                                     inference.Record
		prompt, completion, cached, reasoning *int64
		queue, total                          int64
		firstToken                            *int64
		tries                                 *string
	)
	err := row.Scan(&r.JobID, &r.RequestID, &r.Kind, &r.Tenant, &r.KeyID, &r.ModelAsked, &r.Provider,
		&r.ModelServed, &r.Stream, &prompt, &completion, &cached, &reasoning, &r.Usage.Estimated,
		&r.Attempts, &r.Outcome, &r.Status, &r.ErrorCode, &r.CreatedAt, &queue, &firstToken, &total, &tries,
		&r.Cost, &r.Priced, &r.Cache)
	if err != nil {
		return inference.Record{}, err
	}
	if r.Tries, err = statement.DecodeTries(tries); err != nil {
		return inference.Record{}, fmt.Errorf("job %s: %w", r.JobID, err)
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
