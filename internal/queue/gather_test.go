package queue

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
)

// gathered frames events as one message holds them.
func gathered(list ...*Events) []byte {
	g := &gatherer{pending: writer{b: []byte{frameVersion}}}
	for _, e := range list {
		g.append(e)
	}
	return g.pending.b
}

func chunksOf(jobID string, first uint64, chunks ...string) *Events {
	e := &Events{JobID: jobID, Run: Run{0, 1}, Worker: "worker01", FirstSeq: first}
	for _, c := range chunks {
		e.Chunks = append(e.Chunks, []byte(c))
	}
	return e
}

// wire hears the messages that carry events to the test's ingress.
func wire(t *testing.T, c *Conn) *nats.Subscription {
	t.Helper()
	sub, err := c.nc.SubscribeSync(eventsReply(testIngress, "*"))
	require.NoError(t, err)
	return sub
}

func pendingOn(t *testing.T, c *Conn, sub *nats.Subscription) int {
	t.Helper()
	flush(t, c)
	n, _, err := sub.Pending()
	require.NoError(t, err)
	return n
}

func add(g *gatherer, e *Events) error {
	size := 0
	for _, c := range e.Chunks {
		size += len(c)
	}
	return g.add(e, size)
}

// hold makes the gatherer wait, as if a message had just been sent, for a long while.
func hold(g *gatherer) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sent, g.armed = time.Now().Add(time.Hour), false
	return nil
}

func TestChunksShareAMessageUnderLoad(t *testing.T) {
	t.Parallel()
	c := setup(t)
	sub := wire(t, c)
	g := &gatherer{conn: c, subject: eventsReply(testIngress, "worker01")}
	require.NoError(t, hold(g))
	a, b := NewJobID(testIngress, time.Now()), NewJobID(testIngress, time.Now())
	require.NoError(t, add(g, chunksOf(a, 2, "a2")))
	require.NoError(t, add(g, chunksOf(b, 5, "b5", "b6")))
	require.NoError(t, add(g, chunksOf(a, 3, "a3")))
	require.Zero(t, pendingOn(t, c, sub), "they wait for each other")

	require.NoError(t, add(g, chunksOf(b, 1, "b1")))
	m, err := sub.NextMsg(soon)
	require.NoError(t, err, "a first chunk waits for nobody, and takes along what waits")
	var got []string
	require.NoError(t, eachItem(m.Data, func(jobID string, item []byte) error {
		e, err := decodeEvents(jobID, item)
		got = append(got, fmt.Sprintf("%t %d %q", jobID == a, e.FirstSeq, e.Chunks))
		return err
	}))
	require.Equal(t, []string{`true 2 ["a2"]`, `false 5 ["b5" "b6"]`, `true 3 ["a3"]`, `false 1 ["b1"]`}, got)

	require.NoError(t, hold(g))
	g.mu.Lock()
	g.sent = time.Now()
	g.mu.Unlock()
	require.NoError(t, add(g, chunksOf(a, 4, "a4")))
	m, err = sub.NextMsg(soon)
	require.NoError(t, err, "what waits is sent when its time has come")
	require.NotEmpty(t, m.Data)

	require.NoError(t, hold(g))
	require.NoError(t, add(g, chunksOf(a, 5, string(make([]byte, gatherBytes)))))
	require.Equal(t, 1, pendingOn(t, c, sub), "much is sent at once")
}

func TestAChunkAloneIsSentAtOnce(t *testing.T) {
	t.Parallel()
	c := setup(t)
	sub := wire(t, c)
	g := &gatherer{conn: c, subject: eventsReply(testIngress, "worker01"), sent: time.Now().Add(-gatherFor)}
	require.NoError(t, add(g, chunksOf(NewJobID(testIngress, time.Now()), 9, "x")))
	require.False(t, g.armed)
	require.Equal(t, 1, pendingOn(t, c, sub))
}

// Many streams at once: each one's chunks come whole, in order, and before its end.
func TestGatheredStreamsStayInOrder(t *testing.T) {
	t.Parallel()
	c := setup(t)
	sub := wire(t, c)
	_, e := dispatcher(t, c)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	const streams, chunks = 20, 50
	var senders sync.WaitGroup
	for range streams {
		senders.Go(func() {
			id := NewJobID(testIngress, time.Now())
			for n := range uint64(chunks) {
				if a.Events(chunksOf(id, n+1, "x")) != nil {
					return
				}
			}
			_ = a.End(&End{JobID: id, LastSeq: chunks}) // what fails is missed below
		})
	}
	next := make(map[string]uint64)
	for ends := 0; ends < streams; {
		select {
		case ev := <-e.events:
			require.Equal(t, next[ev.JobID]+1, ev.FirstSeq)
			next[ev.JobID] += uint64(len(ev.Chunks))
		case end := <-e.ends:
			for next[end.JobID] < chunks { // the two channels have no order between them; what was sent has
				ev := receive(t, e.events)
				require.Equal(t, next[ev.JobID]+1, ev.FirstSeq)
				next[ev.JobID] += uint64(len(ev.Chunks))
			}
			ends++
		case <-time.After(soon):
			require.FailNow(t, "nothing came")
		}
	}
	senders.Wait()
	require.Less(t, pendingOn(t, c, sub), streams*chunks, "chunks shared messages")
}

func TestAnEndTakesAlongWhatWaits(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	all, err := c.nc.SubscribeSync("rep." + testIngress + ".>")
	require.NoError(t, err)
	id := NewJobID(testIngress, time.Now())
	require.NoError(t, a.events.with(testIngress, hold))
	require.NoError(t, a.Events(chunksOf(id, 2, "x")))
	require.NoError(t, a.End(&End{JobID: id, LastSeq: 2}))
	for _, want := range []string{eventsReply(testIngress, "worker01"), replySubject(whatEnd, id)} {
		m, err := all.NextMsg(soon)
		require.NoError(t, err)
		require.Equal(t, want, m.Subject)
	}
	require.NoError(t, a.events.with(testIngress, hold))
	require.NoError(t, a.Events(chunksOf(id, 3, "y")))
	a.Close()
	_, err = all.NextMsg(soon)
	require.NoError(t, err, "also a worker that stops")
}

// What the timer cannot send is nobody's fault who adds later: readers find it among
// the kept events.
func TestAnErrorIsToldToWhoeverItConcerns(t *testing.T) {
	t.Parallel()
	c := setup(t)
	g := &gatherer{conn: c, subject: eventsReply(testIngress, "worker01")}
	require.NoError(t, hold(g))
	id := NewJobID(testIngress, time.Now())
	require.NoError(t, add(g, chunksOf(id, 2, "x")))
	c.Close()
	g.due()
	require.NoError(t, hold(g))
	require.NoError(t, add(g, chunksOf(id, 3, "y")), "the error was another's")
	require.ErrorIs(t, add(g, chunksOf(id, 1, "z")), nats.ErrConnectionClosed)
}

// A chunk that only just fits in a message is not kept from it by others' chunks.
func TestALargeChunkTravelsAlone(t *testing.T) {
	t.Parallel()
	c := setup(t)
	sub := wire(t, c)
	g := &gatherer{conn: c, subject: eventsReply(testIngress, "worker01")}
	require.NoError(t, hold(g))
	large := string(make([]byte, c.nc.MaxPayload()-eventsOverhead))
	require.NoError(t, add(g, chunksOf(NewJobID(testIngress, time.Now()), 2, "small")))
	require.NoError(t, add(g, chunksOf(NewJobID(testIngress, time.Now()), 7, large)))
	require.Equal(t, 2, pendingOn(t, c, sub))
	require.Zero(t, cap(g.pending.b)+cap(g.item.b), "so large a buffer is not kept")
}

func TestGatherersAreBounded(t *testing.T) {
	t.Parallel()
	c := setup(t)
	sub := wire(t, c)
	gs := &gatherers{conn: c, worker: "worker01"}
	require.NoError(t, gs.with(testIngress, hold))
	require.NoError(t, gs.with(testIngress, func(g *gatherer) error { return add(g, chunksOf(NewJobID(testIngress, time.Now()), 2, "x")) }))
	for n := range maxGatherers {
		require.NoError(t, gs.with(fmt.Sprintf("other%d", n), func(*gatherer) error { return nil }))
	}
	require.LessOrEqual(t, len(gs.byIngress), maxGatherers)
	require.Equal(t, 1, pendingOn(t, c, sub), "what is forgotten was sent")
}

func TestListenersOfOneIngressShareASubscription(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	before := c.nc.NumSubscriptions()
	one, two := NewJobID(testIngress, time.Now()), NewJobID(testIngress, time.Now())
	heard := make(chan string, 10)
	listen := func(jobID, who string) *Listener {
		l, err := c.Listen(jobID, func(e *Events) { heard <- who + string(e.Chunks[0]) }, func(*End) {})
		require.NoError(t, err)
		return l
	}
	first, again, other := listen(one, "first "), listen(one, "again "), listen(two, "other ")
	require.Equal(t, before+4, c.nc.NumSubscriptions(), "one for the events, and one for each end")

	require.NoError(t, a.Events(chunksOf(NewJobID(testIngress, time.Now()), 1, "nobody's")))
	require.NoError(t, a.Events(chunksOf(one, 1, "1")))
	require.ElementsMatch(t, []string{"first 1", "again 1"}, []string{receive(t, heard), receive(t, heard)})
	first.Close()
	require.NoError(t, a.Events(chunksOf(one, 1, "2")))
	require.Equal(t, "again 2", receive(t, heard))
	again.Close()
	again.Close()
	require.NoError(t, a.Events(chunksOf(one, 1, "3")))
	require.NoError(t, a.Events(chunksOf(two, 1, "3")))
	require.Equal(t, "other 3", receive(t, heard))
	other.Close()
	require.Equal(t, before, c.nc.NumSubscriptions())
}
