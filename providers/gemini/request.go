package gemini

import (
	"math"
	"slices"
	"strings"

	"sluice/internal/inference"
	"sluice/providers/internal/chat"
)

// understood are the top-level fields of a request that have a counterpart upstream.
// parallel_tool_calls, logit_bias, verbosity, prediction, audio and web_search_options
// have none.
var understood = []string{
	"tools", "tool_choice", "functions", "function_call", "response_format", "stop", "max_tokens",
	"max_completion_tokens", "n", "seed", "temperature", "top_p", "top_k", "frequency_penalty",
	"presence_penalty", "logprobs", "top_logprobs", "reasoning_effort", "thinking", "reasoning", "modalities",
}

// translateRequest writes the body of generateContent (GenerateContentRequest).
func translateRequest(req *chat.Request, model string, unsupported *chat.Unsupported, size int) ([]byte, error) {
	if err := unsupported.Check(understood...); err != nil {
		return nil, err
	}
	t := &translator{req: req, model: model, unsupported: unsupported}
	t.w.out = make([]byte, 0, size+size/4+256)
	t.w.open('{')
	for _, part := range []func() error{t.conversation, t.tools, t.config} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	t.w.closes('}')
	return t.w.out, nil
}

// translator writes one request.
type translator struct {
	req         *chat.Request
	model       string
	unsupported *chat.Unsupported
	w           writer

	turn speaker // whose content is open
}

// config writes generationConfig, if there is anything in it.
func (t *translator) config() error {
	r, w := t.req, &t.w
	before := len(w.out)
	w.key("generationConfig")
	w.open('{')
	empty := len(w.out)
	w.number("temperature", r.Temperature)
	w.number("topP", r.TopP)
	if r.TopK != nil {
		w.integer("topK", min(*r.TopK, math.MaxInt32))
	}
	if limit := r.OutputLimit(); limit != nil {
		w.integer("maxOutputTokens", min(*limit, math.MaxInt32))
	}
	if len(r.Stop) > 0 {
		w.texts("stopSequences", r.Stop)
	}
	if r.N > 1 {
		w.integer("candidateCount", r.N)
	}
	w.number("presencePenalty", r.PresencePenalty)
	w.number("frequencyPenalty", r.FrequencyPenalty)
	for _, part := range []func() error{t.seed, t.logprobs, t.format, t.modalities, t.thinking} {
		if err := part(); err != nil {
			return err
		}
	}
	if len(w.out) == empty {
		w.out = w.out[:before]
		return nil
	}
	w.closes('}')
	return nil
}

// seed is 32 bits wide upstream.
func (t *translator) seed() error {
	seed := t.req.Seed
	if seed == nil {
		return nil
	}
	if *seed < math.MinInt32 || *seed > math.MaxInt32 {
		return t.unsupported.Field("seed")
	}
	t.w.integer("seed", *seed)
	return nil
}

func (t *translator) logprobs() error {
	if t.req.Logprobs {
		t.w.raw("responseLogprobs", "true")
		if t.req.TopLogprobs != nil && *t.req.TopLogprobs > 0 {
			t.w.integer("logprobs", *t.req.TopLogprobs)
		}
	}
	return nil
}

// format asks for JSON. responseJsonSchema takes JSON Schema as it stands;
// responseSchema, its elder, takes a dialect of OpenAPI.
func (t *translator) format() error {
	format := t.req.ResponseFormat
	if format.Type == "json_object" || format.Type == "json_schema" {
		t.w.text("responseMimeType", "application/json")
	}
	if format.Type == "json_schema" {
		t.w.raw("responseJsonSchema", string(format.Schema))
	}
	return nil
}

// modalities lets models draw that can. The spoken answers of the upstream are raw
// samples at best, and have no place in an answer here.
func (t *translator) modalities() error {
	asked := t.req.Modalities
	if !slices.Contains(asked, "image") {
		return t.unsupported.Field("modalities") // unless it asks for text alone
	}
	var names []string
	for _, m := range asked {
		if m != "text" && m != "image" {
			return t.unsupported.Field("modalities")
		}
		names = append(names, strings.ToUpper(m))
	}
	t.w.texts("responseModalities", names)
	return nil
}

// tools writes the functions that the model may call and how it is to choose.
func (t *translator) tools() error {
	var offered []*chat.Tool
	for i := range t.req.Tools {
		tool := &t.req.Tools[i]
		if tool.Type == "function" {
			offered = append(offered, tool)
		} else if err := t.unsupported.Part(tool.Path(), tool.Type+" tool"); err != nil {
			return err
		}
	}
	if t.req.ToolChoice.Mode == chat.ChoiceOther {
		if err := t.unsupported.Field("tool_choice"); err != nil {
			return err
		}
	}
	if len(offered) == 0 {
		return nil
	}
	w := &t.w
	w.key("tools")
	w.out = append(w.out, `[{"functionDeclarations":[`...)
	strict := false
	for _, tool := range offered {
		w.open('{')
		w.text("name", tool.Name)
		w.optional("description", tool.Description)
		if !isEmptyObject(tool.Parameters) {
			w.raw("parametersJsonSchema", string(tool.Parameters)) // JSON Schema as it stands
		}
		w.closes('}')
		strict = strict || tool.Strict != nil && *tool.Strict
	}
	w.out = append(w.out, "]}]"...)
	t.choice(strict)
	return nil
}

// choice writes toolConfig. The mode VALIDATED is AUTO with calls that are made to follow
// their schema, as strict functions ask for; like ANY, which does so too, it may be
// bound to some of the functions.
func (t *translator) choice(strict bool) {
	mode, allowed := "", t.req.ToolChoice.Allowed
	switch t.req.ToolChoice.Mode {
	case chat.ChoiceNone:
		mode = "NONE"
	case chat.ChoiceRequired:
		mode = "ANY"
	case chat.ChoiceFunction:
		mode, allowed = "ANY", []string{t.req.ToolChoice.Name}
	case chat.ChoiceAuto, chat.ChoiceOther, "":
		if strict || len(allowed) > 0 {
			mode = "VALIDATED"
		}
	}
	if mode == "" {
		return // AUTO is what holds without
	}
	w := &t.w
	w.key("toolConfig")
	w.out = append(w.out, `{"functionCallingConfig":{`...)
	w.text("mode", mode)
	if len(allowed) > 0 {
		w.texts("allowedFunctionNames", allowed)
	}
	w.out = append(w.out, "}}"...)
}

// isEmptyObject reports that a schema says nothing. The upstream wants none then.
func isEmptyObject(schema chat.Raw) bool {
	return strings.Trim(string(schema), "{} \t\r\n") == ""
}

func invalid(path, problem string) error {
	e := inference.Errorf(inference.CodeInvalidRequest, "%s %s", path, problem)
	e.Param = path
	return e
}
