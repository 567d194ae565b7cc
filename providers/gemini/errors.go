package gemini

import (
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers/internal/upstream"
)

const (
	maxErrorText  = 2048
	maxRetryDelay = 24 * time.Hour
)

// codeContextLength is OpenAI's code for a prompt that does not fit.
const codeContextLength = "context_length_exceeded"

// statusClasses are classes of google.rpc.Code's names. Those that are missing (UNKNOWN,
// INTERNAL, UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED, CANCELLED) say no more than the HTTP
// status, and may go well when tried again.
var statusClasses = map[string]inference.ErrorCode{
	"INVALID_ARGUMENT":    inference.CodeUpstreamRejected,
	"FAILED_PRECONDITION": inference.CodeUpstreamRejected,
	"OUT_OF_RANGE":        inference.CodeUpstreamRejected,
	"NOT_FOUND":           inference.CodeUpstreamRejected,
	"RESOURCE_EXHAUSTED":  inference.CodeUpstreamRateLimited,
	"UNAUTHENTICATED":     inference.CodeUpstreamAuth,
	"PERMISSION_DENIED":   inference.CodeUpstreamAuth,
}

// explain reads an error in the shape of google.rpc.Status, alone or in a list.
func explain(body []byte) upstream.Complaint {
	if !openaiapi.Valid(body) {
		return upstream.Complaint{}
	}
	root := gjson.ParseBytes(body)
	if root.IsArray() {
		root = root.Get("0")
	}
	e := root.Get("error")
	if !e.IsObject() {
		return upstream.Complaint{}
	}
	said := upstream.Complaint{Message: bounded(text(e.Get("message"))), Code: bounded(text(e.Get("status")))}
	said.Class = statusClasses[said.Code]
	reason := ""
	e.Get("details").ForEach(func(_, d gjson.Result) bool {
		switch kind := text(d.Get("@type")); {
		case strings.HasSuffix(kind, "google.rpc.RetryInfo"):
			said.RetryAfter = retryDelay(text(d.Get("retryDelay")))
		case strings.HasSuffix(kind, "google.rpc.ErrorInfo"):
			reason = text(d.Get("reason"))
		}
		return true
	})
	classify(&said, reason)
	return said
}

// classify corrects what the status says where the words say better.
func classify(said *upstream.Complaint, reason string) {
	words := strings.ToLower(said.Message)
	contains := func(s string) bool { return strings.Contains(words, s) }
	switch {
	case strings.HasPrefix(reason, "API_KEY_"):
		said.Class = inference.CodeUpstreamAuth // with a status of 400
	case said.Code == "FAILED_PRECONDITION" && (contains("billing") || contains("location is not supported")):
		said.Class = inference.CodeUpstreamAuth // it is the account that does not meet it
	case said.Code == "PERMISSION_DENIED" && contains("access the file"):
		said.Class = inference.CodeUpstreamRejected // a link of the client's; the key is in order
	case contains("token count") && contains("exceeds the maximum number of tokens"):
		said.Class, said.Code, said.Refusal = inference.CodeUpstreamRejected, codeContextLength, inference.RefusalContext
		said.Message = codeContextLength + ": " + said.Message
	}
	switch said.Class {
	case inference.CodeUpstreamAuth:
		said.Message = "" // for the operator alone
	case inference.CodeUpstreamRejected:
		said.Final = true
	}
}

// retryDelay reads a google.protobuf.Duration in its JSON form, such as 7s or 0.25s.
func retryDelay(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0
	}
	return min(max(d, 0), maxRetryDelay)
}

func bounded(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
