package anthropic

import "strings"

// speech is what the models of one generation accept of a request, as the API reference and its
// pages on thinking and on migration say. What only single models refuse is theirs to
// tell: their errors reach the client.
type speech struct {
	claude   bool // one of Anthropic's own
	budget   bool // thinking with a budget of tokens (thinking.type enabled)
	adaptive bool // thinking as the model sees fit, steered by output_config.effort
	sampling bool // temperature, top_p and top_k
	both     bool // temperature and top_p in one request
	xhigh    bool // that effort
}

// The generations at which the API changed, as 10*major+minor.
const (
	oneOfTemperatureAndTopP = 41
	adaptiveThinking        = 46
	adaptiveOnly            = 47
	newest                  = 1000
)

// speechOf tells it by the model's name. A model of others that is served through the
// same API is taken to speak its first form, which has budgets; a Claude of unknown age
// is taken for a new one.
func speechOf(model string) speech {
	age, claude := generation(model)
	if !claude {
		return speech{budget: true, sampling: true, both: true}
	}
	return speech{
		claude:   true,
		budget:   age < adaptiveOnly,
		adaptive: age >= adaptiveThinking,
		sampling: age < adaptiveOnly,
		both:     age < oneOfTemperatureAndTopP,
		xhigh:    age >= adaptiveOnly,
	}
}

// generation reads the version from names such as claude-3-7-sonnet-20250219,
// claude-opus-4-1 and anthropic.claude-sonnet-4@20250514.
func generation(model string) (age int, claude bool) {
	_, rest, claude := strings.Cut(strings.ToLower(model), "claude")
	if !claude {
		return 0, false
	}
	words := strings.FieldsFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') })
	for i, word := range words {
		major, ok := version(word)
		if !ok {
			continue
		}
		minor := 0
		if i+1 < len(words) {
			minor, _ = version(words[i+1])
		}
		return 10*major + min(minor, 9), true
	}
	return newest, true
}

// version reads a number of one or two digits; a longer one is a date.
func version(word string) (int, bool) {
	if word == "" || len(word) > 2 {
		return 0, false
	}
	n := 0
	for _, c := range []byte(word) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}
