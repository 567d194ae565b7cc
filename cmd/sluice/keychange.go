package main

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/adminapi"
)

func keysUpdate(s *settings) *cobra.Command {
	var rename string
	var models []string
	var expires time.Duration
	var never bool
	cmd := &cobra.Command{
		Use:   "update NAME|ID",
		Short: "Change an API key's name, models, end or limits",
		Long: `Change an API key's name, models, end or limits. What is not named stays. Every ingress
goes by it within seconds; requests in flight go on as they began.`,
		Example: `  sluice keys update ci --requests-per-minute 60 --on-limit queue
  sluice keys update ci --models 'gpt-4o*,sim' --expires 720h
  sluice keys update ci --limits limits.json
  sluice keys update ci --no-limits`,
		Args: oneName,
	}
	bounds := addLimitFlags(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		flags := cmd.Flags()
		switch {
		case flags.Changed("expires") && expires <= 0:
			return usageError{errors.New("--expires must be positive")}
		case flags.Changed("expires") && never:
			return usageError{errors.New("--expires and --never-expires exclude each other")}
		case !bounds.given() && !never && !flags.Changed("name") && !flags.Changed("models") && !flags.Changed("expires"):
			return usageError{fmt.Errorf("%s has nothing to change: name what is to be different", cmd.CommandPath())}
		}
		return s.administer(cmd, func(ask operator) error {
			var key adminapi.Key
			if err := ask(http.MethodGet, keyPath(args[0]), nil, &key); err != nil {
				return noKey(err, args[0])
			}
			// Limits are changed one by one, so they must still be those that were seen.
			req := adminapi.UpdateKey{UpdatedAt: &key.UpdatedAt}
			if flags.Changed("name") {
				req.Name = &rename
			}
			if flags.Changed("models") {
				req.Models = adminapi.Given(&models)
			}
			if end := time.Now().Add(expires); expires > 0 {
				req.ExpiresAt = adminapi.Given(&end)
			} else if never {
				req.ExpiresAt = adminapi.Given[time.Time](nil)
			}
			if bounds.given() {
				l, err := bounds.apply(key.Limits)
				if err != nil {
					return err
				}
				req.Limits = adminapi.Given(l)
			}
			if err := ask(http.MethodPatch, keyPath(key.ID), req, &key); err != nil {
				return noKey(err, args[0])
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "Key %s (%s) is updated.\n", key.Name, key.ID)
			return err
		})
	}
	cmd.Flags().StringVar(&rename, "name", "", "new name")
	cmd.Flags().StringSliceVar(&models, "models", nil, "models that the key may use, as names or globs; an empty text is all")
	cmd.Flags().DurationVar(&expires, "expires", 0, "time from now until the key expires, such as 720h")
	cmd.Flags().BoolVar(&never, "never-expires", false, "let the key not expire any more")
	return cmd
}

func keysRotate(s *settings) *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate NAME|ID",
		Short: "Give an API key a new secret and print it, this once",
		Long: `Give an API key a new secret and print it on standard output, this once. The old one
stays valid for as long as --overlap says. It stays the same key: its limits and its usage
count on. With --overlap 0s all of its old secrets end at once; with any other, those that
were replaced earlier end when they were to.`,
		Example: `  sluice keys rotate ci --overlap 48h`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.administer(cmd, func(ask operator) error {
				var key adminapi.Key
				if err := ask(http.MethodPost, keyPath(args[0])+"/rotate", adminapi.RotateKey{Overlap: overlap.String()}, &key); err != nil {
					return noKey(err, args[0])
				}
				old := "the old one is valid for " + overlap.String()
				if overlap == 0 {
					old = "every older one has ended"
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Key %s (%s) has a new secret, shown this once; %s:\n", key.Name, key.ID, old)
				_, err := fmt.Fprintln(cmd.OutOrStdout(), key.Secret)
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "time for which the old secret stays valid")
	return cmd
}
