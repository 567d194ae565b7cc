package chat

import (
	"strconv"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// Chunk is one chunk of a streamed answer.
type Chunk struct {
	ID                string
	Created           int64 // Unix time in seconds
	Model             string
	Choices           []ChunkChoice
	Usage             inference.Usage // left out when it is not Known
	SystemFingerprint string          // left out when empty

	// Legacy is the request's: tool call 0 is written as function_call, others not at all.
	Legacy bool
}

// ChunkChoice is what a chunk adds to one of the answers.
type ChunkChoice struct {
	Index        int
	Delta        Delta
	Logprobs     []TokenLogprob // null on the wire when nil
	FinishReason string         // null on the wire when empty
}

// Delta is what is added. Everything in it is left out when empty, but for the content
// beside a role: that is "", or null beside a tool call or a refusal.
type Delta struct {
	Role             string // assistant, in a choice's first delta
	Content          string
	ReasoningContent string
	Refusal          string
	ToolCalls        []ToolDelta
	Extra            Raw // extension: extra_content; valid JSON
}

// ToolDelta begins a tool call, if it has an ID or a name, or goes on with one.
type ToolDelta struct {
	Index     int // the call's number within the answer
	ID        string
	Name      string
	Arguments string // a fragment
	Extra     Raw    // extension: extra_content; valid JSON
}

func (t *ToolDelta) begins() bool { return t.ID != "" || t.Name != "" }

// AppendChunk appends the JSON of one chunk, without SSE framing. Text that is not valid
// UTF-8 becomes U+FFFD, so a character must not be split between two chunks.
func AppendChunk(dst []byte, c Chunk) []byte {
	dst = appendHead(dst, c.ID, "chat.completion.chunk", c.Created, c.Model)
	for i := range c.Choices {
		if i > 0 {
			dst = append(dst, ',')
		}
		choice := &c.Choices[i]
		dst = appendIndex(dst, choice.Index)
		dst = append(dst, `,"delta":`...)
		dst = appendDelta(dst, &choice.Delta, c.Legacy)
		dst = append(dst, `,"logprobs":`...)
		dst = appendLogprobs(dst, choice.Logprobs)
		dst = append(dst, `,"finish_reason":`...)
		dst = appendFinish(dst, choice.FinishReason, c.Legacy)
		dst = append(dst, '}')
	}
	return appendTail(dst, c.Usage, c.SystemFingerprint)
}

func appendDelta(dst []byte, d *Delta, legacy bool) []byte {
	open := len(dst)
	dst = appendText(dst, `,"role":`, d.Role)
	switch {
	case d.Content != "" || (d.Role != "" && len(d.ToolCalls) == 0 && d.Refusal == ""):
		dst = openaiapi.AppendString(append(dst, `,"content":`...), d.Content)
	case d.Role != "":
		dst = append(dst, `,"content":null`...)
	}
	dst = appendText(dst, `,"reasoning_content":`, d.ReasoningContent)
	dst = appendText(dst, `,"refusal":`, d.Refusal)
	if legacy {
		dst = appendLegacyDelta(dst, d.ToolCalls)
	} else {
		dst = appendToolDeltas(dst, d.ToolCalls)
	}
	dst = appendExtra(dst, d.Extra)
	if len(dst) == open {
		return append(dst, "{}"...)
	}
	dst[open] = '{' // in the place of the first comma
	return append(dst, '}')
}

func appendToolDeltas(dst []byte, calls []ToolDelta) []byte {
	if len(calls) == 0 {
		return dst
	}
	dst = append(dst, `,"tool_calls":[`...)
	for i := range calls {
		if i > 0 {
			dst = append(dst, ',')
		}
		call := &calls[i]
		dst = strconv.AppendInt(append(dst, `{"index":`...), int64(call.Index), 10)
		if call.begins() {
			dst = append(dst, `,"id":`...)
			dst = openaiapi.AppendString(dst, call.ID)
			dst = append(dst, `,"type":"function"`...)
		}
		dst = append(dst, `,"function":`...)
		dst = appendFunctionDelta(dst, call)
		dst = append(appendExtra(dst, call.Extra), '}')
	}
	return append(dst, ']')
}

func appendLegacyDelta(dst []byte, calls []ToolDelta) []byte {
	for i := range calls {
		if calls[i].Index == 0 {
			return appendFunctionDelta(append(dst, `,"function_call":`...), &calls[i])
		}
	}
	return dst
}

func appendFunctionDelta(dst []byte, call *ToolDelta) []byte {
	if call.begins() {
		return appendFunction(dst, call.Name, call.Arguments)
	}
	dst = append(dst, `{"arguments":`...)
	return append(openaiapi.AppendString(dst, call.Arguments), '}')
}
