package ingress

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/routing"
	"sluice/store"
)

// question is what routing is asked for a client's request.
func (s *Ingress) question(settings *Settings, r *http.Request, key store.Key, kind inference.Kind, req *openaiapi.ChatRequest) routing.Request {
	return routing.Request{
		Model: req.Model, Kind: kind, Tenant: key.Tenant, KeyID: key.ID, KeyName: key.Name,
		Header: r.Header.Get, Metadata: req.Metadata, User: req.User,
		Stream: req.Stream, Tools: req.HasTools, Images: req.HasImages, StructuredOutput: req.Structured,
		PromptTokens: req.PromptTokens, OutputTokens: req.MaxOutput,
		Random: rand.Uint64(), Turn: settings.layout.turn, Load: s.load,
	}
}

// route returns who can serve the request, if the key may ask for its model. Where a
// rule sends it is the operator's word, and no matter of the key's. With the error that
// those are drained it returns them all the same: their answers may be known.
func (s *Ingress) route(settings *Settings, key store.Key, q routing.Request) ([]inference.Candidate, error) {
	table := s.table(settings)
	allowed := permissionFor(key, table, q.Model)
	if allowed == notPermitted {
		return nil, errNotAllowed(q.Model)
	}
	d := table.Route(q)
	if d.Rule == "" && len(d.Candidates) > 0 {
		d.Candidates = allowed.among(key, d.Candidates, q.Model, d.Model)
		if len(d.Candidates) == 0 {
			return nil, errNotAllowed(q.Model)
		}
	}
	switch {
	case len(d.Candidates) > 0:
		return d.Candidates, nil
	case len(d.Drained) > 0:
		err := errDrained(q.Model, s.workers.retryAfter(d.Drained[0].Provider))
		if d.Rule == "" {
			d.Drained = allowed.among(key, d.Drained, q.Model, d.Model)
		}
		return d.Drained, err
	case len(d.Lacking) > 0:
		return nil, errLacking(q, d.Lacking)
	}
	return nil, errNotServed(q.Model)
}

// permission is how far a key may ask for a model.
type permission uint8

const (
	notPermitted permission = iota
	atNamedProvider
	permitted
)

// permissionFor returns how far the key may ask for the model: by the name that was
// given, or by the one that it is an alias of. A key for "m" is one for "provider/m" as
// well: that is the same model at a provider of the client's choice.
func permissionFor(key store.Key, table *routing.Table, model string) permission {
	resolved, _ := table.Resolve(model)
	if mayUse(key, model) || mayUse(key, resolved) {
		return permitted
	}
	for i := range table.Providers {
		p := &table.Providers[i]
		for _, name := range []string{model, resolved} {
			if rest, ok := strings.CutPrefix(name, p.Name+"/"); ok && mayUse(key, rest) && routing.MatchesAny(p.Models, rest) {
				return atNamedProvider
			}
		}
	}
	return notPermitted
}

// among returns those of the candidates that the key may ask for: for a model that it
// may use at the provider that the name names alone, that provider's.
func (p permission) among(key store.Key, candidates []inference.Candidate, model, resolved string) []inference.Candidate {
	if p == permitted {
		return candidates
	}
	return slices.DeleteFunc(candidates, func(c inference.Candidate) bool {
		full := c.Provider + "/" + c.Model
		return p == notPermitted || full != model && full != resolved || !mayUse(key, c.Model)
	})
}

// serves returns who may serve the model for the key, whatever else a request says.
func (s *Ingress) serves(settings *Settings, key store.Key, model string) ([]inference.Candidate, error) {
	table := s.table(settings)
	allowed := permissionFor(key, table, model)
	if allowed == notPermitted {
		return nil, errNotAllowed(model)
	}
	candidates := table.Serves(model)
	if len(candidates) == 0 {
		return nil, errNotServed(model)
	}
	resolved, _ := table.Resolve(model)
	if own := allowed.among(key, slices.Clone(candidates), model, resolved); len(own) > 0 {
		return own, nil
	}
	return candidates, nil // rules send it elsewhere
}

func errNotAllowed(model string) error {
	return &inference.Error{Code: inference.CodeModelNotAllowed, Param: "model", Message: fmt.Sprintf("This API key or token may not use the model %q.", model)}
}

func errNotServed(model string) error {
	return &inference.Error{Code: inference.CodeModelNotFound, Param: "model", Message: fmt.Sprintf("The model %q is not served here. GET /v1/models lists those that are.", model)}
}

// errLacking tells the client which of its wishes nobody can fulfil, and names the field
// of the first of them.
func errLacking(q routing.Request, lacking []string) error {
	e := &inference.Error{Code: inference.CodeInvalidRequest, Message: fmt.Sprintf("No provider of the model %q supports %s here.", q.Model, lacking[0])}
	if len(lacking) > 1 {
		e.Message = fmt.Sprintf("No provider of the model %q supports all that the request needs: %s.", q.Model, strings.Join(lacking, ", "))
	}
	prompt := "messages"
	if q.Kind == inference.KindEmbeddings {
		prompt = "input"
	}
	switch lacking[0] {
	case "streaming":
		e.Param = "stream"
	case "tools":
		e.Param = "tools"
	case "images", "a prompt of this length":
		e.Param = prompt
	case "structured output":
		e.Param = "response_format"
	case "an answer of this length":
		e.Param = "max_tokens"
	default: // chat or embeddings
		e.Param = "model"
	}
	return e
}
