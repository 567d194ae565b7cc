package openaiapi

import (
	"errors"
	"unicode/utf8"
)

var errNotObject = errors.New("body is not a JSON object")

// SetModel returns body with its model replaced. Every other byte stays as it was;
// body itself is returned, uncopied, when it names that model already. A body
// without a model gets one.
func SetModel(body []byte, model string) ([]byte, error) {
	if current, ok := topLevel(body, "model"); ok {
		if current.val.is(model) {
			return body, nil
		}
		out := make([]byte, 0, len(body)+len(model)+2)
		out = append(out, body[:current.end-len(current.val)]...)
		out = AppendString(out, model)
		return append(out, body[current.end:]...), nil
	}
	return insertMember(body, 0, "model", AppendString(nil, model))
}

// WithStreamUsage returns body with stream_options.include_usage set to true. Every
// other byte stays as it was; body itself is returned, uncopied, when it says so
// already.
func WithStreamUsage(body []byte) ([]byte, error) {
	options, ok := topLevel(body, "stream_options")
	if !ok {
		return insertMember(body, 0, "stream_options", []byte(`{"include_usage":true}`))
	}
	start := options.end - len(options.val)
	if !options.val.isObject() {
		return splice(body, start, options.end, []byte(`{"include_usage":true}`)), nil
	}
	it := walk(options.val)
	for m, ok := it.member(); ok; m, ok = it.member() {
		if !sameKey(m.key, "include_usage") {
			continue
		}
		if m.val.kind() == 't' {
			return body, nil
		}
		return splice(body, start+m.end-len(m.val), start+m.end, []byte("true")), nil
	}
	return insertMember(body, start, "include_usage", []byte("true"))
}

// topLevel finds a member of the document's object; its offsets are body's.
func topLevel(body []byte, name string) (member, bool) {
	start := skipSpace(body, 0)
	it := walk(body[start:])
	for m, ok := it.member(); ok; m, ok = it.member() {
		if sameKey(m.key, name) {
			m.start += start
			m.end += start
			return m, true
		}
	}
	return member{}, false
}

// insertMember puts a member in front of the others of the object that opens at or
// after from.
func insertMember(body []byte, from int, name string, val []byte) ([]byte, error) {
	open := skipSpace(body, from)
	if open >= len(body) || body[open] != '{' {
		return nil, errNotObject
	}
	text := append(AppendString(nil, name), ':')
	text = append(text, val...)
	if next := skipSpace(body, open+1); next < len(body) && body[next] != '}' {
		text = append(text, ',')
	}
	return splice(body, open+1, open+1, text), nil
}

// splice returns a copy of body with the bytes from start to end replaced.
func splice(body []byte, start, end int, with []byte) []byte {
	out := make([]byte, 0, len(body)-(end-start)+len(with))
	out = append(out, body[:start]...)
	out = append(out, with...)
	return append(out, body[end:]...)
}

// AppendString appends s as a JSON string. What is not valid UTF-8 becomes U+FFFD.
func AppendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		b := s[i]
		if b >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
			continue
		}
		i++
		switch {
		case b == '"' || b == '\\':
			dst = append(dst, '\\', b)
		case b == '\n':
			dst = append(dst, '\\', 'n')
		case b == '\r':
			dst = append(dst, '\\', 'r')
		case b == '\t':
			dst = append(dst, '\\', 't')
		case b < 0x20 || b == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hex[b>>4], hex[b&15])
		default:
			dst = append(dst, b)
		}
	}
	return append(dst, '"')
}
