package providertest

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

// relay stands between an adapter and its upstream and hands answers on byte by byte, so
// that reads end anywhere, with a change to what they say. That way every upstream speaks
// its own format.
type relay struct {
	transport *http.Transport
	change    func([]byte) []byte // may be nil; keeps the length
	target    *url.URL
}

// newRelayedRig returns an adapter whose upstream is behind a relay.
func newRelayedRig(t *testing.T, s Subject, change func([]byte) []byte) *rig {
	t.Helper()
	hop := &relay{transport: &http.Transport{}, change: change}
	server := httptest.NewServer(hop)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		hop.transport.CloseIdleConnections()
	})
	r := newRig(t, s, Options{BaseURL: server.URL + "/v1"})
	target, err := url.Parse(r.up.URL())
	require.NoError(t, err)
	hop.target = target
	return r
}

func (h *relay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.Host, out.RequestURI = h.target.Scheme, h.target.Host, h.target.Host, ""
	resp, err := h.transport.RoundTrip(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body) // what came before a cut is handed on
	if h.change != nil {
		body = h.change(body)
	}
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	for i := range body {
		_, _ = w.Write(body[i : i+1]) // a client that has gone is for the test to notice
		_ = http.NewResponseController(w).Flush()
	}
}

// corrupt replaces a text by bytes that are no UTF-8: one that begins no character, a
// character that is cut off, and one that is longer than it may be.
func corrupt(text string) func([]byte) []byte {
	broken := append([]byte("\xff\xe2\x82\xc0\xaf"), bytes.Repeat([]byte{'x'}, len(text))...)[:len(text)]
	return func(body []byte) []byte { return bytes.ReplaceAll(body, []byte(text), broken) }
}
