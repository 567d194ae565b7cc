package ingress

import (
	"net/http"
	"strconv"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

// face is how an error code shows itself to a client.
type face struct {
	status int
	kind   string // OpenAI's error type
}

// OpenAI's error types.
const (
	typeInvalidRequest = "invalid_request_error"
	typeAuthentication = "authentication_error"
	typePermission     = "permission_error"
	typeNotFound       = "not_found_error"
	typeRateLimit      = "rate_limit_error"
	typeQuota          = "insufficient_quota"
	typeUpstream       = "upstream_error"
	typeTimeout        = "timeout_error"
	typeServer         = "server_error"
)

// statusClientClosed is what the log and the ledger say of a client that went away;
// nobody receives it. The number is nginx's.
const statusClientClosed = 499

// faces is the one table from error code to HTTP status.
var faces = map[inference.ErrorCode]face{
	inference.CodeInvalidRequest:      {http.StatusBadRequest, typeInvalidRequest},
	inference.CodeInvalidJSON:         {http.StatusBadRequest, typeInvalidRequest},
	inference.CodeUnauthenticated:     {http.StatusUnauthorized, typeAuthentication},
	inference.CodeInvalidToken:        {http.StatusUnauthorized, typeAuthentication},
	inference.CodeTokenNotAllowed:     {http.StatusForbidden, typePermission},
	inference.CodeModelNotAllowed:     {http.StatusForbidden, typePermission},
	inference.CodeTenantDisabled:      {http.StatusForbidden, typePermission},
	inference.CodeForbidden:           {http.StatusForbidden, typePermission},
	inference.CodeModelNotFound:       {http.StatusNotFound, typeNotFound},
	inference.CodeNotFound:            {http.StatusNotFound, typeNotFound},
	inference.CodeMethodNotAllowed:    {http.StatusMethodNotAllowed, typeInvalidRequest},
	inference.CodeConflict:            {http.StatusConflict, typeInvalidRequest},
	inference.CodeRequestTooLarge:     {http.StatusRequestEntityTooLarge, typeInvalidRequest},
	inference.CodeRangeNotSatisfiable: {http.StatusRequestedRangeNotSatisfiable, typeInvalidRequest},
	inference.CodeStorageFull:         {http.StatusInsufficientStorage, typeServer},
	inference.CodeStorageUnavailable:  {http.StatusServiceUnavailable, typeServer},
	inference.CodeIdempotencyReused:   {http.StatusUnprocessableEntity, typeInvalidRequest},
	inference.CodeConfigInvalid:       {http.StatusUnprocessableEntity, typeInvalidRequest},
	inference.CodeNoIdempotency:       {http.StatusServiceUnavailable, typeServer},
	inference.CodeQueueFull:           {http.StatusTooManyRequests, typeRateLimit},
	inference.CodeRateLimited:         {http.StatusTooManyRequests, typeRateLimit},
	inference.CodeQuota:               {http.StatusTooManyRequests, typeQuota},
	inference.CodeLimitsUnavailable:   {http.StatusServiceUnavailable, typeServer},
	inference.CodeQueueUnavailable:    {http.StatusServiceUnavailable, typeServer},
	inference.CodeProviderDraining:    {http.StatusServiceUnavailable, typeServer},
	inference.CodePurged:              {http.StatusServiceUnavailable, typeServer},
	inference.CodeAuthUnavailable:     {http.StatusServiceUnavailable, typeServer},
	inference.CodeUpstreamRejected:    {http.StatusBadRequest, typeInvalidRequest},
	inference.CodeUpstreamRateLimited: {http.StatusTooManyRequests, typeRateLimit},
	inference.CodeUpstreamAuth:        {http.StatusBadGateway, typeUpstream},
	inference.CodeUpstreamError:       {http.StatusBadGateway, typeUpstream},
	inference.CodeUpstreamInvalid:     {http.StatusBadGateway, typeUpstream},
	inference.CodeUpstreamTooLarge:    {http.StatusBadGateway, typeUpstream},
	inference.CodeUpstreamCut:         {http.StatusBadGateway, typeUpstream},
	inference.CodeUpstreamUnavailable: {http.StatusServiceUnavailable, typeUpstream},
	inference.CodeUpstreamTimeout:     {http.StatusGatewayTimeout, typeTimeout},
	inference.CodeDeadlineExceeded:    {http.StatusGatewayTimeout, typeTimeout},
	inference.CodeNotCached:           {http.StatusGatewayTimeout, typeTimeout},
	inference.CodeCancelled:           {statusClientClosed, typeInvalidRequest},
	inference.CodeWorkerLost:          {http.StatusBadGateway, typeServer},
	inference.CodeEventsLost:          {http.StatusBadGateway, typeServer},
	inference.CodeInternal:            {http.StatusInternalServerError, typeServer},
}

func faceOf(code inference.ErrorCode) face {
	if f, ok := faces[code]; ok {
		return f
	}
	return faces[inference.CodeInternal]
}

// statusOf returns the HTTP status that the error is answered with.
func statusOf(e *inference.Error) int {
	if e.Code == inference.CodeUpstreamRejected && e.Status >= 400 && e.Status < 500 {
		return e.Status
	}
	return faceOf(e.Code).status
}

// errorJSON is the error as the client reads it. An upstream's own word about the
// client's fault goes back as it came.
func errorJSON(e *inference.Error, details map[string]any) []byte {
	if e.Code == inference.CodeUpstreamRejected && len(e.Body) > 0 {
		return e.Body
	}
	if e.Status != 0 {
		if details == nil {
			details = make(map[string]any, 2)
		}
		details["upstream_status"] = e.Status
	}
	return openaiapi.AppendError(nil, openaiapi.ErrorBody{
		Message: e.Message, Type: faceOf(e.Code).kind, Code: string(e.Code), Param: e.Param, Details: details,
	})
}

// writeError answers with the error. Its details name what helps whoever reads it.
func writeError(w http.ResponseWriter, e *inference.Error, details map[string]any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	switch {
	case neverFits(e):
		h.Set("X-Should-Retry", "false") // OpenAI's clients would send it again
	case e.RetryAfter > 0:
		tellRetry(h, e)
		h.Set("Retry-After", strconv.Itoa(ceilSeconds(e.RetryAfter)))
	case statusOf(e) == http.StatusServiceUnavailable, statusOf(e) == http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	}
	if statusOf(e) == http.StatusUnauthorized && h.Get("WWW-Authenticate") == "" {
		h.Set("WWW-Authenticate", realm)
	}
	body := errorJSON(e, details)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	limitWrite(w)
	w.WriteHeader(statusOf(e))
	_, _ = w.Write(body) // the client may be gone; nothing else is to be done
}

// WriteError answers with an error in the one format that errors have, for who serves
// something of the admin API elsewhere.
func WriteError(w http.ResponseWriter, err error) { writeError(w, inference.AsError(err), nil) }

func ceilSeconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
