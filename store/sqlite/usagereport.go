package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/internal/statement"
)

var reportDialect = statement.Dialect{
	Span: func(g store.UsageGroup) (group, text string) {
		layout := map[store.UsageGroup]string{store.ByHour: "%Y-%m-%dT%H:00:00Z", store.ByDay: "%Y-%m-%d", store.ByMonth: "%Y-%m"}[g]
		text = "strftime('" + layout + "', created_at / 1000000, 'unixepoch')"
		return text, text
	},
	Text:  func(column string) string { return column },
	Stamp: func(t time.Time) any { return micros(t) },
}

// UsageReport implements store.Reports.
func (s *Store) UsageReport(ctx context.Context, q store.UsageQuery) (store.UsagePage, error) {
	q, behind, err := q.Clean()
	if err != nil {
		return store.UsagePage{}, fmt.Errorf("report usage: %w", err)
	}
	text, args := statement.UsageReport(q, behind, reportDialect)
	rows, err := reportRows(ctx, s, func(rows *sql.Rows) (store.UsageRow, error) {
		u := statement.NewUsageRow(len(q.GroupBy))
		err := rows.Scan(u.Targets()...)
		return u.Row(), err
	}, text, args)
	if err != nil {
		return store.UsagePage{}, fmt.Errorf("report usage: %w", err)
	}
	return q.Page(rows)
}

// SpentSince implements store.Reports.
func (s *Store) SpentSince(ctx context.Context, scope store.SpendScope, since time.Time) (inference.Cost, error) {
	scope = scope.Clean()
	text, args := statement.SpentSince(scope, since, reportDialect.Stamp)
	spent, err := reportRows(ctx, s, func(rows *sql.Rows) (m statement.Spent, err error) {
		err = rows.Scan(&m.Model, &m.Quotients, &m.Remainders)
		return m, err
	}, text, args)
	if err != nil {
		return 0, fmt.Errorf("sum up costs: %w", err)
	}
	return statement.SumSpent(scope, spent), nil
}

// reportRows is query for a statement that may read very many rows.
func reportRows[T any](
	ctx context.Context, s *Store, scan func(*sql.Rows) (T, error), text string, args []any,
) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, store.ReportTime)
	defer cancel()
	rows, err := s.reader.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, scan)
}
