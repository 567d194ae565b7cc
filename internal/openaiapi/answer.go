package openaiapi

import (
	"errors"

	"sluice/internal/inference"
)

// What makes an answer or a chunk unusable.
var (
	ErrNotJSON   = errors.New("not valid JSON")
	ErrNotAnswer = errors.New("not a chat completion")
)

// Completion is what is read of a complete answer.
type Completion struct {
	Model string
	Usage inference.Usage

	// Failed says that the answer is an error object and no completion.
	Failed bool
}

// ParseCompletion checks a complete answer and reads what is needed of it. The error
// is ErrNotJSON or ErrNotAnswer.
func ParseCompletion(body []byte) (Completion, error) {
	if check(body) != nil {
		return Completion{}, ErrNotJSON
	}
	root := rootOf(body)
	if !root.isObject() {
		return Completion{}, ErrNotAnswer
	}
	var model, usage, choices, failure value
	it := walk(root)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch string(m.key) {
		case "model":
			model = m.val
		case "usage":
			usage = m.val
		case "choices":
			choices = m.val
		case "error":
			failure = m.val
		}
	}
	if !choices.isArray() {
		if failure.absent() {
			return Completion{}, ErrNotAnswer
		}
		return Completion{Failed: true}, nil
	}
	return Completion{Model: model.clip(MaxModelBytes), Usage: readUsage(usage)}, nil
}

// Chunk is what is read of one chunk of a streamed answer. It refers to the bytes
// it was read from.
type Chunk struct {
	Usage inference.Usage

	// Content counts the choices to which this chunk adds text, a tool call or the
	// like: about one token each.
	Content int

	// Failed says that the chunk is an error object.
	Failed bool

	// UsageOnly marks the chunk at the end of an answer that reports usage and
	// belongs to no choice.
	UsageOnly bool

	model     value
	nullUsage member // the member "usage":null, if there is one
}

// Choices remembers which of an answer's choices have begun and which have ended.
// Indexes of MaxChoices and above are not told apart.
type Choices struct {
	begun, ended [MaxChoices/64 + 1]uint64
}

// Finished reports whether at least one choice has begun and all of those that did
// have ended.
func (c *Choices) Finished() bool { return c.begun == c.ended && c.begun != [len(c.begun)]uint64{} }

func (c *Choices) note(index int64, ended bool) {
	if index < 0 || index > MaxChoices {
		index = MaxChoices
	}
	bit := uint64(1) << (index % 64)
	c.begun[index/64] |= bit
	if ended {
		c.ended[index/64] |= bit
	}
}

// ParseChunk checks one chunk, which has no space around it, reads it into chunk and
// notes in seen how far its choices are. The error is ErrNotJSON or ErrNotAnswer.
func ParseChunk(data []byte, chunk *Chunk, seen *Choices) error {
	*chunk = Chunk{}
	if check(data) != nil {
		return ErrNotJSON
	}
	if data[0] != '{' {
		return ErrNotAnswer
	}
	var choices, usage value
	it := walk(data)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch string(m.key) {
		case "model":
			chunk.model = m.val
		case "choices":
			choices = m.val
		case "usage":
			usage = m.val
			if usage.isNull() {
				chunk.nullUsage = m
			}
		case "error":
			chunk.Failed = !m.val.absent()
		}
	}
	chunk.Usage = readUsage(usage)
	chunk.UsageOnly = usage.isObject() && choices.empty()
	each := walk(choices)
	for choice, ok := each.element(); ok; choice, ok = each.element() {
		if readChoice(choice, seen) {
			chunk.Content++
		}
	}
	return nil
}

// readChoice notes a choice's progress and reports whether it adds content.
func readChoice(choice value, seen *Choices) (content bool) {
	var index int64
	ended := false
	it := walk(choice)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch string(m.key) {
		case "index":
			index, _ = count(m.val)
		case "finish_reason":
			ended = !m.val.empty()
		case "delta":
			content = addsContent(m.val)
		}
	}
	seen.note(index, ended)
	return content
}

// addsContent reports whether a delta says anything beyond the role. Providers have
// many names for what they add (content, reasoning, refusal, tool_calls …), so any
// member counts that is not empty.
func addsContent(delta value) bool {
	it := walk(delta)
	for m, ok := it.member(); ok; m, ok = it.member() {
		if string(m.key) != "role" && !m.val.empty() {
			return true
		}
	}
	return false
}

// ModelName returns the model that the chunk names. When that is known, known itself
// is returned and nothing allocated.
func (c *Chunk) ModelName(known string) string {
	if c.model.empty() || c.model.is(known) {
		return known
	}
	return c.model.clip(MaxModelBytes)
}

// DropNullUsage removes the member "usage":null from the chunk's bytes, in place,
// and returns what is left. A chunk without it is returned as it is.
func (c *Chunk) DropNullUsage(data []byte) []byte {
	if c.nullUsage.end == 0 {
		return data
	}
	start, end := c.nullUsage.start, c.nullUsage.end
	if next := skipSpace(data, end); next < len(data) && data[next] == ',' {
		end = skipSpace(data, next+1)
	} else {
		for start > 1 && data[start-1] != ',' && data[start-1] != '{' {
			start--
		}
		if data[start-1] == ',' {
			start--
		}
	}
	c.nullUsage = member{}
	return append(data[:start], data[end:]...)
}
