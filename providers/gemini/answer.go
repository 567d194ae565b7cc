package gemini

import (
	"cmp"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"sluice/internal/openaiapi"
	"sluice/providers"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

// answer turns a whole answer into OpenAI's form.
func (q *question) answer(resp *upstream.Response, body []byte) (*providers.Response, error) {
	r, err := readReply(body)
	if err != nil {
		return nil, resp.Invalid(err)
	}
	if r.failed {
		return nil, resp.Complained(resp.Explain(body))
	}
	c := chat.Completion{
		ID: q.answerID(r.id), Created: time.Now().Unix(), Model: cmp.Or(r.model, q.model), Usage: r.usage, Legacy: q.req.Legacy,
	}
	size, refused := 512, 0
	for index, candidate := range r.candidates() {
		if index < 0 || len(c.Choices) == openaiapi.MaxChoices {
			return nil, resp.Invalid(errIndex)
		}
		choice, end, err := q.choice(index, candidate, c.ID)
		if err != nil {
			return nil, resp.Invalid(err)
		}
		reason, refusal, failure := end.finish(q.name)
		if failure != nil {
			return nil, resp.Complained(*failure)
		}
		if end.refused() {
			refused++
		}
		choice.FinishReason, choice.Message.Refusal = reason, refusal
		c.Choices = append(c.Choices, choice)
		size += len(candidate.Raw)
	}
	if len(c.Choices) == 0 {
		if r.blocked == "" {
			return nil, resp.Invalid(errNoCandidates)
		}
		refusal := blockedRefusal(q.name, r.blocked, r.blockedText)
		c.Choices = []chat.Choice{{Message: chat.Answer{Refusal: refusal}, FinishReason: chat.FinishContentFilter}}
		refused++
	}
	if q.call.RefusalIsError && refused == len(c.Choices) {
		return nil, resp.Refused(bounded(c.Choices[0].Message.Refusal))
	}
	out := chat.AppendCompletion(make([]byte, 0, size), c)
	return &providers.Response{Body: out, Model: c.Model, Usage: c.Usage}, nil
}

// answerID is the upstream's id of an answer, or one that the request gives.
func (q *question) answerID(given string) string {
	return cmp.Or(given, "chatcmpl-"+clip(q.call.RequestID))
}

// choice translates one candidate but for how it ended.
func (q *question) choice(index int, candidate gjson.Result, id string) (chat.Choice, ending, error) {
	choice := chat.Choice{Index: index}
	var content, thoughts strings.Builder
	m := &choice.Message
	for p, err := range partsOf(candidate) {
		if err != nil {
			return choice, ending{}, err
		}
		switch p.kind {
		case partText:
			content.WriteString(p.text)
		case partThought:
			if !q.quiet {
				thoughts.WriteString(p.text)
			}
		case partCall:
			if len(m.ToolCalls) == chat.MaxToolCalls {
				return choice, ending{}, errCalls
			}
			p.call.ID = cmp.Or(p.call.ID, callID(id, index, len(m.ToolCalls)))
			m.ToolCalls = append(m.ToolCalls, p.call)
			continue // its signature is the call's
		case partOther:
		}
		if p.signature != "" {
			m.Extra = extraOf(p.signature)
		}
	}
	m.Content, m.ReasoningContent = content.String(), thoughts.String()
	end := ending{
		reason: text(candidate.Get("finishReason")), message: text(candidate.Get("finishMessage")),
		said: m.Content != "", calls: len(m.ToolCalls),
	}
	if end.reason == "" {
		end.reason = "STOP" // a whole answer has ended
	}
	logprobs, err := readLogprobs(candidate)
	choice.Logprobs = logprobs
	return choice, end, err
}
