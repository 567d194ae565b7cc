package openai

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
	errNotStream   = errors.New("streamed call answered without a stream")
	errNoModelList = errors.New("not a model list")
)

// transportError classes a call that got no response.
func (p *Provider) transportError(parent, ctx context.Context, err error) error {
	if ended := p.contextError(parent, ctx); ended != nil {
		return ended
	}
	return &inference.Error{
		Code: inference.CodeUpstreamUnavailable, Retryable: true,
		Message: p.opts.Name + " could not be reached",
		Err:     plainCause(err),
	}
}

// bodyError classes a response whose body could not be read to its end.
func (p *Provider) bodyError(parent, ctx context.Context, err error) error {
	if errors.Is(err, errTooLarge) {
		return inference.Errorf(inference.CodeUpstreamTooLarge, "the answer of %s is too large", p.opts.Name)
	}
	if ended := p.contextError(parent, ctx); ended != nil {
		return ended
	}
	return &inference.Error{
		Code: inference.CodeUpstreamCut, Retryable: true,
		Message: p.opts.Name + " broke off its answer",
		Err:     plainCause(err),
	}
}

// streamError classes the end of a stream that is no success.
func (p *Provider) streamError(parent, ctx context.Context, err error) error {
	var known *inference.Error
	var emit *emitError
	switch {
	case errors.As(err, &emit):
		if parent.Err() != nil {
			return p.contextError(parent, ctx)
		}
		return err
	case errors.As(err, &known):
		return err
	default:
		return p.bodyError(parent, ctx, err)
	}
}

// contextError returns why the call's time is over, nil when it is not. The caller's
// reason comes before our own timeouts.
func (p *Provider) contextError(parent, ctx context.Context) error {
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
	message := p.opts.Name + " did not answer in time"
	if errors.Is(context.Cause(ctx), errIdle) {
		message = p.opts.Name + " fell silent in the middle of its answer"
	}
	return &inference.Error{Code: inference.CodeUpstreamTimeout, Retryable: true, Message: message, Err: context.Cause(ctx)}
}

// statusError classes a response that is not 2xx.
func (p *Provider) statusError(parent, ctx context.Context, resp *http.Response) error {
	body, err := readBounded(resp, maxErrorBytes)
	if err != nil {
		body = nil // the status tells enough, unless the call itself is over
		if ended := p.contextError(parent, ctx); ended != nil {
			return ended
		}
	}
	e := &inference.Error{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	said, _, code, param, _ := openaiapi.ParseError(body)
	said = p.scrub(said)
	switch status := resp.StatusCode; status {
	case 400, 404, 409, 413, 415, 422:
		e.Code = inference.CodeUpstreamRejected
		e.Param = p.scrub(param)
		if openaiapi.Valid(body) && !p.betrays(body) {
			e.Body = body
		}
	case 401, 402, 403:
		e.Code = inference.CodeUpstreamAuth
		e.Message = fmt.Sprintf("%s refused the operator's key (status %d)", p.opts.Name, status)
		return e
	case 408:
		e.Code, e.Retryable = inference.CodeUpstreamTimeout, true
	case 429:
		e.Code = inference.CodeUpstreamRateLimited
		e.Retryable = code != "insufficient_quota" // an empty account stays empty
	default:
		e.Code = inference.CodeUpstreamError
		e.Retryable = status >= 500
		if status/100 == 3 {
			e.Code = inference.CodeUpstreamInvalid // a redirect, which is never followed
		}
	}
	e.Message = fmt.Sprintf("%s answered with status %d", p.opts.Name, resp.StatusCode)
	if said != "" {
		e.Message += ": " + said
	}
	return e
}

// errorObject classes an error that came with a status of success, alone or in the
// middle of a stream.
func (p *Provider) errorObject(body []byte, status int) error {
	said, typ, _, _, _ := openaiapi.ParseError(body)
	e := &inference.Error{
		Code: inference.CodeUpstreamError, Status: status,
		Retryable: typ != "invalid_request_error",
		Message:   p.opts.Name + " answered with an error",
	}
	if said = p.scrub(said); said != "" {
		e.Message += ": " + said
	}
	return e
}

func (p *Provider) invalidAnswer(status int, cause error) error {
	return &inference.Error{
		Code: inference.CodeUpstreamInvalid, Status: status, Err: cause,
		Message: p.opts.Name + " gave an answer that cannot be understood",
	}
}

// betrays reports that a text holds the key or the upstream's address.
func (p *Provider) betrays(text []byte) bool {
	return (p.opts.APIKey != "" && bytes.Contains(text, []byte(p.opts.APIKey))) ||
		bytes.Contains(text, []byte(p.chatURL.Host))
}

// scrub takes the key and the upstream's address out of the upstream's own words.
func (p *Provider) scrub(said string) string {
	if said == "" || !p.betrays([]byte(said)) {
		return said
	}
	if p.opts.APIKey != "" {
		said = strings.ReplaceAll(said, p.opts.APIKey, "[key]")
	}
	return strings.ReplaceAll(said, p.chatURL.Host, "[upstream]")
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
