package ingress

import (
	"net/http"
	"net/url"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/store"
)

// routeCache adds what an operator does about cached answers.
func (s *Ingress) routeCache(r *mux.Router) {
	r.HandleFunc(adminapi.CachePath, s.showCache).Methods(http.MethodGet)
	r.HandleFunc(adminapi.CachePath, s.purgeCache).Methods(http.MethodDelete)
}

// showCache serves GET /admin/v1/cache.
func (s *Ingress) showCache(w http.ResponseWriter, r *http.Request) {
	a := s.cache
	p := a.policy()
	shown := adminapi.Cache{
		Memory:   adminapi.CacheLevel{Entries: int64(a.memory.EstimatedSize()), Bytes: int64(a.memory.WeightedSize()), MaxBytes: p.MemoryBytes},
		Database: adminapi.CacheLevel{MaxBytes: p.DatabaseBytes},
		Hits:     a.metrics.hits.Load(), Misses: a.metrics.misses.Load(), Stale: a.metrics.stale.Load(),
	}
	if a.rows != nil {
		var err error
		if shown.Database.Entries, shown.Database.Bytes, err = a.rows.CacheSize(r.Context()); err != nil {
			s.adminFail(w, r, errNoCache(err))
			return
		}
	}
	s.writeJSON(w, r, shown)
}

// purgeCache serves DELETE /admin/v1/cache: answers of a model, a tenant or a key, or of
// all that are named together, are forgotten.
func (s *Ingress) purgeCache(w http.ResponseWriter, r *http.Request) {
	filter, err := parsePurge(r.URL.Query())
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	if filter.KeyID != "" {
		if filter.KeyID, err = s.keyIDOf(r.Context(), filter.KeyID); err != nil {
			s.adminFail(w, r, err)
			return
		}
	}
	filter.Model = s.counted(filter.Model)
	said := purgeAudit{filter == store.CacheFilter{}, filter.Model, filter.Tenant, filter.KeyID}
	var removed int
	err = s.auditedMany(r, change{"cache.purge", "cache", nil, said}, func() (came any, err error) {
		if removed, err = s.cache.forget(r.Context(), filter); err != nil {
			return nil, errNoCache(err)
		}
		return cacheAudit{removed}, nil
	})
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, adminapi.CachePurged{Deleted: removed})
}

// counted returns what answers to requests for the model are kept under, or nothing for
// nothing.
func (s *Ingress) counted(model string) string {
	if model == "" {
		return ""
	}
	table := s.table(s.current())
	return countedModel(table, model, table.Serves(model))
}

// parsePurge reads what is to be forgotten. To forget everything has to be said: a name
// that was left out by mistake must not do it.
func parsePurge(q url.Values) (f store.CacheFilter, err error) {
	if f.Model, err = queryName(q, "model"); err != nil {
		return f, err
	}
	if f.Tenant, err = queryName(q, "tenant"); err != nil {
		return f, err
	}
	if f.KeyID, err = queryName(q, "key"); err != nil {
		return f, err
	}
	all := q.Get("all") == "true"
	switch {
	case q.Has("all") && !all:
		return f, invalidField("all", "all must be true, or be left out.")
	case all == (f != store.CacheFilter{}):
		return f, invalidField("", "Write model, tenant or key, or all=true and none of these.")
	}
	return f, nil
}

// queryName returns a name that the query may have, of which Guard has seen that it is there
// once at most, or nothing. Whoever left it empty meant one.
func queryName(q url.Values, name string) (string, error) {
	text := q.Get(name)
	switch {
	case text == "" && q.Has(name):
		return "", invalidField(name, "%s must not be empty.", name)
	case store.CleanText(text) != text:
		return "", invalidField(name, "%s must be text of at most %d bytes.", name, store.MaxTextBytes)
	}
	return text, nil
}

func errNoCache(err error) error {
	return &inference.Error{Code: inference.CodeStorageUnavailable, Retryable: true, Message: "The database of the cache cannot be reached at the moment.", Err: err}
}
