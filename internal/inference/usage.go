package inference

import "time"

// Usage counts tokens as the provider reports them.
type Usage struct {
	PromptTokens     int64
	CompletionTokens int64
	CachedTokens     int64 // the part of PromptTokens read from the provider's cache
	ReasoningTokens  int64 // the part of CompletionTokens spent on reasoning

	// Known says that the counts are to be believed: the provider reported them, or
	// Estimated tells that Sluice counted for itself.
	Known bool

	// Estimated marks counts that Sluice made because the answer was cut before the
	// provider could report.
	Estimated bool
}

// Outcome is how a request ended.
type Outcome string

// The outcomes that a ledger row can have.
const (
	OutcomeSucceeded Outcome = "succeeded"
	OutcomeFailed    Outcome = "failed"    // an error, the provider's or ours
	OutcomeCancelled Outcome = "cancelled" // the client went away
	OutcomeExpired   Outcome = "expired"   // the deadline passed
	OutcomeRejected  Outcome = "rejected"  // refused after routing, for instance by a full queue
	OutcomeAbandoned Outcome = "abandoned" // the ingress was lost; nobody took the answer
)

// Record is the ledger's row of one request.
type Record struct {
	JobID       string
	RequestID   string
	Kind        Kind
	Tenant      string
	KeyID       string
	ModelAsked  string
	Provider    string
	ModelServed string // what the provider says it used; empty when it never answered
	Stream      bool
	Usage       Usage
	Attempts    int
	Tries       []Try // the attempts that failed
	Outcome     Outcome
	Status      int       // the HTTP status that the client was given, or would have been
	ErrorCode   ErrorCode // empty on success
	CreatedAt   time.Time
	Queue       time.Duration // from acceptance to the start of the work
	FirstToken  time.Duration // from acceptance to the first token; zero when not streamed
	Total       time.Duration // from acceptance to the end

	// Cost is what the tokens cost at the prices of CreatedAt, and Priced says that it is
	// known. Costed says that this has been found out: of a row that an ingress made, by the
	// prices that its request began with; of any other, on its way into the database.
	Cost   Cost
	Priced bool
	Costed bool

	Cache CacheUse
}

// CacheUse is how an answer came from the response cache. Such an answer costs nothing.
type CacheUse string

// The ways. Empty: it did not.
const (
	CacheHit   CacheUse = "hit"
	CacheStale CacheUse = "stale" // it had expired, and no provider could be asked
)
