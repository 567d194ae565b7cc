package queue

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
)

func TestPublishIsConfirmedAndASecondCopyDropped(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	j := testJob("{}")
	first := publish(t, d, e, j)
	require.NoError(t, first.err)
	require.NotZero(t, first.seq)

	again := publish(t, d, e, j)
	require.NoError(t, again.err)
	require.Equal(t, first.seq, again.seq, "the same epoch has the same place")
	hasDepth(t, c, Depth{Waiting: 1})

	later := *j
	later.Epoch = 1
	next := publish(t, d, e, &later)
	require.NoError(t, next.err)
	require.NotEqual(t, first.seq, next.seq, "another epoch is another message")
}

func TestPublishToAFullQueue(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	for range 8 {
		require.NoError(t, publish(t, d, e, testJob("{}")).err)
	}
	require.ErrorIs(t, publish(t, d, e, testJob("{}")).err, ErrFull)

	// A job that is done makes room.
	_, k := pull(t, c, 1)
	receive(t, k.ch).Ack()
	eventually(t, func() bool {
		return publish(t, d, e, testJob("{}")).err == nil
	}, "room for another job")
}

func TestPublishWithoutAQueue(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	j := testJob("{}")
	j.Candidates[0].Provider = "nobody"
	require.ErrorIs(t, publish(t, d, e, j).err, ErrNoQueue)
}

func TestCancelTakesAQueuedJobOutAndTellsTheWorkers(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	w := newEar()
	a, err := c.NewAnswerer("worker01", []string{testProvider}, w)
	require.NoError(t, err)
	defer a.Close()

	j := testJob("{}")
	p := publish(t, d, e, j)
	queued := func(provider string, seq uint64) bool {
		there, err := d.Queued(t.Context(), provider, seq)
		require.NoError(t, err)
		return there
	}
	require.True(t, queued(testProvider, p.seq))
	require.False(t, queued(testProvider, p.seq+1))
	require.False(t, queued("nobody", p.seq), "its queue is gone as a whole")
	require.NoError(t, d.Cancel(t.Context(), j.ID, testProvider, p.seq))
	require.False(t, queued(testProvider, p.seq))
	require.Equal(t, j.ID, receive(t, w.cancelled))
	hasDepth(t, c, Depth{}) // the message is gone
	require.NoError(t, d.Cancel(t.Context(), j.ID, testProvider, p.seq), "a message that is gone already is as wished")

	require.NoError(t, d.Cancel(t.Context(), j.ID, testProvider, 0))
	require.Equal(t, j.ID, receive(t, w.cancelled), "workers hear of it also when its place is unknown")
}

func TestWordsBetweenWorkerAndIngress(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, e := dispatcher(t, c)
	w := newEar()
	a, err := c.NewAnswerer("worker01", []string{testProvider, "other"}, w)
	require.NoError(t, err)
	defer a.Close()
	id := NewJobID(testIngress, time.Now())

	events := fullEvents()
	events.JobID = id
	require.NoError(t, a.Events(events))
	require.Equal(t, events, receive(t, e.events))

	end := fullEnd()
	end.JobID = id
	require.NoError(t, a.End(end))
	require.Equal(t, end, receive(t, e.ends))

	e.verdict = VerdictWait
	claim := Claim{JobID: id, Run: Run{0, 2}, Worker: "worker01", Place: fullPassed().Next}
	judged, err := a.Claim(t.Context(), claim)
	require.NoError(t, err)
	require.Equal(t, Judgement{Verdict: VerdictWait, Attempts: 2}, judged)
	require.Equal(t, claim, receive(t, e.claims))
	require.False(t, a.IngressGone(t.Context(), id))
	require.Equal(t, Run{}, receive(t, e.claims).Run, "the question alone claims nothing")

	passed := fullPassed()
	passed.JobID = id
	require.NoError(t, a.Passed(passed))
	require.Equal(t, passed, receive(t, e.passed))

	require.NoError(t, c.Attach(id))
	require.Equal(t, id, receive(t, e.attached))

	require.NoError(t, d.Settle("worker01", []string{id, "j2"}))
	require.Equal(t, id, receive(t, w.settled))
	require.Equal(t, "j2", receive(t, w.settled))

	stranger := NewJobID("ingressb", time.Now())
	_, err = a.Claim(t.Context(), Claim{JobID: stranger})
	require.ErrorIs(t, err, ErrNoIngress)
	require.True(t, a.IngressGone(t.Context(), stranger))
}

func TestHoldTellsEachIngressItsOwnJobs(t *testing.T) {
	t.Parallel()
	c := setup(t)
	_, e := dispatcher(t, c)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	jobs := []HeldJob{{JobID: NewJobID("ingressb", time.Now()), Run: Run{0, 1}}}
	for range heldPerMessage + 1 {
		jobs = append(jobs, HeldJob{JobID: NewJobID(testIngress, time.Now()), Run: Run{0, 1}, Idle: true})
	}
	require.NoError(t, a.Hold(jobs))
	first, second := receive(t, e.held), receive(t, e.held)
	require.Equal(t, "worker01", first.Worker)
	require.Equal(t, jobs[1:], append(first.Jobs, second.Jobs...))
}

// What comes from outside and is no message of ours is dropped; the next one is heard.
func TestBytesThatAreNoFrameAreDropped(t *testing.T) {
	t.Parallel()
	c := setup(t)
	_, e := dispatcher(t, c)
	w := newEar()
	a, err := c.NewAnswerer("worker01", []string{testProvider}, w)
	require.NoError(t, err)
	defer a.Close()
	id := NewJobID(testIngress, time.Now())
	for _, what := range []string{whatEvents, whatEnd, whatClaim, whatBeat, "nonsense"} {
		require.NoError(t, c.nc.Publish(replySubject(what, id), []byte("\x63nonsense")))
	}
	require.NoError(t, c.nc.Publish(workerInbox("worker01"), []byte("\x63nonsense")))
	require.NoError(t, c.nc.Publish(cancelSubject(testProvider), nil))
	require.NoError(t, c.nc.Publish(cancelSubject(testProvider), encodeIDs([]string{id})))
	require.NoError(t, c.Attach(id))
	require.Equal(t, id, receive(t, e.attached))
	require.Equal(t, id, receive(t, w.cancelled))
	require.Empty(t, e.events)
	require.Empty(t, e.ends)
	require.Empty(t, w.settled)
}

func TestEventsTooLargeForAMessageAreSplit(t *testing.T) {
	t.Parallel()
	c := setup(t)
	_, e := dispatcher(t, c)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	sent := &Events{JobID: NewJobID(testIngress, time.Now()), Run: Run{0, 1}, FirstSeq: 5}
	for i := range 9 {
		sent.Chunks = append(sent.Chunks, bytes.Repeat([]byte{byte('a' + i)}, 200<<10))
	}
	require.NoError(t, a.Events(sent))
	next := uint64(5)
	for next < 14 {
		got := receive(t, e.events)
		require.Equal(t, next, got.FirstSeq)
		for _, chunk := range got.Chunks {
			require.Equal(t, sent.Chunks[next-5], chunk)
			next++
		}
	}

	huge := &Events{JobID: sent.JobID, Chunks: [][]byte{make([]byte, 2<<20)}}
	require.Equal(t, inference.CodeUpstreamTooLarge, inference.AsError(a.Events(huge)).Code)
}

func TestBlobs(t *testing.T) {
	t.Parallel()
	c := setup(t)
	d, _ := dispatcher(t, c)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()

	j := testJob("small")
	ref, err := d.StoreBody(t.Context(), j)
	require.NoError(t, err)
	require.Empty(t, ref, "a small body travels in the message")
	body, err := a.Body(t.Context(), j, "", 1)
	require.NoError(t, err)
	require.Equal(t, "small", string(body))

	j.Body = make([]byte, 5<<20)
	_, _ = rand.Read(j.Body)
	ref, err = d.StoreBody(t.Context(), j)
	require.NoError(t, err)
	require.NotEmpty(t, ref)
	body, err = a.Body(t.Context(), j, ref, 5<<20)
	require.NoError(t, err)
	require.True(t, bytes.Equal(j.Body, body))
	_, err = a.Body(t.Context(), j, ref, 5<<20-1)
	require.ErrorIs(t, err, ErrBlobTooLarge)

	require.NoError(t, c.RemoveBlob(t.Context(), ref))
	_, err = c.FetchBlob(t.Context(), ref, 5<<20)
	require.ErrorIs(t, err, ErrNoBlob)
	require.NoError(t, c.RemoveBlob(t.Context(), ref), "removing it twice is no error")
}

func TestAnswerTooLargeForAMessageIsStored(t *testing.T) {
	t.Parallel()
	c := setup(t)
	a, err := c.NewAnswerer("worker01", nil, newEar())
	require.NoError(t, err)
	defer a.Close()
	end := &End{JobID: NewJobID(testIngress, time.Now()), Run: Run{1, 2}, Body: []byte("small")}
	require.NoError(t, a.StoreAnswer(t.Context(), end))
	require.Equal(t, "small", string(end.Body))

	large := bytes.Repeat([]byte("x"), inlineBytes+1)
	end.Body = large
	require.NoError(t, a.StoreAnswer(t.Context(), end))
	require.Nil(t, end.Body)
	got, err := c.FetchBlob(t.Context(), end.BodyRef, 1<<20)
	require.NoError(t, err)
	require.Equal(t, large, got)
}

func TestFullObjectStoreIsAFullQueue(t *testing.T) {
	t.Parallel()
	c := setup(t)
	c.blobs.limits.BlobsBytes = 1 << 20
	require.NoError(t, c.blobs.ensure(t.Context()))
	d, _ := dispatcher(t, c)
	j := testJob("")
	j.Body = make([]byte, 3<<20)
	_, _ = rand.Read(j.Body)
	_, err := d.StoreBody(t.Context(), j)
	require.ErrorIs(t, err, ErrFull)
}

func TestNothingWorksBeforeTheStreamsAreMade(t *testing.T) {
	t.Parallel()
	c := connectTo(t, startServer(t))
	j := testJob("")
	j.Body = make([]byte, 1<<20)
	d, _ := dispatcher(t, c)
	_, err := d.StoreBody(t.Context(), j)
	require.Error(t, err)
	_, err = c.FetchBlob(t.Context(), "x", 1)
	require.Error(t, err)
	require.Error(t, c.RemoveBlob(t.Context(), "x"))
	_, err = c.Depth(t.Context(), testProvider)
	require.Error(t, err)
	require.Error(t, c.EnsureConsumer(t.Context(), testProvider, 1))
}

func TestEnsureQueueTellsWhenTheStreamWasMade(t *testing.T) {
	t.Parallel()
	c := setup(t)
	made, err := c.EnsureQueue(t.Context(), testProvider, 8)
	require.NoError(t, err)
	again, err := c.EnsureQueue(t.Context(), testProvider, 16)
	require.NoError(t, err)
	require.Equal(t, made, again, "a new bound does not make a new stream")

	require.NoError(t, c.js.DeleteStream(t.Context(), jobStream(testProvider)))
	anew, err := c.EnsureQueue(t.Context(), testProvider, 16)
	require.NoError(t, err)
	require.True(t, anew.After(made))

	_, err = c.EnsureQueue(t.Context(), "second", 1)
	require.NoError(t, err)
	d, err := c.Depth(t.Context(), "second")
	require.NoError(t, err)
	require.Equal(t, Depth{}, d, "a queue without a worker yet")
}

func TestPresence(t *testing.T) {
	t.Parallel()
	c := setup(t)
	heard := make(chan Presence, 10)
	l, err := c.Watch(func(p Presence) { heard <- p })
	require.NoError(t, err)
	defer l.Close()

	require.NoError(t, c.nc.Publish(presenceSubject, []byte("{")))
	require.NoError(t, c.nc.Publish(presenceSubject, []byte(`{"worker":""}`)))
	require.NoError(t, c.nc.Publish(presenceSubject, fmt.Appendf(nil, `{"worker":"w","x":"%0*d"}`, maxPresence, 0)))
	p := Presence{Worker: "w1", Providers: []ProviderPresence{{Name: "acme", Models: []string{"m*"}, MaxQueued: 3, Rate: 1.5}}}
	require.NoError(t, c.Announce(p))
	require.Equal(t, p, receive(t, heard), "what is no announcement is dropped")

	// A name that no stream can bear would keep every queue from being made.
	p.Providers = append(p.Providers, ProviderPresence{Name: "a.b"}, ProviderPresence{Name: ""}, ProviderPresence{Name: "a b>"})
	require.NoError(t, c.Announce(p))
	require.Equal(t, p.Providers[:1], receive(t, heard).Providers)
}

func TestConnTellsItsState(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c, err := Connect(Options{Name: "t", Embedded: srv, Limits: testLimits(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.True(t, c.Connected())
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	require.NoError(t, c.Ready(ctx))
	require.NoError(t, c.Flush(ctx))
	called := make(chan struct{}, 1)
	c.OnReconnect(func() { called <- struct{}{} })
	c.reconnected(c.nc)
	receive(t, called)
	c.Close()
	require.False(t, c.Connected())
	require.Error(t, c.Ready(t.Context()))
	_, err = c.NewDispatcher("ingressx", newEar())
	require.Error(t, err)
	_, err = c.NewAnswerer("w", []string{"p"}, newEar())
	require.Error(t, err)
	_, err = c.Watch(func(Presence) {})
	require.Error(t, err)
	_, err = c.Listen(NewJobID(testIngress, time.Now()), nil, nil)
	require.Error(t, err)
	_, err = c.NewPuller("p", inference.LaneInteractive, 1, nil, nil)
	require.Error(t, err)
	_, err = c.NewKeptReader("x").Next(t.Context())
	require.Error(t, err)
	require.Error(t, c.Attach("x"))
	require.Error(t, c.Announce(Presence{Worker: "w"}))
	d := &Dispatcher{conn: c}
	j := testJob("{}")
	require.Error(t, d.Publish(j, ""))
	require.Error(t, d.Open(j))
	require.Error(t, d.Cancel(t.Context(), j.ID, testProvider, 1))
	require.Error(t, d.Settle("w", nil))
	a := &Answerer{conn: c, events: gatherers{conn: c}}
	require.Error(t, a.End(fullEnd()))
	require.Error(t, a.Passed(fullPassed()))
	_, err = a.Forward(t.Context(), j, "")
	require.Error(t, err)
	require.Error(t, c.SetConcurrency(t.Context(), testProvider, 1))
	require.Error(t, a.Events(fullEvents()))
	require.Error(t, a.Hold([]HeldJob{{JobID: j.ID}}))
}

func TestConnectRefusesWhatCannotBe(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	_, err := Connect(Options{Logger: log})
	require.ErrorContains(t, err, "no url")
	_, err = Connect(Options{Logger: log, URL: "nats://127.0.0.1:1", CAFile: "/does/not/exist"})
	require.Error(t, err)
	_, err = Connect(Options{Logger: log, URL: "nats://127.0.0.1:1", CertFile: "/does/not/exist", KeyFile: "/does/not/exist"})
	require.Error(t, err)

	// A server that cannot be reached yet is no error: the connection goes on trying.
	c, err := Connect(Options{Logger: log, URL: "nats://127.0.0.1:1", User: "u", Password: "p"})
	require.NoError(t, err)
	require.False(t, c.Connected())
	require.Error(t, c.Ready(t.Context()))
	c.Close()
	c, err = Connect(Options{Logger: log, URL: "nats://127.0.0.1:1", Token: "t", CredentialsFile: "/does/not/exist"})
	if err == nil {
		c.Close() // the file is read when the server is there
	}
}

func TestEmbeddedSaysWhatKeepsItFromStarting(t *testing.T) {
	t.Parallel()
	_, err := StartEmbedded(EmbeddedOptions{Dir: "/dev/null/x", Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "create queue directory")
}

func TestServerWarningsReachTheLog(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	l := natsLogger{slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	l.Noticef("hidden %d", 1)
	l.Debugf("hidden %d", 2)
	l.Tracef("hidden %d", 3)
	l.Warnf("seen %d", 4)
	l.Errorf("seen %d", 5)
	l.Fatalf("seen %d", 6)
	require.NotContains(t, b.String(), "hidden")
	for i := 4; i <= 6; i++ {
		require.Contains(t, b.String(), fmt.Sprintf("seen %d", i))
	}
}

func TestLimitsChooseTheStorage(t *testing.T) {
	t.Parallel()
	l := testLimits()
	require.Equal(t, jetstream.MemoryStorage, l.jobs("p", 1).Storage)
	l.Storage = "file"
	require.Equal(t, jetstream.FileStorage, l.jobs("p", 1).Storage)
	require.False(t, l.lane("p", inference.LaneInteractive, 1).MemoryStorage)
	require.Equal(t, jetstream.DiscardNew, l.jobs("p", 1).Discard)
}

func TestAMessageThatIsGoneIsRemoved(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer string
		gone   bool
	}{
		"removed":                  {`{"success":true}`, true},
		"no such sequence":         {`{"error":{"err_code":10043,"description":"sequence 7 not found"}}`, true},
		"no such stream":           {`{"error":{"err_code":10059,"description":"stream not found"}}`, true},
		"with all around it":       {`{"error":{"err_code":10057,"description":"no message found"}}`, true},
		"never there":              {`{"error":{"err_code":10057,"description":"stream store EOF"}}`, true},
		"not permitted":            {`{"error":{"err_code":10057,"description":"message delete not permitted"}}`, false},
		"the server has no leader": {`{"error":{"err_code":10008,"description":"JetStream system temporarily unavailable"}}`, false},
	} {
		err := removed(newRaw("_INBOX.1", []byte(c.answer)))
		require.Equal(t, c.gone, err == nil, name)
	}
	require.ErrorIs(t, removed(&nats.Msg{Header: nats.Header{"Status": {"503"}}}), nats.ErrNoResponders)
}

// deadLetters returns what was buried, oldest first.
func deadLetters(t *testing.T, c *Conn) []*jetstream.RawStreamMsg {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	s, err := c.js.Stream(ctx, deadStream)
	require.NoError(t, err)
	info, err := s.Info(ctx)
	require.NoError(t, err)
	var msgs []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := s.GetMsg(ctx, seq)
		require.NoError(t, err)
		msgs = append(msgs, m)
	}
	return msgs
}

func newRaw(subject string, data []byte) *nats.Msg { return &nats.Msg{Subject: subject, Data: data} }

// All processes ensure the streams again and again: one that is as it should be is not
// touched, and one that is not is brought to its bound.
func TestStreamsAreUpdatedWhenTheyDiffer(t *testing.T) {
	t.Parallel()
	c := setup(t)
	ensure := func() {
		require.NoError(t, c.EnsureShared(t.Context()))
		require.NoError(t, c.EnsureFiles(t.Context()))
		_, err := c.EnsureQueue(t.Context(), testProvider, 10)
		require.NoError(t, err)
		_, err = c.EnsureStored(t.Context(), testProvider)
		require.NoError(t, err)
	}
	ensure()
	updates := make(chan string, 100)
	sub, err := c.subscribe("$JS.API.STREAM.UPDATE.>", func(m *nats.Msg) { updates <- m.Subject })
	require.NoError(t, err)
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	ensure()
	require.NoError(t, c.nc.Flush())
	require.Empty(t, updates)

	c.limits.EventsBytes, c.limits.FilesBytes, c.limits.StoredJobs = c.limits.EventsBytes+1, c.limits.FilesBytes+1, c.limits.StoredJobs+7
	ensure()
	var told []string
	for range 3 {
		told = append(told, strings.TrimPrefix(receive(t, updates), "$JS.API.STREAM.UPDATE."))
	}
	require.ElementsMatch(t, []string{eventsStream, bucketStream(filesBucket), storedStream(testProvider)}, told)
	require.NoError(t, c.nc.Flush())
	require.Empty(t, updates)
}
