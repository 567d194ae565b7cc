package queue

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// readAll reads what is kept until there is nothing new.
func readAll(t *testing.T, k *KeptReader) (blocks []Block) {
	t.Helper()
	for {
		more, err := k.Next(t.Context())
		require.NoError(t, err)
		if len(more) == 0 {
			return blocks
		}
		require.LessOrEqual(t, len(more), directBatch)
		blocks = append(blocks, more...)
	}
}

// requireChunks checks that the blocks hold chunks 1 to n, in order.
func requireChunks(t *testing.T, blocks []Block, chunk func(seq uint64) string, n uint64) {
	t.Helper()
	next := uint64(1)
	for _, b := range blocks {
		require.Equal(t, next, b.FirstSeq)
		for _, c := range b.Chunks {
			require.Equal(t, chunk(next), string(c))
			next++
		}
	}
	require.Equal(t, n, next-1)
}

func number(seq uint64) string { return fmt.Sprintf("chunk %d", seq) }

func TestKeptAnswerIsReadBackInOrder(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, _ := dispatcher(t, c)
	j, other := testJob("{}"), testJob("{}")
	j.Tenant = " tenant, with ünusual name "
	k := c.NewKeptReader(j.ID)
	require.Empty(t, readAll(t, k))
	_, found := k.Found()
	require.False(t, found)

	require.NoError(t, d.Open(j))
	flush(t, c)
	eventually(t, func() bool {
		require.Empty(t, readAll(t, k), "the opening is no block")
		_, found = k.Found()
		return found
	}, "the job is known before its first chunk")
	tenant, _ := k.Found()
	require.Equal(t, j.Tenant, tenant)

	// Many more blocks than one read brings, between those of another job.
	run := Run{1, 2}
	r, o := c.NewRecorder(j, run, 1), c.NewRecorder(other, run, 1)
	const blocks = 3*directBatch + 1
	for i := range uint64(blocks) {
		r.Add([][]byte{[]byte(number(2*i + 1)), []byte(number(2*i + 2))})
		require.NoError(t, r.flush(t.Context(), nil))
		o.Add([][]byte{[]byte("other")})
		require.NoError(t, o.flush(t.Context(), nil))
	}
	r.Add([][]byte{[]byte(number(2*blocks + 1))})
	end := fullEnd()
	end.JobID, end.LastSeq = j.ID, 2*blocks+1
	require.NoError(t, r.Finish(t.Context(), end))
	require.NoError(t, o.Finish(t.Context(), &End{JobID: other.ID}))

	got := readAll(t, k)
	require.Len(t, got, blocks+1)
	requireChunks(t, got, number, 2*blocks+1)
	for _, b := range got[:blocks] {
		require.Equal(t, run, b.Run)
		require.Nil(t, b.End)
	}
	want := *end
	want.Body, want.BodyRef = []byte{}, "" // a streamed answer's chunks are its body
	require.Equal(t, &want, got[blocks].End)
	requireChunks(t, readAll(t, c.NewKeptReader(j.ID)), number, 2*blocks+1)
}

func TestRecorderKeepsByItselfAfterAMoment(t *testing.T) {
	t.Parallel()
	c := setup(t)
	j := testJob("{}")
	r := c.NewRecorder(j, Run{0, 1}, 1)
	r.Add([][]byte{[]byte(number(1))})
	r.Add([][]byte{[]byte(number(2))})
	k := c.NewKeptReader(j.ID)
	var blocks []Block
	eventually(t, func() bool {
		blocks = append(blocks, readAll(t, k)...)
		return len(blocks) > 0
	}, "a block")
	requireChunks(t, blocks, number, 2)
	require.Len(t, blocks, 1, "what came together is kept together")

	require.NoError(t, r.Finish(t.Context(), &End{JobID: j.ID, LastSeq: 2}))
	last := readAll(t, k)
	require.Len(t, last, 1)
	require.Empty(t, last[0].Chunks)
	require.EqualValues(t, 3, last[0].FirstSeq)

	r.Add([][]byte{[]byte("late")})
	require.NoError(t, r.flush(t.Context(), nil))
	require.NoError(t, r.Finish(t.Context(), &End{JobID: j.ID}))
	require.Empty(t, readAll(t, k), "nothing follows the end")
}

func TestRecorderDoesNotWaitWithALargeBlock(t *testing.T) {
	t.Parallel()
	c := setup(t)
	j := testJob("{}")
	r := c.NewRecorder(j, Run{0, 1}, 1)
	large := string(make([]byte, blockBytes))
	const blocks = 10
	began := time.Now()
	for range blocks {
		r.Add([][]byte{[]byte("small")})
		r.Add([][]byte{[]byte(large)})
		eventually(t, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.count == 0
		}, "the block on its way")
	}
	require.Less(t, time.Since(began), blocks*blockInterval, "none waited for its time")
	require.NoError(t, r.Finish(t.Context(), &End{JobID: j.ID, LastSeq: 2 * blocks}))
	requireChunks(t, readAll(t, c.NewKeptReader(j.ID)), func(seq uint64) string {
		if seq%2 == 1 {
			return "small"
		}
		return large
	}, 2*blocks)
}

// Chunks that cannot be compressed and are together larger than a message.
func TestRecorderCutsWhatIsTooLargeForOneMessage(t *testing.T) {
	t.Parallel()
	c := setup(t)
	j := testJob("{}")
	r := c.NewRecorder(j, Run{0, 1}, 1)
	chunks := make([][]byte, 40)
	for i := range chunks {
		chunks[i] = make([]byte, 60<<10)
		if i == 7 {
			chunks[i] = make([]byte, 900<<10)
		}
		_, _ = rand.Read(chunks[i])
	}
	r.mu.Lock()
	for _, chunk := range chunks {
		w := writer{b: r.pending}
		w.bytes(chunk)
		r.pending = w.b
		r.count++
	}
	r.mu.Unlock()
	require.NoError(t, r.Finish(t.Context(), &End{JobID: j.ID, LastSeq: 40}))
	blocks := readAll(t, c.NewKeptReader(j.ID))
	require.Greater(t, len(blocks), 10)
	requireChunks(t, blocks, func(seq uint64) string { return string(chunks[seq-1]) }, 40)
	for i, b := range blocks {
		require.Equal(t, i == len(blocks)-1, b.End != nil)
	}
}

// The server keeps a block once, however often it is told to.
func TestABlockKeptTwiceIsReadOnce(t *testing.T) {
	t.Parallel()
	c := setup(t)
	j := testJob("{}")
	for range 2 {
		r := c.NewRecorder(j, Run{0, 1}, 1)
		r.Add([][]byte{[]byte(number(1))})
		require.NoError(t, r.flush(t.Context(), nil))
	}
	requireChunks(t, readAll(t, c.NewKeptReader(j.ID)), number, 1)
}

func TestRecorderTellsThatItCouldNotKeep(t *testing.T) {
	t.Parallel()
	c := setup(t)
	require.NoError(t, c.js.DeleteStream(t.Context(), eventsStream))
	r := c.NewRecorder(testJob("{}"), Run{0, 1}, 1)
	r.Add([][]byte{[]byte("x")})
	require.Error(t, r.Finish(t.Context(), &End{}))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r = c.NewRecorder(testJob("{}"), Run{0, 1}, 1)
	r.Add([][]byte{[]byte("x")})
	require.ErrorIs(t, r.Finish(ctx, &End{}), context.Canceled)

	_, err := c.NewKeptReader("x").Next(t.Context())
	require.Error(t, err)
}

func TestKeptBytesThatAreNoBlock(t *testing.T) {
	t.Parallel()
	c := setup(t)
	j := testJob("{}")
	rawPublish(t, c, &nats.Msg{Subject: eventsSubject(j.ID), Header: nats.Header{hdrRun: {"0-1"}}, Data: []byte("odd")})
	_, err := c.NewKeptReader(j.ID).Next(t.Context())
	require.ErrorIs(t, err, errFrame)
	bad := testJob("{}")
	rawPublish(t, c, &nats.Msg{Subject: eventsSubject(bad.ID), Header: nats.Header{hdrTenant: {"%zz"}, hdrOpen: {"1"}}})
	_, err = c.NewKeptReader(bad.ID).Next(t.Context())
	require.ErrorIs(t, err, errFrame)
}

func TestListenHearsOneJob(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	j := testJob("{}")
	events, ends := make(chan *Events, 10), make(chan *End, 10)
	l, err := c.Listen(j.ID, func(e *Events) { events <- e }, func(e *End) { ends <- e })
	require.NoError(t, err)
	require.NoError(t, a.Events(&Events{JobID: NewJobID(testIngress, time.Now()), Chunks: [][]byte{[]byte("other")}}))
	require.NoError(t, c.nc.Publish(replySubject(whatEvents, j.ID), []byte("odd")))
	require.NoError(t, c.nc.Publish(replySubject(whatEnd, j.ID), []byte("odd")))
	require.NoError(t, a.Events(&Events{JobID: j.ID, FirstSeq: 1, Chunks: [][]byte{[]byte("a")}}))
	require.NoError(t, a.End(&End{JobID: j.ID, LastSeq: 1}))
	require.Equal(t, j.ID, receive(t, events).JobID)
	require.EqualValues(t, 1, receive(t, ends).LastSeq)
	require.Empty(t, events)
	l.Close()
	require.NoError(t, a.End(&End{JobID: j.ID}))
	flush(t, c)
	require.Empty(t, ends)
}
