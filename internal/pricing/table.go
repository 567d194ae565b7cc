// Package pricing says what requests cost. It knows what the configuration says of a
// provider's prices, and the vendors' public ones, which it ships as data
// (prices.yaml).
//
// It is pure and counts in integers: the same table, tokens and time give the same cost
// on every machine. A model without a known price has none, rather than a guessed one. It
// reads no configuration and no database; its neighbours are ingress, which prices each
// row of the ledger, and cmd, which makes the table.
package pricing

import (
	"slices"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/routing"
)

// Price is what models cost, for a million tokens.
type Price struct {
	Models      []string // names or globs
	From        time.Time
	Input       inference.Cost
	CachedInput *inference.Cost // nil: as Input
	Output      inference.Cost
	Reasoning   *inference.Cost // nil: as Output

	// Long is what a request costs whose prompt has more than Long.Over tokens, all of
	// it. Only shipped prices have it.
	Long *LongPrice
}

// LongPrice is what a request with a long prompt costs, for a million tokens.
type LongPrice struct {
	Over        int64 // tokens of the prompt
	Input       inference.Cost
	CachedInput *inference.Cost // nil: as Input
	Output      inference.Cost
}

// The provider types whose prices are known: the vendors' own, and the simulated one,
// which costs nothing. Any other is known by the configuration alone.
const (
	typeOpenAI    = "openai"
	typeAnthropic = "anthropic"
	typeGemini    = "gemini"
	typeSim       = "sim"
)

// Table knows what providers cost. It is not changed, and nil knows nothing.
type Table struct {
	own     map[string][]Price // by the provider's name; the latest begins the list
	vendors map[string]*list   // by the provider's name
}

// New returns the table of the providers with these types and with these prices of their
// own, both by the provider's name.
//
// Prices of its own come first. After them count the vendor's public prices, which the
// type tells: anthropic and gemini are their vendors' own APIs. The type openai is
// anybody's who speaks that format, and an ingress may not know where; but models are
// found by OpenAI's own full names (gpt-4o, o3), so that a self-hosted llama or gpt-oss
// finds none. A provider whose type the configuration leaves out has it from its name, if
// that is a vendor's.
func New(own map[string][]Price, types map[string]string) *Table {
	t := &Table{own: make(map[string][]Price, len(own)), vendors: make(map[string]*list, len(types))}
	for name, prices := range own {
		t.own[name] = latestFirst(prices)
	}
	for name, kind := range types {
		if kind == "" {
			kind = name
		}
		if l := shipped()[kind]; l != nil {
			t.vendors[name] = l
		}
	}
	return t
}

// latestFirst orders prices so that of those that have begun the first one counts: the
// latest, and of several from one time the one that was written first.
func latestFirst(prices []Price) []Price {
	prices = slices.Clone(prices)
	slices.SortStableFunc(prices, func(a, b Price) int { return b.From.Compare(a.From) })
	return prices
}

// Find returns the price of a model at a time.
func (t *Table) Find(provider, model string, at time.Time) (Price, bool) {
	if p, ok := t.findOwn(provider, model, at); ok {
		return p, true
	}
	return t.findShipped(provider, model, at)
}

func (t *Table) findOwn(provider, model string, at time.Time) (Price, bool) {
	if t == nil || model == "" {
		return Price{}, false
	}
	for _, p := range t.own[provider] {
		if !p.From.After(at) && routing.MatchesAny(p.Models, model) {
			return p, true
		}
	}
	return Price{}, false
}

func (t *Table) findShipped(provider, model string, at time.Time) (Price, bool) {
	if t == nil || model == "" {
		return Price{}, false
	}
	return t.vendors[provider].find(model, at)
}

// List returns the prices of a provider at a time, in the order in which they count: the
// first that covers a model is the model's.
func (t *Table) List(provider string, at time.Time) []Price {
	if t == nil {
		return nil
	}
	var prices []Price
	for _, p := range t.own[provider] {
		if !p.From.After(at) {
			prices = append(prices, p)
		}
	}
	return append(prices, t.vendors[provider].at(at)...)
}

// list is a vendor's prices, laid out for the looking up of a name: nearly all names are
// there as they are, and the others begin with something that is.
type list struct {
	exact    map[string][]Price
	prefixes []prefix // the longest first
}

type prefix struct {
	text   string
	prices []Price // the latest first
}

func newList(prices []Price) *list {
	l := &list{exact: make(map[string][]Price)}
	begins := make(map[string][]Price)
	for _, p := range latestFirst(prices) {
		for _, model := range p.Models {
			if text, glob := strings.CutSuffix(model, "*"); glob {
				begins[text] = append(begins[text], p)
			} else {
				l.exact[model] = append(l.exact[model], p)
			}
		}
	}
	for text, prices := range begins {
		l.prefixes = append(l.prefixes, prefix{text, prices})
	}
	slices.SortFunc(l.prefixes, func(a, b prefix) int {
		if d := len(b.text) - len(a.text); d != 0 {
			return d
		}
		return strings.Compare(a.text, b.text)
	})
	return l
}

func (l *list) find(model string, at time.Time) (Price, bool) {
	if l == nil {
		return Price{}, false
	}
	if p, ok := begun(l.exact[model], at); ok {
		return p, true
	}
	for _, x := range l.prefixes {
		if strings.HasPrefix(model, x.text) {
			if p, ok := begun(x.prices, at); ok {
				return p, true
			}
		}
	}
	return Price{}, false
}

// at returns what holds at the time, each for one name or beginning.
func (l *list) at(at time.Time) []Price {
	if l == nil {
		return nil
	}
	var prices []Price
	for model, all := range l.exact {
		if p, ok := begun(all, at); ok {
			p.Models = []string{model}
			prices = append(prices, p)
		}
	}
	slices.SortFunc(prices, func(a, b Price) int { return strings.Compare(a.Models[0], b.Models[0]) })
	for _, x := range l.prefixes {
		if p, ok := begun(x.prices, at); ok {
			p.Models = []string{x.text + "*"}
			prices = append(prices, p)
		}
	}
	return prices
}

// begun returns the first of the prices that has begun.
func begun(prices []Price, at time.Time) (Price, bool) {
	for _, p := range prices {
		if !p.From.After(at) {
			return p, true
		}
	}
	return Price{}, false
}
