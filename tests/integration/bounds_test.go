package integration

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// TestConcurrencyAcrossWorkers has two workers, each with an upstream of its own, share
// one provider's bound.
func TestConcurrencyAcrossWorkers(t *testing.T) {
	t.Parallel()
	const total, each, jobs = 4, 3, 60
	s := start(t, func(o *options) { o.concurrency, o.slots, o.ingresses = total, each, 2 })
	other := testkit.NewUpstream(t)
	var now, most atomic.Int64
	full := make(chan struct{}) // closed once the whole bound was in use
	var once sync.Once
	script := func(c *testkit.Call) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == total {
			once.Do(func() { close(full) })
		}
		c.Wait(full)
		c.Pause(3 * time.Millisecond)
		now.Add(-1)
		c.Reply("x")
	}
	s.up.Handle(script)
	other.Handle(script)
	var wg sync.WaitGroup
	send := func(i int) {
		wg.Go(func() {
			body := plainBody
			if i%3 == 0 {
				body = streamBody
			}
			a, err := s.try(t.Context(), i%2, http.MethodPost, chatPath, body)
			if err != nil || a.status != http.StatusOK {
				t.Errorf("call %d: %d %v", i, a.status, err)
			}
		})
	}
	for i := range total {
		send(i)
	}
	s.eventually(func() bool {
		m := s.series()
		return m[`sluice_queue_depth{provider="acme",state="running"}`] == each && m[`sluice_queue_depth{provider="acme",state="waiting"}`] == total-each
	}, "one worker takes what it has slots for")
	require.Equal(t, each, s.up.Count())
	s.addWorker(other)
	s.awaitWorkers(2)
	for i := range jobs - total {
		send(total + i)
	}
	wg.Wait()
	require.EqualValues(t, total, most.Load(), "the bound is kept, and used")
	for _, up := range []*testkit.Upstream{s.up, other} {
		require.LessOrEqual(t, up.MostInFlight(), each)
		require.Positive(t, up.Count())
	}
	require.Equal(t, jobs, s.up.Count()+other.Count())
	s.rows(jobs)
}

// noise is text that does not compress.
func noise(n int) string {
	raw := make([]byte, n*3/4+3)
	_, _ = rand.Read(raw) // crypto/rand.Read never fails
	return base64.RawURLEncoding.EncodeToString(raw)[:n]
}

// same compares large texts without printing them.
func same(t *testing.T, want, got, msg string, args ...any) {
	t.Helper()
	if want != got {
		t.Fatalf("texts of %d and %d bytes differ: %s", len(want), len(got), fmt.Sprintf(msg, args...))
	}
}

// TestLargeBodies sends and receives what no NATS message could carry, through a
// server with its default payload, and finds nothing left behind.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.natsURL, o.maxBody = testkit.StartNATS(t).URL(), 21<<20 })
	image := noise(20 << 20)
	body := `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + image + `"}}]}]}`
	large := testkit.Completion("m", noise(10<<20), 7, 1)
	s.up.Handle(func(c *testkit.Call) { c.JSON(http.StatusOK, large) })
	a := s.chat(body)
	require.Equal(t, http.StatusOK, a.status, a.body[:min(len(a.body), 300)])
	same(t, large, a.body, "the answer comes back as it is")
	same(t, body, string(s.up.Last().Body), "the request arrives as it is")

	over := s.chat(strings.Replace(body, `"m"`, `"m","x":"`+noise(1<<20)+`"`, 1))
	require.Equal(t, http.StatusRequestEntityTooLarge, over.status)
	require.Equal(t, "request_too_large", s.fault(over.body).Code)
	require.Equal(t, 1, s.up.Count())

	// Streamed: chunks of all sizes, ten megabytes of them.
	var sent []string
	s.up.Handle(func(c *testkit.Call) {
		for i := 0; i < 10<<20; {
			size := []int{600 << 10, 100, 300 << 10, 250 << 10}[len(sent)%4]
			chunk := fmt.Sprintf(`{"choices":[{"index":0,"delta":{"content":"%s"}}]}`, noise(size))
			sent = append(sent, chunk)
			c.Chunk(chunk)
			i += size
		}
		c.Finish("stop")
		c.Done()
	})
	body = strings.Replace(body, image, image[:1<<20], 1)
	st := s.stream(strings.Replace(body, `"m"`, `"m","stream":true`, 1))
	events := st.rest()
	s.inOrder(events)
	got := datas(events)
	require.Len(t, got, len(sent)+2)
	for i := range sent {
		same(t, sent[i], got[i], "chunk %d", i)
	}
	again := s.resume(0, st.job(), events[2].id).rest()
	require.Len(t, again, len(events)-3)
	for i, e := range again {
		require.Equal(t, events[i+3].id, e.id)
		same(t, events[i+3].data, e.data, "chunk %d, resumed", i)
	}

	// A job that ends otherwise leaves nothing either.
	s.up.Handle((*testkit.Call).Hang)
	require.Equal(t, http.StatusGatewayTimeout, s.chat(body, "X-Sluice-Timeout", "1s").status)
	s.rows(3)
	s.eventually(func() bool { return len(s.blobs()) == 0 }, "the object store is empty")
}

// TestLargeAnswerWithoutTaker has clients leave when their large answer is on its way.
func TestLargeAnswerWithoutTaker(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.natsURL = testkit.StartNATS(t).URL() })
	large := testkit.Completion("m", noise(3<<20), 7, 1)
	const n = 30
	for i := range n {
		ctx, leave := context.WithCancel(t.Context())
		s.up.Handle(func(c *testkit.Call) {
			c.SetHeader("Content-Length", strconv.Itoa(len(large)))
			c.JSON(http.StatusOK, large)
			time.AfterFunc(time.Duration(i)*2*time.Millisecond, leave)
		})
		if a, err := s.try(ctx, 0, http.MethodPost, chatPath, plainBody); err == nil {
			require.Equal(t, http.StatusOK, a.status)
		}
		leave()
	}
	s.rows(n)
	s.eventually(func() bool { return len(s.blobs()) == 0 }, "the object store is empty")
}

// TestOversizedChunk has an upstream send one chunk that no message can carry.
func TestOversizedChunk(t *testing.T) {
	t.Parallel()
	s := start(t, func(o *options) { o.natsURL = testkit.StartNATS(t).URL() })
	s.up.Handle(func(c *testkit.Call) {
		c.Delta("a")
		c.Delta(noise(2 << 20))
		c.Done()
	})
	events := s.stream(streamBody).rest()
	require.Len(t, events, 2)
	require.Equal(t, "upstream_too_large", s.fault(events[1].data).Code)
	s.up.Handle(func(c *testkit.Call) { c.Reply("x") })
	require.Equal(t, http.StatusOK, s.chat(plainBody).status)
	s.rows(2)
}
