package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
)

// Bounds on what a request may ask for in its field sim.
const (
	minStatus     = 400
	maxStatus     = 599
	maxRetryAfter = 24 * time.Hour // adapters believe no more of an upstream either
	maxDelay      = time.Hour
	maxRate       = 1e9 // tokens per second
	maxTimes      = 1000
	maxNameRunes  = 64 // what is repeated of an unknown member's name
)

// faultKind is a way to misbehave.
type faultKind int

const (
	faultNone faultKind = iota
	faultStatus
	faultUnreachable
	faultHang
	faultMalformed
	faultCut
	faultRefusal  // the request is refused
	faultFiltered // the answer is held back
)

// fault is how and where a call goes wrong.
type fault struct {
	kind       faultKind
	after      int // steps of the answer that come before
	status     int // of faultStatus
	retryAfter time.Duration
	refusal    inference.Refusal // of faultRefusal
}

// reach returns how many of an answer's steps are given.
func (f fault) reach(steps int) int {
	if f.kind == faultNone {
		return steps
	}
	return min(f.after, steps)
}

// drill is what a request says in its field sim. Members that are not given are nil,
// or false.
type drill struct {
	status, cutAfter, times, tokens *int
	retryAfter, delay               *time.Duration
	rate                            *float64
	malformed, unreachable, hang    bool
	refusal                         string
}

// field is a member of the request as it came. It notes when there are two of it, of
// which readers of JSON disagree about which one counts.
type field struct {
	raw   []byte
	twice bool
}

// UnmarshalJSON is called for each member of the name.
func (f *field) UnmarshalJSON(raw []byte) error {
	f.twice = f.raw != nil
	f.raw = bytes.Clone(raw)
	return nil
}

// parseDrill reads the field sim; nil stands for a request without it. Errors are
// *inference.Error and name the member at fault.
func parseDrill(f field, kind inference.Kind) (*drill, error) {
	switch {
	case f.twice:
		return nil, refuse("sim", "sim is given more than once")
	case f.raw == nil || isNull(f.raw):
		return nil, nil //nolint:nilnil // a request without the field is the usual one
	}
	dec := json.NewDecoder(bytes.NewReader(f.raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, refuse("sim", "sim must be an object")
	}
	d, seen := &drill{}, map[string]bool{}
	for dec.More() {
		name, raw, err := nextMember(dec)
		if err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, refuse("sim."+name, "sim.%s is given more than once", name)
		}
		read, known := members[name]
		if !known {
			return nil, refuse(fmt.Sprintf("sim.%.*s", maxNameRunes, name), "sim has no member %.*q", maxNameRunes, name)
		}
		seen[name] = true
		if want := read(d, raw); want != "" && !isNull(raw) {
			return nil, refuse("sim."+name, "sim.%s must be %s", name, want)
		}
	}
	return d, d.check(kind)
}

func nextMember(dec *json.Decoder) (name string, raw json.RawMessage, err error) {
	token, err := dec.Token()
	name, ok := token.(string)
	if err != nil || !ok || dec.Decode(&raw) != nil {
		return "", nil, refuse("sim", "sim must be an object")
	}
	return name, raw, nil
}

func isNull(raw []byte) bool { return string(raw) == "null" }

func refuse(param, format string, args ...any) error {
	e := inference.Errorf(inference.CodeInvalidRequest, format, args...)
	e.Param = param
	return e
}

// members read the field's members. Each returns what its value must be when it is
// not; null is for the caller to let pass.
var members = map[string]func(d *drill, raw []byte) string{
	"status":            func(d *drill, raw []byte) string { return readInt(&d.status, raw, minStatus, maxStatus) },
	"cut_after":         func(d *drill, raw []byte) string { return readInt(&d.cutAfter, raw, 0, MaxCompletionTokens) },
	"completion_tokens": func(d *drill, raw []byte) string { return readInt(&d.tokens, raw, 1, MaxCompletionTokens) },
	"times":             func(d *drill, raw []byte) string { return readInt(&d.times, raw, 1, maxTimes) },
	"retry_after":       func(d *drill, raw []byte) string { return readDuration(&d.retryAfter, raw, maxRetryAfter) },
	"first_token_delay": func(d *drill, raw []byte) string { return readDuration(&d.delay, raw, maxDelay) },
	"tokens_per_second": func(d *drill, raw []byte) string { return readRate(&d.rate, raw) },
	"malformed":         func(d *drill, raw []byte) string { return readBool(&d.malformed, raw) },
	"unreachable":       func(d *drill, raw []byte) string { return readBool(&d.unreachable, raw) },
	"refusal":           func(d *drill, raw []byte) string { return readRefusal(&d.refusal, raw) },
	"hang":              func(d *drill, raw []byte) string { return readBool(&d.hang, raw) },
}

func readInt(to **int, raw []byte, least, most int) string {
	n, err := strconv.Atoi(string(raw))
	if err != nil || n < least || n > most {
		return fmt.Sprintf("an integer from %d to %d", least, most)
	}
	*to = &n
	return ""
}

func readRate(to **float64, raw []byte) string {
	var rate *float64
	if json.Unmarshal(raw, &rate) != nil || rate == nil || *rate < 0 || *rate > maxRate {
		return fmt.Sprintf("a number from 0 to %g", maxRate)
	}
	*to = rate
	return ""
}

func readBool(to *bool, raw []byte) string {
	if string(raw) != "true" && string(raw) != "false" {
		return "true or false"
	}
	*to = string(raw) == "true"
	return ""
}

// filtered is what sim.refusal is for an answer that is held back. Its other values are
// the refusals' own names.
const filtered = "content_filter"

func readRefusal(to *string, raw []byte) string {
	kinds := []string{string(inference.RefusalContext), string(inference.RefusalContent), filtered}
	var kind string
	if json.Unmarshal(raw, &kind) != nil || !slices.Contains(kinds, kind) {
		return "one of " + strings.Join(kinds, ", ")
	}
	*to = kind
	return ""
}

// readDuration takes a text such as "1.5s", or a number of seconds.
func readDuration(to **time.Duration, raw []byte, most time.Duration) string {
	want := "a duration such as \"1.5s\" or a number of seconds, from 0 to " + most.String()
	var text string
	var seconds float64
	var d time.Duration
	if json.Unmarshal(raw, &text) == nil {
		parsed, err := time.ParseDuration(text)
		if err != nil {
			return want
		}
		d = parsed
	} else if json.Unmarshal(raw, &seconds) == nil && math.Abs(seconds) <= most.Seconds() {
		d = time.Duration(seconds * float64(time.Second))
	} else {
		return want
	}
	if d < 0 || d > most {
		return want
	}
	*to = &d
	return ""
}

// check refuses what cannot be followed together.
func (d *drill) check(kind inference.Kind) error {
	var wrong []string
	for _, w := range []struct {
		name string
		set  bool
	}{
		{"status", d.status != nil},
		{"unreachable", d.unreachable},
		{"hang", d.hang},
		{"malformed", d.malformed},
		{"refusal", d.refusal != ""},
		{"cut_after", d.cutAfter != nil},
	} {
		if w.set {
			wrong = append(wrong, w.name)
		}
	}
	switch {
	case d.clash(len(wrong)):
		return refuse("sim."+wrong[1], "sim.%s cannot go with sim.%s", wrong[1], wrong[0])
	case d.retryAfter != nil && d.status == nil:
		return refuse("sim.retry_after", "sim.retry_after needs sim.status")
	case d.times != nil && len(wrong) == 0:
		return refuse("sim.times", "sim.times needs one of status, unreachable, hang, malformed, refusal and cut_after")
	case kind != inference.KindEmbeddings:
		return nil
	case d.tokens != nil:
		return refuse("sim.completion_tokens", "sim.completion_tokens means nothing for embeddings")
	case d.rate != nil:
		return refuse("sim.tokens_per_second", "sim.tokens_per_second means nothing for embeddings")
	case d.refusal == filtered:
		return refuse("sim.refusal", "sim.refusal cannot be %s for embeddings", filtered)
	}
	return nil
}

// clash says whether the given number of ways to misbehave is one too many: only to
// hang and to be malformed may wait for cut_after.
func (d *drill) clash(ways int) bool {
	if d.cutAfter != nil && (d.hang || d.malformed) {
		return ways > 2
	}
	return ways > 1
}

// fault returns how the request wants its call to go wrong.
func (d *drill) fault() fault {
	var f fault
	if d.cutAfter != nil {
		f = fault{kind: faultCut, after: *d.cutAfter}
	}
	switch {
	case d.malformed:
		f.kind = faultMalformed
	case d.hang:
		f.kind = faultHang
	case d.unreachable:
		f.kind = faultUnreachable
	case d.refusal == filtered:
		f.kind = faultFiltered
	case d.refusal != "":
		f.kind, f.refusal = faultRefusal, inference.Refusal(d.refusal)
	case d.status != nil:
		f.kind, f.status = faultStatus, *d.status
		if d.retryAfter != nil {
			f.retryAfter = *d.retryAfter
		}
	}
	return f
}
