package ingress

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
)

// budget bounds the bytes of request bodies that an ingress holds in memory: those
// that are being read, and those of small requests that may have to be published
// again. A large body is given to the object store and counts no longer than that.
type budget struct {
	most int64
	held atomic.Int64
}

// share is what one body takes of the budget. It is not safe for concurrent use.
type share struct {
	of    *budget
	bytes int64
}

// grow takes n more bytes, or none when that would be too many.
func (s *share) grow(n int64) bool {
	if s.of.held.Add(n) > s.of.most {
		s.of.held.Add(-n)
		return false
	}
	s.bytes += n
	return true
}

// shrink gives n bytes back.
func (s *share) shrink(n int64) {
	s.of.held.Add(-n)
	s.bytes -= n
}

// release gives everything back.
func (s *share) release() {
	s.of.held.Add(-s.bytes)
	s.bytes = 0
}

// firstRead is the memory that a body gets before any of it has come. It doubles as
// the body does: a client that announces much and sends little holds little.
const firstRead = 64 << 10

// incoming is the body of a request that has one. Go's server reads what a handler left
// of a body before it sends the answer, and so would wait for a client that sends
// nothing; and it cuts off a client that still sends, which then never sees the answer.
type incoming struct {
	io.ReadCloser
	ended bool // it was read to its end, or to an error
}

func (b *incoming) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.ended = b.ended || err != nil
	return n, err
}

// closing makes the server answer at once although the body was not read.
func (b *incoming) closing(w http.ResponseWriter) {
	if !b.ended {
		w.Header().Set("Connection", "close")
	}
}

// Bounds of what is read of a body that nobody wants, after the answer.
const (
	lingerFor   = 2 * time.Second
	lingerBytes = 64 << 20
)

// linger takes what the client still sends, for a while, so that it comes to read the
// answer.
func (b *incoming) linger(w http.ResponseWriter) {
	if b.ended {
		return
	}
	ctrl := http.NewResponseController(w)
	if ctrl.Flush() != nil || ctrl.SetReadDeadline(time.Now().Add(lingerFor)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, b, lingerBytes) // how it ends is of no interest
}

// readBody reads the request's body whole before anything else is done with it: a
// body that is handed on while the answer has begun is closed by Go's server. The
// body's memory is counted in mem, which the caller releases. The request's deadline
// holds for its body, too.
func (s *Ingress) readBody(w http.ResponseWriter, r *http.Request, mem *share, deadline time.Time) (body []byte, err error) {
	if held, ok := r.Body.(*heldBody); ok {
		return held.give(mem), nil
	}
	if r.ContentLength > s.opt.MaxBodyBytes {
		return nil, s.errTooLarge()
	}
	if ce := r.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		return nil, inference.Errorf(inference.CodeInvalidRequest, "A request body with a Content-Encoding is not taken. Send it as plain JSON.")
	}
	limit := time.Now().Add(s.opt.BodyTimeout)
	late := fmt.Sprintf("The request body did not come within %s.", s.opt.BodyTimeout)
	if deadline.Before(limit) {
		limit, late = deadline, "The request body did not come within the request's deadline."
	}
	// The time for the body must not run on into the wait for the answer. Not every
	// writer has deadlines; the server's does.
	ctrl := http.NewResponseController(w)
	_ = ctrl.SetReadDeadline(limit)
	from := http.MaxBytesReader(w, r.Body, s.opt.MaxBodyBytes)
	for {
		if len(body) == cap(body) {
			grown, ok := growBody(body, r.ContentLength, mem)
			if !ok {
				return nil, errBusy()
			}
			body = grown
		}
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF), err == nil && int64(len(body)) == r.ContentLength:
			_ = ctrl.SetReadDeadline(time.Time{})
			return trimmed(body, mem), nil
		case isTooLarge(err):
			return nil, s.errTooLarge()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, &inference.Error{Code: inference.CodeDeadlineExceeded, Message: late, Retryable: true}
		case err != nil:
			return nil, &inference.Error{Code: inference.CodeInvalidRequest, Message: "The request body could not be read to its end.", Err: err}
		}
	}
}

// growBody returns the body with room for more of it, not beyond the announced length
// if there is one (-1 if not).
func growBody(body []byte, announced int64, mem *share) ([]byte, bool) {
	size := max(int64(2*cap(body)), firstRead)
	if announced >= 0 {
		size = min(size, max(announced, 1))
	}
	if !mem.grow(size - int64(cap(body))) {
		return nil, false
	}
	grown := make([]byte, len(body), size)
	copy(grown, body)
	return grown, true
}

// trimmed returns the body without the room that was left for more of it, if that is
// much.
func trimmed(body []byte, mem *share) []byte {
	spare := cap(body) - len(body)
	if spare < len(body)/4 {
		return body
	}
	mem.shrink(int64(spare))
	return append(make([]byte, 0, len(body)), body...)
}

func isTooLarge(err error) bool {
	var over *http.MaxBytesError
	return errors.As(err, &over)
}

func (s *Ingress) errTooLarge() error {
	return inference.Errorf(inference.CodeRequestTooLarge, "The request body is larger than %d bytes.", s.opt.MaxBodyBytes)
}

// errBusy refuses a request because this ingress holds as much as it may.
func errBusy() error {
	return &inference.Error{Code: inference.CodeQueueFull, Message: "Too many requests are in progress. Try again later.", Retryable: true, RetryAfter: time.Second}
}
