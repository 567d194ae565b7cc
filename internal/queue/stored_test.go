package queue

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

// setupStored adds the provider's queue for stored jobs, with room for so many.
func setupStored(t *testing.T, room int64) *Conn {
	t.Helper()
	c := setup(t)
	c.limits.StoredJobs = room
	ensureStored(t, c)
	return c
}

func ensureStored(t *testing.T, c *Conn) {
	t.Helper()
	_, err := c.EnsureStored(t.Context(), testProvider)
	require.NoError(t, err)
	for _, lane := range storedLanes {
		require.NoError(t, c.EnsureLane(t.Context(), testProvider, lane, 64))
	}
}

func storedJob(lane inference.Lane, body string) *inference.Job {
	j := testJob(body)
	j.Lane, j.RunFor = lane, time.Minute
	return j
}

func batchJobs(n int) []*inference.Job {
	jobs := make([]*inference.Job, n)
	for i := range jobs {
		jobs[i] = storedJob(inference.LaneBatch, fmt.Sprintf(`{"n":%d}`, i))
	}
	return jobs
}

// publishStored publishes jobs that all are taken, and returns their places.
func publishStored(t *testing.T, c *Conn, jobs ...*inference.Job) []StoredPlace {
	t.Helper()
	places := make([]StoredPlace, len(jobs))
	for i, p := range c.PublishStored(t.Context(), jobs) {
		require.NoError(t, p.Err)
		require.Equal(t, jobs[i].Candidates, p.Place.Candidates)
		places[i] = StoredPlace{jobs[i].ID, p.Place.Seq}
	}
	return places
}

func pullLane(t *testing.T, c *Conn, lane inference.Lane, slots int) <-chan *Delivery {
	t.Helper()
	ch := make(chan *Delivery, slots)
	p, err := c.NewPuller(testProvider, lane, slots, func(d *Delivery) { ch <- d }, nil)
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	return ch
}

func storedLeft(t *testing.T, c *Conn) uint64 {
	t.Helper()
	s, err := c.js.Stream(t.Context(), storedStream(testProvider))
	require.NoError(t, err)
	return s.CachedInfo().State.Msgs
}

func TestStoredJobsArriveInTheirLanes(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 1000)
	jobs := batchJobs(2 * exchangeWindow)
	background := storedJob(inference.LaneBackground, `{"b":1}`)
	jobs = append(jobs, background)
	for i, p := range publishStored(t, c, jobs...) {
		require.Equal(t, StoredPlace{jobs[i].ID, uint64(i + 1)}, p)
	}
	batch := pullLane(t, c, inference.LaneBatch, 5)
	for i := range 5 {
		got, ref, err := receive(t, batch).Job()
		require.NoError(t, err)
		require.Empty(t, ref)
		require.Equal(t, jobs[i], got)
	}
	other := pullLane(t, c, inference.LaneBackground, 5)
	d := receive(t, other)
	got, _, err := d.Job()
	require.NoError(t, err)
	require.Equal(t, background, got)
	require.EqualValues(t, len(jobs), d.Seq)
	require.Zero(t, d.Waiting, "none but its lane's")
	require.Equal(t, Depth{}, depth(t, c), "the interactive lane's own")
}

func TestALargeBodyOfAStoredJob(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 10)
	a := answerer(t, c)
	body := string(bytes.Repeat([]byte("x"), 3<<20))
	j := storedJob(inference.LaneBackground, body)
	publishStored(t, c, storedJob(inference.LaneBatch, "{}"), j)
	got, ref, err := receive(t, pullLane(t, c, inference.LaneBackground, 1)).Job()
	require.NoError(t, err)
	require.Empty(t, got.Body)
	fetched, err := a.Body(t.Context(), got, ref, 4<<20)
	require.NoError(t, err)
	require.Equal(t, j.Body, fetched)
	require.NoError(t, c.DropStoredBody(t.Context(), j.ID))
	_, err = a.Body(t.Context(), got, ref, 4<<20)
	require.ErrorIs(t, err, ErrNoBlob)
	require.NoError(t, c.DropStoredBody(t.Context(), j.ID), "there is none any more")
	require.NoError(t, c.DropStoredBody(t.Context(), NewJobID(testIngress, time.Now())), "there never was one")
}

func TestAStoredJobPublishedAgainKeepsItsPlace(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 10)
	jobs := batchJobs(2)
	first := publishStored(t, c, jobs...)
	require.Equal(t, first, publishStored(t, c, jobs...))
	require.EqualValues(t, 2, storedLeft(t, c))
	jobs[1].Epoch += inference.EpochStride
	again := publishStored(t, c, jobs...)
	require.Equal(t, first[0], again[0])
	require.EqualValues(t, 3, again[1].Seq, "another epoch is another message")
}

func TestEachStoredJobHasItsOwnAnswer(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 3)
	jobs := batchJobs(5)
	jobs[1].Candidates[0].Provider = "nobody"
	jobs[2].Lane = inference.LaneInteractive
	jobs = append(jobs, storedJob(inference.LaneBackground, "{}"))
	jobs[5].TraceParent = string(bytes.Repeat([]byte("x"), 2<<20)) // more than a message may have
	jobs = append(jobs, storedJob(inference.LaneBackground, "{}"))
	out := c.PublishStored(t.Context(), jobs)
	require.Len(t, out, 7)
	for i, seq := range map[int]uint64{0: 1, 3: 2, 4: 3} {
		require.NoError(t, out[i].Err)
		require.Equal(t, seq, out[i].Place.Seq)
	}
	require.ErrorIs(t, out[1].Err, ErrNoQueue)
	require.NotErrorIs(t, out[1].Err, ErrFull)
	require.ErrorContains(t, out[2].Err, "no stored one")
	require.ErrorIs(t, out[5].Err, nats.ErrMaxPayload)
	require.ErrorIs(t, out[6].Err, ErrFull)
	require.NotErrorIs(t, out[6].Err, ErrNoQueue)
	require.Zero(t, out[6].Place)
	require.EqualValues(t, 3, storedLeft(t, c))

	// As soon as there is room, what was refused is taken.
	receive(t, pullLane(t, c, inference.LaneBatch, 1)).Ack()
	eventually(t, func() bool { return storedLeft(t, c) == 2 }, "room")
	publishStored(t, c, jobs[6])
}

func TestALargeBodyThatIsNotTaken(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	c.limits.BlobsBytes = 1 << 20
	c.blobs.limits.BlobsBytes = 1 << 20
	require.NoError(t, c.EnsureShared(t.Context()))
	ensureStored(t, c)
	large, small := storedJob(inference.LaneBatch, string(make([]byte, 1<<20))), storedJob(inference.LaneBatch, "{}")
	out := c.PublishStored(t.Context(), []*inference.Job{large, small})
	require.ErrorIs(t, out[0].Err, ErrFull)
	require.NoError(t, out[1].Err)
	require.EqualValues(t, 1, storedLeft(t, c), "no message without its body")
}

// A server that is silent about some jobs keeps nobody waiting for ever, and the places of
// the others are known.
func TestPublishOfStoredJobsEndsInTime(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 10)
	mute, err := c.nc.SubscribeSync("job.mute.batch")
	require.NoError(t, err)
	defer func() { require.NoError(t, mute.Unsubscribe()) }()
	jobs := batchJobs(3)
	jobs[0].Candidates[0].Provider = "mute"
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	out := c.PublishStored(ctx, jobs)
	require.ErrorIs(t, out[0].Err, context.DeadlineExceeded)
	require.NotErrorIs(t, out[0].Err, ErrNoQueue, "the server may have it or not")
	require.NoError(t, out[1].Err)
	require.NoError(t, out[2].Err)

	out = c.PublishStored(t.Context(), jobs[:1]) // the caller sets no end
	require.ErrorIs(t, out[0].Err, errSilent)
}

func TestStoredJobsWithoutAConnection(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 10)
	c.Close()
	for _, p := range c.PublishStored(t.Context(), batchJobs(2)) {
		require.ErrorIs(t, p.Err, errNotConnected)
	}
	require.Error(t, c.CancelStored(t.Context(), testProvider, []StoredPlace{{NewJobID(testIngress, time.Now()), 1}}))
	_, err := c.StoredQueued(t.Context(), testProvider, []StoredPlace{{"", 1}})
	require.Error(t, err)
	_, err = c.HearClaims(inference.LaneBatch, nil)
	require.Error(t, err)
	a := &Answerer{conn: c}
	require.Error(t, a.Result(t.Context(), endOf(inference.LaneBatch, nil)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	c.ConsumeResults(ctx, inference.LaneBatch, 1, nil) // it ends with ctx
}

func TestStoredQueued(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 10)
	d, e := dispatcher(t, c)
	j := storedJob(inference.LaneBatch, "{}")
	queued := func(id string, seq uint64) bool {
		there, err := c.StoredQueued(t.Context(), testProvider, []StoredPlace{{id, 0}, {id, seq}, {id, 1_000}})
		require.NoError(t, err)
		require.Equal(t, []bool{false, false}, []bool{there[0], there[2]})
		return there[1]
	}
	require.NoError(t, publish(t, d, e, testJob("{}")).err)
	require.False(t, queued(j.ID, 1), "that place is in another stream")
	publishStored(t, c, j)
	require.True(t, queued(j.ID, 1))
	require.False(t, queued(storedJob(inference.LaneBatch, "{}").ID, 1), "it is another job's")
	held := receive(t, pullLane(t, c, inference.LaneBatch, 1))
	require.True(t, queued(j.ID, 1), "in a worker's hands")
	held.Ack()
	eventually(t, func() bool { return !queued(j.ID, 1) }, "gone")
	require.False(t, queued("nobody", 1))
	there, err := d.Queued(t.Context(), testProvider, 1)
	require.NoError(t, err)
	require.True(t, there, "the interactive lane's own")
}

func TestStoredJobsAreCancelled(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 1000)
	d, e := dispatcher(t, c)
	require.NoError(t, publish(t, d, e, testJob("{}")).err) // at the same place of the other stream
	word := newEar()
	word.cancelled = make(chan string, 3*heldPerMessage)
	a, err := c.NewAnswerer("worker01", []string{testProvider}, word)
	require.NoError(t, err)
	t.Cleanup(a.Close)
	flush(t, c)
	places := publishStored(t, c, batchJobs(exchangeWindow+20)...)
	places[3].Seq = 0 // not known
	places = append(places, StoredPlace{NewJobID(testIngress, time.Now()), 999_999})
	require.NoError(t, c.CancelStored(t.Context(), testProvider, places))
	for _, p := range places {
		require.Equal(t, p.JobID, receive(t, word.cancelled))
	}
	require.EqualValues(t, 1, storedLeft(t, c), "the one whose place nobody knows")
	require.NoError(t, c.CancelStored(t.Context(), testProvider, places), "again")
	require.Equal(t, 1, depth(t, c).Waiting, "the interactive job stays")
	for range places {
		receive(t, word.cancelled)
	}

	many := make([]StoredPlace, 2*heldPerMessage+1)
	for i := range many {
		many[i].JobID = NewJobID(testIngress, time.Now())
	}
	require.NoError(t, c.CancelStored(t.Context(), testProvider, many))
	for _, p := range many {
		require.Equal(t, p.JobID, receive(t, word.cancelled))
	}
	require.NoError(t, c.CancelStored(t.Context(), "nobody", places[:1]), "nothing is there to be removed")
	require.NoError(t, c.CancelStored(t.Context(), testProvider, nil))

	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.CancelStored(over, testProvider, places[:1]), context.Canceled)
	_, err = c.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: storedStream("sealed"), Subjects: []string{"job.sealed.batch"}, DenyDelete: true})
	require.NoError(t, err)
	j := storedJob(inference.LaneBatch, "{}")
	j.Candidates[0].Provider = "sealed"
	require.NoError(t, c.PublishStored(t.Context(), []*inference.Job{j})[0].Err)
	require.ErrorContains(t, c.CancelStored(t.Context(), "sealed", []StoredPlace{{j.ID, 1}}), "not permitted")
}

func TestStoredGiven(t *testing.T) {
	t.Parallel()
	c := setup(t)
	_, _, err := c.StoredGiven(t.Context(), testProvider, inference.LaneBatch)
	require.ErrorIs(t, err, ErrNoQueue)
	before := time.Now()
	made, err := c.EnsureStored(t.Context(), testProvider)
	require.NoError(t, err)
	require.False(t, made.Before(before.Add(-time.Second)))
	places := publishStored(t, c, batchJobs(3)...)
	given := func(lane inference.Lane) uint64 {
		upTo, of, err := c.StoredGiven(t.Context(), testProvider, lane)
		require.NoError(t, err)
		require.WithinDuration(t, made, of, time.Second)
		return upTo
	}
	require.Zero(t, given(inference.LaneBatch), "there has been no worker")
	require.NoError(t, c.EnsureLane(t.Context(), testProvider, inference.LaneBatch, 2))
	taken := make(chan *Delivery, 3)
	p, err := c.NewPuller(testProvider, inference.LaneBatch, 2, func(d *Delivery) { taken <- d }, func() {})
	require.NoError(t, err)
	t.Cleanup(p.Stop)
	<-taken
	<-taken
	require.Equal(t, places[1].Seq, given(inference.LaneBatch))
	require.Zero(t, given(inference.LaneBackground))
	require.NoError(t, c.RemoveStored(t.Context(), testProvider, places))
	require.Equal(t, places[1].Seq, given(inference.LaneBatch), "of those that are gone, too")
}

func TestStoredLanesHaveTheirOwnBounds(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 10)
	bound := func(lane inference.Lane) int {
		cons, err := c.js.Consumer(t.Context(), laneStream(testProvider, lane), string(lane))
		require.NoError(t, err)
		return cons.CachedInfo().Config.MaxAckPending
	}
	require.NoError(t, c.SetLaneConcurrency(t.Context(), testProvider, inference.LaneBackground, 5))
	require.NoError(t, c.SetLaneConcurrency(t.Context(), testProvider, inference.LaneBatch, 3))
	for _, lane := range storedLanes {
		require.NoError(t, c.EnsureLane(t.Context(), testProvider, lane, 9))
	}
	require.Equal(t, 5, bound(inference.LaneBackground))
	require.Equal(t, 3, bound(inference.LaneBatch))
	require.Equal(t, 64, bound(inference.LaneInteractive))
	require.Error(t, c.EnsureLane(t.Context(), "nobody", inference.LaneBatch, 1))

	made, err := c.EnsureStored(t.Context(), testProvider)
	require.NoError(t, err)
	require.NoError(t, c.js.DeleteStream(t.Context(), storedStream(testProvider)))
	anew, err := c.EnsureStored(t.Context(), testProvider)
	require.NoError(t, err)
	require.True(t, anew.After(made))
}

func TestAStoredJobIsForwardedInItsLane(t *testing.T) {
	t.Parallel()
	c := setupStored(t, 10)
	a := answerer(t, c)
	j := storedJob(inference.LaneBackground, "{}")
	j.Epoch, j.Attempts, j.Tries = 1, 2, tried(2)
	seq, err := a.Forward(t.Context(), j, "")
	require.NoError(t, err)
	require.EqualValues(t, 1, seq)
	got, _, err := receive(t, pullLane(t, c, inference.LaneBackground, 1)).Job()
	require.NoError(t, err)
	require.Equal(t, j, got)

	_, err = c.EnsureQueue(t.Context(), "interactive-only", 8)
	require.NoError(t, err)
	j.Candidates[0].Provider = "interactive-only"
	_, err = a.Forward(t.Context(), j, "")
	require.ErrorIs(t, err, ErrNoQueue)
}

// A process that dies leaves its files as they are: what the server has acknowledged is
// there when another one begins with them.
func TestStoredJobsAndResultsSurviveTheServer(t *testing.T) {
	t.Parallel()
	dir, left := t.TempDir(), t.TempDir()
	srv, err := StartEmbedded(EmbeddedOptions{Dir: dir, MemoryBytes: 64 << 20, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(srv.Close)
	c := connectTo(t, srv)
	require.NoError(t, c.EnsureShared(t.Context()))
	ensureStored(t, c)
	jobs := append(batchJobs(3), storedJob(inference.LaneBatch, string(make([]byte, 1<<20))))
	places := publishStored(t, c, jobs...)
	results := ends(inference.LaneBackground, 3)
	ids := keep(t, answerer(t, c), results...)
	require.NoError(t, os.CopyFS(left, os.DirFS(dir)))

	after, err := StartEmbedded(EmbeddedOptions{Dir: left, MemoryBytes: 64 << 20, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(after.Close)
	c = connectTo(t, after)
	asked := make([]StoredPlace, len(places))
	for i, p := range places {
		asked[i] = StoredPlace{jobs[i].ID, p.Seq}
	}
	there, err := c.StoredQueued(t.Context(), testProvider, asked)
	require.NoError(t, err)
	require.NotContains(t, there, false)
	require.NoError(t, c.EnsureShared(t.Context()))
	ensureStored(t, c)
	require.Equal(t, places, publishStored(t, c, jobs...), "it still knows them")
	batch := pullLane(t, c, inference.LaneBatch, 4)
	a := answerer(t, c)
	for _, want := range jobs {
		got, ref, err := receive(t, batch).Job()
		require.NoError(t, err)
		got.Body, err = a.Body(t.Context(), got, ref, 2<<20)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	hands, _ := reading(t, c, inference.LaneBackground, 10)
	require.Equal(t, ids, takeAll(t, hands, 3))
	resultsLeft(t, c, 0)
}

func TestCancelsAreHeard(t *testing.T) {
	t.Parallel()
	c := setup(t)
	_, err := c.EnsureStored(t.Context(), testProvider)
	require.NoError(t, err)
	heard := make(chan []string, 2)
	stop, err := c.HearCancels(func(ids []string) { heard <- ids })
	require.NoError(t, err)
	require.NoError(t, c.nc.Publish(cancelSubject(testProvider), []byte("x")))
	require.NoError(t, c.CancelStored(t.Context(), testProvider, []StoredPlace{{"a", 1}, {"b", 2}}))
	require.Equal(t, []string{"a", "b"}, receive(t, heard))
	stop()
	later := make(chan []string, 1)
	stop, err = c.HearCancels(func(ids []string) { later <- ids })
	require.NoError(t, err)
	defer stop()
	require.NoError(t, c.CancelStored(t.Context(), testProvider, []StoredPlace{{"c", 1}}))
	require.Equal(t, []string{"c"}, receive(t, later))
	require.Empty(t, heard)
}
