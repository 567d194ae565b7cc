package ingress

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"sluice/internal/cache"
	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/openaiapi"
)

// operation is what an endpoint asks of a provider: the kind of its jobs, and how its
// request is checked and read.
type operation struct {
	kind  inference.Kind
	parse func(body []byte) (openaiapi.ChatRequest, error)
}

// The operations that there are.
var (
	chatCompletion = operation{kind: inference.KindChat, parse: openaiapi.ParseChat}
	embedding      = operation{kind: inference.KindEmbeddings, parse: parseEmbeddings}
)

// parseEmbeddings reads an embeddings request as one that is never streamed.
func parseEmbeddings(body []byte) (openaiapi.ChatRequest, error) {
	req, err := openaiapi.ParseEmbeddings(body)
	return openaiapi.ChatRequest{Features: req.Features}, err
}

// chat serves POST /v1/chat/completions.
func (s *Ingress) chat(w http.ResponseWriter, r *http.Request) { s.infer(w, r, chatCompletion) }

// embeddings serves POST /v1/embeddings.
func (s *Ingress) embeddings(w http.ResponseWriter, r *http.Request) { s.infer(w, r, embedding) }

// infer takes a request in, sends it to its queue and answers it.
func (s *Ingress) infer(w http.ResponseWriter, r *http.Request, op operation) {
	arrived := time.Now()
	adm, err := s.admit(w, r, op, arrived)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	if adm.later {
		s.tellLimits(w.Header(), &adm)
		s.answerLater(w, r, adm)
		return
	}
	defer s.cacheDone(adm.cache)
	if s.fromCache(w, r, &adm) {
		return
	}
	if adm.refused != nil {
		adm.memory.release()
		s.fail(w, r, adm.refused, nil)
		return
	}
	h, job := w.Header(), adm.job
	h.Set("X-Sluice-Provider", job.Candidate().Provider)
	if err := s.flights.ready(); err != nil {
		adm.memory.release()
		if !s.standIn(w, r, adm.cache, err) {
			s.failUnopened(w, r, adm.out(), &adm, err)
		}
		return
	}
	out, answered, err := s.letIn(w, r, &adm)
	if answered || err != nil {
		adm.memory.release()
	}
	if answered {
		return
	}
	if err != nil {
		if !notByLimits(err) || !s.standIn(w, r, adm.cache, err) {
			s.failUnopened(w, r, out, &adm, err)
		}
		return
	}
	f, err := s.flights.open(r.Context(), adm)
	if err != nil {
		if !s.standIn(w, r, adm.cache, err) {
			s.failUnopened(w, r, out, &adm, err)
		}
		return
	}
	h.Set("X-Sluice-Job-Id", job.ID)
	if job.Stream {
		s.streamAnswer(w, r, f, out)
		return
	}
	s.plainAnswer(w, r, f, arrived)
}

// answersLater reports whether the request is answered with a job: any that prefers it,
// also one for a stream, if there is a database for jobs. One that wants an answer from the
// cache or none has nothing to wait for.
func (s *Ingress) answersLater(r *http.Request) bool {
	return s.stored != nil && preferencesOf(r.Header).async && !cache.WishOf(r.Header).OnlyIfCached
}

// admission is a request that may go to the queue.
type admission struct {
	settings *Settings // that the request began with

	job    *inference.Job
	window time.Duration // how long the job goes on without its client
	memory *share        // of the job's body
	cache  *cacheCall    // nil: the cache is off for it

	refused error // it may have an answer from the cache, and nothing else

	later     bool           // the job is answered later
	ownLimits *limits.Limits // of the key; nil: it has none of its own
	size      size
	hold      *hold         // of its limits
	waited    time.Duration // for them

	keyName  string            // of whose it is
	metadata map[string]string // of the request
}

// admit checks who asks for what, and makes a job of it.
func (s *Ingress) admit(w http.ResponseWriter, r *http.Request, op operation, now time.Time) (adm admission, err error) {
	settings := s.settingsOf(r)
	key, err := s.authenticate(r)
	if err != nil {
		return admission{}, err
	}
	timeout, err := durationHeader(r, "X-Sluice-Timeout", s.opt.Timeout, s.opt.Timeout)
	if err != nil {
		return admission{}, err
	}
	window, err := durationHeader(r, "X-Sluice-Resume-Window", s.opt.ResumeWindow, s.opt.Timeout)
	if err != nil {
		return admission{}, err
	}
	later := s.answersLater(r)
	if err := s.flights.ready(); err != nil && !later && !settings.Cache.Keeps() {
		return admission{}, err // what is in the cache needs no queue
	}
	memory := &share{of: &s.flights.bodies}
	defer func() {
		if err != nil {
			memory.release()
		}
	}()
	body, err := s.readBody(w, r, memory, now.Add(timeout))
	if err != nil {
		return admission{}, err
	}
	req, err := op.parse(body)
	if err != nil {
		return admission{}, err
	}
	if later && req.Stream { // an answer that is kept is whole
		body = openaiapi.Unstreamed(body)
		req.Stream, req.IncludeUsage = false, false
	}
	question := s.question(settings, r, key, op.kind, &req)
	candidates, refused := s.route(settings, key, question)
	if refused != nil && (later || len(candidates) == 0) {
		return admission{}, refused
	}
	job := &inference.Job{
		ID: s.jobID(r.Context(), now), RequestID: w.Header().Get(requestIDHeader), Kind: op.kind,
		Lane: inference.LaneInteractive, Tenant: key.Tenant, KeyID: key.ID, Model: req.Model,
		Stream: req.Stream, IncludeUsage: req.IncludeUsage, CreatedAt: now, Deadline: now.Add(timeout),
		Candidates: candidates, TraceParent: traceParent(r), Body: body,
	}
	adm = admission{settings: settings, job: job, window: window, memory: memory, ownLimits: key.Limits, size: sizeOf(&req), later: later, keyName: key.Name, metadata: req.Metadata}
	if !later {
		adm.cache = s.cacheCall(settings, r, question, job, req.MaxOutput > 0)
	}
	if adm.cache == nil {
		return adm, refused
	}
	adm.refused = refused
	return adm, nil
}

// durationHeader reads a duration such as "30s", or a number of seconds. A longer one
// than most is cut to it.
func durationHeader(r *http.Request, name string, fallback, most time.Duration) (time.Duration, error) {
	v := r.Header.Get(name)
	if v == "" {
		return fallback, nil
	}
	d, ok := parseDuration(v)
	if !ok {
		return 0, &inference.Error{Code: inference.CodeInvalidRequest, Param: name, Message: fmt.Sprintf("The header %s must be a duration such as 30s or 2m.", name)}
	}
	if d < 0 || d == 0 && fallback > 0 && name == "X-Sluice-Timeout" {
		return 0, &inference.Error{Code: inference.CodeInvalidRequest, Param: name, Message: fmt.Sprintf("The header %s must be positive.", name)}
	}
	return min(d, most), nil
}

// parseDuration reads a duration such as "30s", or a number of seconds.
func parseDuration(text string) (time.Duration, bool) {
	d, err := time.ParseDuration(text)
	if err == nil {
		return d, true
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds >= 0 && seconds <= 1e9) {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
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
