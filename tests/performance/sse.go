package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// What the upstream writes and the load generator looks for. Each token carries its
// number, so that one which is lost, repeated or out of order is seen.
const (
	answerMark  = "benchmark answer"
	tokenMark   = `"content":" t`
	tokenDigits = 5
)

var (
	errCutStream = errors.New("stream ended without [DONE]")
	errTokenGone = errors.New("token lost, repeated or out of order")
	errEvent     = errors.New("error event in the stream")
	errLongEvent = errors.New("a line of the stream exceeds the limit")
)

// tokenReader finds the tokens in a stream of server-sent events that arrives in
// pieces of any size.
type tokenReader struct {
	tokens  int
	done    bool
	partial []byte
}

// feed takes the next piece and returns how many tokens became complete with it.
func (t *tokenReader) feed(span []byte) (int, error) {
	before := t.tokens
	for len(span) > 0 {
		end := bytes.IndexByte(span, '\n')
		if end < 0 {
			if len(t.partial)+len(span) > maxBody {
				return 0, errLongEvent
			}
			t.partial = append(t.partial, span...)
			break
		}
		line := span[:end]
		if len(t.partial) > 0 {
			t.partial = append(t.partial, line...)
			line = t.partial
		}
		if err := t.line(line); err != nil {
			return t.tokens - before, err
		}
		t.partial = t.partial[:0]
		span = span[end+1:]
	}
	return t.tokens - before, nil
}

func (t *tokenReader) line(line []byte) error {
	data, found := bytes.CutPrefix(line, []byte("data:"))
	if !found {
		return nil // an id, a comment, an event's name or the end of a frame
	}
	data = bytes.TrimSpace(data)
	if bytes.Equal(data, []byte("[DONE]")) {
		t.done = true
		return nil
	}
	if bytes.HasPrefix(data, []byte(`{"error"`)) {
		return errEvent
	}
	at := bytes.Index(data, []byte(tokenMark))
	if at < 0 {
		return nil
	}
	number := data[at+len(tokenMark):]
	if len(number) < tokenDigits {
		return errTokenGone
	}
	n, err := strconv.Atoi(string(number[:tokenDigits]))
	if err != nil || n != t.tokens || t.done {
		return errTokenGone
	}
	t.tokens++
	return nil
}

// complete says whether the stream had everything.
func (t *tokenReader) complete(tokens int) error {
	switch {
	case !t.done:
		return errCutStream
	case t.tokens != tokens:
		return fmt.Errorf("%w: %d of %d", errTokenGone, t.tokens, tokens)
	}
	return nil
}
