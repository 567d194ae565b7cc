package ingress

import (
	"context"
	"net/http"
	"time"

	batchengine "sluice/internal/batch"
	"sluice/internal/inference"
	"sluice/store"
)

// batchLines serves GET /v1/batches/{id}/output and …/errors: the lines that are finished
// by now, in the order of the input, in the form that the files have. When the batch has
// ended they come from its file.
func (s *Ingress) batchLines(w http.ResponseWriter, r *http.Request, failed bool) {
	b, err := s.batchOf(r)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	release, err := occupy(s.files.downloads)
	if err != nil {
		s.fail(w, r, err, nil)
		return
	}
	defer release()
	h := w.Header()
	if b.Status.Finished() {
		s.batchFile(w, r, b, failed)
		return
	}
	pages := batchengine.Pages(s.batches.opt.Store, b.ID, failed)
	first, err := pages(r.Context())
	if err != nil {
		s.fail(w, r, batchError(err), nil)
		return
	}
	h.Set("Content-Type", "application/jsonl")
	h.Set("X-Content-Type-Options", "nosniff")
	sent, err := sendLines(r.Context(), w, first, pages)
	if err == nil {
		err = s.checkSent(r.Context(), b, sent, failed)
	}
	if err != nil {
		if r.Context().Err() == nil {
			s.log.Warn("lines of a batch not sent to their end", "request_id", h.Get(requestIDHeader), "batch_id", b.ID, "error", err)
		}
		panic(http.ErrAbortHandler) //nolint:forbidigo // the client must not take a part for the whole
	}
}

// batchFile sends a file of a batch that has ended, or nothing if it has none.
func (s *Ingress) batchFile(w http.ResponseWriter, r *http.Request, b store.Batch, failed bool) {
	id := b.OutputFile
	if failed {
		id = b.ErrorFile
	}
	if id == "" {
		w.Header().Set("Content-Type", "application/jsonl")
		return
	}
	file, err := s.opt.Files.Rows.File(r.Context(), b.Tenant, id, time.Now())
	if err != nil {
		s.fail(w, r, rowError(err), nil)
		return
	}
	whole := span{length: file.Bytes}
	content, first, err := s.files.begin(r.Context(), file, whole)
	if err != nil {
		s.fail(w, r, contentError(err), nil)
		return
	}
	tellContent(w, file, whole)
	if err := sendContent(r.Context(), w, content, first, whole.length); err != nil && r.Context().Err() == nil {
		s.log.Warn("content of a file not sent to its end", "request_id", w.Header().Get(requestIDHeader), "file_id", file.ID, "error", err)
	}
}

// sendLines writes the lines of a page and of those behind it. A client that does not
// accept one in time is cut off.
func sendLines(ctx context.Context, w http.ResponseWriter, page []store.Job, pages func(context.Context) ([]store.Job, error)) (sent int, err error) {
	var text []byte
	for len(page) > 0 {
		for i := range page {
			text = batchengine.AppendLine(text[:0], &page[i])
			limitWrite(w)
			if _, err := w.Write(text); err != nil {
				return sent, err
			}
			sent++
		}
		if page, err = pages(ctx); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// errLinesGone says that lines went while they were being sent.
var errLinesGone = inference.Errorf(inference.CodeInternal, "lines were removed while they were sent")

// checkSent makes sure that no lines were missed because the batch ended meanwhile: then
// its lines go, and its file has them.
func (s *Ingress) checkSent(ctx context.Context, b store.Batch, sent int, failed bool) error {
	now, err := s.batches.opt.Store.Batch(ctx, b.Tenant, b.ID)
	if err != nil || !now.Status.Finished() {
		return err
	}
	all := now.Completed
	if failed {
		all = now.Failed
	}
	if sent < all {
		return errLinesGone
	}
	return nil
}
