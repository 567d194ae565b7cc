package limits

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// clockwork is counters that tell the time alone, after a while and for a while.
type clockwork struct {
	Counters

	offset    time.Duration
	out, back time.Duration
	err       error
}

func (c *clockwork) Time(context.Context) (time.Time, error) {
	time.Sleep(c.out)
	at := time.Now().Add(c.offset)
	time.Sleep(c.back)
	return at, c.err
}

func TestTheCountersTimeIsBetweenTheBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 1))
		work := &clockwork{offset: 5 * time.Hour}
		c := newClock()
		require.InDelta(t, time.Now().UnixMilli(), c.now().early, 1, "the own clock as long as there is no other")
		require.False(t, c.known())
		for range 1000 {
			work.out, work.back = time.Duration(random.Int64N(int64(100*time.Millisecond))), time.Duration(random.Int64N(int64(100*time.Millisecond)))
			require.NoError(t, c.measure(t.Context(), work))
			for range 5 {
				truth, now := time.Now().Add(work.offset).UnixMilli(), c.now()
				require.LessOrEqual(t, now.early, truth)
				require.GreaterOrEqual(t, now.late, truth)
				require.Less(t, now.late-now.early, int64(250))
				pause(t.Context(), time.Duration(random.Int64N(int64(clockEvery))))
				work.offset += time.Duration(random.Int64N(int64(time.Millisecond))) - time.Millisecond/2
			}
		}
		work.out, work.back = 0, 0
		require.NoError(t, c.measure(t.Context(), work))
		require.LessOrEqual(t, c.now().late-c.now().early, int64(1), "a short call tells more")
		work.offset += time.Hour // somebody has set the server's clock
		work.out = time.Millisecond
		require.NoError(t, c.measure(t.Context(), work))
		require.LessOrEqual(t, c.now().early, time.Now().Add(work.offset).UnixMilli())
		require.GreaterOrEqual(t, c.now().late, time.Now().Add(work.offset).UnixMilli())
		before := c.now()
		work.err = errors.New("no server")
		require.ErrorIs(t, c.measure(t.Context(), work), work.err)
		require.InDelta(t, before.early, c.now().early, 2)
	})
}
