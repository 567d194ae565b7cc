package admin

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/adminapi/adminapitest"
	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/sqlite"
)

// failing is a database that fails from some call on.
type failing struct {
	store.Reports
	after int
}

func (f *failing) UsageReport(ctx context.Context, q store.UsageQuery) (store.UsagePage, error) {
	if f.after--; f.after < 0 {
		return store.UsagePage{}, errors.New("out of order")
	}
	return f.Reports.UsageReport(ctx, q)
}

func serveUsage(t *testing.T, db store.Reports) *httptest.Server {
	t.Helper()
	r := mux.NewRouter()
	UsageHandler{Store: db, Fail: func(w http.ResponseWriter, _ *http.Request, err error) {
		e := inference.AsError(err)
		w.WriteHeader(map[inference.ErrorCode]int{inference.CodeInvalidRequest: 400, inference.CodeStorageUnavailable: 503}[e.Code])
		_, _ = io.WriteString(w, e.Param)
	}}.Register(r)
	srv := httptest.NewServer(adminapitest.Part(t).Handler(r))
	t.Cleanup(srv.Close)
	return srv
}

// ledger is a database with n rows, each of a model of its own.
func ledger(t *testing.T, n int) store.Store {
	t.Helper()
	db, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "sluice.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.Migrate(t.Context()))
	for from := 0; from < n; from += store.MaxBatch {
		var rows []inference.Record
		for i := from; i < min(n, from+store.MaxBatch); i++ {
			rows = append(rows, inference.Record{
				JobID: fmt.Sprint("job-", i), Tenant: "acme", KeyID: "key_1", ModelAsked: fmt.Sprintf("m-%05d", i), Provider: "p",
				CreatedAt: time.Now(), Outcome: inference.OutcomeSucceeded, Usage: inference.Usage{PromptTokens: 3, Known: true}, Cost: 1_500_000_000, Priced: true,
			})
		}
		_, err := db.AppendUsage(t.Context(), rows)
		require.NoError(t, err)
	}
	return db
}

func get(t *testing.T, srv *httptest.Server, query string, headers ...string) (*http.Response, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+adminapi.UsagePath+"?"+query, http.NoBody)
	require.NoError(t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := srv.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func TestAReport(t *testing.T) {
	t.Parallel()
	srv := serveUsage(t, ledger(t, 5))
	resp, text, err := get(t, srv, "")
	require.NoError(t, err)
	require.Equal(t, "application/json", resp.Header.Get("Content-Type"))
	var page adminapi.UsageReport
	require.NoError(t, json.Unmarshal([]byte(text), &page))
	require.Equal(t, []string{"day"}, page.GroupBy)
	require.Len(t, page.Rows, 1)
	require.Contains(t, text, `"cost":7.5,`, "an exact number")
	require.Contains(t, text, `"next":null`)
	today := time.Now().UTC()
	require.Equal(t, today.Format(time.DateOnly), *page.Rows[0].Day)
	require.Nil(t, page.Rows[0].Tenant)
	require.Equal(t, time.Date(today.Year(), today.Month(), today.Day()-29, 0, 0, 0, 0, time.UTC), *page.From)

	var models []string
	for query := "group_by=model,tenant&limit=2&tenant=acme"; ; {
		_, text, err := get(t, srv, query)
		require.NoError(t, err)
		page = adminapi.UsageReport{}
		require.NoError(t, json.Unmarshal([]byte(text), &page), text)
		require.Equal(t, []string{"tenant", "model"}, page.GroupBy)
		for _, r := range page.Rows {
			require.Equal(t, "acme", *r.Tenant)
			models = append(models, *r.Model)
		}
		if page.Next == nil {
			break
		}
		query = "group_by=model,tenant&limit=2&tenant=acme&after=" + *page.Next
	}
	require.Equal(t, []string{"m-00000", "m-00001", "m-00002", "m-00003", "m-00004"}, models)
}

func TestWhatIsWrongWithAReportIsNamed(t *testing.T) {
	t.Parallel()
	srv := serveUsage(t, ledger(t, 1))
	for query, param := range map[string]string{
		"group_by=color": "group_by", "group_by=day,": "group_by", "group_by=day,day": "group_by", "group_by=day,hour": "group_by",
		"from=soon": "from", "to=2026-13-01": "to", "from=2026-01-02&to=2026-01-01": "from", "from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z": "from",
		"limit=0": "limit", "limit=1001": "limit", "limit=many": "limit", "limit=": "limit", "after=x": "after", "colour=red": "colour",
		"tenant=a&tenant=b": "tenant", "model=" + strings.Repeat("m", 513): "model", "key=%00": "key", "provider=%ff": "provider",
		"format=xml": "format", "after=" + strings.Repeat("A", 17<<10): "after",
	} {
		resp, text, err := get(t, srv, query)
		require.NoError(t, err)
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, query)
		require.Equal(t, param, text, query)
	}
	resp, _, _ := get(t, serveUsage(t, &failing{}), "")
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	resp, _, _ = get(t, serveUsage(t, &failing{}), "format=csv")
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode, "nothing was written yet")
	resp, _, _ = get(t, serveUsage(t, nil), "")
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
}

func TestARangeIsReadAsDaysOrTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 31, 15, 4, 5, 0, time.UTC)
	day := func(m time.Month, d int) time.Time { return time.Date(2026, m, d, 0, 0, 0, 0, time.UTC) }
	for query, want := range map[string][2]time.Time{
		"":                                      {day(3, 2), now},
		"from=2026-01-15":                       {day(1, 15), now},
		"to=2026-02-28":                         {day(1, 30), day(3, 1)}, // 30 days, the last one whole
		"from=2026-02-28&to=2026-02-28":         {day(2, 28), day(3, 1)},
		"to=2026-02-28T00:00:00Z":               {day(1, 29), day(2, 28)},
		"from=2026-02-28T01:00:00%2B01:00":      {day(2, 28), now},
		"from=2026-01-01&to=2026-01-01T12:00Z":  {},
		"from=2026-01-01T00:00:00Z&to=now":      {},
		"from=-0001-01-01&to=2026-01-01":        {},
		"from=2026-04-01":                       {},
		"from=2026-03-31T15:04:05Z":             {},
		"from=2026-03-31T15:04:04.999999Z":      {now.Add(-time.Microsecond), now},
		"from=9999-12-31&to=9999-12-31":         {},
		"from=0000-01-01":                       {},
		"from=0001-01-01&to=9998-12-31":         {time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)},
		"from=2026-01-01T00:00:00&to=2026-1-02": {},
	} {
		params, err := url.ParseQuery(query)
		require.NoError(t, err)
		from, to, err := parseRange(params, now)
		if want == ([2]time.Time{}) {
			require.Error(t, err, query)
			continue
		}
		require.NoError(t, err, query)
		require.True(t, want[0].Equal(from), "%s: %s", query, from)
		require.True(t, want[1].Equal(to), "%s: %s", query, to)
	}
}

func TestCSVHasEveryPage(t *testing.T) {
	t.Parallel()
	const n = 2*store.MaxPage + 1
	db := ledger(t, n)
	for query, accept := range map[string]string{"group_by=model&format=csv": "", "group_by=model": "text/csv;q=0.9, application/json"} {
		resp, text, err := get(t, serveUsage(t, db), query, "Accept", accept)
		require.NoError(t, err)
		require.Contains(t, resp.Header.Get("Content-Type"), "text/csv")
		cells, err := csv.NewReader(strings.NewReader(text)).ReadAll()
		require.NoError(t, err)
		require.Len(t, cells, n+1)
		require.Equal(t, adminapi.UsageHeader([]string{"model"}), cells[0])
		require.Equal(t, []string{"m-02000", "1", "1", "0", "0", "3", "0", "0", "0", "1.5", "0", "0"}, cells[n])
	}
	resp, _, err := get(t, serveUsage(t, db), "", "Accept", "application/json, text/csv")
	require.NoError(t, err)
	require.Equal(t, "application/json", resp.Header.Get("Content-Type"))

	// A file that is cut must not look whole.
	_, text, err := get(t, serveUsage(t, &failing{db, 1}), "group_by=model&format=csv")
	require.Error(t, err, "of %d bytes", len(text))
}

func TestCSVHoldsNoFormula(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)", "\t=1": "'\t=1", "\r=1": "'\r=1", "＝1": "'＝1", "gpt-4o": "gpt-4o", "": "", "a=b": "a=b",
	} {
		row := adminapi.UsageRow{Model: &value}
		require.Equal(t, want, row.CSVCells([]string{"model"})[0])
	}
}
