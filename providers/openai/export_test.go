package openai

// NewTransport lets the tests trust their own upstreams with the adapter's transport.
var NewTransport = newTransport
