package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// series reads the first ingress's metrics: name with labels → value.
func (s *stack) series() map[string]float64 {
	s.t.Helper()
	found := make(map[string]float64)
	for line := range strings.Lines(s.do(0, http.MethodGet, "/metrics", "").body) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if ok {
			name += "}"
		} else {
			name, value, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(line, "#") {
			found[name] = v
		}
	}
	return found
}

func (s *stack) metric(name string) float64 { return s.series()[name] }

// metric reads a counter or gauge of a worker, or a histogram's count.
func (h *hand) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := h.reg.Gather()
	require.NoError(t, err)
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			match := true
			for _, l := range m.GetLabel() {
				if l.GetName() == "code" && len(labels) > 0 && l.GetValue() != labels[0] {
					match = false
				}
			}
			if match {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func TestMetricsMove(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.maxRetries = 2 })
	gate := make(chan struct{})
	s.up.Handle(func(c *testkit.Call) {
		switch c.N {
		case 1:
			c.Fail(http.StatusServiceUnavailable, "busy")
		case 4:
			c.Fail(http.StatusBadRequest, "no")
		case 5:
			c.Wait(gate)
			c.Reply("x")
		default:
			c.Reply("a", "b")
		}
	})
	require.Equal(t, http.StatusOK, s.chat(plainBody).status) // calls 1 and 2
	s.stream(streamBody).rest()
	require.Equal(t, http.StatusBadRequest, s.chat(plainBody).status)
	st := make(chan error, 1)
	go func() {
		_, err := s.try(t.Context(), 0, http.MethodPost, chatPath, streamBody)
		st <- err
	}()
	s.up.AwaitCount(5)
	s.eventually(func() bool { return s.metric(`sluice_queue_depth{provider="acme",state="running"}`) == 1 }, "a job is seen running")
	m := s.series()
	require.EqualValues(t, 1, m["sluice_in_flight"])
	require.EqualValues(t, 1, m["sluice_open_streams"])
	require.EqualValues(t, 1, m[`sluice_workers{provider="acme"}`])
	require.EqualValues(t, 1, s.hands[0].metric(t, "sluice_worker_in_flight"))
	close(gate)
	require.NoError(t, <-st)
	s.rows(4)

	s.eventually(func() bool { return s.metric("sluice_ledger_rows_total") == 4 }, "rows are counted")
	m = s.series()
	for name, want := range map[string]float64{
		`sluice_requests_total{outcome="succeeded",provider="acme"}`: 3,
		`sluice_requests_total{outcome="failed",provider="acme"}`:    1,
		`sluice_errors_total{code="upstream_rejected",status="400"}`: 1,
		`sluice_attempts_total{provider="acme"}`:                     5,
		`sluice_tokens_total{provider="acme",type="prompt"}`:         21,
		`sluice_tokens_total{provider="acme",type="completion"}`:     5,
		`sluice_queue_wait_seconds_count{provider="acme"}`:           4,
		`sluice_request_duration_seconds_count{provider="acme"}`:     4,
		`sluice_first_token_seconds_count{provider="acme"}`:          2,
		`sluice_overhead_seconds_count{provider="acme"}`:             1,
		`sluice_in_flight`:    0,
		`sluice_open_streams`: 0,
	} {
		require.Equal(t, want, m[name], name)
	}
	h := s.hands[0]
	require.EqualValues(t, 5, h.metric(t, "sluice_upstream_duration_seconds"))
	require.EqualValues(t, 1, h.metric(t, "sluice_retries_total"))
	require.EqualValues(t, 3, h.metric(t, "sluice_worker_jobs_total", ""))
	require.EqualValues(t, 1, h.metric(t, "sluice_worker_jobs_total", "upstream_rejected"))
	require.Zero(t, h.metric(t, "sluice_redeliveries_total"))
}

// TestLabelsAreBounded asks for many models, served and not: none makes a series.
func TestLabelsAreBounded(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	visit := func(i int) {
		model := fmt.Sprintf("glob-%d", i)
		require.Equal(t, http.StatusOK, s.chat(strings.Replace(plainBody, `"m"`, `"`+model+`"`, 1)).status)
		require.Equal(t, http.StatusNotFound, s.chat(strings.Replace(plainBody, `"m"`, `"none-`+model+`"`, 1)).status)
		require.Equal(t, http.StatusNotFound, s.do(0, http.MethodGet, "/v1/"+model, "").status)
		require.Equal(t, http.StatusMethodNotAllowed, s.do(0, "X"+strconv.Itoa(i), "/v1/models", "").status)
	}
	visit(0)
	s.rows(1)
	before := s.series()
	for i := range 100 {
		visit(i + 1)
	}
	s.rows(101)
	after := s.series()
	for name := range after {
		require.Contains(t, before, name)
	}
	require.EqualValues(t, 101, after[`sluice_errors_total{code="model_not_found",status="404"}`])
}

// TestLogsCarryRequestIDs reads every line of the log. That no log of any test holds a
// secret or content is checked when its stack ends.
func TestLogsCarryRequestIDs(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	s.up.Handle(func(c *testkit.Call) { c.Fail(http.StatusInternalServerError, "it broke on "+canary) })
	require.Equal(t, http.StatusBadGateway, s.chat(plainBody, "X-Request-Id", "req-in-log").status)
	s.up.Handle(func(c *testkit.Call) { c.Delta(canary); c.Cut() })
	s.stream(streamBody, "X-Request-Id", "req-in-stream").rest()
	require.Equal(t, http.StatusUnauthorized, s.chat(plainBody, "X-Request-Id", "req-no-key", "Authorization", "Bearer "+mintUnknown()).status)
	seen := make(map[string]string)
	for _, line := range s.logs.lines() {
		var entry struct {
			Level, Msg, Code string
			RequestID        string `json:"request_id"`
		}
		require.NoError(t, json.Unmarshal([]byte(line), &entry), line)
		require.NotEmpty(t, entry.Level)
		if entry.Code != "" {
			seen[entry.RequestID] = entry.Code
		}
	}
	require.Equal(t, map[string]string{
		"req-in-log": "upstream_error", "req-in-stream": "upstream_cut", "req-no-key": "invalid_api_key",
	}, seen)
}
