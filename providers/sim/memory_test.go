package sim

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMemoryTellsRequestsApart(t *testing.T) {
	t.Parallel()
	m, now := &memory{}, time.Now()
	a, b := []byte("a"), []byte("b")
	require.Equal(t, 1, m.count("r", a, now))
	require.Equal(t, 2, m.count("r", a, now))
	require.Equal(t, 1, m.count("r", b, now), "a client may use its id again")
	require.Equal(t, 1, m.count("s", a, now))
	require.Equal(t, 3, m.count("r", a, now))
	for range 3 {
		require.Equal(t, 1, m.count("", a, now), "without an id each call stands alone")
	}
	require.Len(t, m.counts, 3)
}

func TestMemoryExpires(t *testing.T) {
	t.Parallel()
	m, now := &memory{}, time.Now()
	require.Equal(t, 1, m.count("r", nil, now))
	require.Equal(t, 2, m.count("r", nil, now.Add(rememberFor-1)))
	require.Equal(t, 1, m.count("r", nil, now.Add(rememberFor)), "counted from the first call")
	require.Len(t, m.order, 1)
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	m, now := &memory{}, time.Now()
	for i := range maxRemembered + 10 {
		require.Equal(t, 1, m.count(strconv.Itoa(i), nil, now))
		require.LessOrEqual(t, len(m.counts), maxRemembered)
		require.Len(t, m.order, len(m.counts))
	}
	require.Equal(t, 2, m.count(strconv.Itoa(maxRemembered), nil, now))
	require.Equal(t, 2, m.count("10", nil, now), "the oldest that is left")
	require.Equal(t, 1, m.count("0", nil, now), "forgotten")
}
