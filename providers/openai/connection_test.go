package openai_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
	"sluice/providers/internal/upstream"
	"sluice/providers/openai"
)

// secureUpstream starts an upstream that speaks HTTP/2, and an adapter that calls it
// through the adapter's own transport.
func secureUpstream(t *testing.T, handler http.HandlerFunc) (p *openai.Provider, opened *atomic.Int64) {
	t.Helper()
	opened = new(atomic.Int64)
	srv := httptest.NewUnstartedServer(handler)
	srv.EnableHTTP2 = true
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	transport := trusting(srv)
	t.Cleanup(transport.CloseIdleConnections)
	p, err := openai.New(openai.Options{Options: upstream.Options{Name: "acme", BaseURL: srv.URL + "/v1", Keys: []upstream.Key{{Secret: key}}, Transport: transport}})
	require.NoError(t, err)
	return p, opened
}

// newTransport returns a transport as the adapter makes it for itself.
func newTransport(secure bool) *http.Transport {
	transport, err := upstream.NewTransport(secure, "")
	if err != nil {
		panic(err)
	}
	return transport
}

// trusting returns the adapter's transport, which takes the test server's certificate.
func trusting(srv *httptest.Server) *http.Transport {
	transport := newTransport(true)
	transport.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	transport.TLSClientConfig.NextProtos = nil
	return transport
}

const token = `data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"

func TestHTTP2(t *testing.T) {
	t.Parallel()
	p, opened := secureUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.ProtoMajor != 2 || r.Header.Get("Authorization") != "Bearer "+key {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		if !strings.Contains(string(body), `"stream"`) {
			_, _ = io.WriteString(w, testkit.Completion("m", string(body[:20]), 1, len(body)))
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for range 3 {
			_, _ = io.WriteString(w, token)
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
	})
	ask := func(i int) error {
		if i%2 == 1 {
			var got sink
			_, err := p.StreamGenerate(t.Context(), chat(`{"stream":true}`), got.emit)
			if err == nil && len(got.chunks) != 3 {
				return fmt.Errorf("%d chunks", len(got.chunks))
			}
			return err
		}
		body := fmt.Sprintf(`{"n":%-16d"x":"%s"}`, i, strings.Repeat("x", i<<14)) // up to several windows of the connection
		resp, err := p.Generate(t.Context(), chat(body))
		if err == nil && resp.Usage.CompletionTokens != int64(len(body)) {
			return fmt.Errorf("%d bytes arrived", resp.Usage.CompletionTokens)
		}
		return err
	}
	require.NoError(t, ask(0))
	var errs [40]error
	var calls sync.WaitGroup
	for i := range errs {
		calls.Go(func() { errs[i] = ask(i) })
	}
	calls.Wait()
	require.NoError(t, errors.Join(errs[:]...))
	require.EqualValues(t, 1, opened.Load(), "calls share a connection")
}

func TestHTTP2Ends(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{}, 10)
	p, opened := secureUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case strings.Contains(string(body), "refuse"):
			panic(http.ErrAbortHandler)
		case strings.Contains(string(body), "cut"):
			_, _ = io.WriteString(w, token)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if strings.Contains(string(body), "stream") {
			_, _ = io.WriteString(w, token)
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	_, err := p.Generate(t.Context(), chat(`{"n":"refuse"}`))
	require.Equal(t, inference.CodeUpstreamUnavailable, inference.AsError(err).Code)
	require.True(t, inference.AsError(err).Retryable)
	require.NotContains(t, err.Error(), "127.0.0.1")

	sum, err := p.StreamGenerate(t.Context(), chat(`{"stream":true,"n":"cut"}`), new(sink).emit)
	require.Equal(t, inference.CodeUpstreamCut, inference.AsError(err).Code)
	require.True(t, sum.Usage.Estimated)

	for _, stream := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		if stream {
			_, err = p.StreamGenerate(ctx, chat(`{"stream":true}`), func([][]byte) error { cancel(); return nil })
		} else {
			time.AfterFunc(20*time.Millisecond, cancel)
			_, err = p.Generate(ctx, chat(`{}`))
		}
		cancel()
		require.ErrorIs(t, err, context.Canceled)
		select {
		case <-gone: // the upstream knows that nobody listens any more
		case <-time.After(10 * time.Second):
			require.Fail(t, "the upstream works on")
		}
	}
	require.EqualValues(t, 1, opened.Load(), "the end of a call is not the end of its connection")
}

// A farewell of the upstream between two calls, or in the middle of one, is no error.
func TestHTTP2Farewell(t *testing.T) {
	t.Parallel()
	p, opened := secureUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Connection", "close") // in HTTP/2 this sends GOAWAY
		_, _ = io.WriteString(w, testkit.Completion("m", "x", 1, 1))
	})
	for range 50 {
		_, err := p.Generate(t.Context(), chat(`{"model":"m"}`))
		require.NoError(t, err)
	}
	require.Greater(t, opened.Load(), int64(1))
}

// hookedConn lets a test stand between the transport and a connection.
type hookedConn struct {
	net.Conn
	write func(p []byte) (int, error) // nil: as it is
	muted atomic.Bool                 // nothing arrives, and nothing is seen to fail
	over  chan struct{}
	once  sync.Once
}

func (c *hookedConn) Write(p []byte) (int, error) {
	if c.muted.Load() {
		return len(p), nil
	}
	if c.write != nil {
		return c.write(p)
	}
	return c.Conn.Write(p)
}

func (c *hookedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.muted.Load() {
		<-c.over
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *hookedConn) Close() error {
	c.once.Do(func() { close(c.over) })
	return c.Conn.Close()
}

// staleUpstream returns an adapter whose connection cannot be written to any more once
// its first call is over; written says how much of the next request it still takes.
func staleUpstream(t *testing.T, written func(p []byte) int) (*openai.Provider, *testkit.Upstream) {
	t.Helper()
	transport := newTransport(false)
	t.Cleanup(transport.CloseIdleConnections)
	dials := 0
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := &hookedConn{Conn: conn, over: make(chan struct{})}
		if dials++; dials > 1 {
			return c, nil
		}
		heads := 0
		c.write = func(p []byte) (int, error) {
			if strings.HasPrefix(string(p), "POST ") {
				heads++
			}
			if heads < 2 {
				return conn.Write(p)
			}
			if n := written(p); n < len(p) {
				return n, &net.OpError{Op: "write", Net: network, Err: syscall.EPIPE}
			}
			return len(p), conn.Close() // it was closed at the other end while the request was on its way
		}
		return c, nil
	}
	return setup(t, func(o *openai.Options) { o.Transport = transport })
}

// The transport sends a request again whose connection had been closed before
// anything was written, and the adapter lets it do so by rewinding the body.
func TestAStaleConnectionIsNoError(t *testing.T) {
	t.Parallel()
	p, up := staleUpstream(t, func([]byte) int { return 0 })
	for i := range 3 {
		body := fmt.Sprintf(`{"model":"m","n":%d}`, i)
		_, err := p.Generate(t.Context(), chat(body))
		require.NoError(t, err)
		require.Equal(t, body, string(up.Last().Body))
	}
	require.Equal(t, 3, up.Count())
}

// A request that was written may have been taken up. To make the call again is for
// the worker, which counts it.
func TestARequestThatMayHaveArrivedIsNotSentAgainUnseen(t *testing.T) {
	t.Parallel()
	p, up := staleUpstream(t, func(p []byte) int { return len(p) })
	_, err := p.Generate(t.Context(), chat(`{"model":"m"}`))
	require.NoError(t, err)
	_, err = p.Generate(t.Context(), chat(`{"model":"m"}`))
	e := inference.AsError(err)
	require.Equal(t, inference.CodeUpstreamUnavailable, e.Code)
	require.True(t, e.Retryable)
	require.Equal(t, 1, up.Count())
	_, err = p.Generate(t.Context(), chat(`{"model":"m"}`))
	require.NoError(t, err, "the dead connection is not used again")
}

// A small request is written in one piece: a connection that is closed already fails
// before anything of it was sent, and not in the middle.
func TestASmallRequestIsWrittenInOnePiece(t *testing.T) {
	t.Parallel()
	pieces := 0
	transport := newTransport(false)
	t.Cleanup(transport.CloseIdleConnections)
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &hookedConn{Conn: conn, over: make(chan struct{}), write: func(p []byte) (int, error) {
			pieces++
			return conn.Write(p)
		}}, err
	}
	p, _ := setup(t, func(o *openai.Options) { o.Transport = transport })
	_, err := p.Generate(t.Context(), chat(`{"model":"m"}`))
	require.NoError(t, err)
	require.Equal(t, 1, pieces)
}

func TestAnIdleConnectionIsGivenUpBeforeTheUpstreamDoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		transport := newTransport(false)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			dials++
			client, server := net.Pipe()
			go answerAll(server)
			return client, nil
		}
		p, err := openai.New(openai.Options{Options: upstream.Options{BaseURL: "http://upstream/v1", Transport: transport}})
		require.NoError(t, err)
		for _, c := range []struct {
			idle  time.Duration
			dials int
		}{{0, 1}, {3 * time.Second, 1}, {4500 * time.Millisecond, 2}} {
			time.Sleep(c.idle)
			_, err := p.Generate(t.Context(), chat(`{"model":"m"}`))
			require.NoError(t, err)
			require.Equal(t, c.dials, dials)
		}
		transport.CloseIdleConnections()
	})
}

// answerAll answers every request of a connection.
func answerAll(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		body := testkit.Completion("m", "x", 1, 1)
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			return
		}
	}
}

// pipes is a listener whose connections never leave the process.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error { close(l.closed); return nil }

func (l *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// All calls share one connection of HTTP/2. When that dies without a word, the calls
// must not each wait out their own timeout for it.
func TestADeadHTTP2ConnectionIsNoticed(t *testing.T) {
	t.Parallel()
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	t.Cleanup(certified.Close)
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		srv := &http.Server{TLSConfig: certified.TLS.Clone(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, testkit.Completion("m", r.Proto, 1, 1))
		})}
		srv.TLSConfig.NextProtos = nil
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = srv.ServeTLS(l, "", "")
		}()
		var last *hookedConn
		transport := trusting(certified)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			l.conns <- server
			last = &hookedConn{Conn: client, over: make(chan struct{})}
			return last, nil
		}
		p, err := openai.New(openai.Options{Options: upstream.Options{BaseURL: "https://example.com/v1", Transport: transport}})
		require.NoError(t, err)
		resp, err := p.Generate(t.Context(), chat(`{"model":"m"}`))
		require.NoError(t, err)
		require.Contains(t, string(resp.Body), "HTTP/2.0")

		last.muted.Store(true)
		start := time.Now()
		_, err = p.Generate(t.Context(), chat(`{"model":"m"}`))
		e := inference.AsError(err)
		require.Equal(t, inference.CodeUpstreamUnavailable, e.Code)
		require.True(t, e.Retryable)
		require.LessOrEqual(t, time.Since(start), time.Minute)
		_, err = p.Generate(t.Context(), chat(`{"model":"m"}`))
		require.NoError(t, err, "the next call has a connection of its own")
		transport.CloseIdleConnections()
		require.NoError(t, srv.Close())
		<-served
	})
}

// What an upstream says of a failure may hold the client's prompt: it may reach the
// client whose prompt it is, and nothing that is logged.
func TestTheCauseOfAFailureHoldsNothingOfTheUpstreams(t *testing.T) {
	t.Parallel()
	const prompt = "tell nobody of this"
	p, up := setup(t, nil)
	logged := func(err error) *inference.Error {
		var e *inference.Error
		require.ErrorAs(t, err, &e)
		for cause := e.Err; cause != nil; cause = errors.Unwrap(cause) {
			require.NotContains(t, cause.Error(), prompt)
		}
		return e
	}
	echo := func(status int, body string) {
		up.Handle(func(c *testkit.Call) { c.JSON(status, body) })
		_, err := p.Generate(t.Context(), chat(`{"messages":[{"role":"user","content":"`+prompt+`"}]}`))
		e := logged(err)
		if status/100 == 4 && status != 429 {
			require.NotContains(t, e.Message, prompt)
		}
		_, err = p.StreamGenerate(t.Context(), chat(`{"stream":true}`), new(sink).emit)
		logged(err)
		up.Handle(func(c *testkit.Call) { c.Stream(); c.Chunk(body) })
		_, err = p.StreamGenerate(t.Context(), chat(`{"stream":true}`), new(sink).emit)
		logged(err)
	}
	for _, status := range []int{200, 401, 403, 429, 500, 503} {
		echo(status, `{"error":{"message":"cannot do: `+prompt+`"}}`)
		echo(status, `"`+prompt+`"`)
		echo(status, prompt)
	}
}
