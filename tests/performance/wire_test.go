package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func parseResponse(r io.Reader) (head, string, error) {
	reader := bufio.NewReaderSize(r, readBuffer)
	h, err := readResponseHead(reader)
	if err != nil {
		return h, "", err
	}
	body, err := readBody(reader, h, nil)
	return h, string(body), err
}

func TestReadResponse(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3*readBuffer)
	for name, c := range map[string]struct {
		in   string
		head head
		body string
		err  error
	}{
		"length":          {in: "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", head: head{status: 200, length: 5}, body: "hello"},
		"no body":         {in: "HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n", head: head{status: 204}},
		"chunks":          {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nA\r\nlo, world!\r\n0\r\n\r\n", head: head{status: 200, length: -1, chunked: true}, body: "hello, world!"},
		"until the end":   {in: "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + long, head: head{status: 200, length: -1, closes: true}, body: long},
		"refused":         {in: "HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}", head: head{status: 429, length: 2, retryAfter: true}, body: "{}"},
		"empty hint":      {in: "HTTP/1.1 429 Too Many\r\nRetry-After:\r\nContent-Length: 2\r\n\r\n{}", head: head{status: 429, length: 2}, body: "{}"},
		"nothing":         {in: "", err: io.EOF},
		"cut head":        {in: "HTTP/1.1 200 OK\r\nContent-Le", err: io.ErrUnexpectedEOF},
		"cut body":        {in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", err: io.ErrUnexpectedEOF},
		"cut chunk":       {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", err: io.ErrUnexpectedEOF},
		"no last chunk":   {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", err: io.ErrUnexpectedEOF},
		"chunk too short": {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhel\r\n", err: errBadChunk},
		"chunk nonsense":  {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", err: errBadChunk},
		"other protocol":  {in: "SSH-2.0-OpenSSH_9.6 welcome\r\n\r\n", err: errNotHTTP},
		"bad length":      {in: "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", err: errNotHTTP},
		"long line":       {in: "HTTP/1.1 200 OK\r\nX: " + long, err: errLongLine},
		"many lines":      {in: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", maxHeadLines) + "\r\n", err: errManyLines},
		"huge":            {in: "HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + strings.Repeat("x", 2_000_000), err: errLongBody},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, reader := range []io.Reader{strings.NewReader(c.in), iotest.HalfReader(strings.NewReader(c.in))} {
				h, body, err := parseResponse(reader)
				if c.err != nil {
					require.ErrorIs(t, err, c.err)
					continue
				}
				require.NoError(t, err)
				require.Equal(t, c.head, h)
				require.Equal(t, c.body, body)
			}
		})
	}
}

// However the bytes arrive, the outcome is the same; and no bytes do harm.
func FuzzReadResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\nRetry-After: 2\r\n\r\n3\r\nhel\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\nConnection: close\n\nrest"))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, body, err := parseResponse(bytes.NewReader(in))
		h2, body2, err2 := parseResponse(iotest.OneByteReader(bytes.NewReader(in)))
		require.Equal(t, h, h2)
		require.Equal(t, body, body2)
		require.Equal(t, err, err2)
	})
}

func stream(tokens int, end string) string {
	s := newScript()
	var b strings.Builder
	b.WriteString(": keep-alive\n\n")
	for _, token := range s.tokens[:tokens] {
		_, event, _ := bytes.Cut(token, []byte("\r\n"))
		b.WriteString("id: 1-2\n" + string(bytes.TrimSuffix(event, []byte("\r\n"))))
	}
	return b.String() + end
}

func TestTokenReaderSeesEveryToken(t *testing.T) {
	t.Parallel()
	const done = "data: [DONE]\n\n"
	swapped := strings.NewReplacer(" t00001", " t00002", " t00002", " t00001").Replace(stream(3, done))
	for name, c := range map[string]struct {
		in  string
		err error
	}{
		"whole":             {in: stream(3, done)},
		"too few":           {in: stream(2, done), err: errTokenGone},
		"too many":          {in: stream(4, done), err: errTokenGone},
		"out of order":      {in: swapped, err: errTokenGone},
		"repeated":          {in: stream(3, "") + stream(3, done), err: errTokenGone},
		"token after done":  {in: stream(2, done) + strings.TrimPrefix(stream(3, ""), stream(2, "")), err: errTokenGone},
		"cut":               {in: stream(3, ""), err: errCutStream},
		"cut within a line": {in: stream(3, "data: [DON"), err: errCutStream},
		"error event":       {in: stream(3, "event: error\ndata: {\"error\":{\"code\":\"worker_lost\"}}\n\n"), err: errEvent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, piece := range []int{1, 7, 100, len(c.in)} {
				var r tokenReader
				var err error
				for at := 0; at < len(c.in) && err == nil; at += piece {
					_, err = r.feed([]byte(c.in[at:min(at+piece, len(c.in))]))
				}
				if err = errors.Join(err, r.complete(3)); c.err == nil {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, c.err)
				}
			}
		})
	}
}

func TestTokenReaderBoundsALine(t *testing.T) {
	t.Parallel()
	var r tokenReader
	var err error
	for range maxBody/readBuffer + 1 {
		if _, err = r.feed(make([]byte, readBuffer)); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, errLongEvent)
}
