package main

import (
	"context"
	"sync"
	"time"
)

// runClosed keeps every connection busy with one request after another: the most
// that a system does with so many clients.
func (l *load) runClosed(ctx context.Context) {
	window := l.tellWindow(ctx)
	var clients sync.WaitGroup
	for range l.Connections {
		clients.Go(func() { l.client(ctx) })
	}
	clients.Wait()
	<-window
}

func (l *load) client(ctx context.Context) {
	var w *wire
	for ctx.Err() == nil && time.Now().Before(l.end) {
		if w == nil {
			var err error
			if w, err = dial(l.Address, l.Patience); err != nil {
				l.fail("no connection")
				return
			}
		}
		if !l.exchange(w) {
			w.hangUp()
			w = nil
		}
	}
	if w != nil {
		w.hangUp()
	}
}

// exchange makes one request and says whether the connection can be used again.
func (l *load) exchange(w *wire) bool {
	sent := time.Now()
	if err := w.SetDeadline(sent.Add(l.Patience)); err != nil {
		l.fail("connection broken")
		return false
	}
	if _, err := w.Write(l.next()); err != nil {
		l.fail("connection broken")
		return false
	}
	h, body, err := w.answer()
	if err != nil {
		l.fail(failureOf(err, l.Patience))
		return false
	}
	l.answered(sent, time.Now(), h, body)
	return !h.closes
}
