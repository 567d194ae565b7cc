package main

import (
	"errors"
	"log/slog"
	"net"
	"net/http"

	"go.uber.org/fx"
)

// supervisor runs the parts that a process cannot do without, each in a goroutine of
// its own. When one of them fails, the whole process stops with an exit code: whoever
// looks after it can start it anew, and cannot see that it idles.
type supervisor struct {
	shutdown fx.Shutdowner
	log      *slog.Logger
}

func newSupervisor(shutdown fx.Shutdowner, log *slog.Logger) *supervisor {
	return &supervisor{shutdown: shutdown, log: log}
}

// run starts a part. Whoever stops the part calls wait, which returns when it has
// ended.
func (s *supervisor) run(part string, fn func() error) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := fn(); err != nil {
			s.log.Error("part of the process failed", "part", part, "error", err)
			_ = s.shutdown.Shutdown(fx.ExitCode(exitFailure)) // it fails only when a stop is under way
		}
	}()
	return func() { <-done }
}

// serve runs an HTTP server until it is shut down or its listener closed.
func (s *supervisor) serve(part string, srv *http.Server, l net.Listener) (wait func()) {
	return s.run(part, func() error {
		err := srv.Serve(l)
		if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
}
