// Package admin serves what an operator does that needs only the database: API keys,
// tenants, the audit of who changed what, and reports of usage and cost.
//
// It asks nobody who the operator is, and listens nowhere. An ingress mounts it on its admin
// listener, behind its operators' tokens; a command without such a listener serves it in its
// own process. The words of its answers are internal/adminapi's, and what may be stored is
// said by package store.
package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/store"
)

// Store is what of the database an operator sees to.
type Store interface {
	store.Keys
	store.Tenants
	store.Audit
	store.Reports
}

// Options say what the API stands on.
type Options struct {
	Store Store

	// Actor says who makes a request, which the audit remembers.
	Actor func(*http.Request) string

	// Fail answers with an error, in the one format that errors have.
	Fail func(http.ResponseWriter, *http.Request, error)
}

// API serves an operator.
type API struct{ opt Options }

// New returns the API.
func New(o Options) *API { return &API{o} }

// Register adds the API's routes, which stand behind a Guard. A name may hold a slash.
func (a *API) Register(r *mux.Router) {
	a.registerKeys(r)
	a.registerTenants(r)
	UsageHandler{Store: a.opt.Store, Fail: a.opt.Fail}.Register(r)
	r.HandleFunc(adminapi.AuditPath, a.listAudit).Methods(http.MethodGet)
}

// RequestIDHeader carries the id by which the audit and the log know a request.
const RequestIDHeader = "X-Request-Id"

// by is the change that a request makes.
func (a *API) by(r *http.Request) store.Change {
	return store.Change{Actor: a.opt.Actor(r), At: time.Now(), RequestID: r.Header.Get(RequestIDHeader)}
}

// Bounds of a request.
const (
	maxBody     = 64 << 10
	bodyTimeout = 10 * time.Second
)

// Read reads a request's body into a struct of package adminapi. It may hold nothing that is
// not known: whoever asks must not get something else than they mean. No body is an empty one.
func Read(w http.ResponseWriter, r *http.Request, into any) error {
	body, err := ReadBody(w, r)
	if err != nil {
		return err
	}
	return decode(body, into)
}

func decode(body []byte, into any) error {
	err := adminapi.Decode(body, into)
	if wrong, ok := errors.AsType[*adminapi.FieldError](err); ok {
		return invalid(wrong.Field, "%s", wrong.Problem)
	}
	if err != nil {
		return inference.Errorf(inference.CodeInvalidJSON, "The request body is not valid JSON.")
	}
	return nil
}

func invalid(param, format string, args ...any) error {
	return &inference.Error{Code: inference.CodeInvalidRequest, Param: param, Message: fmt.Sprintf(format, args...)}
}

// Answerable is an error as it is answered. One of the database alone becomes what says that
// it cannot be reached, if that is what it is.
func Answerable(err error) *inference.Error {
	if _, told := errors.AsType[*inference.Error](err); !told && store.Unreachable(err) {
		return &inference.Error{
			Code: inference.CodeStorageUnavailable, Retryable: true, Message: "The database cannot be reached at the moment.", Err: err,
		}
	}
	return inference.AsError(err)
}

// write answers with a value.
func (a *API) write(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		a.opt.Fail(w, r, fmt.Errorf("encode answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // it may hold a secret
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the operator may be gone; nothing else is to be done
}

// query reads the query's members, of which Guard has seen that they are known.
type query struct {
	values url.Values
	err    error // the first thing that is wrong
}

func queryOf(r *http.Request) *query { return &query{values: r.URL.Query()} }

func (q *query) text(name string) string { return q.values.Get(name) }

func (q *query) wrong(name, format string, args ...any) {
	if q.err == nil {
		q.err = invalid(name, format, args...)
	}
}

func (q *query) time(name string) time.Time {
	text := q.text(name)
	if text == "" {
		return time.Time{}
	}
	t, err := Bound(name, text)
	if err != nil {
		q.wrong(name, "%s", inference.AsError(err).Message)
	}
	return t
}

func (q *query) limit() int {
	text := q.text("limit")
	if text == "" {
		return store.DefaultPage
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > mostPage {
		q.wrong("limit", "limit must be from 1 to %d.", mostPage)
	}
	return n
}

// mostPage leaves room for the one entry more that tells whether there are more.
const mostPage = store.MaxPage - 1

// afterFault says that a page cannot begin behind what is not there.
func afterFault(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return invalid("after", "after is no id that a page ended with.")
	}
	return err
}

// pageOf cuts what was read, one more than asked for, to a page.
func pageOf[T any](all []T, limit int, id func(T) string) ([]T, adminapi.Page) {
	if len(all) <= limit {
		return all, adminapi.Page{}
	}
	all = all[:limit]
	return all, adminapi.Page{HasMore: true, Next: id(all[limit-1])}
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
