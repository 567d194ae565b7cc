package ingress

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// Anybody can send tokens whose key nobody knows: while their issuer is away the log is told
// once a minute, and the counter each time.
func TestTokensThatCannotBeCheckedDoNotFloodTheLog(t *testing.T) {
	t.Parallel()
	in, page := door(t)
	page.err = errors.New("no route")
	var log bytes.Buffer
	in.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	h := in.Handler()
	for i := range 20 {
		w := knock(h, "Bearer "+jwt(map[string]any{"sub": fmt.Sprint(i)}))
		require.Equal(t, http.StatusServiceUnavailable, w.Code, w.Body)
	}
	require.Equal(t, 1, strings.Count(log.String(), "auth_unavailable"), log.String())
	counted := 0.0
	reg, _ := in.metrics.reg.(prometheus.Gatherer)
	families, _ := reg.Gather() // an ingress without a queue has nothing to say of workers
	for _, f := range families {
		if f.GetName() == "sluice_errors_total" {
			counted += f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	require.InDelta(t, 20, counted, 0)
}

func TestSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s seldom
		for range 3 {
			require.True(t, s.due(time.Now()))
			require.False(t, s.due(time.Now()))
			time.Sleep(seldomEach - time.Nanosecond)
			require.False(t, s.due(time.Now()))
			time.Sleep(time.Nanosecond)
		}
	})
}
