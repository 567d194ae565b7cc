package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// The load generator shares two cores with what it measures, so it speaks HTTP/1.1
// by itself: a request is bytes made once, and of an answer only what matters is
// looked at.

const (
	maxHeadLines = 100
	maxBody      = 1 << 20
	readBuffer   = 4 << 10
)

var (
	errNotHTTP   = errors.New("not an HTTP/1.1 message")
	errLongLine  = errors.New("a line exceeds the buffer")
	errLongBody  = errors.New("the body exceeds the limit")
	errBadChunk  = errors.New("malformed chunk")
	errManyLines = errors.New("too many header lines")
)

// head is what the harness looks at in a message's header.
type head struct {
	first      string // of a request: its first line without the protocol
	status     int    // of a response
	length     int64  // -1 when the header gives none
	chunked    bool
	closes     bool
	retryAfter bool
}

// readResponseHead reads a response's status line and header.
func readResponseHead(r *bufio.Reader) (head, error) {
	line, err := readLine(r)
	if err != nil {
		return head{}, err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return head{}, errNotHTTP
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil || status < 100 {
		return head{}, errNotHTTP
	}
	h := head{status: status}
	return h, readFields(r, &h)
}

// readRequestHead reads a request's first line and header.
func readRequestHead(r *bufio.Reader) (head, error) {
	line, err := readLine(r)
	if err != nil {
		return head{}, err
	}
	first, found := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	if !found {
		return head{}, errNotHTTP
	}
	h := head{first: string(first)}
	return h, readFields(r, &h)
}

func readFields(r *bufio.Reader, h *head) error {
	h.length = -1
	for range maxHeadLines {
		line, err := readLine(r)
		if err != nil {
			return noEOF(err)
		}
		if len(line) == 0 {
			return nil
		}
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found {
			return errNotHTTP
		}
		if err := h.field(name, bytes.TrimSpace(value)); err != nil {
			return err
		}
	}
	return errManyLines
}

func (h *head) field(name, value []byte) error {
	switch {
	case bytes.EqualFold(name, []byte("Content-Length")):
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < 0 {
			return errNotHTTP
		}
		h.length = n
	case bytes.EqualFold(name, []byte("Transfer-Encoding")):
		h.chunked = bytes.EqualFold(value, []byte("chunked"))
	case bytes.EqualFold(name, []byte("Connection")):
		h.closes = bytes.EqualFold(value, []byte("close"))
	case bytes.EqualFold(name, []byte("Retry-After")):
		h.retryAfter = len(value) > 0
	}
	return nil
}

// readSpans gives the body to take piece by piece, each as soon as it is there. A
// span is valid only during the call.
func readSpans(r *bufio.Reader, h head, take func(span []byte) error) error {
	switch {
	case h.chunked:
		return readChunks(r, take)
	case h.length >= 0:
		return readExactly(r, h.length, take)
	}
	for {
		if _, err := r.Peek(1); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := readExactly(r, int64(r.Buffered()), take); err != nil {
			return err
		}
	}
}

func readChunks(r *bufio.Reader, take func(span []byte) error) error {
	for {
		line, err := readLine(r)
		if err != nil {
			return noEOF(err)
		}
		size, err := strconv.ParseUint(string(line), 16, 31)
		if err != nil {
			return errBadChunk
		}
		if err := readExactly(r, int64(size), take); err != nil {
			return err
		}
		if end, err := readLine(r); err != nil {
			return noEOF(err)
		} else if len(end) != 0 {
			return errBadChunk
		}
		if size == 0 {
			return nil
		}
	}
}

func readExactly(r *bufio.Reader, left int64, take func(span []byte) error) error {
	for left > 0 {
		if _, err := r.Peek(1); err != nil {
			return noEOF(err)
		}
		span, err := r.Peek(int(min(int64(r.Buffered()), left)))
		if err != nil {
			return noEOF(err)
		}
		if err := take(span); err != nil {
			return err
		}
		left -= int64(len(span))
		if _, err := r.Discard(len(span)); err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// readBody appends the whole body to buf.
func readBody(r *bufio.Reader, h head, buf []byte) ([]byte, error) {
	err := readSpans(r, h, func(span []byte) error {
		if len(buf)+len(span) > maxBody {
			return errLongBody
		}
		buf = append(buf, span...)
		return nil
	})
	return buf, err
}

// readLine returns a line without its end. It is valid until the next read.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errLongLine
	}
	if err != nil {
		if len(line) > 0 {
			return nil, noEOF(err)
		}
		return nil, err
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

// noEOF turns an end in the middle of a message into an error that says so.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// wire is one client connection.
type wire struct {
	net.Conn
	reader *bufio.Reader
	body   []byte
}

func dial(address string, patience time.Duration) (*wire, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	return &wire{Conn: conn, reader: bufio.NewReaderSize(conn, readBuffer)}, nil
}

// hangUp closes at once and leaves no port waiting: a run that gives up on thousands
// of connections would be out of ports before its end.
func (w *wire) hangUp() {
	if tcp, ok := w.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = w.Close()
}

// answer reads one whole response; the body is valid until the next call.
func (w *wire) answer() (head, []byte, error) {
	h, err := readResponseHead(w.reader)
	if err != nil {
		return head{}, nil, err
	}
	w.body, err = readBody(w.reader, h, w.body[:0])
	return h, w.body, err
}
