package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
)

func limitsCommand(s *settings) *cobra.Command {
	return group("limits", "Show how keys, tenants and models stand towards their limits",
		`Limits are set where their holders are: on keys and tenants, and in the configuration.
These commands ask a running ingress, at admin.address with admin.token, for what is
counted of all ingresses together.`,
		`  sluice limits show ci
  sluice limits show --tenant research`,
		limitsShow(s))
}

func limitsShow(s *settings) *cobra.Command {
	var tenant, model string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [KEY]",
		Short: "Show what is used of each limit of a key, a tenant or a model, and when it is free again",
		Long: `Show what is used of each limit, for all ingresses together, and when it is free again.
A key is named by its name or id, and a caller with tokens by the id that the ledger has
(jwt:HOST-HASH:SUBJECT): its limits are shown as the configuration has them. Money is reserved while a request runs; what an ingress
had reserved that was killed is orphaned, and free again after a while.`,
		Example: `  sluice limits show ci
  sluice limits show --tenant research --json
  sluice limits show --model gpt-4o`,
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{}
			setText(query, "key", strings.Join(args, ""))
			setText(query, "tenant", tenant)
			setText(query, "model", model)
			if len(query) != 1 || len(args) > 1 {
				return usageError{errors.New("name one key, or write --tenant or --model")}
			}
			return s.asOperator(cmd, func(ask operator) error {
				var shown adminapi.LimitsShown
				if err := ask(http.MethodGet, adminapi.LimitsPath+"?"+query.Encode(), nil, &shown); err != nil {
					if len(args) > 0 {
						return noKey(err, args[0])
					}
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), shown)
				}
				return printLimits(cmd.OutOrStdout(), &shown)
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "tenant, instead of a key")
	cmd.Flags().StringVar(&model, "model", "", "model, instead of a key")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return cmd
}

func printLimits(out io.Writer, shown *adminapi.LimitsShown) error {
	if len(shown.Scopes) == 0 {
		_, err := fmt.Fprintln(out, "Nothing is limited.")
		return err
	}
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "MODELS\tLIMIT\tVALUE\tUSED\tRESERVED\tLEFT\tRESET")
	for i := range shown.Scopes {
		printScope(t, &shown.Scopes[i], shown.LimitsClaim != "")
	}
	if err := t.Flush(); err != nil || shown.LimitsClaim == "" {
		return err
	}
	_, err := fmt.Fprintf(out, "Tokens of this caller may carry other limits in the claim %s; what is used counts for those, too.\n", shown.LimitsClaim)
	return err
}

// printScope leaves out what has no limit, unless that is asked for and something is used.
func printScope(t io.Writer, scope *adminapi.LimitScope, unbounded bool) {
	row := func(name, most, used, reserved, left, reset string) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", modelList(scope.Models), name, most, used, reserved, left, reset)
	}
	count := func(name string, most, left *int64, used int64, reset string) {
		switch {
		case most != nil:
			row(name, strconv.FormatInt(*most, 10), strconv.FormatInt(used, 10), "-", strconv.FormatInt(*left, 10), reset)
		case unbounded && used > 0:
			row(name, "-", strconv.FormatInt(used, 10), "-", "-", reset)
		}
	}
	window := func(name string, w *adminapi.LimitWindow) {
		count(name, w.Limit, w.Remaining, w.Used, "in "+(time.Duration(w.ResetSeconds)*time.Second).String())
	}
	window("requests_per_minute", &scope.RequestsPerMinute)
	window("tokens_per_minute", &scope.TokensPerMinute)
	count("concurrent", scope.Concurrent.Limit, scope.Concurrent.Remaining, scope.Concurrent.Used, "-")
	count("queued", scope.Queued.Limit, scope.Queued.Remaining, scope.Queued.Used, "-")
	for _, b := range []struct {
		name  string
		spend *adminapi.LimitSpend
	}{{"budget.day", scope.Budget.Day}, {"budget.week", scope.Budget.Week}, {"budget.month", scope.Budget.Month}} {
		if b.spend != nil {
			row(b.name, b.spend.Limit.String(), b.spend.Spent.String(), scope.Budget.Reserved.String(), b.spend.Remaining.String(), stamp(b.spend.ResetsAt))
		}
	}
}
