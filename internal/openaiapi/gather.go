package openaiapi

import (
	"bytes"

	"sluice/internal/inference"
)

// Gatherer makes a whole completion of the chunks of a streamed answer. It gives up on an
// answer with anything that it could not give back as it was.
type Gatherer struct {
	most  int // bytes of the completion
	given int
	lost  bool
	said  transcript
}

// NewGatherer returns a Gatherer for an answer of at most so many bytes.
func NewGatherer(most int) *Gatherer { return &Gatherer{most: most} }

// Lost reports whether it has given up.
func (g *Gatherer) Lost() bool { return g.lost }

// Add takes in the next chunk.
func (g *Gatherer) Add(chunk []byte) {
	if g.lost {
		return
	}
	before := g.given
	if check(chunk) != nil || !g.chunk(rootOf(chunk)) {
		g.lost = true
	}
	if g.lost || g.given > g.most {
		g.lost = true
		g.said, g.given = transcript{}, before // what was gathered is of no use any more
	}
}

func (g *Gatherer) chunk(root value) bool {
	t := &g.said
	it := walk(root)
	for m, ok := it.member(); ok; m, ok = it.member() {
		fine := true
		switch name := string(m.key); {
		case name == "object" || name == "obfuscation" || m.val.isNull(): // the latter hides how long a text is, and is none
		case name == "usage":
			t.usage = bytes.Clone(m.val) // the last one is of the whole answer
		case name == "choices":
			fine = g.choices(m.val)
		case name == "error":
			fine = false
		case (name == "id" || name == "model") && m.val.empty(): // Azure's first chunk says nothing yet
		case name == "system_fingerprint" && m.val.empty():
		case name == "created":
			t.head, _ = once(t.head, name, m.val) // some stamp each chunk; the first is the answer's
		default:
			t.head, fine = once(t.head, name, m.val)
		}
		if !fine {
			return false
		}
	}
	return root.isObject()
}

func (g *Gatherer) choices(list value) bool {
	it := walk(list)
	for c, ok := it.element(); ok; c, ok = it.element() {
		g.given += len(c.field("delta")) + len(c.field("logprobs"))
		if !g.said.readChoice(c, "delta") {
			return false
		}
	}
	return list.isArray()
}

// Completion returns the whole answer, or false if it is not complete, or could not be
// gathered. The usage is told with it where no chunk did.
func (g *Gatherer) Completion(choices int, bounded bool, usage inference.Usage) ([]byte, bool) {
	t := &g.said
	if g.lost || !t.complete(choices, bounded) {
		return nil, false
	}
	if !t.usage.isObject() {
		if !usage.Known || usage.Estimated {
			return nil, false
		}
		t.usage = appendUsage(nil, usage)
	}
	body := t.appendCompletion(nil)
	return body, len(body) <= g.most
}

// appendCompletion appends the completion that the transcript is of.
func (t *transcript) appendCompletion(dst []byte) []byte {
	dst = append(dst, `{"object":"chat.completion"`...)
	dst = appendPairs(dst, t.head)
	dst = append(dst, `,"choices":[`...)
	for i, c := range t.choices {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = c.appendChoice(dst)
	}
	dst = append(dst, `],"usage":`...)
	return append(append(dst, t.usage...), '}')
}

func (c *said) appendChoice(dst []byte) []byte {
	dst = appendIndex(dst, c.index)
	dst = append(dst, `,"message":{"role":`...)
	dst = append(dst, c.speaker()...)
	if !c.spoke("content") && !c.has("content") {
		dst = append(dst, `,"content":null`...)
	}
	for _, s := range c.texts {
		dst = appendSpoken(dst, s.name, s.text)
	}
	if !c.spoke("refusal") && !c.has("refusal") {
		dst = append(dst, `,"refusal":null`...)
	}
	if len(c.calls) > 0 {
		dst = append(dst, `,"tool_calls":[`...)
		for i, t := range c.calls {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = t.appendCall(dst, false)
		}
		dst = append(dst, ']')
	}
	if c.function != nil {
		dst = append(dst, `,"function_call":`...)
		dst = c.function.appendFunction(dst)
	}
	dst = append(appendPairs(dst, c.message), '}')
	dst = c.appendLogprobs(dst)
	dst = append(dst, `,"finish_reason":`...)
	dst = append(dst, c.finish...)
	return append(appendPairs(dst, c.around), '}')
}

func (c *said) speaker() value {
	if c.role == nil {
		return value(`"assistant"`)
	}
	return c.role
}

// appendCall appends a call, in a delta with its index.
func (t *toolCall) appendCall(dst []byte, delta bool) []byte {
	dst = append(dst, '{')
	open := len(dst)
	if delta {
		dst = append(dst, `,"index":`...)
		dst = appendInt(dst, t.index)
	}
	if t.id != nil {
		dst = append(append(dst, `,"id":`...), t.id...)
	}
	if t.kind != nil {
		dst = append(append(dst, `,"type":`...), t.kind...)
	} else {
		dst = append(dst, `,"type":"function"`...)
	}
	if t.name != nil || len(t.arguments) > 0 || len(t.other) == 0 {
		dst = append(dst, `,"function":`...)
		dst = t.appendFunction(dst)
	}
	dst = appendPairs(dst, t.other)
	dst = append(dst[:open], dst[open+1:]...) // the first comma
	return append(dst, '}')
}

func (t *toolCall) appendFunction(dst []byte) []byte {
	dst = append(dst, `{"name":`...)
	if t.name == nil {
		dst = append(dst, `""`...)
	}
	dst = append(dst, t.name...)
	return append(appendSpoken(dst, "arguments", t.arguments), '}')
}

func (c *said) appendLogprobs(dst []byte) []byte {
	if !c.probable {
		return append(dst, `,"logprobs":null`...)
	}
	dst = append(dst, `,"logprobs":{`...)
	for i, name := range []string{`"content":`, `,"refusal":`} {
		dst = append(dst, name...)
		if c.logprobs[i] == nil {
			dst = append(dst, "null"...)
			continue
		}
		dst = append(dst, '[')
		for j, token := range c.logprobs[i] {
			if j > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, token...)
		}
		dst = append(dst, ']')
	}
	return append(dst, '}')
}
