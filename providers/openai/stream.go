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
	s := &stream{resp: resp, call: call, emit: emit, events: resp.Events()}
	if err := s.run(); err != nil {
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
	resp   *upstream.Response
	call   providers.Call
	emit   providers.Emit
	events *openaiapi.Reader

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
		return s.resp.Complained(s.resp.Explain(data))
	case len(data) == 0:
		return nil
	case string(data) == openaiapi.Done:
		return errDone
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
		return upstream.EmitError(err)
	}
	return nil
}

// ended judges an end without [DONE].
func (s *stream) ended(err error) error {
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
