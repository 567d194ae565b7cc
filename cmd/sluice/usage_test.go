package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/store"
	"sluice/store/sqlite"
)

// ledger fills a database in the directory of the configuration at the path.
func ledger(t *testing.T, file string, rows ...inference.Record) {
	t.Helper()
	db, err := sqlite.Open(t.Context(), file)
	require.NoError(t, err)
	require.NoError(t, db.Migrate(t.Context()))
	n, err := db.AppendUsage(t.Context(), rows)
	require.NoError(t, err)
	require.Len(t, rows, n)
	require.NoError(t, db.Close())
}

func usageRow(i int, at time.Time, tenant, model string, cost inference.Cost) inference.Record {
	return inference.Record{
		JobID: fmt.Sprint("job-", i), Tenant: tenant, KeyID: "key_1", ModelAsked: model, Provider: "p", CreatedAt: at, Attempts: 1,
		Outcome: inference.OutcomeSucceeded, Usage: inference.Usage{PromptTokens: 1000, CompletionTokens: 20, Known: true}, Cost: cost, Priced: cost > 0,
	}
}

func TestUsageFromTheDatabase(t *testing.T) {
	t.Parallel()
	path := configFile(t, minimal)
	dir := strings.TrimSuffix(path, "/sluice.yaml")
	code, _, errs := sluice(t, "usage", "-c", path)
	require.NotZero(t, code)
	require.Contains(t, errs, "migrate", "there is no schema yet")

	_, _, errs = sluice(t, "migrate", "-c", path)
	require.Empty(t, errs)
	today := time.Now().UTC()
	ledger(t, dir+"/data/sluice.db",
		usageRow(1, today, "acme", "gpt-4o", 1_234_550_000), usageRow(2, today, "acme", "gpt-4o", 40), usageRow(3, today, "zeta", "=1+1", 2_000_000_000),
		usageRow(4, today, "zeta", "inhouse\x1b[31m", 0), usageRow(5, today.AddDate(0, 0, -40), "zeta", "gpt-4o", 7_000_000_000),
	)

	code, out, errs := sluice(t, "usage", "-c", path, "--group-by", "tenant,model")
	require.Zero(t, code, errs)
	require.Equal(t, ""+
		"TENANT  MODEL            REQUESTS  FAILED  CACHE HITS  PROMPT  CACHED  COMPLETION  REASONING    COST\n"+
		"acme    gpt-4o                  2       0           0    2000       0          40          0  1.2346\n"+
		"zeta    =1+1                    1       0           0    1000       0          20          0  2.0000\n"+
		"zeta    inhouse\\x1b[31m         1       0           0    1000       0          20          0  0.0000\n"+
		"total                           4       0           0    4000       0          80          0  3.2346\n"+
		"\nRequests without a known price: 1; what their tokens cost is missing. providers.NAME.prices can say it.\n", out)

	_, out, _ = sluice(t, "usage", "-c", path, "--tenant", "acme")
	require.Contains(t, out, today.Format(time.DateOnly)+"         2", "by day, if nothing is said")
	_, out, _ = sluice(t, "usage", "-c", path, "--group-by", "", "--from", "2020-01-01", "--to", today.Format(time.DateOnly))
	require.Regexp(t, `(?m)^ +5 +0 .* 10\.2346$`, out, "a total of everything, today included")

	_, out, _ = sluice(t, "usage", "-c", path, "--group-by", "model", "--csv")
	cells, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	require.NoError(t, err)
	require.Len(t, cells, 4)
	require.Equal(t, []string{"model", "requests"}, cells[0][:2])
	require.Equal(t, "'=1+1", cells[1][0], "a spreadsheet must not reckon with it")
	require.Equal(t, "1.23455004", cells[2][9], "exact")

	_, out, _ = sluice(t, "usage", "-c", path, "--group-by", "model", "--model", "nobody's", "--json")
	var report adminapi.UsageReport
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.NotNil(t, report.Rows)
	require.Empty(t, report.Rows)
}

// More rows than one answer holds are all there, in each form.
func TestUsageReadsEveryPage(t *testing.T) {
	t.Parallel()
	path := configFile(t, minimal)
	dir := strings.TrimSuffix(path, "/sluice.yaml")
	_, _, errs := sluice(t, "migrate", "-c", path)
	require.Empty(t, errs)
	rows := make([]inference.Record, 0, store.MaxBatch)
	for i := range store.MaxBatch {
		rows = append(rows, usageRow(i, time.Now(), "acme", fmt.Sprintf("model-%04d", i), 1))
	}
	ledger(t, dir+"/data/sluice.db", rows...)
	require.Greater(t, len(rows), usagePage)
	_, out, _ := sluice(t, "usage", "-c", path, "--group-by", "model")
	require.Equal(t, len(rows)+2, strings.Count(out, "\n"))
	_, out, _ = sluice(t, "usage", "-c", path, "--group-by", "model", "--csv")
	require.Equal(t, len(rows)+1, strings.Count(out, "\n"))
	_, out, _ = sluice(t, "usage", "-c", path, "--group-by", "model", "--json")
	var report adminapi.UsageReport
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.Len(t, report.Rows, len(rows))
	require.Nil(t, report.Next)
	require.Equal(t, "model-0999", *report.Rows[999].Model)
}

// A running ingress is asked where it listens for operators.
func TestUsageFromARunningIngress(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	path := configFile(t, minimal+"admin: {address: '"+address+"', token: operators-only-0123}\n")
	s := serveHere(t, path, "curl ")
	status, body := call(t, s.base, s.key, `{"model":"sim","messages":[{"role":"user","content":"hi"}]}`)
	require.Equal(t, http.StatusOK, status, body)
	require.Eventually(t, func() bool {
		_, out, _ := sluice(t, "usage", "-c", path, "--group-by", "tenant,provider")
		return strings.Contains(out, "sim ") && strings.Contains(out, "0.0000")
	}, soon, 20*time.Millisecond, "the row, and a simulated provider costs nothing")
	_, out, _ := sluice(t, "usage", "-c", path)
	require.NotContains(t, out, "without a known price")
	wrong := configFile(t, "admin: {address: '"+address+"', token: another-token-0123}\n")
	code, _, errs := sluice(t, "usage", "-c", wrong)
	require.NotZero(t, code)
	require.Contains(t, errs, "does not accept admin.token")
	require.Zero(t, s.stop(), s.errs.String())
}

func TestMoneyText(t *testing.T) {
	t.Parallel()
	for c, want := range map[inference.Cost]string{
		0: "0.0000", 1: "<0.0001", 49_999: "<0.0001", 50_000: "0.0001", 149_999: "0.0001", 150_000: "0.0002",
		1_999_950_000: "2.0000", 12_345_678_900_000: "12345.6789", 1<<63 - 1: "9223372036.8548",
	} {
		require.Equal(t, want, moneyText(c), "%d", c)
	}
}
