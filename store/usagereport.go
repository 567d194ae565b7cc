package store

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/routing"
)

// Reports is the part of the store that sums up what requests took.
type Reports interface {
	// UsageReport returns the next groups of the requests that the query selects, with
	// their sums. Errors: ErrInvalid for a query that cannot be meant.
	UsageReport(ctx context.Context, q UsageQuery) (UsagePage, error)

	// SpentSince returns what the requests of the scope have cost that were accepted on
	// the day of since, in UTC, or later, as far as the ledger has them and their cost is
	// known. It reads sums of days, which the ledger keeps along with its rows, so that it
	// takes no longer for more requests. Nothing takes rows out of the ledger, nor out of
	// the sums.
	SpentSince(ctx context.Context, scope SpendScope, since time.Time) (inference.Cost, error)
}

// ReportTime bounds one report, which may read every row of months.
const ReportTime = 25 * time.Second

// UsageGroup is by what requests are put together.
type UsageGroup string

// The groups, in the order of a report's columns and of its rows. Of the times, which are
// UTC, a query has one at most.
const (
	ByHour     UsageGroup = "hour"
	ByDay      UsageGroup = "day"
	ByMonth    UsageGroup = "month"
	ByTenant   UsageGroup = "tenant"
	ByKey      UsageGroup = "key"
	ByModel    UsageGroup = "model" // as the client asked for it
	ByProvider UsageGroup = "provider"
)

// UsageGroups are all of them, in order.
var UsageGroups = []UsageGroup{ByHour, ByDay, ByMonth, ByTenant, ByKey, ByModel, ByProvider}

// IsTime reports whether the group is a span of time.
func (g UsageGroup) IsTime() bool { return g == ByHour || g == ByDay || g == ByMonth }

// layouts are how the beginning of a span is written, so that texts stand in the order of
// time.
var layouts = map[UsageGroup]string{ByHour: "2006-01-02T15:00:00Z", ByDay: time.DateOnly, ByMonth: "2006-01"}

// UsageQuery selects requests and says how they are put together. Zero fields select
// everything.
type UsageQuery struct {
	GroupBy []UsageGroup // none: everything is one group

	From, To time.Time // accepted at or after From and before To

	KeyID    string
	Tenant   string
	Model    string // as the client asked for it
	Provider string

	Limit int // of groups, at most MaxPage; zero: DefaultPage

	// After continues behind the page that named it, which had the same GroupBy. The
	// range of time is that page's.
	After string
}

// UsageRow is a group and its sums.
type UsageRow struct {
	Group []string // what the group is, in the order of UsagePage.GroupBy

	Requests  int64
	Succeeded int64
	Failed    int64 // failed, expired or rejected; the others' clients went away
	CacheHits int64 // stale answers as well

	PromptTokens     int64
	CompletionTokens int64
	CachedTokens     int64
	ReasoningTokens  int64

	Cost         inference.Cost
	Unpriced     int64 // requests whose tokens are known, but not their price: their cost is missing
	UnknownUsage int64 // requests that called a provider, and nobody knows how many tokens it took
}

// UsagePage is a part of a report, ordered by the groups. A group comes once, however many
// rows are added between two pages.
type UsagePage struct {
	GroupBy  []UsageGroup // in order
	From, To time.Time
	Rows     []UsageRow
	Next     string // to be asked for with UsageQuery.After; empty: this is the last one
}

// SpendScope says whose costs are summed up. Zero fields are everybody's.
type SpendScope struct {
	KeyID  string
	Tenant string
	Models []string // names or globs, of which one covers the model that was asked for
	Except []string // names or globs, of which none does
}

// Covers reports whether the scope has the model.
func (s SpendScope) Covers(model string) bool {
	return (len(s.Models) == 0 || routing.MatchesAny(s.Models, model)) && !routing.MatchesAny(s.Except, model)
}

// Names returns the scope's models if all of them are names, or nil.
func (s SpendScope) Names() []string {
	if slices.ContainsFunc(s.Models, routing.IsGlob) {
		return nil
	}
	return s.Models
}

// Clean returns the scope with texts as the ledger keeps them.
func (s SpendScope) Clean() SpendScope {
	s.KeyID, s.Tenant = CleanText(s.KeyID), CleanText(s.Tenant)
	for _, models := range [...]*[]string{&s.Models, &s.Except} {
		*models = slices.Clone(*models)
		for i, m := range *models {
			(*models)[i] = CleanText(m)
		}
	}
	return s
}

// DayOf returns the beginning of the day, in UTC, for which the cost of a request counts
// that was accepted at t.
func DayOf(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// usageCursor is what UsageQuery.After holds. It has the range of time, which may end now:
// all pages are to speak of the same one.
type usageCursor struct {
	GroupBy  []UsageGroup `json:"g"`
	From, To int64        // microseconds since 1970; zero: unbounded
	Behind   []string     `json:"b"`
}

// maxUsageCursor bounds a cursor: of each group, a text as long as may be.
const maxUsageCursor = 16 << 10

// Clean returns the query as a database asks it, and the group to continue behind, or none.
// Errors: ErrInvalid.
func (q UsageQuery) Clean() (clean UsageQuery, behind []string, err error) {
	if q.GroupBy, err = orderGroups(q.GroupBy); err != nil {
		return UsageQuery{}, nil, err
	}
	if q.Limit <= 0 {
		q.Limit = DefaultPage
	}
	q.Limit = min(q.Limit, MaxPage)
	for _, s := range []*string{&q.KeyID, &q.Tenant, &q.Model, &q.Provider} {
		*s = CleanText(*s)
	}
	if q.After != "" {
		c, err := readUsageCursor(q.After)
		if err != nil || !slices.Equal(c.GroupBy, q.GroupBy) || len(c.Behind) != len(q.GroupBy) {
			return UsageQuery{}, nil, fmt.Errorf("after is not the place of such a report: %w", ErrInvalid)
		}
		q.From, q.To, behind = fromCursor(c.From), fromCursor(c.To), c.Behind
	}
	q.From, q.To = cleanBound(q.From), cleanBound(q.To)
	return q, behind, nil
}

// orderGroups puts groups into their order.
func orderGroups(groups []UsageGroup) ([]UsageGroup, error) {
	ordered := slices.Clone(groups)
	slices.SortFunc(ordered, func(a, b UsageGroup) int { return slices.Index(UsageGroups, a) - slices.Index(UsageGroups, b) })
	times := 0
	for i, g := range ordered {
		switch {
		case !slices.Contains(UsageGroups, g):
			return nil, fmt.Errorf("group by %s: %w", CleanText(string(g)), ErrInvalid)
		case i > 0 && ordered[i-1] == g:
			return nil, fmt.Errorf("group by %s twice: %w", g, ErrInvalid)
		case g.IsTime():
			times++
		}
	}
	if times > 1 {
		return nil, fmt.Errorf("group by several spans of time: %w", ErrInvalid)
	}
	return ordered, nil
}

func readUsageCursor(text string) (c usageCursor, err error) {
	if len(text) > maxUsageCursor {
		return c, ErrInvalid
	}
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, err
	}
	for i := range c.Behind {
		c.Behind[i] = CleanText(c.Behind[i])
	}
	return c, nil
}

func fromCursor(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

func toCursor(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func cleanBound(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return CleanTime(t)
}

// Begins returns from when on rows can belong to a group that stands behind the given one:
// what was before need not be read again.
func (q UsageQuery) Begins(behind []string) time.Time {
	if len(behind) == 0 || len(q.GroupBy) == 0 || !q.GroupBy[0].IsTime() {
		return q.From
	}
	at, err := time.Parse(layouts[q.GroupBy[0]], behind[0])
	if err != nil || at.Before(q.From) {
		return q.From
	}
	return at
}

// Page makes a page of the rows that a database found, which are one more than the limit
// if there are more.
func (q UsageQuery) Page(rows []UsageRow) (UsagePage, error) {
	page := UsagePage{GroupBy: q.GroupBy, From: q.From, To: q.To, Rows: rows}
	if len(rows) <= q.Limit {
		return page, nil
	}
	page.Rows = rows[:q.Limit]
	text, err := json.Marshal(usageCursor{
		GroupBy: q.GroupBy, From: toCursor(q.From), To: toCursor(q.To), Behind: page.Rows[q.Limit-1].Group,
	})
	if err != nil {
		return UsagePage{}, err
	}
	page.Next = base64.RawURLEncoding.EncodeToString(text)
	return page, nil
}

// SumUnit is by what databases divide numbers before they add them up: quotients and
// remainders are summed apart, so that no number of rows overflows a sum, however large an
// upstream says that its counts are.
const SumUnit = 1_000_000_000

// JoinSum returns a sum whose quotients and remainders were summed apart. What is too large
// is as much as an int64 holds.
func JoinSum(quotients, remainders int64) int64 {
	quotients, remainders = quotients+remainders/SumUnit, remainders%SumUnit
	switch {
	case quotients >= math.MaxInt64/SumUnit:
		return math.MaxInt64
	case quotients <= math.MinInt64/SumUnit:
		return math.MinInt64
	}
	return quotients*SumUnit + remainders
}

// GroupNames returns the groups' names with a comma between them.
func GroupNames(groups []UsageGroup) string {
	names := make([]string, len(groups))
	for i, g := range groups {
		names[i] = string(g)
	}
	return strings.Join(names, ",")
}
