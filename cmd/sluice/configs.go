package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"sluice/internal/config"
)

func configCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check, show, describe and reload the configuration",
		Long: `Check, show, describe and reload the configuration. A process that serves follows
its file: a change takes force while it runs, without a request being lost, and a
file that is no good changes nothing. The schema says of each setting whether it
changes so (x-reload: live) or at the next start alone (x-reload: restart).`,
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
	cmd.AddCommand(configValidate(s), configShow(s), configSchema(), configReload(s))
	return cmd
}

// reader is whose settings a command reads.
type reader struct {
	role      string
	providers []string
}

func (r *reader) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.role, "role", string(config.RoleServe), "whose settings: serve, ingress or worker")
	cmd.Flags().StringSliceVarP(&r.providers, "provider", "p", nil, "for a worker: provider that it serves; may be given several times; all if not given")
}

// load reads the configuration as the role would, with the same complaints.
func (r *reader) load(cmd *cobra.Command, s *settings) (*config.Loaded, error) {
	role := config.Role(r.role)
	if role != config.RoleServe && role != config.RoleIngress && role != config.RoleWorker {
		return nil, usageError{fmt.Errorf("--role %s: want serve, ingress or worker", r.role)}
	}
	if len(r.providers) > 0 && role != config.RoleWorker {
		return nil, usageError{errors.New("--provider goes with --role worker alone: every other role has all providers")}
	}
	loaded, err := s.loadAndWarn(cmd.ErrOrStderr(), role, r.providers...)
	if err != nil {
		return nil, err
	}
	return loaded, requireProviders(loaded.Config, r.providers)
}

func configValidate(s *settings) *cobra.Command {
	var r reader
	cmd := &cobra.Command{
		Use: "validate", Short: "Check the configuration and exit", Args: noArgs,
		Example: `  sluice config validate --config sluice.yaml
  sluice config validate --role ingress --config ingress.yaml
  sluice config validate --role worker --provider openai --config worker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := r.load(cmd, s); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "The configuration is valid.")
			return err
		},
	}
	r.addFlags(cmd)
	return cmd
}

func configShow(s *settings) *cobra.Command {
	var r reader
	var live bool
	cmd := &cobra.Command{
		Use: "show", Short: "Print the settings in force, secrets masked", Args: noArgs,
		Long: `Print the settings as the configuration gives them, secrets masked; with --live as
they are in force in the running ingress, with what is to say of them.`,
		Example: `  sluice config show --config sluice.yaml
  sluice config show --role worker --provider openai --config worker.yaml
  sluice config show --live --config sluice.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if live && (cmd.Flags().Changed("role") || cmd.Flags().Changed("provider")) {
				return usageError{errors.New("--role and --provider do not go with --live: what runs has its settings")}
			}
			if live {
				return showLive(cmd, s)
			}
			loaded, err := r.load(cmd, s)
			if err != nil {
				return err
			}
			out, err := config.Show(loaded.Config)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	cmd.Flags().BoolVar(&live, "live", false, "ask the ingress that runs at admin.address")
	r.addFlags(cmd)
	return cmd
}

func configSchema() *cobra.Command {
	return &cobra.Command{
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
}
