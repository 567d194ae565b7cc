package ingress

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode"

	"github.com/gorilla/mux"

	administration "sluice/internal/admin"
	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// providersPath is where the providers are listed as routing sees them.
const providersPath = adminapi.ProvidersPath

// AdminHandler returns the HTTP handler of the operators' API. It takes requests that
// bear an operator's token alone; the one with no name is of the operator "admin". No
// cache may keep its answers: some hold a secret.
func (s *Ingress) AdminHandler(token string, operators ...Operator) http.Handler {
	guarded := s.identified(s.operatorsOnly(badges(token, operators), headAsGet(s.adminRoutes())))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		guarded.ServeHTTP(w, r)
	})
}

// headAsGet has HEAD answered as GET is. The server leaves the body out.
func headAsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			r = r.WithContext(r.Context())
			r.Method = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}

// adminRoutes are what operators can ask. adminapi.Document describes each of them.
func (s *Ingress) adminRoutes() *mux.Router {
	r := mux.NewRouter().SkipClean(true)
	r.Use(administration.Guard(s.adminFail))
	r.HandleFunc(adminapi.DocumentPath, s.showDocument).Methods(http.MethodGet)
	r.HandleFunc(adminapi.ExplainPath, s.explain).Methods(http.MethodPost)
	s.routeOperations(r)
	s.routeWebhooks(r)
	s.routeConfig(r)
	if s.opt.Admin != nil {
		administration.New(administration.Options{Store: s.opt.Admin, Actor: actorOf, Fail: s.adminFail}).Register(r)
	}
	s.routeCache(r)
	s.routeLimits(r)
	r.NotFoundHandler = http.HandlerFunc(s.adminNotFound)
	r.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Allow", allowedMethods(r, q))
		s.adminFail(w, q, errMethodNotAllowed(q))
	})
	return r
}

// showDocument serves GET /admin/v1/openapi.json.
func (s *Ingress) showDocument(w http.ResponseWriter, r *http.Request) {
	text, err := adminapi.Document()
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	h := w.Header()
	h["Content-Type"] = jsonType
	h.Set("Content-Length", strconv.Itoa(len(text)))
	limitWrite(w)
	_, _ = w.Write(text) // the operator may be gone; nothing else is to be done
}

// adminFail answers with an error. It does not count among the clients' ones.
func (s *Ingress) adminFail(w http.ResponseWriter, r *http.Request, err error) {
	e := administration.Answerable(err)
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
	var req adminapi.ExplainRequest
	err := administration.Read(w, r, &req)
	if err == nil {
		err = checkExplain(&req)
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	q := req.Question() // whether its key may ask for the model is another question: it is named, not borne
	settings := s.current()
	q.Turn, q.Load = settings.layout.nextTurn, s.load
	s.writeJSON(w, r, adminapi.Explained(s.table(settings).Explain(q)))
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
