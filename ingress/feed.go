package ingress

import (
	"context"
	"sync"
	"time"

	"sluice/internal/inference"
	"sluice/internal/queue"
)

// Bounds of what is held for one client that reads more slowly than chunks come.
const (
	feedBytes = 64 << 10

	refillEvery = 100 * time.Millisecond
	refillMost  = 10 * time.Second // without a new chunk, although there must be one

	foreignAfter = 2 * time.Second // several times as long as a run's first chunks take to be kept
)

// feed is the way of one streamed answer to one client. Live chunks are pushed into
// it as they come. A client too slow for them costs no more than feedBytes: what does
// not fit is let go and read again, later, from the kept events. That is also how a
// client that comes back gets what it missed.
type feed struct {
	kept keptEvents
	wake chan struct{}

	mu     sync.Mutex
	run    queue.Run
	next   uint64 // sequence number of the next chunk to hand out
	buf    [][]byte
	first  uint64 // sequence number of buf[0]
	bytes  int
	heard  uint64 // highest sequence number pushed so far
	missed bool   // the kept events are to be looked at although nothing is known to be missing
	end    *queue.End

	// The reader's own.
	timer   *time.Timer
	stuck   time.Time // since when kept events are waited for in vain
	whole   bool      // the kept events were read up to their end
	known   bool      // there is something kept of the feed's run
	otherAt time.Time // when first another run's were found
}

// keptEvents reads what is kept of a job's events, from the beginning onwards.
type keptEvents interface {
	Next(ctx context.Context) ([]queue.Block, error)
}

// newFeed returns a feed that begins at sequence number next of the run. A zero run
// stands for the first one that is heard of.
func newFeed(kept keptEvents, run queue.Run, next uint64) *feed {
	return &feed{kept: kept, wake: make(chan struct{}, 1), run: run, next: next}
}

// push takes live chunks; those of another run than the feed's are not for it.
func (f *feed) push(e *queue.Events) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.run == (queue.Run{}) {
		f.run = e.Run
	}
	if e.Run != f.run || f.end != nil {
		return
	}
	size := 0
	for _, c := range e.Chunks {
		size += len(c)
	}
	f.heard = max(f.heard, e.FirstSeq+uint64(len(e.Chunks))-1)
	switch {
	case len(f.buf) > 0 && f.bytes+size > feedBytes:
		f.drop() // what was heard of and is not here comes from the kept events
	case len(f.buf) > 0 && e.FirstSeq != f.first+uint64(len(f.buf)):
		f.drop() // a gap, or a repeat: what is missing comes from the kept events
		fallthrough
	default:
		if len(f.buf) == 0 {
			f.first = e.FirstSeq
		}
		f.buf = append(f.buf, e.Chunks...)
		f.bytes += size
	}
	f.signal()
}

// finish takes the end of the feed's run.
func (f *feed) finish(e *queue.End) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end == nil && (f.run == (queue.Run{}) || e.Run == f.run) {
		f.end = e
	}
	f.signal()
}

// abort ends the feed after what has come so far: no more will come of its run. It
// returns the end as it stands now.
func (f *feed) abort(e queue.End) queue.End {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end == nil {
		e.Run, e.LastSeq = f.run, f.next-1
		if n := len(f.buf); n > 0 {
			e.LastSeq = f.first + uint64(n) - 1
		}
		f.end = &e
	}
	f.signal()
	return *f.end
}

// begin tells the feed which run it is for, unless it knows by now.
func (f *feed) begin(run queue.Run) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.run == (queue.Run{}) {
		f.run = run
	}
}

// look makes the reader look at the kept events although nothing seems to be missing.
func (f *feed) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.missed = true
	f.signal()
}

func (f *feed) drop() { f.buf, f.bytes, f.first = nil, 0, 0 }

func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// batch is what a client is to be given next: chunks, or the end.
type batch struct {
	Run    queue.Run
	First  uint64
	Chunks [][]byte
	End    *queue.End
}

// take returns what comes next, or an empty batch when there is nothing and wait has
// passed. An error means that chunks are lost for good, or never were.
func (f *feed) take(ctx context.Context, wait time.Duration) (batch, error) {
	var timer *time.Timer // made only if there is something to wait for
	for {
		b, refill := f.ready()
		if len(b.Chunks) > 0 || b.End != nil {
			f.stuck = time.Time{}
			return b, nil
		}
		if timer == nil {
			timer = f.alarm(wait)
			defer timer.Stop()
		}
		if refill {
			b, more, err := f.fill(ctx)
			if err != nil || len(b.Chunks) > 0 {
				return b, err
			}
			if more {
				continue
			}
		}
		// Kept events come at their own pace, however many live ones arrive.
		wake, again := (<-chan struct{})(f.wake), (<-chan time.Time)(nil)
		if refill {
			wake, again = nil, time.After(refillEvery)
		}
		select {
		case <-ctx.Done():
			return batch{}, ctx.Err()
		case <-timer.C:
			if f.foreign() {
				return batch{}, errEventID()
			}
			return batch{}, nil
		case <-wake:
		case <-again:
		}
	}
}

// fill looks for what is missing among the kept events. It fails only when that is
// lost for good, or never was; more says that it is to be called again at once.
func (f *feed) fill(ctx context.Context) (b batch, more bool, err error) {
	if f.stuck.IsZero() {
		f.stuck = time.Now()
	}
	b, more, err = f.refill(ctx)
	switch {
	case len(b.Chunks) > 0 || more:
		f.stuck = time.Time{}
		return b, more, nil
	case ctx.Err() != nil:
		return batch{}, false, ctx.Err()
	case !f.stuck.IsZero() && (f.whole || time.Since(f.stuck) > refillMost):
		return batch{}, false, &inference.Error{Code: inference.CodeEventsLost, Message: "A part of the stream is no longer kept.", Err: err}
	}
	return batch{}, false, nil
}

// foreign reports that the feed's run never was: there is something of another one,
// also of a run that was fenced, and nothing of this one, neither kept nor live.
func (f *feed) foreign() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.known && f.heard == 0 && !f.otherAt.IsZero() && time.Since(f.otherAt) > foreignAfter
}

// alarm sets the reader's one timer.
func (f *feed) alarm(wait time.Duration) *time.Timer {
	if f.timer == nil {
		f.timer = time.NewTimer(wait)
	} else {
		f.timer.Reset(wait)
	}
	return f.timer
}

// ready hands out what is buffered, if it is what comes next. refill says that
// something is missing which the kept events must have.
func (f *feed) ready() (b batch, refill bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := uint64(len(f.buf)); n > 0 {
		switch {
		case f.first > f.next:
			return batch{}, true
		case f.first+n <= f.next:
			f.drop()
		default:
			b = batch{Run: f.run, First: f.next, Chunks: f.buf[f.next-f.first:]}
			f.next = f.first + n
			f.drop()
			f.missed = false
			return b, false
		}
	}
	if f.end != nil {
		if f.next > f.end.LastSeq {
			return batch{Run: f.run, First: f.next, End: f.end}, false
		}
		return batch{}, true
	}
	return batch{}, f.missed || f.next <= f.heard
}

// refill reads the next kept chunks of the run. more says that there were kept events,
// be it such as were handed out before, and that others may follow.
func (f *feed) refill(ctx context.Context) (b batch, more bool, err error) {
	blocks, err := f.kept.Next(ctx)
	if err != nil {
		return batch{}, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(blocks) > 0 && f.run == (queue.Run{}) {
		f.run = blocks[0].Run
	}
	b = batch{Run: f.run, First: f.next}
	for _, k := range blocks {
		if k.Run != f.run {
			if !f.known && f.otherAt.IsZero() {
				f.otherAt = time.Now()
			}
			continue
		}
		f.known = true
		if k.End != nil {
			f.whole = true // blocks are kept in order
			if f.end == nil {
				f.end = k.End
			}
		}
		for i, c := range k.Chunks {
			if k.FirstSeq+uint64(i) == f.next {
				b.Chunks = append(b.Chunks, c)
				f.next++
			}
		}
	}
	if len(blocks) == 0 && f.next > f.heard && f.end == nil {
		f.missed, f.stuck = false, time.Time{} // caught up; live chunks show whether anything is missing still
	}
	return b, len(blocks) > 0, nil
}
