package openai

import (
	"bytes"
	"strings"

	"github.com/tidwall/gjson"
)

// contentFilter is the finish reason of an answer that the upstream's policy held back.
const contentFilter = "content_filter"

// Bounds on what is held back while an answer may still turn out to be a refusal.
const (
	maxHeld      = 16
	maxHeldBytes = 64 << 10
)

const maxRefusalText = 2048

// onlyRefuses reports that a complete answer holds nothing but the upstream's refusal,
// and what is said of it.
func onlyRefuses(answer []byte) (said string, refused bool) {
	if !bytes.Contains(answer, []byte(contentFilter)) {
		return "", false
	}
	gjson.GetBytes(answer, "choices").ForEach(func(_, c gjson.Result) bool {
		m := c.Get("message")
		refused = c.Get("finish_reason").String() == contentFilter && !speaks(m)
		if said == "" {
			said = clip(m.Get("refusal").String())
		}
		return refused
	})
	return said, refused
}

// speaks reports that a message has content or a call.
func speaks(message gjson.Result) bool {
	for _, name := range []string{"content", "tool_calls", "function_call", "audio"} {
		switch v := message.Get(name); {
		case v.Type == gjson.Null: // or there is none
		case v.Type == gjson.String && v.Str == "":
		case v.IsArray() && len(v.Array()) == 0:
		default:
			return true
		}
	}
	return false
}

// refusal watches the beginning of a streamed answer for whether it is nothing but the
// upstream's refusal.
type refusal struct {
	given bool // a choice ended with it

	held, bytes int // what is held back, chunks and their size
}

// add takes the next chunk. It reports false when the answer is none of the kind, or when
// more would have to be held back than is sensible.
func (r *refusal) add(chunk []byte, content int) bool {
	r.held++
	r.bytes += len(chunk)
	if content > 0 || r.held > maxHeld || r.bytes > maxHeldBytes {
		return false
	}
	still := true
	gjson.GetBytes(chunk, "choices").ForEach(func(_, c gjson.Result) bool {
		switch c.Get("finish_reason").String() {
		case "":
		case contentFilter:
			r.given = true
		default:
			still = false
		}
		return still
	})
	return still
}

func clip(s string) string {
	if len(s) > maxRefusalText {
		s = s[:maxRefusalText]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
