package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"sluice/internal/admin"
	"sluice/internal/adminapi"
	"sluice/internal/inference"
)

// reporter is the command line of 'usage'.
type reporter struct {
	groupBy, from, to            string
	key, tenant, model, provider string
	csv, json                    bool
}

func usageCommand(s *settings) *cobra.Command {
	var u reporter
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Report what requests took and what they cost",
		Long: `Report what requests took and what they cost, of the last 30 days unless --from and
--to say otherwise. These are days or RFC 3339 times in UTC; a day stands for all of it.

A running ingress is asked at admin.address, with admin.token; if none is configured, the
database is read directly.`,
		Example: `  sluice usage
  sluice usage --group-by tenant,model --from 2026-01-01 --to 2026-01-31
  sluice usage --group-by month --tenant research --csv > research.csv`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd, s) },
	}
	f := cmd.Flags()
	f.StringVar(&u.groupBy, "group-by", "day", "what is summed up together: hour, day or month, and tenant, key, model, provider, with commas between them; empty for a total")
	f.StringVar(&u.from, "from", "", "first day, or time, of the report")
	f.StringVar(&u.to, "to", "", "last day of the report, or the time at which it ends")
	f.StringVar(&u.key, "key", "", "id of the key whose requests count")
	f.StringVar(&u.tenant, "tenant", "", "tenant whose requests count")
	f.StringVar(&u.model, "model", "", "model whose requests count, as clients ask for it")
	f.StringVar(&u.provider, "provider", "", "provider whose requests count")
	f.BoolVar(&u.csv, "csv", false, "print CSV")
	f.BoolVar(&u.json, "json", false, "print JSON")
	return cmd
}

func (u *reporter) run(cmd *cobra.Command, s *settings) error {
	if u.csv && u.json {
		return usageError{errors.New("--csv and --json: want one of them")}
	}
	params := u.params()
	if err := admin.CheckUsage(params); err != nil {
		return usageError{wrongFlag(inference.AsError(err))}
	}
	return s.administer(cmd, func(ask operator) error {
		out := cmd.OutOrStdout()
		switch {
		case u.csv:
			return printUsageCSV(out, ask, params)
		case u.json:
			return printUsageJSON(out, ask, params)
		}
		return printUsageTable(out, ask, params)
	})
}

// wrongFlag says of a flag what is wrong with the parameter that it becomes.
func wrongFlag(wrong *inference.Error) error {
	problem := strings.TrimSuffix(strings.TrimPrefix(wrong.Message, wrong.Param), ".")
	return errors.New("--" + strings.ReplaceAll(wrong.Param, "_", "-") + problem)
}

// usagePage is how many rows are asked for at once: few enough for the bound of an answer.
const usagePage = 500

func (u *reporter) params() url.Values {
	params := url.Values{"group_by": {u.groupBy}, "limit": {strconv.Itoa(usagePage)}}
	for name, value := range map[string]string{
		"from": u.from, "to": u.to, "key": u.key, "tenant": u.tenant, "model": u.model, "provider": u.provider,
	} {
		if value != "" {
			params.Set(name, value)
		}
	}
	return params
}

// eachUsagePage reads a report to its end.
func eachUsagePage(ask operator, params url.Values, do func(*adminapi.UsageReport) error) error {
	for {
		var page adminapi.UsageReport
		if err := ask(http.MethodGet, adminapi.UsagePath+"?"+params.Encode(), nil, &page); err != nil {
			return err
		}
		if err := do(&page); err != nil || page.Next == nil {
			return err
		}
		params.Set("after", *page.Next)
	}
}

func printUsageCSV(out io.Writer, ask operator, params url.Values) error {
	w := csv.NewWriter(out)
	began := false
	return eachUsagePage(ask, params, func(page *adminapi.UsageReport) error {
		if !began {
			began = true
			_ = w.Write(adminapi.UsageHeader(page.GroupBy)) // its error comes from Flush, as those of the rows
		}
		for i := range page.Rows {
			_ = w.Write(page.Rows[i].CSVCells(page.GroupBy))
		}
		w.Flush()
		return w.Error()
	})
}

// mostUsageRows bounds what is printed as a whole.
const mostUsageRows = 100_000

var errTooManyRows = fmt.Errorf("the report has more than %d rows: print it with --csv, or make it smaller", mostUsageRows)

// wholeReport returns a report with all its rows.
func wholeReport(ask operator, params url.Values) (whole adminapi.UsageReport, err error) {
	err = eachUsagePage(ask, params, func(page *adminapi.UsageReport) error {
		rows := append(whole.Rows, page.Rows...)
		if len(rows) > mostUsageRows {
			return errTooManyRows
		}
		whole = *page
		whole.Rows, whole.Next = rows, nil
		return nil
	})
	return whole, err
}

func printUsageJSON(out io.Writer, ask operator, params url.Values) error {
	whole, err := wholeReport(ask, params)
	if err != nil {
		return err
	}
	if whole.Rows == nil {
		whole.Rows = []adminapi.UsageRow{}
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(whole)
}

func printUsageTable(out io.Writer, ask operator, params url.Values) error {
	whole, err := wholeReport(ask, params)
	if err != nil {
		return err
	}
	groups := len(whole.GroupBy)
	lines := [][]string{append(upper(whole.GroupBy), "REQUESTS", "FAILED", "CACHE HITS", "PROMPT", "CACHED", "COMPLETION", "REASONING", "COST")}
	var total adminapi.UsageRow
	for i := range whole.Rows {
		r := &whole.Rows[i]
		total.Requests += r.Requests
		total.Failed += r.Failed
		total.CacheHits += r.CacheHits
		total.PromptTokens += r.PromptTokens
		total.CachedTokens += r.CachedTokens
		total.CompletionTokens += r.CompletionTokens
		total.ReasoningTokens += r.ReasoningTokens
		total.Cost += r.Cost
		total.UnpricedRequests += r.UnpricedRequests
		total.UnknownUsageRequests += r.UnknownUsageRequests
		lines = append(lines, append(r.Cells(whole.GroupBy)[:groups:groups], usageNumbers(r)...))
	}
	if groups > 0 && len(whole.Rows) > 1 {
		names := append([]string{"total"}, slices.Repeat([]string{""}, groups-1)...)
		lines = append(lines, append(names, usageNumbers(&total)...))
	}
	if _, err := io.WriteString(out, aligned(lines, groups)); err != nil {
		return err
	}
	return printUsageNotes(out, &total)
}

// printUsageNotes says what the costs leave out.
func printUsageNotes(out io.Writer, total *adminapi.UsageRow) error {
	var notes string
	if n := total.UnpricedRequests; n > 0 {
		notes += fmt.Sprintf("Requests without a known price: %d; what their tokens cost is missing. providers.NAME.prices can say it.\n", n)
	}
	if n := total.UnknownUsageRequests; n > 0 {
		notes += fmt.Sprintf("Requests whose provider did not say how many tokens it took, mostly because it failed: %d.\n", n)
	}
	if notes == "" {
		return nil
	}
	_, err := io.WriteString(out, "\n"+notes)
	return err
}

func upper(names []string) []string {
	upper := make([]string, len(names))
	for i, name := range names {
		upper[i] = strings.ToUpper(name)
	}
	return upper
}

func usageNumbers(r *adminapi.UsageRow) []string {
	var numbers []string
	for _, n := range []int64{r.Requests, r.Failed, r.CacheHits, r.PromptTokens, r.CachedTokens, r.CompletionTokens, r.ReasoningTokens} {
		numbers = append(numbers, strconv.FormatInt(n, 10))
	}
	return append(numbers, moneyText(r.Cost))
}

// moneyText writes an amount with four decimals, which shows a single request of a small
// model, and what is even less as that.
func moneyText(c inference.Cost) string {
	const step = 100_000 // billionths in the last decimal
	rounded := c / step
	if c%step >= step/2 {
		rounded++
	}
	if rounded == 0 && c > 0 {
		return "<0.0001"
	}
	return fmt.Sprintf("%d.%04d", rounded/10_000, rounded%10_000)
}

// aligned puts cells under each other: the first columns to the left, and the others, which
// are numbers, to the right. What a terminal would not print is shown as it is written in
// Go: a model's name is the client's own word.
func aligned(lines [][]string, texts int) string {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			if i < texts {
				quoted := strconv.Quote(cell)
				line[i] = strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(line[i]))
		}
	}
	var out strings.Builder
	for _, line := range lines {
		for i, cell := range line {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				out.WriteString("  ")
			}
			if i < texts {
				out.WriteString(cell + pad)
			} else {
				out.WriteString(pad + cell)
			}
		}
		out.WriteString("\n")
	}
	return out.String()
}
