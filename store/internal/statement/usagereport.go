package statement

import (
	"fmt"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/store"
)

// Dialect is what the databases write differently in a report.
type Dialect struct {
	// Span returns two expressions for the span of time that a row belongs to: what rows
	// are grouped by, and its text.
	Span func(g store.UsageGroup) (group, text string)

	// Text makes a column's text one that is compared by its bytes.
	Text func(column string) string

	Stamp func(time.Time) any // encodes a time
}

// groupColumns are the columns of the groups that are no spans of time.
var groupColumns = map[store.UsageGroup]string{
	store.ByTenant: "tenant", store.ByKey: "key_id", store.ByModel: "model_asked", store.ByProvider: "provider",
}

// SumCount is how many numbers a row of a report has behind its groups.
const SumCount = 16

// sums are the numbers of a row. A number of which there are two columns is summed in
// parts, as store.JoinSum says.
var sums = strings.Join([]string{
	"count(*)",
	countIf("outcome = 'succeeded'"),
	countIf("outcome IN ('failed', 'expired', 'rejected')"),
	countIf("cache <> ''"),
	parts("prompt_tokens"), parts("completion_tokens"), parts("cached_tokens"), parts("reasoning_tokens"), parts("cost"),
	countIf("NOT priced AND prompt_tokens IS NOT NULL"),
	countIf("attempts > 0 AND cache = '' AND prompt_tokens IS NULL"),
}, ", ")

func countIf(condition string) string {
	return "coalesce(sum(CASE WHEN " + condition + " THEN 1 ELSE 0 END), 0)"
}

func parts(column string) string {
	part := func(operator string) string {
		return fmt.Sprintf("CAST(coalesce(sum(%s %s %d), 0) AS bigint)", column, operator, int64(store.SumUnit))
	}
	return part("/") + ", " + part("%")
}

// report is a statement on its way.
type report struct {
	conditions []string
	args       []any
}

func (r *report) arg(value any) string {
	r.args = append(r.args, value)
	return fmt.Sprintf("$%d", len(r.args))
}

// where adds a condition, unless there is nothing to compare with.
func (r *report) where(comparison, value string) {
	if value != "" {
		r.conditions = append(r.conditions, comparison+" "+r.arg(value))
	}
}

func (r *report) between(from, to time.Time, stamp func(time.Time) any) {
	if !from.IsZero() {
		r.conditions = append(r.conditions, "created_at >= "+r.arg(stamp(from)))
	}
	if !to.IsZero() {
		r.conditions = append(r.conditions, "created_at < "+r.arg(stamp(to)))
	}
}

// UsageReport reads the groups behind the given one, and one more than the limit. The query
// is clean.
func UsageReport(q store.UsageQuery, behind []string, d Dialect) (query string, args []any) {
	r := &report{conditions: []string{"true"}}
	r.between(q.Begins(behind), q.To, d.Stamp)
	r.where("key_id =", q.KeyID)
	r.where("tenant =", q.Tenant)
	r.where("model_asked =", q.Model)
	r.where("provider =", q.Provider)
	var groups, texts []string
	for _, g := range q.GroupBy {
		group, text := d.Text(groupColumns[g]), d.Text(groupColumns[g])
		if g.IsTime() {
			group, text = d.Span(g)
		}
		groups, texts = append(groups, group), append(texts, text)
	}
	query = "SELECT " + strings.Join(append(texts, sums), ", ") + " FROM usage_records WHERE " + strings.Join(r.conditions, " AND ")
	if len(groups) == 0 {
		return query, r.args
	}
	query += " GROUP BY " + strings.Join(groups, ", ")
	if behind != nil {
		places := make([]string, len(behind))
		for i, text := range behind {
			places[i] = r.arg(text)
		}
		query += " HAVING (" + strings.Join(texts, ", ") + ") > (" + strings.Join(places, ", ") + ")"
	}
	return query + " ORDER BY " + strings.Join(texts, ", ") + " LIMIT " + r.arg(q.Limit+1), r.args
}

// UsageRow is what a row of a report is read into.
type UsageRow struct {
	Group   []string
	Numbers [SumCount]int64
}

// NewUsageRow returns a row with room for so many groups.
func NewUsageRow(groups int) *UsageRow { return &UsageRow{Group: make([]string, groups)} }

// Targets are where its columns are read to.
func (u *UsageRow) Targets() []any {
	targets := make([]any, 0, len(u.Group)+len(u.Numbers))
	for i := range u.Group {
		targets = append(targets, &u.Group[i])
	}
	for i := range u.Numbers {
		targets = append(targets, &u.Numbers[i])
	}
	return targets
}

// Row returns what was read.
func (u *UsageRow) Row() store.UsageRow {
	n := &u.Numbers
	return store.UsageRow{
		Group: u.Group, Requests: n[0], Succeeded: n[1], Failed: n[2], CacheHits: n[3],
		PromptTokens: store.JoinSum(n[4], n[5]), CompletionTokens: store.JoinSum(n[6], n[7]),
		CachedTokens: store.JoinSum(n[8], n[9]), ReasoningTokens: store.JoinSum(n[10], n[11]),
		Cost: inference.Cost(store.JoinSum(n[12], n[13])), Unpriced: n[14], UnknownUsage: n[15],
	}
}

// SpentSince reads what the scope's requests cost, for each model by itself, in two parts.
// The scope is clean. Models of everybody's that are named are looked for by their names;
// else every model is read, of which a key and a tenant have few, and SumSpent chooses.
func SpentSince(s store.SpendScope, since time.Time, stamp func(time.Time) any) (query string, args []any) {
	r := &report{conditions: []string{"true"}}
	if day := store.DayOf(since); !day.IsZero() {
		r.conditions = append(r.conditions, "day >= "+r.arg(stamp(day)))
	}
	r.where("key_id =", s.KeyID)
	r.where("tenant =", s.Tenant)
	if names := s.Names(); s.KeyID == "" && s.Tenant == "" && len(names) > 0 {
		places := make([]string, len(names))
		for i, name := range names {
			places[i] = r.arg(name)
		}
		r.conditions = append(r.conditions, "model IN ("+strings.Join(places, ", ")+")")
	}
	return "SELECT model, CAST(sum(whole) AS bigint), CAST(sum(billionths) AS bigint) FROM spend WHERE " +
		strings.Join(r.conditions, " AND ") + " GROUP BY model", r.args
}

// Spent is what one model's requests cost.
type Spent struct {
	Model                 string
	Quotients, Remainders int64
}

// SumSpent returns what the models cost that the scope covers.
func SumSpent(s store.SpendScope, all []Spent) inference.Cost {
	var quotients, remainders int64
	for _, m := range all {
		if s.Covers(m.Model) {
			quotients, remainders = quotients+m.Quotients, remainders+m.Remainders
		}
	}
	return inference.Cost(store.JoinSum(quotients, remainders))
}
