package ingress

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// preferences are the wishes of a request that Sluice knows (RFC 7240): a server may
// ignore any, so one that is malformed is ignored, too.
type preferences struct {
	async bool          // respond-async
	wait  time.Duration // of the preference wait; negative: it is not given
}

// preferencesOf reads the headers Prefer. Of a preference that is given more than once the
// first counts.
func preferencesOf(h http.Header) preferences {
	p := preferences{wait: -1}
	seen := make(map[string]bool)
	for _, line := range h.Values("Prefer") {
		for _, item := range splitOutsideQuotes(line, ',') {
			item = splitOutsideQuotes(item, ';')[0] // a preference's parameters mean nothing here
			name, value, _ := strings.Cut(item, "=")
			name, value = strings.ToLower(strings.TrimSpace(name)), unquoted(strings.TrimSpace(value))
			if name == "" || seen[name] {
				continue
			}
			seen[name] = true
			switch name {
			case "respond-async":
				p.async = value == "" // an empty value is none
			case "wait":
				if n, err := strconv.ParseUint(value, 10, 31); err == nil {
					p.wait = time.Duration(n) * time.Second
				}
			}
		}
	}
	return p
}

// splitOutsideQuotes splits a header's value at a separator that stands in no quoted
// string.
func splitOutsideQuotes(s string, sep byte) (parts []string) {
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++ // whatever follows is part of the string
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// unquoted returns the content of a quoted string (RFC 9110, 5.6.4), or the token that
// the value is.
func unquoted(s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s)-1; i++ {
		if s[i] == '\\' && i < len(s)-2 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
