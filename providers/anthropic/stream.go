package anthropic

import (
	"bytes"
	"context"
	"errors"
	"time"

	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/upstream"
)

// maxIdleBuffer is how much of the buffer for chunks a stream keeps between batches.
const maxIdleBuffer = 64 << 10

// StreamGenerate makes one streamed call.
//
// The upstream has finished when it sends message_stop, and not before. Usage that it
// did not report by then, or before the call was cut or cancelled, is estimated: the
// prompt's from what the answer's beginning said or else from the request's text, the
// answer's from the number of pieces that came.
func (p *Provider) StreamGenerate(ctx context.Context, call providers.Call, emit providers.Emit) (providers.Summary, error) {
	req, out, err := p.prepare(call, true)
	if err != nil {
		return providers.Summary{}, err
	}
	resp, err := p.client.Do(ctx, out)
	if err != nil {
		return providers.Summary{}, err
	}
	defer resp.Close()
	if resp.Plain() {
		return providers.Summary{}, plainAnswer(resp)
	}
	s := &stream{resp: resp, emit: emit, answer: newTranslation(req, call, time.Now().Unix())}
	if err := resp.Relay(s.take, s.flush, s.ended); err != nil {
		return s.answer.summary(), resp.Fail(err)
	}
	resp.Drain()
	return s.answer.summary(), nil
}

var errNotStream = errors.New("streamed call answered without a stream")

func plainAnswer(resp *upstream.Response) error {
	body, err := resp.ReadAll()
	if err != nil {
		return err
	}
	if m, err := parseMessage(body); err == nil && m.failed() {
		return resp.Complained(explainInBand(body))
	}
	return resp.Invalid(errNotStream)
}

// stream is one streamed answer on its way through.
type stream struct {
	resp   *upstream.Response
	emit   providers.Emit
	answer *translation

	buf   []byte   // holds the chunks of batch
	batch [][]byte // chunks that arrived together and are not yet handed on
}

// ended judges an end without message_stop: it is always too early.
func (s *stream) ended(cause error) error { return cause }

// take puts what the client shall see of one event into the batch.
func (s *stream) take(ev openaiapi.Event) error {
	data := bytes.TrimSpace(ev.Data)
	if ev.Name == "error" {
		return s.resp.Complained(explainInBand(data))
	}
	if len(data) == 0 {
		return nil
	}
	s.answer.chunks = s.answer.chunks[:0]
	buf, err := s.answer.event(s.buf, data)
	s.buf = buf
	for _, c := range s.answer.chunks {
		s.batch = append(s.batch, buf[c.from:c.to])
	}
	switch {
	case errors.Is(err, errUpstream):
		return s.resp.Complained(explainInBand(data))
	case errors.Is(err, errRefused):
		return s.resp.Refused(clip(s.answer.why.Explanation))
	case err != nil:
		return s.resp.Invalid(err)
	case s.answer.done:
		return upstream.ErrDone
	}
	return nil
}

func (s *stream) flush() error {
	if len(s.batch) == 0 {
		return nil
	}
	err := s.emit(s.batch)
	s.batch, s.buf = s.batch[:0], s.buf[:0]
	if cap(s.buf) > maxIdleBuffer {
		s.buf = nil
	}
	if err != nil {
		return upstream.EmitError(err)
	}
	return nil
}
