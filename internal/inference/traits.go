package inference

// Traits are what a provider can do with a model.
type Traits struct {
	Chat             bool `json:"chat,omitempty"`
	Embeddings       bool `json:"embeddings,omitempty"`
	Streaming        bool `json:"streaming,omitempty"`
	Tools            bool `json:"tools,omitempty"`
	Images           bool `json:"images,omitempty"`
	StructuredOutput bool `json:"structured_output,omitempty"` // an answer that follows a JSON Schema

	// ContextTokens bounds the prompt and OutputTokens the answer; zero when not known.
	ContextTokens int `json:"context_tokens,omitempty"`
	OutputTokens  int `json:"output_tokens,omitempty"`
}

// ModelTraits are the traits of the models that one of the names or globs (path.Match)
// covers.
type ModelTraits struct {
	Models []string `json:"models"`
	Traits
}

// ModelState is how one worker stands with one model of a provider.
type ModelState struct {
	Model      string  `json:"model"`
	Breaker    string  `json:"breaker"`               // BreakerClosed, BreakerHalfOpen or BreakerOpen
	FirstToken float64 `json:"first_token,omitempty"` // moving average of the time to the first token, or to a plain answer, in seconds
}

// The states of a circuit breaker.
const (
	BreakerClosed   = "closed"    // calls are made
	BreakerHalfOpen = "half_open" // a few calls find out whether the provider is well again
	BreakerOpen     = "open"      // no call is made
)
