package ingress

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// plainAnswer waits for the whole answer and writes it.
func (s *Ingress) plainAnswer(w http.ResponseWriter, r *http.Request, f *flight, arrived time.Time) {
	published := time.Now()
	deadline := time.NewTimer(time.Until(f.job.Deadline))
	defer deadline.Stop()
	for waits := true; waits; {
		waits = false
		select {
		case <-f.done:
		case <-f.forsaken:
			if s.insteadOf(w, r, f) {
				return
			}
			waits = true
		case <-r.Context().Done():
			s.flights.leave(f, inference.OutcomeCancelled, errClientGone())
		case <-deadline.C:
			s.flights.leave(f, inference.OutcomeExpired, errDeadline(f.job))
		}
	}
	<-f.done
	ended := time.Now()
	end := f.end
	s.tellRoute(w.Header(), "", f, end)
	body, release, err := s.answerBody(r, f, end)
	if err != nil {
		if !s.standIn(w, r, f.cache, err) {
			s.fail(w, r, err, s.errorDetails(f))
		}
		return
	}
	defer release()
	s.keepAnswer(f, end, body)
	limitWrite(w)
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	_, _ = w.Write(body) // a client that left now has been answered all the same
	s.metrics.answered(f.provider(), published.Sub(arrived)+time.Since(ended)+max(end.Elapsed-end.Upstream, 0))
}

var jsonType = []string{"application/json"}

// answerBody returns the answer, from the object store if it is large. Large answers
// that are on their way to clients share a bound of their own: one more waits until
// there is memory for it, which release gives back.
func (s *Ingress) answerBody(r *http.Request, f *flight, end *queue.End) (body []byte, release func(), err error) {
	if end.Err != nil {
		return nil, nil, end.Err
	}
	if end.BodyRef == "" {
		return end.Body, func() {}, nil
	}
	defer s.flights.letGo(f, end)
	ctx, cancel := context.WithDeadline(r.Context(), f.job.Deadline)
	defer cancel()
	held := int64(0)
	release = func() { s.answers.Release(held) }
	admit := func(size int64) error {
		if held > 0 {
			return nil
		}
		n := min(size, s.opt.BodyMemory)
		if err := s.answers.Acquire(ctx, n); err != nil {
			return err
		}
		held = n
		return nil
	}
	for {
		body, err = s.conn.FetchBlobWhen(ctx, end.BodyRef, admit)
		switch {
		case err == nil:
			return body, release, nil
		case r.Context().Err() != nil:
			err = errClientGone()
		case ctx.Err() != nil:
			err = errDeadline(f.job)
		case errors.Is(err, queue.ErrNoBlob):
			err = &inference.Error{Code: inference.CodeInternal, Message: "The answer was lost in the queue.", Retryable: true, Err: err}
		default:
			s.log.Warn("large answer not fetched; it will be tried again", "job_id", end.JobID, "error", err)
			pause(ctx, fetchRetry)
			continue
		}
		release()
		return nil, nil, err
	}
}

// fetchRetry is the pause before a large answer is asked for again.
const fetchRetry = 250 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// tellRoute says in headers, or with their prefix in trailers, who served the request and
// how it got there.
func (s *Ingress) tellRoute(h http.Header, prefix string, f *flight, end *queue.End) {
	if end.Provider != "" {
		h[prefix+"X-Sluice-Provider"] = []string{end.Provider}
	}
	h[prefix+"X-Sluice-Attempts"] = []string{strconv.Itoa(end.Attempts)}
	tellDropped(h, prefix+droppedHeader, end.Dropped)
	tellTries(h, prefix+triesHeader, end.Tries)
	h[prefix+"X-Sluice-Queue-Ms"] = []string{strconv.FormatInt(f.queued(end.Elapsed).Milliseconds(), 10)}
}

// droppedHeader names the fields of the request that the provider could not honour and
// whose policy was to leave them out.
const droppedHeader = "X-Sluice-Dropped-Params"

func tellDropped(h http.Header, name string, fields []string) {
	if len(fields) > 0 {
		h.Set(name, strings.Join(fields, ", "))
	}
}

// triesHeader names the calls that failed before the one that answered, the last of them,
// as "provider/model error-code".
const (
	triesHeader = "X-Sluice-Failed-Attempts"
	triesShown  = 8
)

func tellTries(h http.Header, name string, tries []inference.Try) {
	if len(tries) == 0 {
		return
	}
	tries = tries[max(len(tries)-triesShown, 0):]
	said := make([]string, len(tries))
	for i, t := range tries {
		said[i] = url.PathEscape(t.Provider) + "/" + url.PathEscape(t.Model) + " " + string(t.Code)
	}
	h.Set(name, strings.Join(said, ", "))
}

// queued is how long the job waited: what is left of its life so far without the
// time that the worker had it. It needs only one clock.
func (f *flight) queued(elapsed time.Duration) time.Duration {
	return max(time.Since(f.accepted)-elapsed, 0)
}

func (s *Ingress) errorDetails(f *flight) map[string]any {
	return map[string]any{"job_id": f.job.ID, "provider": f.provider()}
}

// dropBlob removes a request or an answer that travelled as a blob, if it did.
func (fs *flights) dropBlob(jobID, ref string) {
	if ref == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := fs.conn.RemoveBlob(ctx, ref); err != nil {
		fs.log.Debug("blob not removed; its age will", "job_id", jobID, "error", err)
	}
}
