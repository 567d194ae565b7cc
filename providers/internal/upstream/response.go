package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"sluice/internal/openaiapi"
)

const (
	// firstAllocation bounds what is set aside because an upstream announces it; a
	// longer answer earns its memory as it arrives.
	firstAllocation = 1 << 20
	unknownLength   = 4 << 10
)

// drainTimeout is how long the end of a finished answer may take to arrive. Reading
// up to it lets the next call use the connection; waiting longer would cost more.
const (
	drainTimeout = 50 * time.Millisecond
	drainBytes   = 4 << 10
)

var errTooLarge = errors.New("answer exceeds the configured size")

// newPayload returns a request body. The transport knows its type for one that never
// blocks, and so sends the head and a small body in one piece: in two, a connection
// that the upstream has closed would fail between them, when it is too late to send
// the request again elsewhere without asking.
func newPayload(body []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(body)) }

// Response is the answer to one call, under way.
type Response struct {
	Status int
	Header http.Header

	client *Client
	http   *http.Response
	parent context.Context //nolint:containedctx // the call's own, which the response is a part of
	ctx    context.Context //nolint:containedctx // as above
	cancel context.CancelCauseFunc
	stop   context.CancelFunc
	idle   *idleReader
	limit  int64 // of a plain answer, or of one event
}

// Close ends the call. What was not read is given up with its connection.
func (r *Response) Close() {
	if r.idle != nil {
		r.idle.timer.Stop()
	}
	if r.http != nil {
		_ = r.http.Body.Close() // it was read or given up; there is nobody to tell
	}
	r.cancel(nil)
	r.stop()
}

// ReadAll returns the whole body. The error is classed.
func (r *Response) ReadAll() ([]byte, error) {
	body, err := readBounded(r.http, r.limit)
	if err != nil {
		return nil, r.Fail(err)
	}
	return body, nil
}

// Plain reports that the upstream did not stream. Types that are neither JSON nor a
// page are read as events, since not every server labels them.
func (r *Response) Plain() bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && (kind == "application/json" || kind == "text/html" || strings.HasSuffix(kind, "+json"))
}

// Events reads the body as server-sent events. Its errors are to be given to Fail.
func (r *Response) Events() *openaiapi.Reader {
	r.idle = newIdleReader(r.http.Body, r.client.opts.IdleTimeout, func() { r.cancel(errIdle) })
	return openaiapi.NewReader(r.idle, int(r.limit))
}

// Drain reads to the end of a finished stream, so that its connection can be used
// again. An upstream that keeps it open loses it.
func (r *Response) Drain() { r.idle.drain() }

// readBounded reads a whole body of at most limit bytes, in one piece of the right
// size when the upstream announces its length.
func readBounded(resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength > limit {
		return nil, errTooLarge
	}
	size := int64(unknownLength)
	if resp.ContentLength >= 0 {
		size = min(resp.ContentLength+1, firstAllocation) // one more, to meet the end without growing
	}
	buf := make([]byte, 0, size)
	for {
		n, err := resp.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, errTooLarge
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(int64(2*cap(buf)), limit+1)), buf...)
		}
	}
}

// idleReader lets its timer run only while it waits for the upstream, and only once
// the first bytes have come.
type idleReader struct {
	src   io.Reader
	limit time.Duration
	timer *time.Timer
	begun bool
}

func newIdleReader(src io.Reader, limit time.Duration, expire func()) *idleReader {
	r := &idleReader{src: src, limit: limit, timer: time.AfterFunc(limit, expire)}
	r.timer.Stop()
	return r
}

func (r *idleReader) Read(buf []byte) (int, error) {
	if !r.begun {
		n, err := r.src.Read(buf)
		r.begun = n > 0
		return n, err
	}
	r.timer.Reset(r.limit)
	n, err := r.src.Read(buf)
	r.timer.Stop()
	return n, err
}

func (r *idleReader) drain() {
	r.limit = drainTimeout
	r.begun = true
	_, _ = io.CopyN(io.Discard, r, drainBytes) // how it ends is of no interest
}
