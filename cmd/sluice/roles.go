package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"

	"sluice/internal/config"
	"sluice/internal/observability"
)

func serveCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run ingress and worker in one process",
		Long: `Run ingress and worker in one process. Without a configuration file it uses an
embedded queue and an embedded database under ./data, looks for providers in the
environment (OPENAI_API_KEY) and on this machine (Ollama), and always offers the
simulated provider "sim". The first start makes an API key and prints it once.`,
		Example: `  sluice serve
  sluice serve --config sluice.yaml
  SLUICE_SERVER_ADDRESS=127.0.0.1:9000 sluice serve`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			loaded, err := s.load(config.RoleServe)
			if err != nil {
				return err
			}
			return serve(cmd, loaded)
		},
	}
}

func serve(cmd *cobra.Command, loaded *config.Loaded) error {
	cfg := loaded.Config
	d := &discovery{environ: loaded.Options.Environ}
	d.complete(cmd.Context(), cfg)
	return runRole(cmd, loaded, d.complete, fx.Supply(welcome{out: cmd.OutOrStdout(), found: d.found}),
		storeModule, ingressModule, workerModule, fx.Supply(serving(slices.Sorted(maps.Keys(cfg.Providers)))), fx.Invoke(greet))
}

// discovery finds providers where the configuration names none, once.
type discovery struct {
	environ []string
	found   []config.Found
}

func (d *discovery) complete(ctx context.Context, cfg *config.Config) {
	if len(cfg.Providers) > 0 {
		return
	}
	if d.found == nil {
		d.found = config.Discover(ctx, d.environ, config.Probe)
	}
	cfg.Providers = make(map[string]config.Provider)
	for _, f := range d.found {
		if f.Provider != nil {
			cfg.Providers[f.Name] = *f.Provider
		}
	}
}

func ingressCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "ingress",
		Short: "Run the HTTP side alone",
		Long: `Run the HTTP side alone: it authenticates, checks and routes requests and sends
them to the queue. It needs an external NATS server (queue.url) and a database
that its workers never see; it reads no provider's secret.`,
		Example: `  sluice migrate --config ingress.yaml && sluice ingress --config ingress.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			loaded, err := s.load(config.RoleIngress)
			if err != nil {
				return err
			}
			return runRole(cmd, loaded, nil, storeModule, ingressModule)
		},
	}
}

func workerCommand(s *settings) *cobra.Command {
	var names []string
	cmd := &cobra.Command{
		Use:   "worker --provider NAME...",
		Short: "Run a worker for one or several providers",
		Long: `Run a worker for one or several providers of the configuration. It reaches out to
NATS and to its providers and needs nothing else: no database, no open port.
Start as many as you like, anywhere.`,
		Example: `  sluice worker --provider openai --config worker.yaml
  sluice worker --provider vllm --provider ollama --config worker.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(names) == 0 {
				return usageError{errors.New("--provider is missing: name the providers to serve")}
			}
			loaded, err := s.load(config.RoleWorker, names...)
			if err != nil {
				return err
			}
			if err := requireProviders(loaded.Config, names); err != nil {
				return err
			}
			slices.Sort(names)
			return runRole(cmd, loaded, nil, workerModule, fx.Supply(serving(slices.Compact(names))), fx.Invoke(serveWorkerHealth))
		},
	}
	cmd.Flags().StringSliceVarP(&names, "provider", "p", nil, "provider to serve; may be given several times")
	return cmd
}

// stopMargin is what is left for the last words after the drain.
const stopMargin = 30 * time.Second

// runRole composes a role and runs it until a signal, or until it fails.
func runRole(cmd *cobra.Command, loaded *config.Loaded, complete completion, parts ...fx.Option) error {
	cfg := loaded.Config
	hups := make(chan os.Signal, 1)
	signal.Notify(hups, syscall.SIGHUP) // from now on, since it would end the process
	defer signal.Stop(hups)
	level, err := observability.NewLevel(cfg.Observability.LogLevel)
	if err != nil {
		return err
	}
	log := observability.NewLogger(cmd.ErrOrStderr(), level, cfg.Observability.LogFormat)
	for _, u := range loaded.UnknownEnv {
		log.Warn("environment variable is no setting", "name", u.Name, "did_you_mean", u.Near)
	}
	app := fx.New(
		fx.Supply(cfg, log, newReloader(loaded, complete, level, hups, log)), fx.Provide(newSupervisor),
		fx.Invoke(tuneGC),
		fx.WithLogger(func() fxevent.Logger { return fxevent.NopLogger }),
		fx.StartTimeout(2*time.Minute), fx.StopTimeout(cfg.Server.DrainTimeout*2+stopMargin),
		baseModule, fx.Options(parts...), fx.Invoke(watchConfig),
	)
	if err := app.Err(); err != nil {
		return rootCause(err)
	}
	return runApp(cmd.Context(), app, log)
}

func runApp(ctx context.Context, app *fx.App, log *slog.Logger) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	// A start is not cut short: what has begun by then would not be stopped in order.
	start, cancel := context.WithTimeout(context.WithoutCancel(ctx), app.StartTimeout())
	defer cancel()
	if err := app.Start(start); err != nil {
		return rootCause(err)
	}
	failed := awaitEnd(ctx, signals, app.Wait(), log)
	stopped := make(chan struct{})
	defer close(stopped)
	go exitOnSignal(signals, stopped)
	stop, cancelStop := context.WithTimeout(context.WithoutCancel(ctx), app.StopTimeout())
	defer cancelStop()
	if err := errors.Join(failed, app.Stop(stop)); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// awaitEnd returns when the process has to stop, with an error if that is because a
// part of it has failed. fx hears the system's signals as well and tells of them
// without an exit code; they are taken from signals alone, lest one signal be counted
// as two.
func awaitEnd(ctx context.Context, signals <-chan os.Signal, shutdown <-chan fx.ShutdownSignal, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case sig := <-signals:
			log.Info("stopping: finishing the work in hand; a second signal ends it at once", "signal", sig.String())
			return nil
		case end := <-shutdown:
			if end.ExitCode != 0 {
				return errors.New("a part of the process failed; see the log")
			}
		}
	}
}

// rootCause takes off what fx tells of constructors around an error.
func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		if s, ok := errors.AsType[startError](err); ok {
			return s.error
		}
		err = inner
	}
}

// startError is an error that a person can act on, whatever wraps it.
type startError struct{ error }

func startFailed(err error) error {
	if err == nil {
		return nil
	}
	return startError{err}
}

func sqlitePath(cfg *config.Config) string { return filepath.Join(cfg.DataDir, "sluice.db") }

// lockDataDir keeps a second process off the same data directory: two embedded
// servers on one store would destroy it.
func lockDataDir(dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := tryLock(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("data directory %s is used by another sluice process: %w", dir, err)
	}
	return f, nil
}
