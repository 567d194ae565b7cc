package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/apikey"
	"sluice/internal/config"
	"sluice/internal/queue"
	"sluice/store"
)

func migrateCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "migrate",
		Short:   "Bring the database's schema up to date",
		Example: `  sluice migrate --config ingress.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, func(ctx context.Context, db store.Store) error {
				if err := db.Migrate(ctx); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "The database's schema is up to date.")
				return err
			})
		},
	}
}

// withStore opens the configured database for one command.
func (s *settings) withStore(cmd *cobra.Command, fn func(context.Context, store.Store) error) error {
	loaded, err := s.loadAndWarn(cmd.ErrOrStderr(), config.RoleAdmin)
	if err != nil {
		return err
	}
	db, err := openStore(cmd.Context(), loaded.Config)
	if err != nil {
		return err
	}
	return errors.Join(fn(cmd.Context(), db), db.Close())
}

// withSchema is withStore for commands that need the schema.
func (s *settings) withSchema(cmd *cobra.Command, fn func(context.Context, store.Store) error) error {
	return s.withStore(cmd, func(ctx context.Context, db store.Store) error {
		pending, err := db.Pending(ctx)
		if err != nil {
			return err
		}
		if pending {
			return errSchema
		}
		return fn(ctx, db)
	})
}

func keysCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Create, list and revoke API keys",
		Example: `  sluice keys create ci --tenant research --models 'gpt-4o*' --expires 720h
  sluice keys list
  sluice keys revoke ci`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(keysCreate(s), keysList(s), keysRevoke(s))
	return cmd
}

func oneName(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return usageError{fmt.Errorf("%s takes one name", cmd.CommandPath())}
	}
	return nil
}

func keysCreate(s *settings) *cobra.Command {
	var tenant string
	var models []string
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an API key and print it, this once",
		Long: `Make an API key and print it on standard output, this once: only its hash is
stored. Everything else goes to standard error, so that the key can be piped.`,
		Example: `  sluice keys create ci --tenant research --models 'gpt-4o*,sim' --expires 720h`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("expires") && expires <= 0 {
				return usageError{errors.New("--expires must be positive")}
			}
			secret := apikey.Mint()
			key := store.Key{
				ID: "key_" + queue.NewProcessID(), Name: args[0], Tenant: tenant, Models: models,
				Display: apikey.Display(secret), Hash: apikey.Hash(secret),
			}
			if expires > 0 {
				key.ExpiresAt = time.Now().Add(expires)
			}
			if err := key.Validate(); err != nil {
				return usageError{err}
			}
			return s.withSchema(cmd, func(ctx context.Context, db store.Store) error {
				if err := db.CreateKey(ctx, key); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "Key %s (%s) of tenant %s, shown this once:\n", key.Name, key.ID, tenant)
				_, err := fmt.Fprintln(cmd.OutOrStdout(), secret)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "default", "tenant that the key's usage counts for")
	cmd.Flags().StringSliceVar(&models, "models", nil, "models that the key may use, as names or globs; all if not given")
	cmd.Flags().DurationVar(&expires, "expires", 0, "time until the key expires, such as 720h; never if not given")
	return cmd
}

func keysList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List API keys, without their secrets",
		Example: `  sluice keys list --config ingress.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withSchema(cmd, func(ctx context.Context, db store.Store) error {
				keys, err := db.ListKeys(ctx)
				if err != nil {
					return err
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tNAME\tTENANT\tKEY\tMODELS\tSTATE\tCREATED")
				for _, k := range keys {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, k.Tenant, k.Display, modelList(k.Models), keyState(k, time.Now()), stamp(k.CreatedAt))
				}
				return t.Flush()
			})
		},
	}
}

func modelList(models []string) string {
	if len(models) == 0 {
		return "all"
	}
	return strings.Join(models, ",")
}

func keyState(k store.Key, now time.Time) string {
	switch {
	case !k.RevokedAt.IsZero():
		return "revoked " + stamp(k.RevokedAt)
	case !k.Active(now):
		return "expired " + stamp(k.ExpiresAt)
	case !k.ExpiresAt.IsZero():
		return "until " + stamp(k.ExpiresAt)
	default:
		return "active"
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func keysRevoke(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME|ID",
		Short:   "Revoke an API key; every ingress refuses it within seconds",
		Example: `  sluice keys revoke ci`,
		Args:    oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withSchema(cmd, func(ctx context.Context, db store.Store) error {
				k, err := db.RevokeKey(ctx, args[0], time.Now())
				if errors.Is(err, store.ErrNotFound) {
					return fmt.Errorf("there is no key with the name or id %q; 'sluice keys list' shows them", args[0])
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Key %s (%s) is revoked.\n", k.Name, k.ID)
				return err
			})
		},
	}
}
