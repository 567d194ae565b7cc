package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	wheelSlots = 20
	wheelTick  = tokenGap / wheelSlots

	// streamGrace is how long a system may take no bytes of a stream.
	streamGrace = 30 * time.Second
)

// wheel paces all streams with one clock: each stream stands in one of the slots,
// which are due in turn, so that a token costs one write and no timer.
type wheel struct {
	script script
	slots  [wheelSlots]slot
	now    atomic.Int64 // the slot that was due last
}

type slot struct {
	mu      sync.Mutex
	streams []*pacedStream
}

type pacedStream struct {
	conn  net.Conn
	next  int // the token that is due
	total int
	end   []byte
	done  chan error // buffered: the wheel waits for nobody
}

func newWheel(s script) *wheel { return &wheel{script: s} }

// stream writes a whole streamed answer: the first token at once, each further one a
// gap later.
func (w *wheel) stream(ctx context.Context, conn net.Conn, tokens int, usage bool) error {
	s := &pacedStream{conn: conn, next: 1, total: tokens, end: w.script.streamEnd, done: make(chan error, 1)}
	if usage {
		s.end = w.script.usageEnd
	}
	length := time.Duration(tokens)*tokenGap + streamGrace
	if err := conn.SetWriteDeadline(time.Now().Add(length)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	opening := slices.Concat(w.script.streamHead, w.script.tokens[0])
	if tokens == 1 {
		opening = append(opening, s.end...)
	}
	if _, err := conn.Write(opening); err != nil || tokens == 1 {
		return err
	}
	slot := &w.slots[w.now.Load()%wheelSlots]
	slot.mu.Lock()
	slot.streams = append(slot.streams, s)
	slot.mu.Unlock()
	select {
	case err := <-s.done:
		return errors.Join(err, conn.SetWriteDeadline(time.Time{}))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// turn runs the wheel until ctx ends. Slots are due by the clock, so that lateness
// does not add up.
func (w *wheel) turn(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sharpenTimers()
	start := time.Now()
	for tick := int64(1); ctx.Err() == nil; tick++ {
		sleepUntil(start.Add(time.Duration(tick) * wheelTick))
		w.now.Store(tick)
		w.slots[tick%wheelSlots].due(w.script)
	}
}

func (s *slot) due(script script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = slices.DeleteFunc(s.streams, func(p *pacedStream) bool {
		bytes := script.tokens[p.next]
		p.next++
		last := p.next == p.total
		if last {
			bytes = slices.Concat(bytes, p.end)
		}
		_, err := p.conn.Write(bytes)
		if err != nil || last {
			p.done <- err
			return true
		}
		return false
	})
}
