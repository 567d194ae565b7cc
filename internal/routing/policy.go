package routing

import "sluice/internal/inference"

// Policy is what the configuration says of routing. It is not changed after it was
// built.
type Policy struct {
	Order   []string          // providers to prefer where no rule applies, first to last; the others follow by name
	Aliases map[string]string // models by the other names that clients may use for them
	Rules   []Rule            // the first whose condition holds decides
}

// Rule says where the requests go that meet its condition.
type Rule struct {
	Name     string
	When     When
	Targets  []Target
	Strategy Strategy
	// StickyHeader is the header that StrategySticky goes by; empty: the end user whom
	// the request names.
	StickyHeader string
	Fallback     []Fallback
}

// When is a rule's condition: all of All, one of Any unless there are none, and none
// of Not must hold. The zero When always holds.
type When struct {
	All, Any, Not []Match
}

// Match holds for a request that has all of what it names. Texts are names or globs, of
// which one must cover the request's.
type Match struct {
	Models    []string // as the client asked for it, or what the alias stands for
	Endpoints []string // chat or embeddings
	Tenants   []string
	Keys      []string // the keys' names or ids
	Headers   map[string]string
	Metadata  map[string]string // of the request's field metadata
	Stream    *bool
	Tools     *bool
	Images    *bool
	// MinPromptTokens and MaxPromptTokens bound the estimated length of the prompt, both
	// included; zero does not.
	MinPromptTokens, MaxPromptTokens int
}

// Target is a provider and the model to ask it for.
type Target struct {
	Provider string
	Model    string // empty: the one that the client asked for
	Weight   int    // share of the requests, against the other targets' weights; of a target with zero only when the others cannot
}

// Fallback are targets, in order, for requests that those before could not serve for
// one of the reasons.
type Fallback struct {
	On      inference.Reasons
	Targets []Target // weights do not count
}

// Strategy is how a rule chooses among its targets.
type Strategy string

// The strategies.
const (
	StrategyWeighted      Strategy = "weighted"       // by chance, in proportion to the weights
	StrategyOrdered       Strategy = "ordered"        // as they are written
	StrategyRoundRobin    Strategy = "round_robin"    // each in turn, as often as its weight says
	StrategyLeastBusy     Strategy = "least_busy"     // the one with the most free capacity
	StrategyLowestLatency Strategy = "lowest_latency" // the shortest time to the first token of late
	StrategyLowestCost    Strategy = "lowest_cost"    // the lowest estimated price
	StrategySticky        Strategy = "sticky"         // the same one for the same header or end user, as long as it can serve
)

// Price is what a provider takes for models, in money for a million tokens.
type Price struct {
	Models        []string // names or globs
	Input, Output float64
}

// Request is what routing looks at.
type Request struct {
	Model    string
	Kind     inference.Kind
	Tenant   string
	KeyID    string
	KeyName  string
	Header   func(name string) string // may be nil
	Metadata map[string]string
	User     string // the end user whom the request names; empty if none
	Counted  string // what the model is called without a provider that its name names; conditions look at it, too; may be empty

	Stream, Tools, Images, StructuredOutput bool

	PromptTokens int // estimated
	OutputTokens int // the most that the request allows; zero when it does not say

	Random uint64                    // drawn anew for each request, for choices by chance
	Turn   func(rule string) uint64  // counts the requests of a rule, for turns; called at most once, may be nil
	Load   func(provider string) int // jobs that this process has at the provider, known sooner than by its workers' word; may be nil
}

// Decision is where a request may go.
type Decision struct {
	Model      string // what the alias stands for, or what was asked for
	Alias      bool
	Rule       string // empty: none applied
	Candidates []inference.Candidate

	// Lacking names what the providers cannot do that the request needs, such as
	// "images", when that leaves no candidate. Where it is empty too, nobody serves the
	// model at all.
	Lacking []string

	// Drained are those that could serve the request and are drained by an operator, when
	// that leaves no candidate.
	Drained []inference.Candidate

	// Why says of each candidate how it came to its place, and Excluded why others did
	// not. Only Explain fills them.
	Why      []string
	Excluded []Exclusion
}

// Exclusion is a provider and model that cannot serve the request.
type Exclusion struct {
	inference.Candidate
	Why string
}
