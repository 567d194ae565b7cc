package config

import (
	"sluice/internal/inference"
	"sluice/internal/routing"
)

// Routing configures which provider serves which request.
type Routing struct {
	// Providers in order of preference where several serve a model and no rule says otherwise; those not named follow by name.
	Order []string `yaml:"order"`
	// Models by other names that clients may ask for, such as fast: gpt-4o-mini. A model may be written as provider/model. It is not an alias itself.
	Aliases map[string]string `yaml:"aliases" max:"10000"`
	// Where requests go that meet a condition. The first rule whose condition holds decides; a request that meets none goes to any provider of its model.
	Rules []Rule `yaml:"rules" max:"256"`
}

// Rule says where the requests go that meet its condition.
type Rule struct {
	// Name of the rule in explanations and error messages, unique among the rules.
	Name string `yaml:"name"`
	// Which requests the rule is for. Not given: all of them.
	When When `yaml:"when"`
	// The providers, and their models, of which one serves a request.
	Targets []Target `yaml:"targets" max:"64"`
	// How a target is chosen: weighted by chance in proportion to the weights, ordered as they are written, round_robin in turn, least_busy by free capacity, lowest_latency by the time to the first token of late, lowest_cost by the estimated price, sticky always the same for the same header or end user.
	Strategy string `yaml:"strategy" default:"weighted" oneof:"weighted,ordered,round_robin,least_busy,lowest_latency,lowest_cost,sticky"`
	// Request header that the strategy sticky goes by. Empty: the end user whom the request names.
	StickyHeader string `yaml:"sticky_header"`
	// What is tried when no target could serve the request, by the reason.
	Fallback []Fallback `yaml:"fallback" max:"16"`
}

// When is a rule's condition. All three parts must hold; one that is not given does.
type When struct {
	// All of these must match.
	All []Match `yaml:"all" max:"64"`
	// At least one of these must match.
	Any []Match `yaml:"any" max:"64"`
	// None of these may match.
	Not []Match `yaml:"not" max:"64"`
}

// Match holds for a request that has everything it names. Where it lists names or
// globs, one of them must cover the request's.
type Match struct {
	// Models, as the client asked for them or as the alias has them.
	Models []string `yaml:"models" max:"1000"`
	// Endpoints: chat, embeddings or both.
	Endpoints []string `yaml:"endpoints" oneof:"chat,embeddings" max:"2"`
	// Tenants of the key.
	Tenants []string `yaml:"tenants" max:"1000"`
	// Names or ids of keys.
	Keys []string `yaml:"keys" max:"1000"`
	// Request headers, each with the name or glob that its value must meet.
	Headers map[string]string `yaml:"headers" max:"64"`
	// Values of the request's field metadata, each with the name or glob that it must meet.
	Metadata map[string]string `yaml:"metadata" max:"64"`
	// Whether the answer is streamed.
	Stream *bool `yaml:"stream"`
	// Whether the request offers tools.
	Tools *bool `yaml:"tools"`
	// Whether the request holds images.
	Images *bool `yaml:"images"`
	// Least length of the prompt, in tokens as estimated. 0: any.
	MinPromptTokens int `yaml:"min_prompt_tokens" default:"0" min:"0" max:"100000000"`
	// Greatest length of the prompt, in tokens as estimated. 0: any.
	MaxPromptTokens int `yaml:"max_prompt_tokens" default:"0" min:"0" max:"100000000"`
}

// Target is a provider and the model to ask it for.
type Target struct {
	// Name of the provider.
	Provider string `yaml:"provider"`
	// Model to ask the provider for. Empty: the one that the client asked for.
	Model string `yaml:"model"`
	// Share of the requests, against the other targets' weights. 0: only when the others cannot.
	Weight int `yaml:"weight" default:"1" min:"0" max:"1000000"`
}

// Fallback names what is tried after a failure.
type Fallback struct {
	// Reasons for which these targets are tried: unavailable, rate_limited, timeout, context_too_long (the prompt is longer than the model takes) and content_refused (the provider's policy does not allow the content).
	On []string `yaml:"on" default:"unavailable,rate_limited,timeout" oneof:"unavailable,rate_limited,timeout,context_too_long,content_refused" max:"5"`
	// What is tried, in this order.
	Targets []FallbackTarget `yaml:"targets" max:"64"`
}

// FallbackTarget is a provider and the model to ask it for. Fallbacks are tried in
// order, so they have no weight.
type FallbackTarget struct {
	// Name of the provider.
	Provider string `yaml:"provider"`
	// Model to ask the provider for. Empty: the one that the client asked for.
	Model string `yaml:"model"`
}

// Policy returns the settings in the words of package routing.
func (r Routing) Policy() routing.Policy {
	p := routing.Policy{Order: r.Order, Aliases: r.Aliases}
	for _, rule := range r.Rules {
		p.Rules = append(p.Rules, rule.policy())
	}
	return p
}

func (r Rule) policy() routing.Rule {
	rule := routing.Rule{
		Name: r.Name, Strategy: routing.Strategy(r.Strategy), StickyHeader: r.StickyHeader,
		When: routing.When{All: matches(r.When.All), Any: matches(r.When.Any), Not: matches(r.When.Not)},
	}
	for _, t := range r.Targets {
		rule.Targets = append(rule.Targets, routing.Target{Provider: t.Provider, Model: t.Model, Weight: t.Weight})
	}
	for _, f := range r.Fallback {
		rule.Fallback = append(rule.Fallback, f.policy())
	}
	return rule
}

func matches(ms []Match) []routing.Match {
	var out []routing.Match
	for _, m := range ms {
		out = append(out, routing.Match{
			Models: m.Models, Endpoints: m.Endpoints, Tenants: m.Tenants, Keys: m.Keys, Headers: m.Headers, Metadata: m.Metadata,
			Stream: m.Stream, Tools: m.Tools, Images: m.Images,
			MinPromptTokens: m.MinPromptTokens, MaxPromptTokens: m.MaxPromptTokens,
		})
	}
	return out
}

func (f Fallback) policy() routing.Fallback {
	var fallback routing.Fallback
	for _, name := range f.On {
		reason, _ := inference.ReasonNamed(name) // the setting takes no other word
		fallback.On |= reason
	}
	for _, t := range f.Targets {
		fallback.Targets = append(fallback.Targets, routing.Target{Provider: t.Provider, Model: t.Model})
	}
	return fallback
}
