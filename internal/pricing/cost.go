package pricing

import (
	"cmp"
	"math"
	"math/bits"
	"time"

	"sluice/internal/inference"
)

const (
	million = 1_000_000

	// mostPrice bounds what a million tokens can cost, as the configuration does: with it
	// no sum below overflows, however many tokens an upstream says that there were.
	mostPrice = inference.Cost(million) * 1_000_000_000
)

// Cost returns what the tokens of a request cost at a time, rounded half up to a
// billionth, once. It is false where there is no price, or nobody knows the tokens. What is
// more than an inference.Cost can hold costs as much as that.
func (t *Table) Cost(provider, model string, usage inference.Usage, at time.Time) (inference.Cost, bool) {
	p, ok := t.Find(provider, model, at)
	if !ok || !usage.Known {
		return 0, false
	}
	return p.Of(usage), true
}

// RowCost returns what the request of a row in the ledger cost, at the time when it was
// accepted. The name counts that the provider says it used, and for prices of the
// configuration, too, the one that the client asked for, by which a provider may be known
// that has names of its own.
func (t *Table) RowCost(r *inference.Record) (inference.Cost, bool) {
	if !r.Usage.Known {
		return 0, false
	}
	p, ok := t.findFor(r.Provider, cmp.Or(r.ModelServed, r.ModelAsked), r.ModelAsked, r.CreatedAt)
	if !ok {
		return 0, false
	}
	return p.Of(r.Usage), true
}

// findFor returns the price of a model of the provider's, for a request that asked for it
// by a name which may be another one.
func (t *Table) findFor(provider, model, asked string, at time.Time) (Price, bool) {
	if p, ok := t.findOwn(provider, model, at); ok {
		return p, true
	}
	if p, ok := t.findOwn(provider, asked, at); ok {
		return p, true
	}
	return t.findShipped(provider, model, at)
}

// Estimate returns the most that a request can cost with so many tokens, whichever of them
// are cached or reasoning. The price is the one that its row would have, if the provider
// says that it used the model.
func (t *Table) Estimate(provider, model, asked string, prompt, output int64, at time.Time) (inference.Cost, bool) {
	p, ok := t.findFor(provider, model, asked, at)
	if !ok {
		return 0, false
	}
	return p.most(prompt, output), true
}

// most returns the most that so many tokens cost at this price.
func (p Price) most(prompt, output int64) inference.Cost {
	p = p.forPrompt(prompt)
	p.Input, p.CachedInput = max(p.Input, either(p.CachedInput, p.Input)), nil
	p.Output, p.Reasoning = max(p.Output, either(p.Reasoning, p.Output)), nil
	p.Long = nil
	return p.Of(inference.Usage{PromptTokens: prompt, CompletionTokens: output})
}

// forPrompt returns the price for a request whose prompt has so many tokens.
func (p Price) forPrompt(tokens int64) Price {
	if p.Long != nil && tokens > p.Long.Over {
		p.Input, p.CachedInput, p.Output, p.Reasoning = p.Long.Input, p.Long.CachedInput, p.Long.Output, nil
	}
	return p
}

// Of returns what the tokens cost at this price.
func (p Price) Of(u inference.Usage) inference.Cost {
	prompt, completion := max(u.PromptTokens, 0), max(u.CompletionTokens, 0)
	cached, reasoning := min(max(u.CachedTokens, 0), prompt), min(max(u.ReasoningTokens, 0), completion)
	p = p.forPrompt(prompt)
	var s sum
	s.add(prompt-cached, p.Input)
	s.add(cached, either(p.CachedInput, p.Input))
	s.add(completion-reasoning, p.Output)
	s.add(reasoning, either(p.Reasoning, p.Output))
	return s.perMillion()
}

func either(price *inference.Cost, otherwise inference.Cost) inference.Cost {
	if price == nil {
		return otherwise
	}
	return *price
}

// sum is a sum of products, in 128 bits.
type sum struct{ hi, lo uint64 }

// add adds what the tokens cost, a million times over. A product has less than 114 bits,
// so that no number of products that there is carries out of the sum.
func (s *sum) add(tokens int64, price inference.Cost) {
	hi, lo := bits.Mul64(uint64(max(tokens, 0)), uint64(min(max(price, 0), mostPrice)))
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, lo, 0)
	s.hi, _ = bits.Add64(s.hi, hi, carry)
}

// perMillion returns a millionth of the sum, rounded half up.
func (s *sum) perMillion() inference.Cost {
	lo, carry := bits.Add64(s.lo, million/2, 0)
	hi := s.hi + carry
	if hi >= million {
		return math.MaxInt64
	}
	quotient, _ := bits.Div64(hi, lo, million)
	return inference.Cost(min(quotient, math.MaxInt64))
}
