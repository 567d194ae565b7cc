package config

import (
	"time"

	"sluice/internal/inference"
)

// Config is the whole static configuration. The comments on the fields below are
// also the descriptions in the JSON Schema, and the tags are read by this package:
// default, min and max are written as in the file, oneof lists the accepted words, side
// names the only role that may read a setting, and reload says of a setting, or of all in
// a section, whether a change takes force while the process runs (live) or at its next
// start (restart).
type Config struct {
	// The HTTP front door.
	Server Server `yaml:"server" reload:"restart"`
	// Directory for what Sluice keeps by itself: the embedded NATS server's files and the SQLite database.
	DataDir string `yaml:"data_dir" default:"./data" reload:"restart"`
	// NATS JetStream, through which every request goes.
	Queue Queue `yaml:"queue" reload:"restart"`
	// The database of keys and usage.
	Store Store `yaml:"store" reload:"restart"`
	// Files that clients upload.
	Files Files `yaml:"files" side:"ingress" reload:"restart"`
	// Who may call.
	Auth Auth `yaml:"auth" reload:"live"`
	// The upstreams by name. A name is made of lower-case letters, digits, "-" and "_".
	Providers map[string]Provider `yaml:"providers" reload:"live"`
	// Which provider serves which request.
	Routing Routing `yaml:"routing" reload:"live"`
	// Who may take how much.
	RateLimit RateLimit `yaml:"rate_limit" side:"ingress" reload:"live"`
	// Answers that are kept and given again.
	Cache Cache `yaml:"cache" side:"ingress" reload:"live"`
	// Logs, metrics and health.
	Observability Observability `yaml:"observability" reload:"restart"`
	// What is remembered of requests with an Idempotency-Key.
	Idempotency Idempotency `yaml:"idempotency" side:"ingress" reload:"restart"`
	// Requests that are answered later (Prefer: respond-async).
	Jobs Jobs `yaml:"jobs" side:"ingress" reload:"restart"`
	// Batches of requests.
	Batches Batches `yaml:"batches" side:"ingress" reload:"restart"`
	// What tenants' own servers are told of.
	Webhooks Webhooks `yaml:"webhooks" side:"ingress" reload:"restart"`
	// What an operator may ask of a running ingress.
	Admin Admin `yaml:"admin" side:"ingress" reload:"restart"`
}

// Server configures the ingress's HTTP side.
type Server struct {
	// Where the ingress listens, as host:port. An empty host means every interface.
	Address string `yaml:"address" default:"127.0.0.1:8080"`
	// A request's deadline, and the most that a client may ask for in x-sluice-timeout.
	Timeout time.Duration `yaml:"timeout" default:"10m" min:"1ms" max:"24h"`
	// Time between the comments that keep an SSE connection open while nothing else flows.
	Keepalive time.Duration `yaml:"keepalive" default:"5s" min:"10ms" max:"10m"`
	// Largest request body. A larger one is refused with 413.
	MaxBodyBytes Size `yaml:"max_body_bytes" default:"32MiB" min:"1KiB" max:"1GiB"`
	// How long a streamed job goes on after its client dropped, so that the client can come back. 0s cancels at once.
	ResumeWindow time.Duration `yaml:"resume_window" default:"0s" min:"0s" max:"24h"`
	// How long a stopping process waits for the work in hand. Give its supervisor's own limit, such as Kubernetes' terminationGracePeriodSeconds, somewhat more.
	DrainTimeout time.Duration `yaml:"drain_timeout" default:"10m" min:"0s" max:"1h"`
	// How long a stopping ingress still takes new requests while /readyz says that it is stopping, so that a load balancer can turn away from it first.
	DrainDelay time.Duration `yaml:"drain_delay" default:"0s" min:"0s" max:"10m"`
	// Requests that one ingress holds at once. More are refused with 429.
	MaxInFlight int `yaml:"max_in_flight" default:"10000" min:"1" max:"1000000"`
	// Bytes of request bodies that one ingress holds in memory at once. Requests beyond it are refused with 429; large answers have as much again, and wait for it.
	BodyMemory Size `yaml:"body_memory" default:"512MiB" min:"1MiB" max:"1TiB"`
	// Pages of other origins that may call from a browser.
	CORS CORS `yaml:"cors" side:"ingress" reload:"live"`
}

// Queue configures NATS JetStream.
type Queue struct {
	// Address of an external NATS server, or several with commas between them (nats, tls, ws or wss). Empty: a server inside this process.
	URL URL `yaml:"url"`
	// File with NATS credentials (JWT and seed).
	CredentialsFile string `yaml:"credentials_file"`
	// User name at the NATS server.
	User string `yaml:"user"`
	// Password of the user at the NATS server.
	Password Secret `yaml:"password"`
	// Token for a NATS server that asks for one.
	Token Secret `yaml:"token"`
	// TLS towards the NATS server.
	TLS TLS `yaml:"tls"`
	// Copies of each stream in a NATS cluster.
	Replicas int `yaml:"replicas" default:"1" min:"1" max:"5"`
	// Where the interactive lane's jobs are kept. A file survives a restart of the server and costs some latency.
	Storage string `yaml:"storage" default:"memory" oneof:"memory,file"`
	// Jobs waiting or running for one provider. More are refused with 429.
	MaxQueued int `yaml:"max_queued" default:"1000" min:"1" max:"1000000"`
	// How long a worker may be silent about a job it holds before another worker gets it.
	AckWait time.Duration `yaml:"ack_wait" default:"5s" min:"3s" max:"10m"`
	// Memory for the token events kept for replay.
	EventsMaxBytes Size `yaml:"events_max_bytes" default:"256MiB" min:"1MiB" max:"1TiB"`
	// How long token events are kept for replay.
	EventsMaxAge time.Duration `yaml:"events_max_age" default:"15m" min:"1s" max:"24h"`
	// Space in the object store for bodies too large for a NATS message.
	BodiesMaxBytes Size `yaml:"bodies_max_bytes" default:"4GiB" min:"1MiB" max:"1PiB"`
	// How workers share their calls between what clients wait for and what can wait.
	Lanes Lanes `yaml:"lanes" side:"worker"`
}

// Lanes configures the lanes of background jobs and batches, which come behind the
// interactive one.
type Lanes struct {
	// Share of a worker's calls that background jobs get at least, from 0.01 to 0.5, while more urgent ones wait.
	BackgroundMinShare float64 `yaml:"background_min_share" default:"0.1" min:"0.01" max:"0.5"`
	// The same for lines of batches.
	BatchMinShare float64 `yaml:"batch_min_share" default:"0.05" min:"0.01" max:"0.4"`
}

// TLS names the files of a TLS client.
type TLS struct {
	// File with the certificate authorities to trust. Empty: the system's.
	CAFile string `yaml:"ca_file"`
	// File with the client's certificate.
	CertFile string `yaml:"cert_file"`
	// File with the key of the client's certificate.
	KeyFile string `yaml:"key_file"`
}

// Store configures the database.
type Store struct {
	// Address of a Postgres database (postgres://…). Empty: SQLite in the data directory.
	URL URL `yaml:"url" side:"ingress"`
}

// Files configures /v1/files.
type Files struct {
	// Largest file. A larger one is refused with 413.
	MaxBytes Size `yaml:"max_bytes" default:"512MiB" min:"1KiB" max:"64GiB"`
	// Largest file with the requests of a batch.
	MaxBatchBytes Size `yaml:"max_batch_bytes" default:"200MiB" min:"1KiB" max:"64GiB"`
	// Space in the object store for all files. What does not fit any more is refused with 507.
	StoreMaxBytes Size `yaml:"store_max_bytes" default:"16GiB" min:"1MiB" max:"1PiB"`
	// How long a file is kept whose upload does not say it. 0s: until it is deleted.
	ExpireAfter time.Duration `yaml:"expire_after" default:"0s" min:"0s" max:"87600h"`
	// Uploads that one ingress takes in at once, and downloads that it gives out. More are refused with 429.
	MaxTransfers int `yaml:"max_transfers" default:"64" min:"1" max:"10000"`
}

// Jobs configures requests that are answered later.
type Jobs struct {
	// How long a job and its answer are kept after its end.
	Retention time.Duration `yaml:"retention" default:"24h" min:"1m" max:"8760h"`
	// When a job that was not done ends as expired, counted from its acceptance. A client may ask for less in x-sluice-timeout.
	Deadline time.Duration `yaml:"deadline" default:"24h" min:"1s" max:"168h"`
	// The most that a client may wait for a job's end in one request.
	MaxWait time.Duration `yaml:"max_wait" default:"60s" min:"0s" max:"10m"`
	// Unfinished jobs that one tenant may have. More are refused with 429.
	MaxPerTenant int `yaml:"max_per_tenant" default:"100000" min:"1" max:"10000000"`
}

// Batches configures batches of requests.
type Batches struct {
	// Requests that one batch may have.
	MaxLines int `yaml:"max_lines" default:"50000" min:"1" max:"1000000"`
	// Whether all requests of a batch must name the same model.
	SingleModel bool `yaml:"single_model" default:"false"`
	// Requests of all batches together that are in the queue at once.
	Window int `yaml:"window" default:"1000" min:"1" max:"10000"`
	// How long a batch and its requests are kept after its end. Its files have their own time.
	Retention time.Duration `yaml:"retention" default:"720h" min:"1m" max:"8760h"`
	// Largest request of a batch. 0: as server.max_body_bytes says, and at most 64MiB.
	MaxLineBytes Size `yaml:"max_line_bytes" default:"0" min:"0" max:"1GiB"`
}

// Provider is one upstream. An ingress needs its name, its models and its bounds;
// only a worker reads its address and its secret.
type Provider struct {
	// Which adapter speaks to the upstream: openai for any OpenAI-compatible API, anthropic and gemini for these services' own APIs, custom for an upstream that the section custom describes, sim for the simulated provider. A worker needs it.
	Type string `yaml:"type" oneof:"openai,anthropic,gemini,custom,sim"`
	// Address of the upstream's API, such as https://api.openai.com/v1. A worker needs it for the types openai and custom.
	BaseURL URL `yaml:"base_url" side:"worker"`
	// The upstream's API key. Empty: none is sent.
	APIKey Secret `yaml:"api_key" side:"worker"`
	// Several API keys of the upstream, used in proportion to their weights. In place of api_key.
	APIKeys []UpstreamKey `yaml:"api_keys" side:"worker"`
	// Headers that are sent with each call, such as OpenAI-Organization and OpenAI-Project.
	Headers map[string]Secret `yaml:"headers" side:"worker"`
	// Address of an HTTP proxy to call the upstream through. Empty: the one that HTTPS_PROXY and its like name.
	Proxy URL `yaml:"proxy" side:"worker"`
	// Models served, as names or globs. Empty: a worker asks the upstream.
	Models []string `yaml:"models"`
	// Names that the upstream has for models, by the names that are served here.
	ModelMap map[string]string `yaml:"model_map" side:"worker"`
	// What happens to a request's fields that the upstream cannot honour, for the types anthropic and gemini: reject answers 400 and names the field, drop leaves them out and names them in x-sluice-dropped-params.
	OnUnsupported string `yaml:"on_unsupported" default:"reject" oneof:"reject,drop"`
	// Calls at once, across all workers.
	Concurrency int `yaml:"concurrency" default:"64" min:"1" max:"100000"`
	// Calls at once in one worker. 0: as many as concurrency says.
	WorkerConcurrency int `yaml:"worker_concurrency" default:"0" min:"0" max:"100000"`
	// Calls at once that are always allowed, however congested the upstream is. Fewer are made than concurrency says while it is overloaded or slow. As many as concurrency: the number is fixed.
	MinConcurrency int `yaml:"min_concurrency" default:"1" min:"1" max:"100000" side:"worker"`
	// How many times slower than usual the upstream may be before fewer calls are made at once. 0: slowness does not count.
	MaxSlowdown float64 `yaml:"max_slowdown" default:"3" min:"0" max:"1000" side:"worker"`
	// Longest time that one call may take.
	Timeout time.Duration `yaml:"timeout" default:"5m" min:"1ms" max:"24h"`
	// Longest silence between two chunks of a streamed answer.
	IdleTimeout time.Duration `yaml:"idle_timeout" default:"60s" min:"1ms" max:"24h"`
	// Jobs waiting or running for this provider. 0: as queue.max_queued says.
	MaxQueued int `yaml:"max_queued" default:"0" min:"0" max:"1000000"`
	// Further attempts after a call that failed in a way that may pass. A 429 is waited for and counts as none.
	MaxRetries int `yaml:"max_retries" default:"2" min:"0" max:"20"`
	// Share of the calls that may be such further attempts, from 0 to 1, so that an upstream in trouble is not called more than a well one.
	RetryBudget float64 `yaml:"retry_budget" default:"0.2" min:"0" max:"1" side:"worker"`
	// How long a job waits for a provider that asks to be called less, when another one could serve it. Then it goes there.
	Patience time.Duration `yaml:"patience" default:"2s" min:"0s" max:"24h" side:"worker"`
	// When a model that keeps failing is left alone for a while.
	Breaker Breaker `yaml:"breaker" side:"worker"`
	// What the upstream can do with models, where it is not what its adapter says. The first entry that covers a model counts.
	Capabilities []Capability `yaml:"capabilities" max:"1000"`
	// What the upstream takes for models, where it is not what Sluice knows.
	Prices []Price `yaml:"prices" max:"1000"`
	// Largest answer taken from the upstream.
	MaxResponseBytes Size `yaml:"max_response_bytes" default:"32MiB" min:"1KiB" max:"1GiB"`
	// Azure's form of the OpenAI API. Only for the type openai.
	Azure *Azure `yaml:"azure"`
	// Where an upstream of one's own has what. Only for the type custom.
	Custom *Custom `yaml:"custom"`
	// How the simulated provider behaves. Only for the type sim.
	Sim *Sim `yaml:"sim"`
}

// UpstreamKey is one of several API keys of an upstream.
type UpstreamKey struct {
	// The key itself.
	Key Secret `yaml:"key"`
	// Share of the calls, against the other keys' weights.
	Weight int `yaml:"weight" default:"1" min:"1" max:"1000000"`
}

// Breaker configures when a provider's model is not called for a while. Each model has
// a breaker of its own.
type Breaker struct {
	// Failures in a row after which no call is made. 0: they do not count.
	Failures int `yaml:"failures" default:"5" min:"0" max:"1000000"`
	// Share of failed calls, from 0 to 1, from which on no call is made. 0: it does not count.
	FailureRate float64 `yaml:"failure_rate" default:"0.5" min:"0" max:"1"`
	// Calls in the window from which on their share of failures counts.
	MinCalls int `yaml:"min_calls" default:"20" min:"1" max:"1000000"`
	// How long a call counts towards the share of failures.
	Window time.Duration `yaml:"window" default:"30s" min:"1s" max:"1h"`
	// How long no call is made before a few find out whether the upstream is well again.
	OpenFor time.Duration `yaml:"open_for" default:"10s" min:"10ms" max:"1h"`
	// How many calls at once find that out.
	Probes int `yaml:"probes" default:"1" min:"1" max:"1000"`
}

// Capability says what an upstream can do with models. What it does not give stays as
// the adapter says.
type Capability struct {
	// Models, as names or globs.
	Models []string `yaml:"models" max:"1000"`
	// Whether they serve chat completions.
	Chat *bool `yaml:"chat"`
	// Whether they serve embeddings.
	Embeddings *bool `yaml:"embeddings"`
	// Whether they stream their answers.
	Streaming *bool `yaml:"streaming"`
	// Whether they call tools.
	Tools *bool `yaml:"tools"`
	// Whether they see images.
	Images *bool `yaml:"images"`
	// Whether their answers can be made to follow a JSON Schema.
	StructuredOutput *bool `yaml:"structured_output"`
	// Tokens that a prompt may have. 0: it is not known.
	ContextTokens *int `yaml:"context_tokens" min:"0" max:"100000000"`
	// Tokens that an answer may have. 0: it is not known.
	OutputTokens *int `yaml:"output_tokens" min:"0" max:"100000000"`
}

// Price is what an upstream takes for models, in one currency for all providers, for a
// million tokens. It comes before the prices that Sluice ships.
type Price struct {
	// Models, as names or globs.
	Models []string `yaml:"models" max:"1000"`
	// Money for a million tokens of prompts.
	Input inference.Cost `yaml:"input" default:"0" min:"0" max:"1000000"`
	// Money for a million tokens of prompts that the upstream had in its own cache. Not given: as input.
	CachedInput *inference.Cost `yaml:"cached_input" min:"0" max:"1000000"`
	// Money for a million tokens of answers.
	Output inference.Cost `yaml:"output" default:"0" min:"0" max:"1000000"`
	// Money for a million tokens of reasoning. Not given: as output.
	Reasoning *inference.Cost `yaml:"reasoning" min:"0" max:"1000000"`
	// From when on the price holds, as an RFC 3339 time. Not given: always. Of several that cover a model the latest that has begun counts.
	From time.Time `yaml:"from"`
}

// Azure configures Azure's form of the OpenAI API: deployments in the path, a version
// in the query, the key in a header of its own.
type Azure struct {
	// Version of the API, such as 2024-10-21.
	APIVersion string `yaml:"api_version"`
}

// Custom describes an upstream that speaks the OpenAI format at addresses of its own.
type Custom struct {
	// Path of chat completions, below base_url.
	ChatPath string `yaml:"chat_path" default:"/chat/completions"`
	// Path of embeddings, below base_url. Empty: there are none.
	EmbeddingsPath string `yaml:"embeddings_path" default:""`
	// Path of the list of models, below base_url. Empty: there is none, and models must be named.
	ModelsPath string `yaml:"models_path" default:""`
	// Header that carries the API key.
	KeyHeader string `yaml:"key_header" default:"Authorization"`
	// What stands before the key in that header.
	KeyPrefix string `yaml:"key_prefix" default:"Bearer "`
}

// Sim configures the simulated provider.
type Sim struct {
	// Time before the first token.
	FirstTokenDelay time.Duration `yaml:"first_token_delay" default:"50ms" min:"0s" max:"24h"`
	// Tokens a second after the first.
	TokensPerSecond float64 `yaml:"tokens_per_second" default:"50" min:"0.001" max:"1000000"`
	// Share of the calls that fail, from 0 to 1.
	FailureRate float64 `yaml:"failure_rate" default:"0" min:"0" max:"1"`
	// Length of an answer, in tokens. A request's max_tokens can only shorten it.
	CompletionTokens int `yaml:"completion_tokens" default:"64" min:"1" max:"10000"`
}

// Observability configures logs, metrics and health.
type Observability struct {
	// Least severe level that is logged.
	LogLevel string `yaml:"log_level" reload:"live" default:"info" oneof:"debug,info,warn,error"`
	// Form of the log lines.
	LogFormat string `yaml:"log_format" default:"json" oneof:"json,text"`
	// Where a worker listens for health and metrics, as host:port. Empty: nowhere.
	Address string `yaml:"address"`
}

// Idempotency configures requests that are done once, however often they are sent.
type Idempotency struct {
	// How long a key is remembered with its answer.
	Keep time.Duration `yaml:"keep" default:"24h" min:"1m" max:"720h"`
}

// Webhooks configures the events that are sent to tenants' own servers.
type Webhooks struct {
	// Whether webhooks may be sent to private networks and to this machine, and without TLS. For development: with it, whoever names an address reaches what the ingress reaches.
	AllowPrivateNetworks bool `yaml:"allow_private_networks" default:"false"`
	// Longest time that one delivery may take in all.
	Timeout time.Duration `yaml:"timeout" default:"15s" min:"1s" max:"1m"`
	// Endpoints that one tenant may have.
	MaxEndpoints int `yaml:"max_endpoints" default:"20" min:"1" max:"1000"`
	// How long events and the log of their deliveries are kept after the last one has ended.
	Keep time.Duration `yaml:"keep" default:"168h" min:"1h" max:"8760h"`
}

// Admin configures a listener of its own, on which an operator asks a running ingress
// what it knows and how it decides. It belongs where no client can reach it.
type Admin struct {
	// Where the ingress listens for operators, as host:port. Empty: nowhere.
	Address string `yaml:"address"`
	// What an operator shows as a bearer token, 16 characters or more. It goes with the address. The audit calls its holder admin. Commands show it to a running ingress.
	Token Secret `yaml:"token"`
	// Operators with tokens of their own, whom the audit calls by their names. Only an ingress reads them.
	Operators []Operator `yaml:"operators" max:"1000"`
}

// Operator is one who may ask a running ingress.
type Operator struct {
	// Name in the audit, unique in this list.
	Name string `yaml:"name"`
	// What the operator shows as a bearer token, 16 characters or more.
	Token Secret `yaml:"token"`
	// What the operator may do: an admin everything, a viewer look only.
	Role string `yaml:"role" default:"admin" oneof:"admin,viewer"`
}

// Default returns the configuration of an empty file.
func Default() Config {
	var c Config
	applyDefaults(specOf(c), valueOf(&c))
	return c
}

// NewProvider returns a provider of the given type with every other setting at its
// default.
func NewProvider(kind string) Provider {
	var p Provider
	applyDefaults(specOf(p), valueOf(&p))
	p.Type = kind
	p.fillSim()
	return p
}

// fillSim gives a simulated provider its defaults, so that a reader of the type sim
// never meets a nil Sim.
func (p *Provider) fillSim() {
	if p.Type != TypeSim || p.Sim != nil {
		return
	}
	p.Sim = new(Sim)
	applyDefaults(specOf(*p.Sim), valueOf(p.Sim))
}

// OnUnsupportedDrop lets go of a request's fields that an upstream cannot honour.
const OnUnsupportedDrop = "drop"

// The provider types that have an adapter.
const (
	TypeOpenAI    = "openai"
	TypeAnthropic = "anthropic"
	TypeGemini    = "gemini"
	TypeCustom    = "custom"
	TypeSim       = "sim"
)
