package ingress

import (
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
	"sluice/internal/openaiapi"
	"sluice/internal/routing"
)

// size is how much a request may take, as far as it says so itself.
type size struct {
	prompt  int64 // tokens, estimated
	output  int64 // tokens of one choice; zero: it does not say
	choices int64
}

// sizeOf reads the size of a request. Embeddings have no output.
func sizeOf(req *openaiapi.ChatRequest) size {
	return size{prompt: int64(req.PromptTokens), output: int64(req.MaxOutput), choices: int64(max(req.Choices, 1))}
}

// demand is what a request asks of its scopes: its prompt, and as much output as it may
// have, at the price of the dearest of its candidates. What a client does not bound is a
// guess, and our guess never makes a request impossible: it goes no further than the
// smallest limit, unless the prompt does so alone.
func (l *LimitSettings) demand(scopes []limits.Scope, job *inference.Job, s size, table *routing.Table, now time.Time) limits.Demand {
	output, guess := s.output*s.choices, false
	switch {
	case job.Kind == inference.KindEmbeddings:
		output = 0
	case s.output == 0:
		output, guess = l.guess(table, job.Candidates)*s.choices, true
	}
	d := limits.Demand{Scopes: scopes}
	if !guess {
		d.Tokens, d.Cost = s.prompt+output, l.dearest(job.Candidates, job.Model, s.prompt, output, now)
		return d
	}
	tokens, money := leastBounds(scopes)
	if tokens > 0 {
		output = min(output, max(tokens-s.prompt, 0))
	}
	d.Tokens, d.Cost = s.prompt+output, l.dearest(job.Candidates, job.Model, s.prompt, output, now)
	if money > 0 && d.Cost > money {
		d.Cost = max(money, l.dearest(job.Candidates, job.Model, s.prompt, 0, now))
	}
	return d
}

// guess is how many tokens an answer is taken to have that nobody bounds: the default, or
// less if no candidate's model can give as much.
func (l *LimitSettings) guess(table *routing.Table, candidates []inference.Candidate) int64 {
	most := int64(0)
	for _, c := range candidates {
		bound := int64(table.Traits(c).OutputTokens)
		if bound == 0 {
			return l.DefaultOutput
		}
		most = max(most, bound)
	}
	if len(candidates) == 0 {
		return l.DefaultOutput
	}
	return min(most, l.DefaultOutput)
}

// dearest is what the tokens of a request for the model can cost at the candidate that
// takes the most for them.
func (l *LimitSettings) dearest(candidates []inference.Candidate, asked string, prompt, output int64, now time.Time) (most inference.Cost) {
	if l.Price == nil {
		return 0
	}
	for _, c := range candidates {
		if cost, ok := l.Price(c.Provider, c.Model, asked, prompt, output, now); ok {
			most = max(most, cost)
		}
	}
	return most
}

// leastBounds returns the smallest bounds on what one request can take; zero: there are
// none.
func leastBounds(scopes []limits.Scope) (tokens int64, money inference.Cost) {
	for i := range scopes {
		own := &scopes[i].Limits
		tokens = least(tokens, own.TokensPerMinute)
		for _, b := range [...]inference.Cost{own.Budget.Day, own.Budget.Week, own.Budget.Month} {
			money = least(money, b)
		}
	}
	return tokens, money
}

// least returns the smaller of two bounds, of which zero is none.
func least[T int64 | inference.Cost](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
