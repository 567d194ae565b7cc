package anthropic

import (
	"strings"

	"sluice/providers/internal/chat"
	"sluice/providers/internal/traits"
)

// minBudget is the least that the API takes for thinking.
const minBudget = 1024

// budgets are the tokens for thinking that an effort stands for, on models that want a
// number. Together with the default bound of an answer they stay below 32,000, the most
// that the smallest model with thinking writes. On other models they only widen the
// default bound of an answer, since that counts the thoughts, too.
var budgets = map[string]int64{
	"minimal": minBudget, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 20_480, "max": 23_552,
}

// What the field thinking says.
const (
	thinkUnsaid   = ""
	thinkDisabled = "disabled"
	thinkEnabled  = "enabled"
	thinkAdaptive = "adaptive"
)

// plan is how much the model shall think and write.
type plan struct {
	kind      string
	budget    int64  // of thinkEnabled
	effort    string // of thinkAdaptive; may be empty
	exclude   bool
	maxTokens int64
}

func (p plan) thinks() bool { return p.kind == thinkEnabled || p.kind == thinkAdaptive }

// plan decides on thinking and on the bound of the answer. An effort becomes the
// model's own effort or, on models that know none, a budget.
func (b *builder) plan() plan {
	t := b.req.Thought()
	p := plan{exclude: t.Exclude}
	switch {
	case t.Enabled == nil:
	case !*t.Enabled:
		// Up to the last models that take a budget, thinking is off unless asked for, and
		// the first of them do not know the field.
		if !b.speech.claude || !b.speech.budget {
			p.kind = thinkDisabled
		}
	case b.speech.adaptive && (t.Budget == nil || !b.speech.budget):
		p.kind, p.effort = thinkAdaptive, b.effort(t.Effort)
		if t.Budget != nil {
			b.unsupported(budgetPath(t.Field), "a token budget for thinking")
		}
	default:
		p.kind, p.budget = thinkEnabled, budgetOf(t)
		if b.loopWithoutThoughts() {
			b.unsupported(t.Field, "thinking after a tool call whose thinking blocks (extra_content) were not sent back")
			p.kind, p.budget = thinkUnsaid, 0
		}
	}
	b.limit(&p, t)
	return p
}

func budgetPath(field string) string {
	if field == "reasoning" {
		return "reasoning.max_tokens"
	}
	return "thinking.budget_tokens"
}

// effort is what the model calls an effort. The first ones with efforts have no xhigh.
func (b *builder) effort(asked string) string {
	switch {
	case asked == "minimal":
		return "low"
	case asked == "xhigh" && !b.speech.xhigh:
		return "high"
	}
	return asked
}

func budgetOf(t chat.Thought) int64 {
	switch {
	case t.Budget != nil:
		return max(*t.Budget, minBudget)
	case t.Effort != "":
		return budgets[t.Effort]
	}
	return budgets["medium"]
}

// limit sets max_tokens, which counts thoughts as well, as the client's own limit does.
// A budget must be smaller, and leaves a quarter of the client's limit to the answer if
// it can. The limit by default has the thoughts added.
func (b *builder) limit(p *plan, t chat.Thought) {
	asked := b.req.OutputLimit()
	if asked == nil {
		p.maxTokens = b.maxTokens + p.budget
		if p.kind == thinkAdaptive || (b.speech.claude && !b.speech.budget && p.kind == thinkUnsaid) {
			effort := t.Effort
			if effort == "" {
				effort = "high" // the models' own default
			}
			p.maxTokens += budgets[effort]
		}
		b.fit(p)
		return
	}
	p.maxTokens = *asked
	if p.kind != thinkEnabled {
		return
	}
	p.budget = min(p.budget, max(p.maxTokens-p.maxTokens/4, minBudget))
	if p.budget >= p.maxTokens {
		b.unsupported(t.Field, "thinking within a limit of 1024 output tokens or less")
		p.kind, p.budget = thinkUnsaid, 0
	}
}

// fit keeps the bound that was chosen here, and a budget within it, below what the model
// can write.
func (b *builder) fit(p *plan) {
	most := int64(traits.Of(families, general, b.model).OutputTokens)
	if most == 0 || p.maxTokens <= most {
		return
	}
	p.maxTokens = most
	if p.kind == thinkEnabled && p.budget >= most {
		p.budget = most - most/4
	}
}

// loopWithoutThoughts reports that the request hands in results of tool calls that came
// without their thinking blocks, which the API refuses when thinking has a budget.
func (b *builder) loopWithoutThoughts() bool {
	last := len(b.turns) - 1
	if last < 1 || len(b.turns[last].results) == 0 {
		return false
	}
	first := b.turns[last-1].rest[0].kind
	return first != blockThinking && first != blockRedacted
}

// writeThinking appends the fields thinking and output_config.
func (b *builder) writeThinking(p plan) {
	switch p.kind {
	case thinkDisabled:
		b.raw(`,"thinking":{"type":"disabled"}`)
	case thinkEnabled:
		b.raw(`,"thinking":{"type":"enabled","budget_tokens":`)
		b.int(p.budget)
		if p.exclude && b.speech.claude {
			b.raw(`,"display":"omitted"`)
		}
		b.raw(`}`)
	case thinkAdaptive:
		// The newer models keep their thoughts to themselves unless asked for a summary.
		display := "summarized"
		if p.exclude {
			display = "omitted"
		}
		b.raw(`,"thinking":{"type":"adaptive","display":"` + display + `"}`)
	}
	config := ""
	if p.kind == thinkAdaptive && p.effort != "" {
		config += `,"effort":"` + p.effort + `"`
	}
	if b.req.ResponseFormat.Type == "json_schema" {
		config += `,"format":{"type":"json_schema","schema":` + string(b.req.ResponseFormat.Schema) + `}`
	}
	if config != "" {
		b.raw(`,"output_config":{` + strings.TrimPrefix(config, ",") + `}`)
	}
}
