package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/fx"

	"sluice/internal/config"
)

// roleUnderTest runs parts as a role and returns how it ended and what it logged. A
// role that does not end by itself is stopped after a while, without an error.
func roleUnderTest(t *testing.T, providers map[string]config.Provider, parts ...fx.Option) (string, error) {
	t.Helper()
	cfg := config.Default()
	cfg.DataDir, cfg.Server.Address, cfg.Server.DrainTimeout = t.TempDir(), "127.0.0.1:0", 0
	cfg.Providers = providers
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var log terminal
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	cmd.SetErr(&log)
	err := runRole(cmd, &config.Loaded{Config: &cfg}, nil, parts...)
	return log.String(), err
}

func TestAWorkerThatCannotBeginStopsTheProcess(t *testing.T) {
	t.Parallel()
	const name = "no subject" // the queue has no subject of this name
	log, err := roleUnderTest(t, map[string]config.Provider{name: config.NewProvider(config.TypeSim)}, workerModule, fx.Supply(serving{name}))
	require.ErrorContains(t, err, "a part of the process failed")
	require.Contains(t, log, `"part":"worker"`)
	require.Contains(t, log, "start worker", "the reason is logged")
	require.NotContains(t, log, `"stopped"`, "that is for a clean stop")
}

// brokenListener takes no connection.
type brokenListener struct{ net.Listener }

func (brokenListener) Accept() (net.Conn, error) { return nil, errors.New("out of order") }

func TestAListenerThatBreaksStopsTheProcess(t *testing.T) {
	t.Parallel()
	log, err := roleUnderTest(t, nil, storeModule, ingressModule, fx.Decorate(func(l net.Listener) net.Listener { return brokenListener{l} }))
	require.ErrorContains(t, err, "a part of the process failed")
	require.Contains(t, log, `"part":"http server"`)
	require.Contains(t, log, "out of order")
}

// shutdowns counts what is asked of fx.
type shutdowns struct{ n int }

func (s *shutdowns) Shutdown(...fx.ShutdownOption) error {
	s.n++
	return nil
}

func TestServingEndsWithItsServer(t *testing.T) {
	t.Parallel()
	asked := &shutdowns{}
	parts := newSupervisor(asked, slog.New(slog.DiscardHandler))
	for _, stop := range []func(*http.Server, net.Listener) error{
		func(srv *http.Server, _ net.Listener) error { return srv.Close() },
		func(_ *http.Server, l net.Listener) error { return l.Close() },
	} {
		l, err := listen("127.0.0.1:0")
		require.NoError(t, err)
		srv := &http.Server{}
		wait := parts.serve("test", srv, l)
		require.NoError(t, stop(srv, l))
		wait()
	}
	require.Zero(t, asked.n, "an end that was asked for is no failure")
	l, err := listen("127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	parts.serve("test", &http.Server{}, brokenListener{l})()
	require.Equal(t, 1, asked.n)
}

func TestWhatEndsAProcess(t *testing.T) {
	t.Parallel()
	quiet := slog.New(slog.DiscardHandler)
	for range 50 { // which of two channels is read first is left to chance
		signals, shutdown := make(chan os.Signal, 2), make(chan fx.ShutdownSignal, 1)
		signals <- syscall.SIGTERM
		shutdown <- fx.ShutdownSignal{Signal: syscall.SIGTERM}
		require.NoError(t, awaitEnd(t.Context(), signals, shutdown, quiet), "fx hears the signal too")
		require.Empty(t, signals, "one signal is not taken for a second one")
	}
	failed := make(chan fx.ShutdownSignal, 1)
	failed <- fx.ShutdownSignal{Signal: syscall.SIGTERM, ExitCode: exitFailure}
	require.Error(t, awaitEnd(t.Context(), nil, failed, quiet))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, awaitEnd(ended, nil, nil, quiet))
}
