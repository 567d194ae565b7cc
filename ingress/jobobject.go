package ingress

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/store"
)

// Bounds of one page of jobs.
const (
	jobsPage = 20
	jobsMost = 100
)

// listJobs serves GET /v1/jobs, newest first.
func (s *Ingress) listJobs(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	filter, err := s.parseJobFilter(r, key.Tenant)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	most := filter.Limit
	filter.Limit++ // one more tells whether there are more
	jobs, err := s.opt.Jobs.Store.ListJobs(r.Context(), filter)
	if err != nil {
		s.fail(w, r, jobError(err), nil)
		return
	}
	page := openaiapi.JobList{HasMore: len(jobs) > most}
	for _, job := range jobs[:min(len(jobs), most)] {
		page.Data = append(page.Data, jobObject(job, false))
	}
	s.writeJSON(w, r, page)
}

func (s *Ingress) parseJobFilter(r *http.Request, tenant string) (store.JobFilter, error) {
	query := r.URL.Query()
	filter := store.JobFilter{Tenant: tenant, Status: store.JobStatus(query.Get("status")), Model: query.Get("model"), Limit: jobsPage}
	if order := query.Get("order"); order != "" && order != "desc" {
		return filter, invalidField("order", "order must be desc: jobs are listed newest first.")
	}
	if status := filter.Status; status != "" && !status.Finished() && status != store.JobQueued && status != store.JobInProgress {
		return filter, invalidField("status", "status must be one of queued, in_progress, completed, failed, cancelled, expired.")
	}
	if len(filter.Model) > openaiapi.MaxModelBytes {
		return filter, invalidField("model", "model must be at most %d bytes long.", openaiapi.MaxModelBytes)
	}
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > jobsMost {
			return filter, invalidField("limit", "limit must be a whole number from 1 to %d.", jobsMost)
		}
		filter.Limit = n
	}
	var err error
	filter.After, err = s.jobCursor(r, query, tenant)
	return filter, err
}

// jobCursor returns the place of the job that the list is to go on behind.
func (s *Ingress) jobCursor(r *http.Request, query url.Values, tenant string) (store.Cursor, error) {
	after := query.Get("after")
	if after == "" {
		return store.Cursor{}, nil
	}
	id, err := jobID(after)
	if err == nil {
		var job store.Job
		var release func()
		if job, release, err = s.stored.read(r.Context(), tenant, id); err == nil {
			release()
			return store.JobCursor(job), nil
		}
	}
	if e, ok := errors.AsType[*inference.Error](err); ok && e.Code == inference.CodeNotFound {
		err = invalidField("after", "after must be the id of a job that is there.")
	}
	return store.Cursor{}, err
}

// jobObject is the job as the API shows it; whole, with its answer.
func jobObject(j store.Job, whole bool) openaiapi.Job {
	shown := openaiapi.Job{
		ID: store.JobPrefix + j.ID, Object: "job", CreatedAt: j.CreatedAt.Unix(), Status: string(j.Status), Model: j.Model,
		Endpoint: openaiapi.EndpointOf(j.Kind), Metadata: j.Metadata, StartedAt: unixOrNull(j.StartedAt),
		FinishedAt: unixOrNull(j.FinishedAt), ExpiresAt: unixOrNull(j.ExpiresAt), Attempts: j.Attempts, Usage: openaiapi.NewJobUsage(j.Usage),
	}
	if provider := providerOf(j); provider != "" {
		shown.Provider = &provider
	}
	if !j.Status.Finished() {
		return shown
	}
	if j.Status != store.JobCompleted {
		shown.Error = jobFault(j)
	}
	if whole && len(j.Response) > 0 {
		shown.Response = &openaiapi.JobResponse{StatusCode: j.ResponseStatus, RequestID: j.RequestID, Body: j.Response}
	}
	return shown
}

// providerOf is who served the job, or who has it now.
func providerOf(j store.Job) string {
	if j.ProviderServed != "" || j.Status.Finished() {
		return j.ProviderServed
	}
	return j.Provider
}

// jobFault says why the job has no good answer: in the words of its answer where that is
// at hand.
func jobFault(j store.Job) *openaiapi.JobError {
	e := endError(j)
	fault := &openaiapi.JobError{Message: e.Message, Type: faceOf(e.Code).kind, Code: string(e.Code)}
	message, kind, code, param, _ := openaiapi.ParseError(j.Response)
	fault.Message = cmp.Or(message, fault.Message)
	fault.Type = cmp.Or(kind, fault.Type)
	fault.Code = cmp.Or(code, fault.Code)
	if param != "" {
		fault.Param = &param
	}
	return fault
}

// endError is the error that a job without an answer ended with.
func endError(j store.Job) *inference.Error {
	switch j.Status {
	case store.JobCancelled:
		return inference.Errorf(inference.CodeCancelled, "The job was cancelled.")
	case store.JobExpired:
		return inference.Errorf(inference.CodeDeadlineExceeded, "The job was not done within its deadline of %s.", j.Deadline.Sub(j.CreatedAt).Round(time.Millisecond))
	}
	return inference.Errorf(j.ErrorCode, "The job ended with the error %s.", j.ErrorCode)
}

// answerBody is the answer of a job that has ended.
func answerBody(j store.Job) []byte {
	if len(j.Response) > 0 {
		return j.Response
	}
	return errorJSON(endError(j), map[string]any{"job_id": store.JobPrefix + j.ID})
}

// statusOfEnd is the HTTP status of a job that has ended.
func statusOfEnd(j store.Job) int {
	if j.ResponseStatus > 0 {
		return j.ResponseStatus
	}
	return statusOf(endError(j))
}

// queuedFor is how long the job waited before it was begun.
func queuedFor(j store.Job) time.Duration {
	began := j.StartedAt
	if began.IsZero() {
		began = j.FinishedAt
	}
	return max(began.Sub(j.CreatedAt), 0)
}

func unixOrNull(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	at := t.Unix()
	return &at
}
