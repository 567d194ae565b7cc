package ingress

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// chat serves POST /v1/chat/completions.
func (s *Ingress) chat(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	job, window, err := s.admit(w, r, arrived)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	h := w.Header()
	h.Set("X-Sluice-Provider", job.Candidate().Provider)
	f, err := s.flights.open(r.Context(), job, window)
	if err != nil {
		h.Set("X-Sluice-Attempts", "0")
		h.Set("X-Sluice-Queue-Ms", "0")
		s.fail(w, r, err, map[string]any{"provider": job.Candidate().Provider})
		return
	}
	h.Set("X-Sluice-Job-Id", job.ID)
	if job.Stream {
		s.streamAnswer(w, r, f)
		return
	}
	s.plainAnswer(w, r, f, arrived)
}

// admit checks who asks for what, and makes a job of it. window is how long the job
// goes on without its client.
func (s *Ingress) admit(w http.ResponseWriter, r *http.Request, now time.Time) (job *inference.Job, window time.Duration, err error) {
	key, err := s.keys.authenticate(r)
	if err != nil {
		return nil, 0, err
	}
	timeout, err := durationHeader(r, "X-Sluice-Timeout", s.opt.Timeout, s.opt.Timeout)
	if err != nil {
		return nil, 0, err
	}
	window, err = durationHeader(r, "X-Sluice-Resume-Window", s.opt.ResumeWindow, s.opt.Timeout)
	if err != nil {
		return nil, 0, err
	}
	body, err := s.readBody(w, r)
	if err != nil {
		return nil, 0, err
	}
	req, err := openaiapi.ParseChat(body)
	if err != nil {
		return nil, 0, err
	}
	candidates, err := s.route(key, req.Model)
	if err != nil {
		return nil, 0, err
	}
	return &inference.Job{
		ID: queue.NewJobID(s.opt.ID, now), RequestID: w.Header().Get(requestIDHeader), Kind: inference.KindChat,
		Lane: inference.LaneInteractive, Tenant: key.Tenant, KeyID: key.ID, Model: req.Model,
		Stream: req.Stream, IncludeUsage: req.IncludeUsage, CreatedAt: now, Deadline: now.Add(timeout),
		Candidates: candidates, TraceParent: traceParent(r), Body: body,
	}, window, nil
}

// route returns who can serve the model, if the key may use it.
func (s *Ingress) route(key store.Key, model string) ([]inference.Candidate, error) {
	if !mayUse(key, model) {
		return nil, &inference.Error{Code: inference.CodeModelNotAllowed, Param: "model", Message: fmt.Sprintf("This API key may not use the model %q.", model)}
	}
	candidates := s.workers.table.Load().Route(model)
	if len(candidates) == 0 {
		return nil, &inference.Error{Code: inference.CodeModelNotFound, Param: "model", Message: fmt.Sprintf("The model %q is not served here. GET /v1/models lists those that are.", model)}
	}
	return candidates, nil
}

// readBody reads the request's body whole before anything else is done with it: a
// body that is handed on while the answer has begun is closed by Go's server.
func (s *Ingress) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := inference.Errorf(inference.CodeRequestTooLarge, "The request body is larger than %d bytes.", s.opt.MaxBodyBytes)
	if r.ContentLength > s.opt.MaxBodyBytes {
		return nil, tooLarge
	}
	if ce := r.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		return nil, inference.Errorf(inference.CodeInvalidRequest, "A request body with a Content-Encoding is not taken. Send it as plain JSON.")
	}
	// The time for the body must not run on into the wait for the answer. Not every
	// writer has deadlines; the server's does.
	ctrl := http.NewResponseController(w)
	_ = ctrl.SetReadDeadline(time.Now().Add(s.opt.BodyTimeout))
	defer func() { _ = ctrl.SetReadDeadline(time.Time{}) }()
	limited := http.MaxBytesReader(w, r.Body, s.opt.MaxBodyBytes)
	var body []byte
	var err error
	if r.ContentLength >= 0 {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(limited, body)
	} else {
		body, err = io.ReadAll(limited)
	}
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge
	case err != nil:
		return nil, &inference.Error{Code: inference.CodeInvalidRequest, Message: "The request body could not be read to its end.", Err: err}
	}
	return body, nil
}

// durationHeader reads a duration such as "30s", or a number of seconds. A longer one
// than most is cut to it.
func durationHeader(r *http.Request, name string, fallback, most time.Duration) (time.Duration, error) {
	v := r.Header.Get(name)
	if v == "" {
		return fallback, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		seconds, serr := strconv.ParseFloat(v, 64)
		if serr != nil || !(seconds >= 0 && seconds <= 1e9) {
			return 0, &inference.Error{Code: inference.CodeInvalidRequest, Param: name, Message: fmt.Sprintf("The header %s must be a duration such as 30s or 2m.", name)}
		}
		d = time.Duration(seconds * float64(time.Second))
	}
	if d < 0 || d == 0 && fallback > 0 && name == "X-Sluice-Timeout" {
		return 0, &inference.Error{Code: inference.CodeInvalidRequest, Param: name, Message: fmt.Sprintf("The header %s must be positive.", name)}
	}
	return min(d, most), nil
}

// traceParentLen is the length of a W3C traceparent of version 00.
const traceParentLen = 55

func traceParent(r *http.Request) string {
	v := r.Header.Get("Traceparent")
	if len(v) != traceParentLen {
		return ""
	}
	for i := range len(v) {
		c := v[i]
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
	}
	return v
}

// errClientGone is the end of a job whose client went away.
func errClientGone() *inference.Error {
	return inference.Errorf(inference.CodeCancelled, "The client closed the connection before the answer was complete.")
}

func errDeadline(job *inference.Job) *inference.Error {
	return &inference.Error{
		Code: inference.CodeDeadlineExceeded, Retryable: true,
		Message: fmt.Sprintf("The request was not answered within its deadline of %s.", job.Deadline.Sub(job.CreatedAt)),
	}
}
