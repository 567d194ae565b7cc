package inference

import "time"

// Kind names the operation that a job asks for; it selects the provider's endpoint.
type Kind string

// The kinds of job.
const (
	KindChat       Kind = "chat"       // the body is an OpenAI chat-completions request
	KindEmbeddings Kind = "embeddings" // the body is an OpenAI embeddings request
)

// Lane is a job's priority lane in its provider's queue.
type Lane string

// LaneInteractive carries calls that a client waits for.
const LaneInteractive Lane = "interactive"

// Candidate is one way to serve a job: a provider and the model to ask it for.
type Candidate struct {
	Provider string
	Model    string
}

// Job is one accepted request on its way to a worker.
type Job struct {
	ID        string // unique; begins with the id of the ingress that accepted it
	RequestID string // the client's x-request-id, or one made for it
	Epoch     int    // raised each time the ingress publishes the job again
	Kind      Kind
	Lane      Lane
	Tenant    string
	KeyID     string
	Model     string // as the client asked for it
	Stream    bool

	// IncludeUsage says that the client itself asked for the usage chunk of a
	// streamed answer (stream_options.include_usage).
	IncludeUsage bool

	CreatedAt time.Time
	Deadline  time.Time

	// Candidates are still to be tried, in order; the first is the one whose queue
	// the job stands in.
	Candidates []Candidate

	// Attempts counts the calls already made to providers for this job.
	Attempts int

	TraceParent string // W3C traceparent of the client, passed on as it came
	Body        []byte // the client's JSON, in the OpenAI form
}

// Candidate returns the candidate whose queue the job stands in, or the zero
// Candidate if none is left.
func (j *Job) Candidate() Candidate {
	if len(j.Candidates) == 0 {
		return Candidate{}
	}
	return j.Candidates[0]
}
