// Package providers holds tests that call real providers. Each needs an API key in the
// environment (OPENAI_API_KEY, GEMINI_API_KEY, ANTHROPIC_API_KEY) and says so when there
// is none; a call costs a few tokens.
package providers
