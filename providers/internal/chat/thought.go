package chat

// efforts are the values of reasoning_effort, from least to most.
var efforts = []string{"none", "minimal", "low", "medium", "high", "xhigh", "max"}

// Thinking is the extension thinking, in the shape of Anthropic's Messages API.
type Thinking struct {
	Type   string // enabled, adaptive or disabled
	Budget *int64 // budget_tokens
}

// Reasoning is the extension reasoning, in the shape that gateways have agreed upon.
type Reasoning struct {
	Effort    string // one of reasoning_effort's values
	MaxTokens *int64
	Enabled   *bool
	Exclude   bool // think, but keep the thoughts from the client
}

// Thought is how much the model should think before it answers.
type Thought struct {
	// Enabled is nil where the client leaves it to the provider. An effort or a budget
	// means yes, the effort "none" and a budget of zero mean no.
	Enabled *bool

	Effort  string // "" or one of reasoning_effort's values, never "none"
	Budget  *int64 // in tokens, more than zero
	Exclude bool   // keep the thoughts from the client

	// Field is the top-level field that counted, for errors; empty where none did.
	Field string
}

// Thought weighs the three fields: the most explicit one counts alone, thinking before
// reasoning before reasoning_effort. Whether thoughts are shown is reasoning's to say
// in any case.
func (r *Request) Thought() Thought {
	var t Thought
	switch {
	case r.Thinking != nil:
		t = Thought{Enabled: new(r.Thinking.Type != "disabled"), Budget: r.Thinking.Budget, Field: "thinking"}
	case r.Reasoning != nil && r.Reasoning.says():
		t = Thought{
			Enabled: r.Reasoning.Enabled, Effort: r.Reasoning.Effort, Budget: r.Reasoning.MaxTokens, Field: "reasoning",
		}
	case r.ReasoningEffort != "":
		t = Thought{Effort: r.ReasoningEffort, Field: "reasoning_effort"}
	}
	t.Exclude = r.Reasoning != nil && r.Reasoning.Exclude
	return t.settled()
}

func (g *Reasoning) says() bool { return g.Effort != "" || g.MaxTokens != nil || g.Enabled != nil }

// settled sees to it that the parts do not contradict each other.
func (t Thought) settled() Thought {
	none := t.Effort == "none" || (t.Budget != nil && *t.Budget == 0)
	if t.Enabled == nil && (t.Effort != "" || t.Budget != nil) {
		t.Enabled = new(!none)
	}
	if none || (t.Enabled != nil && !*t.Enabled) {
		t.Enabled, t.Effort, t.Budget = new(false), "", nil
	}
	return t
}

func (r *Request) readThought(o *object) {
	r.ReasoningEffort = o.choice("reasoning_effort", efforts...)
	if o.has("thinking") {
		v := read(o.get("thinking"), "type", "budget_tokens")
		v.need("type")
		r.Thinking = &Thinking{Type: v.choice("type", "enabled", "adaptive", "disabled"), Budget: v.count("budget_tokens")}
		o.keep(v.bad.under("thinking"))
	}
	if o.has("reasoning") {
		v := read(o.get("reasoning"), "effort", "max_tokens", "enabled", "exclude")
		r.Reasoning = &Reasoning{
			Effort: v.choice("effort", efforts...), MaxTokens: v.count("max_tokens"), Enabled: v.flag("enabled"),
		}
		exclude := v.flag("exclude")
		r.Reasoning.Exclude = exclude != nil && *exclude
		o.keep(v.bad.under("reasoning"))
	}
}
