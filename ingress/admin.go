package ingress

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// Bounds of a request to the admin API.
const (
	adminMaxBody = 64 << 10
	adminTimeout = 10 * time.Second // for its body
)

// providersPath is where the providers are listed as routing sees them.
const providersPath = "/admin/v1/providers"

// AdminHandler returns the HTTP handler of the operators' API. It takes requests that
// bear the token alone, and none if the token is empty.
func (s *Ingress) AdminHandler(token string) http.Handler {
	r := mux.NewRouter().SkipClean(true)
	r.HandleFunc(adminapi.ExplainPath, s.explain).Methods(http.MethodPost)
	r.HandleFunc(providersPath, s.listProviders).Methods(http.MethodGet)
	s.routeWebhooks(r)
	r.NotFoundHandler = http.HandlerFunc(s.adminNotFound)
	r.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Allow", allowedMethods(r, q))
		s.adminFail(w, q, errMethodNotAllowed(q))
	})
	want := sha256.Sum256([]byte(token))
	return s.identified(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if token == "" || !bears(q, want) {
			s.adminFail(w, q, inference.Errorf(inference.CodeUnauthenticated, "The admin token is missing or wrong. Send it in the header: Authorization: Bearer YOUR_TOKEN."))
			return
		}
		r.ServeHTTP(w, q)
	}))
}

// bears reports whether the request carries the token of that hash. Hashes are compared,
// in constant time, so that the time it takes tells neither the token nor its length.
func bears(r *http.Request, want [sha256.Size]byte) bool {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	given := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return ok && strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(given[:], want[:]) == 1
}

// adminFail answers with an error. It does not count among the clients' ones.
func (s *Ingress) adminFail(w http.ResponseWriter, r *http.Request, err error) {
	e := inference.AsError(err)
	s.logFailure(r.Context(), w.Header().Get(requestIDHeader), e, nil)
	if body, ok := r.Body.(*incoming); ok {
		body.closing(w)
	}
	writeError(w, e, nil)
}

func (s *Ingress) adminNotFound(w http.ResponseWriter, r *http.Request) {
	s.adminFail(w, r, inference.Errorf(inference.CodeNotFound, "There is nothing at this path. The admin API begins with /admin/v1."))
}

// explain serves POST /admin/v1/route/explain: where a request would go, and why. It
// leaves no trace in what it tells of: turns are not taken, and chance plays no part.
func (s *Ingress) explain(w http.ResponseWriter, r *http.Request) {
	body, err := readAdminBody(w, r)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	req, err := parseExplain(body)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	q := req.Question() // whether its key may ask for the model is another question: it is named, not borne
	q.Turn, q.Load = s.workers.nextTurn, s.load
	s.writeJSON(w, r, adminapi.Explained(s.workers.now().Explain(q)))
}

// readAdminBody reads a request's body, within bounds of its size and of its time.
func readAdminBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	ctrl := http.NewResponseController(w)
	_ = ctrl.SetReadDeadline(time.Now().Add(adminTimeout)) // not every writer has deadlines; the server's does
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, adminMaxBody))
	_ = ctrl.SetReadDeadline(time.Time{})
	switch {
	case isTooLarge(err):
		return nil, inference.Errorf(inference.CodeRequestTooLarge, "The request body is larger than %d bytes.", adminMaxBody)
	case err != nil:
		return nil, &inference.Error{Code: inference.CodeInvalidRequest, Message: "The request body could not be read to its end.", Err: err}
	}
	return body, nil
}

// parseExplain reads an ExplainRequest and checks it. Unlike a client's request it may
// hold nothing that is not known: whoever asks must not be told of another request than
// the one they mean.
func parseExplain(body []byte) (*adminapi.ExplainRequest, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(body, &raw); err != nil {
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, invalidField("", "The request body must be a JSON object.")
		}
		return nil, inference.Errorf(inference.CodeInvalidJSON, "The request body is not valid JSON.")
	}
	req := new(adminapi.ExplainRequest)
	fields := explainFields(req)
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		into, known := fields[name]
		if !known {
			return nil, invalidField(name, "There is no field %q.", name)
		}
		if err := json.Unmarshal(raw[name], into); err != nil {
			return nil, invalidField(name, "%s must be %s.", name, kindOf(into))
		}
	}
	return req, checkExplain(req)
}

// explainFields returns where each member of the request goes.
func explainFields(req *adminapi.ExplainRequest) map[string]any {
	return map[string]any{
		"model": &req.Model, "endpoint": &req.Endpoint, "tenant": &req.Tenant, "key": &req.Key, "headers": &req.Headers,
		"metadata": &req.Metadata, "user": &req.User, "stream": &req.Stream, "tools": &req.Tools, "images": &req.Images,
		"structured_output": &req.StructuredOutput, "prompt_tokens": &req.PromptTokens, "output_tokens": &req.OutputTokens,
	}
}

func kindOf(into any) string {
	switch into.(type) {
	case *string:
		return "a string"
	case *bool:
		return "true or false"
	case *int:
		return "an integer"
	}
	return "an object of strings"
}

func checkExplain(req *adminapi.ExplainRequest) error {
	switch {
	case req.Model == "":
		return invalidField("model", "model is missing.")
	case len(req.Model) > openaiapi.MaxModelBytes:
		return invalidField("model", "model must be at most %d bytes long.", openaiapi.MaxModelBytes)
	case strings.ContainsFunc(req.Model, unicode.IsControl):
		return invalidField("model", "model must not hold control characters.")
	case req.Endpoint != "" && req.Endpoint != adminapi.EndpointChat && req.Endpoint != adminapi.EndpointEmbeddings:
		return invalidField("endpoint", "endpoint must be %s or %s.", adminapi.EndpointChat, adminapi.EndpointEmbeddings)
	case req.PromptTokens < 0:
		return invalidField("prompt_tokens", "prompt_tokens must not be negative.")
	case req.OutputTokens < 0:
		return invalidField("output_tokens", "output_tokens must not be negative.")
	}
	return nil
}

func invalidField(name, format string, args ...any) error {
	return &inference.Error{Code: inference.CodeInvalidRequest, Param: name, Message: fmt.Sprintf(format, args...)}
}

// providerListing is the body of GET /admin/v1/providers.
type providerListing struct {
	Providers []providerEntry `json:"providers"`
}

type providerEntry struct {
	Name      string            `json:"name"`
	Workers   int               `json:"workers"`
	Refused   bool              `json:"refused"` // the provider accepts no key of any of them
	Limit     int               `json:"limit"`   // calls at once that it bears at the moment; zero when not known
	InFlight  int               `json:"in_flight"`
	Held      int               `json:"held"`       // jobs that workers hold back until it can be called
	Waiting   int               `json:"waiting"`    // jobs in its queue
	MaxQueued int               `json:"max_queued"` // bound of its queue
	Rate      float64           `json:"rate"`       // jobs that end in a second
	Models    []string          `json:"models"`     // names or globs
	Breakers  map[string]string `json:"breakers"`   // by model, of those called of late
}

// listProviders serves GET /admin/v1/providers: every provider as routing sees it.
func (s *Ingress) listProviders(w http.ResponseWriter, r *http.Request) {
	list := providerListing{Providers: []providerEntry{}}
	for name, p := range s.workers.states() {
		e := providerEntry{
			Name: name, Workers: p.Workers, Refused: p.Refused, Limit: p.Limit, InFlight: p.InFlight, Held: p.Held, Waiting: p.Waiting,
			MaxQueued: p.Queued, Rate: p.Rate, Models: append([]string{}, p.Models...), Breakers: make(map[string]string, len(p.States)),
		}
		for _, m := range p.States {
			e.Breakers[m.Model] = m.Breaker
		}
		list.Providers = append(list.Providers, e)
	}
	slices.SortFunc(list.Providers, func(a, b providerEntry) int { return strings.Compare(a.Name, b.Name) })
	s.writeJSON(w, r, list)
}
