package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// ErrForbidden says that an address is one that may not be called.
var ErrForbidden = errors.New("is an address of a private network or of this machine, which webhooks may not call")

// Bounds of one attempt, beside its timeout.
const (
	maxAnswerBytes = 64 << 10
	maxHeaderBytes = 64 << 10
)

// What an attempt without an answer failed of. Nothing of the receiver's own words is
// kept, and nothing of the address.
const (
	FailedForbidden = "address_not_allowed"
	FailedURL       = "url_not_allowed"
	FailedTimeout   = "timeout"
	FailedName      = "name_not_resolved"
	FailedTLS       = "tls"
	FailedRefused   = "connection_refused"
	FailedNetwork   = "connection_failed"
	FailedSecret    = "no_secret"
)

// SenderOptions are what a Sender is made of.
type SenderOptions struct {
	Timeout      time.Duration // of one attempt in all
	AllowPrivate bool          // lets it call private networks and plain http
	Resolver     *net.Resolver // nil: the system's
}

// Sender makes attempts. It is safe for concurrent use.
type Sender struct {
	opt       SenderOptions
	transport *http.Transport
}

// NewSender returns a Sender. It takes no proxy from the environment, which would be
// called in place of the address that is checked, and opens a connection of its own for
// each attempt, so that each one's address is checked. It is a transport and no client:
// a redirect is an answer like any other.
func NewSender(o SenderOptions) *Sender {
	dialer := &net.Dialer{Timeout: o.Timeout, Resolver: o.Resolver}
	if !o.AllowPrivate {
		dialer.ControlContext = func(_ context.Context, network, address string, _ syscall.RawConn) error {
			return checkDial(network, address)
		}
	}
	return &Sender{opt: o, transport: &http.Transport{
		DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, MaxResponseHeaderBytes: maxHeaderBytes,
	}}
}

// checkDial is asked before each connection, with the very address that is dialled: a
// name has been resolved by then, and nothing comes in between.
func checkDial(network, address string) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" || !IsPublic(target.Addr()) {
		return ErrForbidden
	}
	return nil
}

// Message is an event on its way to one address.
type Message struct {
	URL     string
	EventID string
	Body    []byte
	Secrets []Secret // the newest first
}

// Result is what came of an attempt.
type Result struct {
	At         time.Time
	Took       time.Duration
	Status     int           // zero: there was no answer
	Failure    string        // why there was none
	RetryAfter time.Duration // how long the receiver wants to be left alone; zero: it does not say
}

// Delivered reports whether the receiver has taken the event.
func (r Result) Delivered() bool { return r.Status >= 200 && r.Status <= 299 }

// Gone reports whether the receiver wants no event any more.
func (r Result) Gone() bool { return r.Status == http.StatusGone }

// Send makes one attempt: signed anew, since receivers refuse old timestamps. It ends
// within the timeout.
func (s *Sender) Send(ctx context.Context, m Message) Result {
	r := Result{At: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeout)
	defer cancel()
	req, failure := s.request(ctx, m, r.At)
	if failure != "" {
		r.Failure = failure
		return r
	}
	resp, err := s.transport.RoundTrip(req)
	r.Took = time.Since(r.At)
	if err != nil {
		r.Failure = failureOf(err)
		return r
	}
	// The status alone counts; the rest is read so that the receiver sees its answer taken.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswerBytes))
	_ = resp.Body.Close()
	r.Took, r.Status = time.Since(r.At), resp.StatusCode
	if !r.Delivered() {
		r.RetryAfter = retryAfter(resp.Header, time.Now())
	}
	return r
}

// request returns the signed request, or why there can be none.
func (s *Sender) request(ctx context.Context, m Message, at time.Time) (*http.Request, string) {
	// The address was checked when it was given; what is allowed may have changed since.
	switch err := CheckURL(m.URL, s.opt.AllowPrivate); {
	case errors.Is(err, ErrForbidden):
		return nil, FailedForbidden
	case err != nil:
		return nil, FailedURL
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL, bytes.NewReader(m.Body))
	if err != nil {
		return nil, FailedURL
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Sluice-Webhooks")
	if err := Sign(req.Header, m.EventID, at, m.Body, m.Secrets...); err != nil {
		return nil, FailedSecret
	}
	return req, ""
}

// failureOf says in one word why there was no answer: an error's own text holds the
// address, and may hold what the receiver sent.
func failureOf(err error) string {
	var (
		name        *net.DNSError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		alert       tls.AlertError
		network     net.Error
	)
	switch {
	case errors.Is(err, ErrForbidden):
		return FailedForbidden
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return FailedTimeout
	case errors.As(err, &name):
		return FailedName
	case errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &alert):
		return FailedTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return FailedRefused
	}
	return FailedNetwork
}
