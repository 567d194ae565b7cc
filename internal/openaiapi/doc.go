// Package openaiapi is the wire format that Sluice's clients speak: it checks and
// reads chat-completions requests, reads and writes server-sent events, and makes
// error bodies and model lists. Adapters of OpenAI-compatible upstreams use the
// same words for the answers.
//
// It works on bytes and gives bytes back unchanged wherever it can: nothing is
// decoded that is not needed and nothing is encoded anew that can be passed on. It
// does no I/O of its own, knows nothing of HTTP statuses, queues or providers, and
// imports only internal/inference.
//
// Everything it parses may come from outside. Input is checked without recursion
// before anything else looks at it, so that nesting costs no stack.
package openaiapi
