package worker

import (
	"strings"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/internal/routing"
)

// able returns an error if the job's model cannot do what its request needs. The ingress
// routes by that, but it knows only what workers have told it: a job may have been
// waiting for the provider's first one. The request is read only where the model lacks
// something.
func (p *pool) able(job *inference.Job) error {
	traits := p.traits.Load()
	if traits == nil {
		return nil
	}
	model := job.Candidate().Model
	all := routing.Request{Kind: job.Kind, Stream: job.Stream, Tools: true, Images: true, StructuredOutput: true}
	if job.Kind != inference.KindChat {
		all = routing.Request{Kind: job.Kind}
	}
	if len(routing.Missing(*traits, model, all)) == 0 {
		return nil
	}
	needs := routing.Request{Kind: job.Kind, Stream: job.Stream}
	if job.Kind == inference.KindChat {
		req, err := openaiapi.ParseChat(job.Body)
		if err != nil {
			return nil //nolint:nilerr // the ingress has checked it; if it is odd, the provider will say so
		}
		needs.Tools, needs.Images, needs.StructuredOutput = req.HasTools, req.HasImages, req.Structured
	}
	lacking := routing.Missing(*traits, model, needs)
	if len(lacking) == 0 {
		return nil
	}
	e := inference.Errorf(inference.CodeInvalidRequest, "The model does not support %s at provider %q.", strings.Join(lacking, " and "), p.member.Name)
	e.Refusal = inference.RefusalTraits
	return e
}
