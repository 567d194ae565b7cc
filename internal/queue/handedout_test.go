package queue

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// What was handed out, or may have been, is never said to have waited.
func TestHandedOut(t *testing.T) {
	t.Parallel()
	lane := string(inference.LaneInteractive)
	remake := func(t *testing.T, c *Conn, consumer bool) {
		t.Helper()
		require.NoError(t, c.js.DeleteStream(t.Context(), jobStream(testProvider)))
		_, err := c.EnsureQueue(t.Context(), testProvider, 8)
		require.NoError(t, err)
		if consumer {
			require.NoError(t, c.EnsureConsumer(t.Context(), testProvider, 64))
		}
	}
	for name, s := range map[string]struct {
		course func(t *testing.T, c *Conn, another func())
		want   bool
	}{
		"it waits":              {func(*testing.T, *Conn, func()) {}, false},
		"others wait behind it": {func(_ *testing.T, _ *Conn, another func()) { another() }, false},
		"before the first worker": {func(t *testing.T, c *Conn, _ func()) {
			t.Helper()
			require.NoError(t, c.js.DeleteConsumer(t.Context(), jobStream(testProvider), lane))
		}, false},
		"the first worker comes later": {func(t *testing.T, c *Conn, _ func()) {
			t.Helper()
			require.NoError(t, c.js.DeleteConsumer(t.Context(), jobStream(testProvider), lane))
			require.NoError(t, c.EnsureConsumer(t.Context(), testProvider, 64))
		}, false},
		"a worker has it": {func(t *testing.T, c *Conn, _ func()) { t.Helper(); _, k := pull(t, c, 1); receive(t, k.ch) }, true},
		"a worker gave it back": {func(t *testing.T, c *Conn, _ func()) {
			t.Helper()
			p, k := pull(t, c, 1)
			receive(t, k.ch).Nak(time.Hour)
			p.Stop()
		}, true},
		"a later one was handed out": {func(t *testing.T, c *Conn, another func()) {
			t.Helper()
			require.NoError(t, c.remove(t, 1))
			another()
			_, k := pull(t, c, 1)
			receive(t, k.ch)
		}, true},
		"the queue was lost": {func(t *testing.T, c *Conn, _ func()) {
			t.Helper()
			require.NoError(t, c.js.DeleteStream(t.Context(), jobStream(testProvider)))
		}, true},
		"the queue was made anew":                   {func(t *testing.T, c *Conn, _ func()) { t.Helper(); remake(t, c, false) }, true},
		"the queue was made anew, and a worker had": {func(t *testing.T, c *Conn, another func()) { t.Helper(); remake(t, c, true); another() }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := setup(t)
			d, e := dispatcher(t, c)
			p := publish(t, d, e, testJob("{}"))
			confirmed := time.Now()
			s.course(t, c, func() { require.NoError(t, publish(t, d, e, testJob("{}")).err) })
			given, err := d.HandedOut(t.Context(), testProvider, p.seq, confirmed)
			require.NoError(t, err)
			require.Equal(t, s.want, given)
		})
	}
}

func (c *Conn) remove(t *testing.T, seq uint64) error {
	t.Helper()
	return (&Dispatcher{conn: c}).Remove(t.Context(), "job", testProvider, seq)
}

func TestAnUnansweredQuestionIsNoAnswer(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	p := publish(t, d, e, testJob("{}"))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	given, err := d.HandedOut(over, testProvider, p.seq, time.Now())
	require.Error(t, err)
	require.True(t, given)
}

// The server's clock may be ahead of this machine's, or behind.
func TestTimesOfTwoClocks(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, ahead := range []time.Duration{-time.Hour, 0, time.Hour} {
		answered := now.Add(ahead)
		require.Equal(t, now.Add(-time.Minute), madeBy(now, answered.Add(-time.Minute), answered))
		require.True(t, madeBefore(now.Add(-59*time.Second), answered.Add(-time.Minute), answered))
		require.False(t, madeBefore(now.Add(-time.Minute-time.Second), answered.Add(-time.Minute), answered))
	}
}
