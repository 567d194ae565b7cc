package queue

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIngressesHearOfCachedAnswers(t *testing.T) {
	t.Parallel()
	c := setup(t)
	heard := make(chan [][32]byte, 10)
	ear, err := c.HearCached(func(keys [][32]byte) { heard <- keys })
	require.NoError(t, err)
	defer ear.Close()
	keys := [][32]byte{{1, 31: 9}, {2}, {}}
	require.NoError(t, c.TellCached(keys))
	require.Equal(t, keys, <-heard)
	require.NoError(t, c.nc.Publish(cachedSubject, make([]byte, 65)))
	require.Len(t, <-heard, 2, "what is left over is no key")
	require.NoError(t, c.nc.Publish(cachedSubject, nil))
	require.Empty(t, <-heard)
}
