package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/user"

	"github.com/gorilla/mux"
	"github.com/spf13/cobra"

	"sluice/ingress"
	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/internal/inference"
	"sluice/store"
)

// administer gives a command its way to the admin API: to a running ingress if
// admin.address is configured, and otherwise to the same API in this process, on the
// configured database. So what a command does is one thing, wherever it is done.
func (s *settings) administer(cmd *cobra.Command, fn func(ask operator) error) error {
	loaded, err := s.loadAndWarn(cmd.ErrOrStderr(), config.RoleOperator)
	if err != nil {
		return err
	}
	if address := loaded.Config.Admin; address.Address != "" {
		return fn(func(method, path string, request, answer any) error {
			return callIngress(cmd.Context(), address, method, path, request, answer)
		})
	}
	return s.withSchema(cmd, io.Discard, func(_ context.Context, db store.Store) error {
		here := asking{who: "the database", base: "http://database", via: inProcess{adminOf(db)}}
		return fn(func(method, path string, request, answer any) error {
			return plainly(here.call(cmd.Context(), method, path, request, answer))
		})
	})
}

// plainly leaves out who refused, and with which status, where it was this very process.
func plainly(err error) error {
	if r, ok := errors.AsType[*refusal](err); ok && r.message != "" {
		return &refusal{status: r.status, message: r.message, text: r.message}
	}
	return err
}

// adminOf serves of the admin API what needs only the database.
func adminOf(db store.Store) http.Handler {
	actor, fail := cliActor(), func(w http.ResponseWriter, _ *http.Request, err error) { ingress.WriteError(w, unwrapped(err)) }
	r := mux.NewRouter().SkipClean(true)
	r.Use(admin.Guard(fail))
	admin.New(admin.Options{Store: db, Actor: func(*http.Request) string { return actor }, Fail: fail}).Register(r)
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		fail(w, q, inference.Errorf(inference.CodeNotFound, "This is asked of a running ingress: it needs admin.address and admin.token in the configuration."))
	})
	return r
}

// unwrapped shows a person who is at the database itself what the database says.
func unwrapped(err error) error {
	if _, ok := errors.AsType[*inference.Error](err); ok {
		return err
	}
	return &inference.Error{Code: inference.CodeInternal, Message: err.Error(), Err: err}
}

// cliActor is what the audit calls who is at the database itself.
func cliActor() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return "cli:" + u.Username
	}
	return "cli"
}

// inProcess is an http.RoundTripper that has a handler answer in this process.
type inProcess struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (s inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	a := &answered{header: make(http.Header), status: http.StatusOK}
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	s.handler.ServeHTTP(a, in)
	if err := in.Body.Close(); err != nil {
		return nil, fmt.Errorf("close the request's body: %w", err)
	}
	return &http.Response{
		StatusCode: a.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()), Request: r,
	}, nil
}

// answered keeps an answer.
type answered struct {
	header http.Header
	status int
	begun  bool
	body   bytes.Buffer
}

func (a *answered) Header() http.Header { return a.header }

func (a *answered) WriteHeader(status int) {
	if !a.begun {
		a.begun, a.status = true, status
	}
}

func (a *answered) Write(b []byte) (int, error) {
	a.begun = true
	return a.body.Write(b)
}

// isStatus reports whether the error is an answer with that status.
func isStatus(err error, status int) bool {
	r, ok := errors.AsType[*refusal](err)
	return ok && r.status == status
}
