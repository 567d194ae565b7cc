package openai

import (
	"bytes"
	"context"
	"errors"
	"io"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/upstream"
)

// StreamGenerate makes one streamed call.
//
// The upstream has finished when it sends [DONE], or when it closes after every
// choice gave its finish reason, as some never send [DONE]. Usage that it did not
// report by then, or before the call was cut or cancelled, is estimated from the
// request's text and the number of chunks with content.
func (p *Provider) StreamGenerate(ctx context.Context, call providers.Call, emit providers.Emit) (providers.Summary, error) {
	req, err := p.request(call, true)
	if err != nil {
		return providers.Summary{}, err
	}
	resp, err := p.client.Do(ctx, req)
	if err != nil {
		return providers.Summary{}, err
	}
	defer resp.Close()
	if resp.Plain() {
		return providers.Summary{}, plainAnswer(resp)
	}
	s := &stream{resp: resp, call: call, emit: emit, opening: call.RefusalIsError}
	if err := resp.Relay(s.take, s.flush, s.ended); err != nil {
		return s.summary(), resp.Fail(err)
	}
	resp.Drain()
	return s.summary(), nil
}

var errNotStream = errors.New("streamed call answered without a stream")

func plainAnswer(resp *upstream.Response) error {
	answer, err := resp.ReadAll()
	if err != nil {
		return err
	}
	if c, err := openaiapi.ParseCompletion(answer); err == nil && c.Failed {
		return resp.Complained(resp.Explain(answer))
	}
	return resp.Invalid(errNotStream)
}

// stream is one streamed answer on its way through.
type stream struct {
	resp *upstream.Response
	call providers.Call
	emit providers.Emit

	batch   [][]byte // chunks that arrived together and are not yet handed on
	choices openaiapi.Choices
	model   string
	usage   inference.Usage
	content int64 // chunks' contributions to choices: about one token each
	any     bool  // at least one chunk has arrived

	// opening says that nothing but a refusal can have come so far, where that is an
	// error: the batch is held back.
	opening bool
	refusal refusal
}

// take reads one event and puts what the client shall see of it into the batch.
func (s *stream) take(ev openaiapi.Event) error {
	data := bytes.TrimSpace(ev.Data)
	switch {
	case ev.Name == "error":
		return s.resp.Complained(s.resp.Explain(data))
	case len(data) == 0:
		return nil
	case string(data) == openaiapi.Done:
		return s.finish()
	}
	var chunk openaiapi.Chunk
	if err := openaiapi.ParseChunk(data, &chunk, &s.choices); err != nil {
		return s.resp.Invalid(err)
	}
	if chunk.Failed {
		return s.resp.Complained(s.resp.Explain(data))
	}
	s.any = true
	s.model = chunk.ModelName(s.model)
	s.content += int64(chunk.Content)
	if chunk.Usage.Known {
		s.usage = chunk.Usage
	}
	s.opening = s.opening && s.refusal.add(data, chunk.Content)
	if !s.call.IncludeUsage {
		if chunk.UsageOnly {
			return nil
		}
		data = chunk.DropNullUsage(data)
	}
	if s.opening {
		data = bytes.Clone(data) // what is held back outlives the reader's buffer
	}
	s.batch = append(s.batch, data)
	return nil
}

// finish ends a finished answer, unless it is nothing but a refusal.
func (s *stream) finish() error {
	if s.opening && s.refusal.given {
		return s.resp.Refused("")
	}
	s.opening = false
	return upstream.ErrDone
}

func (s *stream) flush() error {
	if len(s.batch) == 0 || s.opening {
		return nil
	}
	err := s.emit(s.batch)
	s.batch = s.batch[:0]
	if err != nil {
		return upstream.EmitError(err)
	}
	return nil
}

// ended judges an end without [DONE].
func (s *stream) ended(err error) error {
	over := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if !over || !s.choices.Finished() {
		return err
	}
	if err := s.finish(); !errors.Is(err, upstream.ErrDone) {
		return err
	}
	return s.flush()
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
