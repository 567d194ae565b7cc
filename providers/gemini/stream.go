package gemini

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

// StreamGenerate makes one streamed call.
//
// The upstream has finished when it closes after every candidate gave its reason to
// finish, or after it blocked the prompt. It counts usage from event to event; the last
// count holds. When the stream is cut, what was counted by then falls short, so usage
// is marked as estimated, with at least one token for each chunk that has content.
func (p *Provider) StreamGenerate(ctx context.Context, call providers.Call, emit providers.Emit) (providers.Summary, error) {
	if call.Kind != inference.KindChat {
		return providers.Summary{}, p.unknownKind()
	}
	q, err := p.translate(call)
	if err != nil {
		return providers.Summary{}, err
	}
	resp, err := p.client.Do(ctx, p.request(call, q.model, methodStream, q.body))
	if err != nil {
		return providers.Summary{}, err
	}
	defer resp.Close()
	if resp.Plain() {
		return providers.Summary{}, plainAnswer(resp)
	}
	s := &stream{question: q, resp: resp, emit: emit}
	if err := resp.Relay(s.take, s.flush, s.ended); err != nil {
		return s.summary(), resp.Fail(err)
	}
	return s.summary(), nil
}

var errNotStream = errors.New("streamed call answered without a stream")

func plainAnswer(resp *upstream.Response) error {
	body, err := resp.ReadAll()
	if err != nil {
		return err
	}
	if r, err := readReply(body); err == nil && r.failed {
		return resp.Complained(resp.Explain(body))
	}
	return resp.Invalid(errNotStream)
}

// flushBytes bounds what is written before it is handed on. What arrives together stays
// below it, unless an event is made to grow in translation.
const flushBytes = 1 << 20

// stream is one streamed answer on its way through.
type stream struct {
	*question

	resp *upstream.Response
	emit providers.Emit

	out   *chat.Stream // begins with the first event that says anything
	id    string
	buf   []byte // chunks that arrived together and are not yet handed on
	ends  []int  // where each of them ends
	batch [][]byte

	candidates           []ending // by index
	begun                []bool
	blocked, blockedText string

	model   string
	usage   inference.Usage
	content int64 // events' contributions to choices: about one token each
	done    bool  // the upstream finished, and said all that it will of usage
	spoke   bool  // chunks were handed on
}

// take reads one event and writes what the client shall see of it. An event that holds
// nothing of an answer is not an error: the API may grow others.
func (s *stream) take(ev openaiapi.Event) error {
	data := bytes.TrimSpace(ev.Data)
	switch {
	case ev.Name == "error":
		return s.resp.Complained(s.resp.Explain(data))
	case len(data) == 0 || string(data) == openaiapi.Done:
		return nil
	}
	r, err := readReply(data)
	if err != nil {
		return s.resp.Invalid(err)
	}
	if r.failed {
		return s.resp.Complained(s.resp.Explain(data))
	}
	if r.usage.Known {
		s.usage = r.usage
	}
	if r.blocked != "" {
		s.blocked, s.blockedText = r.blocked, r.blockedText
	}
	s.begin(r)
	for index, candidate := range r.candidates() {
		if index < 0 {
			return s.resp.Invalid(errIndex)
		}
		if err := s.candidate(index, candidate); err != nil {
			return err
		}
	}
	return nil
}

// begin takes over what each event repeats.
func (s *stream) begin(r reply) {
	s.model = cmp.Or(r.model, s.model)
	if s.out == nil {
		s.id = s.answerID(r.id)
		s.out = chat.NewStream(s.id, "", time.Now().Unix(), s.req, s.call.IncludeUsage)
	}
	s.out.SetModel(cmp.Or(s.model, s.question.model))
}

// candidate writes what an event adds to one candidate. Neighbouring parts of one kind
// become one chunk.
func (s *stream) candidate(index int, v gjson.Result) error {
	for len(s.candidates) <= index {
		s.candidates, s.begun = append(s.candidates, ending{}), append(s.begun, false)
	}
	s.begun[index] = true
	e := &s.candidates[index]
	e.reason = cmp.Or(text(v.Get("finishReason")), e.reason)
	e.message = cmp.Or(text(v.Get("finishMessage")), e.message)
	logprobs, err := readLogprobs(v)
	if err != nil {
		return s.resp.Invalid(err)
	}
	run := run{index: index, logprobs: logprobs}
	for p, err := range partsOf(v) {
		if err == nil && p.kind == partCall && e.calls == chat.MaxToolCalls {
			err = errCalls
		}
		if err != nil {
			return s.resp.Invalid(err)
		}
		if err := s.part(&run, p); err != nil {
			return err
		}
	}
	if err := s.write(&run); err != nil {
		return err
	}
	if len(run.logprobs) > 0 { // there was no text for them to go with
		run.kind = partText
		if err := s.write(&run); err != nil {
			return err
		}
	}
	if run.wrote {
		s.content++
	}
	return nil
}

// run is neighbouring parts of one kind.
type run struct {
	index     int
	kind      partKind
	text      []byte
	signature string
	logprobs  []chat.TokenLogprob // go with the first text
	wrote     bool                // there was content
}

func (s *stream) part(r *run, p part) error {
	if p.kind == partThought && s.quiet {
		p.kind, p.text = partOther, ""
	}
	if p.kind != r.kind && p.kind != partOther {
		if len(r.text) > 0 || r.signature != "" {
			if err := s.write(r); err != nil {
				return err
			}
		}
		r.kind = p.kind
	}
	if p.kind == partCall {
		r.wrote = true
		e := &s.candidates[r.index]
		p.call.ID = cmp.Or(p.call.ID, callID(s.id, r.index, e.calls))
		s.buf = s.out.Call(s.buf, r.index, e.calls, p.call)
		e.calls++
		return s.add()
	}
	r.text = append(r.text, p.text...)
	r.signature = cmp.Or(p.signature, r.signature)
	return nil
}

// write ends a run with its chunk, if it says anything.
func (s *stream) write(r *run) error {
	delta := chat.Delta{Extra: extraOf(r.signature)}
	var logprobs []chat.TokenLogprob
	if r.kind == partThought {
		delta.ReasoningContent = string(r.text)
	} else {
		delta.Content = string(r.text)
		s.candidates[r.index].said = s.candidates[r.index].said || len(r.text) > 0
		logprobs, r.logprobs = r.logprobs, nil
	}
	empty := len(r.text) == 0 && r.signature == "" && len(logprobs) == 0
	r.wrote = r.wrote || len(r.text) > 0
	r.text, r.signature = r.text[:0], ""
	if empty {
		return nil
	}
	s.buf = s.out.Append(s.buf, chat.ChunkChoice{Index: r.index, Delta: delta, Logprobs: logprobs})
	return s.add()
}

// add notes the chunk that was written last.
func (s *stream) add() error {
	last := 0
	if len(s.ends) > 0 {
		last = s.ends[len(s.ends)-1]
	}
	if len(s.buf) > last {
		s.ends = append(s.ends, len(s.buf))
	}
	if len(s.buf) > flushBytes {
		return s.flush()
	}
	return nil
}

func (s *stream) flush() error {
	if len(s.ends) == 0 {
		return nil
	}
	start := 0
	for _, end := range s.ends {
		s.batch = append(s.batch, s.buf[start:end:end])
		start = end
	}
	s.spoke = true
	err := s.emit(s.batch)
	clear(s.batch)
	s.batch, s.buf, s.ends = s.batch[:0], s.buf[:0], s.ends[:0]
	if err != nil {
		return upstream.EmitError(err)
	}
	return nil
}

// ended judges the end of the body. Only now is it certain how each candidate ended:
// some models give a reason with every event, and calls may follow it.
func (s *stream) ended(cause error) error {
	if !errors.Is(cause, io.EOF) || !s.finished() {
		return cause
	}
	if s.call.RefusalIsError && !s.spoke && s.refused() {
		s.done = true
		return s.resp.Refused(bounded(s.refusal()))
	}
	if !slices.Contains(s.begun, true) {
		s.buf = s.out.Refusal(s.buf, 0, blockedRefusal(s.name, s.blocked, s.blockedText))
		if err := s.add(); err != nil {
			return err
		}
		s.buf = s.out.Finish(s.buf, 0, chat.FinishContentFilter)
		return s.last()
	}
	for index, e := range s.candidates {
		if !s.begun[index] {
			continue
		}
		reason, refusal, failure := e.finish(s.name)
		if failure != nil {
			return cmp.Or(s.flush(), s.resp.Complained(*failure))
		}
		s.buf = s.out.Refusal(s.buf, index, refusal)
		if err := s.add(); err != nil {
			return err
		}
		s.buf = s.out.Finish(s.buf, index, reason)
		if err := s.add(); err != nil {
			return err
		}
	}
	return s.last()
}

// refused reports that a finished answer holds nothing but the provider's refusal.
func (s *stream) refused() bool {
	for index, begun := range s.begun {
		if begun && !s.candidates[index].refused() {
			return false
		}
	}
	return true
}

// refusal is why, in the words of the first candidate that there is.
func (s *stream) refusal() string {
	first := slices.Index(s.begun, true)
	if first < 0 {
		return blockedRefusal(s.name, s.blocked, s.blockedText)
	}
	_, refusal, _ := s.candidates[first].finish(s.name)
	return refusal
}

// last hands on what ends the answer.
func (s *stream) last() error {
	if err := s.add(); err != nil {
		return err
	}
	s.done = true
	s.buf = s.out.Usage(s.buf, s.usage)
	if err := s.add(); err != nil {
		return err
	}
	return s.flush()
}

// finished reports that every candidate gave its reason, or that there is none because
// the prompt was blocked.
func (s *stream) finished() bool {
	some := false
	for index, begun := range s.begun {
		if begun && s.candidates[index].reason == "" {
			return false
		}
		some = some || begun
	}
	return some || s.blocked != ""
}

func (s *stream) summary() providers.Summary {
	sum := providers.Summary{Model: cmp.Or(s.model, s.question.model), Usage: s.usage}
	if s.out == nil { // nothing was said
		return providers.Summary{}
	}
	if s.done && s.usage.Known {
		return sum
	}
	if !s.usage.Known {
		sum.Usage.PromptTokens = openaiapi.EstimatePromptTokens(s.call.Body)
	}
	sum.Usage.CompletionTokens = max(sum.Usage.CompletionTokens, s.content)
	sum.Usage.Known, sum.Usage.Estimated = true, true
	return sum
}
