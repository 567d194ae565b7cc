package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sluice/internal/inference"
	"sluice/internal/openaiapi"
)

const (
	maxErrorBytes = 64 << 10
	maxRetryAfter = 24 * time.Hour
)

var (
	errCallTimeout = errors.New("call exceeded its timeout")
	errIdle        = errors.New("upstream fell silent")
)

// Complaint is what an upstream says of an error, in its own words.
type Complaint struct {
	Message string
	Code    string
	Param   string // the request's field at fault

	// Class is what the words say where the status says less: empty, or one of
	// inference.CodeUpstreamRejected (the client's fault), CodeUpstreamRateLimited and
	// so on.
	Class inference.ErrorCode

	// Refusal says why the request was refused, where another upstream might not. It
	// counts where the class is inference.CodeUpstreamRejected.
	Refusal inference.Refusal

	// Final says that the same call will fail again, whatever the status says.
	Final bool

	// RetryAfter is what the body says beside the header.
	RetryAfter time.Duration
}

// Fail classes an error that was met while the answer was read or handed on. One that
// is classed already stays as it is.
func (r *Response) Fail(err error) error {
	var known *inference.Error
	var emit *emitError
	switch {
	case errors.As(err, &emit):
		if r.parent.Err() != nil {
			return r.client.contextError(r.parent, r.ctx)
		}
		return err
	case errors.As(err, &known):
		return err
	case errors.Is(err, errTooLarge), errors.Is(err, openaiapi.ErrEventTooLarge):
		return inference.Errorf(inference.CodeUpstreamTooLarge, "the answer of %s is too large", r.client.opts.Name)
	}
	if ended := r.client.contextError(r.parent, r.ctx); ended != nil {
		return ended
	}
	return &inference.Error{
		Code: inference.CodeUpstreamCut, Retryable: true,
		Message: r.client.opts.Name + " broke off its answer",
		Err:     plainCause(err),
	}
}

// emitError marks an error as the receiver's, which is no fault of the upstream.
type emitError struct{ err error }

func (e *emitError) Error() string { return fmt.Sprintf("emit chunks: %v", e.err) }
func (e *emitError) Unwrap() error { return e.err }

// EmitError marks an error of the receiver of chunks, for Fail.
func EmitError(err error) error { return &emitError{err} }

// transportError classes a call that got no response.
func (c *Client) transportError(parent, ctx context.Context, err error) error {
	if ended := c.contextError(parent, ctx); ended != nil {
		return ended
	}
	return &inference.Error{
		Code: inference.CodeUpstreamUnavailable, Retryable: true,
		Message: c.opts.Name + " could not be reached",
		Err:     plainCause(err),
	}
}

// contextError returns why the call's time is over, nil when it is not. The caller's
// reason comes before our own timeouts.
func (c *Client) contextError(parent, ctx context.Context) error {
	ended := parent.Err()
	if due, ok := parent.Deadline(); ended == nil && ok && !time.Now().Before(due) {
		ended = context.DeadlineExceeded // a socket may notice before the context's own timer does
	}
	switch {
	case errors.Is(ended, context.DeadlineExceeded):
		return &inference.Error{Code: inference.CodeDeadlineExceeded, Message: "the request's deadline has passed", Err: ended}
	case ended != nil:
		return &inference.Error{Code: inference.CodeCancelled, Message: "the request was cancelled", Err: ended}
	case ctx.Err() == nil:
		return nil
	}
	message := c.opts.Name + " did not answer in time"
	if errors.Is(context.Cause(ctx), errIdle) {
		message = c.opts.Name + " fell silent in the middle of its answer"
	}
	return &inference.Error{Code: inference.CodeUpstreamTimeout, Retryable: true, Message: message, Err: context.Cause(ctx)}
}

// keysError tells that no key may be used at the moment.
func (c *Client) keysError(err error) error {
	if errors.Is(err, errAllRefused) {
		return &inference.Error{Code: inference.CodeUpstreamAuth, Message: c.opts.Name + " refused all of the operator's keys", Err: err}
	}
	return &inference.Error{
		Code: inference.CodeUpstreamRateLimited, Retryable: true, RetryAfter: c.keys.next(time.Now()), Err: err,
		Message: c.opts.Name + " asks to be called less often",
	}
}

// refused classes a response that is not 2xx.
func (r *Response) refused(key *keyEntry) error {
	c := r.client
	body, err := readBounded(r.http, maxErrorBytes)
	if err != nil {
		body = nil // the status tells enough, unless the call itself is over
		if ended := c.contextError(r.parent, r.ctx); ended != nil {
			return ended
		}
	}
	now := time.Now()
	said := c.opts.Explain(body)
	e := &inference.Error{Status: r.Status, RetryAfter: max(retryAfter(r.Header, now), said.RetryAfter)}
	e.Code, e.Retryable = classOf(r.Status, said)
	if e.RetryAfter == 0 && r.Status == http.StatusTooManyRequests {
		e.RetryAfter = resetAfter(r.Header, now)
	}
	switch e.Code {
	case inference.CodeUpstreamAuth:
		e.Retryable = c.keys.refuse(key, now)
		e.Message = fmt.Sprintf("%s refused the operator's key (status %d)", c.opts.Name, r.Status)
		return e
	case inference.CodeUpstreamRateLimited:
		if c.keys.cool(key, e.RetryAfter, now); len(c.keys.entries) > 1 {
			e.RetryAfter = c.keys.next(now) // another key may be used sooner, or at once
		}
	case inference.CodeUpstreamRejected:
		e.Param, e.Refusal = c.scrub(said.Param), said.Refusal
		if c.opts.PassErrors && openaiapi.Valid(body) && !c.betrays(body) {
			e.Body = body
		}
	}
	e.Message = c.words(fmt.Sprintf("%s answered with status %d", c.opts.Name, r.Status), said)
	return e
}

// classOf says what kind of refusal a status is, and whether the call may be made
// again.
func classOf(status int, said Complaint) (code inference.ErrorCode, retryable bool) {
	if said.Class != "" {
		code, retryable = said.Class, said.Class != inference.CodeUpstreamRejected
		return code, retryable && !said.Final
	}
	switch status {
	case 400, 404, 409, 413, 415, 422:
		return inference.CodeUpstreamRejected, false
	case 401, 402, 403:
		return inference.CodeUpstreamAuth, false
	case 408:
		return inference.CodeUpstreamTimeout, true
	case 429:
		return inference.CodeUpstreamRateLimited, !said.Final
	}
	if status/100 == 3 {
		return inference.CodeUpstreamInvalid, false // a redirect, which is never followed
	}
	return inference.CodeUpstreamError, status >= 500
}

// Complained classes an error that came with a status of success, alone or in the
// middle of a stream.
func (r *Response) Complained(said Complaint) error {
	e := &inference.Error{Code: inference.CodeUpstreamError, Status: r.Status, Retryable: !said.Final, RetryAfter: said.RetryAfter}
	if said.Class != "" {
		e.Code = said.Class
	} else if said.Refusal != "" {
		e.Code, e.Retryable = inference.CodeUpstreamRejected, false // no status says whose fault it is
	}
	if e.Code == inference.CodeUpstreamRejected {
		e.Refusal = said.Refusal
	}
	e.Message = r.client.words(r.client.opts.Name+" answered with an error", said)
	return e
}

// Refused tells that the upstream answered with nothing but its refusal of the content.
// It stands for the error that other upstreams give instead, and has such a one's status.
func (r *Response) Refused(said string) error {
	return &inference.Error{
		Code: inference.CodeUpstreamRejected, Status: http.StatusBadRequest, Refusal: inference.RefusalContent,
		Message: r.client.words(r.client.opts.Name+" refused the content", Complaint{Message: said}),
	}
}

// Explain reads an error of the upstream's shape.
func (r *Response) Explain(body []byte) Complaint { return r.client.opts.Explain(body) }

// Invalid tells that the answer cannot be understood.
func (r *Response) Invalid(cause error) error {
	return &inference.Error{
		Code: inference.CodeUpstreamInvalid, Status: r.Status, Err: cause,
		Message: r.client.opts.Name + " gave an answer that cannot be understood",
	}
}

// words puts what the upstream says behind what we say.
func (c *Client) words(ours string, said Complaint) string {
	if text := c.scrub(said.Message); text != "" {
		return ours + ": " + text
	}
	return ours
}

// betrays reports that a text holds a key or the upstream's address.
func (c *Client) betrays(text []byte) bool {
	for _, k := range c.keys.entries {
		if bytes.Contains(text, []byte(k.secret)) {
			return true
		}
	}
	return bytes.Contains(text, []byte(c.base.Host))
}

// scrub takes keys and the upstream's address out of the upstream's own words.
func (c *Client) scrub(said string) string {
	if said == "" || !c.betrays([]byte(said)) {
		return said
	}
	for _, k := range c.keys.entries {
		said = strings.ReplaceAll(said, k.secret, "[key]")
	}
	return strings.ReplaceAll(said, c.base.Host, "[upstream]")
}

// retryAfter reads how long the upstream asks to be left alone: in milliseconds, in
// seconds, or until a date (RFC 9110, section 10.2.3).
func retryAfter(h http.Header, now time.Time) time.Duration {
	var wait time.Duration
	after := strings.TrimSpace(h.Get("Retry-After"))
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil {
		wait = scaled(ms, time.Millisecond)
	} else if s, err := strconv.ParseFloat(after, 64); err == nil {
		wait = scaled(s, time.Second)
	} else if due, err := http.ParseTime(after); err == nil {
		wait = due.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}

func scaled(n float64, unit time.Duration) time.Duration {
	if n <= 0 || math.IsNaN(n) {
		return 0
	}
	return time.Duration(min(n*float64(unit), float64(maxRetryAfter)))
}

// plainCause says what went wrong below HTTP without the names and addresses that
// the errors of package net carry.
func plainCause(err error) error {
	var errno syscall.Errno
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.As(err, &dns) && dns.IsNotFound:
		return errors.New("name lookup: no such host")
	case errors.As(err, &dns):
		return errors.New("name lookup did not succeed")
	case errors.As(err, &cert):
		return errors.New("tls: the certificate is not trusted")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	case errors.Is(err, io.EOF):
		return io.EOF
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("timeout")
	default:
		return fmt.Errorf("transport error of type %T", err)
	}
}
