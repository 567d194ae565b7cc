package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// streamRun is a run of many streams that are open at once.
type streamRun struct {
	*load
	started atomic.Int64 // streams that have their first token, or failed
	allOpen atomic.Bool  // until the first one that succeeded has ended
	streams sync.WaitGroup
}

// runStreams opens the streams at the given rate and reads each to its end. The gaps
// between tokens count from when all are open until the first one ends.
func (l *load) runStreams(ctx context.Context, start time.Time) {
	run := &streamRun{load: l}
	starts := newArrivals(l.Rate, true, l.Seed)
	ramp := time.Duration(l.Streams) * starts.mean
	dispatch(ctx, start, ramp, starts, func(intended time.Time) {
		run.streams.Go(func() { run.stream(ctx, intended) })
	})
	run.streams.Wait()
	run.finish() // had all failed, nothing else would end the measured time
}

func (r *streamRun) stream(ctx context.Context, intended time.Time) {
	var first sync.Once
	opened := func() {
		first.Do(func() {
			if r.started.Add(1) == int64(r.Streams) {
				r.tell(momentOpen)
				r.allOpen.Store(true)
			}
		})
	}
	defer opened() // a stream that failed must not keep the others from being measured
	if err := r.read(ctx, intended, opened); err != nil {
		r.fail(failureOf(err, r.Patience))
		return
	}
	r.finish()
}

func (r *streamRun) finish() {
	if r.allOpen.CompareAndSwap(true, false) {
		r.tell(momentFinish)
	}
}

func (r *streamRun) read(ctx context.Context, intended time.Time, opened func()) error {
	w, err := dial(r.Address, r.Patience)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, w.hangUp)
	defer stop()
	defer w.hangUp()
	if err := w.SetDeadline(intended.Add(r.Patience)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := w.Write(r.request); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	h, err := readResponseHead(w.reader)
	if err != nil {
		return err
	}
	if h.status != 200 {
		return statusError(h.status)
	}
	var tokens tokenReader
	var last time.Time
	err = readSpans(w.reader, h, func(span []byte) error {
		n, err := tokens.feed(span)
		if n > 0 {
			last = r.arrived(n, intended, last, opened)
		}
		return err
	})
	return errors.Join(err, tokens.complete(r.Tokens))
}

// arrived counts tokens that came together: the first of them ends the gap, the
// others had none.
func (r *streamRun) arrived(n int, intended, last time.Time, opened func()) time.Time {
	now := time.Now()
	if last.IsZero() {
		r.firstToken.record(now.Sub(intended))
		opened()
		return now
	}
	if r.allOpen.Load() {
		r.good.Add(int64(n))
		r.gap.record(now.Sub(last))
		for range n - 1 {
			r.gap.record(0)
		}
	}
	return now
}

type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

// failureOf names an error in few words, so that equal ones are counted together.
func failureOf(err error, patience time.Duration) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Sprintf("no answer within %s", patience)
	}
	if status, ok := errors.AsType[statusError](err); ok {
		return status.Error()
	}
	for _, known := range []error{errTokenGone, errEvent, errCutStream} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "connection broken"
}
