package anthropic

import (
	"strings"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers/internal/upstream"
)

// maxErrorText bounds what is taken over from an upstream's error.
const maxErrorText = 2048

// codeContextLength is OpenAI's name for a prompt that does not fit into the model.
const codeContextLength = "context_length_exceeded"

// explain reads an error of the API's shape, {"type":"error","error":{"type","message"}},
// which came with an HTTP status. The status says what kind it is but for the cases
// where one status stands for several.
func explain(body []byte) upstream.Complaint {
	if !openaiapi.Valid(body) {
		return upstream.Complaint{}
	}
	e := gjson.GetBytes(body, "error")
	said := upstream.Complaint{Message: clip(e.Get("message").String()), Code: clip(e.Get("type").String())}
	lower := strings.ToLower(said.Message)
	switch {
	case said.Code != "invalid_request_error":
	case strings.Contains(lower, "prompt is too long"), strings.Contains(lower, "exceed context limit"),
		strings.Contains(lower, "context window"):
		said.Class, said.Final, said.Refusal = inference.CodeUpstreamRejected, true, inference.RefusalContext
		said.Message, said.Code = codeContextLength+": "+said.Message, codeContextLength
	case strings.Contains(lower, "credit balance is too low"):
		// It comes with status 400, but it is the operator's account that has run dry.
		said = upstream.Complaint{Class: inference.CodeUpstreamAuth, Code: said.Code}
	case strings.Contains(lower, "blocked by content filtering policy"):
		said.Final, said.Refusal = true, inference.RefusalContent
	default:
		said.Final = true
	}
	return said
}

// explainInBand reads an error that came with a status of success, so that its type
// alone says what kind it is. The types are those of the API reference's page on
// errors; of those that are missing here (overloaded_error, api_error, timeout_error)
// there is nothing more to say than that the call may be made again.
func explainInBand(body []byte) upstream.Complaint {
	said := explain(body)
	if said.Class != "" {
		return said
	}
	switch said.Code {
	case "invalid_request_error", "not_found_error", "request_too_large":
		said.Class, said.Final = inference.CodeUpstreamRejected, true
	case "rate_limit_error":
		said.Class = inference.CodeUpstreamRateLimited
	case "authentication_error", "permission_error", "billing_error":
		// What is said of credentials is for the operator alone.
		said.Class, said.Final, said.Message = inference.CodeUpstreamAuth, true, ""
	}
	return said
}

// clip keeps a text valid and short.
func clip(s string) string { return clipTo(s, maxErrorText) }

func clipTo(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
