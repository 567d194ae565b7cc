// Package token knows callers by the tokens of identity providers: JSON Web Tokens
// (RFC 7519), signed with a key that their issuer publishes.
//
// A token is checked as RFC 8725 asks for: what decides is the configuration, never what
// the token says about itself. Its claim iss, read before anything is verified, only
// chooses the issuer whose rules it must then keep; the algorithm must be one that the
// configuration takes and the key is made for; keys come from the issuer's configured
// address alone, and addresses or keys in a token's header are not looked at.
//
// The keys of issuers are read in the background and kept while an issuer is away. What a
// verified token says becomes a caller as an API key has one; claims that cannot be read
// refuse the token and never widen what it allows. The package knows nothing of HTTP
// requests; its neighbour is ingress, which asks it about bearers that look like tokens.
package token
