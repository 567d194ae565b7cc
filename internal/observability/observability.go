// Package observability makes the process's logger and its registry of metrics, with
// the handler that shows them. What is logged and counted is decided where it happens.
package observability

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Level is the least level that a logger logs. It may change while the logger is used.
type Level struct{ slog.LevelVar }

// NewLevel returns a level by its name (debug, info, warn, error).
func NewLevel(name string) (*Level, error) {
	l := new(Level)
	return l, l.SetName(name)
}

// SetName changes the level to the one of that name.
func (l *Level) SetName(name string) error {
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return fmt.Errorf("log level %q: %w", name, err)
	}
	return nil
}

// NewLogger returns a logger of the given least level and format (json, text).
func NewLogger(w io.Writer, level *Level, format string) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// NewRegistry returns a registry with the process's and the runtime's own metrics.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// MetricsHandler serves the registry in Prometheus's formats.
func MetricsHandler(reg *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg})
}
