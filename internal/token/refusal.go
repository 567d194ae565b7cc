package token

import (
	"fmt"

	"sluice/internal/inference"
)

// reason says in one word why a token is refused.
type reason string

const (
	reasonMalformed   reason = "malformed"
	reasonAlgorithm   reason = "algorithm"
	reasonIssuer      reason = "issuer"
	reasonKey         reason = "key"
	reasonSignature   reason = "signature"
	reasonExpired     reason = "expired"
	reasonNotYet      reason = "not_yet_valid"
	reasonAudience    reason = "audience"
	reasonClaims      reason = "claims"
	reasonTenant      reason = "tenant"
	reasonUnavailable reason = "unavailable"
)

// refusal is why a token is refused. Its message names claims and settings, never what
// the token has in them.
type refusal struct {
	reason  reason
	message string
	err     error // for logs
}

func (r *refusal) Error() string { return string(r.reason) + ": " + r.message }

func (r *refusal) Unwrap() error { return r.err }

func refuse(why reason, format string, args ...any) *refusal {
	return &refusal{reason: why, message: fmt.Sprintf(format, args...)}
}

// public is the refusal as clients are told of it.
func (r *refusal) public() *inference.Error {
	e := &inference.Error{Code: inference.CodeInvalidToken, Message: r.message, Err: r}
	switch r.reason {
	case reasonTenant:
		e.Code = inference.CodeTokenNotAllowed
	case reasonUnavailable:
		e.Code, e.Retryable = inference.CodeAuthUnavailable, true
	default:
	}
	return e
}
