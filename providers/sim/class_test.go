package sim

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/providers/internal/upstream"
)

// scripted answers every call in the same way, without a network.
type scripted func() (*http.Response, error)

func (s scripted) RoundTrip(*http.Request) (*http.Response, error) { return s() }

func realClient(t *testing.T, s scripted) *upstream.Client {
	t.Helper()
	c, err := upstream.New(upstream.Options{
		Name: "sim", BaseURL: "http://upstream.test/v1", PassErrors: true, Transport: s,
		Keys: []upstream.Key{{Secret: "sk-of-the-operator", Weight: 1}},
	})
	require.NoError(t, err)
	return c
}

func realCall(t *testing.T, s scripted) (*upstream.Response, error) {
	t.Helper()
	c := realClient(t, s)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c.Do(t.Context(), upstream.Request{URL: c.At("chat"), Body: []byte("{}")})
}

func reply(status int, body string, headers ...string) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(bytes.NewReader([]byte(body)))}
}

// requireAlike compares what a worker and a client can tell of two errors.
func requireAlike(t *testing.T, want, got error) {
	t.Helper()
	w, g := inference.AsError(want), inference.AsError(got)
	w.Err, g.Err = nil, nil
	require.Equal(t, w, g)
}

// The simulation has no upstream, so it repeats what the client of real ones makes of
// what it meets. Here the two are held together.
func TestErrorsAreThoseOfRealUpstreams(t *testing.T) {
	t.Parallel()
	p, err := New(Options{})
	require.NoError(t, err)
	for status := minStatus; status <= maxStatus; status++ {
		for _, after := range []time.Duration{0, 7 * time.Second} {
			body := `{"error":{"message":"simulated failure"}}`
			code, _ := classOf(status)
			if code == inference.CodeUpstreamRejected {
				body = string(refusal(simulatedFailure, codeInvalid, ""))
			}
			headers := []string{}
			if after > 0 {
				headers = []string{"Retry-After", strconv.Itoa(int(after.Seconds()))}
			}
			_, theirs := realCall(t, func() (*http.Response, error) { return reply(status, body, headers...), nil })
			require.Error(t, theirs, "status %d", status)
			requireAlike(t, theirs, p.stray(t.Context(), fault{kind: faultStatus, status: status, retryAfter: after}))
		}
	}
	for why, code := range map[inference.Refusal]string{inference.RefusalContext: codeContext, inference.RefusalContent: codeContent} {
		simulated := p.stray(t.Context(), fault{kind: faultRefusal, refusal: why})
		require.Equal(t, why, inference.AsError(simulated).Refusal)
		body := string(inference.AsError(simulated).Body)
		require.Contains(t, body, code)
		_, theirs := realCall(t, func() (*http.Response, error) { return reply(http.StatusBadRequest, body), nil })
		requireAlike(t, theirs, simulated)
	}
	_, unreachable := realCall(t, func() (*http.Response, error) { return nil, errors.New("no route") })
	requireAlike(t, unreachable, p.stray(t.Context(), fault{kind: faultUnreachable}))

	resp, err := realCall(t, func() (*http.Response, error) { return reply(http.StatusOK, "{"), nil })
	require.NoError(t, err)
	t.Cleanup(resp.Close)
	requireAlike(t, resp.Fail(io.ErrUnexpectedEOF), p.stray(t.Context(), fault{kind: faultCut}))
	requireAlike(t, resp.Refused(""), p.stray(t.Context(), fault{kind: faultFiltered}))
	requireAlike(t, resp.Invalid(errNonsense), p.stray(t.Context(), fault{kind: faultMalformed}))
}
