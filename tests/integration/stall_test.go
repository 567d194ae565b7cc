package integration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"sluice/internal/testkit"
)

// slowly makes the stack's client take data off its sockets in small steps, so that a
// reader that stops soon stops the sender, too.
func (s *stack) slowly() {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if tcp, ok := conn.(*net.TCPConn); ok {
				err = tcp.SetReadBuffer(64 << 10)
			}
			return conn, err
		},
	}
	s.http = &http.Client{Transport: transport}
	s.t.Cleanup(transport.CloseIdleConnections)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestStalledClient has one client stop reading a stream of many megabytes. It runs
// alone, because it looks at the memory of the whole process; the kept events are in
// another one.
func TestStalledClient(t *testing.T) {
	s := start(t, func(o *options) { o.natsURL, o.concurrency, o.slots = testkit.StartNATS(t).URL(), 32, 32 })
	const chunks, size, others, tokensEach = 4000, 4 << 10, 20, 100
	filler := strings.Repeat("0123456789abcdef", size/16)
	begin, sent := make(chan struct{}), make(chan struct{})
	s.up.Handle(func(c *testkit.Call) {
		if c.Model() != "glob-large" {
			tokens(tokensEach, tokensEach, nil)(c)
			return
		}
		for i := range chunks {
			if i == 1 {
				c.Wait(begin)
			}
			c.Delta(fmt.Sprintf("(%d)%s", i, filler))
		}
		c.Finish("stop")
		c.Done()
		close(sent)
	})
	quick := s.http
	s.slowly()
	stalled := s.stream(strings.Replace(streamBody, `"m"`, `"glob-large"`, 1), "X-Request-Id", "r-stalled")
	events := stalled.events(1)
	before := heap()
	close(begin)

	s.http = quick
	var wg sync.WaitGroup
	for range others {
		wg.Go(func() {
			a, err := s.try(t.Context(), 0, http.MethodPost, chatPath, streamBody)
			if err != nil || !strings.HasSuffix(a.body, "data: [DONE]\n\n") || strings.Count(a.body, `"content":"(`) != tokensEach {
				t.Errorf("a stream beside the stalled one: %v, %d bytes", err, len(a.body))
			}
		})
	}
	wg.Wait()
	<-sent // the upstream was not held up either
	s.row("r-stalled")
	require.Less(t, heap()-before, int64(chunks*size/3), "the stalled client's chunks are not kept in memory")

	events = append(events, stalled.rest()...)
	s.inOrder(events)
	require.Len(t, events, chunks+2)
	for i, e := range events[:chunks] {
		require.Contains(t, e.data[:200], fmt.Sprintf("(%d)", i))
	}
	s.rows(others + 1)
}
