package config

import (
	"regexp"
	"strings"
)

// maxExpandedBytes bounds what the variables of one file may grow to in all.
const maxExpandedBytes = 4 << 20

const variableNamePattern = `^[A-Za-z_][A-Za-z0-9_]*$`

// expander replaces ${NAME} and ${NAME:-default} in text. It works on one value at
// a time, after parsing: what a variable holds can never become structure.
type expander struct {
	lookup func(name string) (string, bool)
	grown  int
}

// hasVariable reports whether expand would change text.
func hasVariable(text string) bool { return strings.Contains(text, "${") }

// expand returns text with its variables replaced; $${ stands for ${ itself. The
// problem names a variable, never a value.
func (e *expander) expand(text string) (expanded, problem string) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, "${")
		if !found {
			b.WriteString(text)
			return b.String(), ""
		}
		if escaped, ok := strings.CutSuffix(before, "$"); ok {
			b.WriteString(escaped)
			b.WriteString("${")
			text = after
			continue
		}
		b.WriteString(before)
		reference, rest, closed := strings.Cut(after, "}")
		if !closed {
			return "", "has ${ without }; write $${ for the characters themselves"
		}
		value, problem := e.resolve(reference)
		if problem != "" {
			return "", problem
		}
		b.WriteString(value)
		if e.grown += len(value); e.grown > maxExpandedBytes {
			return "", "makes the file's variables expand to too much text"
		}
		text = rest
	}
}

// resolve returns the value of what stands between the braces.
func (e *expander) resolve(reference string) (value, problem string) {
	name, fallback, hasFallback := strings.Cut(reference, ":-")
	switch {
	case !regexp.MustCompile(variableNamePattern).MatchString(name):
		return "", "has a malformed variable; write ${NAME} or ${NAME:-default}, or $${ for the characters themselves"
	case strings.Contains(fallback, "${"):
		return "", "has a variable inside a variable's default, which is not possible"
	}
	value, set := e.lookup(name)
	switch {
	case hasFallback && value == "":
		return fallback, ""
	case !set:
		return "", "needs the environment variable " + name + ", which is not set; set it, or write ${" + name + ":-default}"
	default:
		return value, ""
	}
}
