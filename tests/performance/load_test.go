package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// runSpec runs a load of a few requests within the test's own process.
func runSpec(t *testing.T, spec loadSpec) (*loadResult, []string) {
	t.Helper()
	order, err := json.Marshal(spec)
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, runLoad(t.Context(), bytes.NewReader(order), &out))
	var moments []string
	var result *loadResult
	for lines := json.NewDecoder(&out); ; {
		var m message
		err := lines.Decode(&m)
		if err == io.EOF {
			return result, moments
		}
		require.NoError(t, err)
		moments = append(moments, m.Moment)
		result = m.Result
	}
}

func startUpstream(t *testing.T) (quick, thinking string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- runUpstream(ctx, write) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	line, err := bufio.NewReader(read).ReadString('\n')
	require.NoError(t, err)
	addresses := strings.Fields(line)
	require.Len(t, addresses, 2+len(fleetMembers()))
	return addresses[0], addresses[1]
}

func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestOpenLoopCountsFromTheIntendedTime(t *testing.T) {
	t.Parallel()
	quick, thinking := startUpstream(t)
	spec := loadSpec{
		Mode: "open", Address: quick, Rate: 200, Even: true, Connections: 1,
		Warmup: 20 * time.Millisecond, Duration: 100 * time.Millisecond, Patience: 5 * time.Second,
	}
	result, moments := runSpec(t, spec)
	require.Empty(t, result.Failures)
	require.EqualValues(t, 20, result.Latency.Count)
	require.Equal(t, []string{momentBegin, momentEnd, momentResult}, moments)

	// One connection and answers that take ten gaps: the requests go out all the same.
	spec.Address = thinking
	result, _ = runSpec(t, spec)
	require.Empty(t, result.Failures)
	require.EqualValues(t, 20, result.Latency.Count)
	require.Greater(t, result.Latency.P50, 49.0)
	require.Less(t, result.Latency.P50, 500.0, "nobody waits for an earlier request's connection")
}

func TestOpenLoopGivesUpOnSilence(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // it accepts nothing: the kernel does, and no answer comes
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	result, _ := runSpec(t, loadSpec{
		Mode: "open", Address: listener.Addr().String(), Rate: 100, Even: true, Connections: 1,
		Duration: 50 * time.Millisecond, Patience: 100 * time.Millisecond,
	})
	require.Equal(t, map[string]int{"no answer within 100ms": 5}, result.Failures)
	require.Zero(t, result.Good)
}

func TestLoadTellsAnswersApart(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch n.Add(1) % 6 {
		case 0:
			_, _ = io.WriteString(w, plainAnswer())
		case 1:
			_, _ = io.WriteString(w, "something else")
		case 2:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case 3:
			w.WriteHeader(http.StatusTooManyRequests)
		case 4:
			w.WriteHeader(http.StatusBadGateway)
		case 5:
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		}
	})
	result, _ := runSpec(t, loadSpec{
		Mode: "open", Address: address, Rate: 500, Even: true, Connections: 1,
		Duration: 60 * time.Millisecond, Patience: 5 * time.Second,
	})
	require.EqualValues(t, 5, result.Latency.Count)
	require.EqualValues(t, 10, result.Refusals.Count)
	require.EqualValues(t, 5, result.NoRetryAfter)
	require.Equal(t, map[string]int{"wrong answer": 5, "status 502": 5, "connection broken": 5}, result.Failures)
}

func TestClosedLoop(t *testing.T) {
	t.Parallel()
	_, thinking := startUpstream(t)
	result, moments := runSpec(t, loadSpec{
		Mode: "closed", Address: thinking, Connections: 2, Duration: 300 * time.Millisecond, Patience: 5 * time.Second,
	})
	require.Empty(t, result.Failures)
	require.LessOrEqual(t, result.Good, int64(12), "two clients, 50 ms each")
	require.Positive(t, result.Good)
	require.Equal(t, []string{momentBegin, momentEnd, momentResult}, moments)
}

func TestStreamsArriveWholeAndPaced(t *testing.T) {
	t.Parallel()
	quick, _ := startUpstream(t)
	result, moments := runSpec(t, loadSpec{
		Mode: "streams", Address: quick, Rate: 200, Streams: 3, Tokens: 12, Patience: 10 * time.Second,
	})
	require.Empty(t, result.Failures)
	require.EqualValues(t, 3, result.FirstToken.Count)
	require.InDelta(t, 20, result.Gap.P50, 8)
	require.Equal(t, []string{momentOpen, momentFinish, momentResult}, moments)
}

func TestLostStreamsAreSeen(t *testing.T) {
	t.Parallel()
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, stream(3, ""))
	})
	result, moments := runSpec(t, loadSpec{
		Mode: "streams", Address: address, Rate: 200, Streams: 2, Tokens: 3, Patience: 10 * time.Second,
	})
	require.Equal(t, map[string]int{errCutStream.Error(): 2}, result.Failures)
	require.Equal(t, []string{momentOpen, momentFinish, momentResult}, moments, "the measured time ends all the same")
}

func TestUpstreamSpeaksHTTP(t *testing.T) {
	t.Parallel()
	quick, _ := startUpstream(t)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	for _, c := range []struct{ method, path, body, want string }{
		{"POST", "/v1/chat/completions", `{"model":"bench"}`, answerMark},
		{"POST", "/v1/chat/completions", `{"stream":true,"max_tokens":3}`, `" t00002"`},
		{"POST", "/v1/chat/completions", `{"stream":true,"max_tokens":1,"stream_options":{"include_usage":true}}`, `"usage":{`},
		{"GET", "/v1/models", "", `"id":"bench"`},
		{"GET", "/other", "", "no such path"},
	} {
		request, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+quick+c.path, strings.NewReader(c.body))
		require.NoError(t, err)
		response, err := client.Do(request)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Contains(t, string(body), c.want)
		require.Equal(t, strings.Contains(c.body, "stream\":true"), strings.HasSuffix(string(body), "data: [DONE]\n\n"))
	}
}
