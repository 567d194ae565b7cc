package cache

import (
	"time"

	"sluice/internal/routing"
)

// Policy is what the configuration says of the cache. It is not changed after it was
// built. The zero Policy keeps nothing.
type Policy struct {
	MemoryBytes   int64 // of answers that one ingress keeps in memory; zero: none
	DatabaseBytes int64 // of answers in the database; zero: none
	MaxAnswer     int   // bytes of the largest answer that is kept

	TTL       time.Duration // of an answer that a request asks to keep without a rule for it
	ByRequest bool          // requests may ask where no rule does
	Rules     []Rule        // the first whose condition holds decides
}

// Rule says how the requests are cached that meet its condition.
type Rule struct {
	Name         string
	When         routing.When
	Enabled      bool
	TTL          time.Duration
	StaleIfError time.Duration // how much longer an answer may be given when no provider can serve
	PerKey       bool          // the requests of a key share an answer, rather than those of a tenant
	Coalesce     bool          // identical requests under way at once make one call
}

// Keeps reports whether there is anywhere to keep an answer.
func (p *Policy) Keeps() bool { return p.MemoryBytes > 0 || p.DatabaseBytes > 0 }

// Decide returns how a request is cached, if it is. resolved is the model that the
// request's stands for. A rule that covers the request decides alone; where none does, the
// request's own wish counts.
func (p *Policy) Decide(q *routing.Request, resolved string, wish Wish) (Rule, bool) {
	if !p.Keeps() {
		return Rule{}, false
	}
	for i := range p.Rules {
		if p.Rules[i].When.Holds(q, resolved) {
			return p.Rules[i], p.Rules[i].Enabled
		}
	}
	return Rule{TTL: p.TTL}, p.ByRequest && wish.Asks()
}
