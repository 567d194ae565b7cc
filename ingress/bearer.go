package ingress

import (
	"errors"
	"net/http"
	"strings"

	"sluice/internal/inference"
	"sluice/internal/token"
)

// errNoCredentials is the cause of a refusal of whoever did not say who they are.
var errNoCredentials = errors.New("no credentials")

// bearer returns the secret that the request carries, a key or a token. Nothing of it is
// ever compared as it is.
func (c callers) bearer(r *http.Request) (string, error) {
	values := r.Header["Authorization"]
	if len(values) == 0 || len(values) == 1 && values[0] == "" {
		return "", &inference.Error{
			Code: inference.CodeUnauthenticated, Err: errNoCredentials,
			Message: "No API key was given. Send it in the header: Authorization: Bearer YOUR_KEY.",
		}
	}
	if len(values) > 1 { // a proxy before us may go by another of them than we would
		return "", inference.Errorf(inference.CodeUnauthenticated, "There is more than one Authorization header.")
	}
	scheme, secret, ok := strings.Cut(values[0], " ")
	secret = strings.TrimSpace(secret)
	switch {
	case !ok, !strings.EqualFold(scheme, "Bearer"), secret == "", len(secret) > maxKeyBytes && !c.isToken(secret):
		return "", inference.Errorf(inference.CodeUnauthenticated, "The Authorization header is malformed. Send: Authorization: Bearer YOUR_KEY.")
	}
	return secret, nil
}

// isToken reports whether the bearer is meant for an issuer of tokens to have said who it
// is. While there is none, everything is a key.
func (c callers) isToken(bearer string) bool { return c.tokens.Takes() && token.LooksLike(bearer) }

// realm asks for a secret and says nothing else.
const realm = `Bearer realm="sluice"`

// challenge tells a client how to identify, and what is wrong with how it did (RFC 6750,
// 3). One that did not at all is told no error.
func challenge(e *inference.Error) string {
	if errors.Is(e.Err, errNoCredentials) {
		return realm
	}
	description := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return -1 // RFC 6750 has no way to quote them
		}
		return c
	}, e.Message)
	return realm + `, error="invalid_token", error_description="` + description + `"`
}
