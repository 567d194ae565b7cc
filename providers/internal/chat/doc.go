// Package chat is OpenAI's chat-completions format as adapters see it that translate:
// a request parsed into types, a way to say what a provider cannot do, and answers
// and chunks built from types.
//
// It knows one format only and no provider's: what a finish reason, a token count or
// a role is called upstream is for the adapter to map. It does no I/O. Adapters whose
// upstream speaks this format itself have no use for it; they pass bytes through.
//
// The source of every field is OpenAI's API reference of POST /v1/chat/completions;
// fields that are an extension say so.
package chat
