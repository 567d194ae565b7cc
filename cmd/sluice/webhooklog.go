package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
)

func webhooksLog(s *settings) *cobra.Command {
	var tenant, state string
	var limit int
	cmd := &cobra.Command{
		Use:   "log [ID]",
		Short: "Show deliveries and their attempts, newest event first",
		Example: `  sluice webhooks log whk_… --limit 10
  sluice webhooks log --tenant research --state failed`,
		Args: cobra.MatchAll(func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("%s takes one id at most", cmd.CommandPath())}
			}
			return nil
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"tenant": {tenant}, "state": {state}, "limit": {strconv.Itoa(limit)}}
			if len(args) > 0 {
				q.Set("webhook", args[0])
			}
			return s.asOperator(cmd, func(ask operator) error {
				var list adminapi.DeliveryList
				if err := ask(http.MethodGet, adminapi.DeliveriesPath+"?"+q.Encode(), nil, &list); err != nil {
					return err
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "EVENT\tTYPE\tOBJECT\tWEBHOOK\tSTATE\tATTEMPT\tAT\tRESULT")
				for _, d := range list.Deliveries {
					printDelivery(t, d)
				}
				return t.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "tenant whose deliveries are shown; all if not given")
	cmd.Flags().StringVar(&state, "state", "", "pending, delivered or failed; all if not given")
	cmd.Flags().IntVar(&limit, "limit", 20, "deliveries to show")
	return cmd
}

// printDelivery prints a line for each attempt, and one for a delivery without any.
func printDelivery(t *tabwriter.Writer, d adminapi.Delivery) {
	to := d.Webhook
	if to == "" {
		to = "(its own)"
	}
	head := fmt.Sprintf("%s\t%s\t%s\t%s\t%s", d.Event, d.Type, d.Object, to, d.State)
	if len(d.Log) == 0 {
		fmt.Fprintf(t, "%s\t\t\t\n", head)
	}
	for _, a := range d.Log {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", head, a.Number, stamp(a.At), attemptText(a))
	}
}

func webhooksSecret(s *settings) *cobra.Command {
	var req adminapi.TenantSecret
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Print the secret that signs the webhooks which a tenant's single jobs name",
		Long: `Print the secret that signs the webhooks which a tenant's single jobs name, on standard
output. It is made when it is first asked for or needed.`,
		Example: `  sluice webhooks secret --tenant research
  sluice webhooks secret --tenant research --rotate`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("overlap") && !req.Rotate {
				return usageError{errors.New("--overlap goes with --rotate")}
			}
			req.Overlap = overlap.String()
			return s.asOperator(cmd, func(ask operator) error {
				var got adminapi.TenantSecretShown
				if err := ask(http.MethodPost, adminapi.SecretPath, req, &got); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), got.Secret)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&req.Tenant, "tenant", "default", "tenant whose secret is printed")
	cmd.Flags().BoolVar(&req.Rotate, "rotate", false, "make a new one; the old one goes on signing for a while")
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "with --rotate: how long that while is")
	return cmd
}
