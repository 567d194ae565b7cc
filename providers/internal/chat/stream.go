package chat

import (
	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// Stream writes the chunks of one streamed answer. It remembers what each of them
// repeats, gives each choice its role once and numbers its tool calls. Each method
// appends one chunk, without SSE framing, or nothing where there is nothing to say. It
// maps nothing and is for one goroutine.
type Stream struct {
	head  Chunk
	usage bool

	choices []streamChoice
	one     [1]ChunkChoice // of the chunk being written
	call    [1]ToolDelta
}

type streamChoice struct {
	begun  bool
	calls  int         // begun so far
	number map[int]int // of the last call begun under each of the upstream's keys
}

// NewStream begins an answer; req gives the shape of tool calls. The usage chunk at the
// end is written only if includeUsage says so.
func NewStream(id, model string, created int64, req *Request, includeUsage bool) *Stream {
	return &Stream{head: Chunk{ID: id, Model: model, Created: created, Legacy: req.Legacy}, usage: includeUsage}
}

// SetModel changes the model's name from here on, for upstreams that tell it late.
func (s *Stream) SetModel(model string) { s.head.Model = model }

// SetFingerprint sets the system_fingerprint from here on.
func (s *Stream) SetFingerprint(fingerprint string) { s.head.SystemFingerprint = fingerprint }

// Open gives a choice its role and nothing else. It writes nothing for a choice that
// has begun.
func (s *Stream) Open(dst []byte, choice int) []byte {
	if s.choice(choice).begun {
		return dst
	}
	return s.Append(dst, ChunkChoice{Index: choice})
}

// Text adds to a choice's content.
func (s *Stream) Text(dst []byte, choice int, text string) []byte {
	if text == "" {
		return dst
	}
	return s.Append(dst, ChunkChoice{Index: choice, Delta: Delta{Content: text}})
}

// Reasoning adds to a choice's thoughts.
func (s *Stream) Reasoning(dst []byte, choice int, text string) []byte {
	if text == "" {
		return dst
	}
	return s.Append(dst, ChunkChoice{Index: choice, Delta: Delta{ReasoningContent: text}})
}

// Refusal adds to a choice's refusal.
func (s *Stream) Refusal(dst []byte, choice int, text string) []byte {
	if text == "" {
		return dst
	}
	return s.Append(dst, ChunkChoice{Index: choice, Delta: Delta{Refusal: text}})
}

// Call begins a tool call, with as much of its arguments as is known. The key is
// whatever tells the choice's calls apart upstream; one that is known already begins
// another call under the same key. A legacy answer has room for the first call alone,
// and nothing is written for others.
func (s *Stream) Call(dst []byte, choice, key int, call ToolCall) []byte {
	state := s.choice(choice)
	if state.number == nil {
		state.number = map[int]int{}
	}
	index := state.calls
	state.number[key] = index
	state.calls++
	return s.appendCall(dst, choice, ToolDelta{
		Index: index, ID: call.ID, Name: call.Name, Arguments: call.Arguments, Extra: call.Extra,
	})
}

// Arguments adds to the arguments of the call that was begun last under the key.
// Nothing is written when there is none.
func (s *Stream) Arguments(dst []byte, choice, key int, fragment string) []byte {
	index, known := s.choice(choice).number[key]
	if !known || fragment == "" {
		return dst
	}
	return s.appendCall(dst, choice, ToolDelta{Index: index, Arguments: fragment})
}

func (s *Stream) appendCall(dst []byte, choice int, delta ToolDelta) []byte {
	if s.head.Legacy && delta.Index > 0 {
		return dst
	}
	s.call[0] = delta
	return s.Append(dst, ChunkChoice{Index: choice, Delta: Delta{ToolCalls: s.call[:]}})
}

// Calls is how many tool calls of a choice have begun.
func (s *Stream) Calls(choice int) int { return s.choice(choice).calls }

// Finish ends a choice.
func (s *Stream) Finish(dst []byte, choice int, reason string) []byte {
	return s.Append(dst, ChunkChoice{Index: choice, FinishReason: reason})
}

// Usage appends the last chunk, which belongs to no choice, if it is wanted and the
// usage is known.
func (s *Stream) Usage(dst []byte, usage inference.Usage) []byte {
	if !s.usage || !usage.Known {
		return dst
	}
	last := s.head
	last.Usage = usage
	return AppendChunk(dst, last)
}

// Append writes any other chunk of one choice: log probabilities, or several things at
// once. The role is added where it is due; tool calls keep the numbers that they have.
func (s *Stream) Append(dst []byte, c ChunkChoice) []byte {
	if state := s.choice(c.Index); !state.begun {
		state.begun = true
		c.Delta.Role = string(RoleAssistant)
	}
	s.one[0] = c
	chunk := s.head
	chunk.Choices = s.one[:]
	return AppendChunk(dst, chunk)
}

func (s *Stream) choice(index int) *streamChoice {
	// More choices are never asked for; what claims to be one of them shares one state.
	index = min(max(index, 0), openaiapi.MaxChoices)
	for len(s.choices) <= index {
		s.choices = append(s.choices, streamChoice{})
	}
	return &s.choices[index]
}
