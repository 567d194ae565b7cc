package upstream

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxReset bounds how long a key cools because its share is used up: a reset that is
// hours away is asked after now and then, since limits are raised meanwhile.
const maxReset = 10 * time.Minute

// maxResetNumber is more seconds than any wait has. Larger numbers are times of day.
const maxResetNumber = 1e9

// allowance is a pair of headers that say what is left of a key's share, and when it is
// whole again. The names are in the canonical form in which the transport keeps them.
type allowance struct{ remaining, reset string }

// allowances are OpenAI's, which most compatible servers have too, Anthropic's, and
// those of the IETF's drafts (draft-ietf-httpapi-ratelimit-headers, up to version 6).
var allowances = [...]allowance{
	{"X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"},
	{"X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"},
	{"Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"},
	{"Anthropic-Ratelimit-Tokens-Remaining", "Anthropic-Ratelimit-Tokens-Reset"},
	{"Anthropic-Ratelimit-Input-Tokens-Remaining", "Anthropic-Ratelimit-Input-Tokens-Reset"},
	{"Anthropic-Ratelimit-Output-Tokens-Remaining", "Anthropic-Ratelimit-Output-Tokens-Reset"},
	{"Ratelimit-Remaining", "Ratelimit-Reset"},
}

// exhausted is how long a key cannot be used because nothing remains of its share; zero
// when something does, or nothing is known.
func exhausted(h http.Header, now time.Time) time.Duration {
	wait := time.Duration(0)
	for i := range allowances {
		a := &allowances[i]
		if first(h, a.remaining) == "0" {
			wait = max(wait, readReset(first(h, a.reset), now))
		}
	}
	return wait
}

// resetAfter is how long to wait after a 429 that does not say so itself: until what is
// used up is there again. Where something remains of each share it was too little for
// the call, and the first share that is whole again is worth another try.
func resetAfter(h http.Header, now time.Time) time.Duration {
	if wait := exhausted(h, now); wait > 0 {
		return wait
	}
	wait := time.Duration(0)
	for i := range allowances {
		if reset := readReset(first(h, allowances[i].reset), now); reset > 0 && (wait == 0 || reset < wait) {
			wait = reset
		}
	}
	return wait
}

// first is Header.Get without what that does for names in another form.
func first(h http.Header, name string) string {
	if values := h[name]; len(values) > 0 {
		return strings.TrimSpace(values[0])
	}
	return ""
}

// readReset reads the wait in any of the forms: 6m0s, seconds, or a time (RFC 3339).
// What is none of them, or lies in the past, is no wait.
func readReset(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	var wait time.Duration
	if d, err := time.ParseDuration(value); err == nil {
		wait = d
	} else if s, err := strconv.ParseFloat(value, 64); err == nil {
		if s >= maxResetNumber {
			return 0
		}
		wait = scaled(s, time.Second)
	} else if due, err := time.Parse(time.RFC3339, value); err == nil {
		wait = due.Sub(now)
	}
	return min(max(wait, 0), maxReset)
}
