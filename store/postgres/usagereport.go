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

// reportDialect groups by truncated times and turns each group's into text, which costs
// nothing against doing so for every row.
var reportDialect = statement.Dialect{
	Span: func(g store.UsageGroup) (group, text string) {
		group = "date_trunc('" + string(g) + "', created_at, 'UTC')"
		layout := map[store.UsageGroup]string{
			store.ByHour: `YYYY-MM-DD"T"HH24":00:00Z"`, store.ByDay: "YYYY-MM-DD", store.ByMonth: "YYYY-MM",
		}[g]
		return group, "to_char(" + group + " AT TIME ZONE 'UTC', '" + layout + `') COLLATE "C"`
	},
	Text:  func(column string) string { return column + ` COLLATE "C"` },
	Stamp: func(t time.Time) any { return t },
}

// UsageReport implements store.Reports.
func (s *Store) UsageReport(ctx context.Context, q store.UsageQuery) (store.UsagePage, error) {
	q, behind, err := q.Clean()
	if err != nil {
		return store.UsagePage{}, fmt.Errorf("report usage: %w", err)
	}
	sql, args := statement.UsageReport(q, behind, reportDialect)
	rows, err := reportRows(ctx, s, func(row pgx.CollectableRow) (store.UsageRow, error) {
		u := statement.NewUsageRow(len(q.GroupBy))
		err := row.Scan(u.Targets()...)
		return u.Row(), err
	}, sql, args)
	if err != nil {
		return store.UsagePage{}, fmt.Errorf("report usage: %w", err)
	}
	return q.Page(rows)
}

// SpentSince implements store.Reports.
func (s *Store) SpentSince(ctx context.Context, scope store.SpendScope, since time.Time) (inference.Cost, error) {
	scope = scope.Clean()
	sql, args := statement.SpentSince(scope, since, reportDialect.Stamp)
	spent, err := reportRows(ctx, s, pgx.RowToStructByPos[statement.Spent], sql, args)
	if err != nil {
		return 0, fmt.Errorf("sum up costs: %w", err)
	}
	return statement.SumSpent(scope, spent), nil
}

// reportRows is query for a statement that may read very many rows.
func reportRows[T any](
	ctx context.Context, s *Store, scan pgx.RowToFunc[T], sql string, args []any,
) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, store.ReportTime)
	defer cancel()
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}
