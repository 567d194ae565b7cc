package observability

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLogger(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	level, err := NewLevel("warn")
	require.NoError(t, err)
	log := NewLogger(&b, level, "json")
	log.Info("hidden")
	log.Warn("seen", "request_id", "r1")
	var line map[string]any
	require.NoError(t, json.Unmarshal(b.Bytes(), &line), "one line of JSON")
	require.Equal(t, "seen", line["msg"])
	require.Equal(t, "r1", line["request_id"])

	b.Reset()
	require.NoError(t, level.SetName("debug"), "it may change while the logger is used")
	log.Debug("seen")
	require.Contains(t, b.String(), `"level":"DEBUG"`)

	b.Reset()
	NewLogger(&b, level, "text").Debug("seen")
	require.Contains(t, b.String(), "level=DEBUG msg=seen")

	_, err = NewLevel("loud")
	require.ErrorContains(t, err, `"loud"`)
	require.Error(t, level.SetName("loud"))
	require.Equal(t, slog.LevelDebug, level.Level(), "which stays as it was")
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	MetricsHandler(NewRegistry()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "go_goroutines ")
	require.Contains(t, w.Body.String(), "process_start_time_seconds ")
}
