package integration

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"sluice/internal/inference"
	"sluice/internal/testkit"
)

// link is a TCP way to a server that can be cut and mended.
type link struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

func newLink(t *testing.T, url string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := &link{listener: listener, to: strings.TrimPrefix(url, "nats://"), conns: make(map[net.Conn]struct{})}
	l.wg.Go(l.accept)
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		l.set(true)
		l.wg.Wait()
	})
	return l
}

func (l *link) url() string { return "nats://" + l.listener.Addr().String() }

func (l *link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.to)
		if err != nil || !l.hold(near, far) {
			near.Close()
			continue
		}
		for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
			l.wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1]) // it ends with either connection
				l.release(near, far)
			})
		}
	}
}

func (l *link) hold(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		for _, c := range conns {
			c.Close()
		}
		return false
	}
	for _, c := range conns {
		l.conns[c] = struct{}{}
	}
	return true
}

func (l *link) release(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		c.Close()
		delete(l.conns, c)
	}
}

// set cuts the link, and all that goes through it, or mends it.
func (l *link) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	for c := range l.conns {
		c.Close()
	}
}

// twoWorkers starts a stack whose first worker can be cut off, and has its jobs when
// the second one comes.
type twoWorkers struct {
	*stack
	link   *link
	second *testkit.Upstream
	beats  *nats.Subscription
}

func startTwo(t *testing.T, ingresses int) *twoWorkers {
	t.Helper()
	url := testkit.StartNATS(t).URL()
	s := start(t, func(o *options) { o.natsURL, o.ingresses, o.workers, o.ackWait = url, ingresses, 0, time.Second })
	w := &twoWorkers{stack: s, link: newLink(t, url), second: testkit.NewUpstream(t)}
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	w.beats, err = nc.SubscribeSync("rep.*.beat.all")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	s.addWorkerAt(s.up, w.link.url())
	s.awaitWorkers(1)
	return w
}

// jobIDLen stands before each job's id in a worker's beat.
const jobIDLen = 26

// lose waits until the first worker has calls in hand and has told so, adds the second
// worker and cuts the first one off.
func (w *twoWorkers) lose(calls int) {
	w.t.Helper()
	w.up.AwaitCount(calls)
	held := make(map[string]bool)
	for len(held) < calls {
		m, err := w.beats.NextMsg(patience)
		require.NoError(w.t, err)
		for _, id := range bytes.Split(m.Data, []byte{jobIDLen})[1:] {
			held[string(id[:jobIDLen])] = true
		}
	}
	w.addWorker(w.second)
	w.awaitWorkers(2)
	w.link.set(true)
}

// mend lets the lost worker back in and waits until it has said all it had to say.
func (w *twoWorkers) mend() {
	w.link.set(false)
	w.hands[0].stop()
}

// TestLostWorkerIsReplacedUnseen cuts a worker off that holds calls: the other one
// answers them all, and what the first one has to say later changes nothing.
func TestLostWorkerIsReplacedUnseen(t *testing.T) {
	t.Parallel()
	w := startTwo(t, 1)
	gate, half := make(chan struct{}), make(chan struct{})
	w.up.Handle(func(c *testkit.Call) { c.Wait(gate); c.Reply("(first)") })
	w.second.Handle(func(c *testkit.Call) {
		if c.Streamed() {
			tokens(6, 3, half)(c)
			return
		}
		c.Reply("(second)")
	})
	const n = 4
	answers := make(chan answer, n)
	for range n {
		go func() {
			a, err := w.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
	}
	st := w.stream(streamBody, "X-Request-Id", "r-stream")
	w.lose(n + 1)
	for range n {
		a := <-answers
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Contains(t, a.body, "(second)")
		require.Equal(t, "2", a.header.Get("X-Sluice-Attempts"))
	}
	events := st.events(3)
	// The first worker's late words come in the middle of the second one's.
	close(gate)
	w.link.set(false)
	w.up.AwaitIdle()
	w.eventually(func() bool { return w.hands[0].metric(t, "sluice_worker_in_flight") == 0 }, "the first worker is done")
	w.flush(w.hands[0])
	close(half)
	events = append(events, st.rest()...)
	require.Equal(t, wholeText(6), w.content(events))
	for i := range events[1:] {
		require.NotEqual(t, events[i].id, events[i+1].id)
	}
	require.Equal(t, events, w.resume(0, st.job(), events[0].id).prepend(events[0]), "what is kept is the second worker's")
	for _, r := range w.rows(n + 1) {
		require.Equal(t, inference.OutcomeSucceeded, r.Outcome)
		require.Equal(t, 2, r.Attempts, "a call that was lost is counted")
	}
	require.GreaterOrEqual(t, w.hands[1].metric(t, "sluice_redeliveries_total"), float64(n+1))
	w.hands[0].stop() // it returns because all that it held is settled
	w.rows(n + 1)
}

// flush waits until the server has all that the worker said.
func (w *twoWorkers) flush(h *hand) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	require.NoError(w.t, h.conn.Flush(ctx))
}

// prepend reads the rest of a stream behind an event that was read elsewhere.
func (st *sse) prepend(e event) []event { return append([]event{e}, st.rest()...) }

// TestLateAnswerIsTaken has the first worker come back with its answer while the
// second one still works: the client gets it, once.
func TestLateAnswerIsTaken(t *testing.T) {
	t.Parallel()
	w := startTwo(t, 1)
	gate, never := make(chan struct{}), make(chan struct{})
	w.up.Handle(func(c *testkit.Call) { c.Wait(gate); c.Reply("(first)") })
	w.second.Handle(func(c *testkit.Call) { c.Wait(never); c.Reply("(second)") })
	answers := make(chan answer, 1)
	go func() {
		a, err := w.try(t.Context(), 0, http.MethodPost, chatPath, plainBody)
		if err != nil {
			t.Error(err)
		}
		answers <- a
	}()
	w.lose(1)
	w.second.AwaitCount(1)
	close(gate)
	w.mend()
	a := <-answers
	require.Contains(t, a.body, "(first)")
	close(never)
	w.rows(1)
	w.hands[1].stop()
	require.Equal(t, 2, w.rows(1)[0].Attempts)
}

// TestLossAfterTheFirstToken cuts a worker off in the middle of its answer: the stream
// ends with an error, here and for whoever resumes it, and never with [DONE].
func TestLossAfterTheFirstToken(t *testing.T) {
	t.Parallel()
	w := startTwo(t, 2)
	gate := make(chan struct{})
	w.up.Handle(tokens(6, 2, gate))
	st := w.stream(streamBody)
	events := st.events(2)
	w.lose(1)
	events = append(events, st.rest()...)
	require.Len(t, events, 3)
	require.Equal(t, "worker_lost", w.fault(events[2].data).Code)
	close(gate)
	w.mend()
	require.Zero(t, w.second.Count(), "a begun answer is not begun again")
	row := w.rows(1)[0]
	require.Equal(t, inference.OutcomeFailed, row.Outcome)
	require.Equal(t, inference.CodeWorkerLost, row.ErrorCode)
	require.Equal(t, http.StatusBadGateway, row.Status)
	for door := range w.doors {
		a := w.do(door, http.MethodGet, chatPath+"/"+st.job()+"/events", "", "Last-Event-ID", events[1].id)
		require.NotContains(t, a.body, "[DONE]")
		require.Contains(t, a.body, "worker_lost")
	}
}

// TestDrain stops a worker that has work in hand: what can be finished is, and what
// takes too long goes to another one unseen.
func TestDrain(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.drain = 500 * time.Millisecond })
	gate := make(chan struct{})
	s.up.Handle(func(c *testkit.Call) {
		if c.Model() == "m" {
			c.Wait(gate)
			c.Reply("(first)")
			return
		}
		c.Hang()
	})
	second := testkit.NewUpstream(t)
	second.Handle(func(c *testkit.Call) { c.Reply("(second)") })
	answers := make(map[string]chan answer)
	for _, model := range []string{"m", "glob-1"} {
		answers[model] = make(chan answer, 1)
		go func() {
			a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, strings.Replace(plainBody, `"m"`, `"`+model+`"`, 1))
			if err != nil {
				t.Error(err)
			}
			answers[model] <- a
		}()
	}
	s.up.AwaitCount(2)
	s.addWorker(second)
	s.awaitWorkers(2)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.hands[0].stop()
	}()
	s.eventually(func() bool { return s.ready(0).Providers[provider].Workers == 1 }, "the worker has said goodbye")
	close(gate)
	require.Contains(t, (<-answers["m"]).body, "(first)")
	a := <-answers["glob-1"]
	require.Equal(t, http.StatusOK, a.status, a.body)
	require.Contains(t, a.body, "(second)")
	<-stopped
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	require.Equal(t, 2, second.Count())
	s.rows(3)
}
