package chat

import (
	"math"
	"strconv"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// The finish reasons of the format.
const (
	FinishStop          = "stop"
	FinishLength        = "length"
	FinishToolCalls     = "tool_calls" // written as function_call in a legacy answer
	FinishContentFilter = "content_filter"
)

// Completion is a complete answer.
type Completion struct {
	ID                string
	Created           int64 // Unix time in seconds
	Model             string
	Choices           []Choice
	Usage             inference.Usage // left out when it is not Known
	SystemFingerprint string          // left out when empty

	// Legacy is the request's: the first tool call is written as function_call, which has
	// no room for more of them.
	Legacy bool
}

// Choice is one of the answers that were asked for.
type Choice struct {
	Index        int
	Message      Answer
	Logprobs     []TokenLogprob // null on the wire when nil
	FinishReason string
}

// Answer is the assistant's message.
type Answer struct {
	// Content is null on the wire when it is empty and there are tool calls or a refusal.
	Content          string
	ReasoningContent string // left out when empty
	Refusal          string // null on the wire when empty
	ToolCalls        []ToolCall
	Extra            Raw // extension: extra_content, left out when empty; valid JSON
}

// TokenLogprob is a token's log probability, with the likeliest tokens at its place.
type TokenLogprob struct {
	Token   string
	Logprob float64 // what is no number JSON can write becomes -9999, OpenAI's "very unlikely"
	Top     []TokenLogprob
}

// AppendCompletion appends the JSON of a complete answer. Text that is not valid UTF-8
// becomes U+FFFD.
func AppendCompletion(dst []byte, c Completion) []byte {
	dst = appendHead(dst, c.ID, "chat.completion", c.Created, c.Model)
	for i, choice := range c.Choices {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendIndex(dst, choice.Index)
		dst = append(dst, `,"message":`...)
		dst = appendMessage(dst, choice.Message, c.Legacy)
		dst = append(dst, `,"logprobs":`...)
		dst = appendLogprobs(dst, choice.Logprobs)
		dst = append(dst, `,"finish_reason":`...)
		dst = appendFinish(dst, choice.FinishReason, c.Legacy)
		dst = append(dst, '}')
	}
	return appendTail(dst, c.Usage, c.SystemFingerprint)
}

func appendMessage(dst []byte, a Answer, legacy bool) []byte {
	dst = append(dst, `{"role":"assistant","content":`...)
	if a.Content == "" && (len(a.ToolCalls) > 0 || a.Refusal != "") {
		dst = append(dst, "null"...)
	} else {
		dst = openaiapi.AppendString(dst, a.Content)
	}
	dst = appendText(dst, `,"reasoning_content":`, a.ReasoningContent)
	dst = append(dst, `,"refusal":`...)
	if a.Refusal == "" {
		dst = append(dst, "null"...)
	} else {
		dst = openaiapi.AppendString(dst, a.Refusal)
	}
	dst = appendCalls(dst, a.ToolCalls, legacy)
	return append(appendExtra(dst, a.Extra), '}')
}

func appendCalls(dst []byte, calls []ToolCall, legacy bool) []byte {
	if len(calls) == 0 {
		return dst
	}
	if legacy {
		dst = append(dst, `,"function_call":`...)
		return appendFunction(dst, calls[0].Name, calls[0].Arguments)
	}
	dst = append(dst, `,"tool_calls":[`...)
	for i, call := range calls {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"id":`...)
		dst = openaiapi.AppendString(dst, call.ID)
		dst = append(dst, `,"type":"function","function":`...)
		dst = appendFunction(dst, call.Name, call.Arguments)
		dst = append(appendExtra(dst, call.Extra), '}')
	}
	return append(dst, ']')
}

func appendFunction(dst []byte, name, arguments string) []byte {
	dst = append(dst, `{"name":`...)
	dst = openaiapi.AppendString(dst, name)
	dst = append(dst, `,"arguments":`...)
	return append(openaiapi.AppendString(dst, arguments), '}')
}

// appendHead begins an object and leaves it inside the list of choices.
func appendHead(dst []byte, id, object string, created int64, model string) []byte {
	dst = append(dst, `{"id":`...)
	dst = openaiapi.AppendString(dst, id)
	dst = append(dst, `,"object":"`...)
	dst = append(dst, object...)
	dst = append(dst, `","created":`...)
	dst = strconv.AppendInt(dst, created, 10)
	dst = append(dst, `,"model":`...)
	dst = openaiapi.AppendString(dst, model)
	return append(dst, `,"choices":[`...)
}

func appendIndex(dst []byte, index int) []byte {
	return strconv.AppendInt(append(dst, `{"index":`...), int64(index), 10)
}

// appendTail closes the list of choices and the object.
func appendTail(dst []byte, usage inference.Usage, fingerprint string) []byte {
	dst = append(dst, ']')
	if usage.Known {
		dst = appendUsage(dst, usage)
	}
	return append(appendText(dst, `,"system_fingerprint":`, fingerprint), '}')
}

func appendUsage(dst []byte, u inference.Usage) []byte {
	dst = append(dst, `,"usage":{"prompt_tokens":`...)
	dst = strconv.AppendInt(dst, u.PromptTokens, 10)
	dst = append(dst, `,"completion_tokens":`...)
	dst = strconv.AppendInt(dst, u.CompletionTokens, 10)
	dst = append(dst, `,"total_tokens":`...)
	dst = strconv.AppendInt(dst, u.PromptTokens+u.CompletionTokens, 10)
	dst = append(dst, `,"prompt_tokens_details":{"cached_tokens":`...)
	dst = strconv.AppendInt(dst, u.CachedTokens, 10)
	dst = append(dst, `},"completion_tokens_details":{"reasoning_tokens":`...)
	dst = strconv.AppendInt(dst, u.ReasoningTokens, 10)
	return append(dst, "}}"...)
}

func appendFinish(dst []byte, reason string, legacy bool) []byte {
	if reason == "" {
		return append(dst, "null"...)
	}
	if legacy && reason == FinishToolCalls {
		reason = "function_call"
	}
	return openaiapi.AppendString(dst, reason)
}

func appendLogprobs(dst []byte, tokens []TokenLogprob) []byte {
	if tokens == nil {
		return append(dst, "null"...)
	}
	dst = append(dst, `{"content":[`...)
	for i, t := range tokens {
		dst = appendToken(dst, i, t)
		dst = append(dst, `,"top_logprobs":[`...)
		for j, top := range t.Top {
			dst = append(appendToken(dst, j, top), '}')
		}
		dst = append(dst, "]}"...)
	}
	return append(dst, `],"refusal":null}`...)
}

// appendToken leaves the object open.
func appendToken(dst []byte, position int, t TokenLogprob) []byte {
	if position > 0 {
		dst = append(dst, ',')
	}
	dst = append(dst, `{"token":`...)
	dst = openaiapi.AppendString(dst, t.Token)
	dst = append(dst, `,"logprob":`...)
	if math.IsNaN(t.Logprob) || math.IsInf(t.Logprob, 0) {
		dst = append(dst, "-9999"...)
	} else {
		dst = strconv.AppendFloat(dst, t.Logprob, 'g', -1, 64)
	}
	// A token may be a part of a character, which only the bytes can tell.
	dst = append(dst, `,"bytes":[`...)
	for i := range len(t.Token) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendInt(dst, int64(t.Token[i]), 10)
	}
	return append(dst, ']')
}

// appendText appends a member unless it is empty.
func appendText(dst []byte, member, s string) []byte {
	if s == "" {
		return dst
	}
	return openaiapi.AppendString(append(dst, member...), s)
}

func appendExtra(dst []byte, extra Raw) []byte {
	if extra == "" {
		return dst
	}
	return append(append(dst, `,"extra_content":`...), extra...)
}
