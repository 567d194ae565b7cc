package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/adminapi"
	"sluice/internal/inference"
)

// Guard holds every request of a router's against the API's document before its route has it:
// a parameter that the operation does not have, or that is given twice, and a body that it
// does not take, are refused. What somebody asks for and is not done must not look done.
// Which members a body may have, and what they may be, is its reader's to say.
func Guard(fail func(http.ResponseWriter, *http.Request, error)) mux.MiddlewareFunc {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			op, err := operationOf(r)
			if err == nil {
				err = queryFault(r.URL.RawQuery, op.Query)
			}
			var body []byte
			if err == nil {
				body, err = bodyOf(w, r, op.Body)
			}
			if err != nil {
				fail(w, r, err)
				return
			}
			r = r.WithContext(r.Context()) // whose body is another's
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(w, r)
		})
	}
}

// pattern is what a variable of a path may be, which is the router's own matter.
var pattern = regexp.MustCompile(`:[^}]*\}`)

// operationOf returns what the document says of the request's route. A route that is not in
// it has neither parameters nor a body.
func operationOf(r *http.Request) (adminapi.Operation, error) {
	all, err := adminapi.Operations()
	if err != nil {
		return adminapi.Operation{}, err
	}
	path := ""
	if route := mux.CurrentRoute(r); route != nil {
		path, _ = route.GetPathTemplate() // each route has a path
	}
	return all[r.Method+" "+pattern.ReplaceAllString(path, "}")], nil
}

func queryFault(text string, known map[string]bool) error {
	values, err := url.ParseQuery(text)
	if err != nil {
		return invalid("", "The query cannot be read.")
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch {
		case !known[name]:
			return invalid(name, "There is no parameter %q.", name)
		case len(values[name]) > 1:
			return invalid(name, "%s is given several times.", name)
		}
	}
	return CheckSpan(values.Get("from"), values.Get("to"))
}

// CheckSpan returns an error if a range ends before it begins, or where it does. A bound that
// cannot be read is its reader's to refuse.
func CheckSpan(from, to string) error {
	begin, wrong := Bound("from", from)
	end, alsoWrong := Bound("to", to)
	if wrong == nil && alsoWrong == nil && !begin.Before(end) {
		return wrongParam("from", "must be before to")
	}
	return nil
}

// bodyOf reads a request's body, if there may be one.
func bodyOf(w http.ResponseWriter, r *http.Request, may adminapi.Body) ([]byte, error) {
	if may == adminapi.NoBody {
		if n, _ := io.ReadFull(r.Body, make([]byte, 1)); n > 0 {
			return nil, invalid("", "This request takes no body.")
		}
		return nil, nil
	}
	body, err := ReadBody(w, r)
	if err != nil || len(body) == 0 {
		return nil, err
	}
	if !json.Valid(body) {
		return nil, inference.Errorf(inference.CodeInvalidJSON, "The request body is not valid JSON.")
	}
	if at, twice := adminapi.Doubled(body); twice {
		return nil, invalid(at, "There are two members %q.", at)
	}
	if may == adminapi.EmptyBody {
		err = decode(body, &struct{}{})
	}
	return body, err
}

// ReadBody reads a request's body, within bounds of its size and of its time.
func ReadBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	ctrl := http.NewResponseController(w)
	_ = ctrl.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every writer has deadlines; the server's does
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = ctrl.SetReadDeadline(time.Time{})
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, inference.Errorf(inference.CodeRequestTooLarge, "The request body is larger than %d bytes.", maxBody)
	}
	if err != nil {
		return nil, &inference.Error{Code: inference.CodeInvalidRequest, Message: "The request body could not be read to its end.", Err: err}
	}
	return body, nil
}
