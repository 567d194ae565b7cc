package queue

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestAControlHoldsForItsTime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, c := range map[string]struct {
		word Control
		want ProviderState
	}{
		"nothing said": {Control{}, ProviderActive},
		"paused":       {Control{State: ProviderPaused}, ProviderPaused},
		"draining":     {Control{State: ProviderDraining, Until: now.Add(time.Second)}, ProviderDraining},
		"over":         {Control{State: ProviderPaused, Until: now}, ProviderActive},
		"unheard of":   {Control{State: "asleep"}, ProviderActive},
	} {
		require.Equal(t, c.want, c.word.At(now), name)
	}
}

// follow hears what operators want until the test ends.
func follow(t *testing.T, c *Conn) <-chan Controls {
	t.Helper()
	heard := make(chan Controls, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.FollowControls(ctx, func(all Controls) { heard <- all })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return heard
}

func TestControlsReachWhoFollowsAndWhoComesLater(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c := connectTo(t, srv)
	heard := follow(t, c)
	require.Empty(t, receive(t, heard), "at once, although nobody has said anything")

	paused := Control{State: ProviderPaused, Reason: "keys", Since: time.Now().UTC().Round(0), Until: time.Now().Add(time.Hour).UTC().Round(0)}
	require.NoError(t, c.SetControl(t.Context(), "acme", paused))
	require.Equal(t, Controls{"acme": paused}, receive(t, heard))
	later := follow(t, connectTo(t, srv))
	require.Equal(t, Controls{"acme": paused}, receive(t, later))

	drained := Control{State: ProviderDraining, Since: paused.Since}
	require.NoError(t, c.SetControl(t.Context(), "other", drained))
	for _, ch := range []<-chan Controls{heard, later} {
		require.Equal(t, Controls{"acme": paused, "other": drained}, receive(t, ch))
	}
}

func TestControlsOutliveTheServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	word := Control{State: ProviderPaused, Since: time.Now().UTC().Round(0)}
	for n := range 2 {
		srv, err := StartEmbedded(EmbeddedOptions{Dir: dir, MemoryBytes: 64 << 20, Logger: discarded()})
		require.NoError(t, err)
		c := connectTo(t, srv)
		if n == 0 {
			require.NoError(t, c.SetControl(t.Context(), "acme", word))
		} else {
			ctx, cancel := context.WithCancel(t.Context())
			c.FollowControls(ctx, func(all Controls) {
				require.Equal(t, Controls{"acme": word}, all)
				cancel()
			})
		}
		c.Close()
		srv.Close()
	}
}

func TestAPausedPullerTakesNothing(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p, k := pull(t, c, 4)
	publish(t, d, e, testJob("1"))
	receive(t, k.ch).Ack()
	p.Free()

	p.Pause() // a request for four is open at the server
	p.Pause()
	var ids []string
	for range 5 {
		j := testJob("held")
		publish(t, d, e, j)
		ids = append(ids, j.ID)
	}
	require.Never(t, func() bool { return len(k.ch) > 0 }, 300*time.Millisecond, 10*time.Millisecond)
	hasDepth(t, c, Depth{Waiting: 5})

	require.NoError(t, p.Resume())
	require.NoError(t, p.Resume())
	for _, id := range ids {
		got := receive(t, k.ch)
		job, _, err := got.Job()
		require.NoError(t, err)
		require.Equal(t, id, job.ID, "in their order")
		require.Equal(t, 1, got.Delivery, "none was taken in vain")
		got.Ack()
		p.Free()
	}
	hasDepth(t, c, Depth{})
}

func TestAPullerThatBeginsPausedWaitsToBeResumed(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	publish(t, d, e, testJob("1"))
	got := make(chan *Delivery, 10)
	p := c.NewPausedPuller(testProvider, inference.LaneInteractive, 2, 2, func(d *Delivery) { got <- d }, func() {})
	p.Reset()
	p.Bound(2)
	require.Never(t, func() bool { return len(got) > 0 }, 200*time.Millisecond, 10*time.Millisecond)
	require.NoError(t, p.Resume())
	receive(t, got).Ack()
	p.Stop()
	require.NoError(t, p.Resume(), "one that has stopped stays so")
	publish(t, d, e, testJob("2"))
	require.Never(t, func() bool { return len(got) > 0 }, 100*time.Millisecond, 10*time.Millisecond)
}
