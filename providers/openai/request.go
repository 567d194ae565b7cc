package openai

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"sluice/providers"
)

const (
	// firstAllocation bounds what is set aside because an upstream announces it; a
	// longer answer earns its memory as it arrives.
	firstAllocation = 1 << 20
	unknownLength   = 4 << 10
)

var errTooLarge = errors.New("answer exceeds the configured size")

// newPayload returns a request body. The transport knows its type for one that never
// blocks, and so sends the head and a small body in one piece: in two, a connection
// that the upstream has closed would fail between them, when it is too late to send
// the request again elsewhere without asking.
func newPayload(body []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(body)) }

func (p *Provider) chatRequest(call providers.Call, body []byte, accept []string) *http.Request {
	req := p.newRequest(http.MethodPost, p.chatURL, accept)
	req.Header["Content-Type"] = p.jsonType
	if call.RequestID != "" && headerSafe(call.RequestID) {
		req.Header["X-Request-Id"] = []string{call.RequestID}
	}
	if call.TraceParent != "" && headerSafe(call.TraceParent) {
		req.Header["Traceparent"] = []string{call.TraceParent}
	}
	req.ContentLength = int64(len(body))
	req.Body = newPayload(body)
	req.GetBody = func() (io.ReadCloser, error) { return newPayload(body), nil }
	return req
}

// newRequest builds a request by hand: http.NewRequest would parse the address anew
// for each call.
func (p *Provider) newRequest(method string, to *url.URL, accept []string) *http.Request {
	header := make(http.Header, 6)
	header["Accept"] = accept
	header["User-Agent"] = p.agent
	if p.auth != nil {
		header["Authorization"] = p.auth
	}
	return &http.Request{
		Method: method, URL: to, Host: to.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header,
	}
}

// send uses the transport without an http.Client around it, so that no redirect is
// followed: it would carry the key to wherever the upstream points.
func (p *Provider) send(ctx context.Context, req *http.Request) (*http.Response, error) {
	return p.transport.RoundTrip(req.WithContext(ctx))
}

func headerSafe(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

func closeBody(resp *http.Response) { _ = resp.Body.Close() } // it was read or given up; there is nobody to tell

// readBounded reads a whole body of at most limit bytes, in one piece of the right
// size when the upstream announces its length.
func readBounded(resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength > limit {
		return nil, errTooLarge
	}
	size := int64(unknownLength)
	if resp.ContentLength >= 0 {
		size = min(resp.ContentLength+1, firstAllocation) // one more, to meet the end without growing
	}
	buf := make([]byte, 0, size)
	for {
		n, err := resp.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, errTooLarge
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(int64(2*cap(buf)), limit+1)), buf...)
		}
	}
}
