package chat

import (
	"slices"
	"strconv"
	"strings"

	"sluice/internal/inference"
)

// Policy is what happens to a request that asks for something a provider cannot do.
type Policy string

// The policies, as the setting on_unsupported names them. Anything but drop rejects.
const (
	PolicyReject Policy = "reject"
	PolicyDrop   Policy = "drop"
)

// Bounds on what is told of dropped parameters: it travels in a header.
const (
	maxDroppedNames = 64
	maxDroppedName  = 80
)

// Unsupported gathers what a provider cannot do of one request. The adapter declares
// the fields that it understands with Check, asks for others by hand with Field where
// that depends on more than the name, and tells with Part what it leaves out deeper in
// the request. Each method returns an error under the policy reject and none under the
// policy drop.
type Unsupported struct {
	req      *Request
	provider string
	drop     bool
	dropped  map[string]bool
	more     int
}

// NewUnsupported begins for one request; provider is the name that messages use.
func NewUnsupported(req *Request, provider string, policy Policy) *Unsupported {
	return &Unsupported{req: req, provider: provider, drop: policy == PolicyDrop}
}

// Check reports every field of the request that is not among the understood ones. Those
// that cannot change an answer need not be named; see Field.
func (u *Unsupported) Check(understood ...string) error {
	for _, name := range u.req.Fields {
		if slices.Contains(understood, name) {
			continue
		}
		if err := u.Field(name); err != nil {
			return err
		}
	}
	return nil
}

// Field reports a top-level field. One that is missing, or whose value cannot change an
// answer (user, metadata, n of 1, a penalty of 0, an empty list and the like), is never
// reported, so an adapter may ask for any field without looking first.
func (u *Unsupported) Field(name string) error {
	if u.req.inert[name] || !slices.Contains(u.req.Fields, name) {
		return nil
	}
	return u.report(name, name)
}

// Part reports something inside a field, such as a content part or a tool, that the
// adapter leaves out: path is where it stands (see [Part.Path] and its like), kind what
// it is. It is reported in any case.
func (u *Unsupported) Part(path, kind string) error {
	return u.report(path, kind+" at "+path)
}

func (u *Unsupported) report(path, what string) error {
	path = printable(path)
	if u.drop {
		u.note(path)
		return nil
	}
	e := inference.Errorf(inference.CodeInvalidRequest,
		"%s does not support %s; with the provider's setting `on_unsupported: drop` it would be left out",
		u.provider, printable(what))
	e.Param = path
	return e
}

func (u *Unsupported) note(path string) {
	if u.dropped[path] {
		return
	}
	if len(u.dropped) == maxDroppedNames {
		u.more++
		return
	}
	if u.dropped == nil {
		u.dropped = map[string]bool{}
	}
	u.dropped[path] = true
}

// Dropped names what was left out, sorted and each once; nil when nothing was. The
// names are printable ASCII without commas and fit into a header. When there are more
// than 64, the last element counts the reports that have no name: +12 more.
func (u *Unsupported) Dropped() []string {
	var names []string
	for name := range u.dropped {
		names = append(names, name)
	}
	slices.Sort(names)
	if u.more > 0 {
		names = append(names, "+"+strconv.Itoa(u.more)+" more")
	}
	return names
}

// printable makes a client's own word fit for a message and a header.
func printable(s string) string {
	cut := len(s) > maxDroppedName
	if cut {
		s = s[:maxDroppedName]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == ',' {
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "..."
	}
	return s
}

// bookkeeping are the fields that are for accounting, caching and transport alone, and
// those without which there is no request.
var bookkeeping = []string{
	"model", "messages", "stream", "stream_options", "user", "metadata", "store", "service_tier",
	"safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
}

// isInert reports that a top-level field cannot change an answer, whatever provider
// answers: it is bookkeeping, or its value is what holds without it.
func (r *Request) isInert(name string, v value) bool {
	switch name {
	case "n":
		return r.N == 1
	case "logprobs":
		return !r.Logprobs
	case "top_logprobs":
		return r.TopLogprobs != nil && *r.TopLogprobs == 0
	case "frequency_penalty":
		return equals(r.FrequencyPenalty, 0)
	case "presence_penalty":
		return equals(r.PresencePenalty, 0)
	case "top_p":
		return equals(r.TopP, 1)
	case "top_k":
		return r.TopK == nil
	case "stop":
		return len(r.Stop) == 0
	case "response_format":
		return r.ResponseFormat.Type == "text"
	case "modalities":
		return len(r.Modalities) == 0 || slices.Equal(r.Modalities, []string{"text"})
	case "parallel_tool_calls", "tool_choice", "function_call":
		return len(r.Tools) == 0 || r.isDefaultChoice(name)
	case "web_search_options":
		return false // without options it still asks for a search
	}
	return slices.Contains(bookkeeping, name) || v.empty()
}

func (r *Request) isDefaultChoice(name string) bool {
	if name == "parallel_tool_calls" {
		return r.Legacy || *r.ParallelToolCalls
	}
	return r.ToolChoice.Mode == ChoiceAuto && len(r.ToolChoice.Allowed) == 0
}

func equals(p *float64, f float64) bool { return p != nil && *p == f }
