package openaiapi

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// value is the raw JSON of one value, without space around it; nil when there is
// none. Its methods trust that the text was checked. On a text that was not, they
// may give a wrong answer, but they stay inside it and end.
type value []byte

// rootOf returns the value that a document holds.
func rootOf(data []byte) value {
	start := skipSpace(data, 0)
	end := skipValue(data, start)
	if end < 0 {
		return nil
	}
	return data[start:end]
}

// rootOfChecked returns the value that a document holds which was checked: all of it but
// the space around.
func rootOfChecked(data []byte) value { return bytes.Trim(data, " \t\n\r") }

// kind returns the value's first byte, which tells its type, or 0 for none.
func (v value) kind() byte {
	if len(v) == 0 {
		return 0
	}
	return v[0]
}

func (v value) isNull() bool   { return v.kind() == 'n' }
func (v value) isObject() bool { return v.kind() == '{' }
func (v value) isArray() bool  { return v.kind() == '[' }
func (v value) isString() bool { return v.kind() == '"' && len(v) >= 2 }
func (v value) isBool() bool   { return v.kind() == 't' || v.kind() == 'f' }

func (v value) isNumber() bool {
	b := v.kind()
	return b == '-' || (b >= '0' && b <= '9')
}

// absent reports that the value is missing or null, which this API treats alike
// wherever a field is optional.
func (v value) absent() bool { return len(v) == 0 || v.isNull() }

// empty reports that the value says nothing: missing, null, "", [] or {}.
func (v value) empty() bool {
	if v.absent() {
		return true
	}
	switch v[0] {
	case '"':
		return len(v) <= 2
	case '[', '{':
		next := skipSpace(v, 1)
		return next >= len(v) || v[next] == v[0]+2
	}
	return false
}

// text returns a string's content.
func (v value) text() (string, bool) {
	if !v.isString() {
		return "", false
	}
	inner := v[1 : len(v)-1]
	if bytes.IndexByte(inner, '\\') < 0 {
		return string(inner), true
	}
	var s string
	if json.Unmarshal(v, &s) != nil {
		return "", false
	}
	return s, true
}

// is reports whether the value is the string s.
func (v value) is(s string) bool {
	return v.isString() && sameKey(v[1:len(v)-1], s)
}

// clip returns a string's content as valid UTF-8 of at most limit bytes.
func (v value) clip(limit int) string {
	s, _ := v.text()
	return clip(s, limit)
}

func clip(s string, limit int) string {
	if len(s) > limit {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// field returns an object's member, nil if there is none. The first one counts.
func (v value) field(name string) value {
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		if sameKey(m.key, name) {
			return m.val
		}
	}
	return nil
}

// sameKey compares the inside of a JSON string with a name, seeing through escapes.
func sameKey(raw []byte, name string) bool {
	if string(raw) == name {
		return true
	}
	if len(raw) < len(name) || bytes.IndexByte(raw, '\\') < 0 {
		return false
	}
	quoted := make(value, 0, len(raw)+2)
	quoted = append(append(append(quoted, '"'), raw...), '"')
	s, ok := quoted.text()
	return ok && s == name
}

// member is one name and value of an object.
type member struct {
	key        []byte // inside the quotes, escapes untouched
	val        value
	start, end int // from the name's opening quote to the value's end, within the object
}

// walker goes through an object's members or an array's elements.
type walker struct {
	data []byte
	pos  int
}

// walk starts at the first member or element of v; on any other value it finds none.
func walk(v value) walker {
	if !v.isObject() && !v.isArray() {
		return walker{}
	}
	return walker{data: v, pos: 1}
}

func (w *walker) member() (member, bool) {
	if !w.advance() {
		return member{}, false
	}
	start := w.pos
	if w.data[start] != '"' {
		return member{}, w.stop()
	}
	keyEnd := skipString(w.data, start)
	if keyEnd < 0 {
		return member{}, w.stop()
	}
	colon := skipSpace(w.data, keyEnd)
	if colon >= len(w.data) || w.data[colon] != ':' {
		return member{}, w.stop()
	}
	from := skipSpace(w.data, colon+1)
	end := skipValue(w.data, from)
	if end < 0 {
		return member{}, w.stop()
	}
	w.pos = end
	return member{
		key:   w.data[start+1 : keyEnd-1],
		val:   w.data[from:end],
		start: start,
		end:   end,
	}, true
}

func (w *walker) element() (value, bool) {
	if !w.advance() {
		return nil, false
	}
	end := skipValue(w.data, w.pos)
	if end < 0 {
		return nil, w.stop()
	}
	v := value(w.data[w.pos:end])
	w.pos = end
	return v, true
}

// advance moves to the next member or element.
func (w *walker) advance() bool {
	w.pos = skipSpace(w.data, w.pos)
	if w.pos < len(w.data) && w.data[w.pos] == ',' {
		w.pos = skipSpace(w.data, w.pos+1)
	}
	return w.pos < len(w.data) && w.data[w.pos] != '}' && w.data[w.pos] != ']'
}

func (w *walker) stop() bool {
	w.pos = len(w.data)
	return false
}

// skipValue returns where the value at pos ends, or -1.
func skipValue(data []byte, pos int) int {
	if pos >= len(data) {
		return -1
	}
	switch data[pos] {
	case '"':
		return skipString(data, pos)
	case '{', '[':
		return skipContainer(data, pos)
	}
	start := pos
	for pos < len(data) && !endsScalar(data[pos]) {
		pos++
	}
	if pos == start {
		return -1
	}
	return pos
}

func endsScalar(b byte) bool {
	switch b {
	case ',', '}', ']', ':', '"', '{', '[', ' ', '\t', '\n', '\r':
		return true
	}
	return false
}

func skipContainer(data []byte, pos int) int {
	depth := 0
	for pos < len(data) {
		switch data[pos] {
		case '"':
			if pos = skipString(data, pos); pos < 0 {
				return -1
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return pos + 1
			}
		}
		pos++
	}
	return -1
}

// skipString returns the offset after the string that opens at pos, or -1.
func skipString(data []byte, pos int) int {
	pos++
	for {
		i := bytes.IndexByte(data[pos:], '"')
		if i < 0 {
			return -1
		}
		quote := pos + i
		slashes := 0
		for quote-1-slashes >= pos && data[quote-1-slashes] == '\\' {
			slashes++
		}
		pos = quote + 1
		if slashes%2 == 0 {
			return pos
		}
	}
}
