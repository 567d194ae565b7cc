package ingress

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/queue"
	"sluice/store"
)

// Bounds of a form beside the file in it.
const (
	formBuffer = 64 << 10
	formRoom   = 64 << 10 // names, headers, boundaries and the other fields
	fieldBytes = 1 << 10  // one other field
)

// receive takes a file in: its content goes on to the object store as it comes. Nothing
// stays behind of one that fails. The caller is to write the row, or to drop the content.
func (f *files) receive(w http.ResponseWriter, r *http.Request, tenant string) (store.File, *upload, error) {
	release, err := occupy(f.uploads)
	if err != nil {
		return store.File{}, nil, err
	}
	defer release()
	if r.ContentLength > f.opt.MaxBytes+formRoom {
		return store.File{}, nil, errFileTooLarge(f.opt.MaxBytes)
	}
	boundary, err := formBoundary(r)
	if err != nil {
		return store.File{}, nil, err
	}
	body := &uploadBody{from: r.Body, ctrl: http.NewResponseController(w), stall: f.opt.Stall, left: f.opt.Stall}
	u := &upload{files: f, id: store.NewFileID(), body: body, announced: r.ContentLength, given: make(map[string]bool)}
	err = u.read(r.Context(), bufio.NewReaderSize(body, formBuffer), boundary)
	var file store.File
	if err == nil {
		file, err = u.file(tenant, time.Now())
	}
	if err != nil && u.stored {
		f.drop(r.Context(), u.id)
	}
	return file, u, err
}

// said returns what makes an upload the same as another: not the boundary of its form,
// which clients choose anew for each attempt.
func (u *upload) said() [][]byte {
	return [][]byte{u.content.Digest[:], []byte(u.filename), []byte(u.purpose), []byte(u.anchor), []byte(u.seconds)}
}

func formBoundary(r *http.Request) (string, error) {
	if ce := r.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		return "", inference.Errorf(inference.CodeInvalidRequest, "A request body with a Content-Encoding is not taken. Send it as a plain form.")
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return "", inference.Errorf(inference.CodeInvalidRequest, "A file is sent as multipart/form-data, with a boundary.")
	}
	return params["boundary"], nil
}

func errFileTooLarge(most int64) error {
	return &inference.Error{Code: inference.CodeRequestTooLarge, Param: "file", Message: "The file is larger than " + strconv.FormatInt(most, 10) + " bytes."}
}

// uploadBody is the body of an upload. It bounds the time in which the client gets on,
// not counting the time in which the queue does, and what the form has beside the file.
type uploadBody struct {
	from  io.Reader
	ctrl  *http.ResponseController
	stall time.Duration

	left    time.Duration // for the current step
	step    int64         // bytes of the current step
	bytes   int64         // of everything
	content int64         // of them, those that are the file's and were handed on
}

// Read implements io.Reader. Its errors are for the client.
func (b *uploadBody) Read(p []byte) (int, error) {
	begun := time.Now()
	_ = b.ctrl.SetReadDeadline(begun.Add(b.left)) // not every reader has deadlines; the server's does
	n, err := b.from.Read(p)
	b.left -= time.Since(begun)
	b.bytes, b.step = b.bytes+int64(n), b.step+int64(n)
	if b.step >= fileStep {
		b.step, b.left = 0, b.stall
	}
	switch {
	case b.bytes-b.content > formRoom+formBuffer:
		return 0, inference.Errorf(inference.CodeRequestTooLarge, "The form holds too much beside the file.")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, &inference.Error{Code: inference.CodeDeadlineExceeded, Message: "The upload did not get on for " + b.stall.String() + ".", Retryable: true}
	case err != nil && !errors.Is(err, io.EOF):
		return n, errBrokenForm(err)
	}
	return n, err
}

// errBrokenForm is what a form comes to that ends too soon or is none. An error that is
// for the client already stays as it is.
func errBrokenForm(err error) error {
	if e, ok := errors.AsType[*inference.Error](err); ok {
		return e
	}
	return &inference.Error{Code: inference.CodeInvalidRequest, Message: "The form could not be read to its end.", Err: err}
}

// upload is one form on its way. Its fields come in any order.
type upload struct {
	files *files
	id    string
	body  *uploadBody
	given map[string]bool

	announced       int64 // length of the form; -1 when it is not known
	filename        string
	purpose         string
	anchor, seconds string
	content         queue.FileContent
	stored          bool // the content is in the object store
}

func (u *upload) read(ctx context.Context, from *bufio.Reader, boundary string) error {
	form := multipart.NewReader(from, boundary)
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errBrokenForm(err)
		}
		if err := u.take(ctx, part); err != nil {
			return err
		}
	}
	// What may follow the form is read, too: with the end of the body the server lifts the
	// deadline, and the connection can be used again.
	if _, err := io.CopyN(io.Discard, from, formRoom+formBuffer); err != nil && !errors.Is(err, io.EOF) {
		return errBrokenForm(err)
	}
	return u.complete()
}

// Both ways in which clients write the fields of expires_after are known.
var expiryFields = strings.NewReplacer("expires_after.anchor", anchorField, "expires_after.seconds", secondsField)

const (
	anchorField  = "expires_after[anchor]"
	secondsField = "expires_after[seconds]"
)

func (u *upload) take(ctx context.Context, part *multipart.Part) error {
	name := expiryFields.Replace(part.FormName())
	if u.given[name] {
		return invalidField(name, "%s was given twice.", name)
	}
	var err error
	switch name {
	case "file":
		err = u.store(ctx, part)
	case "purpose":
		if u.purpose, err = field(part, name); err == nil && !slices.Contains(openaiapi.UploadPurposes(), u.purpose) {
			err = errPurpose()
		}
	case anchorField:
		if u.anchor, err = field(part, name); err == nil && u.anchor != openaiapi.ExpiryAnchor {
			err = invalidField(name, "%s must be %s.", name, openaiapi.ExpiryAnchor)
		}
	case secondsField:
		if u.seconds, err = field(part, name); err == nil && !validExpiry(u.seconds) {
			err = invalidField(name, "%s must be a whole number from %d to %d.", name, openaiapi.MinExpirySeconds, openaiapi.MaxExpirySeconds)
		}
	default:
		return invalidField(store.CleanText(name), "The form has a field that there is none of here.")
	}
	u.given[name] = true
	return err
}

func field(part io.Reader, name string) (string, error) {
	text, err := io.ReadAll(io.LimitReader(part, fieldBytes+1))
	if err != nil {
		return "", errBrokenForm(err)
	}
	if len(text) > fieldBytes {
		return "", invalidField(name, "%s is longer than %d bytes.", name, fieldBytes)
	}
	return string(text), nil
}

func validExpiry(seconds string) bool {
	n, err := strconv.ParseInt(seconds, 10, 64)
	return err == nil && n >= openaiapi.MinExpirySeconds && n <= openaiapi.MaxExpirySeconds
}

// limit is the largest file that the purpose allows, as far as it is known.
func (u *upload) limit() int64 {
	if u.purpose == openaiapi.PurposeBatch {
		return u.files.opt.MaxBatchBytes
	}
	return u.files.opt.MaxBytes
}

func (u *upload) store(ctx context.Context, part *multipart.Part) error {
	u.filename = part.FileName()
	switch {
	case u.filename == "":
		return invalidField("file", "file must be a file with a name.")
	case u.announced > u.limit()+formRoom:
		return errFileTooLarge(u.limit()) // at once, not when so much of it has come
	}
	var err error
	u.content, err = u.files.conn.PutFile(ctx, u.id, &contentReader{part: part, body: u.body, most: u.limit()})
	if err != nil {
		return contentError(err)
	}
	u.stored = true
	return nil
}

// complete says whether everything was there, and sound together.
func (u *upload) complete() error {
	switch {
	case !u.given["file"]:
		return invalidField("file", "file is missing.")
	case !u.given["purpose"]:
		return invalidField("purpose", "purpose is missing.")
	case u.content.Bytes > u.limit():
		return errFileTooLarge(u.limit())
	case u.seconds != "" && u.anchor == "":
		return invalidField(anchorField, "%s is missing beside %s.", anchorField, secondsField)
	case u.anchor != "" && u.seconds == "":
		return invalidField(secondsField, "%s is missing beside %s.", secondsField, anchorField)
	}
	return nil
}

// file is the row of a form that is complete.
func (u *upload) file(tenant string, now time.Time) (store.File, error) {
	file := store.File{
		ID: u.id, Tenant: tenant, Purpose: u.purpose, Filename: u.filename, Bytes: u.content.Bytes,
		Digest: hex.EncodeToString(u.content.Digest[:]), CreatedAt: now,
	}
	lifetime := u.files.opt.ExpireAfter
	if u.seconds != "" {
		n, err := strconv.ParseInt(u.seconds, 10, 64)
		if err != nil {
			return store.File{}, invalidField(secondsField, "%s must be a whole number.", secondsField)
		}
		lifetime = time.Duration(n) * time.Second
	}
	if lifetime > 0 {
		file.ExpiresAt = now.Add(lifetime)
	}
	return file.Clean(), nil
}

// contentReader reads the file out of its form. Its errors are for the client, so that
// those of the store are told from them; an end is the end of the whole file.
type contentReader struct {
	part  io.Reader
	body  *uploadBody
	most  int64
	bytes int64
}

// Read implements io.Reader.
func (c *contentReader) Read(p []byte) (int, error) {
	n, err := c.part.Read(p)
	c.body.content += int64(n)
	c.bytes += int64(n)
	switch {
	case c.bytes > c.most:
		return 0, errFileTooLarge(c.most)
	case err != nil && !errors.Is(err, io.EOF):
		return n, errBrokenForm(err)
	}
	return n, err
}
