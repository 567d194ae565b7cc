// Package providertest is the conformance suite of provider adapters: what the
// worker relies upon, put to the test against a scripted upstream. An adapter that
// has no upstream, such as the simulation, passes the parts that apply.
//
// It tests promises of the interface alone. What is particular to one adapter, such
// as which bytes it sends, is tested beside that adapter.
package providertest

import (
	"testing"
	"time"

	"sluice/internal/testkit"
	"sluice/providers"
)

// APIKey is the key that every adapter under test is given; no error may show it.
const APIKey = "sk-conformance-secret"

// Model is the model that every call asks for.
const Model = "model-under-test"

// Subject is an adapter under test.
type Subject struct {
	// New builds the adapter. It is closed at the end of the test.
	New func(t *testing.T, o Options) providers.Provider

	// Dialect speaks for the upstream; nil for an adapter that has none.
	Dialect Dialect
}

// Options is how an adapter is to be built. Zero values mean its defaults.
type Options struct {
	BaseURL          string // the scripted upstream's; empty without a Dialect
	Timeout          time.Duration
	IdleTimeout      time.Duration
	MaxResponseBytes int64

	// FirstTokenDelay and TokensPerSecond slow down an adapter without an upstream.
	FirstTokenDelay time.Duration
	TokensPerSecond float64
}

// Dialect lets a scripted upstream speak as the adapter expects it to.
type Dialect interface {
	// Answer gives a whole answer, streamed or plain as the call asks, one chunk and
	// one completion token for each of tokens, with PromptTokens prompt tokens.
	Answer(c *testkit.Call, tokens ...string)

	// Token sends one token of a streamed answer at once, opening the stream first.
	Token(c *testkit.Call, token string)

	// Refuse gives an answer that holds nothing but the upstream's refusal of the content,
	// streamed or plain as the call asks.
	Refuse(c *testkit.Call)

	// TooLong answers with the error that says that the prompt does not fit.
	TooLong(c *testkit.Call)

	// Fail answers with a status and an error message in the upstream's shape.
	Fail(c *testkit.Call, status int, message string)
}

// PromptTokens is what a Dialect's answers report as the prompt's size.
const PromptTokens = 7

// Run puts an adapter to the test.
func Run(t *testing.T, s Subject) {
	for name, test := range map[string]func(*testing.T, Subject){
		"plain answer":            testPlain,
		"streamed answer":         testStream,
		"usage chunk on request":  testUsageChunk,
		"chunks keep their order": testOrder,
		"cancel a plain call":     testCancelPlain,
		"cancel a stream":         testCancelStream,
		"context already ended":   testEndedContext,
		"deadline":                testDeadline,
		"emit error":              testEmitError,
		"concurrent use":          testConcurrent,
		"unknown kind":            testUnknownKind,
		"close":                   testClose,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, s) })
	}
	if s.Dialect == nil {
		return
	}
	for name, test := range map[string]func(*testing.T, Subject){
		"first token is not held back":  testFirstToken,
		"cancel closes the socket":      testCancelClosesSocket,
		"emit error closes the socket":  testEmitErrorClosesSocket,
		"connections are used again":    testReuse,
		"status classes":                testStatusClasses,
		"unreachable":                   testUnreachable,
		"own timeout":                   testTimeout,
		"idle timeout":                  testIdleTimeout,
		"a slow receiver is not silent": testSlowReceiver,
		"cut stream":                    testCutStream,
		"cut plain answer":              testCutPlain,
		"malformed answer":              testMalformed,
		"answer too large":              testTooLarge,
		"large answer":                  testLarge,
		"answer without a choice":       testEmpty,
		"event cut in the middle":       testCutEvent,
		"broken event":                  testBrokenEvent,
		"unknown events":                testUnknownEvents,
		"split characters":              testSplitCharacters,
		"broken characters":             testBrokenCharacters,
		"refusal":                       testRefusal,
		"prompt too long":               testTooLong,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, s) })
	}
}
