package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// runProxy is the floor that every gateway is held against: the standard library's
// reverse proxy and nothing else, with the settings that a careful owner gives it.
// It calls several targets in turn. most bounds its connections to each where it is
// above zero.
func runProxy(ctx context.Context, out io.Writer, targets []string, most int) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	transport := &http.Transport{
		MaxIdleConnsPerHost: 1024, // the default of 2 would dial for nearly every call
		MaxConnsPerHost:     most,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}
	defer transport.CloseIdleConnections()
	var calls atomic.Uint64
	server := &http.Server{Handler: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			target := (calls.Add(1) - 1) % uint64(len(targets))
			r.SetURL(&url.URL{Scheme: "http", Host: targets[target]})
		},
		Transport: transport,
		// No FlushInterval: the proxy flushes an event stream after every write by
		// itself, and for a plain answer a flush would be one write more.
		BufferPool: &bufferPool{},
		ErrorLog:   log.New(io.Discard, "", 0), // clients that give up are part of the overload
	}}
	if _, err := fmt.Fprintln(out, listener.Addr()); err != nil {
		return fmt.Errorf("print address: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 32<<10)
}

func (b *bufferPool) Put(buf []byte) { b.pool.Put(&buf) }
