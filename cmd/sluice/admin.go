package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sluice/internal/config"
	"sluice/store"
)

func migrateCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "migrate",
		Short:   "Bring the database's schema up to date",
		Example: `  sluice migrate --config ingress.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, cmd.ErrOrStderr(), func(ctx context.Context, db store.Store) error {
				if err := db.Migrate(ctx); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "The database's schema is up to date.")
				return err
			})
		},
	}
}

// withStore opens the configured database for one command. Warnings about the configuration
// go to warn.
func (s *settings) withStore(cmd *cobra.Command, warn io.Writer, fn func(context.Context, store.Store) error) error {
	loaded, err := s.loadAndWarn(warn, config.RoleAdmin)
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
func (s *settings) withSchema(cmd *cobra.Command, warn io.Writer, fn func(context.Context, store.Store) error) error {
	return s.withStore(cmd, warn, func(ctx context.Context, db store.Store) error {
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

func oneName(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return usageError{fmt.Errorf("%s takes one name", cmd.CommandPath())}
	}
	return nil
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

// counted is a number of things: of one, or of any other number.
func counted[N int | int64](n N, one, others string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.FormatInt(int64(n), 10) + " " + others
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
