package openaiapi

import (
	"strconv"

	"sluice/internal/inference"
)

const (
	// maxTokenCount is beyond any count that can be true; a larger number is noise.
	maxTokenCount = 1_000_000_000_000

	// bytesPerToken is the usual rule of thumb for an estimate.
	bytesPerToken = 4
)

// UsageOf reads the usage and the model's name from an answer or a chunk, which
// must have been checked to be JSON. Usage.Known is false when the answer reports
// no usage, or numbers that cannot be true: negative, fractional or absurdly large.
func UsageOf(answer []byte) (usage inference.Usage, model string) {
	root := rootOf(answer)
	return readUsage(root.field("usage")), root.field("model").clip(MaxModelBytes)
}

func readUsage(v value) inference.Usage {
	if !v.isObject() {
		return inference.Usage{}
	}
	var u inference.Usage
	promptOK, completionOK := false, false
	it := walk(v)
	for m, ok := it.member(); ok; m, ok = it.member() {
		switch string(m.key) {
		case "prompt_tokens":
			u.PromptTokens, promptOK = count(m.val)
			if !promptOK && !m.val.absent() {
				return inference.Usage{}
			}
		case "completion_tokens":
			u.CompletionTokens, completionOK = count(m.val)
			if !completionOK && !m.val.absent() {
				return inference.Usage{}
			}
		case "prompt_tokens_details":
			u.CachedTokens, _ = count(m.val.field("cached_tokens"))
		case "completion_tokens_details":
			u.ReasoningTokens, _ = count(m.val.field("reasoning_tokens"))
		}
	}
	if !promptOK && !completionOK {
		return inference.Usage{}
	}
	u.CachedTokens = min(u.CachedTokens, u.PromptTokens)
	u.ReasoningTokens = min(u.ReasoningTokens, u.CompletionTokens)
	u.Known = true
	return u
}

// count reads a number of tokens. A whole number spelled as a float counts too.
func count(v value) (int64, bool) {
	if !v.isNumber() || len(v) > 40 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil {
		f, err := strconv.ParseFloat(string(v), 64)
		if err != nil || f < 0 || f > maxTokenCount || f != float64(int64(f)) {
			return 0, false
		}
		n = int64(f)
	}
	if n < 0 || n > maxTokenCount {
		return 0, false
	}
	return n, true
}

// EstimatePromptTokens guesses the prompt's size from the text of a request, for answers
// that were cut before the provider could report. Images and other parts that are not text
// are left out.
func EstimatePromptTokens(request []byte) int64 {
	var f chatFields
	var said prompt
	if collect(rootOf(request), chatMember, f[:], &said) != nil {
		return 0 // such a request was not accepted
	}
	it := walk(f[inMessages])
	for msg, ok := it.element(); ok; msg, ok = it.element() {
		said.bytes += bytesPerToken // role and separators
		said.message(msg)
	}
	f.define(&said)
	said.images = 0
	return int64(said.tokens())
}
