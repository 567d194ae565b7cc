package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
	"sluice/providers"
)

// farOff is beyond every deadline. A pace may be so slow that its own time would not
// fit into a number.
const farOff = 365 * 24 * time.Hour

// course is how one call goes: its pace, and where it leaves the path.
type course struct {
	start time.Time
	delay time.Duration // before the first token
	rate  float64       // tokens per second after it; zero for no wait
	fault fault
}

// newCourse settles how a call goes; d is nil for a request that says nothing.
func (p *Provider) newCourse(call providers.Call, d *drill) *course {
	c := &course{start: time.Now(), delay: p.opts.FirstTokenDelay, rate: p.opts.TokensPerSecond}
	if d == nil {
		return c
	}
	if d.delay != nil {
		c.delay = *d.delay
	}
	if d.rate != nil {
		c.rate = *d.rate
	}
	if d.times == nil || p.memory.count(call.RequestID, call.Body, c.start) <= *d.times {
		c.fault = d.fault()
	}
	return c
}

// due returns when a step's token is due; steps count from zero.
func (c *course) due(step int) time.Time {
	if c.rate == 0 || step <= 0 {
		return c.start.Add(c.delay)
	}
	pace := float64(step) / c.rate * float64(time.Second)
	return c.start.Add(c.delay + time.Duration(min(pace, float64(farOff))))
}

// open waits until the first token is due, and lets the call fail if it is to fail
// there.
func (p *Provider) open(ctx context.Context, call providers.Call, c *course, turn uint64) error {
	if err := wait(ctx, c.due(0)); err != nil {
		return err
	}
	switch {
	case c.fault.kind == faultFiltered && !call.RefusalIsError:
		return nil
	case c.fault.kind != faultNone && c.fault.after == 0:
		return p.stray(ctx, c.fault)
	case c.fault.kind == faultNone && p.fails(call.Body, turn):
		return p.stray(ctx, fault{kind: faultStatus, status: http.StatusInternalServerError})
	}
	return nil
}

// errNonsense stands for what a reader of a malformed answer would say of it.
var errNonsense = errors.New("simulated nonsense")

// stray makes the call go wrong, with the error that an adapter of a real upstream
// returns in such a case.
func (p *Provider) stray(ctx context.Context, f fault) error {
	switch f.kind {
	case faultStatus:
		return p.statusError(f.status, f.retryAfter)
	case faultUnreachable:
		return &inference.Error{
			Code: inference.CodeUpstreamUnavailable, Retryable: true,
			Message: p.opts.Name + " could not be reached", Err: errors.New("simulated failure"),
		}
	case faultHang:
		<-ctx.Done()
		return ended(ctx)
	case faultRefusal:
		return p.refusalError(f.refusal)
	case faultFiltered:
		return &inference.Error{
			Code: inference.CodeUpstreamRejected, Status: http.StatusBadRequest, Refusal: inference.RefusalContent,
			Message: p.opts.Name + " refused the content",
		}
	case faultMalformed:
		return &inference.Error{
			Code: inference.CodeUpstreamInvalid, Status: http.StatusOK,
			Message: p.opts.Name + " gave an answer that cannot be understood", Err: errNonsense,
		}
	default:
		return &inference.Error{
			Code: inference.CodeUpstreamCut, Retryable: true,
			Message: p.opts.Name + " broke off its answer", Err: io.ErrUnexpectedEOF,
		}
	}
}

const simulatedFailure = "simulated failure"

// statusError is what an adapter makes of an upstream's refusal.
func (p *Provider) statusError(status int, retryAfter time.Duration) error {
	e := &inference.Error{Status: status, RetryAfter: retryAfter}
	e.Code, e.Retryable = classOf(status)
	switch e.Code {
	case inference.CodeUpstreamAuth:
		e.Message = fmt.Sprintf("%s refused the operator's key (status %d)", p.opts.Name, status)
		return e
	case inference.CodeUpstreamRejected:
		e.Body = refusal(simulatedFailure, codeInvalid, "")
	}
	e.Message = fmt.Sprintf("%s answered with status %d: %s", p.opts.Name, status, simulatedFailure)
	return e
}

// classOf says what kind of refusal a status from 400 on is, and whether the call may
// be made again, as the client of real upstreams does: a test holds the two together.
func classOf(status int) (code inference.ErrorCode, retryable bool) {
	switch status {
	case 400, 404, 409, 413, 415, 422:
		return inference.CodeUpstreamRejected, false
	case 401, 402, 403:
		return inference.CodeUpstreamAuth, false
	case 408:
		return inference.CodeUpstreamTimeout, true
	case 429:
		return inference.CodeUpstreamRateLimited, true
	}
	return inference.CodeUpstreamError, status >= 500
}

// reject refuses a request as an upstream would.
func (p *Provider) reject(message, param string) error {
	return &inference.Error{
		Code: inference.CodeUpstreamRejected, Status: http.StatusBadRequest, Param: param, Body: refusal(message, codeInvalid, param),
		Message: p.opts.Name + " answered with status 400: " + message,
	}
}

// The codes of refusals, where they say more than that the request is wrong: OpenAI's.
const (
	codeInvalid = "invalid_request"
	codeContext = "context_length_exceeded"
	codeContent = "content_policy_violation"
)

// refusalError refuses a request that another upstream might serve.
func (p *Provider) refusalError(why inference.Refusal) error {
	code, message := codeContext, "simulated refusal: the prompt is too long"
	if why == inference.RefusalContent {
		code, message = codeContent, "simulated refusal: the content is not allowed"
	}
	return &inference.Error{
		Code: inference.CodeUpstreamRejected, Status: http.StatusBadRequest, Refusal: why, Body: refusal(message, code, ""),
		Message: p.opts.Name + " answered with status 400: " + message,
	}
}

// refusal is the JSON that goes back to the client.
func refusal(message, code, param string) []byte {
	return openaiapi.AppendError(nil, openaiapi.ErrorBody{
		Message: message, Type: "invalid_request_error", Code: code, Param: param,
	})
}

// wait returns at the given time, or at once with the reason when ctx ends.
func wait(ctx context.Context, until time.Time) error {
	left := time.Until(until)
	if left <= 0 {
		return ended(ctx)
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func ended(ctx context.Context) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return &inference.Error{Code: inference.CodeDeadlineExceeded, Message: "the request's deadline has passed", Err: err}
	default:
		return &inference.Error{Code: inference.CodeCancelled, Message: "the request was cancelled", Err: err}
	}
}
