package gemini

import (
	"cmp"

	"sluice/internal/inference"
	"sluice/providers/internal/chat"
	"sluice/providers/internal/upstream"
)

// filtered are the finish reasons of answers that were held back.
var filtered = map[string]bool{
	"SAFETY": true, "RECITATION": true, "LANGUAGE": true, "BLOCKLIST": true, "PROHIBITED_CONTENT": true, "SPII": true,
	"IMAGE_SAFETY": true, "IMAGE_PROHIBITED_CONTENT": true, "IMAGE_RECITATION": true,
}

// refused reports that the candidate holds nothing but the provider's refusal of what was
// asked for. A language that the model does not speak is no matter of policy.
func (e ending) refused() bool {
	return filtered[e.reason] && e.reason != "LANGUAGE" && !e.said && e.calls == 0
}

// ending is how one candidate ended.
type ending struct {
	reason, message string // finishReason and finishMessage

	said  bool // it has text, or an image
	calls int
}

// finish maps the reason. A candidate that was held back before it said anything gets a
// refusal. Of the reasons that tell of a failure (a call that is malformed or was not to
// be made, OTHER, and those that are not known yet) one that has something to show ends
// as if it had been stopped; one that has nothing is no answer, and asking again may
// well give one.
func (e ending) finish(name string) (reason, refusal string, failure *upstream.Complaint) {
	switch {
	case filtered[e.reason]:
		if !e.said && e.calls == 0 {
			refusal = cmp.Or(e.message, name+" held the answer back: "+e.reason)
		}
		return chat.FinishContentFilter, refusal, nil
	case e.reason == "MAX_TOKENS":
		return chat.FinishLength, "", nil
	case e.reason == "MISSING_THOUGHT_SIGNATURE":
		return "", "", &upstream.Complaint{
			Message: cmp.Or(e.message, e.reason), Code: e.reason, Class: inference.CodeUpstreamRejected, Final: true,
		}
	case e.calls > 0:
		return chat.FinishToolCalls, "", nil
	case e.reason == "STOP" || e.said:
		return chat.FinishStop, "", nil
	}
	return "", "", &upstream.Complaint{Message: cmp.Or(e.message, "the answer ended with "+e.reason), Code: e.reason}
}

// blockedRefusal is what a client is told whose prompt was blocked.
func blockedRefusal(name, reason, message string) string {
	return cmp.Or(message, name+" blocked the prompt: "+reason)
}
