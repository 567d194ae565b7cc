package ingress

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// TestALargeAnswerThatComesTooLateIsRemoved has the worker store an answer while its
// client leaves, so that it is heard of when the job is long accounted for. One that a
// client still reads stays, however often the worker repeats its end.
func TestALargeAnswerThatComesTooLateIsRemoved(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	for _, read := range []bool{false, true} {
		c := r.chat(plainRequest)
		k := r.take()
		c.cancel()
		require.Equal(t, inference.OutcomeCancelled, r.row(k.job.ID).Outcome)
		fs := r.ingress.flights
		require.Eventually(t, func() bool { return fs.find(k.job.ID) == nil }, 10*time.Second, time.Millisecond)

		e := &queue.End{JobID: k.job.ID, Run: k.run, Worker: "worker01", Body: bytes.Repeat([]byte("x"), 300<<10)}
		require.NoError(t, r.answer.StoreAnswer(t.Context(), e))
		if read {
			fs.fetching.Store(e.BodyRef, true)
		}
		k.end(e)
		fs.side.Wait()
		_, err := r.conn.FetchBlob(t.Context(), e.BodyRef, 1<<20)
		if read {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, queue.ErrNoBlob)
		}
	}
}

func TestALargeAnswerIsLetGoOnce(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.work()
	c := r.chat(plainRequest)
	k := r.take()
	e := &queue.End{Body: append(append([]byte(`{"x":"`), bytes.Repeat([]byte("x"), 300<<10)...), `"}`...)}
	k.end(e)
	_, body := c.whole()
	require.Len(t, body, 300<<10+8)
	fs := r.ingress.flights
	_, err := r.conn.FetchBlob(t.Context(), e.BodyRef, 1<<20)
	require.ErrorIs(t, err, queue.ErrNoBlob)
	_, kept := fs.fetching.Load(e.BodyRef)
	require.False(t, kept, "nothing is remembered of an answer that was read")
}
