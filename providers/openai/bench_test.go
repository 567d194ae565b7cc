package openai_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers"
	"sluice/providers/internal/upstream"
	"sluice/providers/openai"
)

var benchBody = []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 190) + `"}],"stream":false}`)

// quickUpstream answers with as little effort as a Go server can.
func quickUpstream(b *testing.B, answer []byte) *httptest.Server {
	b.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a benchmark's client does not break off
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	}))
	b.Cleanup(server.Close)
	return server
}

func BenchmarkGenerate(b *testing.B) {
	server := quickUpstream(b, []byte(testkit.Completion("m", strings.Repeat("word ", 150), 200, 150)))
	p, err := openai.New(openai.Options{Options: upstream.Options{BaseURL: server.URL, Keys: []upstream.Key{{Secret: "k"}}}})
	require.NoError(b, err)
	b.Cleanup(func() { _ = p.Close() })
	call := providers.Call{Kind: inference.KindChat, Model: "m", Body: benchBody, RequestID: "r"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Generate(b.Context(), call); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReverseProxy is the yardstick: the same call through Go's proxy, which is
// driven without a client's socket.
func BenchmarkReverseProxy(b *testing.B) {
	server := quickUpstream(b, []byte(testkit.Completion("m", strings.Repeat("word ", 150), 200, 150)))
	target, err := url.Parse(server.URL)
	require.NoError(b, err)
	transport := &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true}
	b.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
	}
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/chat/completions", bytes.NewReader(benchBody))
		w := httptest.NewRecorder()
		proxy.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}

func BenchmarkStream100(b *testing.B) {
	frame := "data: " + `{"id":"chatcmpl-123456789012345678901234","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\n"
	text := []byte(strings.Repeat(frame, 100) + "data: [DONE]\n\n")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a benchmark's client does not break off
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write(text)
	}))
	b.Cleanup(server.Close)
	p, err := openai.New(openai.Options{Options: upstream.Options{BaseURL: server.URL}})
	require.NoError(b, err)
	b.Cleanup(func() { _ = p.Close() })
	call := providers.Call{Kind: inference.KindChat, Model: "m", Body: benchBody}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.StreamGenerate(b.Context(), call, func([][]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
