package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
)

// groupCommand is a command that only has others below it.
func groupCommand(use, short, long, example string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(below...)
	return cmd
}

// jsonFlag adds --json, which prints what the ingress answered.
func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
}

// notSure refuses what cannot be undone unless --yes was given.
func notSure(cmd *cobra.Command, yes bool, what string) error {
	if yes {
		return nil
	}
	return usageError{fmt.Errorf("%s %s, which cannot be undone: say --yes if that is meant", cmd.CommandPath(), what)}
}

func yesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVar(yes, "yes", false, "do it: it cannot be undone")
}

func providersCommand(s *settings) *cobra.Command {
	return groupCommand("providers", "Look at providers; pause, drain and resume them",
		`Look at providers; pause, drain and resume them. The workers of a paused provider take
no jobs, and its queue holds them until their deadline. A provider that is drained gets
no new requests, and its queue is worked off. These commands ask a running ingress, at
admin.address with admin.token.`,
		`  sluice providers list
  sluice providers pause openai --reason "key rotation" --for 30m
  sluice providers resume openai`,
		providersList(s),
		providersChange(s, "pause", "Have a provider's queue hold its jobs", adminapi.PausePath, true),
		providersChange(s, "drain", "Send a provider no new requests and work off its queue", adminapi.DrainPath, true),
		providersChange(s, "resume", "Put a provider in service again", adminapi.ResumePath, false),
		providersReset(s))
}

func providerPath(name, what string) string {
	return adminapi.ProvidersPath + "/" + url.PathEscape(name) + what
}

func providersList(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List providers as routing sees them", Example: `  sluice providers list`, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				var list adminapi.ProviderList
				if err := ask(http.MethodGet, adminapi.ProvidersPath, nil, &list); err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), list)
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "PROVIDER\tSTATE\tWORKERS\tSLOTS\tIN FLIGHT\tLIMIT\tWAITING\tBREAKERS\tREASON")
				for _, p := range list.Providers {
					fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", p.Name, providerState(p), p.Workers, p.Slots, p.InFlight, p.Limit,
						waitingByLane(p.Queue), breakersText(p.Breakers), p.Reason)
				}
				return t.Flush()
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func providerState(p adminapi.Provider) string {
	if p.Until != nil {
		return p.State + " until " + stamp(*p.Until)
	}
	return p.State
}

// waitingByLane shows how many jobs wait: interactive/background/batch.
func waitingByLane(lanes []adminapi.Lane) string {
	counts := make([]string, len(lanes))
	for i, l := range lanes {
		counts[i] = fmt.Sprint(l.Waiting)
	}
	return strings.Join(counts, "/")
}

func breakersText(breakers map[string]string) string {
	var turned []string
	for _, model := range slices.Sorted(maps.Keys(breakers)) {
		if state := breakers[model]; state != inference.BreakerClosed {
			turned = append(turned, model+" "+state)
		}
	}
	if len(turned) == 0 {
		return "closed"
	}
	return strings.Join(turned, ", ")
}

func providersChange(s *settings, verb, short, path string, timed bool) *cobra.Command {
	var req adminapi.ChangeProvider
	var lasting time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use: verb + " PROVIDER", Short: short, Example: "  sluice providers " + verb + ` openai --reason "key rotation"`, Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("for") {
				if lasting <= 0 {
					return usageError{fmt.Errorf("--for must be positive")}
				}
				req.For = lasting.String()
			}
			return s.asOperator(cmd, func(ask operator) error {
				var p adminapi.Provider
				if err := ask(http.MethodPost, providerPath(args[0], path), req, &p); err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), p)
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "Provider %s is %s.\n", p.Name, providerState(p))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for whoever looks at it later")
	if timed {
		cmd.Flags().DurationVar(&lasting, "for", 0, "time after which it is in service again by itself, such as 30m; until it is resumed if not given")
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func providersReset(s *settings) *cobra.Command {
	var model string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "reset-breakers PROVIDER", Short: "Close a provider's circuit breakers in all its workers",
		Long: `Close a provider's circuit breakers in all its workers, or that of one model, and
forget for how long the provider asked to be left alone. It is said to the workers
that hear it now; the answer says how many did.`,
		Example: `  sluice providers reset-breakers openai --model gpt-4o`, Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := providerPath(args[0], adminapi.ResetPath)
			if model != "" {
				path += "?model=" + url.QueryEscape(model)
			}
			return s.asOperator(cmd, func(ask operator) error {
				var done adminapi.BreakersReset
				if err := ask(http.MethodPost, path, nil, &done); err != nil {
					return err
				}
				if asJSON {
					return printJSON(cmd.OutOrStdout(), done)
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%d of %s heard it and closed %s.\n",
					done.Heard, counted(done.Workers, "worker", "workers"), counted(done.Closed, "breaker", "breakers"))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&model, "model", "", "model whose breaker is closed; all if not given")
	jsonFlag(cmd, &asJSON)
	return cmd
}
