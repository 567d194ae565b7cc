package ingress

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/gorilla/mux"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/store"
)

// models serves GET /v1/models: every model known by name that the key may use. Globs
// stand for models that are not, so they are not listed.
func (s *Ingress) models(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	s.writeJSON(w, r, openaiapi.ModelList{Data: s.modelsOf(s.settingsOf(r), key)})
}

// model serves GET /v1/models/{id}, also for a model that only a glob covers.
func (s *Ingress) model(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	id := mux.Vars(r)["id"]
	if len(id) > openaiapi.MaxModelBytes {
		s.fail(w, r, inference.Errorf(inference.CodeModelNotFound, "There is no model of such a long name."), nil)
		return
	}
	candidates, err := s.serves(s.settingsOf(r), key, id)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	s.writeJSON(w, r, openaiapi.Model{ID: id, OwnedBy: candidates[0].Provider})
}

func (s *Ingress) modelsOf(settings *Settings, key store.Key) []openaiapi.Model {
	owners := make(map[string]string)
	table := s.table(settings)
	for _, p := range table.Providers {
		for _, m := range p.Models {
			if _, taken := owners[m]; !taken && !isGlob(m) && mayUse(key, m) {
				owners[m] = p.Name
			}
		}
	}
	for alias := range table.Aliases {
		if candidates, err := s.serves(settings, key, alias); err == nil {
			owners[alias] = candidates[0].Provider
		}
	}
	for _, m := range key.Models { // what the key names and only a glob covers is known by name now
		if isGlob(m) || owners[m] != "" {
			continue
		}
		if candidates := table.Serves(m); len(candidates) > 0 {
			owners[m] = candidates[0].Provider
		}
	}
	list := make([]openaiapi.Model, 0, len(owners))
	for id, owner := range owners {
		list = append(list, openaiapi.Model{ID: id, OwnedBy: owner})
	}
	slices.SortFunc(list, func(a, b openaiapi.Model) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func isGlob(model string) bool {
	if !strings.ContainsAny(model, `*?[\`) {
		return false
	}
	_, err := path.Match(model, "")
	return err == nil
}

func (s *Ingress) writeJSON(w http.ResponseWriter, r *http.Request, v any) {
	s.writeJSONStatus(w, r, http.StatusOK, v)
}

func (s *Ingress) writeJSONStatus(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		s.fail(w, r, fmt.Errorf("encode answer: %w", err), nil)
		return
	}
	w.Header()["Content-Type"] = jsonType
	limitWrite(w)
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone; nothing else is to be done
}
