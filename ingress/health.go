package ingress

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"sluice/internal/inference"
)

// livez serves GET /livez: the process runs.
func (s *Ingress) livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // nobody to tell if it fails
}

// readiness is the body of GET /readyz.
type readiness struct {
	Status    string                    `json:"status"` // ready or unready
	Checks    map[string]string         `json:"checks"` // ok, or what is wrong
	Providers map[string]providerHealth `json:"providers"`
}

type providerHealth struct {
	Workers  int               `json:"workers"`
	Status   string            `json:"status"` // ok, no worker, or keys refused
	Limit    int               `json:"limit"`  // calls at once that it bears at the moment; zero when not known
	Held     int               `json:"held"`   // jobs that workers hold back until it can be called
	Breakers map[string]string `json:"breakers,omitempty"`
}

// opened returns the breakers that are not closed, by model.
func opened(states []inference.ModelState) map[string]string {
	var found map[string]string
	for _, m := range states {
		if m.Breaker == inference.BreakerClosed {
			continue
		}
		if found == nil {
			found = make(map[string]string)
		}
		found[m.Model] = m.Breaker
	}
	return found
}

const readyTimeout = 2 * time.Second

// readyz serves GET /readyz. An ingress is ready when it can take requests: NATS is
// there and its streams exist. Without the database it goes on serving the keys that
// it knows, without a worker requests wait in the queue, and where a breaker is open they
// go elsewhere: all that is shown, and none of it takes the ingress out of service.
func (s *Ingress) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	ready := readiness{Status: "ready", Checks: map[string]string{"nats": "ok", "database": "ok"}, Providers: map[string]providerHealth{}}
	if err := s.conn.Ready(ctx); err != nil {
		ready.Status, ready.Checks["nats"] = "unready", "not reachable"
	} else if !s.workers.anyQueueReady() {
		ready.Status, ready.Checks["nats"] = "unready", "no queue yet"
	}
	if err := s.opt.Ping(ctx); err != nil {
		ready.Checks["database"] = "not reachable"
	}
	if s.draining.Load() {
		ready.Status, ready.Checks["ingress"] = "unready", "draining"
	}
	for name, p := range s.workers.states() {
		h := providerHealth{Workers: p.Workers, Status: "ok", Limit: p.Limit, Held: p.Held, Breakers: opened(p.States)}
		if p.Workers == 0 {
			h.Status = "no worker"
		} else if p.Refused {
			h.Status = "keys refused"
		}
		ready.Providers[name] = h
	}
	status := http.StatusOK
	if ready.Status != "ready" {
		status = http.StatusServiceUnavailable
	}
	w.Header()["Content-Type"] = jsonType
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(ready) // nobody to tell if it fails
}
