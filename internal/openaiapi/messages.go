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

// text counts a string's text. Most bytes of it stand for themselves. Where characters
// are spelled as \uXXXX, as some clients write all that is not ASCII, each counts as the
// three bytes that most of them have; a few of them are not worth the search.
func (p *prompt) text(v value) {
	if !v.isString() {
		return
	}
	p.bytes += len(v) - 2
	if bytes.Count(v, backslash) > len(v)/16 {
		p.bytes -= 3 * bytes.Count(v, unicodeEscape)
	}
}

var backslash, unicodeEscape = []byte(`\`), []byte(`\u`)

// define counts the definition of tools as it is written.
func (p *prompt) define(v value) {
	if !v.empty() {
		p.bytes += len(v)
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

func parseMessage(msg value, index int, said *prompt) error {
	at := func(suffix string) string { return "messages[" + strconv.Itoa(index) + "]" + suffix }
	if !msg.isObject() {
		return invalid(at(""), "%s must be an object", at(""))
	}
	var role, content value
	it := walk(msg)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch {
		case role == nil && sameKey(m.key, "role"):
			role = m.val
		case content == nil && sameKey(m.key, "content"):
			content = m.val
		}
	}
	if role == nil {
		return invalid(at(".role"), "%s is missing", at(".role"))
	}
	if !role.isString() {
		return invalid(at(".role"), "%s must be a string", at(".role"))
	}
	said.content(content)
	return nil
}

// content counts a message's content: a string, or parts of which some are text or
// images.
func (p *prompt) content(v value) {
	p.text(v)
	if !v.isArray() {
		return
	}
	it := walk(v)
	for part, ok := it.element(); ok; part, ok = it.element() {
		if part.field("type").is("image_url") {
			p.images++
			continue
		}
		p.text(part.field("text"))
	}
}
