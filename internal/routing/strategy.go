package routing

import (
	"cmp"
	"math"

	"sluice/internal/inference"
)

// MaxWeight bounds a target's weight, so that sums and products of weights fit.
const MaxWeight = 1_000_000

// unknownOutput is the length of an answer, in tokens, that costs are compared for when
// the request does not bound it.
const unknownOutput = 256

// The explorations: one request in so many goes where knowledge is wanted instead of
// where it leads. They look at different bits, so that one does not come with another.
const (
	probeHalfOpen   = 4  // 1 of 16 takes a half open breaker for a closed one
	probeUnmeasured = 8  // 1 of 16 goes to a target whose latency is not known
	probeSlower     = 12 // 1 of 64 goes to one that is not the fastest, whose average would not move otherwise
)

// explores reports whether the request is one of the few that an exploration takes.
func (q *Request) explores(exploration uint) bool {
	most := uint64(15)
	if exploration == probeSlower {
		most = 63
	}
	return mix(q.Random)>>exploration&most == most
}

// arrange puts a rule's targets, which are all the picks by now, into the order of its
// strategy: those with a weight, those without one, and last those that lack something.
func (r *route) arrange(picks []pick) {
	for i := range picks {
		picks[i].key, picks[i].lot = float64(group(&picks[i])), 0
	}
	sortPicks(picks)
	r.draw(picks)
	turn := r.turn()
	for len(picks) > 0 && group(&picks[0]) < 2 {
		n := 1
		for n < len(picks) && group(&picks[n]) == group(&picks[0]) {
			n++
		}
		r.prefer(picks[:n], turn)
		picks = picks[n:]
	}
}

func group(p *pick) int {
	switch {
	case p.lack != 0:
		return 2
	case p.weight <= 0:
		return 1
	default:
		return 0
	}
}

// turn returns whose turn it is. Requests that nobody counts take theirs by chance.
func (r *route) turn() uint64 {
	switch {
	case r.rule.Strategy != StrategyRoundRobin:
		return 0
	case r.q.Turn == nil:
		return mix(r.q.Random)
	default:
		return r.q.Turn(r.rule.Name)
	}
}

// prefer orders targets that all have a weight, or all have none.
func (r *route) prefer(picks []pick, turn uint64) {
	s := r.rule.Strategy
	if s == StrategyOrdered || len(picks) < 2 {
		return
	}
	if s == StrategyRoundRobin {
		takeTurns(picks, turn)
		return
	}
	for i := range picks {
		p := &picks[i]
		switch p.key = 0; s {
		case StrategyLeastBusy:
			p.key = r.load(p.provider)
		case StrategyLowestLatency:
			p.key = latency(p)
		case StrategyLowestCost:
			p.key = r.cost(p)
		}
	}
	sortPicks(picks)
	if s == StrategyLowestLatency {
		r.measure(picks)
	}
}

// draw gives each target its lot: of many requests, each target has the least lot in so
// many as its weight says. For StrategySticky it is the same for the same client.
func (r *route) draw(picks []pick) {
	s := r.rule.Strategy
	client := ""
	switch s {
	case StrategyOrdered, StrategyRoundRobin:
		return
	case StrategySticky:
		client = r.client()
	}
	for i := range picks {
		p := &picks[i]
		h := mix(r.q.Random + uint64(i+1)*0x9e3779b97f4a7c15)
		if client != "" {
			h = digest(client, p.Provider, p.Model)
		}
		// The least of such numbers falls to each with a chance proportional to its
		// weight, and what is left of them keeps that when one is taken away.
		u := (float64(h>>11) + 0.5) / (1 << 53)
		p.lot = -math.Log(u) / float64(share(p))
	}
}

// client returns what a sticky choice goes by; empty if the request has nothing of the
// kind.
func (r *route) client() string {
	if r.rule.StickyHeader != "" && r.q.Header != nil {
		if value := r.q.Header(r.rule.StickyHeader); value != "" {
			return value
		}
	}
	return r.q.User
}

// share is the weight that counts. Targets without one are equal among themselves.
func share(p *pick) int64 { return int64(min(max(p.weight, 1), MaxWeight)) }

// takeTurns orders the targets by whose turn it is. Each has as many turns in a cycle
// as its share, evenly spread: the k-th one of target i of n stands in the cycle, which
// is as long as all shares together, at (k + (i+1)/(n+1)) / share. What is sought is the
// turn at that rank among all of them, which lies near the place of the same number.
func takeTurns(picks []pick, turn uint64) {
	var cycle int64
	n := int64(len(picks))
	for i := range picks {
		cycle += share(&picks[i])
	}
	rank := int64(turn % uint64(cycle)) // both fit: a cycle is at least 1 and at most MaxCandidates times MaxWeight
	place := max(rank-(n+1)/2-1, 0)
	next := make([]int64, n) // the numerator of each one's next place, as its share is the denominator
	passed := int64(0)
	for i := range n {
		k := (share(&picks[i])*place*(n+1) + (n-i)*cycle) / (cycle * (n + 1))
		next[i] = k*(n+1) + i + 1
		passed += k
	}
	for ; passed < rank; passed++ {
		first := int64(0)
		for i := range n {
			if next[i]*share(&picks[first]) < next[first]*share(&picks[i]) {
				first = i
			}
		}
		next[first] += n + 1
	}
	for i := range picks {
		picks[i].key, picks[i].lot = float64(next[i])/float64(share(&picks[i])), 0
	}
	sortPicks(picks)
}

// load is the part of what the provider bears that is taken. A job that this process
// has just sent is not in the workers' word yet.
func (r *route) load(p *Provider) float64 {
	jobs := p.InFlight + p.Waiting + p.Held
	if r.q.Load != nil {
		jobs = max(jobs, r.q.Load(p.Name))
	}
	return float64(jobs) / float64(max(p.Limit, 1))
}

// latency is the time to the first token, in seconds; infinite when not known.
func latency(p *pick) float64 {
	if s := stateOf(p.provider, p.Model); s != nil && s.FirstToken > 0 {
		return s.FirstToken
	}
	return math.Inf(1)
}

// measure puts another target before the fastest one, now and then: one that was not
// measured, or one that is not the fastest. Which one it is, chance says.
func (r *route) measure(picks []pick) {
	known := 0
	for known < len(picks) && !math.IsInf(picks[known].key, 1) {
		known++
	}
	from, to := known, len(picks) // those not measured
	if from == to || !r.q.explores(probeUnmeasured) {
		from, to = 1, known
		if known < 2 || !r.q.explores(probeSlower) {
			return
		}
	}
	chosen := from
	for i := from; i < to; i++ {
		if picks[i].lot < picks[chosen].lot {
			chosen = i
		}
	}
	p := picks[chosen]
	copy(picks[1:chosen+1], picks[:chosen])
	picks[0] = p
}

// cost is what the answer would cost, as far as can be estimated; infinite when the
// price is not known.
func (r *route) cost(p *pick) float64 {
	output := cmp.Or(r.q.OutputTokens, unknownOutput)
	if r.q.Kind == inference.KindEmbeddings {
		output = 0
	}
	for _, price := range p.provider.Prices {
		if MatchesAny(price.Models, p.Model) {
			return (float64(r.q.PromptTokens)*price.Input + float64(output)*price.Output) / 1e6
		}
	}
	return math.Inf(1)
}

// mix scatters a number over all 64 bits, as the last step of splitmix64 does (Steele,
// Lea and Flood, 2014). Zero stays zero.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// digest is the FNV-1a hash of the texts, scattered. Every process has to come to the
// same one.
func digest(texts ...string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for _, text := range texts {
		for i := range len(text) {
			h = (h ^ uint64(text[i])) * 0x100000001b3
		}
		h = (h ^ 0xff) * 0x100000001b3 // a byte that UTF-8 does not have
	}
	return mix(h)
}
