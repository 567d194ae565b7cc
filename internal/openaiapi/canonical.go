package openaiapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
)

// ErrNotCanonical says that a request has no canonical form: it is no object, or has
// more members than any honest one.
var ErrNotCanonical = errors.New("request has no canonical form")

// mostSorted bounds the members of an object that are put in order. One that has more
// stays as it is written, since sorting would cost several times the body's memory.
const mostSorted = 4096

// WriteCanonical writes what of a request decides on its answer, in a form that is the
// same for requests that ask the same: members are sorted by name, space is gone, and
// numbers and strings are spelled in one way. It trusts that the body was checked. What
// it writes is for a hash alone; w must take everything, as a hash does.
//
// These members are left out:
//
//   - model: what is asked of whom is decided by routing, and belongs in the key as that;
//   - stream, stream_options: they change the answer's shape, and each shape can be made
//     of the other;
//   - user, safety_identifier, metadata: they say who asks and what for, and the answer
//     is another only if routing makes it so;
//   - store: whether the provider keeps a copy for the account;
//   - service_tier: how soon the answer comes, and a kept one comes sooner than any;
//   - prompt_cache_key, prompt_cache_retention: how the provider saves work.
//
// Everything else counts, also what is not known here and also where it says the default:
// what the default is differs from one upstream to the next, and over time. A null is not
// the same as no member for that reason.
//
// In tools, functions, response_format and in members that are not known here the order
// and the numbers are kept as they are written: models read these as text, and an answer
// by a schema has its properties in the schema's order.
func WriteCanonical(w io.Writer, body []byte) error {
	root := rootOf(body)
	if !root.isObject() {
		return ErrNotCanonical
	}
	named, ok := membersOf(root)
	if !ok {
		return ErrNotCanonical
	}
	c := canonical{to: w, buf: make([]byte, 0, min(len(body)+len(body)/4, canonicalBuffer))}
	c.text("{")
	for _, m := range named {
		switch how := placeOf(string(m.name)); how {
		case leftOut:
			continue
		default:
			c.plain(m.name)
			c.text(":")
			c.ordered = how == asWritten
			c.value(m.val)
			c.text(",")
		}
	}
	c.text("}")
	return c.flush()
}

// place is what becomes of a member of the request in its canonical form.
type place uint8

const (
	asWritten place = iota
	sorted
	leftOut
)

func placeOf(name string) place {
	switch name {
	case "model", "stream", "stream_options", "user", "safety_identifier", "metadata", "store", "service_tier",
		"prompt_cache_key", "prompt_cache_retention":
		return leftOut
	case "messages", "input", "logit_bias", "tool_choice", "function_call", "stop", "n", "seed", "temperature", "top_p", "top_k",
		"max_tokens", "max_completion_tokens", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs",
		"parallel_tool_calls", "reasoning_effort", "verbosity", "modalities", "audio", "prediction", "web_search_options",
		"dimensions", "encoding_format":
		return sorted
	}
	return asWritten
}

// namedMember is a member with its name as it reads.
type namedMember struct {
	name []byte
	val  value
}

// membersOf returns an object's members by name, or false when there are too many. Those
// of one name keep their order: which of them counts is the reader's choice.
func membersOf(object value) ([]namedMember, bool) {
	list := make([]namedMember, 0, 8)
	it := walk(object)
	for m, ok := it.member(); ok; m, ok = it.member() {
		if len(list) == mostSorted {
			return nil, false
		}
		list = append(list, namedMember{name: plainName(m.key), val: m.val})
	}
	slices.SortStableFunc(list, func(a, b namedMember) int { return bytes.Compare(a.name, b.name) })
	return list, true
}

// plainName is a member's name with its escapes spelled in the one way.
func plainName(key []byte) []byte {
	if bytes.IndexByte(key, '\\') < 0 {
		return key
	}
	return appendPlain(nil, key)
}

// canonical writes through a small buffer: a long text goes by it.
type canonical struct {
	to      io.Writer
	buf     []byte
	ordered bool // order and numbers stay as they are written
	err     error
}

const canonicalBuffer = 4 << 10

func (c *canonical) flush() error {
	if c.err == nil && len(c.buf) > 0 {
		_, c.err = c.to.Write(c.buf)
	}
	c.buf = c.buf[:0]
	return c.err
}

func (c *canonical) text(s string) {
	c.buf = append(c.buf, s...)
	if len(c.buf) >= canonicalBuffer {
		_ = c.flush() // the error is kept
	}
}

func (c *canonical) raw(b []byte) {
	if len(b) < canonicalBuffer {
		c.buf = append(c.buf, b...)
		if len(c.buf) >= canonicalBuffer {
			_ = c.flush() // the error is kept
		}
		return
	}
	_ = c.flush() // the error is kept
	if c.err == nil {
		_, c.err = c.to.Write(b)
	}
}

// plain writes a name that is plain already.
func (c *canonical) plain(name []byte) {
	c.text(`"`)
	c.raw(name)
	c.text(`"`)
}

// value writes any value. Its depth is bounded by the check of the body.
func (c *canonical) value(v value) {
	switch {
	case v.isObject():
		c.object(v)
	case v.isArray():
		c.text("[")
		it := walk(v)
		for e, ok := it.element(); ok; e, ok = it.element() {
			c.value(e)
			c.text(",")
		}
		c.text("]")
	case v.isString():
		c.quoted(v[1 : len(v)-1])
	case v.isNumber() && !c.ordered:
		c.buf = appendNumber(c.buf, v)
		c.text("")
	default:
		c.raw(v)
	}
}

func (c *canonical) object(v value) {
	c.text("{")
	defer c.text("}")
	if !c.ordered {
		if named, ok := membersOf(v); ok {
			for _, m := range named {
				c.plain(m.name)
				c.text(":")
				c.value(m.val)
				c.text(",")
			}
			return
		}
	}
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		c.quoted(m.key)
		c.text(":")
		c.value(m.val)
		c.text(",")
	}
}

func (c *canonical) quoted(inner []byte) {
	c.text(`"`)
	if bytes.IndexByte(inner, '\\') < 0 {
		c.raw(inner)
	} else {
		c.raw(appendPlain(nil, inner))
	}
	c.text(`"`)
}

// appendPlain appends the inside of a string with its escapes spelled in one way: what
// can stand for itself does. Half of a surrogate pair cannot, and stays an escape, so that
// two strings that are not the same never become so.
func appendPlain(dst, inner []byte) []byte {
	for i := 0; i < len(inner); {
		if inner[i] != '\\' || i+1 >= len(inner) {
			dst = append(dst, inner[i])
			i++
			continue
		}
		if inner[i+1] != 'u' {
			dst = append(dst, escaped(inner[i+1])...)
			i += 2
			continue
		}
		n := 6 // \uXXXX, or a pair of them
		if pair := inner[i:min(i+12, len(inner))]; isPair(pair) {
			n = 12
		}
		unit := inner[i:min(i+n, len(inner))]
		i += len(unit)
		dst = appendUnit(dst, unit)
	}
	return dst
}

// appendUnit appends what a \uXXXX or a pair of them stands for.
func appendUnit(dst, unit []byte) []byte {
	var s string
	lone := len(unit) == 6 && surrogate(unit) != notSurrogate
	if lone || json.Unmarshal(append(append([]byte{'"'}, unit...), '"'), &s) != nil || len(s) == 0 {
		return append(dst, bytes.ToLower(unit)...)
	}
	if len(s) == 1 && (s[0] < 0x20 || s[0] == '"' || s[0] == '\\') {
		return append(dst, escapedByte(s[0])...)
	}
	return append(dst, s...)
}

// escaped returns how the escape of that letter is spelled.
func escaped(letter byte) string {
	switch letter {
	case 'b':
		return escapedByte('\b')
	case 'f':
		return escapedByte('\f')
	case 'n':
		return escapedByte('\n')
	case 'r':
		return escapedByte('\r')
	case 't':
		return escapedByte('\t')
	case '/':
		return "/"
	}
	return escapedByte(letter) // a quote or a backslash
}

func escapedByte(b byte) string {
	if b == '"' || b == '\\' {
		return `\` + string(rune(b))
	}
	const hex = "0123456789abcdef"
	return `\u00` + string([]byte{hex[b>>4], hex[b&15]})
}

const (
	notSurrogate = iota
	highSurrogate
	lowSurrogate
)

// surrogate says which half of a pair a \uXXXX is.
func surrogate(unit []byte) int {
	if len(unit) < 6 || unit[0] != '\\' || unit[1] != 'u' {
		return notSurrogate
	}
	n, err := strconv.ParseUint(string(unit[2:6]), 16, 32)
	switch {
	case err != nil:
		return notSurrogate
	case n >= 0xd800 && n < 0xdc00:
		return highSurrogate
	case n >= 0xdc00 && n < 0xe000:
		return lowSurrogate
	}
	return notSurrogate
}

func isPair(b []byte) bool {
	return len(b) == 12 && surrogate(b[:6]) == highSurrogate && surrogate(b[6:]) == lowSurrogate
}

// appendNumber appends a number as its digits and a power of ten: 10, 10.0 and 1e1 are
// one number. One whose exponent is beyond belief stays as it is written.
func appendNumber(dst []byte, v value) []byte {
	text := string(v)
	mantissa, exponent, scaled := strings.Cut(strings.ToLower(text), "e")
	power := int64(0)
	if scaled {
		var err error
		if power, err = strconv.ParseInt(exponent, 10, 32); err != nil {
			return append(dst, text...)
		}
	}
	digits, negative := strings.CutPrefix(mantissa, "-")
	whole, decimals, _ := strings.Cut(digits, ".")
	digits = strings.TrimLeft(whole+decimals, "0")
	power -= int64(len(decimals))
	trimmed := strings.TrimRight(digits, "0")
	power += int64(len(digits) - len(trimmed))
	if trimmed == "" {
		return append(dst, '0')
	}
	if negative {
		dst = append(dst, '-')
	}
	dst = append(dst, trimmed...)
	dst = append(dst, 'e')
	return strconv.AppendInt(dst, power, 10)
}

// ChoicesOf returns how many answers a checked chat request asks for.
func ChoicesOf(body []byte) int {
	n, ok := integer(rootOf(body).field("n"))
	if !ok || n < 1 {
		return 1
	}
	return int(min(n, MaxChoices))
}
