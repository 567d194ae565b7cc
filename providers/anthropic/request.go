package anthropic

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers/internal/chat"
)

// maxUserID is the longest metadata.user_id that the API takes, in characters.
const maxUserID = 256

// understood are the top-level fields that are translated, as far as their values allow.
var understood = []string{
	"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format", "stop",
	"max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "thinking", "reasoning", "reasoning_effort",
}

// settings is what a request is translated with.
type settings struct {
	model     string
	stream    bool
	maxTokens int64 // where the request sets no bound
}

// builder writes one request in the API's form. Its first error stays.
type builder struct {
	settings
	req     *chat.Request
	report  *chat.Unsupported
	speech  speech
	system  []block
	turns   []turn
	tools   []*chat.Tool
	skipped map[string]bool // ids of calls that are left out, and with them their results
	out     []byte
	err     error
}

// translate returns the body of the API's POST /v1/messages. The error is an
// *inference.Error that names the field at fault.
func translate(req *chat.Request, report *chat.Unsupported, s settings) ([]byte, error) {
	b := &builder{settings: s, req: req, report: report, speech: speechOf(s.model), skipped: map[string]bool{}}
	b.keep(report.Check(understood...))
	if req.ResponseFormat.Type == "json_object" {
		b.keep(report.Field("response_format")) // an answer in JSON has to have a schema
	}
	b.conversation()
	b.tools = b.offered()
	if b.err == nil && len(b.turns) == 0 {
		e := inference.Errorf(inference.CodeInvalidRequest, "messages must hold at least one message of a user that is not empty")
		e.Param = "messages"
		b.err = e
	}
	if b.err != nil {
		return nil, b.err
	}
	b.write(b.plan())
	if b.err != nil {
		return nil, b.err
	}
	return b.out, nil
}

func (b *builder) keep(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *builder) unsupported(path, kind string) { b.keep(b.report.Part(path, kind)) }

func (b *builder) raw(s string)    { b.out = append(b.out, s...) }
func (b *builder) int(n int64)     { b.out = strconv.AppendInt(b.out, n, 10) }
func (b *builder) text(s string)   { b.out = openaiapi.AppendString(b.out, s) }
func (b *builder) float(f float64) { b.out = strconv.AppendFloat(b.out, f, 'g', -1, 64) }

// write appends the whole request, whose conversation has been read.
func (b *builder) write(p plan) {
	b.raw(`{"model":`)
	b.text(b.model)
	b.raw(`,"max_tokens":`)
	b.int(p.maxTokens)
	if b.stream {
		b.raw(`,"stream":true`)
	}
	if len(b.system) > 0 {
		b.raw(`,"system":`)
		b.writeBlocks(b.system)
	}
	b.writeTurns()
	b.writeTools()
	b.writeChoice(p)
	b.writeThinking(p)
	b.writeSampling(p)
	b.writeStops()
	b.writeUser()
	b.raw(`}`)
}

// writeSampling leaves out what is the default in any case. The newest models take no
// sampling parameters, those before them one of temperature and top_p, and thinking
// goes with hardly any.
func (b *builder) writeSampling(p plan) {
	const leastTopP = 0.95 // beside thinking
	free := b.speech.sampling && !p.thinks()
	temperature, topP := b.req.Temperature, b.req.TopP
	if temperature != nil && *temperature != 1 {
		if !free || *temperature < 0 || *temperature > 1 {
			b.keep(b.report.Field("temperature"))
			temperature = nil
		} else {
			b.raw(`,"temperature":`)
			b.float(*temperature)
		}
	} else {
		temperature = nil
	}
	if topP != nil && *topP != 1 {
		if !b.speech.sampling || (p.thinks() && *topP < leastTopP) || (temperature != nil && !b.speech.both) {
			b.keep(b.report.Field("top_p"))
		} else {
			b.raw(`,"top_p":`)
			b.float(*topP)
		}
	}
	if b.req.TopK != nil {
		if !free {
			b.keep(b.report.Field("top_k"))
		} else {
			b.raw(`,"top_k":`)
			b.int(*b.req.TopK)
		}
	}
}

// writeStops leaves out sequences of white space alone, which the API refuses.
func (b *builder) writeStops() {
	var stops []string
	for _, s := range b.req.Stop {
		if blank(s) {
			b.unsupported("stop", "a stop sequence of white space alone")
			continue
		}
		stops = append(stops, s)
	}
	for i, s := range stops {
		b.raw([]string{`,"stop_sequences":[`, `,`}[min(i, 1)])
		b.text(s)
	}
	if len(stops) > 0 {
		b.raw(`]`)
	}
}

// writeUser passes on who asks, for the provider's watch on abuse.
func (b *builder) writeUser() {
	user := b.req.SafetyIdentifier
	if user == "" {
		user = b.req.User
	}
	if user == "" || utf8.RuneCountInString(user) > maxUserID {
		return
	}
	b.raw(`,"metadata":{"user_id":`)
	b.text(user)
	b.raw(`}`)
}

// offered are the tools that the model may call. The API cannot offer a tool and forbid
// to call it, so those that tool_choice does not allow are not offered.
func (b *builder) offered() []*chat.Tool {
	var tools []*chat.Tool
	allowed := b.req.ToolChoice.Allowed
	for i := range b.req.Tools {
		t := &b.req.Tools[i]
		if t.Type != "function" {
			b.unsupported(t.Path(), "a tool of the type "+t.Type)
			continue
		}
		if len(allowed) == 0 || slices.Contains(allowed, t.Name) {
			tools = append(tools, t)
		}
	}
	return tools
}

func (b *builder) writeTools() {
	for i, t := range b.tools {
		b.raw([]string{`,"tools":[`, `,`}[min(i, 1)])
		b.raw(`{"name":`)
		b.text(t.Name)
		if t.Description != "" {
			b.raw(`,"description":`)
			b.text(t.Description)
		}
		b.raw(`,"input_schema":`)
		b.raw(inputSchema(t.Parameters))
		if t.Strict != nil && *t.Strict {
			b.raw(`,"strict":true`)
		}
		b.cache(t.CacheControl)
		b.raw(`}`)
	}
	if len(b.tools) > 0 {
		b.raw(`]`)
	}
}

// inputSchema is a function's schema with the type that the API wants to be spelled out.
func inputSchema(parameters chat.Raw) string {
	var members map[string]json.RawMessage
	if parameters != "" && json.Unmarshal([]byte(parameters), &members) != nil {
		return string(parameters) // not reached: it was checked to be an object
	}
	switch {
	case len(members) == 0:
		return `{"type":"object","properties":{}}`
	case members["type"] == nil:
		return `{"type":"object",` + string(parameters[1:])
	}
	return string(parameters)
}

func (b *builder) writeChoice(p plan) {
	if len(b.tools) == 0 {
		return
	}
	choice, single := b.req.ToolChoice, b.req.ParallelToolCalls != nil && !*b.req.ParallelToolCalls
	kind, name := "auto", ""
	switch choice.Mode {
	case chat.ChoiceNone:
		b.raw(`,"tool_choice":{"type":"none"}`)
		return
	case chat.ChoiceRequired:
		kind = "any"
	case chat.ChoiceFunction:
		kind, name = "tool", choice.Name
	case chat.ChoiceOther:
		b.keep(b.report.Field(b.choiceField()))
	}
	if kind != "auto" && p.kind == thinkEnabled {
		b.keep(b.report.Field(b.choiceField())) // a model that thinks by a budget cannot be forced to call
		kind, name = "auto", ""
	}
	if kind == "auto" && !single {
		return
	}
	b.raw(`,"tool_choice":{"type":"` + kind + `"`)
	if name != "" {
		b.raw(`,"name":`)
		b.text(name)
	}
	if single {
		b.raw(`,"disable_parallel_tool_use":true`)
	}
	b.raw(`}`)
}

func (b *builder) choiceField() string {
	if slices.Contains(b.req.Fields, "function_call") {
		return "function_call"
	}
	return "tool_choice"
}

// cache appends a hint that the prompt up to here is worth caching. Its form is the
// API's own.
func (b *builder) cache(control chat.Raw) {
	if control != "" {
		b.raw(`,"cache_control":` + string(control))
	}
}

// blank reports that there is nothing but white space.
func blank(s string) bool { return strings.TrimSpace(s) == "" }
