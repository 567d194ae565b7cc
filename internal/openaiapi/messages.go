package openaiapi

import (
	"bytes"
	"strconv"
)

// imageTokens is what an image counts for, whatever its size: a picture of 1024 pixels
// each way at OpenAI's high detail.
const imageTokens = 765

// prompt adds up what a request says to a model.
type prompt struct{ bytes, images int }

// text counts a string's text. Most bytes of it stand for themselves.
func (p *prompt) text(v value) {
	if v.isString() {
		p.weigh(v[1 : len(v)-1])
	}
}

// weigh counts text as it is written in JSON. Where characters are spelled as \uXXXX, as
// some clients write all that is not ASCII, each counts as the three bytes that most of
// them have; a few of them are not worth the search.
func (p *prompt) weigh(written []byte) {
	p.bytes += len(written)
	if bytes.Count(written, backslash) > len(written)/16 {
		p.bytes -= 3 * bytes.Count(written, unicodeEscape)
	}
}

var backslash, unicodeEscape = []byte(`\`), []byte(`\u`)

// define counts what a model reads as it is written, such as the definition of tools.
func (p *prompt) define(v value) {
	if !v.empty() {
		p.weigh(v)
	}
}

// say counts a field that may be read to the model, whatever its form. A number or a
// truth value is none of that.
func (p *prompt) say(v value) {
	switch {
	case v.isString():
		p.text(v)
	case v.isObject():
		p.part(v)
	case v.isArray():
		it := walk(v)
		for part, ok := it.element(); ok; part, ok = it.element() {
			p.part(part)
		}
	}
}

// sayBeside counts the text of a field that is no content: pictures are looked for in
// contents alone.
func (p *prompt) sayBeside(v value) {
	images := p.images
	p.say(v)
	p.images = images
}

// part counts one part of a content, or anything that is built like it: whatever it says
// but its type and what is no text.
func (p *prompt) part(v value) {
	if !v.isObject() {
		p.sayAsWritten(v)
		return
	}
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch string(m.key) {
		case "type":
			if m.val.is("image_url") {
				p.images++
			}
		case "image_url", "input_audio", "file":
			// An image counts by its type. For the others no length can be told from here.
		default:
			p.sayAsWritten(m.val)
		}
	}
}

// sayAsWritten counts a text, or whatever holds some.
func (p *prompt) sayAsWritten(v value) {
	switch {
	case v.isString():
		p.text(v)
	case v.isObject() || v.isArray():
		p.define(v)
	}
}

// tokens estimates the prompt's length by the rule of thumb that four bytes are a
// token. It may well be off by half, more for languages far from English, and leaves out
// what is neither text nor image.
func (p *prompt) tokens() int {
	return (p.bytes+bytesPerToken-1)/bytesPerToken + p.images*imageTokens
}

// parseMessages checks the messages' frame and adds up what they say.
func parseMessages(v value, said *prompt) error {
	if v.absent() {
		return invalid("messages", "messages is missing")
	}
	if !v.isArray() {
		return invalid("messages", "messages must be an array")
	}
	count := 0
	it := walk(v)
	for msg, ok := it.element(); ok; msg, ok = it.element() {
		if count == MaxMessages {
			return invalid("messages", "messages must hold at most %d elements", MaxMessages)
		}
		if err := parseMessage(msg, count, said); err != nil {
			return err
		}
		count++
	}
	if count == 0 {
		return invalid("messages", "messages must not be empty")
	}
	return nil
}

// longestRole is that of the roles there are. A longer one is a text that somebody hands to
// an upstream which writes any role into its prompt.
const longestRole = len("developer")

func parseMessage(msg value, index int, said *prompt) error {
	at := func(suffix string) string { return "messages[" + strconv.Itoa(index) + "]" + suffix }
	if !msg.isObject() {
		return invalid(at(""), "%s must be an object", at(""))
	}
	role := said.message(msg)
	if role == nil {
		return invalid(at(".role"), "%s is missing", at(".role"))
	}
	if !role.isString() {
		return invalid(at(".role"), "%s must be a string", at(".role"))
	}
	return nil
}

// message counts all that a message says, in whichever of its fields: some upstreams read
// more of them than others. The sound of an earlier answer is not counted. It returns the
// message's role.
func (p *prompt) message(msg value) (role value) {
	it := walk(msg)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch {
		case sameKey(m.key, "role"):
			if role == nil {
				role = m.val
			}
			if len(m.val) > longestRole+2 {
				p.text(m.val)
			}
		case sameKey(m.key, "content"):
			p.say(m.val)
		case string(m.key) != "audio":
			p.sayBeside(m.val)
		}
	}
	return role
}
