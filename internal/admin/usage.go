package admin

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/store"
)

// UsageHandler reports what requests took and what they cost.
type UsageHandler struct {
	Store store.Reports
	Fail  func(http.ResponseWriter, *http.Request, error) // answers with an *inference.Error
}

// Register adds the report to the routes, if there is something to report from.
func (h UsageHandler) Register(r *mux.Router) {
	if h.Store != nil {
		r.Handle(adminapi.UsagePath, h).Methods(http.MethodGet)
	}
}

// ServeHTTP serves GET /admin/v1/usage.
func (h UsageHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	params := r.URL.Query()
	asCSV, err := wantsCSV(params, r.Header.Get("Accept"))
	if err != nil {
		h.Fail(w, r, err)
		return
	}
	query, err := parseUsage(params, time.Now())
	if err != nil {
		h.Fail(w, r, err)
		return
	}
	if asCSV {
		h.csv(w, r, query)
		return
	}
	page, err := h.Store.UsageReport(r.Context(), query)
	if err != nil {
		h.Fail(w, r, usageError(err))
		return
	}
	text, err := json.Marshal(shownUsage(page))
	if err != nil {
		h.Fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = w.Write(text) // whoever asked may be gone
}

// csvPageTime is how long a client may take for a page of a file, which has as many pages
// as it has.
const csvPageTime = 30 * time.Second

// csv writes all pages of a report as they are read. What is cut by an error must not look
// whole: then the connection ends without an end of the answer.
func (h UsageHandler) csv(w http.ResponseWriter, r *http.Request, query store.UsageQuery) {
	query.Limit = store.MaxPage
	conn, out := http.NewResponseController(w), csv.NewWriter(w)
	for began := false; ; began = true {
		page, err := h.Store.UsageReport(r.Context(), query)
		if err != nil && !began {
			h.Fail(w, r, usageError(err))
			return
		}
		_ = conn.SetWriteDeadline(time.Now().Add(csvPageTime)) // not every writer has deadlines; the server's does
		if err != nil {
			_ = conn.SetWriteDeadline(time.Unix(1, 0)) // long past, so that nothing more can be written
			return
		}
		shown := shownUsage(page)
		if !began {
			w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
			w.Header().Set("Content-Disposition", `attachment; filename="usage.csv"`)
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_ = out.Write(adminapi.UsageHeader(shown.GroupBy)) // its error comes from Flush, as those of the rows
		}
		for i := range shown.Rows {
			_ = out.Write(shown.Rows[i].CSVCells(shown.GroupBy))
		}
		if out.Flush(); out.Error() != nil || conn.Flush() != nil || page.Next == "" {
			return
		}
		query.After = page.Next
	}
}

// wantsCSV reports whether the report is asked for as CSV: by the parameter format, or else
// by a header that names that type and not JSON before it.
func wantsCSV(params url.Values, accept string) (bool, error) {
	switch format := params.Get("format"); {
	case format == "csv":
		return true, nil
	case format == "json":
		return false, nil
	case params.Has("format"):
		return false, wrongParam("format", "must be json or csv")
	}
	for item := range strings.SplitSeq(accept, ",") {
		kind, _, _ := strings.Cut(item, ";")
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/csv":
			return true, nil
		case "application/json":
			return false, nil
		}
	}
	return false, nil
}

// usageParams are the parameters that a report knows.
var usageParams = []string{"group_by", "from", "to", "key", "tenant", "model", "provider", "limit", "after", "format"}

// usageDays is how many days a report goes back that does not say from when.
const usageDays = 30

// CheckUsage returns what is wrong with the parameters of a report, or nil.
func CheckUsage(params url.Values) error {
	_, err := parseUsage(params, time.Now())
	return err
}

func parseUsage(params url.Values, now time.Time) (q store.UsageQuery, err error) {
	for name, values := range params {
		switch {
		case !slices.Contains(usageParams, name):
			return q, wrongParam(store.CleanText(name), "is no parameter of a report")
		case len(values) > 1:
			return q, wrongParam(name, "is given several times")
		case len(values[0]) > maxParam[name] && len(values[0]) > store.MaxTextBytes || !utf8.ValidString(values[0]) || strings.Contains(values[0], "\x00"):
			return q, wrongParam(name, fmt.Sprintf("must be a text of %d bytes at most", max(maxParam[name], store.MaxTextBytes)))
		}
	}
	q = store.UsageQuery{
		KeyID: params.Get("key"), Tenant: params.Get("tenant"), Model: params.Get("model"), Provider: params.Get("provider"), After: params.Get("after"),
	}
	if q.GroupBy, err = parseGroups(params); err != nil {
		return q, err
	}
	if params.Has("limit") {
		if q.Limit, err = strconv.Atoi(params.Get("limit")); err != nil || q.Limit < 1 || q.Limit > store.MaxPage {
			return q, wrongParam("limit", fmt.Sprintf("must be an integer from 1 to %d", store.MaxPage))
		}
	}
	q.From, q.To, err = parseRange(params, now)
	return q, err
}

// maxParam is how long the parameters may be that may be longer than a text.
var maxParam = map[string]int{"after": 16 << 10}

func parseGroups(params url.Values) ([]store.UsageGroup, error) {
	if !params.Has("group_by") {
		return []store.UsageGroup{store.ByDay}, nil
	}
	var groups []store.UsageGroup
	times := 0
	for name := range strings.SplitSeq(params.Get("group_by"), ",") {
		g := store.UsageGroup(strings.TrimSpace(name))
		switch {
		case g == "" && params.Get("group_by") == "":
			return nil, nil
		case !slices.Contains(store.UsageGroups, g):
			return nil, wrongParam("group_by", "must be names of "+store.GroupNames(store.UsageGroups)+" with commas between them, or empty for a total")
		case slices.Contains(groups, g):
			return nil, wrongParam("group_by", "names a group twice")
		case g.IsTime():
			times++
		}
		groups = append(groups, g)
	}
	if times > 1 {
		return nil, wrongParam("group_by", "must have one of hour, day and month at most")
	}
	return groups, nil
}

// parseRange reads the range of a report: the last days up to now unless it is given. A day
// stands for all of it, also as the end.
func parseRange(params url.Values, now time.Time) (from, to time.Time, err error) {
	to = now
	if params.Has("to") {
		if to, err = Bound("to", params.Get("to")); err != nil {
			return from, to, err
		}
	}
	last := to.UTC().Add(-time.Microsecond)
	from = time.Date(last.Year(), last.Month(), last.Day()-(usageDays-1), 0, 0, 0, 0, time.UTC)
	if params.Has("from") {
		if from, err = Bound("from", params.Get("from")); err != nil {
			return from, to, err
		}
	}
	if !from.Before(to) {
		return from, to, wrongParam("from", "must be before the end of the report")
	}
	return from, to, nil
}

// The years that a report may begin or end in: JSON has no time outside of these.
const firstYear, lastYear = 1, 9999

// Bound reads where a range begins, which is its from, or ends, which is its to: a time, or a
// day of UTC, which stands for all of it, also as the end.
func Bound(name, text string) (at time.Time, err error) {
	whole := true
	if at, err = time.Parse(time.DateOnly, text); err != nil {
		whole = false
		at, err = time.Parse(time.RFC3339, text)
	}
	if err == nil && at.UTC().Year() >= firstYear && at.UTC().Year() < lastYear {
		if whole && name == "to" {
			at = at.AddDate(0, 0, 1)
		}
		return at, nil
	}
	return at, wrongParam(name, "must be a day, such as 2026-01-31, or an RFC 3339 time, such as 2026-01-31T12:00:00Z")
}

func wrongParam(name, problem string) error {
	return &inference.Error{Code: inference.CodeInvalidRequest, Param: name, Message: name + " " + problem + "."}
}

func usageError(err error) error {
	if errors.Is(err, store.ErrInvalid) {
		return wrongParam("after", "is no place in this report: a page's next goes with the same group_by")
	}
	if store.Unreachable(err) {
		return Answerable(err)
	}
	return &inference.Error{Code: inference.CodeStorageUnavailable, Message: "The database could not answer.", Err: err}
}

// mostShownCost is what a cost is shown as that is more: what ParseCost reads.
const mostShownCost = inference.Cost(math.MaxInt64/1_000_000_000-1) * 1_000_000_000

// shownUsage is a page as operators see it.
func shownUsage(page store.UsagePage) adminapi.UsageReport {
	shown := adminapi.UsageReport{GroupBy: make([]string, len(page.GroupBy)), Rows: make([]adminapi.UsageRow, len(page.Rows))}
	for i, g := range page.GroupBy {
		shown.GroupBy[i] = string(g)
	}
	if !page.From.IsZero() {
		shown.From = &page.From
	}
	if !page.To.IsZero() {
		shown.To = &page.To
	}
	if page.Next != "" {
		shown.Next = &page.Next
	}
	for i := range page.Rows {
		r := &page.Rows[i]
		shown.Rows[i] = adminapi.UsageRow{
			Requests: r.Requests, Succeeded: r.Succeeded, Failed: r.Failed, CacheHits: r.CacheHits,
			PromptTokens: r.PromptTokens, CompletionTokens: r.CompletionTokens, CachedTokens: r.CachedTokens, ReasoningTokens: r.ReasoningTokens,
			Cost: min(r.Cost, mostShownCost), UnpricedRequests: r.Unpriced, UnknownUsageRequests: r.UnknownUsage,
		}
		for n, name := range shown.GroupBy {
			*shown.Rows[i].Group(name) = &r.Group[n]
		}
	}
	return shown
}
