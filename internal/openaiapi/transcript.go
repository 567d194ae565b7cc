package openaiapi

import (
	"bytes"
	"slices"
	"strconv"

	"sluice/internal/inference"
)

// transcript is a chat answer in its parts, from which both of its shapes can be made: the
// whole completion and the chunks. It holds only what is known to go from one shape to the
// other unchanged; an answer with anything else has no transcript.
type transcript struct {
	head    []pair // id, created, model and whatever else stands in every chunk alike
	choices []*said
	usage   value
}

// pair is a member that is taken over as it is.
type pair struct {
	name string
	val  value
}

// said is one of an answer's choices.
type said struct {
	index    int64
	role     value
	texts    []spoken // content and the like, in the order in which they began
	calls    []*toolCall
	function *toolCall // the older function_call
	logprobs [2][]value
	probable bool   // there are log probabilities
	message  []pair // other members of the message
	around   []pair // other members of the choice
	finish   value
}

// spoken is a text that comes in pieces.
type spoken struct {
	name string
	text []byte // the inside of a JSON string
}

// toolCall is a call that the answer asks for.
type toolCall struct {
	index     int64
	id, kind  value
	name      value
	arguments []byte // the inside of a JSON string
	other     []pair
}

func (s spoken) reasoning() bool { return s.name == "reasoning_content" || s.name == "reasoning" }

// maxToolCalls bounds the calls in one choice, as a provider numbers them.
const maxToolCalls = 128

// speech reports whether a member is a text that comes in pieces.
func speech(name string) bool {
	switch name {
	case "content", "refusal", "reasoning_content", "reasoning":
		return true
	}
	return false
}

// choice returns the choice of that index, which it adds if need be.
func (t *transcript) choice(index int64) *said {
	for _, c := range t.choices {
		if c.index == index {
			return c
		}
	}
	if index < 0 || index >= MaxChoices {
		return nil
	}
	c := &said{index: index}
	t.choices = append(t.choices, c)
	return c
}

// say adds to a text.
func (c *said) say(name string, piece value) {
	i := slices.IndexFunc(c.texts, func(s spoken) bool { return s.name == name })
	if i < 0 {
		c.texts = append(c.texts, spoken{name: name})
		i = len(c.texts) - 1
	}
	c.texts[i].text = append(c.texts[i].text, piece[1:len(piece)-1]...)
}

func (c *said) spoke(name string) bool {
	return slices.ContainsFunc(c.texts, func(s spoken) bool { return s.name == name })
}

// has reports whether the message has the member as something other than a text, such as
// content in parts.
func (c *said) has(name string) bool {
	return slices.ContainsFunc(c.message, func(p pair) bool { return p.name == name })
}

// call returns the tool call of that index, which it adds if need be.
func (c *said) call(index int64) *toolCall {
	for _, t := range c.calls {
		if t.index == index {
			return t
		}
	}
	if index != int64(len(c.calls)) || index >= maxToolCalls {
		return nil
	}
	t := &toolCall{index: index}
	c.calls = append(c.calls, t)
	return t
}

// once takes over a member that may come again only as it was.
func once(list []pair, name string, val value) ([]pair, bool) {
	for _, p := range list {
		if p.name == name {
			return list, bytes.Equal(p.val, val)
		}
	}
	return append(list, pair{name, bytes.Clone(val)}), true
}

// function takes in what is said of the function that is called.
func (t *toolCall) function(v value) bool {
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch name := string(m.key); {
		case name == "arguments" && m.val.isString():
			t.arguments = append(t.arguments, m.val[1:len(m.val)-1]...)
		case name == "name" && m.val.isString() && (t.name == nil || bytes.Equal(t.name, m.val)):
			t.name = bytes.Clone(m.val)
		case m.val.isNull():
		default:
			return false
		}
	}
	return v.isObject()
}

// describe takes in a tool call, or a part of one.
func (t *toolCall) describe(v value) bool {
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		fine := true
		switch name := string(m.key); {
		case name == "index" || m.val.isNull():
		case name == "id" && m.val.is(""): // some send it with every piece
		case name == "id":
			t.id, fine = same(t.id, m.val)
		case name == "type":
			t.kind, fine = same(t.kind, m.val)
		case name == "function":
			fine = t.function(m.val)
		default:
			t.other, fine = once(t.other, name, m.val)
		}
		if !fine {
			return false
		}
	}
	return v.isObject()
}

// same returns the one value that both are, if they are or there was none.
func same(have, next value) (value, bool) {
	if have == nil {
		return bytes.Clone(next), true
	}
	return have, bytes.Equal(have, next)
}

// tokens takes in log probabilities.
func (c *said) tokens(v value) bool {
	if v.isNull() {
		return true
	}
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		i := slices.Index([]string{"content", "refusal"}, string(m.key))
		switch {
		case m.val.isNull():
		case i < 0 || !m.val.isArray():
			return false
		default:
			each := walk(m.val)
			for e, ok := each.element(); ok; e, ok = each.element() {
				c.logprobs[i] = append(c.logprobs[i], bytes.Clone(e))
			}
		}
	}
	c.probable = true
	return v.isObject()
}

// take takes in a member of a delta or of a message.
func (c *said) take(m member) (fine bool) {
	name := string(m.key)
	fine = true
	switch {
	case name == "role":
		if c.role == nil && m.val.isString() {
			c.role = bytes.Clone(m.val)
		}
	case m.val.empty() && (name != "content" || !m.val.isString()):
	case speech(name) && (m.val.isString() && c.has(name) || !m.val.isString() && c.spoke(name)):
		fine = false // it is a text and something else
	case speech(name) && m.val.isString():
		c.say(name, m.val)
	case name == "tool_calls":
		fine = c.toolCalls(m.val)
	case name == "function_call":
		if c.function == nil {
			c.function = new(toolCall)
		}
		fine = c.function.function(m.val)
	default:
		c.message, fine = once(c.message, name, m.val)
	}
	return fine
}

// toolCalls takes in a list of calls, or of parts of them. In a message they have no index.
func (c *said) toolCalls(v value) bool {
	it := walk(v)
	for n := int64(0); ; n++ {
		e, ok := it.element()
		if !ok {
			return v.isArray()
		}
		index := n
		if given := e.field("index"); given != nil {
			var whole bool
			if index, whole = integer(given); !whole {
				return false
			}
		}
		call := c.call(index)
		if call == nil || !call.describe(e) {
			return false
		}
	}
}

// complete reports whether the answer is whole: the choices that were asked for are all
// there, and each came to its end by itself, or, where the request bounds its length, at
// that bound.
func (t *transcript) complete(choices int, bounded bool) bool {
	if len(t.choices) != choices {
		return false
	}
	for _, c := range t.choices {
		if !ended(c.finish, bounded) {
			return false
		}
	}
	return true
}

func ended(finish value, bounded bool) bool {
	reason, _ := finish.text()
	switch reason {
	case "stop", "tool_calls", "function_call":
		return true
	case "length":
		return bounded
	}
	return false
}

// readCompletion takes a checked completion apart.
func readCompletion(body []byte) (*transcript, bool) {
	t := new(transcript)
	root := rootOf(body)
	it := walk(root)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch name := string(m.key); {
		case name == "object" || m.val.isNull():
		case name == "usage":
			t.usage = m.val
		case name == "choices":
			each := walk(m.val)
			for c, ok := each.element(); ok; c, ok = each.element() {
				if !t.readChoice(c, "message") {
					return nil, false
				}
			}
		default:
			t.head = append(t.head, pair{name, m.val})
		}
	}
	return t, root.isObject()
}

// readChoice takes in a choice, or a part of one, whose words are in the member of that
// name.
func (t *transcript) readChoice(v value, words string) bool {
	index := int64(len(t.choices))
	if given := v.field("index"); given != nil {
		var whole bool
		if index, whole = integer(given); !whole {
			return false
		}
	}
	c := t.choice(index)
	if c == nil || !v.isObject() {
		return false
	}
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		fine := true
		switch name := string(m.key); {
		case name == "index" || m.val.isNull():
		case name == "finish_reason":
			if !m.val.empty() {
				c.finish, fine = same(c.finish, m.val)
			}
		case name == "logprobs":
			fine = c.tokens(m.val)
		case name == words:
			each := walk(m.val)
			for d, ok := each.member(); ok && fine; d, ok = each.member() {
				fine = c.take(d)
			}
		default:
			c.around, fine = once(c.around, name, m.val)
		}
		if !fine {
			return false
		}
	}
	return true
}

// WholeCompletion reports whether a completion is a complete answer to a request for so
// many choices. bounded says that the request itself bounds the answer's length, so that
// one which ends there is what was asked for. It checks the answer.
func WholeCompletion(body []byte, choices int, bounded bool) bool {
	if check(body) != nil {
		return false
	}
	root := rootOf(body)
	if !root.field("error").absent() {
		return false
	}
	n := 0
	it := walk(root.field("choices"))
	for c, ok := it.element(); ok; c, ok = it.element() {
		if !ended(c.field("finish_reason"), bounded) || !c.field("message").isObject() {
			return false
		}
		n++
	}
	return n == choices
}

// WholeEmbeddings reports whether a list of embeddings has one for each of so many texts.
func WholeEmbeddings(body []byte, texts int) bool {
	if check(body) != nil {
		return false
	}
	n := 0
	it := walk(rootOf(body).field("data"))
	for e, ok := it.element(); ok; e, ok = it.element() {
		if e.field("embedding").empty() {
			return false
		}
		n++
	}
	return n == texts && n > 0
}

// appendUsage appends what a provider reported, as a completion has it.
func appendUsage(dst []byte, u inference.Usage) []byte {
	number := func(name string, n int64) {
		dst = append(dst, name...)
		dst = strconv.AppendInt(dst, n, 10)
	}
	number(`{"prompt_tokens":`, u.PromptTokens)
	number(`,"completion_tokens":`, u.CompletionTokens)
	number(`,"total_tokens":`, u.PromptTokens+u.CompletionTokens)
	number(`,"prompt_tokens_details":{"cached_tokens":`, u.CachedTokens)
	number(`},"completion_tokens_details":{"reasoning_tokens":`, u.ReasoningTokens)
	return append(dst, "}}"...)
}
