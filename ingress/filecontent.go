package ingress

import (
	"context"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
	"sluice/store"
)

// contentTypes are the kinds of files that batches and models deal with. Everything else
// is bytes; what the operating system thinks of a name is of no interest.
var contentTypes = map[string]string{
	".jsonl": "application/jsonl", ".json": "application/json", ".csv": "text/csv; charset=utf-8", ".txt": "text/plain; charset=utf-8",
	".md": "text/markdown; charset=utf-8", ".pdf": "application/pdf", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg",
	".webp": "image/webp", ".gif": "image/gif",
}

func contentType(filename string) string {
	if kind, ok := contentTypes[strings.ToLower(path.Ext(filename))]; ok {
		return kind
	}
	return "application/octet-stream"
}

// span is a stretch of a file's bytes.
type span struct {
	from, length int64
	partial      bool
}

// parseRange reads a Range header of one range (RFC 9110, 14.2). Whatever else it may be
// is passed over, as the RFC allows: the answer is the whole file then. ok is false when
// the range has no byte of the file.
func parseRange(header string, size int64) (s span, ok bool) {
	whole := span{length: size}
	unit, set, found := strings.Cut(header, "=")
	first, last, dash := strings.Cut(strings.TrimSpace(set), "-")
	if !found || !strings.EqualFold(strings.TrimSpace(unit), "bytes") || !dash {
		return whole, true
	}
	if first == "" { // the last so many bytes
		n, valid := parseOffset(last)
		switch {
		case !valid:
			return whole, true
		case n == 0 || size == 0:
			return span{}, false
		}
		n = min(n, size)
		return span{size - n, n, true}, true
	}
	from, valid := parseOffset(first)
	to := size - 1
	if valid && last != "" {
		to, valid = parseOffset(last)
		valid = valid && to >= from
	}
	switch {
	case !valid:
		return whole, true
	case from >= size:
		return span{}, false
	}
	return span{from, min(to, size-1) - from + 1, true}, true
}

// parseOffset reads digits and nothing else.
func parseOffset(text string) (int64, bool) {
	n, err := strconv.ParseUint(text, 10, 63)
	return int64(n), err == nil
}

// downloadFile serves GET /v1/files/{id}/content.
func (s *Ingress) downloadFile(w http.ResponseWriter, r *http.Request) {
	file, err := s.fileOf(r)
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
	part, ok := parseRange(r.Header.Get("Range"), file.Bytes)
	if !ok {
		w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(file.Bytes, 10))
		s.fail(w, r, inference.Errorf(inference.CodeRangeNotSatisfiable, "The file has no such bytes; it has %d.", file.Bytes), nil)
		return
	}
	// The first bytes are there before the head goes out: what is gone can still be told.
	content, first, err := s.files.begin(r.Context(), file, part)
	if err != nil {
		s.fail(w, r, contentError(err), nil)
		return
	}
	tellContent(w, file, part)
	if err := sendContent(r.Context(), w, content, first, part.length); err != nil && r.Context().Err() == nil {
		// The answer stays shorter than announced, so the server cuts the connection.
		s.log.Warn("content of a file not sent to its end", "request_id", w.Header().Get(requestIDHeader), "file_id", file.ID, "error", err)
	}
}

func (f *files) begin(ctx context.Context, file store.File, part span) (*queue.FileReader, []byte, error) {
	content, err := f.conn.OpenFile(ctx, file.ID, part.from)
	if err != nil {
		return nil, nil, err
	}
	if content.Bytes() != file.Bytes {
		return nil, nil, queue.ErrFileDamaged
	}
	first, err := content.Next(ctx)
	return content, first, err
}

func tellContent(w http.ResponseWriter, file store.File, part span) {
	h := w.Header()
	h.Set("Content-Type", contentType(file.Filename))
	h.Set("X-Content-Type-Options", "nosniff") // a tenant's bytes are no page of ours
	disposition := mime.FormatMediaType("attachment", map[string]string{"filename": file.Filename})
	if disposition == "" {
		disposition = "attachment"
	}
	h.Set("Content-Disposition", disposition)
	h.Set("Content-Length", strconv.FormatInt(part.length, 10))
	h.Set("Accept-Ranges", "bytes")
	h.Set("Etag", `"`+file.Digest+`"`)
	status := http.StatusOK
	if part.partial {
		h.Set("Content-Range", "bytes "+strconv.FormatInt(part.from, 10)+"-"+
			strconv.FormatInt(part.from+part.length-1, 10)+"/"+strconv.FormatInt(file.Bytes, 10))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
}

// sendContent writes what is left of the content, a chunk at a time. A client that does
// not accept one in time is cut off.
func sendContent(ctx context.Context, w http.ResponseWriter, content *queue.FileReader, data []byte, left int64) error {
	ctrl := http.NewResponseController(w)
	for left > 0 {
		data = data[:min(int64(len(data)), left)]
		_ = ctrl.SetWriteDeadline(time.Now().Add(writeMost)) // not every writer has deadlines; the server's does
		if _, err := w.Write(data); err != nil {
			return err
		}
		if left -= int64(len(data)); left == 0 {
			return nil
		}
		var err error
		if data, err = content.Next(ctx); err != nil {
			return err
		}
		if len(data) == 0 {
			return queue.ErrFileDamaged
		}
	}
	return nil
}
