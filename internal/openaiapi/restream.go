package openaiapi

import (
	"slices"
	"strconv"
	"unicode/utf8"
)

// pieceBytes is about how much text one chunk of a stream has that is made of a whole
// answer: enough that the framing does not outweigh it, and little enough to be shown as
// it comes.
const pieceBytes = 256

// Chunks makes the chunks of a streamed answer of a checked completion, or returns false
// for one that has anything of which it is not known how it is streamed. Each choice
// begins with its role and ends with its finish reason, and the usage follows in a chunk of
// its own if it was asked for.
func Chunks(completion []byte, includeUsage bool) ([][]byte, bool) {
	t, ok := readCompletion(completion)
	if !ok || len(t.choices) == 0 || includeUsage && !t.usage.isObject() {
		return nil, false
	}
	w := chunkWriter{transcript: t, usage: includeUsage}
	for _, c := range t.choices {
		w.choice(c)
	}
	if includeUsage {
		w.list = append(w.list, append(append(w.appendHead(nil), `"choices":[],"usage":`...), append(slices.Clip(t.usage), '}')...))
	}
	return w.list, true
}

// chunkWriter makes chunks.
type chunkWriter struct {
	*transcript
	usage bool
	list  [][]byte
}

func (w *chunkWriter) appendHead(dst []byte) []byte {
	dst = append(dst, `{"object":"chat.completion.chunk"`...)
	return append(appendPairs(dst, w.head), ',')
}

// add appends a chunk of one choice, with what stands in it after its index.
func (w *chunkWriter) add(c *said, rest func(dst []byte) []byte) {
	dst := append(w.appendHead(make([]byte, 0, 256+pieceBytes)), `"choices":[`...)
	dst = append(rest(appendIndex(dst, c.index)), `}]`...)
	if w.usage {
		dst = append(dst, `,"usage":null`...)
	}
	w.list = append(w.list, append(dst, '}'))
}

// delta appends a chunk with a delta.
func (w *chunkWriter) delta(c *said, delta func(dst []byte) []byte) {
	w.add(c, func(dst []byte) []byte {
		dst = delta(append(dst, `,"delta":{`...))
		return append(dst, `},"logprobs":null,"finish_reason":null`...)
	})
}

func (w *chunkWriter) choice(c *said) {
	w.delta(c, func(dst []byte) []byte {
		dst = append(append(dst, `"role":`...), c.speaker()...)
		switch {
		case c.spoke("content"):
			dst = append(dst, `,"content":""`...)
		case !c.has("content"):
			dst = append(dst, `,"content":null`...)
		}
		return appendPairs(dst, c.message)
	})
	for _, first := range []bool{true, false} { // who reasons does so before the answer
		for _, s := range c.texts {
			if s.reasoning() == first {
				w.texts(c, s)
			}
		}
	}
	for _, t := range c.calls {
		w.call(c, t)
	}
	if c.function != nil {
		w.function(c)
	}
	w.add(c, func(dst []byte) []byte {
		dst = append(dst, `,"delta":{}`...)
		if c.probable && !c.spoke("content") && !c.spoke("refusal") {
			dst = c.appendLogprobs(dst)
		} else {
			dst = append(dst, `,"logprobs":null`...)
		}
		dst = append(dst, `,"finish_reason":`...)
		if c.finish == nil {
			dst = append(dst, "null"...)
		}
		return appendPairs(append(dst, c.finish...), c.around)
	})
}

// texts appends the chunks of one text. With log probabilities it is one chunk, since
// those are of tokens and a piece here is not.
func (w *chunkWriter) texts(c *said, s spoken) {
	if c.probable && (s.name == "content" || s.name == "refusal" && !c.spoke("content")) {
		w.add(c, func(dst []byte) []byte {
			dst = append(dst, `,"delta":{`...)
			dst = append(appendFirst(dst, s.name, s.text), '}')
			return append(c.appendLogprobs(dst), `,"finish_reason":null`...)
		})
		return
	}
	for text := s.text; len(text) > 0; {
		n := pieceOf(text)
		piece := text[:n]
		text = text[n:]
		w.delta(c, func(dst []byte) []byte { return appendFirst(dst, s.name, piece) })
	}
}

// call appends the chunks of one tool call: what it is, and then its arguments.
func (w *chunkWriter) call(c *said, t *toolCall) {
	head := *t
	head.arguments = nil
	w.delta(c, func(dst []byte) []byte {
		return append(head.appendCall(append(dst, `"tool_calls":[`...), true), ']')
	})
	for text := t.arguments; len(text) > 0; {
		n := pieceOf(text)
		piece := text[:n]
		text = text[n:]
		w.delta(c, func(dst []byte) []byte {
			dst = appendInt(append(dst, `"tool_calls":[{"index":`...), t.index)
			dst = append(dst, `,"function":{`...)
			return append(appendFirst(dst, "arguments", piece), `}}]`...)
		})
	}
}

func (w *chunkWriter) function(c *said) {
	head := *c.function
	head.arguments = nil
	w.delta(c, func(dst []byte) []byte { return head.appendFunction(append(dst, `"function_call":`...)) })
	for text := c.function.arguments; len(text) > 0; {
		n := pieceOf(text)
		piece := text[:n]
		text = text[n:]
		w.delta(c, func(dst []byte) []byte {
			return append(appendFirst(append(dst, `"function_call":{`...), "arguments", piece), '}')
		})
	}
}

// pieceOf returns how much of the inside of a JSON string makes a piece: never a part of a
// character or of an escape, nor one half of a surrogate pair.
func pieceOf(text []byte) int {
	n := 0
	for n < len(text) && n < pieceBytes {
		n += unitLen(text[n:])
	}
	return min(n, len(text))
}

// unitLen is how many bytes the first character of the inside of a JSON string takes.
func unitLen(text []byte) int {
	switch {
	case text[0] == '\\' && len(text) > 1 && text[1] == 'u':
		if isPair(text[:min(12, len(text))]) {
			return 12
		}
		return 6
	case text[0] == '\\':
		return 2
	}
	_, size := utf8.DecodeRune(text)
	return size
}

func appendIndex(dst []byte, index int64) []byte {
	return appendInt(append(dst, `{"index":`...), index)
}

func appendInt(dst []byte, n int64) []byte { return strconv.AppendInt(dst, n, 10) }

// appendSpoken appends a member that is a text.
func appendSpoken(dst []byte, name string, text []byte) []byte {
	return appendFirst(append(dst, ','), name, text)
}

func appendFirst(dst []byte, name string, text []byte) []byte {
	dst = append(append(append(dst, '"'), name...), `":"`...)
	return append(append(dst, text...), '"')
}

// appendPairs appends members that are taken over as they are.
func appendPairs(dst []byte, pairs []pair) []byte {
	for _, p := range pairs {
		dst = append(append(append(dst, `,"`...), p.name...), `":`...)
		dst = append(dst, p.val...)
	}
	return dst
}
