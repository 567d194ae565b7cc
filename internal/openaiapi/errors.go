package openaiapi

import (
	"bytes"
	"encoding/json"
)

// maxErrorText bounds what is taken over from an upstream's error message.
const maxErrorText = 2048

// ErrorBody is the one shape of Sluice's error answers: OpenAI's, with details.
type ErrorBody struct {
	Message string
	Type    string
	Code    string
	Param   string         // null on the wire when empty
	Details map[string]any // an object on the wire, also when there are none
}

// AppendError appends the JSON of an error answer. Details that cannot be encoded
// are left out.
func AppendError(dst []byte, e ErrorBody) []byte {
	dst = append(dst, `{"error":{"message":`...)
	dst = AppendString(dst, e.Message)
	dst = append(dst, `,"type":`...)
	dst = AppendString(dst, e.Type)
	dst = append(dst, `,"code":`...)
	dst = AppendString(dst, e.Code)
	dst = append(dst, `,"param":`...)
	if e.Param == "" {
		dst = append(dst, "null"...)
	} else {
		dst = AppendString(dst, e.Param)
	}
	dst = append(dst, `,"details":`...)
	dst = append(dst, encodeDetails(e.Details)...)
	return append(dst, "}}"...)
}

func encodeDetails(details map[string]any) []byte {
	if len(details) == 0 {
		return []byte("{}")
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if enc.Encode(details) != nil {
		return []byte("{}")
	}
	return bytes.TrimRight(buf.Bytes(), "\n")
}

// ParseError reads an upstream's error answer. It knows OpenAI's shape, its looser
// relatives (error as a string, message at the top, a list around it) and FastAPI's
// detail. ok is false when there is no message to be found; the rest may be there all the
// same. Texts are cut at 2 KB.
func ParseError(body []byte) (message, typ, code, param string, ok bool) {
	if check(body) != nil {
		return "", "", "", "", false
	}
	root := rootOf(body)
	if root.isArray() {
		it := walk(root)
		root, _ = it.element()
	}
	e := root
	if inner := root.field("error"); inner.isObject() {
		e = inner
	}
	message = firstText(e.field("message"), root.field("error"), root.field("message"), root.field("detail"))
	if message == "" {
		message, param = fastAPIDetail(root.field("detail"))
	}
	if p := e.field("param").clip(maxErrorText); p != "" {
		param = p
	}
	return message, scalarText(e.field("type")), scalarText(e.field("code")), param, message != ""
}

func firstText(candidates ...value) string {
	for _, v := range candidates {
		if s := v.clip(maxErrorText); s != "" {
			return s
		}
	}
	return ""
}

// fastAPIDetail reads the first of a list of validation errors, whose loc is a path
// such as ["body", "messages", 0, "role"].
func fastAPIDetail(detail value) (message, param string) {
	it := walk(detail)
	first, ok := it.element()
	if !ok || !detail.isArray() {
		return "", ""
	}
	path := []byte{}
	loc := walk(first.field("loc"))
	for part, ok := loc.element(); ok && len(path) < maxErrorText; part, ok = loc.element() {
		switch {
		case part.isNumber():
			path = append(append(append(path, '['), part...), ']')
		case part.is("body") && len(path) == 0:
		default:
			if len(path) > 0 {
				path = append(path, '.')
			}
			path = append(path, part.clip(maxErrorText)...)
		}
	}
	return first.field("msg").clip(maxErrorText), clip(string(path), maxErrorText)
}

// scalarText reads a string, or a number as its digits: codes come as both.
func scalarText(v value) string {
	if v.isNumber() {
		return clip(string(v), maxErrorText)
	}
	return v.clip(maxErrorText)
}
