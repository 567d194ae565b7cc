package ingress

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// JobRows are what the API of jobs asks of the database.
type JobRows interface {
	CreateJob(ctx context.Context, job store.Job) error
	Job(ctx context.Context, tenant, id string) (store.Job, error)
	ListJobs(ctx context.Context, filter store.JobFilter) ([]store.Job, error)
	CancelJob(ctx context.Context, tenant, id string, at, expires time.Time, row inference.Record) (job store.Job, news bool, err error)
}

func (s *Ingress) jobRoutes(r *mux.Router) {
	if s.stored == nil {
		return
	}
	r.HandleFunc("/v1/jobs", s.listJobs).Methods(http.MethodGet)
	r.HandleFunc("/v1/jobs/{id}", s.retrieveJob).Methods(http.MethodGet)
	r.HandleFunc("/v1/jobs/{id}", s.cancelJob).Methods(http.MethodDelete)
	r.HandleFunc("/v1/jobs/{id}/result", s.jobResult).Methods(http.MethodGet)
}

// jobIDHeader names the job that a request has become.
const jobIDHeader = "X-Sluice-Job-Id"

// answerLater takes a request in as a job, and answers with it; or with its answer, if the
// client would wait for it so long. Once the job is accepted the client is told so,
// whatever comes of the waiting: an error would have it send the request again.
func (s *Ingress) answerLater(w http.ResponseWriter, r *http.Request, adm admission) {
	defer adm.memory.release()
	job, err := s.acceptJob(r, adm)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	adm.memory.release() // the database has the body
	h := w.Header()
	h.Set("Preference-Applied", "respond-async")
	h.Set("Location", "/v1/jobs/"+store.JobPrefix+job.ID)
	if wait := min(preferencesOf(r.Header).wait, s.opt.Jobs.MaxWait); wait > 0 {
		h.Set("Preference-Applied", "respond-async, wait="+strconv.Itoa(int(wait/time.Second)))
		waited, free, err := s.stored.await(r.Context(), job.Tenant, job.ID, wait)
		switch {
		case err != nil:
			s.log.Debug("job not waited for", "job_id", job.ID, "error", err)
		case waited.Status.Finished():
			defer free()
			s.writeResult(w, r, waited)
			return
		default:
			free()
			job = waited
		}
	}
	s.writeAccepted(w, r, job)
}

// acceptJob checks what only a job has, and stores it. It returns the job without an
// answer.
func (s *Ingress) acceptJob(r *http.Request, adm admission) (store.Job, error) {
	body, hook, err := s.takeWebhook(r, adm.job.Body)
	if err != nil {
		return store.Job{}, err
	}
	if len(body) > store.MaxInlineBytes {
		return store.Job{}, inference.Errorf(inference.CodeRequestTooLarge, "The body of a request that is answered later may be %d bytes long.", store.MaxInlineBytes)
	}
	life, err := durationHeader(r, "X-Sluice-Timeout", s.opt.Jobs.Deadline, s.opt.Jobs.Deadline)
	if err != nil {
		return store.Job{}, err
	}
	if hook != nil {
		delete(adm.metadata, "webhook")
	}
	if err := s.stored.hasRoom(r.Context(), adm.job.Tenant); err != nil {
		return store.Job{}, err
	}
	j := adm.job
	job := store.Job{
		ID: j.ID, RequestID: j.RequestID, Tenant: j.Tenant, KeyID: j.KeyID, KeyName: adm.keyName, Limits: lentLimits(&adm), Kind: j.Kind, Model: j.Model,
		Lane: inference.LaneBackground, Body: body, Candidates: j.Candidates, TraceParent: j.TraceParent,
		Metadata: adm.metadata, Webhook: hook, CreatedAt: j.CreatedAt, Deadline: j.CreatedAt.Add(life), Status: store.JobQueued,
	}
	err = s.opt.Jobs.Store.CreateJob(r.Context(), job)
	switch {
	case errors.Is(err, store.ErrDuplicate):
		return s.acceptedBefore(r.Context(), job.Tenant, job.ID)
	case err != nil:
		return store.Job{}, jobError(err)
	}
	s.stored.room.taken(job.Tenant)
	s.stored.metrics.accepted.Inc()
	s.stored.nudge()
	return job, nil
}

// acceptedBefore returns the job that a call with the same idempotency key created, and
// was lost before it could answer.
func (s *Ingress) acceptedBefore(ctx context.Context, tenant, id string) (store.Job, error) {
	job, release, err := s.stored.read(ctx, tenant, id)
	if e, ok := errors.AsType[*inference.Error](err); ok && e.Code == inference.CodeNotFound {
		return store.Job{}, fmt.Errorf("store job %s, which another tenant has: %w", id, store.ErrDuplicate)
	}
	if err != nil {
		return store.Job{}, err
	}
	job.Response = nil
	release()
	return job, nil
}

// jobError says what the database's error about a job means to the client.
func jobError(err error) error {
	_, told := errors.AsType[*inference.Error](err)
	switch {
	case err == nil || told:
		return err
	case errors.Is(err, store.ErrNotFound):
		return &inference.Error{Code: inference.CodeNotFound, Param: "job_id", Message: "There is no job of this id."}
	case errors.Is(err, store.ErrInvalid):
		return err
	}
	return &inference.Error{
		Code: inference.CodeStorageUnavailable, Retryable: true, Message: "Jobs cannot be stored or looked up at the moment.", Err: err,
	}
}

// jobID returns the id by which the database knows the job that the request names.
func jobID(text string) (string, error) {
	id, ok := strings.CutPrefix(text, store.JobPrefix)
	if !ok || !queue.ValidJobID(id) { // what can be no id is not looked for
		return "", jobError(store.ErrNotFound)
	}
	return id, nil
}

// namedJob returns the job that the request names, if it is its caller's own; when it has
// ended, or after as long as the request would wait, if it may.
func (s *Ingress) namedJob(r *http.Request, mayWait bool) (job store.Job, release func(), err error) {
	key, err := s.authenticate(r)
	if err != nil {
		return store.Job{}, nil, err
	}
	id, err := jobID(mux.Vars(r)["id"])
	if err != nil {
		return store.Job{}, nil, err
	}
	wait := time.Duration(0)
	if mayWait {
		if wait, err = s.stored.waitOf(r); err != nil {
			return store.Job{}, nil, err
		}
	}
	return s.stored.await(r.Context(), key.Tenant, id, wait)
}

// retrieveJob serves GET /v1/jobs/{id}.
func (s *Ingress) retrieveJob(w http.ResponseWriter, r *http.Request) {
	job, release, err := s.namedJob(r, true)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	defer release()
	if !job.Status.Finished() {
		w.Header().Set("Retry-After", askAgain(job, time.Now()))
	}
	s.writeJSON(w, r, jobObject(job, true))
}

// jobResult serves GET /v1/jobs/{id}/result.
func (s *Ingress) jobResult(w http.ResponseWriter, r *http.Request) {
	job, release, err := s.namedJob(r, true)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	defer release()
	s.writeResult(w, r, job)
}

// writeResult answers with the job's answer as the call itself would have given it, or
// with the job while it has none.
func (s *Ingress) writeResult(w http.ResponseWriter, r *http.Request, job store.Job) {
	if !job.Status.Finished() {
		s.writeAccepted(w, r, job)
		return
	}
	h := w.Header()
	h.Set(jobIDHeader, store.JobPrefix+job.ID)
	if job.ProviderServed != "" {
		h.Set("X-Sluice-Provider", job.ProviderServed)
	}
	h.Set("X-Sluice-Attempts", strconv.Itoa(job.Attempts))
	h.Set("X-Sluice-Queue-Ms", strconv.FormatInt(queuedFor(job).Milliseconds(), 10))
	tellTries(h, triesHeader, job.Tries)
	body := answerBody(job)
	if statusOfEnd(job) >= http.StatusBadRequest && r.Method == http.MethodGet {
		h.Set("X-Should-Retry", "false") // OpenAI's clients would ask for the same end again
	}
	h["Content-Type"] = jsonType
	h.Set("Content-Length", strconv.Itoa(len(body)))
	limitWrite(w)
	w.WriteHeader(statusOfEnd(job))
	_, _ = w.Write(body) // the client may be gone; the answer is kept
}

// writeAccepted answers with the job, which goes on.
func (s *Ingress) writeAccepted(w http.ResponseWriter, r *http.Request, job store.Job) {
	h := w.Header()
	h.Set(jobIDHeader, store.JobPrefix+job.ID)
	if !job.Status.Finished() { // it has, where a call before this one made it
		h.Set("Retry-After", askAgain(job, time.Now()))
	}
	s.writeJSONStatus(w, r, http.StatusAccepted, jobObject(job, false))
}

// cancelJob serves DELETE /v1/jobs/{id}. A job that has ended stays as it is.
func (s *Ingress) cancelJob(w http.ResponseWriter, r *http.Request) {
	job, release, err := s.namedJob(r, false)
	if err == nil {
		release()
		job, err = s.endJob(r.Context(), job)
	}
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	s.writeJSON(w, r, jobObject(job, false))
}

// endJob cancels the job, unless it has ended: then the database leaves it as it is.
func (s *Ingress) endJob(ctx context.Context, job store.Job) (store.Job, error) {
	now := time.Now()
	job, news, err := s.opt.Jobs.Store.CancelJob(ctx, job.Tenant, job.ID, now, now.Add(s.opt.Jobs.Retention), cancelledRow(&job, now))
	if err != nil {
		return store.Job{}, jobError(err)
	}
	if news {
		s.stored.ended([]store.Job{job})
		told, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		s.stored.recall(told, []store.Job{job})
	}
	return job, nil
}

// Bounds of the time after which a client may ask for its job again.
const (
	askSoonest = time.Second
	askLatest  = 30 * time.Second
)

// askAgain is when it pays to ask for the job again: the older it is, the later.
func askAgain(job store.Job, now time.Time) string {
	return strconv.Itoa(ceilSeconds(min(max(now.Sub(job.CreatedAt)/4, askSoonest), askLatest)))
}
