package ingress

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"sluice/internal/inference"
)

// logFailure tells of our own and our providers' faults loudly, of clients' faults
// quietly.
func (s *Ingress) logFailure(ctx context.Context, requestID string, e *inference.Error, details map[string]any) {
	level := slog.LevelWarn
	switch status := statusOf(e); {
	case e.Code == inference.CodeInternal:
		level = slog.LevelError
	case e.Code == inference.CodeAuthUnavailable && !s.unknown.due(time.Now()):
		level = slog.LevelDebug
	case status < 500:
		level = slog.LevelDebug
	}
	args := []any{"request_id", requestID, "code", string(e.Code), "status", statusOf(e)}
	for _, name := range []string{"job_id", "provider"} {
		if v, ok := details[name]; ok {
			args = append(args, name, v)
		}
	}
	if e.Status != 0 {
		args = append(args, "upstream_status", e.Status)
	}
	if e.Err != nil {
		args = append(args, "error", e.Err)
	}
	s.log.Log(ctx, level, "request failed", args...)
}

// seldomEach is how often the log is told at most what callers without credentials can bring
// about as often as they like. All of them are counted.
const seldomEach = time.Minute

// seldom is something that is due again some time after it was last.
type seldom struct {
	next atomic.Int64 // Unix nanoseconds
}

// due reports whether it is time again, to one of those who ask.
func (s *seldom) due(now time.Time) bool {
	next := s.next.Load()
	return now.UnixNano() >= next && s.next.CompareAndSwap(next, now.Add(seldomEach).UnixNano())
}
