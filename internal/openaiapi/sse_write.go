package openaiapi

import "strings"

// Done is the payload that ends a streamed answer.
const Done = "[DONE]"

// AppendEvent appends one server-sent event. An id that is empty, or that could not
// be read back because it holds a line break or NUL, is left out. Data of several
// lines becomes several data fields; a reader joins them with line feeds.
func AppendEvent(dst []byte, id string, data []byte) []byte {
	if id != "" && !strings.ContainsAny(id, "\r\n\x00") {
		dst = append(dst, "id: "...)
		dst = append(dst, id...)
		dst = append(dst, '\n')
	}
	dst = appendLines(dst, "data: ", data)
	return append(dst, '\n')
}

// AppendComment appends a comment, which readers ignore and which keeps a
// connection from looking idle.
func AppendComment(dst []byte, text string) []byte {
	dst = appendLines(dst, ": ", []byte(text))
	return append(dst, '\n')
}

func appendLines(dst []byte, prefix string, text []byte) []byte {
	for {
		end := lineEnd(text, 0)
		if end < 0 {
			dst = append(dst, prefix...)
			dst = append(dst, text...)
			return append(dst, '\n')
		}
		dst = append(dst, prefix...)
		dst = append(dst, text[:end]...)
		dst = append(dst, '\n')
		if text[end] == '\r' && end+1 < len(text) && text[end+1] == '\n' {
			end++
		}
		text = text[end+1:]
	}
}
