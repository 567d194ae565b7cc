package adminapi

import (
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
)

// UsagePath is where an ingress reports what requests took. The query's group_by, from, to,
// key, tenant, model, provider, limit and after say of which, and format=csv, or the header
// Accept, in which form.
const UsagePath = "/admin/v1/usage"

// UsageReport is a page of a report.
type UsageReport struct {
	GroupBy []string   `json:"group_by"` // in the order of the columns
	From    *time.Time `json:"from"`     // null: from the beginning
	To      *time.Time `json:"to"`       // not included
	Rows    []UsageRow `json:"rows"`
	Next    *string    `json:"next"` // what to ask for with after; null: this is the last page
}

// UsageRow is what the requests of one group took. Of the groups it has those that the
// report is by.
type UsageRow struct {
	Hour     *string `json:"hour,omitempty"` // the beginning of a span of time, in UTC
	Day      *string `json:"day,omitempty"`
	Month    *string `json:"month,omitempty"`
	Tenant   *string `json:"tenant,omitempty"`
	Key      *string `json:"key,omitempty"`   // its id
	Model    *string `json:"model,omitempty"` // as the client asked for it
	Provider *string `json:"provider,omitempty"`

	Requests  int64 `json:"requests"`
	Succeeded int64 `json:"succeeded"`
	Failed    int64 `json:"failed"` // or expired, or refused by a full queue; the others' clients went away
	CacheHits int64 `json:"cache_hits"`

	PromptTokens     int64 `json:"prompt_tokens"`
	CompletionTokens int64 `json:"completion_tokens"`
	CachedTokens     int64 `json:"cached_tokens"`
	ReasoningTokens  int64 `json:"reasoning_tokens"`

	Cost                 inference.Cost `json:"cost"`                   // in the currency of the prices
	UnpricedRequests     int64          `json:"unpriced_requests"`      // whose tokens are known, but not their price
	UnknownUsageRequests int64          `json:"unknown_usage_requests"` // that called a provider, and nobody knows how many tokens it took
}

// Group returns where the row has the value of a group, or nil for an unknown group.
func (u *UsageRow) Group(name string) **string {
	return map[string]**string{
		"hour": &u.Hour, "day": &u.Day, "month": &u.Month, "tenant": &u.Tenant, "key": &u.Key, "model": &u.Model, "provider": &u.Provider,
	}[name]
}

// UsageHeader returns the names of the columns of a report by these groups.
func UsageHeader(groupBy []string) []string {
	return append(append([]string{}, groupBy...), "requests", "succeeded", "failed", "cache_hits", "prompt_tokens", "completion_tokens",
		"cached_tokens", "reasoning_tokens", "cost", "unpriced_requests", "unknown_usage_requests")
}

// Cells returns the row as texts, in the order of the header.
func (u *UsageRow) Cells(groupBy []string) []string {
	cells := make([]string, 0, len(groupBy)+11)
	for _, name := range groupBy {
		value := ""
		if at := u.Group(name); at != nil && *at != nil {
			value = **at
		}
		cells = append(cells, value)
	}
	for _, n := range []int64{
		u.Requests, u.Succeeded, u.Failed, u.CacheHits, u.PromptTokens, u.CompletionTokens, u.CachedTokens, u.ReasoningTokens,
	} {
		cells = append(cells, strconv.FormatInt(n, 10))
	}
	return append(cells, u.Cost.String(), strconv.FormatInt(u.UnpricedRequests, 10), strconv.FormatInt(u.UnknownUsageRequests, 10))
}

// CSVCells returns the row's texts for a file that a spreadsheet may open, which would take
// a text that begins like a formula for one: such a text gets a quote before it. A model's
// name is the client's own word.
func (u *UsageRow) CSVCells(groupBy []string) []string {
	cells := u.Cells(groupBy)
	for i := range groupBy {
		if strings.ContainsAny(cells[i][:min(len(cells[i]), 1)], "=+-@\t\r\n") || strings.HasPrefix(cells[i], "＝") ||
			strings.HasPrefix(cells[i], "＋") || strings.HasPrefix(cells[i], "－") || strings.HasPrefix(cells[i], "＠") {
			cells[i] = "'" + cells[i]
		}
	}
	return cells
}
