package gemini

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"iter"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers/internal/chat"
)

// Bounds on an answer, beside its size.
const (
	maxTokens     = 1_000_000         // log probabilities of one event or plain answer
	maxTop        = 100               // likeliest tokens at one place
	maxTokenCount = 1_000_000_000_000 // beyond any count that can be true
)

// What makes an answer unusable.
var (
	errNotJSON      = errors.New("not valid JSON")
	errNotAnswer    = errors.New("not a generated content")
	errNoCandidates = errors.New("neither candidates nor a reason for their absence")
	errIndex        = errors.New("a candidate's index is out of range")
	errCalls        = errors.New("too many function calls")
	errCall         = errors.New("a function call that is none")
	errLogprobs     = errors.New("too many log probabilities")
)

// reply is one GenerateContentResponse: a whole answer or one event of a stream.
type reply struct {
	root gjson.Result

	failed      bool // it is an error
	blocked     string
	blockedText string
	usage       inference.Usage
	model, id   string
}

// readReply checks the JSON and reads all but the candidates.
func readReply(data []byte) (reply, error) {
	if !openaiapi.Valid(data) {
		return reply{}, errNotJSON
	}
	r := reply{root: gjson.ParseBytes(data)}
	if r.root.IsArray() { // errors come in a list at times
		r.root = r.root.Get("0")
		if !isThere(r.root.Get("error")) {
			return reply{}, errNotAnswer
		}
	}
	if !r.root.IsObject() {
		return reply{}, errNotAnswer
	}
	if r.failed = isThere(r.root.Get("error")); r.failed {
		return r, nil
	}
	feedback := r.root.Get("promptFeedback")
	if r.blocked = text(feedback.Get("blockReason")); r.blocked == "BLOCK_REASON_UNSPECIFIED" {
		r.blocked = "" // the enum's zero: not blocked
	}
	r.blockedText = text(feedback.Get("blockReasonMessage"))
	r.usage = readUsage(r.root.Get("usageMetadata"))
	r.model = clip(strings.TrimPrefix(text(r.root.Get("modelVersion")), "models/"))
	r.id = clip(text(r.root.Get("responseId")))
	return r, nil
}

func isThere(v gjson.Result) bool { return v.Exists() && v.Type != gjson.Null }

// text returns a string, and nothing of what is none.
func text(v gjson.Result) string {
	if v.Type != gjson.String {
		return ""
	}
	return v.Str
}

func clip(s string) string {
	if len(s) > openaiapi.MaxModelBytes {
		s = s[:openaiapi.MaxModelBytes]
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}

// readUsage counts as OpenAI does: the prompt includes what was cached and what tools
// added to it, the completion includes thoughts.
func readUsage(v gjson.Result) inference.Usage {
	if !v.IsObject() {
		return inference.Usage{}
	}
	counts := [5]int64{}
	known := false
	for i, name := range []string{
		"promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount",
	} {
		n := v.Get(name)
		if !isThere(n) {
			continue
		}
		if n.Type != gjson.Number || n.Num < 0 || n.Num > maxTokenCount || n.Num != float64(int64(n.Num)) {
			return inference.Usage{}
		}
		counts[i], known = int64(n.Num), true
	}
	u := inference.Usage{
		PromptTokens: counts[0] + counts[1], CompletionTokens: counts[2] + counts[3], ReasoningTokens: counts[3], Known: known,
	}
	u.CachedTokens = min(counts[4], u.PromptTokens)
	return u
}

// candidates goes through the candidates with their indexes, -1 for what cannot be one.
func (r *reply) candidates() iter.Seq2[int, gjson.Result] {
	return func(yield func(int, gjson.Result) bool) {
		place := 0
		r.root.Get("candidates").ForEach(func(_, c gjson.Result) bool {
			at := float64(place)
			if given := c.Get("index"); given.Type == gjson.Number {
				at = given.Num
			}
			place++
			if at < 0 || at >= openaiapi.MaxChoices {
				at = -1
			}
			return yield(int(at), c)
		})
	}
}

// partKind is what a part of an answer is.
type partKind int

const (
	partOther partKind = iota // nothing that can be asked for here
	partText
	partThought
	partCall
)

type part struct {
	kind      partKind
	text      string
	call      chat.ToolCall // without an id where the upstream gave none
	signature string
}

func partsOf(candidate gjson.Result) iter.Seq2[part, error] {
	return func(yield func(part, error) bool) {
		candidate.Get("content.parts").ForEach(func(_, v gjson.Result) bool {
			return yield(readPart(v))
		})
	}
}

func readPart(v gjson.Result) (part, error) {
	p := part{signature: text(v.Get("thoughtSignature"))}
	if call := v.Get("functionCall"); isThere(call) {
		p.kind = partCall
		args, err := arguments(call.Get("args"))
		p.call = chat.ToolCall{ID: text(call.Get("id")), Type: "function", Name: text(call.Get("name")), Arguments: args}
		if p.call.Name == "" {
			err = errCall
		}
		p.call.Extra = extraOf(p.signature)
		return p, err
	}
	switch data := v.Get("inlineData"); {
	case v.Get("thought").Bool():
		p.kind, p.text = partThought, text(v.Get("text"))
	case isThere(data):
		p.kind, p.text = partText, drawn(data)
	case v.Get("text").Type == gjson.String:
		p.kind, p.text = partText, v.Get("text").Str
	}
	return p, nil
}

// drawn puts data that the model made into text, as Markdown with a data URL: an answer
// in this format has no other place for it.
func drawn(data gjson.Result) string {
	kind, encoded := text(data.Get("mimeType")), text(data.Get("data"))
	mark := ""
	if strings.HasPrefix(kind, "image/") {
		mark = "!"
	}
	return mark + "[" + kind + "](data:" + kind + ";base64," + encoded + ")"
}

// arguments returns a call's arguments without the spaces of the upstream's layout.
func arguments(args gjson.Result) (string, error) {
	if !isThere(args) {
		return "{}", nil
	}
	var compact bytes.Buffer
	if !args.IsObject() || json.Compact(&compact, []byte(args.Raw)) != nil {
		return "", errCall
	}
	return compact.String(), nil
}

// extraOf is the inverse of signatureOf.
func extraOf(signature string) chat.Raw {
	if signature == "" {
		return ""
	}
	quoted := openaiapi.AppendString([]byte(`{"google":{"thought_signature":`), signature)
	return chat.Raw(append(quoted, "}}"...))
}

// callID makes up the id of a call that has none. It depends on the answer's id and the
// call's place alone, fits into what other providers accept as an id, and differs from
// the ids of other answers.
func callID(answer string, choice, number int) string {
	sum := sha256.Sum256([]byte(answer + "/" + strconv.Itoa(choice) + "/" + strconv.Itoa(number)))
	return "call_" + hex.EncodeToString(sum[:12])
}

// readLogprobs reads logprobsResult; nil where there is none.
func readLogprobs(candidate gjson.Result) ([]chat.TokenLogprob, error) {
	result := candidate.Get("logprobsResult")
	if !result.IsObject() {
		return nil, nil
	}
	tokens := []chat.TokenLogprob{}
	var err error
	result.Get("chosenCandidates").ForEach(func(_, v gjson.Result) bool {
		if len(tokens) == maxTokens {
			err = errLogprobs
			return false
		}
		tokens = append(tokens, readToken(v))
		return true
	})
	place := 0
	result.Get("topCandidates").ForEach(func(_, v gjson.Result) bool {
		if place >= len(tokens) {
			return false
		}
		v.Get("candidates").ForEach(func(_, top gjson.Result) bool {
			tokens[place].Top = append(tokens[place].Top, readToken(top))
			return len(tokens[place].Top) < maxTop
		})
		place++
		return true
	})
	return tokens, err
}

func readToken(v gjson.Result) chat.TokenLogprob {
	return chat.TokenLogprob{Token: text(v.Get("token")), Logprob: v.Get("logProbability").Num}
}
