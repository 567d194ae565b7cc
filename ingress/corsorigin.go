package ingress

import (
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxOrigin bounds the bytes of an origin: a scheme, the longest host that there is, a port.
const maxOrigin = 512

// pageOrigin is what a browser tells of where a page is from, or what a setting says of
// that: a scheme, the labels of a host and a port, all in lower case. In a setting the first
// label may hold one *, for any part of that label, or the port be one, for any that is
// written.
type pageOrigin struct {
	scheme string
	labels []string // an address in brackets is one label
	port   string   // empty also for the port that the scheme has when there is none
}

// readOrigin reads scheme://host or scheme://host:port. All else, such as a user, a path or
// an empty label, is no origin.
func readOrigin(text string) (o pageOrigin, ok bool) {
	scheme, host, ok := strings.Cut(strings.ToLower(text), "://")
	foreign := strings.ContainsFunc(text, func(c rune) bool { return c > unicode.MaxASCII }) // some are Latin letters in lower case
	if !ok || foreign || len(text) > maxOrigin || !madeOf(scheme, "abcdefghijklmnopqrstuvwxyz0123456789+.-") {
		return o, false
	}
	o.scheme = scheme
	if address, rest, ok := strings.Cut(strings.TrimPrefix(host, "["), "]"); ok && host[0] == '[' {
		if !madeOf(address, "0123456789abcdef:.") || rest != "" && rest[0] != ':' {
			return o, false
		}
		o.labels, host = []string{address}, rest
	}
	name, port, ported := strings.Cut(host, ":")
	if o.labels == nil {
		o.labels = strings.Split(name, ".")
		if slices.ContainsFunc(o.labels, func(l string) bool { return !madeOf(l, "abcdefghijklmnopqrstuvwxyz0123456789_-*") }) {
			return o, false
		}
	}
	if _, err := strconv.ParseUint(port, 10, 16); ported && port != "*" && err != nil {
		return o, false
	}
	if usual := map[string]string{"http": "80", "https": "443"}[scheme]; port != usual {
		o.port = port
	}
	return o, true
}

// madeOf reports whether a text has no other characters than these, and one at least.
func madeOf(text, these string) bool {
	return text != "" && !strings.ContainsFunc(text, func(c rune) bool { return !strings.ContainsRune(these, c) })
}

// lets reports whether a page is from where the setting says.
func (o pageOrigin) lets(page pageOrigin) bool {
	if o.scheme != page.scheme || len(o.labels) != len(page.labels) || !slices.Equal(o.labels[1:], page.labels[1:]) {
		return false
	}
	if o.port != page.port && (o.port != "*" || page.port == "") {
		return false
	}
	before, after, part := strings.Cut(o.labels[0], "*")
	first := page.labels[0]
	return first == o.labels[0] ||
		part && len(first) >= len(before)+len(after) && strings.HasPrefix(first, before) && strings.HasSuffix(first, after)
}

// originRules returns what decides whether a page of an origin may call.
func originRules(settings []string) func(origin string) bool {
	var rules []pageOrigin
	for _, setting := range settings {
		if rule, ok := readOrigin(setting); ok { // the configuration has refused what is none
			rules = append(rules, rule)
		}
	}
	return func(origin string) bool {
		page, ok := readOrigin(origin)
		return ok && !strings.Contains(origin, "*") && slices.ContainsFunc(rules, func(rule pageOrigin) bool { return rule.lets(page) })
	}
}
