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

// The lanes, in the order in which they are served.
const (
	LaneInteractive Lane = "interactive" // calls that a client waits for
	LaneBackground  Lane = "background"  // jobs that a client asks for later
	LaneBatch       Lane = "batch"       // lines of batches
)

// Stored reports whether the database owns the lane's jobs: then a message only stands for
// one, and its answer goes back there.
func (l Lane) Stored() bool { return l == LaneBackground || l == LaneBatch }

// Candidate is one way to serve a job: a provider and the model to ask it for.
type Candidate struct {
	Provider string
	Model    string
	On       Reasons // why it may be tried after another one; zero stands for DefaultReasons
}

// Try is one call of a provider that did not bring the answer.
type Try struct {
	Provider string        `json:"provider"`
	Model    string        `json:"model"`
	Code     ErrorCode     `json:"code"`
	Status   int           `json:"status,omitempty"` // the upstream's HTTP status, zero when it gave none
	Took     time.Duration `json:"took"`             // nanoseconds
}

// MaxTries bounds how many tries of a job are remembered, the last ones of them.
const MaxTries = 32

// EpochStride is what the ingress raises a job's epoch by when it publishes the job
// again. A worker that passes the job on to the next candidate raises it by one, so
// that whoever published a message, a later one has a higher epoch.
const EpochStride = 64

// Job is one accepted request on its way to a worker.
type Job struct {
	ID        string // unique; begins with the id of the ingress that accepted it
	RequestID string // the client's x-request-id, or one made for it
	Epoch     int    // which message stands for the job; a later one fences those before it
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

	// RunFor is how long one run may take; zero: until the deadline.
	RunFor time.Duration

	// Candidates are still to be tried, in order; the first is the one whose queue
	// the job stands in.
	Candidates []Candidate

	// Attempts counts the calls already made to providers for this job.
	Attempts int
	// Tries are the attempts that failed, as far as they are known one by one.
	Tries []Try

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
