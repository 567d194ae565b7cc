package ingress

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"sluice/internal/inference"
	"sluice/internal/limits"
)

// limitQueued is the name of the limit on requests that wait.
const limitQueued = "queued"

// unitOf says what a limit of so much counts, as a client is told; empty for a limit that is
// not known. A budget is an amount of whatever the prices are in, which has no name here.
func unitOf(limit string, most int64) string {
	request, token := "requests", "tokens"
	if most == 1 {
		request, token = "request", "token"
	}
	switch limit {
	case "requests_per_minute":
		return request + " in a minute"
	case "tokens_per_minute":
		return token + " in a minute"
	case "concurrent":
		return request + " at a time"
	case limitQueued:
		return request + " in the queue"
	case "budget.day":
		return "a day"
	case "budget.week":
		return "a week"
	case "budget.month":
		return "a month"
	}
	return ""
}

// errRefused is the answer to a request that a limit refuses. It names the limit, its
// value, what was asked of it and when to come back.
func errRefused(r *limits.Refusal, model string) *inference.Error {
	e := &inference.Error{Code: inference.CodeRateLimited, RetryAfter: r.RetryAfter, Retryable: r.RetryAfter > 0, Err: r}
	most, asked := strconv.FormatInt(r.Most, 10), strconv.FormatInt(r.Asked, 10)
	budget := strings.HasPrefix(r.Limit, "budget.")
	if budget {
		e.Code = inference.CodeQuota
		most, asked = inference.Cost(r.Most).String(), inference.Cost(r.Asked).String()
	}
	limit := fmt.Sprintf("The limit %s of %s is %s %s", r.Limit, holderOf(r.Scope, model), most, unitOf(r.Limit, r.Most))
	switch {
	case r.RetryAfter <= 0 && r.Limit == "tokens_per_minute":
		e.Message = fmt.Sprintf("%s, and this request alone asks for %s: it can never be served. Send a shorter prompt or a smaller max_tokens.", limit, asked)
	case r.RetryAfter <= 0:
		e.Message = fmt.Sprintf("%s, and this request alone asks for %s: it can never be served. Ask for less.", limit, asked)
	case budget:
		e.Message = fmt.Sprintf("%s; this request may cost %s and does not fit any more. Try again in %s, or have the budget raised.", limit, asked, inWords(r.RetryAfter))
	default:
		e.Message = fmt.Sprintf("%s; this request asks for %s and does not fit now. Try again in %s.", limit, asked, inWords(r.RetryAfter))
	}
	return e
}

// holderOf names a scope to the client whose request counts for it. Its ids are nobody's
// business: the client knows who it is, by a key or a token, and its tenant.
func holderOf(scope, model string) string {
	kind, rest, _ := strings.Cut(scope, ":")
	own := strings.Contains(rest, modelsMark)
	switch {
	case kind == "key" && own:
		return "this caller for the model " + strconv.Quote(model)
	case kind == "key":
		return "this caller"
	case kind == "tenant" && own:
		return "this caller's tenant for the model " + strconv.Quote(model)
	case kind == "tenant":
		return "this caller's tenant"
	}
	return "the model " + strconv.Quote(model)
}

// inWords is a time as a client reads it: whole seconds, unless there are none.
func inWords(d time.Duration) string {
	if d < time.Second {
		return max(d.Round(time.Millisecond), time.Millisecond).String()
	}
	return (time.Duration(ceilSeconds(d)) * time.Second).String()
}

func errLimitsUnavailable(err error) *inference.Error {
	return &inference.Error{
		Code: inference.CodeLimitsUnavailable, Retryable: true, RetryAfter: limitsAway,
		Message: "The limits of this caller cannot be checked at the moment. Try again shortly.", Err: err,
	}
}

// limitsAway is after how long a client may ask again whose limits could not be checked.
const limitsAway = 2 * time.Second

// byLimit reports whether the error is that of a limit.
func byLimit(e *inference.Error) bool {
	return e.Code == inference.CodeRateLimited || e.Code == inference.CodeQuota
}

// notByLimits reports whether a request was not let in although no limit refused it: nobody
// could be asked, or nobody is left whom it waits for. An answer from before may stand in.
func notByLimits(err error) bool {
	code := inference.AsError(err).Code
	return code == inference.CodeLimitsUnavailable || code == inference.CodeWorkerLost || code == inference.CodeUpstreamUnavailable
}

// neverFits reports whether a limit refuses the request for ever.
func neverFits(e *inference.Error) bool { return byLimit(e) && e.RetryAfter <= 0 }

// tellRetry says more exactly than seconds can when a request may fit. OpenAI's clients
// read this before Retry-After.
func tellRetry(h http.Header, e *inference.Error) {
	if byLimit(e) {
		h.Set("Retry-After-Ms", strconv.FormatInt(max((e.RetryAfter+time.Millisecond-1).Milliseconds(), 1), 10))
	}
}

// standingHeaders are the headers of one unit that limits count, spelled as a Header has them.
type standingHeaders struct{ limit, remaining, reset string }

var (
	requestsHeaders = standingHeaders{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"}
	tokensHeaders   = standingHeaders{"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"}
)

// tellStanding says how the caller stands, as OpenAI's API does: of the limits on requests
// and tokens the value, what is left, and when all of it will be there again.
func tellStanding(h http.Header, s limits.Standing) {
	requestsHeaders.tell(h, s.Requests)
	tokensHeaders.tell(h, s.Tokens)
}

func (names *standingHeaders) tell(h http.Header, l limits.Left) {
	if l.Limit <= 0 {
		return
	}
	reset := max(l.Reset, 0)
	if rounded := reset.Truncate(time.Millisecond); rounded < reset {
		reset = rounded + time.Millisecond
	}
	values := []string{
		strconv.FormatInt(l.Limit, 10), strconv.FormatInt(max(l.Remaining, 0), 10),
		reset.String(), // Go's form is theirs: 20ms, 1s, 6m0s
	}
	h[names.limit], h[names.remaining], h[names.reset] = values[0:1:1], values[1:2:2], values[2:3:3]
}
