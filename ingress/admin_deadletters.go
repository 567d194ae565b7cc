package ingress

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"

	administration "sluice/internal/admin"
	"sluice/internal/adminapi"
	"sluice/internal/inference"
	"sluice/internal/queue"
)

// letterPrefix stands before a dead letter's number wherever an operator sees it.
const letterPrefix = "dead_"

func letterID(seq uint64) string { return letterPrefix + strconv.FormatUint(seq, 10) }

func parseLetterID(text string) (uint64, bool) {
	number, ok := strings.CutPrefix(text, letterPrefix)
	seq, err := strconv.ParseUint(number, 10, 63)
	return seq, ok && err == nil && seq > 0
}

func (s *Ingress) routeDeadLetters(r *mux.Router) {
	one := adminapi.DeadLettersPath + "/{id}"
	r.HandleFunc(adminapi.DeadLettersPath, s.listDeadLetters).Methods(http.MethodGet)
	r.HandleFunc(adminapi.DeadLettersPath+adminapi.RequeuePath, s.requeueLetters).Methods(http.MethodPost)
	r.HandleFunc(adminapi.DeadLettersPath+adminapi.DropPath, s.dropLetters).Methods(http.MethodPost)
	r.HandleFunc(one, s.showDeadLetter).Methods(http.MethodGet)
	r.HandleFunc(one, s.dropLetter).Methods(http.MethodDelete)
	r.HandleFunc(one+adminapi.RequeuePath, s.requeueLetter).Methods(http.MethodPost)
}

// Bounds of dead letters on one page, and of one request about many.
const (
	lettersPage = 20
	lettersMost = 100
	lettersMany = 1000
)

// listDeadLetters serves GET /admin/v1/dead-letters, newest first.
func (s *Ingress) listDeadLetters(w http.ResponseWriter, r *http.Request) {
	f, err := letterQuery(r)
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	letters, next, err := s.conn.DeadLetters(r.Context(), f)
	if err != nil {
		s.adminFail(w, r, errQueueGone(err))
		return
	}
	list := adminapi.DeadLetterList{DeadLetters: []adminapi.DeadLetter{}}
	if next > 0 {
		list.Before = letterID(next)
	}
	for _, l := range letters {
		list.DeadLetters = append(list.DeadLetters, shownLetter(l))
	}
	s.writeJSON(w, r, list)
}

func letterQuery(r *http.Request) (queue.DeadFilter, error) {
	q := r.URL.Query()
	limit := lettersPage
	if text := q.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > lettersMost {
			return queue.DeadFilter{}, invalidField("limit", "limit must be a whole number from 1 to %d.", lettersMost)
		}
	}
	f, err := letterFilter(q.Get("provider"), q.Get("reason"), q.Get("from"), q.Get("to"), q.Get("before"))
	f.Limit = limit
	return f, err
}

func letterFilter(provider, reason, from, to, before string) (queue.DeadFilter, error) {
	f := queue.DeadFilter{Provider: provider, Reason: reason}
	if before != "" {
		var ok bool
		if f.Before, ok = parseLetterID(before); !ok {
			return f, invalidField("before", "before must be what the answer before named.")
		}
	}
	if len(reason) > reasonMost {
		return f, invalidField("reason", "reason must be at most %d bytes long.", reasonMost)
	}
	for _, bound := range []struct {
		name, text string
		into       *time.Time
	}{{"from", from, &f.From}, {"to", to, &f.To}} {
		if bound.text == "" {
			continue
		}
		at, err := administration.Bound(bound.name, bound.text)
		if err != nil {
			return f, err
		}
		*bound.into = at
	}
	return f, administration.CheckSpan(from, to)
}

func shownLetter(l *queue.DeadLetter) adminapi.DeadLetter {
	shown := adminapi.DeadLetter{
		ID: letterID(l.Seq), At: l.At, Kind: string(l.Kind), Provider: l.Provider, Reason: l.Reason, Deliveries: l.Deliveries,
		JobID: l.JobID, RequestID: l.RequestID, Lane: string(l.Lane), Bytes: int64(l.Bytes),
	}
	if l.Unread != nil {
		shown.Unread = l.Unread.Error()
	}
	if j := l.Job; j != nil {
		shown.Tenant, shown.KeyID, shown.Model, shown.Attempts = j.Tenant, j.KeyID, j.Model, j.Attempts
		shown.CreatedAt, shown.Deadline = timeOrNull(j.CreatedAt), timeOrNull(j.Deadline)
	}
	return shown
}

// namedLetter returns the dead letter that the path names.
func (s *Ingress) namedLetter(r *http.Request) (*queue.DeadLetter, error) {
	missing := &inference.Error{Code: inference.CodeNotFound, Param: "id", Message: "There is no dead letter of this id."}
	seq, ok := parseLetterID(mux.Vars(r)["id"])
	if !ok {
		return nil, missing
	}
	l, err := s.conn.DeadLetter(r.Context(), seq)
	if errors.Is(err, queue.ErrNoLetter) {
		return nil, missing
	}
	if err != nil {
		return nil, errQueueGone(err)
	}
	return l, nil
}

// letterBody bounds the body of a dead letter that is shown.
const letterBody = 2 << 20

// showDeadLetter serves GET /admin/v1/dead-letters/{id}. Its body is what a client wrote: it
// is shown only to who asks for it, and that is kept.
func (s *Ingress) showDeadLetter(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var err error
	if body := q.Get("body"); !slices.Contains([]string{"", "true", "false"}, body) {
		err = invalidField("body", "body must be true or false.")
	}
	var l *queue.DeadLetter
	if err == nil {
		l, err = s.namedLetter(r)
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	shown := shownLetter(l)
	if l.BodyRef != "" {
		size, err := s.conn.BlobSize(r.Context(), l.BodyRef)
		if err != nil && !errors.Is(err, queue.ErrNoBlob) {
			s.adminFail(w, r, errQueueGone(err))
			return
		}
		shown.Bytes = size
	}
	if q.Get("body") == "true" {
		if shown.Body, err = s.letterBody(r, l, shown.Bytes); err != nil {
			s.adminFail(w, r, err)
			return
		}
	}
	s.writeJSON(w, r, shown)
}

func (s *Ingress) letterBody(r *http.Request, l *queue.DeadLetter, size int64) (body []byte, err error) {
	if size > letterBody {
		return nil, &inference.Error{
			Code: inference.CodeRequestTooLarge, Param: "body",
			Message: "The body is " + strconv.FormatInt(size, 10) + " bytes long; up to " + strconv.Itoa(letterBody) + " are shown.",
		}
	}
	err = s.audited(r, change{"dead_letter.read_body", letterTarget(l), nil, nil}, func() (err error) {
		if l.BodyRef == "" {
			body = l.Body()
			return nil
		}
		if body, err = s.conn.FetchBlob(r.Context(), l.BodyRef, letterBody); errors.Is(err, queue.ErrNoBlob) {
			return errBodyGone()
		}
		return queueError(err)
	})
	return body, err
}

func letterTarget(l *queue.DeadLetter) string { return "dead_letter:" + letterID(l.Seq) }

// dropLetter serves DELETE /admin/v1/dead-letters/{id}.
func (s *Ingress) dropLetter(w http.ResponseWriter, r *http.Request) {
	l, err := s.namedLetter(r)
	if err == nil {
		err = s.audited(r, change{"dead_letter.drop", letterTarget(l), shownLetter(l), nil}, func() error {
			return queueError(s.conn.DropLetter(r.Context(), l.Seq))
		})
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// requeueLetter serves POST /admin/v1/dead-letters/{id}/requeue.
func (s *Ingress) requeueLetter(w http.ResponseWriter, r *http.Request) {
	l, err := s.namedLetter(r)
	if err == nil {
		err = s.staysFor(l)
	}
	var done adminapi.LetterRequeued
	if err == nil {
		err = s.audited(r, change{"dead_letter.requeue", letterTarget(l), shownLetter(l), nil}, func() (err error) {
			done, err = s.requeue(r.Context(), l)
			return err
		})
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, done)
}

// manyLetters reads which letters a request is about, and returns them, the oldest first, and
// what is known of the answer: whether there are more, and where to go on.
func (s *Ingress) manyLetters(w http.ResponseWriter, r *http.Request) (req adminapi.ManyLetters, letters []*queue.DeadLetter, done adminapi.LettersDone, err error) {
	if err = administration.Read(w, r, &req); err != nil {
		return req, nil, done, err
	}
	if req.Limit < 1 || req.Limit > lettersMany {
		return req, nil, done, invalidField("limit", "limit must be from 1 to %d.", lettersMany)
	}
	f, err := letterFilter(req.Provider, req.Reason, req.From, req.To, req.Before)
	if err != nil {
		return req, nil, done, err
	}
	f.Limit = req.Limit
	letters, next, err := s.conn.DeadLetters(r.Context(), f)
	if err != nil {
		return req, nil, done, errQueueGone(err)
	}
	slices.Reverse(letters)
	if next > 0 {
		done.More, done.Next = true, letterID(next)
	}
	return req, letters, done, nil
}

// requeueLetters serves POST /admin/v1/dead-letters/requeue.
func (s *Ingress) requeueLetters(w http.ResponseWriter, r *http.Request) {
	req, letters, done, err := s.manyLetters(w, r)
	if err == nil {
		err = s.auditedMany(r, change{"dead_letter.requeue_many", "dead_letters", nil, req}, func() (any, error) {
			err := s.requeueEach(r.Context(), letters, &done)
			return auditedLetters(&done, nil), err
		})
	}
	if err != nil && len(done.Failed) == 0 {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, done)
}

// requeueEach sends the letters on their way again, and notes which went and which stay. If
// any stays, that is the error.
func (s *Ingress) requeueEach(ctx context.Context, letters []*queue.DeadLetter, done *adminapi.LettersDone) (last error) {
	for _, l := range letters {
		one, err := s.requeue(ctx, l)
		if err != nil {
			e := administration.Answerable(err)
			done.Failed = append(done.Failed, adminapi.LetterFailed{ID: letterID(l.Seq), Code: string(e.Code), Message: e.Message})
			last = err
			continue
		}
		done.Requeued = append(done.Requeued, one)
	}
	return last
}

// dropLetters serves POST /admin/v1/dead-letters/drop.
func (s *Ingress) dropLetters(w http.ResponseWriter, r *http.Request) {
	req, letters, done, err := s.manyLetters(w, r)
	if err == nil {
		err = s.auditedMany(r, change{"dead_letter.drop_many", "dead_letters", nil, req}, func() (any, error) {
			var gone []string
			for _, l := range letters {
				if err := s.conn.DropLetter(r.Context(), l.Seq); err != nil {
					return auditedLetters(&done, gone), errQueueGone(err)
				}
				done.Dropped++
				gone = append(gone, letterID(l.Seq))
			}
			return auditedLetters(&done, gone), nil
		})
	}
	if err != nil {
		s.adminFail(w, r, err)
		return
	}
	s.writeJSON(w, r, done)
}
