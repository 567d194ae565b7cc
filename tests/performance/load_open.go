package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// maxConnections bounds an open loop's connections, of which the fleet's burst takes
// the most on purpose. A system that queues without end brings the generator there;
// arrivals beyond it count as failures.
const maxConnections = 12_000

const giveUpEvery = 100 * time.Millisecond

// The states of a connection. Whoever moves it out of busy counts the request.
const (
	idle int32 = iota
	busy
	dead
)

// openConn is one connection of an open loop. The dispatcher writes to it, a
// goroutine of its own reads.
type openConn struct {
	*wire
	state    atomic.Int32
	intended atomic.Int64 // when its request was due, in ns after the loop's start
}

// openLoop sends each request when it is due, whatever became of those before, on
// an idle connection or else on a new one.
type openLoop struct {
	*load
	start time.Time

	mu      sync.Mutex
	waiting []*openConn // idle ones, the latest used last; some may have died since
	all     map[*openConn]struct{}
	over    bool

	made    atomic.Int64 // connections that exist or are being made
	pending atomic.Int64 // requests without an outcome
	readers sync.WaitGroup
}

func (l *load) runOpen(ctx context.Context, start time.Time) error {
	loop := &openLoop{load: l, start: start, all: map[*openConn]struct{}{}}
	defer loop.close()
	for range l.Connections {
		c, err := loop.connect()
		if err != nil {
			return err
		}
		loop.release(c)
	}
	ctx, cancel := context.WithCancel(ctx)
	window := l.tellWindow(ctx)
	var sweeper sync.WaitGroup
	sweeper.Go(func() { loop.giveUp(ctx) })
	dispatch(ctx, start, l.Warmup+l.Duration, newArrivals(l.Rate, l.Even, l.Seed), loop.send)
	loop.settle(ctx)
	<-window
	cancel()
	sweeper.Wait()
	return nil
}

func (o *openLoop) send(intended time.Time) {
	o.pending.Add(1)
	request := o.next()
	if c := o.take(intended); c != nil {
		c.send(request)
		return
	}
	if o.made.Load() >= maxConnections {
		o.settled("no connection left")
		return
	}
	o.readers.Go(func() {
		c, err := o.connect()
		if err != nil {
			o.settled("no connection")
			return
		}
		c.intended.Store(int64(intended.Sub(o.start)))
		c.state.Store(busy)
		c.send(request)
	})
}

func (c *openConn) send(request []byte) {
	if _, err := c.Write(request); err != nil {
		c.hangUp() // the reader hears of it and counts it
	}
}

// settled takes one request off the pending ones; why is empty when it was answered.
func (o *openLoop) settled(why string) {
	if why != "" {
		o.fail(why)
	}
	o.pending.Add(-1)
}

// connect makes a connection and its reader. It is idle and belongs to the caller.
func (o *openLoop) connect() (*openConn, error) {
	o.made.Add(1)
	w, err := dial(o.Address, o.Patience)
	if err != nil {
		o.made.Add(-1)
		return nil, err
	}
	c := &openConn{wire: w}
	o.mu.Lock()
	o.all[c] = struct{}{}
	if o.over {
		c.hangUp()
	}
	o.mu.Unlock()
	o.readers.Go(func() { o.read(c) })
	return c, nil
}

// take returns an idle connection, made busy for a request, or nil.
func (o *openLoop) take(intended time.Time) *openConn {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) > 0 {
		c := o.waiting[len(o.waiting)-1]
		o.waiting = o.waiting[:len(o.waiting)-1]
		c.intended.Store(int64(intended.Sub(o.start)))
		if c.state.CompareAndSwap(idle, busy) {
			return c
		}
	}
	return nil
}

func (o *openLoop) release(c *openConn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting = append(o.waiting, c)
}

func (o *openLoop) read(c *openConn) {
	defer o.drop(c)
	for {
		h, body, err := c.answer()
		now := time.Now()
		if err != nil {
			return
		}
		intended := o.start.Add(time.Duration(c.intended.Load()))
		if !c.state.CompareAndSwap(busy, idle) {
			return // given up, or an answer to nothing
		}
		o.answered(intended, now, h, body)
		o.settled("")
		if h.closes {
			return
		}
		o.release(c)
	}
}

func (o *openLoop) drop(c *openConn) {
	if c.state.Swap(dead) == busy {
		o.settled("connection broken")
	}
	o.mu.Lock()
	delete(o.all, c)
	o.mu.Unlock()
	c.hangUp()
	o.made.Add(-1)
}

// giveUp ends requests that wait for longer than a client's patience.
func (o *openLoop) giveUp(ctx context.Context) {
	ticker := time.NewTicker(giveUpEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			o.giveUpBefore(now.Add(-o.Patience))
		}
	}
}

func (o *openLoop) giveUpBefore(limit time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	latest := int64(limit.Sub(o.start))
	for c := range o.all {
		if c.intended.Load() <= latest && c.state.CompareAndSwap(busy, dead) {
			o.settled(fmt.Sprintf("no answer within %s", o.Patience))
			c.hangUp()
		}
	}
}

// settle waits until every request has its outcome: the patience sees to that.
func (o *openLoop) settle(ctx context.Context) {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for o.pending.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (o *openLoop) close() {
	o.mu.Lock()
	o.over = true
	for c := range o.all {
		c.hangUp()
	}
	o.mu.Unlock()
	o.readers.Wait()
}
