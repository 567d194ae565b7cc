package routing

import "sluice/internal/inference"

// lack is a set of reasons for which a provider and model are no candidate.
type lack uint16

const (
	lackChat lack = 1 << iota
	lackEmbeddings
	lackStreaming
	lackTools
	lackImages
	lackStructured
	lackContext
	lackOutput
	// What follows is no want of a trait.
	notKnown
	notServed
	meantForAnother
	notDue
	tooMany
	drained
)

// wants are the lacks that are told to the caller.
const wants = notKnown - 1

// lackNames holds what is said of each lack: what is missing, and of an excluded
// candidate.
var lackNames = []struct {
	lack          lack
	missing, says string
}{
	{lackChat, "chat", "does not chat"},
	{lackEmbeddings, "embeddings", "cannot make embeddings"},
	{lackStreaming, "streaming", "cannot stream"},
	{lackTools, "tools", "cannot call tools"},
	{lackImages, "images", "cannot see images"},
	{lackStructured, "structured output", "cannot follow a JSON Schema"},
	{lackContext, "a prompt of this length", "has a context too short for the prompt"},
	{lackOutput, "an answer of this length", "cannot answer at the length that is allowed for"},
	{notKnown, "", "is a provider that nobody serves and the configuration does not name"},
	{notServed, "", "does not serve the model"},
	{meantForAnother, "", "serves any such model, but this one's name names another provider"},
	{notDue, "", "is a fallback, for reasons that do not hold"},
	{tooMany, "", "comes after as many candidates as a job can have"},
	{drained, "", "is drained by an operator"},
}

// lacks returns what the provider's model cannot do that the request needs.
func lacks(p *Provider, model string, q *Request) lack {
	t := traitsOf(p, model)
	if t == nil {
		return 0
	}
	var l lack
	for _, need := range [...]struct {
		lack        lack
		needed, can bool
	}{
		{lackChat, q.Kind == inference.KindChat, t.Chat},
		{lackEmbeddings, q.Kind == inference.KindEmbeddings, t.Embeddings},
		{lackStreaming, q.Stream, t.Streaming},
		{lackTools, q.Tools, t.Tools},
		{lackImages, q.Images, t.Images},
		{lackStructured, q.StructuredOutput, t.StructuredOutput},
		{lackContext, t.ContextTokens > 0, fitsContext(q.PromptTokens, t.ContextTokens)},
		{lackOutput, t.OutputTokens > 0, q.OutputTokens <= t.OutputTokens},
	} {
		if need.needed && !need.can {
			l |= need.lack
		}
	}
	return l
}

// fitsContext reports whether a prompt of the estimated length may fit. The estimate is
// rough: it takes a token for four bytes, and plain prose has five to a token and more.
// To refuse what would have fit is worse than to try what does not, which the upstream
// says itself and a fallback may stand ready for. So only a prompt that would not fit
// at six bytes to a token is held to be too long.
func fitsContext(prompt, context int) bool { return prompt-context <= context/2 }

func traitsOf(p *Provider, model string) *inference.Traits {
	for i := range p.Traits {
		if MatchesAny(p.Traits[i].Models, model) {
			return &p.Traits[i].Traits
		}
	}
	return nil
}

// health is how likely a call is to be made at all, the likeliest first.
type health uint8

const (
	well health = iota
	halfOpen
	open
	holding // an operator has paused it: its queue takes jobs, and keeps them
	refused
	noWorker
)

// callable reports whether a worker would make the call.
func (h health) callable() bool { return h <= halfOpen }

// healthOf returns how the provider stands with the model. What is not known is well.
func healthOf(p *Provider, model string) health {
	if !p.Live() {
		return noWorker
	}
	if p.Refused {
		return refused
	}
	if p.Paused {
		return holding
	}
	if s := stateOf(p, model); s != nil {
		switch s.Breaker {
		case inference.BreakerHalfOpen:
			return halfOpen
		case inference.BreakerOpen:
			return open
		}
	}
	return well
}

// Missing returns what a model of these traits cannot do that the request needs, as
// Decision.Lacking names it.
func Missing(traits []inference.ModelTraits, model string, q Request) []string {
	return lacks(&Provider{Traits: traits}, model, &q).missing()
}

// missing names what is lacking of what a request can need.
func (l lack) missing() []string {
	var names []string
	for _, n := range lackNames {
		if l&wants&n.lack != 0 {
			names = append(names, n.missing)
		}
	}
	return names
}

func stateOf(p *Provider, model string) *inference.ModelState {
	for i := range p.States {
		if p.States[i].Model == model {
			return &p.States[i]
		}
	}
	return nil
}
