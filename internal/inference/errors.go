package inference

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// ErrorCode says what went wrong in one word that clients and tables can match.
type ErrorCode string

// The error codes. Each one's HTTP status stands in one table in the ingress.
const (
	CodeInvalidRequest      ErrorCode = "invalid_request"
	CodeInvalidJSON         ErrorCode = "invalid_json"
	CodeUnauthenticated     ErrorCode = "invalid_api_key"
	CodeInvalidToken        ErrorCode = "invalid_token"     // of an identity provider
	CodeTokenNotAllowed     ErrorCode = "token_not_allowed" // it is in force, and says too little
	CodeModelNotAllowed     ErrorCode = "model_not_allowed"
	CodeTenantDisabled      ErrorCode = "tenant_disabled"
	CodeForbidden           ErrorCode = "forbidden" // an operator who may look only
	CodeModelNotFound       ErrorCode = "model_not_found"
	CodeNotFound            ErrorCode = "not_found"
	CodeMethodNotAllowed    ErrorCode = "method_not_allowed"
	CodeConflict            ErrorCode = "conflict" // it has moved on to where the call does not apply
	CodeRequestTooLarge     ErrorCode = "request_too_large"
	CodeRangeNotSatisfiable ErrorCode = "range_not_satisfiable"
	CodeStorageFull         ErrorCode = "storage_full"        // no space for one more file
	CodeStorageUnavailable  ErrorCode = "storage_unavailable" // files cannot be reached
	CodeIdempotencyReused   ErrorCode = "idempotency_key_reused"
	CodeNoIdempotency       ErrorCode = "idempotency_unavailable" // keys cannot be looked up
	CodeConfigInvalid       ErrorCode = "invalid_configuration"   // told to operators alone
	CodeQueueFull           ErrorCode = "queue_full"
	CodeRateLimited         ErrorCode = "rate_limit_exceeded" // a limit of the caller's own
	CodeQuota               ErrorCode = "insufficient_quota"  // a budget of the caller's own
	CodeLimitsUnavailable   ErrorCode = "limits_unavailable"  // the counters of limits cannot be reached
	CodeQueueUnavailable    ErrorCode = "queue_unavailable"
	CodeProviderDraining    ErrorCode = "provider_draining" // an operator wants no more requests to go to the only one
	CodePurged              ErrorCode = "purged"            // an operator emptied the queue
	CodeAuthUnavailable     ErrorCode = "auth_unavailable"
	CodeUpstreamRejected    ErrorCode = "upstream_rejected"     // a 4xx that is the client's own fault; goes back as it came
	CodeUpstreamRateLimited ErrorCode = "upstream_rate_limited" // 429
	CodeUpstreamAuth        ErrorCode = "upstream_auth"         // the provider refused our credentials
	CodeUpstreamError       ErrorCode = "upstream_error"        // 5xx
	CodeUpstreamInvalid     ErrorCode = "upstream_invalid"      // an answer that cannot be understood
	CodeUpstreamTooLarge    ErrorCode = "upstream_too_large"
	CodeUpstreamUnavailable ErrorCode = "upstream_unavailable" // no connection
	CodeUpstreamTimeout     ErrorCode = "upstream_timeout"     // the provider's own limits, not the request's deadline
	CodeUpstreamCut         ErrorCode = "upstream_cut"         // the stream ended before its end
	CodeDeadlineExceeded    ErrorCode = "deadline_exceeded"
	CodeNotCached           ErrorCode = "not_cached" // and nobody is to be asked
	CodeCancelled           ErrorCode = "cancelled"
	CodeWorkerLost          ErrorCode = "worker_lost"
	CodeEventsLost          ErrorCode = "events_lost"
	CodeInternal            ErrorCode = "internal_error"
)

// Error is the one error that crosses package and process borders.
type Error struct {
	Code    ErrorCode
	Message string // for the client alone, and safe for it: no secret, no address; never logged
	Param   string // the request's field at fault, if one is

	// Retryable says that the same call may succeed when made again.
	Retryable bool

	// RetryAfter is how long to wait before trying again; zero when nothing is known.
	RetryAfter time.Duration

	// Status is the upstream's HTTP status, zero when it gave none.
	Status int

	// Refusal says why the request was refused where another provider might not
	// (CodeUpstreamRejected, CodeInvalidRequest); empty for any other fault of the client.
	Refusal Refusal
	// Body is the upstream's own JSON error, kept only where it goes back to the
	// client unchanged (CodeUpstreamRejected).
	Body []byte

	// Err is the cause, for logs alone; it does not cross a process border.
	Err error
}

// Errorf returns an Error with a message that is safe to show to the client.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Error is for logs. It leaves the message out, which may quote an upstream that
// quotes the client's prompt.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Status != 0 {
		s += " (status " + strconv.Itoa(e.Status) + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// AsError returns err's Error. An error that is none becomes an internal error
// whose message tells the client nothing.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: CodeInternal, Message: "internal error", Err: err}
}
