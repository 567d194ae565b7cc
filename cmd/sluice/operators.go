package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"go.uber.org/fx"

	"sluice/ingress"
	"sluice/internal/config"
)

// operatorTimeout bounds a whole request of an operator's: it asks for what is in memory.
const operatorTimeout = 30 * time.Second

// adminListener is the operators' listener. It has none if none is configured.
type adminListener struct{ net.Listener }

func newAdminListener(cfg *config.Config) (adminListener, error) {
	if cfg.Admin.Address == "" {
		return adminListener{}, nil
	}
	l, err := listen(cfg.Admin.Address)
	if err != nil {
		return adminListener{}, startFailed(fmt.Errorf("listen on admin.address %s: %w", cfg.Admin.Address, err))
	}
	return adminListener{l}, nil
}

// operatorsOf are the operators whom the configuration names.
func operatorsOf(cfg *config.Config) []ingress.Operator {
	var all []ingress.Operator
	for _, o := range cfg.Admin.Operators {
		all = append(all, ingress.Operator{Name: o.Name, Token: o.Token.Reveal(), Viewer: o.Role == "viewer"})
	}
	return all
}

// adminParts has the listeners before the ingress, so that an address in use is told
// before anything else starts.
type adminParts struct {
	fx.In
	LC       fx.Lifecycle
	Parts    *supervisor
	Config   *config.Config
	Public   net.Listener
	Listener adminListener
	Ingress  *ingress.Ingress
	Log      *slog.Logger
}

// serveAdmin serves operators on their own listener, if there is one. It goes on until
// the public server has drained: an ingress that is stopping can still be asked.
func serveAdmin(p adminParts) {
	if p.Listener.Listener == nil {
		return
	}
	srv := &http.Server{
		Handler:           p.Ingress.AdminHandler(p.Config.Admin.Token.Reveal(), operatorsOf(p.Config)...),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: operatorTimeout, WriteTimeout: operatorTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: headerBytes, ErrorLog: slog.NewLogLogger(p.Log.Handler(), slog.LevelDebug),
	}
	var wait func()
	p.LC.Append(fx.StartStopHook(
		func() {
			wait = p.Parts.serve("admin listener", srv, p.Listener)
			p.Log.Info("serving operators", "address", p.Listener.Addr().String())
		},
		func() error {
			err := srv.Close()
			wait()
			return err
		},
	))
}
