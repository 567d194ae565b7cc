package anthropic

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
)

var (
	errNotJSON    = errors.New("not valid JSON")
	errNotMessage = errors.New("not a message")
	errNotBlock   = errors.New("not a content block")
)

// message is what is read of an answer, plain or at the beginning of a stream.
type message struct {
	ID          string            `json:"id"`
	Type        string            `json:"type"`
	Model       string            `json:"model"`
	Content     []json.RawMessage `json:"content"`
	StopReason  string            `json:"stop_reason"`
	StopDetails stopDetails       `json:"stop_details"`
	Usage       json.RawMessage   `json:"usage"`

	blocks []content
}

// stopDetails tell why the model refused.
type stopDetails struct {
	Explanation string `json:"explanation"`
}

// content is one content block of an answer.
type content struct {
	Type      string          `json:"type"`
	Text      string          `json:"text"`
	Thinking  string          `json:"thinking"`
	Signature string          `json:"signature"`
	Data      string          `json:"data"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
}

// failed reports that the answer is an error in spite of its status.
func (m *message) failed() bool { return m.Type == "error" }

// onlyRefuses reports that the model refused before it said or called anything.
func (m *message) onlyRefuses() bool {
	return m.StopReason == stopRefusal && !slices.ContainsFunc(m.blocks, func(c content) bool {
		return c.Type == blockToolUse || (c.Type == blockText && c.Text != "")
	})
}

// parseMessage reads a plain answer. The error says that it is none.
func parseMessage(body []byte) (*message, error) {
	if !openaiapi.Valid(body) {
		return nil, errNotJSON
	}
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		if gjson.GetBytes(body, "type").String() == "error" {
			return &message{Type: "error"}, nil
		}
		return nil, errNotMessage // the decoder's own error quotes the answer
	}
	if m.failed() {
		return &m, nil
	}
	if (m.Type != "message" && m.Type != "") || m.Content == nil {
		return nil, errNotMessage
	}
	for _, raw := range m.Content {
		c, err := parseContent(raw)
		if err != nil {
			return nil, err
		}
		m.blocks = append(m.blocks, c)
	}
	return &m, nil
}

// parseContent reads a block. One of a type that is unknown here may have any form.
func parseContent(raw json.RawMessage) (content, error) {
	var c content
	if json.Unmarshal(raw, &c) == nil {
		return c, nil
	}
	kind := gjson.GetBytes(raw, "type").String()
	switch kind {
	case "", blockText, blockThinking, blockRedacted, blockToolUse:
		return content{}, errNotBlock
	}
	return content{Type: kind}, nil
}

// arguments are a call's input as OpenAI writes it.
func (c *content) arguments() string {
	if len(c.Input) == 0 || string(c.Input) == "null" {
		return "{}"
	}
	return string(c.Input)
}

// response translates a plain answer. Blocks of tools that the provider runs itself, and
// of types that are unknown, are left out.
func (m *message) response(req *chat.Request, requestID string, created int64) *providers.Response {
	said := chat.Answer{}
	var text, reasoning strings.Builder
	kept := thoughts{exclude: req.Thought().Exclude}
	for i := range m.blocks {
		c := &m.blocks[i]
		switch c.Type {
		case blockText:
			text.WriteString(c.Text)
			kept.text = kept.text || c.Text != ""
		case blockThinking:
			reasoning.WriteString(c.Thinking)
			kept.add(thought{Type: c.Type, Thinking: c.Thinking, Signature: c.Signature, After: kept.place()})
		case blockRedacted:
			kept.add(thought{Type: c.Type, Data: c.Data, After: kept.place()})
		case blockToolUse:
			said.ToolCalls = append(said.ToolCalls, chat.ToolCall{ID: c.ID, Name: c.Name, Arguments: c.arguments()})
			kept.calls++
		}
	}
	said.Content, said.Extra = text.String(), kept.extra()
	if !kept.exclude {
		said.ReasoningContent = reasoning.String()
	}
	if m.StopReason == stopRefusal {
		said.Refusal = clip(m.StopDetails.Explanation)
	}
	var count counts
	count.add(m.Usage)
	done := chat.Completion{
		ID: answerID(m.ID, requestID), Created: created, Model: modelName(m.Model), Legacy: req.Legacy, Usage: count.usage(),
		Choices: []chat.Choice{{Message: said, FinishReason: finishReason(m.StopReason, len(said.ToolCalls) > 0)}},
	}
	return &providers.Response{Body: chat.AppendCompletion(nil, done), Model: done.Model, Usage: done.Usage}
}

func answerID(id, requestID string) string {
	if id == "" {
		return "chatcmpl-" + requestID
	}
	return clip(id)
}

func modelName(name string) string { return clipTo(name, openaiapi.MaxModelBytes) }

const stopRefusal = "refusal"

// finishReason maps stop_reason. A turn that the provider paused, and one that ended for
// a reason that is unknown here, is over for the client.
func finishReason(reason string, called bool) string {
	switch reason {
	case "max_tokens", "model_context_window_exceeded":
		return chat.FinishLength
	case "tool_use":
		return chat.FinishToolCalls
	case stopRefusal:
		return chat.FinishContentFilter
	case "":
		if called {
			return chat.FinishToolCalls
		}
	}
	return chat.FinishStop
}

// counts are the tokens that an answer or its events report.
type counts struct {
	input, cacheRead, cacheWrite, output, thinking int64

	known bool // input or output was reported
}

// add takes over what a usage object says. Later ones of a stream repeat and raise the
// counts of earlier ones. Numbers that cannot be true are passed over.
func (c *counts) add(raw json.RawMessage) {
	if len(raw) == 0 {
		return
	}
	u := gjson.ParseBytes(raw)
	c.known = raise(&c.input, u.Get("input_tokens")) || c.known
	c.known = raise(&c.output, u.Get("output_tokens")) || c.known
	raise(&c.cacheRead, u.Get("cache_read_input_tokens"))
	raise(&c.cacheWrite, u.Get("cache_creation_input_tokens"))
	raise(&c.thinking, u.Get("output_tokens_details.thinking_tokens"))
}

// maxTokenCount is beyond any count that can be true.
const maxTokenCount = 1_000_000_000_000

func raise(count *int64, v gjson.Result) bool {
	if v.Type != gjson.Number || v.Num < 0 || v.Num > maxTokenCount || v.Num != math.Trunc(v.Num) {
		return false
	}
	*count = max(*count, int64(v.Num))
	return true
}

// usage counts as OpenAI does: what was read from a cache or written into it is a part
// of the prompt.
func (c *counts) usage() inference.Usage {
	if !c.known {
		return inference.Usage{}
	}
	return inference.Usage{
		PromptTokens: c.input + c.cacheRead + c.cacheWrite, CompletionTokens: c.output,
		CachedTokens: c.cacheRead, ReasoningTokens: min(c.thinking, c.output), Known: true,
	}
}
