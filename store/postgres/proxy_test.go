package postgres_test

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy is a network between a store and its database that can fall silent: while
// it is frozen connections stay open and nothing comes through.
type proxy struct {
	listener net.Listener
	gate     sync.RWMutex // held for writing while frozen

	mu     sync.Mutex
	conns  []net.Conn
	copies sync.WaitGroup
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{listener: listener}
	p.copies.Go(func() { p.serve(target) })
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close() // may be closed already
		}
		p.mu.Unlock()
		p.copies.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }
func (p *proxy) freeze()         { p.gate.Lock() }
func (p *proxy) thaw()           { p.gate.Unlock() }

func (p *proxy) serve(target string) {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.copies.Go(func() { p.copy(client, server) })
		p.copies.Go(func() { p.copy(server, client) })
	}
}

func (p *proxy) copy(to, from net.Conn) {
	defer func() { _ = to.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.gate.RLock()
		_, err = to.Write(buf[:n])
		p.gate.RUnlock()
		if err != nil {
			return
		}
	}
}
