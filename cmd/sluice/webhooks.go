package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/ingress"
	"sluice/internal/adminapi"
	"sluice/internal/config"
	"sluice/store"
)

func webhookOptions(cfg *config.Config, db store.Store) ingress.WebhookOptions {
	w := cfg.Webhooks
	return ingress.WebhookOptions{
		Store: db, AllowPrivate: w.AllowPrivateNetworks, Timeout: w.Timeout, MaxEndpoints: w.MaxEndpoints, Keep: w.Keep,
	}
}

// operator asks a running ingress.
type operator func(method, path string, request, answer any) error

// asOperator gives a command its way to the running ingress.
func (s *settings) asOperator(cmd *cobra.Command, fn func(ask operator) error) error {
	loaded, err := s.loadAndWarn(cmd.ErrOrStderr(), config.RoleOperator)
	if err != nil {
		return err
	}
	admin := loaded.Config.Admin
	if admin.Address == "" {
		return errors.New("this asks a running ingress: it needs admin.address and admin.token in the configuration, as the ingress has them")
	}
	return fn(func(method, path string, request, answer any) error {
		return callIngress(cmd.Context(), admin, method, path, request, answer)
	})
}

func webhooksCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "webhooks",
		Short: "Tell tenants' own servers when a batch or a job has ended",
		Long: `Webhooks tell tenants' own servers when a batch or a job has ended, signed by the
Standard Webhooks specification. These commands ask a running ingress, at
admin.address with admin.token.`,
		Example: `  sluice webhooks create https://example.com/hooks --tenant research --events batch.completed,batch.failed
  sluice webhooks test whk_…
  sluice webhooks log whk_…`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		webhooksCreate(s), webhooksList(s), webhooksTest(s), webhooksRotate(s), webhooksEnable(s),
		webhooksDelete(s), webhooksLog(s), webhooksRedeliver(s), webhooksSecret(s),
	)
	return cmd
}

// pathOf is where an endpoint is asked about. An id is a name like any other to the shell.
func pathOf(id string) string { return adminapi.WebhooksPath + "/" + url.PathEscape(id) }

func webhooksCreate(s *settings) *cobra.Command {
	var req adminapi.CreateWebhook
	cmd := &cobra.Command{
		Use:   "create URL",
		Short: "Make an endpoint and print its secret, this once",
		Long: `Make an endpoint and print its secret on standard output, this once. Everything
else goes to standard error, so that the secret can be piped.`,
		Example: `  sluice webhooks create https://example.com/hooks --tenant research --events batch.completed,job.failed`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.URL = args[0]
			return s.asOperator(cmd, func(ask operator) error {
				var made adminapi.Webhook
				if err := ask(http.MethodPost, adminapi.WebhooksPath, req, &made); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Webhook %s of tenant %s; its secret, shown this once:\n", made.ID, made.Tenant)
				_, err := fmt.Fprintln(cmd.OutOrStdout(), made.Secret)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&req.Tenant, "tenant", "default", "tenant whose events are sent")
	cmd.Flags().StringSliceVar(&req.Events, "events", nil, "types of events to send, such as batch.completed; all if not given")
	return cmd
}

func webhooksList(s *settings) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List endpoints, without their secrets",
		Example: `  sluice webhooks list --tenant research`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				var list adminapi.WebhookList
				if err := ask(http.MethodGet, adminapi.WebhooksPath+"?tenant="+url.QueryEscape(tenant), nil, &list); err != nil {
					return err
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tTENANT\tURL\tEVENTS\tSTATE\tCREATED")
				for _, w := range list.Webhooks {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", w.ID, w.Tenant, w.URL, modelList(w.Events), webhookState(w), stamp(w.CreatedAt))
				}
				return t.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "tenant whose endpoints are listed; all if not given")
	return cmd
}

func webhookState(w adminapi.Webhook) string {
	switch {
	case w.DisabledAt != nil:
		return "disabled " + stamp(*w.DisabledAt) + " (" + w.DisabledFor + ")"
	case w.FailingSince != nil:
		return "failing since " + stamp(*w.FailingSince)
	}
	return "active"
}

func webhooksTest(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "test ID",
		Short: "Send an event of the type webhook.test and say what came of it",
		Long: `Send an event of the type webhook.test to the endpoint, whatever its filter, wait for
the first attempt, and say what came of it. It fails if the endpoint did not take it.`,
		Example: `  sluice webhooks test whk_…`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				var sent adminapi.TestWebhook
				if err := ask(http.MethodPost, pathOf(args[0])+"/test", nil, &sent); err != nil {
					return err
				}
				first, err := firstAttempt(cmd.Context(), ask, sent.Event)
				if err != nil {
					return err
				}
				if first.Status < 200 || first.Status > 299 {
					return fmt.Errorf("event %s was not taken: %s; it is tried again later", sent.Event, attemptText(first))
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Event %s was taken: %s.\n", sent.Event, attemptText(first))
				return err
			})
		},
	}
}

// How long the first attempt of a test is waited for, and how often it is asked for.
const (
	testWait  = 90 * time.Second // longer than webhooks.timeout can be
	testEvery = 200 * time.Millisecond
)

func firstAttempt(ctx context.Context, ask operator, event string) (adminapi.Attempt, error) {
	ctx, cancel := context.WithTimeout(ctx, testWait)
	defer cancel()
	tick := time.NewTicker(testEvery)
	defer tick.Stop()
	for {
		var list adminapi.DeliveryList
		if err := ask(http.MethodGet, adminapi.DeliveriesPath+"?event="+url.QueryEscape(event), nil, &list); err != nil {
			return adminapi.Attempt{}, err
		}
		if len(list.Deliveries) > 0 && len(list.Deliveries[0].Log) > 0 {
			return list.Deliveries[0].Log[0], nil
		}
		select {
		case <-ctx.Done():
			return adminapi.Attempt{}, fmt.Errorf("event %s was not tried within %s", event, testWait)
		case <-tick.C:
		}
	}
}

func attemptText(a adminapi.Attempt) string {
	what := a.Failure
	if a.Status != 0 {
		what = "status " + strconv.Itoa(a.Status)
	}
	return fmt.Sprintf("%s after %d ms", what, a.TookMS)
}

func webhooksRotate(s *settings) *cobra.Command {
	var overlap time.Duration
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give an endpoint a new secret and print it, this once",
		Long: `Give an endpoint a new secret and print it on standard output, this once. For as long
as --overlap says deliveries are signed with the old one, too.`,
		Example: `  sluice webhooks rotate whk_… --overlap 48h`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				var got adminapi.Webhook
				if err := ask(http.MethodPost, pathOf(args[0])+"/rotate", adminapi.RotateWebhook{Overlap: overlap.String()}, &got); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Webhook %s has a new secret, shown this once; the old one signs too for %s:\n", got.ID, overlap)
				_, err := fmt.Fprintln(cmd.OutOrStdout(), got.Secret)
				return err
			})
		},
	}
	cmd.Flags().DurationVar(&overlap, "overlap", 24*time.Hour, "time for which the old secret goes on signing")
	return cmd
}

func webhooksEnable(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "enable ID",
		Short:   "Put a disabled endpoint in force again",
		Example: `  sluice webhooks enable whk_…`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				if err := ask(http.MethodPost, pathOf(args[0])+"/enable", nil, nil); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "Webhook %s is in force.\n", args[0])
				return err
			})
		},
	}
}

func webhooksDelete(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "delete ID",
		Short:   "Remove an endpoint with everything that waits for it",
		Example: `  sluice webhooks delete whk_…`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.asOperator(cmd, func(ask operator) error {
				if err := ask(http.MethodDelete, pathOf(args[0]), nil, nil); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "Webhook %s is removed.\n", args[0])
				return err
			})
		},
	}
}

func webhooksRedeliver(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "redeliver EVENT [ID]",
		Short: "Deliver an event again, to an endpoint or to the event's own address",
		Long: `Deliver an event again at once, with all retries before it, to the endpoint of that id,
or without one to the address that the event itself names. The receiver knows it by its
webhook-id.`,
		Example: `  sluice webhooks redeliver evt_… whk_…`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 || args[0] == "" {
				return usageError{fmt.Errorf("%s takes an event's id, and the id of a webhook", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := adminapi.Redeliver{Event: args[0], Webhook: strings.Join(args[1:], "")}
			return s.asOperator(cmd, func(ask operator) error {
				if err := ask(http.MethodPost, adminapi.RedeliverPath, req, nil); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "Event %s is delivered again.\n", req.Event)
				return err
			})
		},
	}
}
