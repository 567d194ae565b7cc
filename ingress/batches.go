package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	batchengine "sluice/internal/batch"
	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/token"
	"sluice/store"
)

// BatchOptions are what an ingress needs to serve batches. Without a Store, or without
// files, none are.
type BatchOptions struct {
	Store        store.Batches
	MaxLines     int  // of one batch
	MaxLineBytes int  // of one request
	SingleModel  bool // a batch is for one model
	Window       int  // requests of all batches in the queue at once
	Retention    time.Duration
}

// Bounds of the API about batches. OpenAI's list has 20 on a page, and at most 100.
const (
	batchBody    = 64 << 10
	batchRead    = 10 * time.Second // for its body
	batchesUsual = 20
	batchesMost  = 100
)

// batches serves /v1/batches. What is to be done about batches its engine does.
type batches struct {
	opt    BatchOptions
	engine *batchengine.Engine
}

// newBatches returns nothing if there is nothing to keep batches in. Their lines are stored
// jobs: what gives those their messages does it for lines, too.
func newBatches(s *Ingress) *batches {
	o := s.opt.Batches
	if o.Store == nil || s.opt.Files.Rows == nil || s.stored == nil {
		return nil
	}
	publish := func(ctx context.Context, lines []store.Job) error {
		done, limited := s.stored.publish(ctx, lines)
		switch {
		case done > 0:
			return nil
		case !limited.IsZero():
			return &batchengine.Held{Until: limited}
		}
		return errors.New("no queue takes them at the moment")
	}
	b := &batches{opt: o, engine: batchengine.New(batchengine.Options{
		Owner: s.opt.ID, Store: o.Store, Files: s.opt.Files.Rows, Contents: s.conn, Routes: s.batchRouter,
		Ready: s.conn.Connected, Publish: publish, Recall: s.stored.recall, Ended: s.hooks.nudge,
		MaxLines: o.MaxLines, MaxLineBytes: o.MaxLineBytes, SingleModel: o.SingleModel, Window: o.Window,
		Retention: o.Retention, OutputExpires: s.opt.Files.ExpireAfter, Logger: s.log,
	})}
	s.stored.lines = b.engine.Wake
	return b
}

func (s *Ingress) batchRoutes(r *mux.Router) {
	if s.batches == nil {
		return
	}
	one := batchesPath + "/{id}"
	r.HandleFunc(batchesPath, s.createBatch).Methods(http.MethodPost)
	r.HandleFunc(batchesPath, s.listBatches).Methods(http.MethodGet)
	r.HandleFunc(one, s.retrieveBatch).Methods(http.MethodGet)
	r.HandleFunc(one+"/cancel", s.cancelBatch).Methods(http.MethodPost)
	r.HandleFunc(one+"/output", func(w http.ResponseWriter, r *http.Request) { s.batchLines(w, r, false) }).Methods(http.MethodGet)
	r.HandleFunc(one+"/errors", func(w http.ResponseWriter, r *http.Request) { s.batchLines(w, r, true) }).Methods(http.MethodGet)
}

// createBatch serves POST /v1/batches. The file is read afterwards.
func (s *Ingress) createBatch(w http.ResponseWriter, r *http.Request) {
	b, err := s.newBatch(w, r)
	if err == nil {
		b, err = s.acceptBatch(r.Context(), b)
	}
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	s.writeBatch(w, r, b)
}

// acceptBatch stores the batch, and returns it as it then stands. Its id is taken when a
// call with the same idempotency key created it, and was lost before it could answer.
func (s *Ingress) acceptBatch(ctx context.Context, b store.Batch) (store.Batch, error) {
	err := s.batches.opt.Store.CreateBatch(ctx, b)
	if errors.Is(err, store.ErrDuplicate) {
		there, err := s.batches.opt.Store.Batch(ctx, b.Tenant, b.ID)
		if errors.Is(err, store.ErrNotFound) {
			return store.Batch{}, fmt.Errorf("store batch %s, which another tenant has: %w", b.ID, store.ErrDuplicate)
		}
		return there, batchError(err)
	}
	if err != nil {
		return store.Batch{}, batchError(err)
	}
	s.batches.engine.Look()
	b.Status = store.BatchValidating
	return b, nil
}

// newBatch makes a batch of a request for one.
func (s *Ingress) newBatch(w http.ResponseWriter, r *http.Request) (store.Batch, error) {
	key, err := s.authenticate(r)
	if err != nil {
		return store.Batch{}, err
	}
	body, err := readSmall(w, r)
	if err != nil {
		return store.Batch{}, err
	}
	req, err := openaiapi.ParseCreateBatch(body)
	if err != nil {
		return store.Batch{}, err
	}
	now := time.Now()
	file, err := s.opt.Files.Rows.File(r.Context(), key.Tenant, req.InputFile, now)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return store.Batch{}, &inference.Error{Code: inference.CodeNotFound, Param: "input_file_id", Message: "There is no file of this id. It may have expired."}
	case err != nil:
		return store.Batch{}, rowError(err)
	case file.Purpose != openaiapi.PurposeBatch:
		return store.Batch{}, invalidField("input_file_id", "The file's purpose is %s. The input of a batch has the purpose %s.", file.Purpose, openaiapi.PurposeBatch)
	}
	kind := inference.KindChat
	if req.Endpoint == openaiapi.EndpointEmbeddings {
		kind = inference.KindEmbeddings
	}
	return store.Batch{
		ID: "batch_" + s.jobID(r.Context(), now)[2:], Tenant: key.Tenant, KeyID: key.ID, KeyName: key.Name, Caller: batchCallerOf(key),
		Endpoint: req.Endpoint, Kind: kind, InputFile: file.ID, CompletionWindow: req.Window, Metadata: req.Metadata,
		OutputExpires: req.OutputExpires, CreatedAt: now, ExpiresAt: now.Add(req.Window),
	}, nil
}

// batchCallerOf returns what a batch keeps of a caller whose token is not kept.
func batchCallerOf(key store.Key) *store.BatchCaller {
	if !token.IsCaller(key.ID) {
		return nil
	}
	return &store.BatchCaller{Models: key.Models, Limits: key.Limits}
}

// readSmall reads the body of a request that holds a few fields.
func readSmall(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if ce := r.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		return nil, inference.Errorf(inference.CodeInvalidRequest, "A request body with a Content-Encoding is not taken. Send it as plain JSON.")
	}
	ctrl := http.NewResponseController(w)
	_ = ctrl.SetReadDeadline(time.Now().Add(batchRead)) // not every writer has deadlines; the server's does
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, batchBody))
	_ = ctrl.SetReadDeadline(time.Time{})
	switch {
	case isTooLarge(err):
		return nil, inference.Errorf(inference.CodeRequestTooLarge, "The request body is larger than %d bytes.", batchBody)
	case err != nil:
		return nil, &inference.Error{Code: inference.CodeInvalidRequest, Message: "The request body could not be read to its end.", Err: err}
	}
	return body, nil
}

// retrieveBatch serves GET /v1/batches/{id}.
func (s *Ingress) retrieveBatch(w http.ResponseWriter, r *http.Request) {
	b, err := s.batchOf(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	s.writeBatch(w, r, b)
}

// batchOf returns the batch that the request names, if it is its caller's own.
func (s *Ingress) batchOf(r *http.Request) (store.Batch, error) {
	key, err := s.authenticate(r)
	if err != nil {
		return store.Batch{}, err
	}
	b, err := s.batches.opt.Store.Batch(r.Context(), key.Tenant, mux.Vars(r)["id"])
	return b, batchError(err)
}

// cancelBatch serves POST /v1/batches/{id}/cancel. It may be repeated. The database decides
// whether the batch is beyond cancelling.
func (s *Ingress) cancelBatch(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	b, err := s.batches.opt.Store.CancelBatch(r.Context(), key.Tenant, mux.Vars(r)["id"], time.Now())
	if err != nil {
		s.fail(w, r, batchError(err), nil)
		return
	}
	if b.Status != store.BatchCancelling && b.Status != store.BatchCancelled {
		w.Header().Set("X-Should-Retry", "false") // OpenAI's clients repeat a 409 by themselves
		s.fail(w, r, inference.Errorf(inference.CodeConflict, "The batch is %s. Only one that is validating or in progress can be cancelled.", b.Status), nil)
		return
	}
	s.batches.engine.Look()
	s.writeBatch(w, r, b)
}

// listBatches serves GET /v1/batches.
func (s *Ingress) listBatches(w http.ResponseWriter, r *http.Request) {
	key, err := s.authenticate(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	filter, err := s.batchFilter(r.Context(), key.Tenant, r.URL.Query())
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	limit := filter.Limit
	filter.Limit++ // whether there are more
	found, err := s.batches.opt.Store.ListBatches(r.Context(), filter)
	if err != nil {
		s.fail(w, r, batchError(err), nil)
		return
	}
	page := openaiapi.BatchList{HasMore: len(found) > limit}
	for _, b := range found[:min(limit, len(found))] {
		page.Data = append(page.Data, batchObject(b))
	}
	s.writeJSON(w, r, page)
}

func (s *Ingress) batchFilter(ctx context.Context, tenant string, query url.Values) (store.BatchFilter, error) {
	filter := store.BatchFilter{Tenant: tenant, Limit: batchesUsual}
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > batchesMost {
			return filter, invalidField("limit", "limit must be a whole number from 1 to %d.", batchesMost)
		}
		filter.Limit = n
	}
	if after := query.Get("after"); after != "" {
		b, err := s.batches.opt.Store.Batch(ctx, tenant, after)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return filter, invalidField("after", "after must be the id of a batch that is there.")
		case err != nil:
			return filter, batchError(err)
		}
		filter.After = store.BatchCursor(b)
	}
	return filter, nil
}

// etaHeader says when a batch in progress will be done.
const etaHeader = "X-Sluice-Eta"

func (s *Ingress) writeBatch(w http.ResponseWriter, r *http.Request, b store.Batch) {
	if b.Status == store.BatchInProgress {
		if at, ok := batchengine.ETA(b.Total-b.Completed-b.Failed, b.Rate, time.Now()); ok {
			w.Header().Set(etaHeader, at.UTC().Format(time.RFC3339))
		}
	}
	s.writeJSON(w, r, batchObject(b))
}

func batchObject(b store.Batch) openaiapi.Batch {
	o := openaiapi.Batch{
		ID: b.ID, Endpoint: b.Endpoint, Model: b.Model, InputFile: b.InputFile, Status: string(b.Status), Window: b.CompletionWindow,
		OutputFile: b.OutputFile, ErrorFile: b.ErrorFile,
		CreatedAt: unixOrZero(b.CreatedAt), InProgressAt: unixOrZero(b.InProgressAt), ExpiresAt: unixOrZero(b.ExpiresAt),
		FinalizingAt: unixOrZero(b.FinalizingAt), CompletedAt: unixOrZero(b.CompletedAt), FailedAt: unixOrZero(b.FailedAt),
		ExpiredAt: unixOrZero(b.ExpiredAt), CancellingAt: unixOrZero(b.CancellingAt), CancelledAt: unixOrZero(b.CancelledAt),
		Usage: b.Usage, Metadata: b.Metadata,
	}
	if !b.InProgressAt.IsZero() { // before, it is not yet known how many lines it has
		o.Total, o.Completed, o.Failed = b.Total, b.Completed, b.Failed
	}
	for _, f := range b.Faults {
		o.Faults = append(o.Faults, openaiapi.BatchFault{Code: f.Code, Message: f.Message, Param: f.Param, Line: f.Line})
	}
	return o
}

func unixOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// batchError says what the database's error about a batch means to the client.
func batchError(err error) error {
	_, told := errors.AsType[*inference.Error](err)
	switch {
	case err == nil || told:
		return err
	case errors.Is(err, store.ErrNotFound):
		return &inference.Error{Code: inference.CodeNotFound, Param: "batch_id", Message: "There is no batch of this id."}
	case errors.Is(err, store.ErrInvalid):
		return fmt.Errorf("store a batch: %w", err)
	}
	return &inference.Error{
		Code: inference.CodeStorageUnavailable, Message: "Batches cannot be reached at the moment.", Retryable: true, Err: err,
	}
}
