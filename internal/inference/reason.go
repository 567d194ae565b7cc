package inference

// Reasons is a set of reasons for which a candidate did not serve a job and another
// may.
type Reasons uint8

// The reasons to go on to another candidate.
const (
	ReasonUnavailable    Reasons = 1 << iota // no connection, 5xx, an answer that cannot be understood, keys refused, breaker open, queue full
	ReasonRateLimited                        // 429
	ReasonTimeout                            // the provider's own limits of time
	ReasonContextTooLong                     // the request is longer than the model's context
	ReasonContentRefused                     // the provider's policy does not allow the content
)

// DefaultReasons are those of a candidate whose On names none: what is the provider's
// fault alone.
const DefaultReasons = ReasonUnavailable | ReasonRateLimited | ReasonTimeout

// The reasons' names in configuration, and in what is shown of a decision.
var reasonNames = []struct {
	reason Reasons
	name   string
}{
	{ReasonUnavailable, "unavailable"},
	{ReasonRateLimited, "rate_limited"},
	{ReasonTimeout, "timeout"},
	{ReasonContextTooLong, "context_too_long"},
	{ReasonContentRefused, "content_refused"},
}

// ReasonNamed returns the reason of that name, or false if there is none.
func ReasonNamed(name string) (Reasons, bool) {
	for _, r := range reasonNames {
		if r.name == name {
			return r.reason, true
		}
	}
	return 0, false
}

// Names lists the set's reasons.
func (r Reasons) Names() []string {
	var names []string
	for _, n := range reasonNames {
		if r&n.reason != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// Refusal says why an upstream refused a request, where another might not.
type Refusal string

// The refusals that are told apart.
const (
	RefusalContext Refusal = "context_too_long"
	RefusalContent Refusal = "content_refused"
	RefusalTraits  Refusal = "incapable" // the provider's model cannot do what the request needs
)

// Reason returns why another candidate may be tried after this error, or zero if none
// may: the client's own fault stays one wherever the request goes.
func (e *Error) Reason() Reasons {
	switch e.Code {
	case CodeUpstreamRateLimited:
		return ReasonRateLimited
	case CodeUpstreamTimeout:
		return ReasonTimeout
	case CodeUpstreamUnavailable, CodeUpstreamError, CodeUpstreamInvalid, CodeUpstreamCut, CodeUpstreamAuth, CodeQueueFull:
		return ReasonUnavailable
	case CodeUpstreamRejected, CodeInvalidRequest:
		switch e.Refusal {
		case RefusalTraits:
			return ReasonUnavailable
		case RefusalContext:
			return ReasonContextTooLong
		case RefusalContent:
			return ReasonContentRefused
		}
	}
	return 0
}

// May reports whether the candidate may be tried for the reason.
func (c Candidate) May(reason Reasons) bool {
	on := c.On
	if on == 0 {
		on = DefaultReasons
	}
	return on&reason != 0
}

// NextCandidates returns the candidates that are left after the first one failed for one
// of the reasons, the one to try next in front; none if no other may be tried, or none
// of them is alive.
func NextCandidates(candidates []Candidate, reason Reasons, alive func(Candidate) bool) []Candidate {
	if len(candidates) == 0 {
		return nil
	}
	rest := candidates[1:]
	for i, c := range rest {
		if c.May(reason) && alive(c) {
			next := make([]Candidate, 0, len(rest))
			next = append(next, c)
			return append(append(next, rest[:i]...), rest[i+1:]...)
		}
	}
	return nil
}
