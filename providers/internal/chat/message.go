package chat

import "strconv"

// Role is who speaks in a message.
type Role string

// The roles. The legacy role function is turned into RoleTool.
const (
	RoleSystem    Role = "system"
	RoleDeveloper Role = "developer"
	RoleUser      Role = "user"
	RoleAssistant Role = "assistant"
	RoleTool      Role = "tool"
)

// Message is one turn of the conversation.
type Message struct {
	Role Role
	Name string // of the speaker

	// Content holds the parts; a content that is a string is one part of text, one that
	// is missing, null or "" is no part.
	Content []Part

	// Of an assistant's message.
	Refusal          string
	ReasoningContent string // extension: the thinking before the answer
	ToolCalls        []ToolCall
	AudioID          string // refers to an earlier spoken answer

	// Of a tool's message: the call that it answers, and the name of the function that
	// was called, which the format does not repeat and some providers want.
	ToolCallID string
	ToolName   string

	CacheControl Raw // extension: a hint that the prompt up to here is worth caching
	Extra        Raw // extension: extra_content, which a provider gave and wants back

	index int
}

// Path names the message in errors: messages[2].
func (m *Message) Path() string { return element("messages", m.index) }

// ToolCall is one call of a function that the model asks for.
type ToolCall struct {
	ID        string
	Type      string // "function"; another type is kept by its name, with nothing but the id
	Name      string
	Arguments string // what the model wrote; JSON as a rule
	Extra     Raw    // extension: extra_content, which a provider gave and wants back
}

// messageParser reads the messages in order and remembers the calls that were made.
type messageParser struct {
	parts, calls int
	called       map[string]string // the function's name by the call's id
	legacy       map[string]string // the last call's id by the function's name
}

func parseMessages(list []value) ([]Message, *fault) {
	p := messageParser{called: map[string]string{}, legacy: map[string]string{}}
	all := make([]Message, 0, len(list))
	for i, v := range list {
		m, bad := p.message(v, i)
		if bad != nil {
			return nil, bad.at("messages", i)
		}
		all = append(all, m)
	}
	return all, nil
}

func (p *messageParser) message(v value, index int) (Message, *fault) {
	o := read(v, "role", "name", "content", "refusal", "reasoning_content", "tool_calls", "function_call",
		"audio", "tool_call_id", "cache_control", "extra_content")
	m := Message{
		Name: o.text("name"), CacheControl: o.object("cache_control"), Extra: o.object("extra_content"), index: index,
	}
	o.need("role")
	role := o.choice("role", "system", "developer", "user", "assistant", "tool", "function")
	m.Role = Role(role)
	p.content(o, &m)
	switch role {
	case "assistant":
		m.Refusal = o.text("refusal")
		m.ReasoningContent = o.text("reasoning_content")
		p.toolCalls(o, &m)
		p.legacyCall(o, &m)
		if o.has("audio") {
			audio := read(o.get("audio"), "id")
			m.AudioID = audio.name("id")
			o.keep(audio.bad.under("audio"))
		}
	case "tool":
		p.toolAnswer(o, &m)
	case "function":
		p.legacyAnswer(o, &m)
	}
	return m, o.bad
}

func (p *messageParser) content(o *object, m *Message) {
	v := o.get("content")
	switch v.kind() {
	case 0:
		// A function may have nothing to answer; so may an assistant that calls one.
		if m.Role != RoleAssistant && m.Role != "function" {
			o.need("content")
		}
	case '"':
		if p.parts++; p.parts > MaxParts {
			o.fail("content", "is one part too many: a request holds at most "+strconv.Itoa(MaxParts))
		} else if s := v.text(); s != "" {
			m.Content = []Part{{Type: PartText, Text: s, message: m.index, index: wholeContent}}
		}
	case '[':
		for i, each := range v.elements() {
			if p.parts++; p.parts > MaxParts {
				o.fail(element("content", i), "is one part too many: a request holds at most "+strconv.Itoa(MaxParts))
				return
			}
			part, bad := parsePart(each)
			if bad != nil {
				o.keep(bad.at("content", i))
				return
			}
			part.message, part.index = m.index, i
			m.Content = append(m.Content, part)
		}
	default:
		o.fail("content", "must be a string or an array of parts")
	}
}

func (p *messageParser) toolCalls(o *object, m *Message) {
	for i, v := range o.list("tool_calls", MaxToolCalls) {
		if p.calls++; p.calls > MaxToolCalls {
			o.fail(element("tool_calls", i), "is one call too many: a request holds at most "+strconv.Itoa(MaxToolCalls))
			return
		}
		call, bad := parseToolCall(v)
		if bad != nil {
			o.keep(bad.at("tool_calls", i))
			return
		}
		p.called[call.ID] = call.Name
		m.ToolCalls = append(m.ToolCalls, call)
	}
}

func parseToolCall(v value) (ToolCall, *fault) {
	o := read(v, "id", "type", "function", "extra_content")
	call := ToolCall{ID: o.name("id"), Type: typeFunction, Extra: o.object("extra_content")}
	if o.has("type") {
		call.Type = o.name("type")
	}
	if o.bad != nil || call.Type != typeFunction {
		return call, o.bad
	}
	fn := read(o.get("function"), "name", "arguments")
	call.Name, call.Arguments = fn.name("name"), fn.text("arguments")
	return call, fn.bad.under("function")
}

// legacyCall turns a function_call into a tool call. It has no id, so it gets one that
// depends on the message's place alone and is the same whenever the conversation is
// sent again.
func (p *messageParser) legacyCall(o *object, m *Message) {
	if !o.has("function_call") {
		return
	}
	if len(m.ToolCalls) > 0 {
		o.fail("function_call", "cannot stand beside tool_calls")
		return
	}
	fn := read(o.get("function_call"), "name", "arguments")
	call := ToolCall{
		ID: "function_call_" + strconv.Itoa(m.index), Type: typeFunction,
		Name: fn.name("name"), Arguments: fn.text("arguments"),
	}
	o.keep(fn.bad.under("function_call"))
	p.legacy[call.Name] = call.ID
	m.ToolCalls = []ToolCall{call}
}

func (p *messageParser) toolAnswer(o *object, m *Message) {
	m.ToolCallID = o.name("tool_call_id")
	name, known := p.called[m.ToolCallID]
	if !known {
		o.fail("tool_call_id", "names no call of an earlier message")
	}
	m.ToolName = name
}

// legacyAnswer turns the message of a function into that of a tool.
func (p *messageParser) legacyAnswer(o *object, m *Message) {
	m.Role, m.ToolName = RoleTool, o.name("name")
	m.Name = ""
	id, known := p.legacy[m.ToolName]
	if !known {
		o.fail("name", "names no function_call of an earlier message")
	}
	m.ToolCallID = id
}
