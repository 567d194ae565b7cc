// Command sluice is an asynchronous inference broker: an OpenAI-compatible ingress
// whose requests reach the workers of each provider through a durable queue.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sluice/internal/config"
)

// version is set by the linker.
var version = "dev"

// Exit codes, as Unix programs use them.
const (
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func main() {
	// net/http tells the standard logger of stray answers of an upstream, and quotes them.
	log.SetOutput(io.Discard)
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "sluice: %v\nTry 'sluice --help'.\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return exitFailure
	}
}

// exitOnSignal ends the process at once when a second signal comes before it has
// stopped by itself.
func exitOnSignal(signals <-chan os.Signal, stopped <-chan struct{}) {
	select {
	case <-stopped:
	case <-signals:
		os.Exit(exitFailure)
	}
}

// settings are the flags that every command shares.
type settings struct{ path string }

func (s *settings) load(role config.Role, providers ...string) (*config.Loaded, error) {
	return config.Load(config.Options{Path: s.path, Role: role, Providers: providers})
}

// loadAndWarn is load for commands, which do not log and are no server.
func (s *settings) loadAndWarn(stderr io.Writer, role config.Role, providers ...string) (*config.Loaded, error) {
	loaded, err := config.Load(config.Options{Path: s.path, Role: role, Providers: providers, Command: true})
	if err != nil {
		return nil, err
	}
	for _, u := range loaded.UnknownEnv {
		fmt.Fprintln(stderr, "sluice: warning:", u)
	}
	return loaded, nil
}

// requireProviders returns an error unless the configuration has every provider named.
func requireProviders(cfg *config.Config, names []string) error {
	for _, n := range names {
		if _, ok := cfg.Providers[n]; !ok {
			return usageError{fmt.Errorf("--provider %s: the configuration has no provider of this name; it has %q", n, slices.Sorted(maps.Keys(cfg.Providers)))}
		}
	}
	return nil
}

func newRoot() *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use:   "sluice",
		Short: "An asynchronous inference broker with an OpenAI-compatible API",
		Long: `Sluice takes OpenAI-compatible requests, puts them on a durable queue, and lets
the workers of each provider answer them: an accepted request is never lost, a
started stream can be resumed, and usage is counted exactly once.`,
		Example: `  sluice serve                          everything in one process, no setup
  sluice ingress --config sluice.yaml   the HTTP side alone
  sluice worker --provider openai       a worker for one provider, anywhere`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVarP(&s.path, "config", "c", os.Getenv(config.FileVariable), "configuration file (YAML); "+config.FileVariable+" names one too")
	root.SetVersionTemplate(versionLine())
	root.SetHelpCommand(helpCommand())
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		serveCommand(s), ingressCommand(s), workerCommand(s), migrateCommand(s),
		keysCommand(s), tenantsCommand(s), auditCommand(s), configCommand(s), routeCommand(s), webhooksCommand(s), usageCommand(s), versionCommand(),
		providersCommand(s), queuesCommand(s), deadLettersCommand(s), cacheCommand(s), limitsCommand(s),
	)
	return root
}

// noArgs refuses arguments with the exit code of a usage error.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no argument, got %q", cmd.CommandPath(), args[0])}
	}
	return nil
}

// versionLine is what the command and the flag print alike.
func versionLine() string { return "sluice " + version + "\n" }

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: `  sluice version`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), versionLine())
			return err
		},
	}
}

// helpCommand stands in for cobra's own, which takes an unknown command for no error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show help for a command",
		Example: `  sluice help serve
  sluice help keys create`,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("unknown command %q", strings.Join(args, " "))}
			}
			target.InitDefaultHelpFlag() // so that it is listed as with --help
			return target.Help()
		},
	}
}
