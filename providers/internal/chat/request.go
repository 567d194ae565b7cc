package chat

import (
	"strconv"

	"sluice/internal/openaiapi"
)

// Bounds on a request, beside those of package openaiapi. They keep what is parsed in
// proportion to the body.
const (
	MaxFields    = 1_000  // at the top
	MaxParts     = 10_000 // in all messages together
	MaxToolCalls = 10_000 // in all messages together
	MaxTools     = 1_000
	MaxStops     = 64
)

// Request is a chat-completions request. A pointer is nil where the client left the
// choice to the provider. Strings and Raw values are parts of one copy of the body.
type Request struct {
	Model    string
	Messages []Message // at least one

	// Tools come from tools or from the legacy functions; Legacy tells which, since the
	// answer has to use the same shape. See [Completion] and [NewStream].
	Tools             []Tool
	ToolChoice        ToolChoice
	ParallelToolCalls *bool
	Legacy            bool

	ResponseFormat ResponseFormat
	Stop           []string // without empty ones

	// MaxTokens and MaxCompletionTokens are as given; OutputLimit says which one counts.
	MaxTokens           *int64
	MaxCompletionTokens *int64

	N                int64 // at least 1
	Seed             *int64
	Temperature      *float64
	TopP             *float64
	TopK             *int64 // extension; nil also for 0 and less, which mean no limit
	FrequencyPenalty *float64
	PresencePenalty  *float64
	LogitBias        Raw // an object
	Logprobs         bool
	TopLogprobs      *int64

	// How much to think, in the three ways that clients say it; Thought weighs them.
	ReasoningEffort string // none, minimal, low, medium, high, xhigh or max
	Thinking        *Thinking
	Reasoning       *Reasoning

	Modalities       []string
	Audio            Raw // an object
	Prediction       Raw // an object
	WebSearchOptions Raw // an object
	Verbosity        string

	User             string
	SafetyIdentifier string
	PromptCacheKey   string
	ServiceTier      string
	Store            *bool
	Metadata         Raw // an object

	Stream       bool
	IncludeUsage bool // stream_options.include_usage

	// Fields names the top-level members that are present and not null, unknown ones
	// too, in order and each once.
	Fields []string

	inert map[string]bool // those of Fields whose value cannot change an answer
}

// ResponseFormat is the form that the answer must have.
type ResponseFormat struct {
	Type string // "", text, json_object or json_schema

	// Of json_schema.
	Name        string
	Description string
	Schema      Raw // an object
	Strict      bool
}

// OutputLimit is how many tokens the answer may have, nil when the client sets no
// limit. max_completion_tokens counts where both are given; max_tokens is its
// deprecated name.
func (r *Request) OutputLimit() *int64 {
	if r.MaxCompletionTokens != nil {
		return r.MaxCompletionTokens
	}
	return r.MaxTokens
}

// Parse checks a request and reads all of it that has a meaning in this format. The
// error is an *inference.Error that names the field at fault, as a path such as
// messages[3].content[1].image_url.url: invalid_json for what is not JSON, and
// invalid_request for all else.
//
// Values that only a provider can judge (a temperature's range, an unknown model) pass.
// Unknown members are left alone, but named in Fields when they stand at the top.
func Parse(body []byte) (*Request, error) {
	base, err := openaiapi.ParseChat(body)
	if err != nil {
		return nil, err
	}
	root := rootOf(string(body))
	o := read(root, topLevel...)
	r := &Request{Model: base.Model, Stream: base.Stream, IncludeUsage: base.IncludeUsage}
	r.readMessages(o)
	r.readTools(o)
	r.readFormat(o)
	r.readSampling(o)
	r.readThought(o)
	r.readRest(o)
	r.readFields(o, root)
	if o.bad != nil {
		return nil, o.bad.toError()
	}
	return r, nil
}

func rootOf(body string) value {
	start := skipSpace(body, 0)
	return value(body[start:skipValue(body, start)])
}

// topLevel names the members that Parse reads. Those that openaiapi.ParseChat has read
// already, and that mean nothing more here, are missing.
var topLevel = []string{
	"messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
	"response_format", "stop", "max_tokens", "max_completion_tokens", "n", "seed", "temperature", "top_p",
	"top_k", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs",
	"reasoning_effort", "thinking", "reasoning", "modalities", "audio", "prediction", "web_search_options",
	"verbosity", "user", "safety_identifier", "prompt_cache_key", "service_tier", "store", "metadata",
}

func (r *Request) readMessages(o *object) {
	messages, bad := parseMessages(o.list("messages", openaiapi.MaxMessages))
	o.keep(bad)
	r.Messages = messages
}

func (r *Request) readFormat(o *object) {
	if !o.has("response_format") {
		return
	}
	format := read(o.get("response_format"), "type", "json_schema")
	format.need("type")
	r.ResponseFormat.Type = format.choice("type", "text", "json_object", "json_schema")
	if r.ResponseFormat.Type == "json_schema" {
		schema := read(format.get("json_schema"), "name", "description", "schema", "strict")
		r.ResponseFormat.Name = schema.text("name")
		r.ResponseFormat.Description = schema.text("description")
		schema.need("schema")
		r.ResponseFormat.Schema = schema.object("schema")
		strict := schema.flag("strict")
		r.ResponseFormat.Strict = strict != nil && *strict
		format.keep(schema.bad.under("json_schema"))
	}
	o.keep(format.bad.under("response_format"))
}

func (r *Request) readSampling(o *object) {
	r.readStop(o)
	r.MaxTokens = o.count("max_tokens")
	r.MaxCompletionTokens = o.count("max_completion_tokens")
	r.N = 1
	if n := o.integer("n"); n != nil {
		r.N = *n // its bounds are checked by openaiapi.ParseChat
	}
	r.Seed = o.integer("seed")
	r.Temperature = o.number("temperature")
	r.TopP = o.number("top_p")
	if r.TopK = o.integer("top_k"); r.TopK != nil && *r.TopK <= 0 {
		r.TopK = nil
	}
	r.FrequencyPenalty = o.number("frequency_penalty")
	r.PresencePenalty = o.number("presence_penalty")
	r.LogitBias = o.object("logit_bias")
	logprobs := o.flag("logprobs")
	r.Logprobs = logprobs != nil && *logprobs
	r.TopLogprobs = o.count("top_logprobs")
	if r.TopLogprobs != nil && *r.TopLogprobs > 0 && !r.Logprobs {
		o.fail("top_logprobs", "is only allowed when logprobs is true")
	}
}

func (r *Request) readStop(o *object) {
	var all []string
	switch o.get("stop").kind() {
	case 0:
	case '"':
		all = []string{o.text("stop")}
	case '[':
		all = o.texts("stop", MaxStops)
	default:
		o.fail("stop", "must be a string or an array of strings")
	}
	for _, s := range all {
		if s != "" {
			r.Stop = append(r.Stop, s)
		}
	}
}

func (r *Request) readRest(o *object) {
	r.Modalities = o.texts("modalities", MaxStops)
	r.Audio = o.object("audio")
	r.Prediction = o.object("prediction")
	r.WebSearchOptions = o.object("web_search_options")
	r.Verbosity = o.text("verbosity")
	r.User = o.text("user")
	r.SafetyIdentifier = o.text("safety_identifier")
	r.PromptCacheKey = o.text("prompt_cache_key")
	r.ServiceTier = o.text("service_tier")
	r.Store = o.flag("store")
	r.Metadata = o.object("metadata")
}

// readFields comes last: what can change an answer is told from the parsed values.
func (r *Request) readFields(o *object, root value) {
	if o.bad != nil {
		return
	}
	seen := map[string]bool{}
	r.inert = map[string]bool{}
	members := 0
	for name, v := range root.members() {
		if members++; members > MaxFields {
			o.keep(faulty("", "the request holds more than "+strconv.Itoa(MaxFields)+" fields"))
			return
		}
		if v.absent() {
			continue
		}
		if !seen[name] {
			seen[name] = true
			r.Fields = append(r.Fields, name)
			r.inert[name] = true
		}
		if !r.isInert(name, v) {
			delete(r.inert, name) // one of several unknown members of that name is enough
		}
	}
}
