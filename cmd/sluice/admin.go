package main

import (
	"context"
	"errors"
	"fmt"
	"path"
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
			return s.withStore(cmd.Context(), func(ctx context.Context, db store.Store) error {
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
func (s *settings) withStore(ctx context.Context, fn func(context.Context, store.Store) error) error {
	loaded, err := s.load(config.RoleAdmin)
	if err != nil {
		return err
	}
	db, err := openStore(ctx, loaded.Config)
	if err != nil {
		return err
	}
	return errors.Join(fn(ctx, db), db.Close())
}

// withSchema is withStore for commands that need the schema.
func (s *settings) withSchema(ctx context.Context, fn func(context.Context, store.Store) error) error {
	return s.withStore(ctx, func(ctx context.Context, db store.Store) error {
		pending, err := db.Pending(ctx)
		if err != nil {
			return err
		}
		if pending {
			return errors.New("the database's schema is not up to date: run 'sluice migrate' first, with the same configuration")
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
			if err := checkNewKey(cmd, tenant, models, expires); err != nil {
				return usageError{err}
			}
			return s.withSchema(cmd.Context(), func(ctx context.Context, db store.Store) error {
				secret := apikey.Mint()
				key := store.Key{
					ID: "key_" + queue.NewProcessID(), Name: args[0], Tenant: tenant, Models: models,
					Display: apikey.Display(secret), Hash: apikey.Hash(secret),
				}
				if expires > 0 {
					key.ExpiresAt = time.Now().Add(expires)
				}
				if err := db.CreateKey(ctx, key); err != nil {
					return fmt.Errorf("create key %s: %w", key.Name, err)
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

func checkNewKey(cmd *cobra.Command, tenant string, models []string, expires time.Duration) error {
	if cmd.Flags().Changed("expires") && expires <= 0 {
		return errors.New("--expires must be positive")
	}
	if tenant == "" {
		return errors.New("--tenant must not be empty")
	}
	for _, m := range models {
		if _, err := path.Match(m, ""); err != nil || m == "" {
			return fmt.Errorf("--models: %q is neither a name nor a glob", m)
		}
	}
	return nil
}

func keysList(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List API keys, without their secrets",
		Example: `  sluice keys list --config ingress.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withSchema(cmd.Context(), func(ctx context.Context, db store.Store) error {
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
			return s.withSchema(cmd.Context(), func(ctx context.Context, db store.Store) error {
				k, err := db.RevokeKey(ctx, args[0], time.Now())
				if errors.Is(err, store.ErrNotFound) {
					return fmt.Errorf("there is no key with the name or id %q; 'sluice keys list' shows them", args[0])
				}
				if err != nil {
					return fmt.Errorf("revoke key %s: %w", args[0], err)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Key %s (%s) is revoked.\n", k.Name, k.ID)
				return err
			})
		},
	}
}

func configCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check, show and describe the configuration",
		Example: `  sluice config validate --config sluice.yaml
  sluice config show --config sluice.yaml
  sluice config schema > sluice.schema.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var role string
	withRole := func(fn func(cmd *cobra.Command, loaded *config.Loaded) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, _ []string) error {
			r := config.Role(role)
			if r != config.RoleServe && r != config.RoleIngress && r != config.RoleWorker {
				return usageError{fmt.Errorf("--role %s: want serve, ingress or worker", role)}
			}
			loaded, err := s.load(r)
			if err != nil {
				return err
			}
			return fn(cmd, loaded)
		}
	}
	validate := &cobra.Command{
		Use: "validate", Short: "Check the configuration and exit", Args: noArgs,
		Example: `  sluice config validate --config sluice.yaml
  sluice config validate --role ingress --config ingress.yaml`,
		RunE: withRole(func(cmd *cobra.Command, _ *config.Loaded) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "The configuration is valid.")
			return err
		}),
	}
	show := &cobra.Command{
		Use: "show", Short: "Print the settings in force, secrets masked", Args: noArgs,
		Example: `  sluice config show --config sluice.yaml`,
		RunE: withRole(func(cmd *cobra.Command, loaded *config.Loaded) error {
			out, err := config.Show(loaded.Config)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		}),
	}
	schema := &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of the configuration", Args: noArgs,
		Example: `  sluice config schema > sluice.schema.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := config.Schema()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(string(out), "\n"))
			return err
		},
	}
	for _, c := range []*cobra.Command{validate, show} {
		c.Flags().StringVar(&role, "role", string(config.RoleServe), "whose settings: serve, ingress or worker")
	}
	cmd.AddCommand(validate, show, schema)
	return cmd
}
