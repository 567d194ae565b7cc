package adminapi

import (
	"net/http"

	"sluice/internal/inference"
	"sluice/internal/routing"
)

// Question is the request in the words of package routing. What differs from one
// request to the next, such as chance and turns, is the caller's to add.
func (r ExplainRequest) Question() routing.Request {
	header := make(http.Header, len(r.Headers))
	for name, value := range r.Headers {
		header.Set(name, value)
	}
	q := routing.Request{
		Model: r.Model, Kind: inference.KindChat, Tenant: r.Tenant, KeyID: r.Key, KeyName: r.Key,
		Header: header.Get, Metadata: r.Metadata, User: r.User,
		Stream: r.Stream, Tools: r.Tools, Images: r.Images, StructuredOutput: r.StructuredOutput,
		PromptTokens: r.PromptTokens, OutputTokens: r.OutputTokens,
	}
	if r.Endpoint == EndpointEmbeddings {
		q.Kind = inference.KindEmbeddings
	}
	return q
}

// Explained is a decision of routing.Table.Explain as it is shown.
func Explained(d routing.Decision) ExplainResponse {
	r := ExplainResponse{Model: d.Model, Rule: d.Rule, Candidates: []Candidate{}, Excluded: []Excluded{}, Lacking: d.Lacking}
	for i, c := range d.Candidates {
		shown := Candidate{Provider: c.Provider, Model: c.Model, On: c.On.Names()}
		if i < len(d.Why) {
			shown.Why = d.Why[i]
		}
		r.Candidates = append(r.Candidates, shown)
	}
	for _, e := range d.Excluded {
		r.Excluded = append(r.Excluded, Excluded{Provider: e.Provider, Model: e.Model, Why: e.Why})
	}
	return r
}
