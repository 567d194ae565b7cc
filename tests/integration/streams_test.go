package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
	"sluice/store"
)

// tokens scripts an answer of n tokens, the first open of them at once and each
// other one when the gate lets it.
func tokens(n, open int, gate <-chan struct{}) func(*testkit.Call) {
	return func(c *testkit.Call) {
		for i := range n {
			if i >= open && !c.Wait(gate) {
				return
			}
			c.Delta(fmt.Sprintf("(%d)", i))
		}
		c.Finish("stop")
		c.Usage(7, n)
		c.Done()
	}
}

// wholeText is what tokens adds up to.
func wholeText(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "(%d)", i)
	}
	return b.String()
}

// inOrder holds a whole stream to its shape: an id at each frame, none twice, [DONE]
// at the end.
func (s *stack) inOrder(events []event) {
	s.t.Helper()
	require.NotEmpty(s.t, events)
	for i, e := range events {
		require.Equal(s.t, fmt.Sprintf("0-1-%d", i+1), e.id, "%d of %d: %.80s", i, len(events), e.data)
	}
	require.Equal(s.t, "[DONE]", events[len(events)-1].data)
}

// TestStreamsLiveWhileTheJobWaits has the head and comments flow while another job
// takes the only slot, and then while the upstream thinks.
func TestStreamsLiveWhileTheJobWaits(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.concurrency, o.slots, o.keepalive = 1, 1, 20*time.Millisecond })
	gates := []chan struct{}{make(chan struct{}), make(chan struct{})}
	s.up.Handle(func(c *testkit.Call) {
		if c.Wait(gates[c.N-1]) {
			c.Reply("a", "b")
		}
	})
	first := s.stream(streamBody)
	s.up.AwaitCount(1)
	second := s.stream(streamBody)
	require.Equal(t, provider, second.resp.Header.Get("X-Sluice-Provider"))
	require.NotEmpty(t, second.resp.Header.Get("X-Request-Id"))
	require.Equal(t, "no-cache", second.resp.Header.Get("Cache-Control"))
	comments := func(st *sse) {
		for range 3 {
			e, err := st.next()
			require.NoError(t, err)
			require.NotEmpty(t, e.comment)
		}
	}
	comments(second)
	require.Equal(t, 1, s.up.Count(), "the job waits in the queue")
	close(gates[0])
	s.inOrder(first.rest())
	s.up.AwaitCount(2)
	comments(second)
	close(gates[1])
	events := second.rest()
	s.inOrder(events)
	require.Equal(t, "ab", s.content(events))
	require.Equal(t, "1", second.resp.Trailer.Get("X-Sluice-Attempts"))
	require.NotEmpty(t, second.resp.Trailer.Get("X-Sluice-Queue-Ms"))
}

// TestResume drops the client in mid-stream and goes on at another ingress, twice,
// and again after the end.
func TestResume(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.ingresses = 2 })
	const n = 12
	gate := make(chan struct{})
	s.up.Handle(tokens(n, 4, gate))
	st := s.stream(streamBody, "X-Sluice-Resume-Window", "30s", "X-Request-Id", "r-resume")
	job := st.job()
	got := st.events(3)
	st.drop()

	again := s.resume(1, job, got[2].id)
	require.Equal(t, http.StatusOK, again.resp.StatusCode)
	require.Equal(t, job, again.job())
	got = append(got, again.event())
	for range 3 {
		gate <- struct{}{}
		got = append(got, again.event()) // live, beside what is kept
	}
	again.drop()
	gate <- struct{}{}

	third := s.resume(0, job, got[len(got)-1].id)
	for range n - 8 {
		gate <- struct{}{}
	}
	got = append(got, third.rest()...)
	s.inOrder(got)
	require.Equal(t, wholeText(n), s.content(got))

	for door := range s.doors {
		require.Equal(t, got, s.resume(door, job, "").rest(), "all of it, from the beginning")
		require.Equal(t, got[5:], s.resume(door, job, got[4].id).rest())
		require.Equal(t, got[len(got)-1:], s.resume(door, job, got[len(got)-2].id).rest())
		require.Equal(t, http.StatusNoContent, s.resume(door, job, got[len(got)-1].id).resp.StatusCode)
	}
	require.Equal(t, 1, s.up.Count())
	row := s.row("r-resume")
	require.Equal(t, "succeeded", string(row.Outcome))
	require.EqualValues(t, n, row.Usage.CompletionTokens)
}

// TestReadersBesideTheClient has two more readers of a stream while its own client
// reads it, too.
func TestReadersBesideTheClient(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.ingresses = 2 })
	const n = 30
	gate := make(chan struct{})
	s.up.Handle(tokens(n, 1, gate))
	st := s.stream(streamBody)
	first := st.event()
	readers := []*sse{st, s.resume(0, st.job(), first.id), s.resume(1, st.job(), first.id)}
	close(gate)
	for _, r := range readers {
		events := append([]event{first}, r.rest()...)
		s.inOrder(events)
		require.Equal(t, wholeText(n), s.content(events))
	}
}

func TestResumeRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	other, _ := s.mint("other", func(k *store.Key) { k.Tenant = "green" })
	st := s.stream(streamBody)
	events := st.rest()
	job := st.job()
	unknown := strings.Repeat("a", len(job))
	plain := s.chat(plainBody).header.Get("X-Sluice-Job-Id")
	require.NotEmpty(t, plain)
	last := events[len(events)-1].id
	for name, c := range map[string]struct {
		job, id, secret string
		status          int
		code            string
	}{
		"garbage":          {job, "garbage", s.secret, 400, "invalid_request"},
		"garbled":          {job, "0-1-x", s.secret, 400, "invalid_request"},
		"negative":         {job, "0-1--1", s.secret, 400, "invalid_request"},
		"huge":             {job, "0-1-99999999999999999999", s.secret, 400, "invalid_request"},
		"long":             {job, strings.Repeat("1", 4096), s.secret, 400, "invalid_request"},
		"of another run":   {job, "7-3-2", s.secret, 400, "invalid_request"},
		"other tenant":     {job, last, other, 404, "not_found"},
		"unknown job":      {unknown, "0-1-1", s.secret, 404, "not_found"},
		"no job id":        {"*", "0-1-1", s.secret, 404, "not_found"},
		"not streamed":     {plain, "", s.secret, 404, "not_found"},
		"without a key":    {job, last, "", 401, "invalid_api_key"},
		"behind the end":   {job, "0-1-4000", s.secret, 400, "invalid_request"},
		"after everything": {job, last, s.secret, 204, ""},
	} {
		a := s.do(0, http.MethodGet, chatPath+"/"+c.job+"/events", "", "Last-Event-ID", c.id, "Authorization", "Bearer "+c.secret)
		require.Equal(t, c.status, a.status, name)
		require.NotEmpty(t, a.header.Get("X-Request-Id"))
		if c.code != "" {
			require.Equal(t, c.code, s.fault(a.body).Code, name)
		}
	}
}

// TestResumeOfWhatNeverRan resumes a stream whose job ended in the queue: that is said
// at once, and nobody waits for a text that never comes.
func TestResumeOfWhatNeverRan(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.concurrency, o.slots, o.keepalive, o.ingresses = 1, 1, 50*time.Millisecond, 2 })
	s.up.Handle((*testkit.Call).Hang)
	s.stream(streamBody)
	s.up.AwaitCount(1)
	st := s.stream(streamBody, "X-Sluice-Timeout", "300ms", "X-Sluice-Resume-Window", "30s", "X-Request-Id", "r-never")
	job := st.job()
	st.drop()
	began := time.Now()
	events := s.resume(1, job, "").rest()
	require.Less(t, time.Since(began), s.opt.timeout/2, "the job's own deadline counts")
	require.Len(t, events, 1)
	require.Equal(t, "deadline_exceeded", s.fault(events[0].data).Code)
	late := s.resume(1, job, "")
	require.Equal(t, http.StatusGatewayTimeout, late.resp.StatusCode)
	require.Equal(t, "expired", string(s.row("r-never").Outcome))
	require.Equal(t, 1, s.up.Count())
}

// TestResumeBeforeTheOpening has a client come back so soon that its stream's opening is
// not yet kept: it is let in as soon as that is.
func TestResumeBeforeTheOpening(t *testing.T) {
	t.Parallel()
	url := testkit.StartNATS(t).URL()
	s := start(t, func(o *options) { o.natsURL, o.keepalive = url, 50*time.Millisecond })
	nc, err := nats.Connect(url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	looks, err := nc.SubscribeSync("$JS.API.DIRECT.GET.SLUICE_EVENTS")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	job := strings.Repeat("a", jobIDLen)
	opened := make(chan error, 1)
	go func() {
		_, err := looks.NextMsg(patience) // it has been looked for once
		if err == nil {
			opening := nats.NewMsg("evt." + job[:8] + "." + job)
			opening.Header.Set("Sluice-Tenant", tenant)
			opening.Header.Set("Sluice-Open", "1")
			err = nc.PublishMsg(opening)
		}
		opened <- err
	}()
	st := s.resume(0, job, "0-1-1")
	require.NoError(t, <-opened)
	require.Equal(t, http.StatusOK, st.resp.StatusCode)
}

// TestResumeWindow has a client that may come back and does not, and one whose stream
// is read elsewhere for longer than its own window.
func TestResumeWindow(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.ingresses, o.keepalive = 2, 50*time.Millisecond })
	gate := make(chan struct{})
	s.up.Handle(tokens(6, 1, gate))
	st := s.stream(streamBody, "X-Sluice-Resume-Window", "400ms", "X-Request-Id", "r-read")
	first := st.event()
	gone := s.stream(streamBody, "X-Sluice-Resume-Window", "400ms", "X-Request-Id", "r-gone")
	gone.event()
	reader := s.resume(1, st.job(), first.id)
	_, err := reader.next() // the reader has been let in
	require.NoError(t, err)
	st.drop()
	gone.drop()
	s.up.AwaitDisconnects(1)
	require.Equal(t, "cancelled", string(s.row("r-gone").Outcome))
	close(gate)
	events := append([]event{first}, reader.rest()...)
	require.Equal(t, wholeText(6), s.content(events))
	require.Equal(t, "succeeded", string(s.row("r-read").Outcome))
}
