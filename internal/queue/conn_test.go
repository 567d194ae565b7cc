package queue

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// A connection counts as there only when those know of it who must act after a new one: they
// would else take the time without one for silence.
func TestANewConnectionIsToldBeforeItCounts(t *testing.T) {
	t.Parallel()
	server := testkit.StartNATS(t)
	c, err := Connect(Options{Name: t.Name(), URL: server.URL(), Limits: testLimits(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	require.True(t, c.Connected())
	require.NoError(t, server.Kill())
	require.Eventually(t, func() bool { return !c.Connected() }, 10*time.Second, time.Millisecond)
	counted := make(chan bool, 1)
	c.OnReconnect(func() {
		select {
		case counted <- c.Connected():
		default:
		}
	})
	require.NoError(t, server.Start())
	require.False(t, <-counted)
	require.Eventually(t, c.Connected, 10*time.Second, time.Millisecond)
}

// A connection that is lost while those are told of it who must act after it counts only when
// they know of the one that follows.
func TestAConnectionLostWhileItIsToldDoesNotCount(t *testing.T) {
	t.Parallel()
	server := testkit.StartNATS(t)
	begun := make(chan struct{}, 1)
	c, err := Connect(Options{Name: t.Name(), URL: server.URL(), Limits: testLimits(), Logger: slog.New(noticed{slog.DiscardHandler, begun})})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	receive(t, begun) // the first connection was told of
	calls, again, told := atomic.Int64{}, make(chan struct{}), make(chan struct{})
	c.OnReconnect(func() {
		switch c.nc.Stats().Reconnects {
		case 0: // as above, to the end
		case 1:
			if calls.Add(1) == 2 {
				if err := c.nc.ForceReconnect(); err != nil {
					t.Error(err)
				}
				<-again
			}
		default:
			close(again)
			<-told
		}
	})
	require.NoError(t, c.nc.ForceReconnect())
	require.Eventually(t, func() bool { return calls.Load() == 1 && c.Connected() }, 10*time.Second, time.Millisecond)
	c.reconnected(c.nc) // as if it came late
	require.True(t, c.nc.IsConnected())
	require.False(t, c.Connected())
	close(told)
	require.Eventually(t, c.Connected, 10*time.Second, time.Millisecond)
}

// noticed is a log's handler that tells of each entry.
type noticed struct {
	slog.Handler
	entries chan<- struct{}
}

func (noticed) Enabled(context.Context, slog.Level) bool { return true }

func (n noticed) Handle(context.Context, slog.Record) error {
	select {
	case n.entries <- struct{}{}:
	default: // it is told already
	}
	return nil
}
