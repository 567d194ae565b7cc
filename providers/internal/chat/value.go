package chat

import (
	"encoding/json"
	"iter"
	"strings"
)

// Raw is one JSON value as the client wrote it, empty when it is missing or null.
type Raw string

// value is a JSON value without space around it, empty when there is none. It is part
// of a text that was checked to be JSON; its methods rely on that.
type value string

func (v value) kind() byte {
	if v == "" {
		return 0
	}
	return v[0]
}

// absent reports that the value is missing or null, which the format treats alike
// wherever a field is optional.
func (v value) absent() bool { return v == "" || v[0] == 'n' }

func (v value) isNumber() bool {
	b := v.kind()
	return b == '-' || (b >= '0' && b <= '9')
}

// empty reports that the value is missing, null, "", [] or {}.
func (v value) empty() bool {
	if v.absent() {
		return true
	}
	switch v[0] {
	case '"':
		return len(v) == 2
	case '[', '{':
		return skipSpace(string(v), 1) == len(v)-1
	}
	return false
}

// raw returns the value as it stands.
func (v value) raw() Raw {
	if v.absent() {
		return ""
	}
	return Raw(v)
}

// text returns the content of a string: a part of the body itself unless it holds
// escapes. Half of a surrogate pair becomes U+FFFD.
func (v value) text() string {
	inner := string(v[1 : len(v)-1])
	if strings.IndexByte(inner, '\\') < 0 {
		return inner
	}
	var s string
	if json.Unmarshal([]byte(v), &s) != nil {
		return "" // impossible: the text was checked
	}
	return s
}

// members goes through an object's members; any other value has none.
func (v value) members() iter.Seq2[string, value] {
	return func(yield func(string, value) bool) {
		if v.kind() != '{' {
			return
		}
		s := string(v)
		for pos := nextItem(s, 1); pos < len(s); pos = nextItem(s, pos) {
			keyEnd := skipString(s, pos)
			from := skipSpace(s, skipSpace(s, keyEnd)+1) // over the colon
			end := skipValue(s, from)
			if !yield(value(s[pos:keyEnd]).text(), value(s[from:end])) {
				return
			}
			pos = end
		}
	}
}

// elements goes through an array's elements; any other value has none.
func (v value) elements() iter.Seq2[int, value] {
	return func(yield func(int, value) bool) {
		if v.kind() != '[' {
			return
		}
		s := string(v)
		index := 0
		for pos := nextItem(s, 1); pos < len(s); pos = nextItem(s, pos) {
			end := skipValue(s, pos)
			if !yield(index, value(s[pos:end])) {
				return
			}
			index++
			pos = end
		}
	}
}

// nextItem returns where the next member or element begins, len(s) when none is left.
func nextItem(s string, pos int) int {
	pos = skipSpace(s, pos)
	if pos < len(s) && s[pos] == ',' {
		return skipSpace(s, pos+1)
	}
	if pos < len(s) && (s[pos] == '}' || s[pos] == ']') {
		return len(s)
	}
	return pos
}

func skipSpace(s string, pos int) int {
	for pos < len(s) && (s[pos] == ' ' || s[pos] == '\t' || s[pos] == '\n' || s[pos] == '\r') {
		pos++
	}
	return pos
}

// skipValue returns where the value that begins at pos ends.
func skipValue(s string, pos int) int {
	depth := 0
	for pos < len(s) {
		switch s[pos] {
		case '"':
			pos = skipString(s, pos)
		case '{', '[':
			depth++
			pos++
			continue
		case '}', ']':
			depth--
			pos++
		case ',', ':', ' ', '\t', '\n', '\r':
			pos++
			continue
		default:
			pos = skipScalar(s, pos)
		}
		if depth == 0 {
			return pos
		}
	}
	return len(s)
}

// skipScalar returns the offset after a number, true, false or null.
func skipScalar(s string, pos int) int {
	for pos < len(s) && strings.IndexByte(",:]} \t\n\r", s[pos]) < 0 {
		pos++
	}
	return pos
}

// skipString returns the offset after the string that opens at pos. Long strings are
// images as a rule, so they are searched and not walked.
func skipString(s string, pos int) int {
	pos++
	for {
		i := strings.IndexByte(s[pos:], '"')
		if i < 0 {
			return len(s)
		}
		slashes := 0
		for slashes < i && s[pos+i-1-slashes] == '\\' {
			slashes++
		}
		pos += i + 1
		if slashes%2 == 0 {
			return pos
		}
	}
}
