package anthropic

import (
	"encoding/json"
	"errors"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
)

// maxBlocks bounds the content blocks of one streamed answer.
const maxBlocks = 10_000

var (
	errUpstream  = errors.New("the event is an error")
	errRefused   = errors.New("the answer is nothing but a refusal")
	errNotEvent  = errors.New("not an event of the API")
	errTooMany   = errors.New("too many content blocks")
	errNoMessage = errors.New("the answer ends before it has begun")
)

// event is what is read of one event of a stream.
type event struct {
	Type    string          `json:"type"`
	Index   int             `json:"index"`
	Message message         `json:"message"`
	Block   content         `json:"content_block"`
	Delta   delta           `json:"delta"`
	Usage   json.RawMessage `json:"usage"`
}

// delta is what content_block_delta and message_delta add.
type delta struct {
	Type        string      `json:"type"`
	Text        string      `json:"text"`
	PartialJSON string      `json:"partial_json"`
	Thinking    string      `json:"thinking"`
	Signature   string      `json:"signature"`
	StopReason  string      `json:"stop_reason"`
	StopDetails stopDetails `json:"stop_details"`
}

// span is where a chunk stands in the buffer.
type span struct{ from, to int }

// translation turns the events of one answer into chunks.
type translation struct {
	req     *chat.Request
	call    providers.Call
	created int64

	out      *chat.Stream // nil until the answer has begun
	model    string
	open     map[int]*openBlock
	begun    int // blocks so far
	kept     thoughts
	count    counts
	reported bool  // the usage is that of the whole answer
	pieces   int64 // of content: one token or more each
	stop     string
	why      stopDetails
	done     bool // the upstream has finished
	spoke    bool // chunks were written

	chunks []span // those that the last event added
}

// openBlock is a content block that has begun and not ended.
type openBlock struct {
	kind       string
	thought    thought // but for what is still arriving:
	text, sign []byte
	spoken     bool // a call's arguments have begun
}

func newTranslation(req *chat.Request, call providers.Call, created int64) *translation {
	return &translation{
		req: req, call: call, created: created, open: map[int]*openBlock{},
		kept: thoughts{exclude: req.Thought().Exclude},
	}
}

// event appends the chunks of one event to dst and notes where they stand. Events and
// blocks of unknown types add nothing. The error is errUpstream for one that is an
// error, errRefused where the call wants a refusal to be one, and any other where the
// event cannot be understood.
func (a *translation) event(dst, data []byte) ([]byte, error) {
	if !openaiapi.Valid(data) {
		return dst, errNotJSON
	}
	var ev event
	if json.Unmarshal(data, &ev) != nil {
		if !isForeign(data) {
			return dst, errNotEvent
		}
		return dst, nil
	}
	switch ev.Type {
	case "error":
		return dst, errUpstream
	case "message_start":
		a.begin(ev.Message.ID, ev.Message.Model)
		a.count.add(ev.Message.Usage)
	case "content_block_start":
		return a.startBlock(dst, &ev)
	case "content_block_delta":
		return a.addToBlock(dst, &ev), nil
	case "content_block_stop":
		return a.endBlock(dst, ev.Index), nil
	case "message_delta":
		a.note(&ev)
	case "message_stop":
		return a.finish(dst)
	case "":
		return dst, errNotEvent
	}
	return dst, nil
}

// isForeign reports that an event, or what it carries, is of a type that is unknown
// here, and may have any form.
func isForeign(data []byte) bool {
	var inner string
	kind := gjson.GetBytes(data, "type")
	if kind.Type != gjson.String {
		return false
	}
	switch kind.Str {
	case "message_start", "content_block_stop", "message_delta", "message_stop", "error", "":
		return false
	case "content_block_start":
		inner = gjson.GetBytes(data, "content_block.type").String()
	case "content_block_delta":
		inner = gjson.GetBytes(data, "delta.type").String()
	default:
		return true
	}
	switch inner {
	case "", blockText, blockThinking, blockRedacted, blockToolUse, "text_delta", "input_json_delta", "thinking_delta", "signature_delta":
		return false
	}
	return true
}

// begin opens the answer; one that has begun stays as it is.
func (a *translation) begin(id, model string) {
	if a.out != nil {
		return
	}
	a.model = modelName(model)
	a.out = chat.NewStream(answerID(id, a.call.RequestID), a.model, a.created, a.req, a.call.IncludeUsage)
}

// wrote notes a chunk, if there is one, that stands in dst from that offset on.
func (a *translation) wrote(dst []byte, from int) []byte {
	if len(dst) > from {
		a.spoke = true
		a.chunks = append(a.chunks, span{from, len(dst)})
	}
	return dst
}

func (a *translation) startBlock(dst []byte, ev *event) ([]byte, error) {
	a.begin("", "")
	if a.begun++; a.begun > maxBlocks {
		return dst, errTooMany
	}
	k := &openBlock{kind: ev.Block.Type}
	a.open[ev.Index] = k
	switch k.kind {
	case blockText:
		return a.say(dst, ev.Block.Text), nil
	case blockThinking:
		k.thought = thought{Type: k.kind, After: a.kept.place()}
		k.sign = append(k.sign, ev.Block.Signature...)
		return a.think(dst, k, ev.Block.Thinking), nil
	case blockRedacted:
		k.thought = thought{Type: k.kind, Data: ev.Block.Data, After: a.kept.place()}
	case blockToolUse:
		call := chat.ToolCall{ID: ev.Block.ID, Name: ev.Block.Name}
		// The API begins with an empty input and streams the real one; others may begin with it.
		if input := ev.Block.arguments(); len(gjson.Parse(input).Map()) > 0 {
			call.Arguments, k.spoken = input, true
		}
		a.kept.calls++
		a.pieces++
		return a.wrote(a.out.Call(dst, 0, ev.Index, call), len(dst)), nil
	}
	return dst, nil
}

func (a *translation) addToBlock(dst []byte, ev *event) []byte {
	a.begin("", "")
	k := a.open[ev.Index]
	if k == nil {
		k = &openBlock{}
	}
	switch ev.Delta.Type {
	case "text_delta":
		return a.say(dst, ev.Delta.Text)
	case "thinking_delta":
		return a.think(dst, k, ev.Delta.Thinking)
	case "signature_delta":
		if len(k.sign) <= maxThoughtBytes {
			k.sign = append(k.sign, ev.Delta.Signature...)
		}
	case "input_json_delta":
		if k.kind != blockToolUse || ev.Delta.PartialJSON == "" {
			return dst
		}
		k.spoken = true
		a.pieces++
		return a.wrote(a.out.Arguments(dst, 0, ev.Index, ev.Delta.PartialJSON), len(dst))
	}
	return dst
}

func (a *translation) say(dst []byte, text string) []byte {
	if text == "" {
		return dst
	}
	a.kept.text = true
	a.pieces++
	return a.wrote(a.out.Text(dst, 0, text), len(dst))
}

func (a *translation) think(dst []byte, k *openBlock, text string) []byte {
	if text == "" {
		return dst
	}
	a.pieces++
	if len(k.text) <= maxThoughtBytes {
		k.text = append(k.text, text...)
	}
	if a.kept.exclude {
		return dst
	}
	return a.wrote(a.out.Reasoning(dst, 0, text), len(dst))
}

// endBlock closes a block. A call without arguments gets the empty object that the
// OpenAI form has for them.
func (a *translation) endBlock(dst []byte, index int) []byte {
	k := a.open[index]
	if k == nil {
		return dst
	}
	delete(a.open, index)
	switch {
	case k.kind == blockThinking, k.kind == blockRedacted:
		k.thought.Thinking, k.thought.Signature = string(k.text), string(k.sign)
		a.kept.add(k.thought)
	case k.kind == blockToolUse && !k.spoken:
		return a.wrote(a.out.Arguments(dst, 0, index, "{}"), len(dst))
	}
	return dst
}

// note takes over what message_delta says of the whole answer. There may be several,
// each of which counts all tokens so far.
func (a *translation) note(ev *event) {
	a.begin("", "")
	if gjson.GetBytes(ev.Usage, "output_tokens").Type == gjson.Number {
		a.reported = true
	}
	a.count.add(ev.Usage)
	if ev.Delta.StopReason != "" {
		a.stop, a.why = ev.Delta.StopReason, ev.Delta.StopDetails
	}
}

// finish ends the answer: the refusal, if it is one, the finish reason with the thinking
// blocks that the client has to send back, and the usage.
func (a *translation) finish(dst []byte) ([]byte, error) {
	if a.out == nil {
		return dst, errNoMessage
	}
	a.done = true
	if a.stop == stopRefusal && !a.spoke && a.call.RefusalIsError {
		return dst, errRefused
	}
	if a.stop == stopRefusal {
		dst = a.wrote(a.out.Refusal(dst, 0, clip(a.why.Explanation)), len(dst))
	}
	dst = a.wrote(a.out.Append(dst, chat.ChunkChoice{
		Delta: chat.Delta{Extra: a.kept.extra()}, FinishReason: finishReason(a.stop, a.kept.calls > 0),
	}), len(dst))
	return a.wrote(a.out.Usage(dst, a.summary().Usage), len(dst)), nil
}

// summary is what is known by now.
func (a *translation) summary() providers.Summary {
	if a.out == nil {
		return providers.Summary{}
	}
	sum := providers.Summary{Model: a.model, Usage: a.count.usage()}
	if a.reported && sum.Usage.Known {
		return sum
	}
	// The output count of an answer's beginning is that of the beginning alone.
	sum.Usage = inference.Usage{
		PromptTokens: sum.Usage.PromptTokens, CompletionTokens: a.pieces, CachedTokens: sum.Usage.CachedTokens,
		Known: true, Estimated: true,
	}
	if sum.Usage.PromptTokens == 0 {
		sum.Usage.PromptTokens = openaiapi.EstimatePromptTokens(a.call.Body)
	}
	return sum
}
