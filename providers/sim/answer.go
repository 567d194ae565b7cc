package sim

import (
	"encoding/json"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// request is what the simulation reads of a chat-completions request.
type request struct {
	Model    string `json:"model"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
	MaxTokens           *int            `json:"max_tokens"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	N                   *int            `json:"n"`
	Stop                json.RawMessage `json:"stop"`
	Sim                 field           `json:"sim"`

	prompt int      // tokens
	stop   []string // sequences
}

func parseRequest(body []byte) (*request, error) {
	var r request
	if json.Unmarshal(body, &r) != nil {
		return nil, errors.New("the request body is not a chat completion request")
	}
	if r.N != nil && (*r.N < 1 || *r.N > openaiapi.MaxChoices) {
		return nil, errors.New("n must be from 1 to " + strconv.Itoa(openaiapi.MaxChoices))
	}
	for _, m := range r.Messages {
		r.prompt += countTokens(m.Role) + countContent(m.Content)
	}
	r.stop = stopSequences(r.Stop)
	return &r, nil
}

// countTokens counts tokens as this provider knows them: a token is a run of
// characters between white space. Prompts and answers are counted alike.
func countTokens(text string) int { return len(strings.Fields(text)) }

// countContent counts a message's content: a string, or parts, of which each that is
// not text counts as one token.
func countContent(raw json.RawMessage) int {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return countTokens(text)
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if json.Unmarshal(raw, &parts) != nil {
		return 0
	}
	total := 0
	for _, part := range parts {
		if part.Type == "text" {
			total += countTokens(part.Text)
		} else {
			total++
		}
	}
	return total
}

func stopSequences(raw json.RawMessage) []string {
	var one string
	if json.Unmarshal(raw, &one) == nil && one != "" {
		return []string{one}
	}
	var several []string
	if json.Unmarshal(raw, &several) != nil {
		return nil
	}
	return several
}

// answer is one simulated answer, made in full before its first token leaves.
type answer struct {
	id      string
	model   string
	created int64
	prompt  int
	choices []choice
}

// choice is one of an answer's n choices.
type choice struct {
	tokens []string // each with the space before it
	finish string   // OpenAI's finish_reason
}

func newAnswer(r *request, length int, id uint64) *answer {
	a := &answer{
		id:     "chatcmpl-sim" + strconv.FormatUint(id, 16),
		model:  r.Model,
		prompt: r.prompt,
	}
	count := 1
	if r.N != nil {
		count = *r.N
	}
	seed := seedOf(r)
	for i := range count {
		a.choices = append(a.choices, makeChoice(r, length, seed, uint64(i)))
	}
	return a
}

// seedOf condenses what the text shall depend on. Limits are not part of it: a
// shorter answer is the beginning of the longer one.
func seedOf(r *request) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(r.Model)) // a hash never fails
	for _, m := range r.Messages {
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(m.Role))
		_, _ = h.Write([]byte{0})
		_, _ = h.Write(m.Content)
	}
	return h.Sum64()
}

func makeChoice(r *request, length int, seed, index uint64) choice {
	c := choice{finish: "stop"}
	for _, limit := range []*int{r.MaxTokens, r.MaxCompletionTokens} {
		if limit != nil && *limit < length {
			length = max(*limit, 0)
			c.finish = "length"
		}
	}
	random := rand.New(rand.NewPCG(seed, index))
	for i := range length {
		word := words[random.IntN(len(words))]
		if i == 0 {
			word = word[1:]
		}
		c.tokens = append(c.tokens, word)
	}
	c.cutAt(r.stop)
	return c
}

// cutAt ends the choice before the first stop sequence in its text.
func (c *choice) cutAt(sequences []string) {
	text := strings.Join(c.tokens, "")
	first := len(text)
	for _, s := range sequences {
		if at := strings.Index(text, s); s != "" && at >= 0 {
			first = min(first, at)
		}
	}
	if first == len(text) {
		return
	}
	c.finish = "stop"
	for i, token := range c.tokens {
		if len(token) < first {
			first -= len(token)
			continue
		}
		c.tokens[i] = token[:first]
		c.tokens = c.tokens[:i+1]
		if first == 0 || strings.TrimSpace(c.tokens[i]) == "" {
			c.tokens = c.tokens[:i]
		}
		return
	}
}

// holdBack takes every choice's text away, as an upstream's policy does.
func (a *answer) holdBack() {
	for i := range a.choices {
		a.choices[i] = choice{finish: "content_filter"}
	}
}

// steps returns how many tokens the longest choice has; at each step every choice
// gives its next one.
func (a *answer) steps() int {
	longest := 0
	for _, c := range a.choices {
		longest = max(longest, len(c.tokens))
	}
	return longest
}

func (a *answer) usage() inference.Usage { return a.usageAfter(a.steps()) }

// usageAfter counts the tokens given in the first steps.
func (a *answer) usageAfter(steps int) inference.Usage {
	total := 0
	for _, c := range a.choices {
		total += min(steps, len(c.tokens))
	}
	return inference.Usage{PromptTokens: int64(a.prompt), CompletionTokens: int64(total), Known: true}
}

// estimateAfter is what an adapter of a real upstream says of an answer that broke off
// before its usage was reported.
func (a *answer) estimateAfter(steps int, body []byte) inference.Usage {
	return inference.Usage{
		PromptTokens:     openaiapi.EstimatePromptTokens(body),
		CompletionTokens: a.usageAfter(steps).CompletionTokens,
		Known:            true, Estimated: true,
	}
}

// words are the vocabulary, each with the space before it.
var words = [...]string{
	" the", " water", " opens", " a", " gate", " and", " slowly", " fills", " its", " narrow", " lock", " until",
	" every", " boat", " rises", " with", " patience", " to", " meet", " upper", " reach", " of", " this", " quiet",
	" river", " where", " keeper", " counts", " each", " one", " by", " name", " then", " lets", " it", " pass",
	" under", " old", " bridge", " before", " evening", " light", " turns", " stone", " warm", " again", " so",
	" nothing", " is", " lost", " on", " way", " down", " but", " time", " which", " was", " never", " ours", " anyway",
}
