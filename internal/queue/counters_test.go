package queue

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"sluice/internal/limits"
)

func TestCountersAreSwappedOnlyAsTheyWereSeen(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	k := c.NewCounters()
	const scope = "key:a b/model:*.>"
	_, _, err := k.Load(t.Context(), scope)
	require.ErrorIs(t, err, limits.ErrNoRecord)
	_, err = k.Swap(t.Context(), scope, []byte("x"), 7)
	require.ErrorIs(t, err, limits.ErrConflict)

	first, err := k.Swap(t.Context(), scope, []byte("one"), 0)
	require.NoError(t, err)
	_, err = k.Swap(t.Context(), scope, []byte("x"), 0)
	require.ErrorIs(t, err, limits.ErrConflict)
	other, err := k.Swap(t.Context(), "key:b", []byte("other"), 0)
	require.NoError(t, err)
	second, err := k.Swap(t.Context(), scope, []byte("two"), first)
	require.NoError(t, err)
	_, err = k.Swap(t.Context(), scope, []byte("x"), first)
	require.ErrorIs(t, err, limits.ErrConflict)
	data, revision, err := k.Load(t.Context(), scope)
	require.NoError(t, err)
	require.Equal(t, "two", string(data))
	require.Equal(t, second, revision)

	require.ErrorIs(t, k.Remove(t.Context(), scope, first), limits.ErrConflict)
	require.NoError(t, k.Remove(t.Context(), scope, second))
	require.ErrorIs(t, k.Remove(t.Context(), scope, second), limits.ErrConflict)
	_, _, err = k.Load(t.Context(), scope)
	require.ErrorIs(t, err, limits.ErrNoRecord)
	_, err = k.Swap(t.Context(), scope, []byte("x"), second)
	require.ErrorIs(t, err, limits.ErrConflict, "it is gone")
	third, err := k.Swap(t.Context(), scope, []byte("three"), 0)
	require.NoError(t, err)
	require.NoError(t, k.Remove(t.Context(), scope, third))

	info, err := k.stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
	require.NoError(t, err)
	require.Equal(t, map[string]uint64{counterSubject("key:b"): 1}, info.State.Subjects, "nothing is left of what was removed")
	require.NotContains(t, counterSubject("key:b"), "key:b")
	require.Equal(t, jetstream.FileStorage, info.Config.Storage)
	require.NoError(t, k.Remove(t.Context(), "key:b", other))

	_, err = c.js.KeyValue(t.Context(), countersBucket)
	require.NoError(t, err, "any client can read it")
}

func TestOneOfManySwapsAtOnceIsMade(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	var won atomic.Int64
	var all sync.WaitGroup
	for i := range 4 {
		k := connectTo(t, srv).NewCounters()
		all.Go(func() {
			for n := range 50 {
				revision, err := k.Swap(t.Context(), fmt.Sprintf("key:%d", n), bytes.Repeat([]byte{byte(i)}, 500), 0)
				if err == nil && revision > 0 {
					won.Add(1)
				}
			}
		})
	}
	all.Wait()
	require.Equal(t, int64(50), won.Load())
}

func TestCountersTellTheServersTime(t *testing.T) {
	t.Parallel()
	k := connectTo(t, startServer(t)).NewCounters()
	before := time.Now()
	at, err := k.Time(t.Context())
	require.NoError(t, err)
	require.WithinRange(t, at, before, time.Now(), "server and test have one clock")
}

func TestCountersCreateTheirBucketAgain(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	k := c.NewCounters()
	_, err := k.Swap(t.Context(), "key:a", []byte("one"), 0)
	require.NoError(t, err)
	again := func() {
		t.Helper()
		eventually(t, func() bool { // the files of a stream that is gone may still be there for a moment
			_, revision, err := k.Load(t.Context(), "key:a")
			if err == nil || errors.Is(err, limits.ErrNoRecord) {
				_, err = k.Swap(t.Context(), "key:a", []byte("one"), revision)
			}
			return err == nil
		}, "the bucket is there again")
	}
	require.NoError(t, c.js.DeleteStream(t.Context(), countersStream))
	_, _, err = k.Load(t.Context(), "key:a")
	require.Error(t, err)
	require.NotErrorIs(t, err, limits.ErrNoRecord, "what was counted is not known to be nothing")
	again()
	require.NoError(t, c.js.DeleteStream(t.Context(), countersStream))
	_, err = k.Swap(t.Context(), "key:a", []byte("one"), 0)
	require.Error(t, err)
	again()
}

func TestCountersDoNotWaitForAServerThatIsGone(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c := connectTo(t, srv)
	k := c.NewCounters()
	_, err := k.Swap(t.Context(), "key:a", []byte("one"), 0)
	require.NoError(t, err)
	srv.Close()
	eventually(t, func() bool { return !c.Connected() }, "it is noticed")
	began := time.Now()
	_, _, err = k.Load(t.Context(), "key:a")
	require.Error(t, err)
	_, err = k.Swap(t.Context(), "key:a", []byte("one"), 0)
	require.NotErrorIs(t, err, limits.ErrConflict)
	require.Error(t, err)
	require.Error(t, k.Remove(t.Context(), "key:a", 1))
	_, err = k.Time(t.Context())
	require.Error(t, err)
	require.Less(t, time.Since(began), time.Second)
}
