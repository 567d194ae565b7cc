package openai

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
)

// drainTimeout is how long the end of a finished answer may take to arrive. Reading
// up to it lets the next call use the connection; waiting longer would cost more.
const (
	drainTimeout = 50 * time.Millisecond
	drainBytes   = 4 << 10
)

// StreamGenerate makes one streamed call.
//
// The upstream has finished when it sends [DONE], or when it closes after every
// choice gave its finish reason, as some never send [DONE]. Usage that it did not
// report by then, or before the call was cut or cancelled, is estimated from the
// request's text and the number of chunks with content.
func (p *Provider) StreamGenerate(parent context.Context, call providers.Call, emit providers.Emit) (providers.Summary, error) {
	body, err := p.requestBody(call, true)
	if err != nil {
		return providers.Summary{}, err
	}
	timed, stop := context.WithTimeoutCause(parent, p.opts.Timeout, errCallTimeout)
	defer stop()
	ctx, cancel := context.WithCancelCause(timed)
	defer cancel(nil)
	resp, err := p.send(ctx, p.chatRequest(call, body, p.eventType))
	if err != nil {
		return providers.Summary{}, p.transportError(parent, ctx, err)
	}
	defer closeBody(resp)
	if resp.StatusCode/100 != 2 {
		return providers.Summary{}, p.statusError(parent, ctx, resp)
	}
	if answersPlainly(resp) {
		return providers.Summary{}, p.plainAnswer(parent, ctx, resp)
	}
	idle := newIdleReader(resp.Body, p.opts.IdleTimeout, func() { cancel(errIdle) })
	defer idle.timer.Stop()
	s := &stream{
		p: p, call: call, emit: emit, status: resp.StatusCode,
		events: openaiapi.NewReader(idle, int(p.opts.MaxResponseBytes)),
	}
	if err := s.run(); err != nil {
		return s.summary(), p.streamError(parent, ctx, err)
	}
	idle.drain()
	return s.summary(), nil
}

// answersPlainly reports that the upstream did not stream. Types that are neither
// JSON nor a page are read as events, since not every server labels them.
func answersPlainly(resp *http.Response) bool {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && (kind == "application/json" || kind == "text/html" || strings.HasSuffix(kind, "+json"))
}

func (p *Provider) plainAnswer(parent, ctx context.Context, resp *http.Response) error {
	answer, err := readBounded(resp, p.opts.MaxResponseBytes)
	if err != nil {
		return p.bodyError(parent, ctx, err)
	}
	if c, err := openaiapi.ParseCompletion(answer); err == nil && c.Failed {
		return p.errorObject(answer, resp.StatusCode)
	}
	return p.invalidAnswer(resp.StatusCode, errNotStream)
}

// stream is one streamed answer on its way through.
type stream struct {
	p      *Provider
	call   providers.Call
	emit   providers.Emit
	events *openaiapi.Reader
	status int

	batch   [][]byte // chunks that arrived together and are not yet handed on
	choices openaiapi.Choices
	model   string
	usage   inference.Usage
	content int64 // chunks' contributions to choices: about one token each
	any     bool  // at least one chunk has arrived
}

// errDone ends the reading loop at [DONE].
var errDone = errors.New("stream is done")

// run hands chunks on until the answer ends; nil means that the upstream finished it.
func (s *stream) run() error {
	for {
		ev, err := s.events.Next()
		if err != nil {
			return s.ended(err)
		}
		err = s.take(ev)
		if err == nil && s.events.Buffered() {
			continue
		}
		if flushErr := s.flush(); flushErr != nil {
			return flushErr
		}
		if errors.Is(err, errDone) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take reads one event and puts what the client shall see of it into the batch.
func (s *stream) take(ev openaiapi.Event) error {
	data := bytes.TrimSpace(ev.Data)
	switch {
	case ev.Name == "error":
		return s.p.errorObject(data, s.status)
	case len(data) == 0:
		return nil
	case string(data) == openaiapi.Done:
		return errDone
	}
	var chunk openaiapi.Chunk
	if err := openaiapi.ParseChunk(data, &chunk, &s.choices); err != nil {
		return s.p.invalidAnswer(s.status, err)
	}
	if chunk.Failed {
		return s.p.errorObject(data, s.status)
	}
	s.any = true
	s.model = chunk.ModelName(s.model)
	s.content += int64(chunk.Content)
	if chunk.Usage.Known {
		s.usage = chunk.Usage
	}
	if !s.call.IncludeUsage {
		if chunk.UsageOnly {
			return nil
		}
		data = chunk.DropNullUsage(data)
	}
	s.batch = append(s.batch, data)
	return nil
}

func (s *stream) flush() error {
	if len(s.batch) == 0 {
		return nil
	}
	err := s.emit(s.batch)
	s.batch = s.batch[:0]
	if err != nil {
		return &emitError{err}
	}
	return nil
}

// ended judges an end without [DONE].
func (s *stream) ended(err error) error {
	if errors.Is(err, openaiapi.ErrEventTooLarge) {
		return errTooLarge
	}
	if s.choices.Finished() && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return nil
	}
	return err
}

func (s *stream) summary() providers.Summary {
	sum := providers.Summary{Model: s.model, Usage: s.usage}
	if !sum.Usage.Known && s.any {
		sum.Usage = inference.Usage{
			PromptTokens:     openaiapi.EstimatePromptTokens(s.call.Body),
			CompletionTokens: s.content,
			Known:            true,
			Estimated:        true,
		}
	}
	return sum
}

// emitError marks an error as the receiver's, which is no fault of the upstream.
type emitError struct{ err error }

func (e *emitError) Error() string { return fmt.Sprintf("emit chunks: %v", e.err) }
func (e *emitError) Unwrap() error { return e.err }

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

// drain reads to the end of a finished answer, so that its connection can be used
// again. An upstream that keeps it open loses it.
func (r *idleReader) drain() {
	r.limit = drainTimeout
	r.begun = true
	_, _ = io.CopyN(io.Discard, r, drainBytes) // how it ends is of no interest
}
