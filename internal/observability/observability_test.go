package observability

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLogger(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := NewLogger(&b, "warn", "json")
	require.NoError(t, err)
	log.Info("hidden")
	log.Warn("seen", "request_id", "r1")
	var line map[string]any
	require.NoError(t, json.Unmarshal(b.Bytes(), &line), "one line of JSON")
	require.Equal(t, "seen", line["msg"])
	require.Equal(t, "r1", line["request_id"])

	b.Reset()
	log, err = NewLogger(&b, "debug", "text")
	require.NoError(t, err)
	log.Debug("seen")
	require.Contains(t, b.String(), "level=DEBUG msg=seen")

	_, err = NewLogger(&b, "loud", "json")
	require.ErrorContains(t, err, `"loud"`)
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	MetricsHandler(NewRegistry()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "go_goroutines ")
	require.Contains(t, w.Body.String(), "process_start_time_seconds ")
}
