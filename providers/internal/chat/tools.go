package chat

import (
	"slices"
	"strings"

	"sluice/internal/openaiapi"
)

const typeFunction = "function"

// Tool is something that the model may call.
type Tool struct {
	Type        string // "function"; another type is kept by its name, and nothing else of it
	Name        string
	Description string
	Parameters  Raw   // a JSON Schema; empty for a function without parameters
	Strict      *bool // whether arguments must match the schema exactly

	CacheControl Raw // extension: a hint that the prompt up to here is worth caching

	list  string
	index int
}

// Path names the tool in errors: tools[2], or functions[2] where it came that way.
func (t *Tool) Path() string { return element(t.list, t.index) }

// ChoiceMode says whether the model may, must or must not call tools.
type ChoiceMode string

// The modes. The empty mode leaves it to the default: auto where there are tools.
const (
	ChoiceNone     ChoiceMode = "none"
	ChoiceAuto     ChoiceMode = "auto"
	ChoiceRequired ChoiceMode = "required" // any tool, but one
	ChoiceFunction ChoiceMode = "function" // the one that Name names

	// ChoiceOther is a choice of a tool that is no function; Name is its type.
	ChoiceOther ChoiceMode = "other"
)

// ToolChoice is which tools the model may call.
type ToolChoice struct {
	Mode ChoiceMode
	Name string

	// Allowed are the only functions that may be called, in mode auto or required; empty
	// when all may.
	Allowed []string
}

// Object returns the arguments of a call as a JSON object, for providers that take
// nothing else. No arguments are an empty object; ok is false when the model wrote
// something that is none.
func (c *ToolCall) Object() (arguments Raw, ok bool) {
	s := strings.Trim(c.Arguments, " \t\r\n")
	if s == "" {
		return "{}", true
	}
	if s[0] != '{' || !openaiapi.Valid([]byte(s)) {
		return "", false
	}
	return Raw(s), true
}

func (r *Request) readTools(o *object) {
	r.Tools = parseTools(o, "tools", parseTool)
	functions := parseTools(o, "functions", parseFunction)
	switch {
	case len(functions) == 0:
	case len(r.Tools) > 0:
		o.fail("functions", "cannot stand beside tools")
	default:
		r.Tools, r.Legacy = functions, true
	}
	if o.has("function_call") {
		if o.has("tool_choice") {
			o.fail("function_call", "cannot stand beside tool_choice")
		}
		r.readChoice(o, "function_call", parseLegacyChoice)
	} else {
		r.readChoice(o, "tool_choice", parseChoice)
	}
	r.ParallelToolCalls = o.flag("parallel_tool_calls")
	if r.Legacy {
		r.ParallelToolCalls = new(false) // the legacy answer has room for one call
	}
}

func parseTools(o *object, list string, parse func(value) (Tool, *fault)) []Tool {
	var all []Tool
	for i, v := range o.list(list, MaxTools) {
		t, bad := parse(v)
		if bad != nil {
			o.keep(bad.at(list, i))
			return nil
		}
		t.list, t.index = list, i
		all = append(all, t)
	}
	return all
}

func parseTool(v value) (Tool, *fault) {
	o := read(v, "type", "function", "cache_control")
	t := Tool{Type: o.name("type"), CacheControl: o.object("cache_control")}
	if o.bad != nil || t.Type != typeFunction {
		return t, o.bad
	}
	fn, bad := parseFunction(o.get("function"))
	if t.CacheControl != "" {
		fn.CacheControl = t.CacheControl
	}
	return fn, bad.under("function")
}

func parseFunction(v value) (Tool, *fault) {
	o := read(v, "name", "description", "parameters", "strict", "cache_control")
	return Tool{
		Type: typeFunction, Name: o.name("name"), Description: o.text("description"),
		Parameters: o.object("parameters"), Strict: o.flag("strict"), CacheControl: o.object("cache_control"),
	}, o.bad
}

// readChoice reads a choice and sees that it chooses among the tools that are given.
func (r *Request) readChoice(o *object, field string, parse func(value) (ToolChoice, *fault)) {
	v := o.get(field)
	if v == "" {
		return
	}
	choice, bad := parse(v)
	o.keep(bad.under(field))
	switch choice.Mode {
	case ChoiceRequired, ChoiceFunction:
		if len(r.Tools) == 0 {
			o.fail(field, "asks for a call, but the request offers no tools")
		}
	}
	for _, name := range append(slices.Clone(choice.Allowed), choice.Name) {
		if name != "" && choice.Mode != ChoiceOther && !r.offers(name) {
			o.fail(field, "names a function that the request does not offer")
		}
	}
	r.ToolChoice = choice
}

func (r *Request) offers(name string) bool {
	return slices.ContainsFunc(r.Tools, func(t Tool) bool { return t.Name == name })
}

func parseChoice(v value) (ToolChoice, *fault) {
	if v.kind() == '"' {
		return parseMode(v, "none", "auto", "required")
	}
	o := read(v, "type", "function", "allowed_tools")
	switch kind := o.name("type"); {
	case o.bad != nil:
		return ToolChoice{}, o.bad
	case kind == "function":
		fn := read(o.get("function"), "name")
		return ToolChoice{Mode: ChoiceFunction, Name: fn.name("name")}, fn.bad.under("function")
	case kind == "allowed_tools":
		choice, bad := parseAllowed(o.get("allowed_tools"))
		return choice, bad.under("allowed_tools")
	default:
		return ToolChoice{Mode: ChoiceOther, Name: kind}, nil
	}
}

func parseLegacyChoice(v value) (ToolChoice, *fault) {
	if v.kind() == '"' {
		return parseMode(v, "none", "auto")
	}
	o := read(v, "name")
	return ToolChoice{Mode: ChoiceFunction, Name: o.name("name")}, o.bad
}

func parseMode(v value, modes ...string) (ToolChoice, *fault) {
	mode := v.text()
	if !slices.Contains(modes, mode) {
		return ToolChoice{}, faulty("", "must be an object or one of "+strings.Join(modes, ", "))
	}
	return ToolChoice{Mode: ChoiceMode(mode)}, nil
}

func parseAllowed(v value) (ToolChoice, *fault) {
	o := read(v, "mode", "tools")
	o.need("mode")
	choice := ToolChoice{Mode: ChoiceMode(o.choice("mode", "auto", "required"))}
	for i, each := range o.list("tools", MaxTools) {
		tool, bad := parseChoice(each)
		if bad == nil && tool.Mode != ChoiceFunction {
			bad = faulty("type", "must be function")
		}
		if bad != nil {
			o.keep(bad.at("tools", i))
			break
		}
		choice.Allowed = append(choice.Allowed, tool.Name)
	}
	if len(choice.Allowed) == 0 {
		o.fail("tools", "must not be empty")
	}
	return choice, o.bad
}
