package ingress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
)

// ConfigSource knows the configuration of the process, and puts a changed one in force.
type ConfigSource interface {
	// State returns the configuration in force, secrets masked.
	State() (adminapi.ConfigState, error)

	// Reload reads the file again and returns when it is in force, with what was before and
	// what is now. An error means that nothing has changed, and State tells what is wrong
	// with the file. It is ErrNoConfigFile when there is none.
	Reload(ctx context.Context) (before, after adminapi.ConfigState, err error)
}

// ErrNoConfigFile says that the process was started without a configuration file.
var ErrNoConfigFile = errors.New("there is no configuration file")

// routeConfig is where operators look at the configuration, if the process has one to
// show.
func (s *Ingress) routeConfig(r *mux.Router) {
	if s.opt.Config == nil {
		return
	}
	r.HandleFunc(adminapi.ConfigPath, s.showConfig).Methods(http.MethodGet)
	r.HandleFunc(adminapi.ConfigReloadPath, s.reloadConfig).Methods(http.MethodPost)
}

// showConfig serves GET /admin/v1/config, as JSON, or as YAML to those who ask for it.
func (s *Ingress) showConfig(w http.ResponseWriter, r *http.Request) {
	state, err := s.opt.Config.State()
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	if !strings.Contains(r.Header.Get("Accept"), "yaml") {
		s.writeJSON(w, r, state)
		return
	}
	text, err := configYAML(state)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(text) // the client may be gone; nothing else is to be done
}

// configYAML writes the state as YAML. What stands above the settings is JSON in each
// line, which is YAML, too.
func configYAML(state adminapi.ConfigState) ([]byte, error) {
	var b bytes.Buffer
	for _, line := range []struct {
		name  string
		value any
	}{
		{"file", state.File}, {"hash", state.Hash}, {"loaded_at", state.LoadedAt}, {"last_reload", state.LastReload}, {"needs_restart", state.NeedsRestart},
	} {
		value, err := json.Marshal(line.value)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", line.name, err)
		}
		fmt.Fprintf(&b, "%s: %s\n", line.name, value)
	}
	b.WriteString("config:\n")
	for line := range bytes.Lines(state.YAML) {
		b.WriteString("  ")
		b.Write(line)
	}
	return b.Bytes(), nil
}

// reloadConfig serves POST /admin/v1/config/reload: the file is in force when the answer
// comes.
func (s *Ingress) reloadConfig(w http.ResponseWriter, r *http.Request) {
	now, err := s.opt.Config.State()
	if err == nil && now.File == "" {
		err = notReloaded(ErrNoConfigFile)
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	var before, after adminapi.ConfigState
	c := change{action: auditReload, target: configTarget(now.File), before: fileAudit{Hash: now.Hash}}
	failed := s.audited(r, c, func() (err error) {
		before, after, err = s.opt.Config.Reload(context.WithoutCancel(r.Context())) // half of it is no good to anybody
		return notReloaded(err)
	})
	switch {
	case failed != nil && inference.AsError(failed).Code == inference.CodeConfigInvalid:
		s.refuseConfig(w, r, inference.AsError(failed))
	case failed != nil:
		s.adminFail(w, r, failed)
	default:
		was, is := auditedFiles(before, after)
		s.auditOutcome(r, change{c.action + auditDone, c.target, was, is})
		after.Config = nil
		s.writeJSON(w, r, after)
	}
}

// notReloaded is an error of Reload as it is answered.
func notReloaded(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoConfigFile):
		return inference.Errorf(inference.CodeConflict, "There is nothing to reload: the process was started without a configuration file.")
	}
	return &inference.Error{Code: inference.CodeConfigInvalid, Message: "The configuration file is no good. What was in force still is.", Err: err}
}

// refuseConfig answers that the file is no good, and why.
func (s *Ingress) refuseConfig(w http.ResponseWriter, r *http.Request, e *inference.Error) {
	details := make(map[string]any, 1)
	if now, err := s.opt.Config.State(); err == nil && now.LastReload != nil {
		details["faults"] = now.LastReload.Faults
	}
	s.logFailure(r.Context(), w.Header().Get(requestIDHeader), e, nil)
	writeError(w, e, details)
}
