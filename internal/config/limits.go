package config

import (
	"sluice/internal/inference"
	"sluice/internal/limits"
)

// RateLimit configures who may take how much. Keys and tenants have their own limits
// where they are defined.
type RateLimit struct {
	// What happens while the counters cannot be reached: fail_closed refuses requests that have limits with 503, fail_open lets them pass, uncounted until the counters are back.
	OnError string `yaml:"on_error" default:"fail_closed" oneof:"fail_closed,fail_open"`
	// Tokens that an answer is taken to need when neither the request nor the model bounds it.
	DefaultOutputTokens int `yaml:"default_output_tokens" default:"1024" min:"1" max:"10000000"`
	// Limits of each key that has none of its own, or some that bound nothing.
	Key Limits `yaml:"key"`
	// Limits of each tenant that has none of its own, or some that bound nothing.
	Tenant Limits `yaml:"tenant"`
	// Limits of models, whoever asks for them. The first entry that covers a model counts, and each model is counted by itself.
	Models []ModelLimits `yaml:"models" max:"100"`
}

// Limits bound what one key or tenant may take. 0 is no bound.
type Limits struct {
	// Requests accepted in any 60 seconds.
	RequestsPerMinute int `yaml:"requests_per_minute" default:"0" min:"0" max:"1000000000"`
	// Tokens of prompts and answers in any 60 seconds.
	TokensPerMinute int `yaml:"tokens_per_minute" default:"0" min:"0" max:"1000000000000"`
	// Requests accepted and not yet answered.
	Concurrent int `yaml:"concurrent" default:"0" min:"0" max:"1000000000"`
	// Requests that no worker has begun. Background jobs and batches are not among them.
	Queued int `yaml:"queued" default:"0" min:"0" max:"1000000000"`
	// Money for requests.
	Budget Budget `yaml:"budget"`
	// What becomes of a request that does not fit now: refuse answers 429 with Retry-After, queue lets it wait until it fits or its deadline ends.
	OnLimit string `yaml:"on_limit" default:"refuse" oneof:"refuse,queue"`
	// Further limits for some models, each entry counted by itself. The first entry that covers a model counts.
	Models []ModelLimits `yaml:"models" max:"100"`
}

// ModelLimits are limits for some models. 0 is no bound.
type ModelLimits struct {
	// Models, as names or globs.
	Models []string `yaml:"models" max:"1000"`
	// Requests accepted in any 60 seconds.
	RequestsPerMinute int `yaml:"requests_per_minute" default:"0" min:"0" max:"1000000000"`
	// Tokens of prompts and answers in any 60 seconds.
	TokensPerMinute int `yaml:"tokens_per_minute" default:"0" min:"0" max:"1000000000000"`
	// Requests accepted and not yet answered.
	Concurrent int `yaml:"concurrent" default:"0" min:"0" max:"1000000000"`
	// Requests that no worker has begun. Background jobs and batches are not among them.
	Queued int `yaml:"queued" default:"0" min:"0" max:"1000000000"`
	// Money for requests.
	Budget Budget `yaml:"budget"`
}

// Budget bounds the money that requests cost, in the currency of the prices. 0 is no bound.
type Budget struct {
	// In a day of UTC.
	Day inference.Cost `yaml:"day" default:"0" min:"0" max:"1000000000"`
	// In a week of UTC, from Monday.
	Week inference.Cost `yaml:"week" default:"0" min:"0" max:"1000000000"`
	// In a month of UTC.
	Month inference.Cost `yaml:"month" default:"0" min:"0" max:"1000000000"`
}

// Policy returns the limits in the words of package limits.
func (l Limits) Policy() limits.Limits {
	p := limits.Limits{
		RequestsPerMinute: int64(l.RequestsPerMinute), TokensPerMinute: int64(l.TokensPerMinute),
		Concurrent: int64(l.Concurrent), Queued: int64(l.Queued),
		Budget: limits.Budget(l.Budget), OnLimit: limits.Action(l.OnLimit),
	}
	for _, m := range l.Models {
		p.Models = append(p.Models, m.Policy())
	}
	return p
}

// Policy returns the limits in the words of package limits.
func (m ModelLimits) Policy() limits.ModelLimits {
	return limits.ModelLimits{
		Models: m.Models, RequestsPerMinute: int64(m.RequestsPerMinute), TokensPerMinute: int64(m.TokensPerMinute),
		Concurrent: int64(m.Concurrent), Queued: int64(m.Queued), Budget: limits.Budget(m.Budget),
	}
}
