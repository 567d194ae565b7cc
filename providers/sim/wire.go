package sim

import (
	"strconv"
	"strings"

	"sluice/internal/openaiapi"
)

// completion returns the whole answer in OpenAI's form.
func (a *answer) completion() []byte {
	b := a.head(nil, "chat.completion")
	for i, c := range a.choices {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendIndex(b, i)
		b = append(b, `,"message":{"role":"assistant","content":`...)
		b = openaiapi.AppendString(b, strings.Join(c.tokens, ""))
		b = append(b, `,"refusal":null},"logprobs":null,"finish_reason":"`+c.finish+`"}`...)
	}
	b = append(b, ']')
	return append(a.appendUsage(b), '}')
}

// roleChunks open each choice.
func (a *answer) roleChunks() [][]byte {
	var chunks [][]byte
	for i := range a.choices {
		chunks = append(chunks, a.chunk(i, `{"role":"assistant","content":"","refusal":null}`, "null"))
	}
	return chunks
}

// tokenChunks carry one token for each choice that has one left.
func (a *answer) tokenChunks(step int) [][]byte {
	var chunks [][]byte
	for i, c := range a.choices {
		if step < len(c.tokens) {
			delta := append(openaiapi.AppendString([]byte(`{"content":`), c.tokens[step]), '}')
			chunks = append(chunks, a.chunk(i, string(delta), "null"))
		}
	}
	return chunks
}

// finishChunks close each choice.
func (a *answer) finishChunks() [][]byte {
	var chunks [][]byte
	for i, c := range a.choices {
		chunks = append(chunks, a.chunk(i, "{}", `"`+c.finish+`"`))
	}
	return chunks
}

func (a *answer) usageChunk() []byte {
	b := append(a.head(nil, "chat.completion.chunk"), ']')
	return append(a.appendUsage(b), '}')
}

func (a *answer) chunk(index int, delta, finish string) []byte {
	b := a.head(make([]byte, 0, 256), "chat.completion.chunk")
	b = appendIndex(b, index)
	b = append(b, `,"delta":`...)
	b = append(b, delta...)
	b = append(b, `,"logprobs":null,"finish_reason":`...)
	b = append(b, finish...)
	return append(b, "}]}"...)
}

// head begins an object and leaves it inside the list of choices.
func (a *answer) head(b []byte, object string) []byte {
	b = append(b, `{"id":`...)
	b = openaiapi.AppendString(b, a.id)
	b = append(b, `,"object":"`+object+`","created":`...)
	b = strconv.AppendInt(b, a.created, 10)
	b = append(b, `,"model":`...)
	b = openaiapi.AppendString(b, a.model)
	return append(b, `,"choices":[`...)
}

func appendIndex(b []byte, index int) []byte {
	return strconv.AppendInt(append(b, `{"index":`...), int64(index), 10)
}

func (a *answer) appendUsage(b []byte) []byte {
	u := a.usage()
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = strconv.AppendInt(b, u.PromptTokens, 10)
	b = append(b, `,"completion_tokens":`...)
	b = strconv.AppendInt(b, u.CompletionTokens, 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendInt(b, u.PromptTokens+u.CompletionTokens, 10)
	return append(b, '}')
}
