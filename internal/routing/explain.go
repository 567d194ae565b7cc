package routing

import (
	"math"
	"strconv"
	"strings"

	"sluice/internal/inference"
)

// reasons says of each candidate how it came to its place, and why others have none.
func (r *route) reasons(picks []pick, n int) (why []string, excluded []Exclusion) {
	why = make([]string, n)
	for i := range why {
		why[i] = r.whyHere(&picks[i])
	}
	for _, p := range picks[n:] {
		excluded = append(excluded, Exclusion{Candidate: p.Candidate, Why: p.lack.String()})
	}
	return why, excluded
}

// String says why something that lacks this is no candidate.
func (l lack) String() string {
	var says []string
	for _, n := range lackNames {
		if l&n.lack != 0 {
			says = append(says, n.says)
		}
	}
	return strings.Join(says, ", ")
}

func (r *route) whyHere(p *pick) string {
	var s string
	switch {
	case r.rule == nil:
		s = [...]string{
			byName: "no rule applies; serves the model by its name",
			byGlob: "no rule applies; serves the model by a glob", byPrefix: "no rule applies; the model's name names the provider",
		}[p.fit]
	case p.place == 0:
		s = "target, " + r.strategyWord(p)
	default:
		on := p.On
		if on == 0 {
			on = inference.DefaultReasons
		}
		s = "fallback " + strconv.Itoa(p.place) + " on " + strings.Join(on.Names(), ", ")
		if p.class != later {
			s += ", which holds already"
		}
	}
	return s + "; " + healthWord(healthOf(p.provider, p.Model), p.health)
}

func healthWord(is, counted health) string {
	s := [...]string{well: "can be called", halfOpen: "breaker half open", open: "breaker open", holding: "paused by an operator", refused: "the provider refuses its keys", noWorker: "no worker"}[is]
	if is != counted {
		s += ", tried by chance"
	}
	return s
}

// strategyWord says what the strategy saw in a target.
func (r *route) strategyWord(p *pick) string {
	number := func(x float64) string { return strconv.FormatFloat(x, 'g', 3, 64) }
	var s string
	switch r.rule.Strategy {
	case StrategyOrdered:
		s = "in the written order"
	case StrategyRoundRobin:
		s = "in turn"
	case StrategyLeastBusy:
		s = "load " + number(r.load(p.provider))
	case StrategyLowestLatency:
		s = "latency not known"
		if x := latency(p); !math.IsInf(x, 1) {
			s = "first token after " + number(x) + " s"
		}
	case StrategyLowestCost:
		s = "price not known"
		if x := r.cost(p); !math.IsInf(x, 1) {
			s = "costs about " + number(x)
		}
	case StrategySticky:
		s = "the same for this client"
		if r.client() == "" {
			s = "by chance, as the client is not known"
		}
	default:
		s = "by chance"
	}
	if p.weight <= 0 {
		return s + ", without a weight"
	}
	return s + ", weight " + strconv.Itoa(p.weight)
}
