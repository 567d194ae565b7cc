package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// FileOptions are what an ingress needs to serve files. What they leave out is not
// served: without Rows there is nothing at /v1/files.
type FileOptions struct {
	Rows          store.Files
	MaxBytes      int64         // of a file; not less than MaxBatchBytes
	MaxBatchBytes int64         // of a file with the requests of a batch
	ExpireAfter   time.Duration // for uploads that do not say it; zero: never
	MaxTransfers  int           // uploads at once, and downloads at once
	Stall         time.Duration // for a client to get on with its upload; zero: a minute
}

// fileStall is how long an upload may be about to send fileStep bytes.
const (
	fileStall = time.Minute
	fileStep  = 128 << 10
)

// files serves /v1/files: the rows are in the database, the contents in the queue's
// object store. A row is written when its content is whole, and removed before its
// content is, so that whoever finds a row can read the file. What a crash leaves in
// between is an object without a row, which the sweep removes.
type files struct {
	opt       FileOptions
	conn      *queue.Conn
	log       *slog.Logger
	uploads   chan struct{}
	downloads chan struct{}
	unready   bool // the object store was missing when it was last looked for
}

func newFiles(o FileOptions, conn *queue.Conn, log *slog.Logger) *files {
	if o.Stall <= 0 {
		o.Stall = fileStall
	}
	return &files{
		opt: o, conn: conn, log: log,
		uploads: make(chan struct{}, o.MaxTransfers), downloads: make(chan struct{}, o.MaxTransfers),
	}
}

func (s *Ingress) fileRoutes(r *mux.Router) {
	if s.opt.Files.Rows == nil {
		return
	}
	r.HandleFunc(filesPath, s.uploadFile).Methods(http.MethodPost)
	r.HandleFunc(filesPath, s.listFiles).Methods(http.MethodGet)
	r.HandleFunc("/v1/files/{id}", s.retrieveFile).Methods(http.MethodGet)
	r.HandleFunc("/v1/files/{id}", s.deleteFile).Methods(http.MethodDelete)
	r.HandleFunc("/v1/files/{id}/content", s.downloadFile).Methods(http.MethodGet)
}

// occupy takes one of the slots, or refuses.
func occupy(slots chan struct{}) (release func(), err error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	default:
		return nil, errBusy()
	}
}

// uploadFile serves POST /v1/files.
func (s *Ingress) uploadFile(w http.ResponseWriter, r *http.Request) {
	q, err := s.keyedRequest(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	file, u, err := s.files.receive(w, r, q.caller.Tenant)
	if err != nil {
		if inference.AsError(err).Code == inference.CodeStorageFull {
			w.Header().Set("X-Should-Retry", "false") // OpenAI's clients would send all of it again at once
		}
		s.fail(w, r, err, nil)
		return
	}
	kept := false
	defer func() {
		if !kept {
			s.files.drop(r.Context(), file.ID)
		}
	}()
	keep := func(w http.ResponseWriter, r *http.Request) {
		if err := s.files.keep(r.Context(), file); err != nil {
			s.fail(w, r, err, nil)
			return
		}
		kept = true
		s.writeJSON(w, r, fileObject(file))
	}
	if q.name == "" {
		keep(w, r)
		return
	}
	q.hash = sameness(r, u.said()...)
	s.once(w, r, q, keep)
}

// retrieveFile serves GET /v1/files/{id}.
func (s *Ingress) retrieveFile(w http.ResponseWriter, r *http.Request) {
	file, err := s.fileOf(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	s.writeJSON(w, r, fileObject(file))
}

// fileOf returns the file that the request names, if it is its caller's own.
func (s *Ingress) fileOf(r *http.Request) (store.File, error) {
	key, err := s.authenticate(r)
	if err != nil {
		return store.File{}, err
	}
	file, err := s.opt.Files.Rows.File(r.Context(), key.Tenant, mux.Vars(r)["id"], time.Now())
	return file, rowError(err)
}

// deleteFile serves DELETE /v1/files/{id}.
func (s *Ingress) deleteFile(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	id := mux.Vars(r)["id"]
	if err := s.opt.Files.Rows.DeleteFile(r.Context(), key.Tenant, id, time.Now()); err != nil {
		s.fail(w, r, rowError(err), nil)
		return
	}
	s.files.drop(r.Context(), id)
	s.writeJSON(w, r, openaiapi.FileDeleted{ID: id})
}

// listFiles serves GET /v1/files.
func (s *Ingress) listFiles(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	filter, err := parseFileFilter(r.URL.Query())
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	filter.Tenant, filter.Now = key.Tenant, time.Now()
	found, more, err := s.opt.Files.Rows.ListFiles(r.Context(), filter)
	if errors.Is(err, store.ErrNotFound) {
		err = invalidField("after", "after must be the id of a file that is there.")
	}
	if err != nil {
		s.fail(w, r, rowError(err), nil)
		return
	}
	page := openaiapi.FileList{HasMore: more, Data: make([]openaiapi.File, len(found))}
	for i := range found {
		page.Data[i] = fileObject(found[i])
	}
	s.writeJSON(w, r, page)
}

func parseFileFilter(query url.Values) (store.FileFilter, error) {
	filter := store.FileFilter{Purpose: query.Get("purpose"), After: query.Get("after")}
	switch order := query.Get("order"); order {
	case "", "desc":
	case "asc":
		filter.Ascending = true
	default:
		return filter, invalidField("order", "order must be asc or desc.")
	}
	if p := filter.Purpose; p != "" && p != openaiapi.PurposeBatchOutput && !slices.Contains(openaiapi.UploadPurposes(), p) {
		return filter, errPurpose()
	}
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > store.MaxFiles {
			return filter, invalidField("limit", "limit must be a whole number from 1 to %d.", store.MaxFiles)
		}
		filter.Limit = n
	}
	return filter, nil
}

func errPurpose() error {
	return invalidField("purpose", "purpose must be one of %s.", strings.Join(openaiapi.UploadPurposes(), ", "))
}

func fileObject(f store.File) openaiapi.File {
	o := openaiapi.File{ID: f.ID, Bytes: f.Bytes, CreatedAt: f.CreatedAt.Unix(), Filename: f.Filename, Purpose: f.Purpose}
	if !f.ExpiresAt.IsZero() {
		o.ExpiresAt = f.ExpiresAt.Unix()
	}
	return o
}

// rowError says what the database's error about a file means to the client.
func rowError(err error) error {
	_, told := errors.AsType[*inference.Error](err)
	switch {
	case err == nil || told:
		return err
	case errors.Is(err, store.ErrNotFound):
		return errNoFile("There is no file of this id.")
	}
	return &inference.Error{
		Code: inference.CodeStorageUnavailable, Message: "The files cannot be looked up at the moment.", Retryable: true, Err: err,
	}
}

func errNoFile(message string) error {
	return &inference.Error{Code: inference.CodeNotFound, Param: "file_id", Message: message}
}

// contentError says what the queue's error about a content means to the client.
func contentError(err error) error {
	_, told := errors.AsType[*inference.Error](err)
	switch {
	case told:
		return err
	case errors.Is(err, queue.ErrNoFile):
		return errNoFile("The content of this file is gone. Delete the file and upload it again.")
	case errors.Is(err, queue.ErrFileDamaged):
		return &inference.Error{Code: inference.CodeInternal, Message: "The content of this file is damaged. Delete the file and upload it again.", Err: err}
	case errors.Is(err, queue.ErrFull):
		return &inference.Error{Code: inference.CodeStorageFull, Param: "file", Message: "The space for files is used up. Delete files that are not needed any more.", Err: err}
	}
	return &inference.Error{
		Code: inference.CodeStorageUnavailable, Message: "Contents of files cannot be reached at the moment.", Retryable: true, Err: err,
	}
}

// dropWait bounds the removal of a content that nobody waits for.
const dropWait = 10 * time.Second

// drop removes a content that has no row, also when the client is gone meanwhile.
func (f *files) drop(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropWait)
	defer cancel()
	if err := f.conn.RemoveFile(ctx, id); err != nil {
		f.log.Warn("content of a file not removed; the sweep will do it", "file_id", id, "error", err)
	}
}

// keep writes the row of a file whose content is whole. After a failure nobody knows
// whether the row is there, so neither it nor the content is to remain.
func (f *files) keep(ctx context.Context, file store.File) error {
	err := f.opt.Rows.CreateFile(ctx, file)
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropWait)
	defer cancel()
	if undoErr := f.opt.Rows.DeleteFile(undo, file.Tenant, file.ID, file.CreatedAt); undoErr != nil && !errors.Is(undoErr, store.ErrNotFound) {
		err = fmt.Errorf("%w; undo: %w", err, undoErr)
	}
	return rowError(err)
}
