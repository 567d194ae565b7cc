package providertest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

func testFirstToken(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	gate, seen := make(chan struct{}), make(chan struct{})
	r.up.Handle(func(c *testkit.Call) {
		s.Dialect.Token(c, "Hello")
		if c.Wait(gate) {
			c.Cut()
		}
	})
	result := make(chan error, 1)
	go func() {
		_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), func(chunks [][]byte) error {
			if strings.Contains(string(chunks[len(chunks)-1]), "Hello") {
				close(seen)
			}
			return nil
		})
		result <- err
	}()
	select {
	case <-seen:
	case <-time.After(5 * time.Second):
		require.Fail(t, "the first token waits for the second")
	}
	close(gate)
	requireError(t, r, <-result, inference.CodeUpstreamCut)
}

func testCancelClosesSocket(t *testing.T, s Subject) {
	for _, stream := range []bool{false, true} {
		r := newSlowRig(t, s, stream, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		arrived := make(chan struct{}, 1)
		go func() {
			var err error
			if stream {
				_, err = r.StreamGenerate(ctx, newCall("hello", true, false), func([][]byte) error {
					arrived <- struct{}{}
					return nil
				})
			} else {
				_, err = r.Generate(ctx, newCall("hello", false, false))
			}
			ended <- err
		}()
		r.up.AwaitCount(1)
		if stream {
			<-arrived
		}
		at := time.Now()
		cancel()
		gone := r.up.AwaitDisconnects(1)
		require.Less(t, gone[0].Sub(at), promptly)
		require.ErrorIs(t, <-ended, context.Canceled)
	}
}

func testEmitErrorClosesSocket(t *testing.T, s Subject) {
	r := newSlowRig(t, s, true, Options{})
	full := errors.New("receiver is full")
	_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), func([][]byte) error { return full })
	at := time.Now()
	require.ErrorIs(t, err, full)
	require.Less(t, r.up.AwaitDisconnects(1)[0].Sub(at), promptly)
}

func testReuse(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	r.up.Handle(func(c *testkit.Call) {
		s.Dialect.Answer(c, "Hello")
		c.Pause(5 * time.Millisecond) // the answer's formal end comes late
	})
	for i := range 10 {
		var err error
		if i%2 == 0 {
			_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
		} else {
			_, err = r.Generate(t.Context(), newCall("hello", false, false))
		}
		require.NoError(t, err)
		r.up.AwaitIdle()
	}
	_, opened := r.up.Connections()
	require.Equal(t, 1, opened, "finished calls leave their connection to the next")
}

func testStatusClasses(t *testing.T, s Subject) {
	cases := []struct {
		status    int
		code      inference.ErrorCode
		retryable bool
	}{
		{400, inference.CodeUpstreamRejected, false},
		{404, inference.CodeUpstreamRejected, false},
		{409, inference.CodeUpstreamRejected, false},
		{413, inference.CodeUpstreamRejected, false},
		{415, inference.CodeUpstreamRejected, false},
		{422, inference.CodeUpstreamRejected, false},
		{401, inference.CodeUpstreamAuth, false},
		{402, inference.CodeUpstreamAuth, false},
		{403, inference.CodeUpstreamAuth, false},
		{408, inference.CodeUpstreamTimeout, true},
		{429, inference.CodeUpstreamRateLimited, true},
		{500, inference.CodeUpstreamError, true},
		{502, inference.CodeUpstreamError, true},
		{503, inference.CodeUpstreamError, true},
		{504, inference.CodeUpstreamError, true},
		{529, inference.CodeUpstreamError, true},
		{405, inference.CodeUpstreamError, false},
		{307, inference.CodeUpstreamInvalid, false},
	}
	r := newRig(t, s, Options{})
	for _, c := range cases {
		r.up.Handle(func(call *testkit.Call) {
			call.SetHeader("Retry-After", "3")
			call.SetHeader("Location", r.up.URL()+"/elsewhere")
			s.Dialect.Fail(call, c.status, "no, said "+r.up.URL()+" of "+APIKey)
		})
		before := r.up.Count()
		_, plainErr := r.Generate(t.Context(), newCall("hello", false, false))
		_, streamErr := r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
		require.Equal(t, before+2, r.up.Count(), "an adapter neither retries nor follows redirects")
		for _, err := range []error{plainErr, streamErr} {
			e := requireErrorOf(t, r, err, c.code)
			require.Equal(t, c.status, e.Status)
			require.Equal(t, c.retryable, e.Retryable, "status %d", c.status)
			if c.retryable {
				require.Equal(t, 3*time.Second, e.RetryAfter)
			}
			if c.code == inference.CodeUpstreamAuth {
				require.NotContains(t, err.Error(), "no, said", "complaints about credentials are the operator's alone")
				require.Nil(t, e.Body)
			}
		}
	}
}

// requireErrorOf is requireError for upstreams that are made to tell their address.
func requireErrorOf(t *testing.T, r *rig, err error, code inference.ErrorCode) *inference.Error {
	t.Helper()
	var e *inference.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, "%v", err)
	host := strings.TrimSuffix(strings.TrimPrefix(r.up.URL(), "http://"), "/v1")
	shown := err.Error() + string(e.Body)
	require.NotContains(t, shown, host)
	require.NotContains(t, shown, APIKey)
	return e
}

func testUnreachable(t *testing.T, s Subject) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := listener.Addr().String()
	require.NoError(t, listener.Close())
	r := newRig(t, s, Options{BaseURL: "http://" + host + "/v1"})
	_, plainErr := r.Generate(t.Context(), newCall("hello", false, false))
	_, streamErr := r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
	for _, err := range []error{plainErr, streamErr} {
		e := requireError(t, r, err, inference.CodeUpstreamUnavailable)
		require.True(t, e.Retryable)
		require.NotContains(t, err.Error(), host)
	}
}

func testTimeout(t *testing.T, s Subject) {
	for _, stream := range []bool{false, true} {
		r := newSlowRig(t, s, stream, Options{Timeout: 60 * time.Millisecond})
		var err error
		if stream {
			_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
		} else {
			_, err = r.Generate(t.Context(), newCall("hello", false, false))
		}
		require.True(t, requireError(t, r, err, inference.CodeUpstreamTimeout).Retryable)
		require.NotErrorIs(t, err, context.DeadlineExceeded, "it is not the caller's deadline")
		require.NotErrorIs(t, err, context.Canceled)
		r.up.AwaitDisconnects(1)
	}
}

func testIdleTimeout(t *testing.T, s Subject) {
	r := newSlowRig(t, s, true, Options{IdleTimeout: 60 * time.Millisecond})
	var c collector
	sum, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), c.emit)
	require.True(t, requireError(t, r, err, inference.CodeUpstreamTimeout).Retryable)
	require.NotErrorIs(t, err, context.Canceled)
	require.True(t, sum.Usage.Estimated)
	text, _ := c.text(t)
	require.Equal(t, "Hello", text, "what came before is handed on")
}

// testSlowReceiver has the receiver take longer than the upstream may be silent.
func testSlowReceiver(t *testing.T, s Subject) {
	r := newRig(t, s, Options{IdleTimeout: 100 * time.Millisecond})
	gate := make(chan struct{}, 100)
	r.up.Handle(func(c *testkit.Call) {
		for range 2 {
			s.Dialect.Token(c, "Hello")
			c.Wait(gate)
		}
		s.Dialect.Answer(c, " there")
	})
	_, err := r.StreamGenerate(t.Context(), newCall("hello", true, false), func([][]byte) error {
		<-time.After(150 * time.Millisecond)
		gate <- struct{}{}
		return nil
	})
	require.NoError(t, err)
}

func testCutStream(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	r.up.Handle(func(c *testkit.Call) {
		s.Dialect.Token(c, "Hello")
		s.Dialect.Token(c, " there")
		c.Cut()
	})
	var c collector
	sum, err := r.StreamGenerate(t.Context(), newCall("eight characters and more", true, false), c.emit)
	require.True(t, requireError(t, r, err, inference.CodeUpstreamCut).Retryable)
	text, _ := c.text(t)
	require.Equal(t, "Hello there", text, "what came before is handed on")
	require.True(t, sum.Usage.Known)
	require.True(t, sum.Usage.Estimated)
	require.EqualValues(t, 2, sum.Usage.CompletionTokens)
	require.Positive(t, sum.Usage.PromptTokens)
}

func testCutPlain(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	r.up.Handle(func(c *testkit.Call) {
		c.SetHeader("Content-Length", "1000")
		c.JSON(http.StatusOK, `{"choices":[`)
		c.Cut()
	})
	_, err := r.Generate(t.Context(), newCall("hello", false, false))
	require.True(t, requireError(t, r, err, inference.CodeUpstreamCut).Retryable)
}

func testMalformed(t *testing.T, s Subject) {
	r := newRig(t, s, Options{})
	for name, body := range map[string]string{"cut JSON": `{"choices":[`, "no JSON": "hello", "nothing": "", "no answer": `{"hello":1}`, "list": "[]"} {
		r.up.Handle(func(c *testkit.Call) { c.JSON(http.StatusOK, body) })
		_, err := r.Generate(t.Context(), newCall("hello", false, false))
		requireError(t, r, err, inference.CodeUpstreamInvalid)
		_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
		requireError(t, r, err, inference.CodeUpstreamInvalid)
		r.up.Handle(func(c *testkit.Call) { c.Chunk("{" + name) })
		_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
		requireError(t, r, err, inference.CodeUpstreamInvalid)
	}
}

func testTooLarge(t *testing.T, s Subject) {
	r := newRig(t, s, Options{MaxResponseBytes: 20_000})
	fits, large := strings.Repeat("x", 10_000), strings.Repeat("x", 30_000)
	r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, fits) })
	_, err := r.Generate(t.Context(), newCall("hello", false, false))
	require.NoError(t, err)
	r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, fits, fits, fits) })
	_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
	require.NoError(t, err, "a stream may be long; its events may not")
	r.up.Handle(func(c *testkit.Call) { s.Dialect.Answer(c, large) })
	_, err = r.Generate(t.Context(), newCall("hello", false, false))
	requireError(t, r, err, inference.CodeUpstreamTooLarge)
	_, err = r.StreamGenerate(t.Context(), newCall("hello", true, false), new(collector).emit)
	requireError(t, r, err, inference.CodeUpstreamTooLarge)
}
