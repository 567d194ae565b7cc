// Package providers holds the one interface that every provider adapter meets. The
// adapters are its subpackages; package registry builds them from settings, and
// package providertest holds the tests that each must pass.
//
// An adapter turns a canonical request (the OpenAI form) into one call of its
// upstream and the answer back into the OpenAI form. It knows nothing of queues,
// jobs, retries or other adapters: the worker owns those.
package providers

import (
	"context"
	"time"

	"sluice/internal/inference"
)

// Call is one request to an upstream.
type Call struct {
	Kind      inference.Kind
	Model     string // what to ask the upstream for; replaces the body's model where it differs
	RequestID string

	// Body is the canonical request. An adapter must not change these bytes in place,
	// and the caller must not reuse them when the call has returned: a transport may
	// still be sending them when the upstream answers early.
	Body []byte

	// IncludeUsage says that the client wants the usage chunk at the end of a streamed
	// answer. The adapter asks the upstream for usage in any case and leaves the
	// chunk out when this is false.
	IncludeUsage bool

	TraceParent string // W3C traceparent to send along; may be empty

	// RefusalIsError says that another provider may be tried for what this one's policy
	// does not allow: an answer that holds nothing but the upstream's refusal is then an
	// error of inference.RefusalContent, unless a chunk of it was emitted.
	RefusalIsError bool

	// Dropped is told, before the upstream is called, which fields of the request the
	// provider cannot honour and lets go of by its policy. It may be nil. An adapter
	// that drops nothing does not call it.
	Dropped func(fields []string)
}

// Response is a complete answer in the OpenAI form.
type Response struct {
	Body  []byte // JSON, unchanged where the upstream speaks the OpenAI form
	Model string // what the upstream says it used
	Usage inference.Usage
}

// Summary is what is known of a streamed answer when it ends, cleanly or not.
type Summary struct {
	Model string
	Usage inference.Usage
}

// Emit takes the payloads of one or more chunks (JSON, without SSE framing), in
// order. An adapter calls it as soon as it would otherwise wait for its upstream,
// so that chunks which arrived together travel together and none is held back.
// The slices are valid only during the call. An error ends the stream.
type Emit func(chunks [][]byte) error

// Provider is one configured upstream. Methods are safe for concurrent use, and
// return promptly with the upstream's connection closed once ctx ends. Errors are
// *inference.Error where the adapter knows what happened; when ctx ended, the
// error wraps ctx.Err().
type Provider interface {
	// Generate makes one call and returns its whole answer.
	Generate(ctx context.Context, call Call) (*Response, error)

	// StreamGenerate makes one streamed call. The Summary is valid also beside an
	// error: it holds what was known by then. nil error means that the upstream
	// finished its answer.
	StreamGenerate(ctx context.Context, call Call, emit Emit) (Summary, error)

	// Capabilities says what the provider can do and which models it serves. It may
	// ask the upstream and is called now and then, never per request.
	Capabilities(ctx context.Context) (Capabilities, error)

	// Close frees idle connections. Calls in flight are not waited for.
	Close() error
}

// Capabilities is what a provider can do, and for which models.
type Capabilities struct {
	// Traits hold for every model that Special says nothing of.
	inference.Traits

	// Special are the models that differ; the first entry that covers a model counts.
	Special []inference.ModelTraits

	// Models are names or globs (path.Match) of the models served.
	Models []string
}

// KeyState is how one of an upstream's API keys stands, without its secret.
type KeyState struct {
	Display string    // enough of the key to tell it from others
	State   string    // KeyOK, KeyCooling or KeyRefused
	Until   time.Time // when it is tried again; zero for KeyOK
}

// The states of a key.
const (
	KeyOK      = "ok"
	KeyCooling = "cooling" // it was told to wait (429)
	KeyRefused = "refused" // the upstream does not accept it (401, 402, 403)
)

// Gate is an adapter that knows, before a call is made, that its upstream has asked to
// be left alone.
type Gate interface {
	// OpenAt is when the first of the keys that cool down may be used again, or the zero
	// time while one may be used now. A key that the upstream does not accept is not
	// waited for. It costs next to nothing and may be asked before each call.
	OpenAt(now time.Time) time.Time
}

// KeyReporter is an adapter that knows how its keys stand.
type KeyReporter interface {
	Keys() []KeyState
}
