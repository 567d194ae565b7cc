package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
)

func cacheCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show what the response cache keeps, and have answers forgotten",
		Long: `Answers are kept for the requests that cache.rules cover, and for those that ask for it.
These commands ask a running ingress, at admin.address with admin.token.`,
		Example: `  sluice cache show
  sluice cache purge --model gpt-4o-mini --tenant research`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(cacheShow(s), cachePurge(s))
	return cmd
}

func cacheShow(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show how much is kept, and how often it was of use",
		Long:    `Show what the database keeps, and what the ingress that answers has in memory and did since it began.`,
		Example: `  sluice cache show`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				var shown adminapi.Cache
				if err := ask(http.MethodGet, adminapi.CachePath, nil, &shown); err != nil {
					return err
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "LEVEL\tENTRIES\tBYTES\tMAX BYTES")
				fmt.Fprintf(t, "database\t%d\t%d\t%d\n", shown.Database.Entries, shown.Database.Bytes, shown.Database.MaxBytes)
				fmt.Fprintf(t, "memory\t%d\t%d\t%d\n", shown.Memory.Entries, shown.Memory.Bytes, shown.Memory.MaxBytes)
				if err := t.Flush(); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "This ingress: %s, %s, %s.\n",
					counted(shown.Hits, "hit", "hits"), counted(shown.Misses, "miss", "misses"), counted(shown.Stale, "stale answer", "stale answers"))
				return err
			})
		},
	}
}

func cachePurge(s *settings) *cobra.Command {
	var model, tenant, key string
	var all bool
	cmd := &cobra.Command{
		Use:   "purge",
		Short: "Have answers forgotten: of a model, a tenant or a key, or all",
		Long: `Have the answers forgotten that meet everything that is named. No ingress gives them
any more after a few seconds, also where they are on their way to the cache now. A key is
named by its name or id, and a caller with tokens by the id that the ledger has.`,
		Example: `  sluice cache purge --tenant research
  sluice cache purge --all`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			query := url.Values{}
			for name, value := range map[string]string{"model": model, "tenant": tenant, "key": key} {
				if value != "" {
					query.Set(name, value)
				}
			}
			if all == (len(query) > 0) {
				return usageError{errors.New("write --model, --tenant or --key, or --all and none of these")}
			}
			if all {
				query.Set("all", "true")
			}
			return s.asOperator(cmd, func(ask operator) error {
				var purged adminapi.CachePurged
				if err := ask(http.MethodDelete, adminapi.CachePath+"?"+query.Encode(), nil, &purged); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s forgotten.\n", counted(purged.Deleted, "answer is", "answers are"))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&model, "model", "", "model of the answers, as it was asked for, an alias replaced")
	cmd.Flags().StringVar(&tenant, "tenant", "", "tenant of the answers")
	cmd.Flags().StringVar(&key, "key", "", "name or id of the API key whose request was answered first")
	cmd.Flags().BoolVar(&all, "all", false, "every answer of every tenant")
	return cmd
}
