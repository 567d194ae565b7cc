package upstream

import (
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// The codes and types by which upstreams of OpenAI's shape tell why they refuse.
var (
	contextCodes = []string{"context_length_exceeded", "exceed_context_size_error"}
	contentCodes = []string{"content_policy_violation", "content_filter", "ResponsibleAIPolicyViolation"}
)

// contextWords are how upstreams without a code say that a prompt does not fit.
var contextWords = []string{
	"maximum context length", "context length", "context window", "available context size",
	"prompt is too long", "maximum prompt length", "exceeded model token limit",
}

func explainOpenAI(body []byte) Complaint {
	said, typ, code, param, _ := openaiapi.ParseError(body)
	return Complaint{
		Message: said, Code: code, Param: param, Refusal: refusalOf(body, said, typ, code),
		Final: code == "insufficient_quota" || typ == "invalid_request_error",
	}
}

// refusalOf reads why the request was refused from the code, from Azure's inner one or,
// where there is neither, from the words.
func refusalOf(body []byte, said, typ, code string) inference.Refusal {
	inner := ""
	if openaiapi.Valid(body) {
		inner = gjson.GetBytes(body, "error.innererror.code").String()
	}
	words := strings.ToLower(said)
	switch {
	case slices.Contains(contentCodes, code), slices.Contains(contentCodes, inner):
		return inference.RefusalContent
	case code == "invalid_prompt" && strings.Contains(words, "flagged"):
		return inference.RefusalContent
	case slices.Contains(contextCodes, code), slices.Contains(contextCodes, typ):
		return inference.RefusalContext
	case slices.ContainsFunc(contextWords, func(w string) bool { return strings.Contains(words, w) }):
		return inference.RefusalContext
	}
	return ""
}
