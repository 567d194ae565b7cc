// Package adminapi holds what an operator's commands and a running ingress say to each
// other on the admin listener, and how that reads in the words of package routing. It
// neither serves nor calls: that is the ingress's and the command's.
package adminapi

// ExplainPath is where an ingress explains its routing: an ExplainRequest is posted
// there as JSON, with the admin token as a bearer token, and an ExplainResponse comes
// back.
const ExplainPath = "/admin/v1/route/explain"

// The endpoints that a request can be for.
const (
	EndpointChat       = "chat"
	EndpointEmbeddings = "embeddings"
)

// ExplainRequest describes a request of a client's, of which nothing is sent to a
// provider.
type ExplainRequest struct {
	Model    string            `json:"model"`
	Endpoint string            `json:"endpoint,omitempty"` // EndpointChat or EndpointEmbeddings; empty means chat
	Tenant   string            `json:"tenant,omitempty"`
	Key      string            `json:"key,omitempty"` // the client key's name or id
	Headers  map[string]string `json:"headers,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	User     string            `json:"user,omitempty"` // the end user whom the request names

	Stream           bool `json:"stream,omitempty"`
	Tools            bool `json:"tools,omitempty"`
	Images           bool `json:"images,omitempty"`
	StructuredOutput bool `json:"structured_output,omitempty"`

	PromptTokens int `json:"prompt_tokens,omitempty"` // estimated length of the prompt
	OutputTokens int `json:"output_tokens,omitempty"` // the most that the answer may have; zero when the request does not say
}

// ExplainResponse says where such a request would go, and why.
type ExplainResponse struct {
	Model      string      `json:"model"`          // what an alias stands for, or what was asked for
	Rule       string      `json:"rule,omitempty"` // empty: none applied
	Candidates []Candidate `json:"candidates"`     // in the order in which they would be tried
	Excluded   []Excluded  `json:"excluded"`
	Lacking    []string    `json:"lacking,omitempty"` // what the request needs and no provider of the model can do
}

// Candidate is a provider and the model that it would be asked for.
type Candidate struct {
	Provider string   `json:"provider"`
	Model    string   `json:"model"`
	On       []string `json:"on,omitempty"` // reasons for which it is tried after the ones before it; empty: the default ones
	Why      string   `json:"why"`          // how it came to its place
}

// Excluded is a provider and model that cannot serve the request.
type Excluded struct {
	Provider string `json:"provider"`
	Model    string `json:"model"`
	Why      string `json:"why"`
}
