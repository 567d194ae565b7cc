package gemini

import (
	"math"
	"strings"
)

// The upstream says how much to think in two ways: up to Gemini 2.5 as a budget in
// tokens, from Gemini 3 on as a level, of which one cannot switch thinking off. The
// budgets of efforts are those of Google's own OpenAI-compatible API. The lowest level,
// MINIMAL, is not known to every model, so LOW is the least that is asked for.
var (
	effortBudgets = map[string]int64{
		"minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576, "max": 24_576,
	}
	effortLevels = map[string]string{
		"minimal": "LOW", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "HIGH", "max": "HIGH",
	}
)

// dynamicBudget leaves it to the model how much to think.
const dynamicBudget = -1

// takesBudgets tells the models up to Gemini 2.5 from those that take levels. A name
// that says no version means a current one.
func takesBudgets(model string) bool {
	version, ok := strings.CutPrefix(model, "gemini-")
	return ok && (strings.HasPrefix(version, "1") || strings.HasPrefix(version, "2"))
}

// thinking writes thinkingConfig. A budget in tokens is passed on to every model: newer
// ones take it, too. Thoughts are asked for when the client asks the model to think and
// does not exclude them; a client that says nothing gets none.
func (t *translator) thinking() error {
	thought := t.req.Thought()
	if thought.Enabled == nil {
		return nil
	}
	budgets := takesBudgets(t.model)
	if !*thought.Enabled && !budgets {
		return t.unsupported.Field(thought.Field)
	}
	w := &t.w
	w.key("thinkingConfig")
	w.open('{')
	switch {
	case !*thought.Enabled:
		w.integer("thinkingBudget", 0)
	case thought.Budget != nil:
		w.integer("thinkingBudget", min(*thought.Budget, math.MaxInt32))
	case thought.Effort != "" && budgets:
		w.integer("thinkingBudget", effortBudgets[thought.Effort])
	case thought.Effort != "":
		w.text("thinkingLevel", effortLevels[thought.Effort])
	case budgets:
		w.integer("thinkingBudget", dynamicBudget)
	}
	if *thought.Enabled && !thought.Exclude {
		w.raw("includeThoughts", "true")
	}
	w.closes('}')
	return nil
}
