package anthropic

import (
	"strconv"
	"strings"

	"sluice/providers/internal/chat"
)

// turn is one or more messages of one side. The API wants the sides to take turns, the
// user first, and results of tools before anything else in a turn.
type turn struct {
	role    chat.Role
	results []block
	rest    []block
}

// conversation reads the messages. System and developer messages all go to the field
// system, wherever they stand, because the API has one place for them.
func (b *builder) conversation() {
	for i := range b.req.Messages {
		if b.err != nil {
			return
		}
		m := &b.req.Messages[i]
		if m.Name != "" {
			b.unsupported(m.Path()+".name", "the name of a speaker")
		}
		switch m.Role {
		case chat.RoleSystem, chat.RoleDeveloper:
			b.system = append(b.system, marked(b.parts(m, onlyText), m.CacheControl)...)
		case chat.RoleUser:
			b.say(chat.RoleUser, marked(b.parts(m, anyMedia), m.CacheControl))
		case chat.RoleAssistant:
			b.assistant(m)
		case chat.RoleTool:
			b.toolResult(m)
		}
	}
	b.trimPrefill()
}

// say adds blocks to the turn of that side, or begins it.
func (b *builder) say(role chat.Role, blocks []block) {
	if len(blocks) > 0 {
		t := b.turn(role)
		t.rest = append(t.rest, blocks...)
	}
}

func (b *builder) turn(role chat.Role) *turn {
	if last := len(b.turns) - 1; last < 0 || b.turns[last].role != role {
		b.turns = append(b.turns, turn{role: role})
	}
	return &b.turns[len(b.turns)-1]
}

func (b *builder) toolResult(m *chat.Message) {
	if b.skipped[m.ToolCallID] {
		return
	}
	t := b.turn(chat.RoleUser)
	t.results = append(t.results, block{
		kind: blockToolResult, id: toolID(m.ToolCallID), inner: b.parts(m, anyMedia), cache: m.CacheControl,
	})
}

// assistant reads what the model said, thought and called in an earlier turn. Of its
// thoughts only those can be given back that carry the API's signature, which are in
// extra_content; reasoning_content alone is left out, as every turn's thoughts are once
// they are over.
func (b *builder) assistant(m *chat.Message) {
	said := b.parts(m, onlyText)
	if !blank(m.Refusal) {
		said = append(said, block{kind: blockText, text: m.Refusal})
	}
	if m.AudioID != "" {
		b.unsupported(m.Path()+".audio", "a spoken answer")
	}
	thoughts, bad := readThoughts(m.Extra, m.Path())
	b.keep(bad)
	calls := b.calls(m)
	blocks := marked(weave(thoughts, said, calls), m.CacheControl)
	if len(blocks) > 0 && len(b.turns) == 0 {
		b.unsupported(m.Path(), "a message of the assistant before the first of a user")
		for _, call := range m.ToolCalls {
			b.skipped[call.ID] = true
		}
		return
	}
	b.say(chat.RoleAssistant, blocks)
}

func (b *builder) calls(m *chat.Message) []block {
	var all []block
	for i := range m.ToolCalls {
		call := &m.ToolCalls[i]
		path := m.Path() + ".tool_calls[" + strconv.Itoa(i) + "]"
		if call.Type != "function" {
			b.unsupported(path, "a call of the type "+call.Type)
			b.skipped[call.ID] = true
			continue
		}
		input, ok := call.Object()
		if !ok {
			b.unsupported(path+".function.arguments", "a call with arguments that are no JSON object")
			input = "{}"
		}
		all = append(all, block{kind: blockToolUse, id: toolID(call.ID), text: call.Name, input: input})
	}
	return all
}

// weave puts thinking blocks to where they stood among the other blocks, as far as the
// OpenAI form can tell: it has one text, followed by the calls.
func weave(thoughts []thought, said, calls []block) []block {
	if len(thoughts) == 0 || len(said)+len(calls) == 0 {
		return append(said, calls...)
	}
	all := make([]block, 0, len(thoughts)+len(said)+len(calls))
	next := 0
	upTo := func(place int) {
		for ; next < len(thoughts) && thoughts[next].After <= place; next++ {
			all = append(all, thoughts[next].block())
		}
	}
	upTo(0)
	all = append(all, said...)
	for i, call := range calls {
		upTo(i + 1)
		all = append(all, call)
	}
	return all // a thought behind everything else is refused, and nothing hangs on it
}

// marked puts a message's cache hint onto the last of its blocks that can carry one.
func marked(blocks []block, control chat.Raw) []block {
	for i := len(blocks) - 1; i >= 0 && control != ""; i-- {
		if blocks[i].kind != blockThinking && blocks[i].kind != blockRedacted {
			blocks[i].cache = control
			break
		}
	}
	return blocks
}

// trimPrefill cuts the space at the end of a conversation that ends with words of the
// assistant: the API goes on from there, and refuses to do so after a space.
func (b *builder) trimPrefill() {
	if len(b.turns) == 0 {
		return
	}
	last := &b.turns[len(b.turns)-1]
	if n := len(last.rest); last.role == chat.RoleAssistant && last.rest[n-1].kind == blockText {
		last.rest[n-1].text = strings.TrimRight(last.rest[n-1].text, " \t\r\n")
	}
}

func (b *builder) writeTurns() {
	for i := range b.turns {
		t := &b.turns[i]
		b.raw([]string{`,"messages":[`, `,`}[min(i, 1)])
		b.raw(`{"role":"` + string(t.role) + `","content":`)
		b.writeBlocks(append(t.results, t.rest...))
		b.raw(`}`)
	}
	b.raw(`]`)
}
